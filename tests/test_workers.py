"""Checks before experiments go to workers, and clones of tasks; runs: slow/."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.lib.stage import StageError
from tests.helpers import ROOT, Clone
from tools.lib.experiment import call
from tools.lib.task import check_out, lock_clone
from tools.lib.workers import connect, prepare


def head() -> str:
    return call("git", "rev-parse", "HEAD").strip()


def test_published_commit_is_prepared(one_stage: Clone, tmp_path: Path) -> None:
    call("dvc", "repro")
    assert prepare(head()) == str(tmp_path / "origin")
    pushed = [path.relative_to(tmp_path / "store") for path in (tmp_path / "store").rglob("*")]
    files = [path.parts[0] for path in pushed if (tmp_path / "store" / path).is_file()]
    assert sorted(files) == ["files", "files", "files", "runs"]


def test_missing_folder_is_not_created(one_stage: Clone, tmp_path: Path) -> None:
    (tmp_path / "store").rename(tmp_path / "unmounted")
    with pytest.raises(StageError, match="store/files/md5 does not exist; mount it"):
        prepare(head())
    assert not (tmp_path / "store").exists()


def test_address_with_credentials_is_rejected(one_stage: Clone) -> None:
    call("git", "remote", "set-url", "origin", "https://name:secret@host/project")
    with pytest.raises(StageError, match="contains credentials") as caught:
        prepare(head())
    assert "secret" not in str(caught.value)


def test_project_without_a_git_remote_is_rejected(one_stage: Clone) -> None:
    call("git", "remote", "remove", "origin")
    with pytest.raises(StageError, match="git remote add origin ADDRESS"):
        prepare(head())


def test_relative_git_remote_is_rejected(one_stage: Clone, tmp_path: Path) -> None:
    call("git", "remote", "set-url", "origin", "../origin")
    with pytest.raises(StageError, match=f"git remote set-url origin {tmp_path}/origin"):
        prepare(head())


def test_unpushed_commit_is_rejected(one_stage: Clone) -> None:
    call("git", "commit", "--quiet", "--allow-empty", "--message", "Later")
    with pytest.raises(
        StageError, match=f"does not have commit {head()[:7]}; run `git push origin"
    ):
        prepare(head())


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("", "no DVC remote; run `dvc remote add --default store ADDRESS`"),
        (
            "[core]\n    remote = store\n['remote \"store\"']\n    url = ../../store\n",
            "DVC remote store has a relative path.*dvc remote modify store url /.*/store",
        ),
    ],
    ids=["none", "relative"],
)
def test_missing_or_relative_dvc_remote_is_rejected(
    one_stage: Clone, config: str, reason: str
) -> None:
    (one_stage.path / ".dvc/config").write_text(config)
    with pytest.raises(StageError, match=reason):
        prepare(head())


def test_unwritable_dvc_remote_is_rejected(one_stage: Clone, tmp_path: Path) -> None:
    (tmp_path / "store/runs").write_text("a file instead of a folder")
    call("dvc", "repro")
    with pytest.raises(StageError, match="1 files of the run cache could not be written"):
        prepare(head())


def test_address_without_a_scheduler_is_rejected() -> None:
    code = "from tools.lib.workers import connect\nwith connect('tcp://127.0.0.1:1'): pass"
    env = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "1s", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert "no Dask scheduler at tcp://127.0.0.1:1" in done.stderr.splitlines()[-1]


def test_invalid_address_is_rejected() -> None:
    with pytest.raises(StageError, match="no Dask scheduler at nonsense"), connect("nonsense://a"):
        pass


def test_concurrent_tasks_have_separate_clones(tmp_path: Path) -> None:
    first, lock = lock_clone(tmp_path)
    second, other = lock_clone(tmp_path)
    assert first != second
    lock.close()
    third, again = lock_clone(tmp_path)
    assert third == first
    other.close()
    again.close()


def test_clone_of_an_interrupted_task_is_repaired(one_stage: Clone, tmp_path: Path) -> None:
    folder = tmp_path / "0"
    call("git", "push", "--quiet", "origin", "main:topic")
    check_out(folder, str(tmp_path / "origin"), head(), "")
    for name in ("index", "config", "HEAD", "refs/remotes/origin/main"):
        (folder / f".git/{name}.lock").touch()
    (folder / "params.yaml").write_text("size: 9")
    (folder / ".dvc/tmp/exps/standalone/tmp1").mkdir(parents=True)
    (folder / ".dvc/tmp/rwlock").write_text("{")
    call("git", "-C", str(folder), "update-ref", "--create-reflog", "refs/exps/stash", head())
    call("git", "commit", "--quiet", "--allow-empty", "--message", "Later")
    call("git", "push", "--quiet", "origin", "main")
    call("git", "push", "--quiet", "origin", ":topic")
    call("git", "push", "--quiet", "origin", "main:topic/first")  # a folder where a file was
    check_out(folder, str(tmp_path / "origin"), head(), "")
    assert (folder / "params.yaml").read_text() == "size: 1\n"
    assert call("git", "-C", str(folder), "rev-parse", "HEAD").strip() == head()
    assert [*folder.rglob("*stash"), *folder.glob(".dvc/tmp/*")] == []


def test_unreachable_remote_is_retried(
    one_stage: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "origin").rename(tmp_path / "away")
    monkeypatch.setattr(time, "sleep", lambda _: (tmp_path / "away").rename(tmp_path / "origin"))
    check_out(tmp_path / "0", str(tmp_path / "origin"), head(), "")
    assert (tmp_path / "0/params.yaml").exists()


def test_clone_of_an_unknown_commit_is_rejected(one_stage: Clone, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="git checkout: "):
        check_out(tmp_path / "0", str(tmp_path / "origin"), "0" * 40, "")
