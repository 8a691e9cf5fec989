"""The steps of docs/template.md, verbatim, give a project without MNIST's results."""

from pathlib import Path

import pytest

from tests.helpers import Clone, clone_env, console_commands, copy_files, make_tiny

pytestmark = pytest.mark.slow


def test_template_gives_a_working_project(tmp_path: Path) -> None:
    env = clone_env(tmp_path, "template")
    published = copy_files(tmp_path / "published", env)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "Published"]):
        published.call("git", *command)
    start, finish = console_commands("docs/template.md")
    clone, *rest = start
    assert clone.endswith("letters && cd letters")
    Clone(tmp_path, env).call("git", "clone", "-q", published.path.as_uri(), "letters")
    letters = Clone(tmp_path / "letters", env)
    for line in rest:
        letters.call("sh", "-c", line)
    assert not (letters.path / "reports").exists()

    make_tiny(letters.path)
    assert finish[:2] == ["make repro", "make test"]
    letters.call("dvc", "repro", "--quiet")  # make would install an environment first
    assert "accuracy" in letters.call("dvc", "metrics", "diff", "--all")
    letters.call("mypy")
    letters.call("pytest", "-q", "tests/test_pipeline.py", "tests/test_normalize.py")
    letters.call("sh", "-c", finish[2])
    assert letters.changed() == set()
    reports = letters.call("git", "ls-files", "reports").split()
    assert "reports/metrics.json" in reports
    assert not [path for path in reports if b"MNIST" in (letters.path / path).read_bytes()]
