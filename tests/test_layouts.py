"""The tools in a subfolder of a Git repository, in a worktree, and in clones without the data."""

import shutil
from pathlib import Path

import pytest

from tests.helpers import Clone, new_clone, tiny_entry, write_entry
from tools.lib.runs import read_runs, restore_commands

EXPERIMENT = "mnist-pca_knn-0"
COMPARE = ["python", "-m", "tools.compare"]
SUBFOLDER = "projects/digits"


def commit(clone: Clone, message: str) -> None:
    clone.call("git", "add", "-A", ".")
    clone.call("git", "commit", "-qm", message)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A project two folders below the root of its Git repository, with one experiment of the grid.

    It is run on the tiny dataset under the name of MNIST, with the model that trains fastest.
    """
    folder = tmp_path_factory.mktemp("layouts")
    (folder / "tools").mkdir()
    (folder / "mono" / SUBFOLDER).mkdir(parents=True)
    clone = new_clone(folder / "mono" / SUBFOLDER, folder / "tools")
    shutil.rmtree(clone.path / ".git")
    write_entry(clone.path, "mnist", tiny_entry())
    knn = {"components": 4, "neighbors": 3}
    clone.edit({"dataset": "mnist", "model.kind": "pca_knn", "model.pca_knn": knn})
    clone.edit({"train.seed": 9, "normalize.seed": 9})  # so that the experiment differs
    Clone(folder / "mono", clone.env).call("git", "init", "-q")
    clone.call("dvc", "repro", "--quiet")
    commit(clone, "Run")
    output = clone.call("python", "-m", "tools.experiments", "--only", EXPERIMENT)
    assert f"1/1  {EXPERIMENT}  accuracy" in output
    return clone


@pytest.fixture
def clone(original: Clone, tmp_path: Path) -> Clone:
    """A copy of the original project, with the data and the experiment."""
    shutil.copytree(original.path.parents[1], tmp_path / "copy")
    return Clone(tmp_path / "copy" / SUBFOLDER, original.env)


def restore(clone: Clone) -> str:
    """Compare without the experiment's predictions, and run the printed command."""
    output = clone.call(*COMPARE, code=1)
    assert f"skipped, predictions neither in the DVC cache nor in a remote: {EXPERIMENT}" in output
    (command,) = (line.strip() for line in output.splitlines() if line.startswith("    "))
    clone.call("sh", "-c", command)
    assert EXPERIMENT in clone.call(*COMPARE)
    return command


def test_tools_work_in_a_subfolder(clone: Clone) -> None:
    assert EXPERIMENT in clone.call(*COMPARE)
    assert EXPERIMENT in clone.call(*COMPARE, EXPERIMENT, "HEAD")
    assert "match dvc.lock" in clone.call("python", "-m", "tools.verify")
    assert "fold 2 of 2" in clone.call("python", "-m", "tools.label_errors", "--folds", "2")
    assert clone.changed() == set()


def test_uncommitted_file_in_a_subfolder_is_reported(clone: Clone) -> None:
    """The printed command restores the file when run in the subfolder."""
    clone.edit({"train.seed": 3})
    output = clone.call("python", "-m", "tools.experiments", "--only", EXPERIMENT, code=1)
    assert "experiments: params.yaml has uncommitted changes" in output
    clone.call("sh", "-c", output.split("`")[1])
    assert clone.changed() == set()


@pytest.mark.slow
def test_worktree_uses_the_cache_of_the_main_tree(clone: Clone, tmp_path: Path) -> None:
    clone.call("git", "worktree", "add", "-q", str(tmp_path / "tree"))
    tree = Clone(tmp_path / "tree" / SUBFOLDER, clone.env)
    assert restore(tree) == f"dvc cache dir --local {clone.path}/.dvc/cache"
    tree.call("dvc", "checkout", "-q")
    assert "match dvc.lock" in tree.call("python", "-m", "tools.verify")


def test_cached_object_is_not_searched_elsewhere(
    clone: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clone.path)
    (each,) = read_runs(["HEAD"])
    assert restore_commands([each]) == ["git checkout HEAD && dvc repro"]


def test_clone_without_data_reads_the_remote(clone: Clone, tmp_path: Path) -> None:
    """The clone has the experiment, and the remote is added later."""
    Clone(tmp_path, clone.env).call("git", "clone", "-q", str(clone.path.parents[1]), "other")
    other = Clone(tmp_path / "other" / SUBFOLDER, clone.env)
    other.call("git", "fetch", "-q", "origin", "refs/exps/*:refs/exps/*")
    skipped = other.call(*COMPARE, code=1)
    assert f"nor in a remote: {EXPERIMENT}\n" in skipped
    other.call("dvc", "remote", "add", "-q", "-d", "store", str(clone.path / ".dvc/cache"))
    assert EXPERIMENT in other.call(*COMPARE)


@pytest.mark.slow
def test_garbage_collected_experiment_is_rerun(clone: Clone) -> None:
    """There is no remote to pull from."""
    clone.call("dvc", "gc", "-q", "-w", "-f")
    assert restore(clone) == (
        f"dvc exp remove {EXPERIMENT} && dvc exp run --temp --name {EXPERIMENT} "
        "-S normalize.seed=0 -S train.seed=0"
    )
    assert clone.changed() == set()


@pytest.mark.slow
def test_temporary_experiment_requires_tracked_data(clone: Clone) -> None:
    clone.call("git", "rm", "-rq", "--cached", "tiny")
    ignored = clone.path / ".gitignore"
    ignored.write_text(ignored.read_text() + "/tiny\n")
    commit(clone, "Untracked")
    run = ["dvc", "exp", "run", "--temp", "-f", "-n", "again"]
    output = clone.call(*run, code=255)
    assert "tiny does not exist here: experiments run with --temp or --queue have only" in output
    clone.call("dvc", "add", "-q", "tiny")
    commit(clone, "Tracked by DVC")
    clone.call(*run)
