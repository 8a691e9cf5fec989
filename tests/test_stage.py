"""How a stage ends."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from stages import fetch, normalize
from tests.helpers import ROOT


def end(folder: Path, body: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a stage `bake` with this body of `main` in a process of its own."""
    script = folder / "bake.py"
    script.write_text(
        "import os, signal\nfrom stages.lib.stage import StageError, run\n\n"
        f"def main():\n    {body}\n\nrun(main)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "", **env}
    return subprocess.run(
        [sys.executable, script],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def test_a_stage_that_succeeds_says_only_what_it_printed(tmp_path: Path) -> None:
    ended = end(tmp_path, "print('three loaves')")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "three loaves\n", "")


@pytest.mark.parametrize(
    ("body", "line", "code"),
    [
        (
            "raise StageError('oven: expected 200, found 20')",
            "bake: oven: expected 200, found 20",
            1,
        ),
        (
            "open('flour')",
            "bake: flour: no such file; run dvc repro to create missing outputs",
            1,
        ),
        (
            "raise StageError('no oven works', 'gas: no\\n gas', 'electric: off', 'call a baker')",
            "bake: no oven works\ngas: no gas\nelectric: off\ncall a baker",
            1,
        ),
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


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "ascii:strict"])
def test_output_does_not_fail_on_encoding(tmp_path: Path, encoding: str) -> None:
    body = "print('T\\u8a00'); raise StageError('\\u8a00: out of flour')"
    ended = end(tmp_path, body, PYTHONIOENCODING=encoding)
    assert (ended.stdout, ended.stderr) == ("T\\u8a00\n", "bake: \\u8a00: out of flour\n")


WRITES = """
def main():
    with replacing(Path(__file__).parent / "loaf") as partial:
        partial.write_text("half")
        remove = files._remove
        files._remove = lambda path: (time.sleep(0.15), remove(path))
        print("ready")
        time.sleep(20)
"""
SWALLOWS = """
def main():
    print("ready")
    for _ in range(10):
        try: time.sleep(2)
        except BaseException: pass
"""
CALCULATES = """
def main():  # as TensorFlow in a long call: Python runs no handler meanwhile
    print("ready")
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)
"""
FETCHES = """
def main():
    print("ready")
    run_program(["sleep", "20"], Path(__file__).parent)
"""
GOES_ON = """
def main():
    print("ready")
    time.sleep(1.5)
    Path(__file__).with_name("loaf").touch()
"""


def command(folder: Path, body: str) -> list[str]:
    """A stage `bake` with this `main`, and little patience."""
    (folder / "bake.py").write_text(
        "from stages.lib import files, stage\nimport hashlib, time\nfrom pathlib import Path\n"
        "from stages.lib.files import replacing\n"
        "from stages.lib.sources.packages import run_program\n"
        f"stage.GRACE, stage.POLL_INTERVAL = 0.7, 0.1\n{body}\nstage.run(main)\n"
    )
    return [sys.executable, str(folder / "bake.py")]


def started(*command: str, ready: bool = True, **environment: str) -> subprocess.Popen[str]:
    """Starts a command in a process group of its own, and waits until it has printed `ready`."""
    before = signal.signal(
        signal.SIGHUP, signal.SIG_DFL
    )  # nohup, which the tests may run under, is not its affair
    process = subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGHUP, before)
    assert process.stdout
    assert not ready or process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGHUP, "ended by SIGHUP"),
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "ended by SIGTERM"),
    ],
)
@pytest.mark.parametrize("body", [WRITES, SWALLOWS, CALCULATES])
def test_a_signal_ends_a_stage_with_one_line_and_its_code_and_leaves_no_part_of_a_file(
    tmp_path: Path, body: str, number: int, line: str
) -> None:
    process = started(*command(tmp_path, body))
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)  # a person who presses Ctrl-C twice
    assert process.communicate(timeout=4) == ("", f"bake: {line}\n")
    assert process.returncode == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["bake.py"]


# What DVC does: starts the command in its own process group, in a shell, and waits; here it is
# killed.
DVC = "import subprocess, sys; subprocess.Popen(sys.argv[1:]){}"


@pytest.mark.parametrize(
    "shell", [[], ["sh", "-c", '"$@"; exit 3', "sh"]], ids=["no shell", "a shell that stays"]
)
@pytest.mark.parametrize("body", [WRITES, CALCULATES, FETCHES])
def test_a_stage_ends_when_dvc_is_killed(tmp_path: Path, body: str, shell: list[str]) -> None:
    stage = ["env", "DVC_STAGE=bake", *shell, *command(tmp_path, body)]
    dvc = started(sys.executable, "-c", DVC.format(".wait()"), *stage)
    below = psutil.Process(dvc.pid).children(recursive=True)
    dvc.kill()
    assert dvc.communicate(timeout=4) == (
        "",
        "bake: ended by SIGTERM\n",
    )  # the pipes close when the last one ends
    assert psutil.wait_procs(below, timeout=2)[1] == []
    assert [path.name for path in tmp_path.iterdir()] == ["bake.py"]


def test_a_stage_ends_when_dvc_went_before_it_could_look(tmp_path: Path) -> None:
    dvc = started(
        sys.executable,
        "-c",
        DVC.format(""),
        *command(tmp_path, GOES_ON),
        DVC_STAGE="bake",
        ready=False,
    )
    assert dvc.wait(timeout=4) == 0
    assert dvc.communicate(timeout=4)[1] == "bake: ended by SIGTERM\n"
    assert not (tmp_path / "loaf").exists()


def test_a_stage_that_a_person_started_outlives_the_shell(tmp_path: Path) -> None:
    shell = started(sys.executable, "-c", DVC.format(".wait()"), *command(tmp_path, GOES_ON))
    shell.kill()
    assert shell.communicate(timeout=8) == ("", "")
    assert (tmp_path / "loaf").exists()


@pytest.mark.skipif(
    sys.platform != "linux", reason="elsewhere nothing tells a program that its parent was killed"
)
def test_a_program_that_fetches_ends_with_a_stage_that_is_killed(tmp_path: Path) -> None:
    stage = started(*command(tmp_path, FETCHES))
    while not (below := psutil.Process(stage.pid).children()) or below[0].name() != "sleep":
        time.sleep(0.01)
    stage.kill()
    stage.communicate(timeout=4)
    assert psutil.wait_procs(below, timeout=2)[1] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_is_one_line_also_while_tensorflow_is_imported(project: Path, number: int) -> None:
    fetch.main()
    normalize.main()
    train = started(sys.executable, "-m", "stages.train", ready=False)
    while not any("tensorflow" in each.path for each in psutil.Process(train.pid).memory_maps()):
        time.sleep(0.02)
    train.send_signal(number)
    line = "interrupted" if number == signal.SIGINT else "ended by SIGTERM"
    assert train.communicate(timeout=8) == ("", f"train: {line}\n")
    assert train.returncode == 128 + number


def test_arguments_are_refused_because_a_stage_has_none(project: Path) -> None:
    fetch = started(sys.executable, "-m", "stages.fetch", "--source", "kaggle", ready=False)
    line = "fetch: expected no arguments, found --source kaggle; edit params.yaml instead\n"
    assert fetch.communicate(timeout=8) == ("", line)
    assert fetch.returncode == 1
    assert not (project / "data").exists()


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "os.close(0); os.dup2(os.open('/dev/full', os.O_WRONLY), 1); print('x')",
            "[Errno 28] No space left on device",
        ),
        (
            "r, w = os.pipe(); os.dup2(w, 1); os.close(r); print('x')",
            "stdout: broken pipe",
        ),
        (
            "bytearray(1 << 62)",
            "out of memory (allocation failed); "
            "close other programs or raise the limit (ulimit -v)",
        ),
        (
            "raise ImportError('lib.so: failed to map segment')",
            "out of memory (lib.so: failed to map segment); "
            "close other programs or raise the limit "
            "(ulimit -v)",
        ),
    ],
    ids=["disk full", "no reader", "no memory", "no memory for a library"],
)
def test_what_the_machine_lacks_is_one_line(tmp_path: Path, body: str, line: str) -> None:
    ended = end(tmp_path, body)
    assert (ended.returncode, ended.stderr) == (1, f"bake: {line}\n")


@pytest.mark.parametrize(("stage", "limit", "least"), [("evaluate", 0.9, 1), ("train", 3.9, 4)])
def test_a_limit_of_memory_in_which_libraries_would_abort_or_hang_is_refused(
    project: Path, stage: str, limit: float, least: int
) -> None:
    fetch.main()
    normalize.main()
    size = int(limit * 10**9)
    ended = subprocess.run(
        [sys.executable, "-m", f"stages.{stage}"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)),
    )
    line = (
        f"{stage}: memory: expected at least {least} GB, found a limit of {limit} GB; "
        "raise ulimit -v\n"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", line)
