"""Which experiments of the grid `--only` selects; runs of it: slow/test_experiments.py."""

import pytest

from tools.experiments import grid, matches


def selected(part: str) -> set[str]:
    return {name for name in grid() if matches(name, part)}


def test_only_takes_whole_parts_of_a_name() -> None:
    assert matches("mnist-linear-0", "mnist-linear")
    assert not matches("fashion_mnist-linear-0", "mnist-linear")
    assert not matches("mnist-mlp_dropout-0", "mlp")
    assert not matches("mnist-linear-0", "mnist-0")  # not adjacent


@pytest.mark.parametrize("name", grid())
def test_a_full_name_selects_itself(name: str) -> None:
    assert selected(name) == {name}


def test_a_model_is_selected_on_both_datasets() -> None:
    assert {name.partition("-")[0] for name in selected("linear")} == {"mnist", "fashion_mnist"}
