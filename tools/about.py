"""Print the environment: CPU, operating system, devices, versions. No output depends on it."""

import os
import platform
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import psutil

from stages.lib.models.networks import import_keras
from stages.lib.stage import StageError, run

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
CPUINFO = Path("/proc/cpuinfo")


def cpu() -> dict[str, str]:
    """Return the CPU model, its cores, and its widest vector instructions."""
    text = CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else ""
    model = re.search(r"^model name\s*: (.+)", text, re.M)
    threads = psutil.cpu_count()
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
    vectors = [name for name in ("avx512f", "avx2", "avx") if re.search(rf"\b{name}\b", text)]
    return {
        "CPU": model[1] if model else platform.processor() or platform.machine(),
        "cores": f"{psutil.cpu_count(logical=False)}, threads {threads}, usable here {usable}",
        "vectors": vectors[0] if vectors else "unknown",
    }


def devices() -> dict[str, str]:
    """Return TensorFlow's devices, and the one that train uses: the first GPU, if any."""
    try:
        import_keras()  # without TensorFlow's messages
        import tensorflow
    except (ImportError, StageError) as error:
        return {"devices": f"unknown, TensorFlow cannot be imported: {error}"}
    listed = []
    for device in tensorflow.config.list_physical_devices():
        name = device.name.removeprefix("/physical_device:")
        model = tensorflow.config.experimental.get_device_details(device).get("device_name")
        listed.append(f"{name} ({model})" if model else name)
    gpus = [name for name in listed if name.startswith("GPU")]
    return {"devices": ", ".join(listed), "train runs on": (gpus or listed)[0]}


def packages() -> dict[str, str]:
    """Return the installed versions of the dependencies in pyproject.toml."""
    specs = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    return {name: version(name) for name in (re.split("[<>=[]", spec)[0] for spec in specs)}


def about() -> dict[str, str]:
    """Return all values to print, by name."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    memory = f"{psutil.virtual_memory().total / 2**30:.1f} GiB"
    system = {"memory": memory, "OS": platform.platform(), "Python": python}
    return {**cpu(), **devices(), **system, **packages()}


def main() -> None:
    found = about()
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:{width}}  {value}")


if __name__ == "__main__":
    run(main)
