"""The standard grid, run by DVC on the tiny dataset."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from stages.lib.params import Params
from tests.helpers import (
    ROOT,
    Clone,
    family,
    new_clone,
    read_entry,
    read_yaml,
    set_params,
    write_entry,
)
from tools.experiments import CONFIGURATIONS, SEEDS, grid

pytestmark = pytest.mark.slow
EXPERIMENTS = ["python", "-m", "tools.experiments"]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone whose two tiny datasets have the names that the grid uses."""
    folder = tmp_path_factory.mktemp("experiments")
    (folder / "tools").mkdir()
    clone = new_clone(folder / "project", folder / "tools")
    for name, tiny in (("mnist", "tiny"), ("fashion_mnist", "tiny2")):
        write_entry(clone.path, name, read_entry(clone.path, tiny))
    clone.edit({"dataset": "mnist", "model.pca_knn": {"components": 4, "neighbors": 3}})
    tool = clone.path / "tools/experiments.py"  # pca_knn is the fastest to train: five runs of it
    tool.write_text(tool.read_text().replace('"pca_knn": 1,', '"pca_knn": 5,'))
    clone.call("git", "commit", "-qam", "Tiny grid")
    return clone


def trains(mark: str) -> bool:
    """Whether a process of this family runs the stage train."""
    for process in family(mark):
        with suppress(psutil.Error):
            if "stages.train" in process.cmdline():
                return True
    return False


def test_grid_has_every_model_kind_and_valid_params(
    tmp_path: Path,
) -> None:
    experiments = grid()
    assert len(experiments) == 2 * sum(SEEDS.values())
    assert set(CONFIGURATIONS) == set(SEEDS)
    assert {values["model.kind"] for values in CONFIGURATIONS.values()} == {
        "mlp",
        "linear",
        "pca_knn",
        "cnn",
    }
    for values in experiments.values():
        (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        set_params(tmp_path, values)
        Params.model_validate(read_yaml(tmp_path / "params.yaml"))


def test_finished_experiments_are_not_run_again(clone: Clone) -> None:
    command = [*EXPERIMENTS, "--only", "pca_knn-0"]
    assert "0 of 2 experiments are finished, 2 to run" in clone.call(*command)
    assert set(clone.call("dvc", "exp", "list", "--name-only").split()) == {
        "mnist-pca_knn-0",
        "fashion_mnist-pca_knn-0",
    }
    assert "2 of 2 experiments are finished, 0 to run" in clone.call(*command)
    assert clone.changed() == set()


# Like DVC, it ignores SIGINT while its child does not.
IGNORES_SIGINT = """
import pathlib, signal, subprocess
child = subprocess.Popen(["sleep", "60"])
signal.signal(signal.SIGINT, signal.SIG_IGN)
pathlib.Path("ready").touch()
child.wait()
"""


def test_interrupt_reaches_children_of_a_command(tmp_path: Path) -> None:
    code = (
        f"from tools.lib.experiment import call\ncall({sys.executable!r}, '-c', {IGNORES_SIGINT!r})"
    )
    env = {**os.environ, "FAMILY": "ignores", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, stderr=subprocess.PIPE
    ) as started:
        while not (tmp_path / "ready").exists():
            assert started.poll() is None
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=30)
    assert errors.endswith(b"KeyboardInterrupt\n")
    assert family("ignores") == []


def test_moved_head_ends_the_run(clone: Clone) -> None:
    command = [*EXPERIMENTS, "--only=pca_knn-2"]
    pipe, env = subprocess.PIPE, {**clone.env, "FAMILY": "stays"}
    with subprocess.Popen(
        command, cwd=clone.path, env=env, stdout=pipe, stderr=pipe, text=True
    ) as started:
        while not trains("stays"):  # the first one, far from DVC's own use of Git
            assert started.poll() is None
        clone.call("git", "commit", "-q", "--allow-empty", "-m", "Meanwhile")
        output, errors = started.communicate(timeout=120)
    assert started.returncode == 1
    assert errors.startswith("experiments: HEAD moved from ")
    assert "failed" not in output
    assert clone.call("dvc", "exp", "list", "--all-commits", "--name-only").count("pca_knn-2") == 1


def test_interrupted_run_resumes(clone: Clone) -> None:
    clone.call("git", "commit", "-q", "--allow-empty", "-m", "Later")  # which has no experiments
    command = [*EXPERIMENTS, "--only=pca_knn-3"]
    env = {**clone.env, "FAMILY": "interrupted"}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=clone.path, env=env, stdout=pipe, stderr=pipe, text=True
    ) as started:
        assert started.stdout
        while not started.stdout.readline().startswith("1/2  "):
            assert started.poll() is None
        while not trains("interrupted"):
            assert started.poll() is None
        started.send_signal(signal.SIGINT)
        _, errors = started.communicate(timeout=60)
    assert (started.returncode, errors) == (130, "experiments: interrupted\n")
    psutil.wait_procs(family("interrupted"), timeout=30)  # DVC cleans up, slowly if busy
    assert family("interrupted") == []
    assert clone.changed() == set()
    assert "1 of 2 experiments are finished, 1 to run" in clone.call(*command)
    names = clone.call("dvc", "exp", "list", "--name-only").split()
    assert sorted(names) == ["fashion_mnist-pca_knn-3", "mnist-pca_knn-3"]
    assert clone.changed() == set()


def test_failed_experiment_is_reported_and_others_run(clone: Clone) -> None:
    clone.call("rm", "-rf", ".dvc/cache/runs")
    clone.call("git", "mv", "tiny2", "away")
    clone.call("git", "commit", "-qm", "Later")
    output = clone.call(*EXPERIMENTS, "--only", "pca_knn-2", code=1)
    assert "experiments: 1 of 2 experiments failed: fashion_mnist-pca_knn-2" in output
    assert "mnist-pca_knn-2" in clone.call("dvc", "exp", "list", "--name-only")


def test_unknown_name_is_rejected(clone: Clone) -> None:
    assert "--only: expected whole parts of a name" in clone.call(
        *EXPERIMENTS, "--only", "missing", code=1
    )
