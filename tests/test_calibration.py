"""Calibration against hand-calculated cases, formulas and scikit-learn."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.calibration import calibration_curve

from stages.lib.results import calibration
from stages.lib.results.metrics import cross_entropy


def test_equal_width_bins_include_their_upper_edge() -> None:
    confidence = np.array([0, 1e-9, 1 / 15, 1 / 15 + 1e-9, 0.5, 1])
    assert calibration.bins_of_equal_width(confidence).tolist() == [0, 0, 0, 1, 7, 14]


@pytest.mark.parametrize("count", [15, 16, 1_000])
def test_equal_mass_bins_are_equally_full_and_ordered(
    count: int,
) -> None:
    """Bin sizes differ by at most one image; higher bins hold higher confidences."""
    confidence = np.random.default_rng(0).random(count)
    bins = calibration.bins_of_equal_mass(confidence)
    sizes = np.bincount(bins, minlength=15)
    assert sizes.max() - sizes.min() <= 1
    ends = [(confidence[bins == i].min(), confidence[bins == i].max()) for i in range(15)]
    assert all(high <= low for (_, high), (low, _) in pairwise(ends))


def test_ties_share_an_equal_mass_bin() -> None:
    """Equal confidences share a bin regardless of the order of the images."""
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


def test_ece_of_hand_calculated_case() -> None:
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
def test_ece_agrees_with_scikit_learn(strategy: str) -> None:
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


def test_expected_ece_matches_normal_approximation() -> None:
    """It is far below the ECE of an overconfident model."""
    rng = np.random.default_rng(2)
    confidence = rng.uniform(0.2, 1, 5_000)
    bins = calibration.bins_of_equal_width(confidence)
    line, high = calibration.error_if_calibrated(confidence, bins)
    # Sum of Bernoulli variances in each bin; the mean of |x| under a normal distribution is sqrt(2
    # / pi) deviations.
    deviations = np.sqrt(np.bincount(bins, confidence * (1 - confidence)))
    assert line == pytest.approx(math.sqrt(2 / math.pi) * deviations.sum() / 5_000, rel=0.05)
    overconfident = rng.random(5_000) < confidence - 0.1
    assert calibration.expected_error(confidence, overconfident, bins) > 4 * line > 2 * high


def test_calibrated_models_rarely_exceed_the_quantile() -> None:
    """Calibrated models exceed the 95% quantile in 5% of samples."""
    rng = np.random.default_rng(8)
    confidence = rng.uniform(0.2, 1, 500)
    bins = calibration.bins_of_equal_width(confidence)
    mean, high = calibration.error_if_calibrated(confidence, bins)
    drawn = [
        calibration.expected_error(confidence, rng.random(500) < confidence, bins)
        for _ in range(2_000)
    ]
    assert np.mean(drawn) == pytest.approx(mean, rel=0.05)
    assert 0.03 < np.mean(np.array(drawn) > high) < 0.07


def test_ece_if_calibrated_is_deterministic() -> None:
    """It is 0 if all confidences are 1."""
    confidence = np.random.default_rng(3).random(100)
    bins = calibration.bins_of_equal_width(confidence)
    assert calibration.error_if_calibrated(confidence, bins) == calibration.error_if_calibrated(
        confidence, bins
    )
    assert calibration.error_if_calibrated(np.ones(100), np.zeros(100, int)) == (0, 0)


def test_reliability_table_sums_to_ece() -> None:
    """Each nonempty bin has a row; the gaps weighted by the number of images sum to the ECE."""
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


def test_temperature_divides_logits() -> None:
    """Predicted classes do not change."""
    logits = np.random.default_rng(6).normal(0, 3, (200, 10))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    for temperature in (0.5, 1, 3):
        scaled = np.exp(logits / temperature) / np.exp(logits / temperature).sum(
            axis=1, keepdims=True
        )
        found = calibration.scale_temperature(probabilities, temperature)
        np.testing.assert_allclose(found, scaled, atol=1e-9)
        np.testing.assert_array_equal(found.argmax(axis=1), probabilities.argmax(axis=1))


def test_best_temperature_undoes_known_scaling() -> None:
    """It is 1 for calibrated probabilities."""
    rng = np.random.default_rng(7)
    probabilities = rng.dirichlet(np.ones(5), 20_000)
    labels = (probabilities.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert calibration.best_temperature(labels, probabilities) == pytest.approx(1, abs=0.03)
    assert calibration.best_temperature(
        labels, calibration.scale_temperature(probabilities, 0.4)
    ) == pytest.approx(2.5, rel=0.03)


def test_zero_probability_is_scaled_without_nan() -> None:
    found = calibration.scale_temperature(np.array([[0, 1]], np.float32), 2)
    assert np.isfinite(found).all()
    assert found.argmax() == 1


def test_temperature_stays_moderate_without_errors() -> None:
    """Maximum likelihood gives T = 0.04, and a single error on new images raises the loss."""
    labels, probabilities = np.zeros(300, int), np.tile([0.9, 0.1], (300, 1))
    temperature = calibration.best_temperature(labels, probabilities)
    assert 0.25 < temperature < 0.5
    labels[0] = 1
    scaled = calibration.scale_temperature(probabilities, temperature)
    assert cross_entropy(labels, scaled) < cross_entropy(labels, probabilities)


def test_temperature_stays_moderate_for_a_single_error() -> None:
    found = calibration.best_temperature(np.array([1]), np.array([[0.99, 0.01]]))
    assert 1 < found < 3


@pytest.mark.parametrize("count", [10, 30, 100, 300])
@pytest.mark.parametrize("factor", [1, 1.5])
def test_fit_on_few_images_does_not_raise_mean_loss(count: int, factor: float) -> None:
    """One model is calibrated; the other has its logits multiplied by 1.5. Errors are few."""
    rng = np.random.default_rng(9)
    logits = rng.normal(0, 2, (20 * count + 5_000, 10))
    logits[np.arange(len(logits)), rng.integers(0, 10, len(logits))] += 12
    probabilities = softmax(logits, axis=1)
    labels = (probabilities.cumsum(axis=1) > rng.random((len(logits), 1))).argmax(axis=1)
    probabilities = softmax(logits * factor, axis=1)
    labels, test_labels = labels[:-5_000], labels[-5_000:]
    probabilities, test_probabilities = probabilities[:-5_000], probabilities[-5_000:]
    before = cross_entropy(test_labels, test_probabilities)
    losses = []
    for chosen in np.arange(20 * count).reshape(20, count):
        found = calibration.best_temperature(labels[chosen], probabilities[chosen])
        scaled = calibration.scale_temperature(test_probabilities, found)
        losses.append(cross_entropy(test_labels, scaled))
    assert np.mean(losses) < before + 0.002


@pytest.mark.parametrize(("images", "tolerance"), [(5_000, 0.01), (200, 0.1)])
def test_temperature_prior_fades_with_more_images(images: int, tolerance: float) -> None:
    rng = np.random.default_rng(10)
    probabilities = rng.dirichlet(np.ones(5), images)
    labels = (probabilities.cumsum(axis=1) > rng.random((images, 1))).argmax(axis=1)
    overconfident = calibration.scale_temperature(probabilities, 0.5)
    found = calibration.best_temperature(labels, overconfident)
    grid = np.linspace(1, 4, 601)
    losses = [cross_entropy(labels, calibration.scale_temperature(overconfident, t)) for t in grid]
    assert found == pytest.approx(grid[np.argmin(losses)], rel=tolerance)
