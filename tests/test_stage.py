"""How a stage ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT


def end(folder: Path, body: str) -> subprocess.CompletedProcess[str]:
    """Runs a stage `bake` with this body of `main` in a process of its own."""
    script = folder / "bake.py"
    script.write_text(
        f"import os, signal\nfrom stages.lib.stage import StageError, run\n\ndef main():\n    {body}\n\nrun(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""}
    return subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False, timeout=30
    )


def test_a_stage_that_succeeds_says_only_what_it_printed(tmp_path: Path) -> None:
    ended = end(tmp_path, "print('three loaves')")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "three loaves\n", "")


@pytest.mark.parametrize(
    ("body", "line", "code"),
    [
        ("raise StageError('oven: expected 200, found 20')", "bake: oven: expected 200, found 20", 1),
        ("open('flour')", "bake: flour: expected the file, found none; dvc repro makes what is missing", 1),
        ("open('/')", "bake: [Errno 21] Is a directory: '/'", 1),
        ("signal.raise_signal(signal.SIGINT)", "bake: interrupted", 130),
    ],
)
def test_what_a_user_can_mend_is_one_line_with_the_name_of_the_stage(
    tmp_path: Path, body: str, line: str, code: int
) -> None:
    ended = end(tmp_path, body)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", f"{line}\n")


def test_what_only_a_programmer_can_mend_keeps_its_traceback(tmp_path: Path) -> None:
    ended = end(tmp_path, "raise ValueError('fault')")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback (most recent call last):")
    assert ended.stderr.endswith("ValueError: fault\n")


def test_a_line_is_seen_when_it_is_printed_even_in_a_pipe(tmp_path: Path) -> None:
    ended = end(tmp_path, "print('rising'); os._exit(0)")
    assert ended.stdout == "rising\n"


def test_a_real_stage_names_the_file_that_is_not_there(project: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-m", "stages.normalize"],
        env=environment,
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert ended.returncode == 1
    assert ended.stderr == (
        "normalize: data/raw/dataset.json: expected the file, found none; dvc repro makes what is missing\n"
    )
