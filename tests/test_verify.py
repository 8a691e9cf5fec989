"""What `python -m tools.verify` finds in a clone that was damaged; the commands that it prints mend it."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.lib.stage import StageError
from tests.conftest import Clone
from tools import verify

CLEAN = "verify: the cache and every out are as dvc.lock tells\n"
HISTORY, NORMALIZED, WEIGHTS = (
    Path("data/history.csv"),
    Path("data/normalized"),
    Path("data/model.onnx"),
)
METRICS = Path("reports/metrics.json")


@pytest.fixture(scope="module")
def whole(first_runs: dict[str, tuple[Clone, list[str]]]) -> Clone:
    """A clone as it was committed after its first run."""
    clone = first_runs["plain"][0]
    clone.call("git", "reset", "-q", "--hard")
    clone.call("dvc", "checkout", "-q")
    return clone


@pytest.fixture
def clone(whole: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A copy of it; the working directory."""
    shutil.copytree(whole.path, tmp_path / "clone")
    monkeypatch.chdir(tmp_path / "clone")
    return Clone(tmp_path / "clone", whole.env)


def cached(path: Path) -> Path:
    """The object of a file or folder that is whole."""
    digest = verify.md5(path)
    return verify.CACHE / digest[:2] / digest[2:]


def flip(path: Path) -> None:
    """Changes a byte as a bad disk does: the size, the time and the rights stay."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def cut(path: Path, to: float) -> None:
    path.write_bytes(path.read_bytes()[: int(len(path.read_bytes()) * to)])


def lock(pid: int) -> None:
    holder = {"pid": pid, "cmd": "dvc repro"}
    verify.RWLOCK.write_text(
        json.dumps({"write": {"/x/data/raw": holder}, "read": {"/x/dvc.yaml": [holder]}})
    )


def ended() -> int:
    """The id of a process that there was."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


OBJECT = r"\.dvc/cache/files/md5/\w\w/\w{30}"
HEX = r"\w{32}"
FLIPPED = rf"{OBJECT}(\.dir)?: expected the content that its name tells, found MD5 {HEX}"
LOST = rf"{OBJECT}(\.dir)?: expected an object of data/\w+(\.csv)?, found nothing"


@pytest.mark.parametrize(
    ("plant", "fault", "commands"),
    [
        pytest.param(
            lambda: flip(cached(HISTORY)),
            FLIPPED,
            "rm -rf OBJECT; dvc commit train",
            id="object-flipped",
        ),
        pytest.param(
            lambda: flip(cached(NORMALIZED / "test_images.npy")),
            FLIPPED,
            "rm -rf OBJECT; dvc commit normalize",
            id="object-in-folder-flipped",
        ),
        pytest.param(
            lambda: flip(cached(NORMALIZED)),
            FLIPPED,
            r"rm -rf OBJECT\.dir; dvc commit normalize",
            id="list-flipped",
        ),
        pytest.param(
            lambda: cached(HISTORY).unlink(), LOST, "dvc commit train", id="object-missing"
        ),
        pytest.param(
            lambda: cached(NORMALIZED / "test_images.npy").unlink(),
            LOST,
            "dvc commit normalize",
            id="object-in-folder-missing",
        ),
        pytest.param(
            lambda: cached(NORMALIZED).unlink(), LOST, "dvc commit normalize", id="list-missing"
        ),
        pytest.param(
            lambda: cached(HISTORY).with_name("half").touch(),
            r"\.dvc/cache/files/md5/\w\w/half: expected the content that its name tells, found MD5 d41d\w{28}",
            r"rm -rf \.dvc/cache/files/md5/\w\w/half",
            id="half-an-object",
        ),
        pytest.param(
            lambda: flip(WEIGHTS),
            rf"{WEIGHTS}: expected MD5 {HEX} as in dvc\.lock, found {HEX}",
            f"rm -rf {WEIGHTS}",
            id="out-flipped",
        ),
        pytest.param(
            lambda: (NORMALIZED / "more.npy").touch(),
            rf"{NORMALIZED}: expected MD5 {HEX}\.dir as in dvc\.lock, found {HEX}\.dir",
            f"rm -rf {NORMALIZED}",
            id="folder-with-more",
        ),
        pytest.param(
            lambda: shutil.rmtree(NORMALIZED),
            rf"{NORMALIZED}: expected MD5 {HEX}\.dir as in dvc\.lock, found nothing",
            "",
            id="folder-missing",
        ),
        pytest.param(
            lambda: flip(METRICS),
            rf"{METRICS}: expected MD5 {HEX} as in dvc\.lock, found {HEX}",
            f"rm -rf {METRICS}",
            id="report-changed",
        ),
        pytest.param(
            lambda: METRICS.unlink(),
            rf"{METRICS}: expected MD5 {HEX} as in dvc\.lock, found nothing",
            "",
            id="report-missing",
        ),
        pytest.param(
            lambda: verify.RWLOCK.write_text('{"read": {'),
            r"\.dvc/tmp/rwlock: expected JSON of DVC's, found b'\{\"read\": \{'",
            r"rm -rf \.dvc/tmp/rwlock",
            id="rwlock-cut",
        ),
        pytest.param(
            lambda: verify.RWLOCK.write_text('{"write": 3}'),
            r"\.dvc/tmp/rwlock: expected JSON of DVC's, found b'\{\"write\": 3\}'",
            r"rm -rf \.dvc/tmp/rwlock",
            id="rwlock-of-something-else",
        ),
        pytest.param(
            lambda: lock(ended()),
            r"\.dvc/tmp/rwlock: expected no lock, found those of processes that ended: \[\d+\]",
            r"rm -rf \.dvc/tmp/rwlock",
            id="rwlock-left",
        ),
        *(
            pytest.param(
                lambda to=to: cut(verify.LOCK, to),
                r"dvc\.lock: expected the outs of each stage, found .*",
                r"git restore dvc\.lock",
                id=f"lock-cut-at-{to}",
            )
            for to in (0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999)
        ),
        pytest.param(
            lambda: verify.LOCK.write_text(verify.LOCK.read_text().partition("  plot:")[0]),
            r"dvc\.lock: expected the outs of each stage, found none of plot: .*",
            r"git restore dvc\.lock",
            id="lock-cut-between-stages",
        ),
        pytest.param(
            lambda: verify.LOCK.write_text(verify.LOCK.read_text().rpartition("      size")[0]),
            r"dvc\.lock: expected the outs of each stage, found .*",
            r"git restore dvc\.lock",
            id="lock-cut-before-a-size",
        ),
        pytest.param(
            lambda: verify.LOCK.unlink(),
            r"dvc\.lock: expected the outs of each stage, found 0 characters, cut off",
            r"git restore dvc\.lock",
            id="lock-missing",
        ),
    ],
)
def test_each_fault_is_named_with_what_mends_it_and_nothing_else_is(
    clone: Clone, plant: Callable[[], object], fault: str, commands: str
) -> None:
    assert verify.check().faults == []
    plant()
    found = verify.check()
    (line,) = found.faults
    assert re.fullmatch(fault, line), line
    expected = "; ".join(filter(None, (commands.replace("OBJECT", OBJECT), "dvc repro")))
    assert re.fullmatch(expected, "; ".join(found.commands())), found.commands()


def test_a_dvc_at_work_is_waited_for(clone: Clone) -> None:
    lock(os.getpid())
    with pytest.raises(
        StageError,
        match=rf"rwlock: expected no DVC at work, found process {os.getpid()} \(dvc repro",
    ):
        verify.check()


def mend(clone: Clone) -> str:
    """Runs the commands that verify prints, to the letter, until it finds nothing; what it said first."""
    said = clone.call("python", "-m", "tools.verify", code=1)
    faults, _, commands = said.partition("To mend it:\n")
    assert faults
    for command in commands.splitlines():
        clone.call("sh", "-c", command)
    assert clone.call("python", "-m", "tools.verify") == CLEAN
    assert clone.changed() == set()  # dvc.lock and the reports are those that were committed
    return faults


def test_a_cache_with_lost_and_flipped_objects_is_filled_from_outs_that_are_whole(
    clone: Clone,
) -> None:
    for path in (HISTORY, NORMALIZED / "train_images.npy", Path("data/raw")):
        flip(cached(path))
    for path in (WEIGHTS, Path("data/predictions.npz"), NORMALIZED / "test_labels.npy"):
        cached(path).unlink()
    assert len(mend(clone).splitlines()) == 6


def test_outs_that_differ_come_back(clone: Clone) -> None:
    flip(METRICS)
    Path("reports/figures/errors.png").unlink()
    flip(NORMALIZED / "train_images.npy")
    shutil.rmtree("data/raw")
    verify.RWLOCK.write_text('{"read": {')
    assert "rwlock" in clone.call("dvc", "repro", code=255)
    assert len(mend(clone).splitlines()) == 5


def test_a_byte_flipped_in_the_cache_goes_unnoticed_by_dvc_until_verify_finds_and_mends_it(
    clone: Clone,
) -> None:
    flip(cached(WEIGHTS))
    before = verify.md5(WEIGHTS)
    WEIGHTS.unlink()
    assert "is cached" in clone.call("dvc", "repro")
    assert clone.json("dvc", "status") == {}
    assert clone.changed() == set()
    assert verify.md5(WEIGHTS) != before
    assert len(mend(clone).splitlines()) == 2
    assert verify.md5(WEIGHTS) == before


def test_a_lock_file_cut_off_stops_dvc_and_comes_back(clone: Clone) -> None:
    verify.LOCK.write_text(verify.LOCK.read_text().partition("lot:")[0])
    said = clone.call("dvc", "repro", code=255)
    assert "dvc.lock" in said
    assert "Traceback" not in said
    assert mend(clone).startswith("dvc.lock: expected the outs of each stage")
