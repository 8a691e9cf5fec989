"""Every metric against hand-calculated cases and another implementation."""

import math
import warnings

import numpy as np
import pandas as pd
import pytest
from cleanlab.rank import get_label_quality_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import (
    balanced_accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    precision_recall_fscore_support,
)

from stages.lib.models.networks import import_keras
from stages.lib.results import metrics
from stages.lib.results.metrics import accuracy_interval, confusion, cross_entropy, per_class

LABELS = np.array([0, 0, 0, 1, 1, 2], np.uint8)
PREDICTED = np.array([0, 1, 1, 1, 0, 1])


def random_case(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of 500 images."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, 500).astype(np.uint8), rng.dirichlet(
        np.ones(classes), 500
    ).astype(np.float32)


@pytest.mark.parametrize(
    ("correct", "count"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 10), (9_780, 10_000)]
)
def test_interval_matches_wilsons_formula(correct: int, count: int) -> None:
    z, share = 1.959963984540054, correct / count
    middle = share + z**2 / (2 * count)
    half = z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    expected = np.array([middle - half, middle + half]) / (1 + z**2 / count)
    assert accuracy_interval(correct, count) == pytest.approx(tuple(expected), abs=1e-9)


@pytest.mark.parametrize(
    ("correct", "count"), [(0, 1), (1, 1), (7, 10), (9_780, 10_000), (60_000, 60_000)]
)
def test_interval_agrees_with_scipy(correct: int, count: int) -> None:
    expected = binomtest(correct, count).proportion_ci(0.95, method="wilson")
    assert accuracy_interval(correct, count) == pytest.approx(
        (expected.low, expected.high), abs=1e-12
    )


@pytest.mark.parametrize("classes", [2, 3, 10, 12])
def test_class_scores_agree_with_scikit_learn(classes: int) -> None:
    rng = np.random.default_rng(classes)
    labels, predicted = rng.integers(0, max(2, classes - 1), (2, 200)).astype(
        np.uint8
    )  # the last class never occurs
    counts = confusion_matrix(labels, predicted, labels=range(classes))
    np.testing.assert_array_equal(confusion(labels, predicted, classes), counts)
    names = [str(i) for i in range(classes)]
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, predicted, labels=range(classes), zero_division=np.nan
    )
    table = per_class(labels, predicted, names)
    for name, expected in (
        ("precision", precision),
        ("recall", recall),
        ("f1", f1),
        ("images", images),
    ):
        np.testing.assert_allclose(table[name], expected, rtol=1e-12)


def test_interval_of_8_in_10_matches_published_tables() -> None:
    low, high = accuracy_interval(8, 10)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)


@pytest.mark.parametrize("count", [*range(1, 40), 10_000])
def test_interval_contains_accuracy_within_0_and_1(count: int) -> None:
    for correct in {0, 1, count // 2, count - 1, count}:
        low, high = accuracy_interval(correct, count)
        assert 0 <= low <= correct / count <= high <= 1
        assert low < high


def test_cross_entropy_of_hand_calculated_case() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    assert cross_entropy(np.array([1, 2]), probabilities) == pytest.approx(
        (math.log(4) + math.log(1.25)) / 2
    )


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_cross_entropy_agrees_with_formula_and_keras(classes: int) -> None:
    labels, probabilities = random_case(classes, seed=classes)
    found = cross_entropy(labels, probabilities)
    formula = -np.mean(np.log(probabilities[np.arange(500), labels].astype(np.float64)))
    assert found == pytest.approx(formula, rel=1e-6)
    loss = np.asarray(import_keras().losses.sparse_categorical_crossentropy(labels, probabilities))
    assert found == pytest.approx(float(loss.mean()), rel=1e-5)


def test_cross_entropy_of_certain_and_uniform_rows() -> None:
    """It is 0 for certainty and the logarithm of the number of classes for uniform rows."""
    labels = np.array([2, 0])
    assert cross_entropy(labels, np.eye(3)[labels]) == pytest.approx(0, abs=1e-12)
    assert cross_entropy(labels, np.full((2, 3), 1 / 3)) == pytest.approx(math.log(3))


def test_cross_entropy_of_a_certain_error_is_finite() -> None:
    assert 80 < cross_entropy(np.array([0]), np.array([[0, 1]], np.float32)) < 90


def test_cross_entropy_with_classes_without_images() -> None:
    assert cross_entropy(np.array([1, 1]), np.full((2, 4), 0.25)) == pytest.approx(math.log(4))


def test_confusion_rows_are_labels() -> None:
    """Columns are predictions."""
    counts = confusion(LABELS, PREDICTED, 3)
    assert counts.tolist() == [[1, 2, 0], [1, 1, 0], [0, 1, 0]]
    assert counts.dtype == np.int64


@pytest.mark.parametrize("classes", [2, 10])
def test_confusion_agrees_with_a_loop(classes: int) -> None:
    labels, probabilities = random_case(classes, seed=1)
    predicted = probabilities.argmax(axis=1)
    counted = np.zeros((classes, classes), int)
    for label, guess in zip(labels, predicted, strict=True):
        counted[label, guess] += 1
    np.testing.assert_array_equal(confusion(labels, predicted, classes), counted)


def test_confusion_includes_classes_that_never_occur() -> None:
    assert confusion(np.array([1]), np.array([1]), 3).tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]


def test_class_scores_of_hand_calculated_case() -> None:
    # "c" is never predicted; "d" is neither a label nor predicted.
    expected = pd.DataFrame(
        {
            "class": ["a", "b", "c", "d"],
            "recall": [1 / 3, 1 / 2, 0, math.nan],
            "recall_low": [
                accuracy_interval(1, 3)[0],
                accuracy_interval(1, 2)[0],
                accuracy_interval(0, 1)[0],
                math.nan,
            ],
            "recall_high": [
                accuracy_interval(1, 3)[1],
                accuracy_interval(1, 2)[1],
                accuracy_interval(0, 1)[1],
                math.nan,
            ],
            "precision": [1 / 2, 1 / 4, math.nan, math.nan],
            "f1": [2 / 5, 1 / 3, 0, math.nan],
            "images": [3, 2, 1, 0],
        }
    )
    pd.testing.assert_frame_equal(
        per_class(LABELS, PREDICTED, ["a", "b", "c", "d"]), expected, check_dtype=False
    )


def test_class_scores_follow_from_the_confusion_matrix() -> None:
    labels, probabilities = random_case(10, seed=2)
    predicted = probabilities.argmax(axis=1)
    counts = confusion(labels, predicted, 10)
    table = per_class(labels, predicted, [*"abcdefghij"])
    np.testing.assert_allclose(table["recall"], counts.diagonal() / counts.sum(axis=1))
    np.testing.assert_allclose(table["precision"], counts.diagonal() / counts.sum(axis=0))
    np.testing.assert_allclose(
        table["f1"], 2 * counts.diagonal() / (counts.sum(axis=0) + counts.sum(axis=1))
    )
    np.testing.assert_array_equal(table["images"], counts.sum(axis=1))


@settings(deadline=None, derandomize=True)
@given(st.integers(2, 8), st.data())
def test_class_means_agree_with_scikit_learn(classes: int, data: st.DataObject) -> None:
    """They are the macro F1 and the balanced accuracy."""
    labels = data.draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=12))
    predicted = data.draw(
        st.lists(st.integers(0, classes - 1), min_size=len(labels), max_size=len(labels))
    )
    table = per_class(np.array(labels), np.array(predicted), [str(i) for i in range(classes)])
    assert table["f1"].mean() == pytest.approx(f1_score(labels, predicted, average="macro"))
    with warnings.catch_warnings():  # scikit-learn warns of predictions outside the labels
        warnings.simplefilter("ignore")
        expected = balanced_accuracy_score(labels, predicted)
    assert table["recall"].mean() == pytest.approx(expected)


def test_class_without_images_does_not_lower_macro_f1() -> None:
    labels = np.delete(np.arange(25), 9)  # as in Sign Language MNIST
    table = per_class(labels, labels, [str(i) for i in range(25)])
    assert table["f1"].mean() == table["recall"].mean() == 1
    assert table.drop(columns=["class", "images"]).loc[9].isna().all()


def test_brier_score_of_hand_calculated_case() -> None:
    probabilities = np.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]])
    expected = (0.25 + 0.5625 + 0.0625 + 0.01 + 0.01 + 0.04) / 2
    assert metrics.brier(np.array([1, 2]), probabilities) == pytest.approx(expected)


@pytest.mark.parametrize("classes", [3, 10])
def test_brier_score_agrees_with_scikit_learn(classes: int) -> None:
    labels, probabilities = random_case(classes, seed=classes)
    rows = probabilities.astype(float) / probabilities.astype(float).sum(axis=1, keepdims=True)
    expected = brier_score_loss(labels, rows, labels=range(classes), scale_by_half=False)
    assert metrics.brier(labels, rows) == pytest.approx(expected, rel=1e-9)


def test_brier_score_of_two_classes_counts_both() -> None:
    assert metrics.brier(np.array([1, 0]), np.array([[0.25, 0.75], [0.5, 0.5]])) == pytest.approx(
        (0.125 + 0.5) / 2
    )


@pytest.mark.parametrize(("rows", "score"), [(np.eye(3)[[2, 0]], 0), (np.eye(3)[[1, 1]], 2)])
def test_brier_score_of_certainty_is_0_or_2(rows: np.ndarray, score: float) -> None:
    assert metrics.brier(np.array([2, 0]), rows) == score


def test_ranks_start_at_1_and_break_ties_by_class() -> None:
    probabilities = np.array([[0.5, 0.3, 0.2]] * 3 + [[0.4, 0.4, 0.2]] * 2)
    assert metrics.ranks(np.array([0, 1, 2, 0, 1]), probabilities).tolist() == [1, 2, 3, 1, 2]


@pytest.mark.parametrize("classes", [2, 10])
def test_rank_1_is_the_argmax(classes: int) -> None:
    labels, probabilities = random_case(classes, seed=4)
    tied = np.round(probabilities, 1)
    np.testing.assert_array_equal(metrics.ranks(labels, tied) == 1, tied.argmax(axis=1) == labels)


def test_label_quality_of_hand_calculated_cases() -> None:
    """Quality is low if another class is far more probable than the label."""
    labels = np.array([0, 1, 2, 2])
    rows = np.array([[0.75, 0.25, 0], [0.625, 0.25, 0.125], [0.125, 0.375, 0.5], [0, 1, 0]])
    assert metrics.label_quality(labels, rows).tolist() == [0.75, 0.3125, 0.5625, 0]


@pytest.mark.parametrize("classes", [2, 10])
def test_label_quality_agrees_with_cleanlab(classes: int) -> None:
    labels, rows = random_case(classes, seed=5)
    rows = rows.astype(float)
    expected = get_label_quality_scores(
        labels, rows, method="normalized_margin", adjust_pred_probs=False
    )
    np.testing.assert_allclose(metrics.label_quality(labels, rows), expected, atol=1e-9)
