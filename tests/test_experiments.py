"""Selection of experiments from the grid; runs of it: slow/test_experiments.py."""

import subprocess
import sys

import pytest

from tests.helpers import ROOT
from tools.experiments import grid, matches


def selected(part: str) -> set[str]:
    return {name for name in grid() if matches(name, part)}


def test_only_matches_whole_parts_of_a_name() -> None:
    assert matches("mnist-linear-0", "mnist-linear")
    assert not matches("fashion_mnist-linear-0", "mnist-linear")
    assert not matches("mnist-mlp_dropout-0", "mlp")
    assert not matches("mnist-linear-0", "mnist-0")  # not adjacent


@pytest.mark.parametrize("name", grid())
def test_full_name_selects_itself(name: str) -> None:
    assert selected(name) == {name}


def test_model_is_selected_on_both_datasets() -> None:
    assert {name.partition("-")[0] for name in selected("linear")} == {"mnist", "fashion_mnist"}


def test_grid_covers_the_given_datasets() -> None:
    names = grid(["letters", "digits"])
    assert {name.partition("-")[0] for name in names} == {"letters", "digits"}
    assert len(names) == len(grid())
    assert names["letters-cnn-4"]["dataset"] == "letters"


def test_unknown_dataset_is_rejected() -> None:
    command = [sys.executable, "-m", "tools.experiments", "--datasets", "mnist", "mnits"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "found 'mnits'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_make_passes_the_datasets() -> None:
    command = ["make", "-n", "-o", ".venv/installed", "experiments", "DATASETS=letters digits"]
    printed = subprocess.check_output(command, cwd=ROOT, text=True)
    assert "tools.experiments  --datasets letters digits" in printed
