"""`python -m tools.about` prints the environment."""

import subprocess
import sys
import tomllib

import pytest

from stages.lib.models.networks import import_keras
from tests.helpers import ROOT
from tools.about import about


def test_cpu_system_and_every_dependency_are_listed() -> None:
    lines = about()
    assert {"CPU", "cores", "vectors", "memory", "OS", "Python", "tensorflow"} <= {*lines}
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert len(lines) == 8 + len(dependencies)
    assert all(lines.values())


def test_devices_are_listed_without_library_logs() -> None:
    """TensorFlow logs a missing GPU; the log is suppressed."""
    command = [sys.executable, "-m", "tools.about"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = dict(line.split(maxsplit=1) for line in result.stdout.splitlines())
    assert lines["devices"].startswith("CPU:0")
    assert "train runs on" in result.stdout
    assert result.stderr == ""


def test_devices_are_unknown_without_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    import_keras.cache_clear()
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setitem(sys.modules, "keras", None)
    assert about()["devices"].startswith("unknown, TensorFlow cannot be imported: ")
