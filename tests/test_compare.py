"""What the comparison prints, on runs made by hand; on real ones see slow/test_compare.py."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from dvc.api import DVCFileSystem

from stages.lib.stage import StageError
from tools import compare
from tools.compare import differing, grouped, lines, sentence
from tools.lib.runs import SCORES, Run
from tools.lib.significance import BETTER, NOTHING_SHOWN, TOO_FEW, Verdict


def run_of(
    accuracy: float, seed: int = 0, kind: str = "mlp", dataset: str = "tiny", **params: object
) -> Run:
    """A run whose files nobody asks for."""
    scores = dict.fromkeys(SCORES, 1.0) | {
        "accuracy": accuracy,
        "accuracy_low": 0.1,
        "accuracy_high": 0.99,
    }
    return Run(
        name=f"{kind}-{seed}",
        dataset=dataset,
        images=dataset,
        seed=seed,
        params={"model.kind": kind, **params},
        scores=scores,
        predictions=f"{kind}{accuracy}{seed}",
        files=DVCFileSystem,
    )


def test_runs_that_differ_in_the_seed_alone_are_a_group_and_the_best_comes_first() -> None:
    runs = [
        run_of(0.8, 1),
        run_of(0.9, 0, "cnn"),
        run_of(0.7, 0),
        run_of(0.6, dataset="a"),
        run_of(0.8, 2, epochs=3),
    ]
    assert [
        [(r.dataset, r.params["model.kind"], r.seed) for r in group] for group in grouped(runs)
    ] == [
        [("a", "mlp", 0)],
        [("tiny", "cnn", 0)],
        [("tiny", "mlp", 2)],
        [("tiny", "mlp", 0), ("tiny", "mlp", 1)],
    ]


def test_the_same_run_under_two_names_counts_once() -> None:
    assert len(grouped([run_of(0.8), replace(run_of(0.8), name="again")])[0]) == 1


def test_two_results_for_one_seed_are_refused() -> None:
    other = replace(run_of(0.8), name="again", predictions="others")
    with pytest.raises(
        StageError,
        match=r"^again: expected the predictions of mlp-0, .* found others; name only one",
    ):
        grouped([run_of(0.8), other])


def test_a_setting_has_one_number_on_all_data_sets_and_none_where_its_kind_has_no_other() -> None:
    few: dict[str, Any] = {"train.epochs": 2}
    many: dict[str, Any] = {"train.epochs": 3}
    groups = [
        [run_of(0.9, kind="cnn", **few)],
        [run_of(0.8, **many)],
        [run_of(0.7, **few), run_of(0.8, 1, **few)],
        [run_of(0.8, dataset="z", **few)],
        [run_of(0.7, dataset="z", **many)],
    ]
    assert compare.named(groups) == ["cnn", "mlp 1", "mlp 2", "mlp 2", "mlp 1"]


def test_two_sets_of_images_under_one_name_are_refused() -> None:
    other = replace(run_of(0.8, 1), name="again", images="others")
    with pytest.raises(
        StageError,
        match=r"^again: expected the images of mlp-0, whose dataset is tiny too, found oth",
    ):
        grouped([run_of(0.8), other])


def test_what_differs_is_told_and_what_all_share_is_not() -> None:
    few: dict[str, Any] = {"train.epochs": 2, "train.batch_size": 100}
    many = few | {"train.epochs": 3}
    groups = [[run_of(0.8, **few)], [run_of(0.8, **many)], [run_of(0.8, kind="cnn", **few)]]
    assert differing(groups) == ["epochs=2", "epochs=3", "epochs=2"]
    assert differing([[run_of(0.8, **few)], [run_of(0.8, kind="cnn", **few)]]) == ["", ""]
    first: dict[str, Any] = {"normalize.seed": 0}
    splits = [[run_of(0.8, **first)], [run_of(0.8, **first | {"normalize.seed": 1})]]
    assert differing(splits) == [
        "normalize.seed=0",
        "normalize.seed=1",
    ]  # `seed` alone is that of the training
    assert differing([]) == []


def test_a_row_has_students_interval_over_seeds_and_wilsons_of_one_model() -> None:
    several = compare.row([run_of(0.8), run_of(0.9, 1)], "mlp", "")
    assert several["accuracy"] == pytest.approx(0.85)
    assert several["std"] == pytest.approx(0.05 * 2**0.5)
    assert (several["low"], several["high"]) == pytest.approx(
        (0.85 - 12.7062 * 0.05, 0.85 + 12.7062 * 0.05), rel=1e-4
    )
    assert compare.cells(several)[5] == "0.8500 ± 0.0707"
    alone = compare.row([run_of(0.8)], "mlp", "")
    assert (alone["low"], alone["high"]) == (0.1, 0.99)
    assert compare.cells(alone)[5] == "0.8000"


def test_a_row_tells_which_runs_it_is_of() -> None:
    groups = [
        [run_of(0.8), run_of(0.9, 1), run_of(0.9, 2)],
        [run_of(0.8), run_of(0.9, 1)],
        [run_of(0.8)],
    ]
    rows = [compare.row(group, "mlp", "") for group in groups]
    assert [compare.cells(row)[2] for row in rows] == ["mlp-0 … mlp-2", "mlp-0 … mlp-1", "mlp-0"]
    assert rows[0]["runs"] == ["mlp-0", "mlp-1", "mlp-2"]


def test_a_single_model_has_no_deviation_however_many_seeds_it_has() -> None:
    same = compare.row([run_of(0.8), replace(run_of(0.8), seed=1)], "pca_knn", "")
    assert compare.cells(same)[4:7] == ["2", "0.8000", "0.1000 to 0.9900"]


def test_the_better_one_is_named_first_with_a_positive_difference() -> None:
    verdict = Verdict(
        -0.1,
        BETTER,
        0.01,
        "paired t over 3 seeds",
        (-0.15, -0.05),
        (-0.16, -0.04),
        "3 seeds would show it",
    )
    assert sentence(verdict, "A", "B") == (
        "B is better than A: +0.1000 (95 % interval +0.0500 to +0.1500 over seeds and +0.0400 to +0.1600 over images), "
        "p = 0.01, paired t over 3 seeds"
    )


def test_a_difference_that_other_images_may_not_show_is_told_as_such() -> None:
    verdict = Verdict(-0.1, BETTER, 0.01, "paired t over 3 seeds", (-0.15, -0.05), (-0.3, 0.1))
    assert sentence(verdict, "A", "B").endswith(
        "and -0.1000 to +0.3000 over images), p = 0.01, paired t over 3 seeds; other test images may say otherwise"
    )


@pytest.mark.parametrize("single", [True, False])
def test_a_better_single_run_says_little_of_its_setting(single: bool) -> None:
    said = sentence(
        Verdict(0.1, BETTER, 0.01, "McNemar", images=(0.05, 0.15), single=single), "A", "B"
    )
    assert said.startswith(
        "A is better than B: +0.1000 (95 % interval +0.0500 to +0.1500 over images), p = 0.01"
    )
    assert said.endswith("; a single run says little of its setting") == single


def test_no_difference_says_what_would_show_one() -> None:
    verdict = Verdict(
        0.01, NOTHING_SHOWN, 0.4, "paired t", (-0.05, 0.07), needed="31 seeds would", pairs=3
    )
    assert sentence(verdict, "A", "B") == (
        "A and B: no difference shown: +0.0100 (95 % interval -0.0500 to +0.0700 over seeds), p = 0.4, paired t, "
        "Holm over 3 pairs; 31 seeds would"
    )


def test_a_single_run_says_little_of_its_setting_where_no_difference_is_shown_too() -> None:
    verdict = Verdict(
        0.01, p=0.4, how="McNemar", images=(-0.1, 0.1), needed="some 900 images would", single=True
    )
    assert sentence(verdict, "A", "B").endswith(
        "McNemar; some 900 images would; a single run says little of its setting"
    )


def test_too_few_seeds_says_how_many() -> None:
    verdict = Verdict(0.01, TOO_FEW, needed="needs 3 that both have, found 1")
    assert sentence(verdict, "A", "B") == (
        "A and B: too few seeds to say: +0.0100; needs 3 that both have, found 1"
    )


def test_the_picture_has_a_panel_for_each_data_set_and_a_line_for_each_group() -> None:
    groups = grouped([run_of(0.8), run_of(0.9, 0, "cnn"), run_of(0.6, dataset="a")])
    rows = [compare.row(group, name, "") for group, name in zip(groups, "xyz", strict=True)]
    figure = compare.picture(pd.DataFrame(rows))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "tiny"]
    assert [[text.get_text() for text in axes.get_yticklabels()] for axes in figure.axes] == [
        ["x"],
        ["y", "z"],
    ]


def test_a_table_has_its_columns_in_line() -> None:
    assert lines(["a", "bb"], [["ccc", "d"]]) == ["| a   | bb |", "| --- | -- |", "| ccc | d  |"]
