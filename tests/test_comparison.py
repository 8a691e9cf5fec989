"""Tables and figures of a comparison on synthetic runs; slow/test_compare.py uses real runs."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from matplotlib.text import Text

from stages.lib.files import write_json
from stages.lib.stage import StageError
from tools.lib import comparison
from tools.lib.runs import ECE_QUANTILE, Run

IMAGES = 400


class Bench:
    """Makes runs with predictions in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self,
        errors: int | Sequence[int] = 40,
        seed: int = 0,
        kind: str = "mlp",
        dataset: str = "tiny",
        name: str = "",
        split: int = 0,
        **params: object,
    ) -> Run:
        """A run that misclassifies the first images, or those given."""
        wrong = np.isin(np.arange(IMAGES), range(errors) if isinstance(errors, int) else errors)
        path = self.folder / f"{len(list(self.folder.iterdir()))}/data/predictions.npz"
        path.parent.mkdir(parents=True)
        np.savez(
            path,
            test_labels=np.zeros(IMAGES, np.uint8),
            test_probabilities=np.stack([~wrong, wrong], axis=1).astype("f4"),
            parameters=7_850,
            multiply_adds=7_840,
        )
        scores = {"accuracy": 1 - wrong.mean(), "errors": wrong.sum(), "loss": 0.1, "ece": 0.01}
        return Run(
            name=name or f"{dataset}-{kind}-{seed}",
            dataset=dataset,
            images=dataset,
            replicate=(seed, split),
            params={"model.kind": kind, **params},
            scores=scores,
            predictions=f"{kind} {seed} {split} {errors} {params}",
            files=DirFileSystem(str(path.parents[1]), LocalFileSystem()),
        )

    def group(self, counts: Sequence[int], kind: str = "mlp", dataset: str = "tiny") -> list[Run]:
        """A run per seed with so many errors."""
        return [self.run(count, seed, kind, dataset) for seed, count in enumerate(counts)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_runs_are_grouped_by_configuration(bench: Bench) -> None:
    """Runs that differ only in their seeds form a group; the best group comes first."""
    three: dict[str, Any] = {"train.epochs": 3}
    runs = [
        bench.run(40, 1, split=1),
        bench.run(20, kind="cnn"),
        bench.run(60),
        bench.run(80, dataset="a"),
        bench.run(40, 2, **three),
    ]
    groups = comparison.group_by_configuration(runs)
    assert [
        [(run.dataset, run.params["model.kind"], run.replicate) for run in g] for g in groups
    ] == [
        [("a", "mlp", (0, 0))],
        [("tiny", "cnn", (0, 0))],
        [("tiny", "mlp", (2, 0))],
        [("tiny", "mlp", (0, 0)), ("tiny", "mlp", (1, 1))],
    ]


def test_different_library_versions_are_not_pooled(bench: Bench) -> None:
    runs = [bench.run(40, seed, lock=lock) for seed, lock in enumerate(("aaa", "bbb"))]
    groups = comparison.group_by_configuration(runs)
    assert len(groups) == 2
    assert comparison.differences(groups) == ["lock=aaa", "lock=bbb"]


def test_identical_predictions_count_once(bench: Bench) -> None:
    run = bench.run()
    runs = [run, replace(run, name="again"), replace(run, name="seed 1", replicate=(1, 0))]
    assert comparison.group_by_configuration(runs) == [[run]]


def test_conflicting_results_for_a_seed_are_rejected(bench: Bench) -> None:
    other = replace(bench.run(), name="again", predictions="others")
    with pytest.raises(StageError, match=r"^again and tiny-mlp-0 have different predictions"):
        comparison.group_by_configuration([bench.run(), other])


def test_different_images_of_a_dataset_are_rejected(bench: Bench) -> None:
    other = replace(bench.run(seed=1), name="again", images="others")
    with pytest.raises(StageError, match=r"^again and tiny-mlp-0 have different tiny images"):
        comparison.group_by_configuration([bench.run(), other])


def test_only_parameters_that_differ_are_listed(bench: Bench) -> None:
    few: dict[str, Any] = {"train.epochs": 2, "train.batch_size": 100}
    many = few | {"train.epochs": 3}
    groups = [[bench.run(**few)], [bench.run(**many)], [bench.run(kind="cnn", **few)]]
    assert comparison.differences(groups) == ["epochs=2", "epochs=3", "epochs=2"]
    assert comparison.differences([groups[0], groups[2]]) == ["", ""]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["tiny-mlp_dropout-0", "tiny-mlp_dropout-10"], "mlp_dropout"),
        (["tiny-mlp-10", "tiny-mlp-11"], "mlp"),
        (["wide1", "wide2"], "wide"),
        (["mlp-0 (abc1234)", "mlp-1 (abc1234)"], "mlp"),
        (["tiny-mlp-0"], "mlp-0"),
        (["HEAD"], "HEAD"),
        (["pulpy-mina", "rooky-lamb"], "mlp"),
    ],
)
def test_configuration_is_named_by_common_prefix(
    bench: Bench, names: list[str], expected: str
) -> None:
    group = [bench.run(seed=seed, name=name) for seed, name in enumerate(names)]
    assert comparison.configuration_names([group]) == [expected]


def test_configuration_is_named_by_its_differences(bench: Bench) -> None:
    """The names of its runs have no prefix that is theirs alone."""
    few: dict[str, Any] = {"train.epochs": 2}
    many: dict[str, Any] = {"train.epochs": 3}
    groups = [
        [bench.run(name="pulpy-mina", **few), bench.run(seed=1, name="rooky-lamb", **few)],
        [bench.run(name="run-0", **many), bench.run(seed=1, name="run-1", **many)],
        [
            bench.run(name="run-2", kind="cnn", **few),
            bench.run(seed=1, name="run-3", kind="cnn", **few),
        ],
    ]
    assert comparison.configuration_names(groups) == [
        "mlp (epochs=2)",
        "mlp (epochs=3)",
        "cnn (epochs=2)",
    ]


def test_configuration_has_one_name_on_all_datasets(bench: Bench) -> None:
    groups = [bench.group([40, 41], dataset=dataset) for dataset in ("a", "b")]
    assert comparison.configuration_names(groups) == ["mlp", "mlp"]


def test_standard_deviation_requires_three_runs(bench: Bench) -> None:
    runs = bench.group([40, 42, 44]) + bench.group([50, 60], "linear")
    table = comparison.score_table(comparison.configurations(runs))
    assert table["std"][0] == pytest.approx(2 / IMAGES)
    assert np.isnan(table["std"][1])
    assert [line.split(" | ")[3].strip() for line in comparison.score_lines(table)[2:]] == [
        "0.8950 ± 0.0050",
        "0.8625",
    ]
    assert (table["low"] < table["accuracy"]).all()
    assert (table["accuracy"] < table["high"]).all()


def test_ece_is_shown_next_to_its_quantile(bench: Bench) -> None:
    """The quantile is that of a calibrated model; some runs lack it."""
    run = bench.run()
    known = replace(run, scores={**run.scores, ECE_QUANTILE: 0.0123})
    for each, expected in ((run, "-"), (known, "< 0.0123")):
        table = comparison.score_table(comparison.configurations([each]))
        assert comparison.score_lines(table)[2].split(" | ")[8].strip() == expected


def test_runs_are_listed_with_their_seeds(bench: Bench) -> None:
    runs = [*bench.group([40, 41, 42]), bench.run(20, 7, "cnn", split=3)]
    assert comparison.run_lines(comparison.configurations(runs)) == [
        "- tiny cnn-7: tiny-cnn-7; train.seed 7; normalize.seed 3",
        "- tiny mlp: tiny-mlp-0 … tiny-mlp-2; train.seed 0 to 2; normalize.seed 0",
    ]


def test_more_accurate_of_a_pair_comes_first(bench: Bench) -> None:
    """Only runs on the same dataset are paired."""
    runs = (
        bench.group([60, 61, 62])
        + bench.group([20, 21, 22], "cnn")
        + [bench.run(100, kind="linear")]
    )
    runs += [bench.run(10, dataset="other")]
    table = comparison.pair_table(comparison.compare_pairs(comparison.configurations(runs), 0.005))
    assert [*zip(table["first"], table["second"], table["generalizes to"], strict=True)] == [
        ("cnn", "mlp", "images, runs"),
        ("cnn", "linear-0", "images, runs of cnn"),
        ("mlp", "linear-0", "images, runs of mlp"),
    ]
    assert (table["difference"] > 0).all()
    assert (table["verdict"] == "better").all()
    assert set(table["dataset"]) == {"tiny"}


def test_single_models_are_compared_over_images_only(bench: Bench) -> None:
    """The verdict generalizes to new images, not to new runs."""
    found = comparison.configurations([bench.run(40), bench.run(41, kind="linear")])
    table = comparison.pair_table(comparison.compare_pairs(found, 0.005))
    cells = [cell.strip() for cell in comparison.pair_lines(table)[2].split("|")[1:-1]]
    assert cells[:6] == ["tiny", "mlp-0", "linear-0", "no difference shown", "images", "+0.0025"]
    assert cells[7:10] == ["1.000", "-", "-"]


@pytest.mark.parametrize(
    ("p", "text"),
    [(4.9e-8, "< .001"), (0.0011, ".001"), (0.05, ".050"), (1, "1.000"), (np.nan, "-")],
)
def test_small_p_values_are_abbreviated(p: float, text: str) -> None:
    assert comparison.p_text(p) == text


@pytest.mark.parametrize(
    ("needed", "text"),
    [(7, "7"), (23, "23"), (12_345, "13,000"), (12_000, "12,000"), (None, "> 50,000")],
)
def test_sample_sizes_are_rounded_up(needed: int | None, text: str) -> None:
    assert comparison.size_text(needed, 50_000) == text


def test_accuracy_figure_has_a_panel_per_dataset(bench: Bench) -> None:
    """Configurations with few runs have hollow points."""
    runs = [*bench.group([40, 41, 42]), bench.run(20, kind="cnn"), bench.run(80, dataset="a")]
    table = comparison.score_table(comparison.configurations(runs))
    figure = comparison.accuracy_figure(table)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "tiny"]
    labels = [[text.get_text() for text in axes.get_yticklabels()] for axes in figure.axes]
    assert labels == [["mlp-0"], ["cnn-0", "mlp"]]
    colors = [np.asarray(axes.collections[1].get_facecolor()) for axes in figure.axes]
    assert [(each == 1).all(axis=1).tolist() for each in colors] == [[True], [True, False]]


def test_dollar_signs_in_run_names_are_literal(bench: Bench) -> None:
    runs = [bench.run(range(i, i + 3), name=name) for i, name in enumerate(("$$", "$1$"))]
    for each in runs:
        folder = bench.folder / each.files.path / "data/raw"
        folder.mkdir()
        np.save(folder / "test_images.npy", np.zeros((IMAGES, 4, 4), np.uint8))
        write_json(folder / "dataset.json", {"classes": ["$a$", "$$"]})
    figure = comparison.disagreements(*runs)[1]
    figure.draw_without_rendering()  # would fail on $$
    texts = [text for text in figure.findobj(Text) if "$" in text.get_text()]
    assert len(texts) == 4
    assert not any(text.get_parse_math() for text in texts)


def test_markdown_columns_are_aligned() -> None:
    assert comparison.markdown(["a", "bb"], [["ccc", "d"]]) == [
        "| a   | bb |",
        "| --- | -- |",
        "| ccc | d  |",
    ]


def test_tables_are_empty_without_pairs(bench: Bench) -> None:
    compared = comparison.compare_pairs(comparison.configurations([bench.run()]), 0.005)
    assert comparison.pair_table(compared).equals(pd.DataFrame())
