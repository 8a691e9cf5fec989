"""Experiments on the remotes, with a pipeline of one stage; killed processes: slow/."""

import shutil
from pathlib import Path

import pytest

from stages.lib.stage import StageError
from tests.helpers import ROOT, Clone
from tools.lib import experiment
from tools.lib.experiment import call, check_remotes, references, run_and_push, version_faults
from tools.lib.runs import LOCK

NAME = "large"
CHANGES = ["size=7"]


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not retry if a remote is unreachable."""
    monkeypatch.setattr(experiment, "RETRY_DELAYS", ())


def head() -> str:
    return call("git", "rev-parse", "HEAD").strip()


def run_it() -> str:
    return run_and_push("origin", head(), NAME, CHANGES)


def runs(folder: Path) -> int:
    return len((folder / "ran").read_text().splitlines())


def stored(folder: Path) -> list[Path]:
    return [path for path in (folder / "store/files/md5").rglob("*") if path.is_file()]


def test_experiment_is_run_and_pushed_once(one_stage: Clone, tmp_path: Path) -> None:
    commit = run_it()
    reference = f"refs/exps/{head()[:2]}/{head()[2:]}/{NAME}"
    assert references("origin", "refs/exps/*") == {reference: commit}
    assert call("git", "show", f"{commit}:params.yaml") == "size: 7\n"
    assert len(stored(tmp_path)) == 3
    assert run_it() == commit
    assert runs(tmp_path) == 1
    assert one_stage.changed() == set()


def test_experiment_without_data_anywhere_is_rerun(one_stage: Clone, tmp_path: Path) -> None:
    run_it()
    for folder in (tmp_path / "store/files", one_stage.path / ".dvc/cache/files"):
        shutil.rmtree(folder)
    (tmp_path / "store/files/md5").mkdir(parents=True)
    run_it()
    assert runs(tmp_path) == 2
    assert len(stored(tmp_path)) == 3


def test_data_lost_on_the_remote_is_pushed_again(one_stage: Clone, tmp_path: Path) -> None:
    commit = run_it()
    for path in stored(tmp_path):
        if path.read_text() == "size: 7\n":
            path.chmod(0o600)
            path.write_text("size: ")
        else:
            path.unlink()
    assert run_it() == commit
    assert len(stored(tmp_path)) == 3
    shutil.rmtree(one_stage.path / ".dvc/cache")
    call("git", "checkout", "--quiet", commit)
    call("dvc", "pull")
    assert (one_stage.path / "out/a").read_text() == "size: 7\n"
    assert runs(tmp_path) == 1


@pytest.mark.parametrize("damage", ["file", "listing", "files and listing"])
def test_damage_is_found_in_a_clone_without_data(
    one_stage: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    commit = run_it()
    call("git", "clone", "--quiet", str(tmp_path / "origin"), str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path / "other")
    assert experiment.find("origin", head(), NAME) == commit
    shutil.rmtree(".dvc/cache", ignore_errors=True)
    for path in stored(tmp_path):
        kind = "listing" if path.suffix == ".dir" else "file"
        if kind in damage:
            path.chmod(0o600)
            path.write_text(path.read_text()[:-1])
    assert experiment.find("origin", head(), NAME) == ""


@pytest.mark.parametrize(
    ("remote", "store", "reason"),
    [
        ("orign", "store", "does not appear to be a git"),
        ("origin", "gone", "mount it"),
    ],
)
def test_invalid_remotes_are_rejected(
    one_stage: Clone, tmp_path: Path, remote: str, store: str, reason: str
) -> None:
    check_remotes("origin", head())
    (tmp_path / "store").rename(tmp_path / store)
    with pytest.raises(StageError, match=reason):
        check_remotes(remote, head())


def test_reference_without_data_is_replaced(
    one_stage: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the clone nor the remote has the data."""
    first = run_it()
    shutil.rmtree(tmp_path / "store/files/md5")
    (tmp_path / "store/files/md5").mkdir()
    call("git", "clone", "--quiet", str(tmp_path / "origin"), str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path / "other")
    second = run_it()
    assert [*references("origin", "refs/exps/*").values()] == [second] != [first]
    assert len(stored(tmp_path)) == 3


def test_experiment_of_a_faster_clone_wins(
    one_stage: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment.run_experiment(NAME, CHANGES)  # not pushed yet
    call("git", "clone", "--quiet", str(tmp_path / "origin"), str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path / "other")
    theirs = run_it()
    monkeypatch.chdir(one_stage.path)
    assert experiment.push("origin", head(), NAME) == run_it() == theirs
    assert [*references("origin", "refs/exps/*").values()] == [theirs]


def test_missing_folder_is_not_created(one_stage: Clone, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store")  # as if it were not mounted
    with pytest.raises(StageError, match="store/files/md5 does not exist; mount it"):
        run_it()
    assert not (tmp_path / "store").exists()
    assert references("origin", "refs/exps/*") == {}


def test_project_without_a_dvc_remote_is_rejected(one_stage: Clone) -> None:
    (one_stage.path / ".dvc/config").write_text("")
    with pytest.raises(StageError, match="no DVC remote; run `dvc remote add"):
        run_it()
    assert references("origin", "refs/exps/*") == {}


def test_failed_stage_leaves_no_reference(one_stage: Clone, tmp_path: Path) -> None:
    (tmp_path / "ran").mkdir()
    with pytest.raises(StageError, match="failed to reproduce 'make'"):
        run_it()
    assert references("origin", "refs/exps/*") == {}


def test_locked_versions_are_installed() -> None:
    assert version_faults(ROOT / LOCK) == []


def test_version_mismatches_are_listed(tmp_path: Path) -> None:
    (tmp_path / LOCK).write_text(
        "absent==1 \\\n"
        "absent-too==1 ; sys_platform == 'win32' \\\n"
        "numpy==0.1 ; python_full_version < '3.12' \\\n"
        "numpy==0.2 ; python_full_version >= '3.12' \\\n"
    )
    absent, numpy = version_faults(tmp_path / LOCK)
    assert absent == "absent none instead of 1"
    assert numpy.startswith("numpy ")
    assert numpy.endswith(" instead of 0.1 or 0.2")


def test_environment_with_other_versions_is_rejected(one_stage: Clone) -> None:
    lock = one_stage.path / LOCK
    lock.write_text(lock.read_text().replace("\nnumpy==", "\nnumpy==0."))
    with pytest.raises(StageError, match=r"versions differ from requirements\.lock: numpy "):
        run_it()


def test_shallow_clone_is_rejected(
    one_stage: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one_stage.path / "params.yaml").write_text("size: 2\n")
    call("git", "commit", "--quiet", "--all", "--message", "More")
    call("git", "push", "--quiet", "origin", "main")
    call("git", "clone", "-q", "--depth=1", f"file://{tmp_path}/origin", str(tmp_path / "shallow"))
    monkeypatch.chdir(tmp_path / "shallow")
    with pytest.raises(StageError, match="git fetch --unshallow"):
        run_it()
