"""Prints what this machine is, as far as results may depend on it; no out holds any of it."""

import os
import platform
import re
import tomllib
from importlib.metadata import version
from pathlib import Path

import psutil

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
CPUINFO = Path("/proc/cpuinfo")


def cpu() -> dict[str, str]:
    """The CPU as it names itself, how much of it may be used, and the widest vectors that it computes with."""
    text = CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else ""
    named = re.search(r"^model name\s*: (.+)", text, re.M)
    usable = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else psutil.cpu_count()
    )
    vectors = [name for name in ("avx512f", "avx2", "avx") if re.search(rf"\b{name}\b", text)]
    return {
        "CPU": named[1] if named else platform.processor() or platform.machine(),
        "cores": f"{psutil.cpu_count(logical=False)}, threads {psutil.cpu_count()}, usable here {usable}",
        "vectors": vectors[0] if vectors else "not told",
    }


def packages() -> dict[str, str]:
    """The versions installed of the packages that pyproject.toml asks for."""
    asked = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]["dependencies"]
    return {name: version(name) for name in (re.split("[<>=[]", spec)[0] for spec in asked)}


def about() -> dict[str, str]:
    """Everything that is printed, by name."""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    memory = f"{psutil.virtual_memory().total / 2**30:.1f} GiB"
    return {**cpu(), "memory": memory, "OS": platform.platform(), "Python": python, **packages()}


if __name__ == "__main__":
    for name, value in about().items():
        print(f"{name:14}{value}")
