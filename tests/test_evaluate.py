"""The stage evaluate, on synthetic predictions."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import wcwidth
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score

from stages import evaluate, fetch
from stages.lib.files import read_json, write_json
from stages.lib.results.metrics import accuracy_interval
from stages.lib.sources.fetching import digest
from stages.lib.stage import StageError
from tests.helpers import CLASSES, Edit

# 8 of 12 images are correct; one "bar" is predicted as "blot", and three "blot" as "frame".
LABELS = np.array([0, 1, 2, 0, 0, 1, 1, 1, 2, 2, 2, 0], np.uint8)
PREDICTED = np.array([0, 1, 2, 1, 0, 2, 2, 2, 2, 2, 2, 0])


def probabilities_of(predicted: np.ndarray) -> np.ndarray:
    """Return 0.8 for the predicted class and 0.1 for the others."""
    rows: np.ndarray = (np.eye(3) * 0.7 + 0.1)[predicted].astype(np.float32)
    return rows


def save(validation: int, labels: np.ndarray = LABELS, predicted: np.ndarray = PREDICTED) -> None:
    """Save predictions of a test split, and use the first of its images as validation split."""
    dataset = read_json(Path("data/raw/dataset.json"))
    dataset["arrays"]["test_labels"]["sha256"] = digest(labels)
    write_json(Path("data/raw/dataset.json"), dataset)
    np.savez(
        "data/predictions.npz",
        allow_pickle=False,
        parameters=np.array(275),
        multiply_adds=np.array(264),
        validation_labels=labels[:validation],
        validation_probabilities=probabilities_of(predicted)[:validation],
        test_labels=labels,
        test_probabilities=probabilities_of(predicted),
    )


def read_scores() -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of metrics.json and scores.json."""
    main, others = (
        json.loads(Path(f"reports/{name}.json").read_text()) for name in ("metrics", "scores")
    )
    return main, others


@pytest.fixture
def measured(project: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The contents of metrics.json and scores.json after a run of the stage."""
    fetch.main()
    save(validation=6)
    evaluate.main()
    return read_scores()


def expected_of(count: int, errors: int) -> dict[str, object]:
    """Scores of the first `count` images; all confidences are 0.8 and thus in one bin."""
    right = count - errors
    low, high = accuracy_interval(right, count)
    chance = pytest.approx(0.1, abs=0.05)
    return {
        "accuracy": pytest.approx(right / count),
        "accuracy_low": pytest.approx(low),
        "accuracy_high": pytest.approx(high),
        "errors": errors,
        "top2_accuracy": pytest.approx((right + 1) / count),  # the first of equals ranks first
        "balanced_accuracy": pytest.approx(
            balanced_accuracy_score(LABELS[:count], PREDICTED[:count])
        ),
        "macro_f1": pytest.approx(f1_score(LABELS[:count], PREDICTED[:count], average="macro")),
        "loss": pytest.approx(-(right * math.log(0.8) + errors * math.log(0.1)) / count, rel=1e-6),
        "brier": pytest.approx((right * 0.06 + errors * (0.64 + 0.81 + 0.01)) / count, rel=1e-6),
        "ece": pytest.approx(abs(right / count - 0.8), abs=1e-6),
        "ece_if_calibrated": chance,
        "ece_if_calibrated_q95": pytest.approx(0.25, abs=0.1),
        "ece_equal_mass": pytest.approx(abs(right / count - 0.8), abs=1e-6),
        "ece_equal_mass_if_calibrated": chance,
        "ece_equal_mass_if_calibrated_q95": pytest.approx(0.25, abs=0.1),
    }


def test_main_and_other_scores_are_in_separate_files(
    measured: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """metrics.json has the main scores, and scores.json all others."""
    main, others = measured
    test, validation = expected_of(12, 4), expected_of(6, 2)
    names = ["accuracy", "accuracy_low", "accuracy_high", "errors", "loss", "ece", "macro_f1"]
    expected = {name: test.pop(name) for name in names}
    expected["validation"] = {name: validation.pop(name) for name in ("accuracy", "loss")}
    assert main == expected
    assert [*main] == [*expected]
    counts = {"test_examples": 12, "parameters": 275, "multiply_adds": 264}
    assert others == test | counts | {"validation": validation}


@pytest.mark.parametrize("seed", range(3))
def test_class_scores_agree_with_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.ones(5), 200).astype(np.float32)
    predicted = probabilities.argmax(axis=1)
    labels = np.where(rng.random(200) < 0.4, predicted, rng.integers(0, 5, 200))
    found = evaluate.all_scores(labels, probabilities)
    assert found["top2_accuracy"] == pytest.approx(top_k_accuracy_score(labels, probabilities, k=2))
    assert found["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))


def test_temperature_scaling_keeps_the_accuracy(
    project: Path, edit: Edit, capsys: pytest.CaptureFixture[str]
) -> None:
    """It changes confidences and thus lowers the loss."""
    edit("evaluate.temperature", True)
    fetch.main()
    save(validation=6)
    evaluate.main()
    main, others = read_scores()
    scaled = others["temperature_scaling"]
    # 4 of 6 validation images are correct. The likelihood alone would turn 0.8 into 2/3.
    assert 1 < scaled["temperature"] < math.log(8) / math.log(4)
    assert scaled["loss"] < main["loss"]
    assert main["accuracy"] == pytest.approx(8 / 12)
    assert "accuracy" not in scaled
    lines = capsys.readouterr().out.splitlines()
    line = f"temperature scaling, T = {scaled['temperature']:.3f} (validation errors: 2):"
    assert lines[lines.index(line) + 1] == f"  loss {scaled['loss']:.4f}"


def test_temperature_scaling_requires_validation_split(project: Path, edit: Edit) -> None:
    edit("evaluate.temperature", True)
    fetch.main()
    save(validation=0)
    with pytest.raises(StageError, match=r"needs a validation split; set normalize\.validation"):
        evaluate.main()
    assert not Path("reports").exists()


def test_counts_are_integers(measured: tuple[dict[str, Any], dict[str, Any]]) -> None:
    scores = measured[0] | measured[1]
    assert [type(scores[name]) for name in ("errors", "test_examples", "parameters")] == [int] * 3


def test_no_validation_scores_without_validation_split(project: Path) -> None:
    fetch.main()
    save(validation=0)
    evaluate.main()
    main, others = read_scores()
    assert "validation" not in {*main, *others}
    assert pd.read_csv("reports/validation_classes.csv").empty
    assert main["errors"] == 4


def test_confusion_table_has_a_row_per_cell(
    measured: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    """Shares sum to 1 for each label."""
    table = pd.read_csv("reports/confusion.csv")
    assert [*table] == ["label", "predicted", "count", "share"]
    assert [*zip(table["label"], table["predicted"], strict=True)] == [
        (i, j) for i in CLASSES for j in CLASSES
    ]
    assert [*table["count"]] == [3, 1, 0, 0, 1, 3, 0, 0, 4]
    assert [*table["share"]] == [0.75, 0.25, 0, 0, 0.25, 0.75, 0, 0, 1]
    assert [*table.groupby("label")["share"].sum()] == [1, 1, 1]


def test_shares_of_a_label_without_images_are_empty() -> None:
    table = evaluate.confusion_table(np.array([[2, 2], [0, 0]]), ["a", "b"])
    np.testing.assert_array_equal(table["share"], [0.5, 0.5, np.nan, np.nan])


def test_calibration_table_has_a_row_per_nonempty_bin(
    measured: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    low, high = accuracy_interval(8, 12)
    assert Path("reports/calibration.csv").read_text() == (
        "low,high,images,confidence,accuracy,accuracy_low,accuracy_high\n"
        f"0.800000,0.866667,12,0.800000,0.666667,{low:.6f},{high:.6f}\n"
    )


def test_class_table_is_in_catalog_order(
    measured: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    assert Path("reports/classes.csv").read_text() == (
        "class,recall,recall_low,recall_high,precision,f1,images\n"
        "bar,0.750000,0.300642,0.954413,1.000000,0.857143,4\n"
        "blot,0.250000,0.045587,0.699358,0.500000,0.333333,4\n"
        "frame,1.000000,0.510109,1.000000,0.571429,0.727273,4\n"
    )


def test_validation_classes_have_a_separate_table(
    measured: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    table = pd.read_csv("reports/validation_classes.csv")
    assert [*table] == [*pd.read_csv("reports/classes.csv")]
    assert [*zip(table["class"], table["recall"].round(6), table["images"], strict=True)] == [
        ("bar", 0.666667, 3),
        ("blot", 0.5, 2),
        ("frame", 1, 1),
    ]


def test_report_has_scores_images_and_confusions(
    measured: tuple[dict[str, Any], dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    main, others = measured
    evaluate.main()
    low, high = accuracy_interval(8, 12)
    mean, q95 = others["ece_if_calibrated"], others["ece_if_calibrated_q95"]
    assert capsys.readouterr().out.splitlines() == [
        "Tiny: 4 of 12 test images misclassified",
        f"  accuracy 0.6667 (95% confidence interval {low:.4f} to {high:.4f})",
        f"  loss {main['loss']:.4f}",
        f"  ECE {main['ece']:.4f} (if calibrated: mean {mean:.4f}, 95% quantile {q95:.4f})",
        "first test images:",
        "  label      predicted",
        "  bar        bar",
        "  blot       blot",
        "  frame      frame",
        "  bar        blot       misclassified",
        "  bar        bar",
        *["  blot       frame      misclassified"] * 3,
        *["  frame      frame"] * 2,
        "most confused classes:",
        "     3  blot predicted as frame",
        "     1  bar predicted as blot",
    ]


def test_report_of_a_perfect_model_is_complete() -> None:
    """There is a single test image."""
    labels, names = np.array([1]), ["a", "b"]
    table = evaluate.confusion_table(np.array([[0, 0], [0, 1]]), names)
    scores = evaluate.all_scores(labels, np.array([[0.1, 0.9]])) | {"test_examples": 1}
    first, *_ = evaluate.main_lines("T", scores)
    assert first == "T: 0 of 1 test images misclassified"
    assert evaluate.first_images(names, labels, labels) == [
        "first test images:",
        "  label      predicted",
        "  b          b",
    ]
    assert evaluate.most_confused(table) == ["no misclassified test images"]


def test_columns_align_with_wide_characters() -> None:
    names = ["긴팔 티셔츠/탑", "바지", "ಅಂಗಿ"]
    lines = evaluate.first_images(names, np.array([0, 1, 2]), np.array([1, 1, 0]))
    assert lines[1:] == [
        "  label           predicted",
        "  긴팔 티셔츠/탑  바지            misclassified",
        "  바지            바지",
        f"  ಅಂಗಿ{' ' * (16 - wcwidth.width('ಅಂಗಿ'))}긴팔 티셔츠/탑  misclassified",
    ]


def test_class_without_images_does_not_lower_means(
    project: Path,
) -> None:
    """Its cells are empty."""
    fetch.main()
    labels = np.array([0, 2, 2, 0], np.uint8)
    save(validation=0, labels=labels, predicted=labels)
    evaluate.main()
    main, others = read_scores()
    assert main["macro_f1"] == others["balanced_accuracy"] == 1
    assert "blot,,,,,,0" in Path("reports/classes.csv").read_text().splitlines()
    assert "blot,bar,0," in Path("reports/confusion.csv").read_text().splitlines()


def test_second_run_writes_the_same_bytes(
    measured: tuple[dict[str, Any], dict[str, Any]],
) -> None:
    def content() -> list[bytes]:
        return [path.read_bytes() for path in sorted(Path("reports").iterdir())]

    first = content()
    evaluate.main()
    assert content() == first


def test_predictions_of_other_images_are_rejected(project: Path) -> None:
    """No report is written."""
    fetch.main()
    save(validation=0)
    fetch.main()
    with pytest.raises(
        StageError, match=r"^data/predictions.npz: expected the test labels of Tiny, found others; "
    ):
        evaluate.main()
    assert not Path("reports").exists()
