"""What the machine is said to be."""

import tomllib

from tests.conftest import ROOT
from tools.about import about


def test_cpu_system_and_every_package_asked_for_are_named_with_a_version() -> None:
    lines = about()
    assert {"CPU", "cores", "vectors", "memory", "OS", "Python", "tensorflow", "ruamel.yaml"} <= {
        *lines
    }
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert len(lines) == 6 + len(asked)
    assert all(lines.values())
