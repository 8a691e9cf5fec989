"""What the benchmark computes; what it times is no matter of tests."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import flop, report, runner, workspace
from stages.lib.files import check_arrays


def test_counts_the_operations_of_the_tutorials_model_as_by_hand() -> None:
    layers = (784, 1000, 10)
    assert flop.forward(layers) == 1_588_000
    assert flop.backward(layers) == 1_608_000
    assert flop.epoch(layers, 60_000) == 191_760_000_000
    assert flop.epoch(layers, 60_000, 10_000) == 207_640_000_000


def test_softmax_regression_needs_no_gradient_of_its_pixels() -> None:
    assert flop.backward((784, 10)) == flop.forward((784, 10)) == 15_680


def test_compares_medians_so_that_one_slow_round_counts_for_nothing() -> None:
    runs = {"ours": [{"wall": seconds} for seconds in (1.0, 2.0, 99.0)], "other": [{"wall": 5.0}]}
    assert runner.middle(runs, "ours") == 2.0
    assert runner.ratio(runs, "other", "ours") == 2.5


@pytest.mark.parametrize(
    ("at_least", "measured", "holds"), [(True, 2.5, True), (True, 2.4, False), (False, 2.6, False)]
)
def test_a_target_holds_on_its_own_side_of_the_limit(
    at_least: bool, measured: float, holds: bool
) -> None:
    check = report.Check("fit", measured, 2.5, at_least=at_least)
    assert check.holds is holds
    assert str(check).startswith("holds" if holds else "MISSED")


def test_contenders_take_turns_after_a_warm_up_that_does_not_count(tmp_path: Path) -> None:
    contenders = [
        runner.Contender(
            name,
            ["sh", "-c", f"echo {name}{{round}} >> turns; echo '{{\"seconds\": 1}}'"],
            tmp_path,
        )
        for name in ("a", "b")
    ]
    runs = runner.in_turn(contenders, 2)
    assert (tmp_path / "turns").read_text().split() == ["a0", "b0", "a0", "b0", "a1", "b1"]
    assert [result["seconds"] for result in runs["a"]] == [1, 1]


def test_a_contender_that_fails_ends_the_benchmark_with_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)broken.*exit code 3.*no such luck"):
        runner.run(
            runner.Contender("broken", ["sh", "-c", "echo no such luck; exit 3"], tmp_path), 0
        )


def test_a_commands_memory_is_its_own_and_not_that_of_whoever_started_it(tmp_path: Path) -> None:
    held = np.ones(60_000_000)  # half a gigabyte here
    small, large = (
        runner.run(runner.Contender("it", [sys.executable, "-S", "-c", code], tmp_path), 0)["peak"]
        for code in ("pass", "b = bytearray(200_000_000)")
    )
    assert held.nbytes > 400e6
    assert small < 50e6
    assert 200e6 < large < 250e6


def test_the_picture_shows_every_part_with_its_bars() -> None:
    part = report.Part(
        "Fit: so and so", ["", "s"], [["ours", "1"]], [], [("ours", 1.0), ("other", 2.0)], "seconds"
    )
    figure = report.picture(
        {"CPU": "c", "cores": "2", "vectors": "v"}, {"fit": report.content(part)}
    )
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "Fit"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ours", "other"]


def test_synthetic_images_are_such_as_normalize_reads(tmp_path: Path) -> None:
    workspace.write_synthetic(tmp_path / "raw", 30, 10, list("0123456789"))
    names = [f"{split}_{kind}" for split in ("train", "test") for kind in ("images", "labels")]
    check_arrays(tmp_path / "raw/dataset.json", *names)
    assert np.load(tmp_path / "raw/test_images.npy").shape == (10, 28, 28)
