"""The stage extract_errors, on synthetic predictions."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread

from stages import extract_errors, fetch
from stages.lib.stage import StageError
from tests.helpers import CLASSES, Edit, tiny_arrays

COLUMNS = [
    "index",
    "label",
    "predicted",
    "label_name",
    "predicted_name",
    "confidence",
    "margin",
    "label_probability",
    "label_rank",
    "label_quality",
]
LABELS = tiny_arrays()["test_labels"]


def probabilities_of(wrong: dict[int, float]) -> np.ndarray:
    """Return probability 1 of the label, except for misclassified images (index: confidence)."""
    probabilities = np.eye(3)[LABELS]
    for index, confidence in wrong.items():
        probabilities[index] = 0
        probabilities[index, (LABELS[index] + 1) % 3] = confidence
        probabilities[index, LABELS[index]] = 1 - confidence
    rows: np.ndarray = probabilities.astype(np.float32)
    return rows


def save(wrong: dict[int, float]) -> None:
    rows = probabilities_of(wrong)
    np.savez(
        "data/predictions.npz",
        validation_labels=LABELS[:0],
        validation_probabilities=rows[:0],
        test_labels=LABELS,
        test_probabilities=rows,
    )


WRONG = {2: 0.75, 5: 0.625, 9: 0.875, 11: 0.75, 20: 0.5625, 29: 0.75}


def test_errors_are_sorted_by_confidence_then_index(
    project: Path,
) -> None:
    """The table lists the misclassified images and no others."""
    fetch.main()
    save(WRONG)
    extract_errors.main()
    table = pd.read_csv("reports/errors.csv")
    assert [*table] == COLUMNS
    assert [*table["index"]] == [9, 2, 11, 29, 5, 20]
    assert [*table["confidence"]] == [0.875, 0.75, 0.75, 0.75, 0.625, 0.5625]
    assert [*table["label_probability"]] == [0.125, 0.25, 0.25, 0.25, 0.375, 0.4375]
    assert [*table["margin"]] == [0.75, 0.5, 0.5, 0.5, 0.25, 0.125]
    assert [*table["label_rank"]] == [2] * 6
    assert [*table["label_quality"]] == [0.125, 0.25, 0.25, 0.25, 0.375, 0.4375]
    labels = LABELS[table["index"]]
    assert [*table["label"]] == [*labels]
    assert [*table["predicted"]] == [*(labels + 1) % 3]
    assert [*table["label_name"]] == [CLASSES[i] for i in labels]
    assert [*table["predicted_name"]] == [CLASSES[i] for i in (labels + 1) % 3]


def test_ties_are_sorted_by_index() -> None:
    count = 300
    table = extract_errors.errors(
        np.ones(count, np.uint8), np.tile([[0.75, 0.25]], (count, 1)), ["a", "b"]
    )
    assert [*table["index"]] == [*range(count)]


def test_label_probability_is_not_the_second_best() -> None:
    table = extract_errors.errors(np.array([2]), np.array([[0.5, 0.375, 0.125]]), ["a", "b", "c"])
    assert table.to_dict("records") == [
        {
            "index": 0,
            "label": 2,
            "predicted": 0,
            "label_name": "c",
            "predicted_name": "a",
            "confidence": 0.5,
            "margin": 0.125,
            "label_probability": 0.125,
            "label_rank": 3,
            "label_quality": 0.3125,
        }
    ]


def test_no_errors_give_an_empty_table_and_figure(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is only a header, and the figure differs from one with errors."""
    fetch.main()
    save({})
    extract_errors.main()
    assert Path("reports/errors.csv").read_text() == ",".join(COLUMNS) + "\n"
    assert "misclassified test images: 0, in" in capsys.readouterr().out
    save(WRONG)
    none = Path("reports/figures/errors.png").read_bytes()
    extract_errors.main()
    assert none != Path("reports/figures/errors.png").read_bytes()


def draw_errors() -> bytes:
    extract_errors.main()
    return Path("reports/figures/errors.png").read_bytes()


def test_seed_selects_the_examples_drawn(project: Path, edit: Edit) -> None:
    """The table does not depend on the seed."""
    edit("extract_errors.examples", 2)
    fetch.main()
    save(WRONG)
    first = draw_errors()
    table = Path("reports/errors.csv").read_bytes()
    assert draw_errors() == first
    edit("extract_errors.seed", 1)
    assert draw_errors() != first
    assert Path("reports/errors.csv").read_bytes() == table


def test_number_of_examples_changes_the_figures(
    project: Path, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    """If there are fewer errors than examples, all are drawn."""
    fetch.main()
    save(WRONG)
    sizes = []
    for examples in (1, 4, 100):
        edit("extract_errors.examples", examples)
        draw_errors()
        assert "misclassified test images: 6, in reports/errors.csv" in capsys.readouterr().out
        sizes.append(
            [imread(f"reports/figures/{name}.png").shape for name in ("errors", "errors_confident")]
        )
    assert len({*map(str, sizes)}) == 3


def test_label_tied_with_the_prediction_has_rank_2() -> None:
    table = extract_errors.errors(np.array([1]), np.array([[0.5, 0.5, 0]]), ["a", "b", "c"])
    assert [*table["label_rank"]] == [2]
    assert [*table["margin"]] == [0]


def test_confused_pairs_show_most_confident_errors() -> None:
    """The most frequently confused pair comes first."""
    labels = np.array([0, 0, 0, 1, 2, 2])
    rows = np.array([[1, 5, 2], [1, 6, 1], [1, 2, 5], [7, 1, 0], [6, 1, 1], [5, 2, 1]]) / 8
    table = extract_errors.by_pair(extract_errors.errors(labels, rows, ["a", "b", "c"]))
    assert [*table["index"]] == [1, 4, 3, 2]
    assert [*zip(table["label"], table["predicted"], strict=True)] == [
        (0, 1),
        (2, 0),
        (1, 0),
        (0, 2),
    ]


@pytest.mark.parametrize("path", ["data/raw/test_images.npy", "data/predictions.npz"])
def test_modified_inputs_are_rejected(project: Path, path: str) -> None:
    """Nothing is written."""
    fetch.main()
    save(WRONG)
    content = bytearray((project / path).read_bytes())
    content[200] ^= 1
    (project / path).write_bytes(content)
    advice = "regenerate the outputs with dvc repro --force"
    with pytest.raises(StageError, match=rf"^{path}: (expected|not a valid) .*; {advice}$"):
        extract_errors.main()
    assert not (project / "reports").exists()
