"""Names the hardware and the versions."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

INSTRUCTIONS = ("amx_bf16", "avx512f", "avx2", "asimd")


def _first(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.lower().startswith(key)), "")


def describe(peers: Path) -> dict[str, str]:
    """The machine and what runs on it.

    Args:
        peers: The Python of the environment that has PyTorch and JAX.

    Returns:
        Names and values, for people.
    """
    flags = _first("/proc/cpuinfo", "flags").split() or _first("/proc/cpuinfo", "features").split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = _first("/proc/meminfo", "memtotal").removesuffix(" kB")
    versions = {name: version(name) for name in ("tensorflow", "keras", "numpy", "dvc")}
    if peers.exists():
        code = "import json, importlib.metadata as m; print(json.dumps({n: m.version(n) for n in ('torch', 'jax')}))"
        versions |= json.loads(subprocess.run([peers, "-c", code], capture_output=True, text=True, check=True).stdout)
    return {
        "processor": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": str(cores),
        "instructions": next((name for name in INSTRUCTIONS if name in flags), platform.machine()),
        "memory": f"{int(memory) / 2**20:.0f} GiB" if memory else "unknown",
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **versions,
    }
