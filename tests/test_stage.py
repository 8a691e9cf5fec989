"""Termination of stages: errors, signals and lack of resources."""

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
    """Run a stage `bake` with this body of `main` in a separate process."""
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


def test_successful_stage_adds_no_output(tmp_path: Path) -> None:
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
def test_user_error_is_one_line_with_the_stage_name(
    tmp_path: Path, body: str, line: str, code: int
) -> None:
    ended = end(tmp_path, body)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "", f"{line}\n")


def test_programming_error_keeps_its_traceback(tmp_path: Path) -> None:
    ended = end(tmp_path, "raise ValueError('fault')")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback (most recent call last):")
    assert ended.stderr.endswith("ValueError: fault\n")


def test_output_to_a_pipe_is_not_buffered(tmp_path: Path) -> None:
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
FREES_MEMORY = """
class Dough:
    def __del__(self):  # Python ignores exceptions here
        print("ready")
        time.sleep(0.2)

def main():
    with replacing(Path(__file__).parent / "loaf") as partial:
        partial.write_text("half")
        Dough()
        time.sleep(20)
"""
IGNORES_SIGNALS = """
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
WRITES_LATE = """
def main():
    print("ready")
    time.sleep(1.5)
    Path(__file__).with_name("loaf").touch()
"""


def command(folder: Path, body: str) -> list[str]:
    """Return the command of a stage `bake` with this `main` and short delays."""
    (folder / "bake.py").write_text(
        "from stages.lib import files, stage\nimport hashlib, time\nfrom pathlib import Path\n"
        "from stages.lib.files import replacing\n"
        "from stages.lib.sources.packages import run_program\n"
        f"stage.GRACE, stage.POLL_INTERVAL = 0.7, 0.1\n{body}\nstage.run(main)\n"
    )
    return [sys.executable, str(folder / "bake.py")]


def started(*command: str, ready: bool = True, **environment: str) -> subprocess.Popen[str]:
    """Start a command in a new process group, and wait until it has printed `ready`."""
    before = signal.signal(
        signal.SIGHUP, signal.SIG_DFL
    )  # not ignored, as it is when the tests run under nohup
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


def test_interrupted_tool_waits_for_dvc_to_clean_up(tmp_path: Path) -> None:
    """DVC may take as long as a stage, and longer than the tool's own grace period."""
    program = (
        'trap "sleep 1.5; touch cleaned; exit 1" INT; touch started; while :; do sleep 1; done'
    )
    body = f"""
def main():
    from tools.lib.experiment import call
    print("ready")
    call("sh", "-c", {program!r})
"""
    process = started("env", "-C", str(tmp_path), *command(tmp_path, body))
    while not (tmp_path / "started").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=8) == ("", "bake: interrupted\n")
    assert (tmp_path / "cleaned").exists()


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (signal.SIGHUP, "terminated by SIGHUP"),
        (signal.SIGINT, "interrupted"),
        (signal.SIGTERM, "terminated by SIGTERM"),
    ],
)
@pytest.mark.parametrize("body", [WRITES, FREES_MEMORY, IGNORES_SIGNALS, CALCULATES])
def test_signal_ends_a_stage_without_partial_files(
    tmp_path: Path, body: str, number: int, line: str
) -> None:
    """The stage prints one line and exits with 128 plus the number of the signal."""
    process = started(*command(tmp_path, body))
    process.send_signal(number)
    time.sleep(0.1)
    process.send_signal(number)  # a user presses Ctrl-C twice
    assert process.communicate(timeout=4) == ("", f"bake: {line}\n")
    assert process.returncode == 128 + number
    assert [path.name for path in tmp_path.iterdir()] == ["bake.py"]


# Like DVC, start a command in the same process group and wait; the tests kill this process.
DVC = "import subprocess, sys; subprocess.Popen(sys.argv[1:]){}"


@pytest.mark.parametrize(
    "shell", [[], ["sh", "-c", '"$@"; exit 3', "sh"]], ids=["no shell", "waiting shell"]
)
@pytest.mark.parametrize("body", [WRITES, CALCULATES, FETCHES])
def test_stage_ends_when_dvc_is_killed(tmp_path: Path, body: str, shell: list[str]) -> None:
    stage = ["env", "DVC_STAGE=bake", *shell, *command(tmp_path, body)]
    dvc = started(sys.executable, "-c", DVC.format(".wait()"), *stage)
    below = psutil.Process(dvc.pid).children(recursive=True)
    dvc.kill()
    assert dvc.communicate(timeout=4) == (
        "",
        "bake: terminated by SIGTERM\n",
    )  # the pipes close when the last one ends
    assert psutil.wait_procs(below, timeout=2)[1] == []
    assert [path.name for path in tmp_path.iterdir()] == ["bake.py"]


def test_stage_ends_if_dvc_exited_during_startup(tmp_path: Path) -> None:
    dvc = started(
        sys.executable,
        "-c",
        DVC.format(""),
        *command(tmp_path, WRITES_LATE),
        DVC_STAGE="bake",
        ready=False,
    )
    assert dvc.wait(timeout=4) == 0
    assert dvc.communicate(timeout=4)[1] == "bake: terminated by SIGTERM\n"
    assert not (tmp_path / "loaf").exists()


def test_manually_started_stage_outlives_the_shell(tmp_path: Path) -> None:
    shell = started(sys.executable, "-c", DVC.format(".wait()"), *command(tmp_path, WRITES_LATE))
    shell.kill()
    assert shell.communicate(timeout=8) == ("", "")
    assert (tmp_path / "loaf").exists()


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux signals a program when its parent is killed"
)
def test_download_program_ends_with_a_killed_stage(tmp_path: Path) -> None:
    stage = started(*command(tmp_path, FETCHES))
    while not (below := psutil.Process(stage.pid).children()) or below[0].name() != "sleep":
        time.sleep(0.01)
    stage.kill()
    stage.communicate(timeout=4)
    assert psutil.wait_procs(below, timeout=2)[1] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_during_tensorflow_import_is_one_line(project: Path, number: int) -> None:
    fetch.main()
    normalize.main()
    train = started(sys.executable, "-m", "stages.train", ready=False)
    while not any("tensorflow" in each.path for each in psutil.Process(train.pid).memory_maps()):
        time.sleep(0.02)
    train.send_signal(number)
    line = "interrupted" if number == signal.SIGINT else "terminated by SIGTERM"
    assert train.communicate(timeout=8) == ("", f"train: {line}\n")
    assert train.returncode == 128 + number


def test_arguments_of_a_stage_are_rejected(project: Path) -> None:
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
    ids=["disk full", "broken pipe", "no memory", "no memory for a library"],
)
def test_lack_of_resources_is_reported_in_one_line(tmp_path: Path, body: str, line: str) -> None:
    ended = end(tmp_path, body)
    assert (ended.returncode, ended.stderr) == (1, f"bake: {line}\n")


@pytest.mark.parametrize(("stage", "limit", "least"), [("evaluate", 0.9, 1), ("train", 3.9, 4)])
def test_low_memory_limit_is_rejected(project: Path, stage: str, limit: float, least: int) -> None:
    """Libraries would abort or hang."""
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
