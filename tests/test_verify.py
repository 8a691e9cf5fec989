"""`python -m tools.verify` finds damage in a clone, and the commands that it prints repair it."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from stages.lib.stage import StageError
from tests.helpers import Clone, commit_all, new_clone
from tools import verify

CLEAN = "verify: the DVC cache and all outputs match dvc.lock\n"
HISTORY, NORMALIZED, WEIGHTS = (
    Path("data/history.csv"),
    Path("data/normalized"),
    Path("data/model.onnx"),
)
METRICS = Path("reports/metrics.json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with the committed results of a first run."""
    folder = tmp_path_factory.mktemp("verify")
    (folder / "tools").mkdir()
    clone = new_clone(folder / "project", folder / "tools")
    clone.call("dvc", "repro", "--quiet")
    commit_all(clone, "After")
    return clone


@pytest.fixture
def clone(whole: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A copy of that clone as the working directory."""
    shutil.copytree(whole.path, tmp_path / "clone")
    monkeypatch.chdir(tmp_path / "clone")
    for name in ("DVC_SITE_CACHE_DIR", "DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR"):
        monkeypatch.setenv(name, whole.env[name])
    return Clone(tmp_path / "clone", whole.env)


def cached(path: Path) -> Path:
    """The cache object of an intact file or folder."""
    digest = verify.md5(path)
    return verify.cache_folder() / digest[:2] / digest[2:]


def flip(path: Path) -> None:
    """Change a byte like a faulty disk, which keeps size, time and mode."""
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
    """The id of a process that has exited."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


OBJECT = r"\.dvc/cache/files/md5/\w\w/\w{30}"
HEX = r"\w{32}"
FLIPPED = rf"{OBJECT}(\.dir)?: corrupted; the MD5 of its content is {HEX}"
LOST = rf"{OBJECT}(\.dir)?: missing from the cache, part of data/\w+(\.csv)?"


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
            r"\.dvc/cache/files/md5/\w\w/half: corrupted; the MD5 of its content is d41d\w{28}",
            r"rm -rf \.dvc/cache/files/md5/\w\w/half",
            id="partial-object",
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
            id="extra-file",
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
            r"\.dvc/tmp/rwlock: expected DVC's JSON, found b'\{\"read\": \{'",
            r"rm -rf \.dvc/tmp/rwlock",
            id="rwlock-cut",
        ),
        pytest.param(
            lambda: verify.RWLOCK.write_text('{"write": 3}'),
            r"\.dvc/tmp/rwlock: expected DVC's JSON, found b'\{\"write\": 3\}'",
            r"rm -rf \.dvc/tmp/rwlock",
            id="rwlock-invalid",
        ),
        pytest.param(
            lambda: lock(ended()),
            r"\.dvc/tmp/rwlock: stale locks of processes that have exited: \d+",
            r"rm -rf \.dvc/tmp/rwlock",
            id="rwlock-stale",
        ),
        *(
            pytest.param(
                lambda to=to: cut(verify.LOCK, to),
                r"dvc\.lock is missing or truncated \([\d,]+ characters\)",
                r"git restore dvc\.lock",
                id=f"lock-cut-at-{to}",
            )
            for to in (0, 0.001, 0.1, 0.5, 0.9, 0.99, 0.9999)
        ),
        pytest.param(
            lambda: verify.LOCK.write_text(verify.LOCK.read_text().partition("  plot:")[0]),
            r"dvc\.lock lacks outputs of plot: .*",
            r"git restore dvc\.lock",
            id="lock-cut-between-stages",
        ),
        pytest.param(
            lambda: verify.LOCK.write_text(verify.LOCK.read_text().rpartition("      size")[0]),
            r"dvc\.lock is missing or truncated \([\d,]+ characters\)",
            r"git restore dvc\.lock",
            id="lock-cut-before-a-size",
        ),
        pytest.param(
            lambda: verify.LOCK.unlink(),
            r"dvc\.lock is missing or truncated \(0 characters\)",
            r"git restore dvc\.lock",
            id="lock-missing",
        ),
    ],
)
def test_each_fault_is_reported_with_its_repair(
    clone: Clone, plant: Callable[[], object], fault: str, commands: str
) -> None:
    assert verify.check().faults == []
    plant()
    found = verify.check()
    (line,) = found.faults
    assert re.fullmatch(fault, line), line
    expected = "; ".join(filter(None, (commands.replace("OBJECT", OBJECT), "dvc repro")))
    assert re.fullmatch(expected, "; ".join(found.commands())), found.commands()


def test_running_dvc_is_reported(clone: Clone) -> None:
    lock(os.getpid())
    with pytest.raises(
        StageError,
        match=rf"DVC is running \(process {os.getpid()}: dvc repro\)",
    ):
        verify.check()


def repair(clone: Clone) -> list[str]:
    """Run the commands that verify prints, verbatim, and return the faults that it printed."""
    report = clone.call("python", "-m", "tools.verify", code=1)
    faults, _, commands = report.partition("To repair:\n")
    assert faults
    for command in commands.splitlines():
        clone.call("sh", "-c", command)
    assert clone.call("python", "-m", "tools.verify") == CLEAN
    assert clone.changed() == set()  # dvc.lock and the reports are the committed ones
    return faults.splitlines()


def test_damaged_cache_is_refilled_from_intact_outputs(clone: Clone) -> None:
    for path in (HISTORY, NORMALIZED / "train_images.npy", Path("data/raw")):
        flip(cached(path))
    for path in (WEIGHTS, Path("data/predictions.npz"), NORMALIZED / "test_labels.npy"):
        cached(path).unlink()
    assert len(repair(clone)) == 6


@pytest.mark.slow
def test_moved_cache_with_symlinks_is_repaired(clone: Clone, tmp_path: Path) -> None:
    """`dvc cache dir` moves the cache out of the project, and outputs link into it."""
    Path(".dvc/cache").rename(tmp_path / "cache")
    clone.call("dvc", "cache", "dir", "--local", str(tmp_path / "cache"))
    clone.call("dvc", "config", "--local", "cache.type", "symlink")
    clone.call("dvc", "checkout", "--relink", "-q")
    assert clone.call("python", "-m", "tools.verify") == CLEAN
    flip(WEIGHTS.resolve())
    HISTORY.resolve().unlink()
    (NORMALIZED / "test_images.npy").resolve().unlink()
    faults = repair(clone)
    assert len(faults) == 6  # a link differs with its object
    assert faults[0].startswith(str(tmp_path / "cache/files/md5"))


def test_damaged_outputs_are_restored(clone: Clone) -> None:
    flip(METRICS)
    Path("reports/figures/errors.png").unlink()
    flip(NORMALIZED / "train_images.npy")
    shutil.rmtree("data/raw")
    verify.RWLOCK.write_text('{"read": {')
    assert "rwlock" in clone.call("dvc", "repro", code=255)
    assert len(repair(clone)) == 5


def test_flip_missed_by_dvc_is_found_and_repaired(clone: Clone) -> None:
    flip(cached(WEIGHTS))
    before = verify.md5(WEIGHTS)
    WEIGHTS.unlink()
    assert "is cached" in clone.call("dvc", "repro")
    assert clone.json("dvc", "status") == {}
    assert clone.changed() == set()
    assert verify.md5(WEIGHTS) != before
    assert len(repair(clone)) == 2
    assert verify.md5(WEIGHTS) == before


def test_truncated_lock_file_stops_dvc_and_is_restored(clone: Clone) -> None:
    verify.LOCK.write_text(verify.LOCK.read_text().partition("lot:")[0])
    output = clone.call("dvc", "repro", code=255)
    assert "dvc.lock" in output
    assert "Traceback" not in output
    assert repair(clone)[0].startswith("dvc.lock is missing or truncated")
