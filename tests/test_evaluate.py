"""The stage evaluate, on predictions made by hand."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, top_k_accuracy_score

from stages import evaluate, fetch
from stages.lib.files import read_json, write_json
from stages.lib.results.metrics import accuracy_interval
from stages.lib.sources.fetching import digest
from stages.lib.stage import StageError
from tests.conftest import CLASSES

Edit = Callable[[str, object], None]

# Of 12 images 8 are right: one "bar" is taken for "blot", three "blot" for "frame".
LABELS = np.array([0, 1, 2, 0, 0, 1, 1, 1, 2, 2, 2, 0], np.uint8)
PREDICTED = np.array([0, 1, 2, 1, 0, 2, 2, 2, 2, 2, 2, 0])


def probabilities_of(predicted: np.ndarray) -> np.ndarray:
    """0.8 for the class predicted, 0.1 for each other one."""
    rows: np.ndarray = (np.eye(3) * 0.7 + 0.1)[predicted].astype(np.float32)
    return rows


def save(validation: int) -> None:
    """Predictions of the 12 test images, which the dataset is now of; the validation split is the first of them."""
    dataset = read_json(Path("data/raw/dataset.json"))
    dataset["arrays"]["test_labels"]["sha256"] = digest(LABELS)
    write_json(Path("data/raw/dataset.json"), dataset)
    np.savez(
        "data/predictions.npz",
        allow_pickle=False,
        parameters=np.array(275),
        multiply_adds=np.array(264),
        validation_labels=LABELS[:validation],
        validation_probabilities=probabilities_of(PREDICTED)[:validation],
        test_labels=LABELS,
        test_probabilities=probabilities_of(PREDICTED),
    )


@pytest.fixture
def measured(project: Path) -> dict[str, object]:
    """What the stage wrote into metrics.json."""
    fetch.main()
    save(validation=6)
    evaluate.main()
    content: dict[str, object] = json.loads(Path("reports/metrics.json").read_text())
    return content


def expected_of(count: int, errors: int) -> dict[str, object]:
    """What the first `count` images give; all confidences are 0.8, so that all bins but one are empty."""
    right = count - errors
    return {
        "accuracy": pytest.approx(right / count),
        "errors": errors,
        "top2_accuracy": pytest.approx(
            (right + 1) / count
        ),  # of equal probabilities the first class counts first
        "macro_f1": pytest.approx(f1_score(LABELS[:count], PREDICTED[:count], average="macro")),
        "loss": pytest.approx(-(right * math.log(0.8) + errors * math.log(0.1)) / count, rel=1e-6),
        "brier": pytest.approx((right * 0.06 + errors * (0.64 + 0.81 + 0.01)) / count, rel=1e-6),
        "ece": pytest.approx(abs(right / count - 0.8), abs=1e-6),
        "ece_if_perfect": pytest.approx(0.1, abs=0.05),
        "ece_equal_mass": pytest.approx(abs(right / count - 0.8), abs=1e-6),
        "ece_equal_mass_if_perfect": pytest.approx(0.1, abs=0.05),
    }


def test_metrics_are_those_of_the_test_split_and_apart_those_of_validation(
    measured: dict[str, object],
) -> None:
    low, high = accuracy_interval(8, 12)
    assert measured == expected_of(12, 4) | {
        "accuracy_low": pytest.approx(low),
        "accuracy_high": pytest.approx(high),
        "test_examples": 12,
        "parameters": 275,
        "multiply_adds": 264,
        "validation": expected_of(6, 2),
    }


@pytest.mark.parametrize("seed", range(3))
def test_top_2_accuracy_and_macro_f1_are_those_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(5), 200).astype(np.float32)
    labels = np.where(rng.random(200) < 0.4, probabilities.argmax(axis=1), rng.integers(0, 5, 200))
    found = evaluate.summary(labels, probabilities)
    assert found["top2_accuracy"] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=2))
    assert found["macro_f1"] == pytest.approx(
        f1_score(labels, probabilities.argmax(axis=1), average="macro")
    )


def test_a_temperature_chosen_on_validation_changes_the_confidence_and_not_the_accuracy(
    project: Path, edit: Edit
) -> None:
    edit("evaluate.temperature", True)
    fetch.main()
    save(validation=6)
    evaluate.main()
    measured = json.loads(Path("reports/metrics.json").read_text())
    # On validation 4 of 6 are right: the best confidence is 2/3, and T makes 0.8 to 0.1 into 2/3 to
    # 1/6.
    assert measured["tempered"]["temperature"] == pytest.approx(math.log(8) / math.log(4), rel=1e-4)
    assert measured["tempered"]["loss"] == pytest.approx(
        -(8 * math.log(2 / 3) + 4 * math.log(1 / 6)) / 12, rel=1e-4
    )
    assert measured["tempered"]["ece"] == pytest.approx(0, abs=1e-3)
    assert measured["accuracy"] == pytest.approx(8 / 12)
    assert "accuracy" not in measured["tempered"]


def test_counts_are_whole_numbers(measured: dict[str, object]) -> None:
    assert [type(measured[name]) for name in ("errors", "test_examples", "parameters")] == [int] * 3


def test_there_is_no_validation_section_without_a_validation_split(project: Path) -> None:
    fetch.main()
    save(validation=0)
    evaluate.main()
    measured = json.loads(Path("reports/metrics.json").read_text())
    assert "validation" not in measured
    assert pd.read_csv("reports/validation_classes.csv").empty
    assert measured["errors"] == 4


def test_confusion_has_a_named_row_per_cell_whose_shares_add_up_to_1_for_each_label(
    measured: dict[str, object],
) -> None:
    table = pd.read_csv("reports/confusion.csv")
    assert [*table] == ["label", "predicted", "count", "share"]
    assert [*zip(table["label"], table["predicted"], strict=True)] == [
        (i, j) for i in CLASSES for j in CLASSES
    ]
    assert [*table["count"]] == [3, 1, 0, 0, 1, 3, 0, 0, 4]
    assert [*table["share"]] == [0.75, 0.25, 0, 0, 0.25, 0.75, 0, 0, 1]
    assert [*table.groupby("label")["share"].sum()] == [1, 1, 1]


def test_a_label_that_no_image_has_gets_shares_of_0() -> None:
    table = evaluate.long_table(np.array([[2, 2], [0, 0]]), ["a", "b"])
    assert [*table["share"]] == [0.5, 0.5, 0, 0]


def test_calibration_has_a_row_per_bin_with_images(measured: dict[str, object]) -> None:
    low, high = accuracy_interval(8, 12)
    assert Path("reports/calibration.csv").read_text() == (
        "low,high,images,confidence,accuracy,accuracy_low,accuracy_high\n"
        f"0.800000,0.866667,12,0.800000,0.666667,{low:.6f},{high:.6f}\n"
    )


def test_classes_has_a_row_per_class_in_the_order_of_the_catalog(
    measured: dict[str, object],
) -> None:
    assert Path("reports/classes.csv").read_text() == (
        "class,recall,recall_low,recall_high,precision,f1,images\n"
        "bar,0.750000,0.300642,0.954413,1.000000,0.857143,4\n"
        "blot,0.250000,0.045587,0.699358,0.500000,0.333333,4\n"
        "frame,1.000000,0.510109,1.000000,0.571429,0.727273,4\n"
    )


def test_classes_of_validation_are_in_a_table_of_their_own(measured: dict[str, object]) -> None:
    table = pd.read_csv("reports/validation_classes.csv")
    assert [*table] == [*pd.read_csv("reports/classes.csv")]
    assert [*zip(table["class"], table["recall"].round(6), table["images"], strict=True)] == [
        ("bar", 0.666667, 3),
        ("blot", 0.5, 2),
        ("frame", 1, 1),
    ]


def test_a_person_reads_the_result_the_first_ten_and_the_most_confused_by_name(
    measured: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate.main()
    low, high = accuracy_interval(8, 12)
    result, *lines = capsys.readouterr().out.splitlines()
    assert result.startswith("Tiny: 8 of 12 test images right, accuracy 0.6667 ")
    assert f"{low:.4f} to {high:.4f}" in result
    assert result.endswith(f"loss {measured['loss']:.4f}")
    assert (
        lines.pop(0)
        == f"calibration error {measured['ece']:.4f}, by chance {measured['ece_if_perfect']:.4f}"
    )
    rows = [line.split() for line in lines]
    start = rows.index(["label", "predicted"]) + 1
    assert rows[start : start + 10] == [
        [CLASSES[label], CLASSES[guess], *(["wrong"] if label != guess else [])]
        for label, guess in zip(LABELS[:10], PREDICTED[:10], strict=True)
    ]
    assert [line.strip() for line in lines[start + 10 :]] == [
        "most confused:",
        "3 times blot taken for frame",
        "1 times bar taken for blot",
    ]


def test_the_first_ten_are_all_where_there_are_fewer(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"accuracy": 1.0, "accuracy_low": 0.2, "accuracy_high": 1.0, "loss": 0.1, "errors": 0}
    scores |= {"ece": 0.1, "ece_if_perfect": 0.1}
    lines = evaluate.report("T", ["a", "b"], scores, np.array([1]), np.array([1])).splitlines()
    assert [line.split() for line in lines].count(["b", "b"]) == 1
    assert "wrong" not in "".join(lines)
    assert "taken for" not in "".join(lines)


def test_a_second_run_writes_the_same_bytes(measured: dict[str, object]) -> None:
    def content() -> list[bytes]:
        return [path.read_bytes() for path in sorted(Path("reports").iterdir())]

    first = content()
    evaluate.main()
    assert content() == first


def test_predictions_of_other_images_are_refused_and_nothing_is_measured(project: Path) -> None:
    fetch.main()
    save(validation=0)
    fetch.main()
    with pytest.raises(
        StageError, match=r"^data/predictions.npz: expected the test labels of Tiny, found others; "
    ):
        evaluate.main()
    assert not Path("reports").exists()
