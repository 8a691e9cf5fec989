"""Calibration against cases worked out by hand, formulas and scikit-learn."""

import math
from itertools import pairwise

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from stages.lib.results import calibration


def test_bins_of_equal_width_cut_0_to_1_and_hold_their_upper_ends() -> None:
    confidence = np.array([0, 1e-9, 1 / 15, 1 / 15 + 1e-9, 0.5, 1])
    assert calibration.bins_of_equal_width(confidence).tolist() == [0, 0, 0, 1, 7, 14]


@pytest.mark.parametrize("count", [15, 16, 1_000])
def test_bins_of_equal_mass_are_as_full_as_each_other_and_in_the_order_of_the_confidence(
    count: int,
) -> None:
    confidence = np.random.default_rng(0).random(count)
    bins = calibration.bins_of_equal_mass(confidence)
    sizes = np.bincount(bins, minlength=15)
    assert sizes.max() - sizes.min() <= 1
    ends = [(confidence[bins == i].min(), confidence[bins == i].max()) for i in range(15)]
    assert all(high <= low for (_, high), (low, _) in pairwise(ends))


def test_equal_confidences_share_a_bin_of_equal_mass_in_whatever_order_the_images_are() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.random(1_000).round(1)
    bins = calibration.bins_of_equal_mass(confidence)
    assert all(len({*bins[confidence == value]}) == 1 for value in confidence)
    assert [*bins[np.argsort(confidence)]] == sorted(bins)
    order = rng.permutation(1_000)
    np.testing.assert_array_equal(calibration.bins_of_equal_mass(confidence[order]), bins[order])
    assert set(calibration.bins_of_equal_mass(np.full(7, 0.9))) == {
        6
    }  # that of the middle one, of the fourth


def test_the_calibration_error_of_a_case_worked_out_by_hand() -> None:
    confidence = np.array([0.9, 0.9, 0.6, 0.6])
    right = np.array([True, False, True, True])
    # First bin: 0.5 right at 0.9, weight 1/2; second: 1 right at 0.6, weight 1/2.
    assert calibration.expected_error(confidence, right, np.array([0, 0, 1, 1])) == pytest.approx(
        0.4 / 2 + 0.4 / 2
    )
    assert calibration.expected_error(confidence, right, np.zeros(4, int)) == pytest.approx(
        abs(0.75 - 0.75)
    )


@pytest.mark.parametrize("strategy", ["uniform", "quantile"])
def test_the_calibration_error_agrees_with_scikit_learns_curve(strategy: str) -> None:
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.1, 1, 3_000)
    right = rng.random(3_000) < confidence**2
    bins_of = (
        calibration.bins_of_equal_width if strategy == "uniform" else calibration.bins_of_equal_mass
    )
    bins = bins_of(confidence)
    accuracy, mean = calibration_curve(right, confidence, n_bins=15, strategy=strategy)
    weights = np.bincount(bins)[np.unique(bins)] / 3_000
    expected = (weights * np.abs(accuracy - mean)).sum()
    assert calibration.expected_error(confidence, right, bins) == pytest.approx(expected, abs=1e-9)


def test_the_zero_line_is_what_a_calibrated_model_gets_and_far_below_an_overconfident_one() -> None:
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.2, 1, 5_000)
    bins = calibration.bins_of_equal_width(confidence)
    line = calibration.error_of_perfect(confidence, bins)
    # Sum of Bernoulli variances in each bin; the mean of |x| under a normal distribution is sqrt(2
    # / pi) deviations.
    deviations = np.sqrt(np.bincount(bins, confidence * (1 - confidence)))
    assert line == pytest.approx(math.sqrt(2 / math.pi) * deviations.sum() / 5_000, rel=0.05)
    calibrated, over = rng.random(5_000) < confidence, rng.random(5_000) < confidence - 0.1
    assert calibration.expected_error(confidence, calibrated, bins) < 2 * line
    assert calibration.expected_error(confidence, over, bins) > 4 * line


def test_the_zero_line_is_the_same_at_every_call_and_0_for_certainty() -> None:
    confidence = np.random.default_rng(3).random(100)
    bins = calibration.bins_of_equal_width(confidence)
    assert calibration.error_of_perfect(confidence, bins) == calibration.error_of_perfect(
        confidence, bins
    )
    assert calibration.error_of_perfect(np.ones(100), np.zeros(100, int)) == 0


def test_the_calibration_table_has_a_row_per_bin_with_images_and_adds_up_to_the_error() -> None:
    rng = np.random.default_rng(5)
    labels, probabilities = rng.integers(0, 3, 500), rng.dirichlet(np.ones(3), 500)
    table = calibration.reliability(labels, probabilities)
    assert table["images"].sum() == 500
    assert (table["images"] > 0).all()
    assert ((table["low"] < table["confidence"]) & (table["confidence"] <= table["high"])).all()
    assert (
        (table["accuracy_low"] <= table["accuracy"]) & (table["accuracy"] <= table["accuracy_high"])
    ).all()
    confidence = probabilities.max(axis=1)
    error = calibration.expected_error(
        confidence,
        probabilities.argmax(axis=1) == labels,
        calibration.bins_of_equal_width(confidence),
    )
    gaps = (table["accuracy"] - table["confidence"]).abs()
    assert (gaps * table["images"]).sum() / 500 == pytest.approx(error, abs=1e-9)


def test_a_temperature_is_softmax_of_the_logits_over_it_and_keeps_every_prediction() -> None:
    logits = np.random.default_rng(6).normal(0, 3, (200, 10))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for temperature in (0.5, 1, 3):
        scaled = np.exp(logits / temperature) / np.exp(logits / temperature).sum(
            axis=1, keepdims=True
        )
        found = calibration.tempered(probabilities, temperature)
        np.testing.assert_allclose(found, scaled, atol=1e-9)
        np.testing.assert_array_equal(found.argmax(axis=1), probabilities.argmax(axis=1))


def test_the_best_temperature_undoes_a_wrong_one_and_leaves_right_ones() -> None:
    rng = np.random.default_rng(7)
    probabilities = rng.dirichlet(np.ones(5), 20_000)
    labels = (probabilities.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert calibration.best_temperature(labels, probabilities) == pytest.approx(1, abs=0.03)
    assert calibration.best_temperature(
        labels, calibration.tempered(probabilities, 0.4)
    ) == pytest.approx(2.5, rel=0.03)


def test_a_probability_of_0_has_a_temperature_too() -> None:
    found = calibration.tempered(np.array([[0, 1]], np.float32), 2)
    assert np.isfinite(found).all()
    assert found.argmax() == 1
