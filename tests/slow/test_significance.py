"""Coverage and false positives by simulation, for two configurations of equal accuracy."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import ttest_ind

from tools.lib.significance import (
    ALPHA,
    MIN_RUNS,
    accuracy_interval,
    difference_interval,
    newcombe,
)

pytestmark = pytest.mark.slow
IMAGES, HARD, SIMULATIONS = 10_000, 0.03, 1_000
Pair = tuple[np.ndarray, np.ndarray]
Design = Callable[[np.random.Generator, int], Pair]


def correct(rng: np.random.Generator, errors: np.ndarray) -> np.ndarray:
    """Runs with these probabilities of an error on each hard image, shape (runs, n), bool."""
    found = np.ones((len(errors), IMAGES), bool)
    found[:, : errors.shape[1]] = rng.random(errors.shape) >= errors
    return found


def by_image(rng: np.random.Generator, runs: int) -> Pair:
    """A hard image is nearly always or never an error of a configuration; runs differ by chance."""
    hard = rng.binomial(IMAGES, HARD)
    first, second = (
        correct(rng, np.tile(rng.beta(0.045, 0.045, hard), (runs, 1))) for _ in range(2)
    )
    return first, second


def by_image_and_run(rng: np.random.Generator, runs: int) -> Pair:
    """Images differ less, and sampled runs also differ in accuracy on all hard images."""
    hard = rng.binomial(IMAGES, HARD)
    shared, spread = rng.normal(0, 2, hard), 0.25 * (runs >= MIN_RUNS)
    logits = (shared + rng.normal(0, 4, hard) + rng.normal(0, spread, (runs, 1)) for _ in range(2))
    first, second = (correct(rng, 1 / (1 + np.exp(-each))) for each in logits)
    return first, second


def by_run(rng: np.random.Generator, runs: int) -> Pair:
    """Runs differ more than images do."""
    hard = rng.binomial(IMAGES, HARD)
    logits = (rng.normal(0, 0.8, (runs, 1)) + np.zeros(hard) for _ in range(2))
    first, second = (correct(rng, 1 / (1 + np.exp(-each))) for each in logits)
    return first, second


def pigeonhole(
    rng: np.random.Generator, first: np.ndarray, second: np.ndarray, resamples: int = 300
) -> tuple[float, float]:
    """Interval by resampling runs and images (Owen 2007, Annals of Applied Statistics 1:386)."""
    difference = first.astype(float) - second
    hard = difference.any(axis=0)
    runs = rng.multinomial(len(first), np.full(len(first), 1 / len(first)), resamples)
    shares = np.append(np.full(hard.sum(), 1 / IMAGES), 1 - hard.mean())
    images = rng.multinomial(IMAGES, shares, resamples)[:, :-1]
    means = np.einsum("br,ri,bi->b", runs, difference[:, hard], images) / len(first) / IMAGES
    low, high = np.percentile(means, [100 * ALPHA / 2, 100 * (1 - ALPHA / 2)])
    return float(low), float(high)


@pytest.mark.parametrize("design", [by_image, by_image_and_run])
def test_equal_accuracies_are_rarely_rejected(design: Design) -> None:
    """The interval has its nominal coverage, and the p-value its nominal size."""
    rejected = []
    for runs in range(1, 11):
        rng = np.random.default_rng(runs)
        found = np.array([difference_interval(*design(rng, runs)) for _ in range(SIMULATIONS)])
        low, high, p = found.T
        assert 0.93 <= ((low <= 0) & (high >= 0)).mean() <= 0.97
        rejected.append((p < ALPHA).mean())
    chance = 2 * np.sqrt(ALPHA * (1 - ALPHA) / SIMULATIONS / len(rejected))
    assert np.mean(rejected) <= ALPHA + chance


def test_interval_covers_with_one_single_model() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(SIMULATIONS):
        first, second = by_image(rng, 5)
        low, high, _ = difference_interval(first, second[:1])
        covered += low <= 0 <= high
    assert 0.93 <= covered / SIMULATIONS <= 0.97


def test_t_test_over_runs_rejects_equal_accuracies() -> None:
    """It holds for these images only, on which the accuracies differ."""
    rng = np.random.default_rng(0)
    pairs = (by_image(rng, 10) for _ in range(200))
    p = [ttest_ind(first.mean(axis=1), second.mean(axis=1)).pvalue for first, second in pairs]
    assert np.mean(np.array(p) < ALPHA) > 0.7


def test_pigeonhole_bootstrap_undercovers_for_few_runs() -> None:
    """This is why the intervals are not bootstrapped."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        pair = by_run(rng, 3)
        ends = difference_interval(*pair)[:2], pigeonhole(rng, *pair)
        covered.append([low <= 0 <= high for low, high in ends])
    crossed, bootstrap = np.mean(covered, axis=0)
    assert crossed > 0.93
    assert bootstrap < 0.85


@pytest.mark.parametrize("rates", [(0.001, 0.0702), (0.0001, 0.0001), (0.02, 0.02)])
def test_newcombe_interval_covers_the_difference(rates: tuple[float, float]) -> None:
    """The rates are of images on which only the first, or only the second, is correct."""
    rng = np.random.default_rng(0)
    covered = 0
    for one, other, both in rng.multinomial(IMAGES, [*rates, 0.9], SIMULATIONS)[:, :3]:
        first, second = np.zeros((2, IMAGES), bool)
        first[: one + both] = second[one : one + both + other] = True
        low, high = newcombe(first, second)
        covered += low <= rates[0] - rates[1] <= high
    assert 0.93 <= covered / SIMULATIONS <= (0.97 if sum(rates) > 0.001 else 1)


@pytest.mark.parametrize("runs", [1, 3, 10])
def test_accuracy_interval_covers_the_accuracy(runs: int) -> None:
    rng = np.random.default_rng(runs)
    covered = 0
    for _ in range(SIMULATIONS):
        hard = rng.beta(0.3, 0.3, rng.binomial(IMAGES, HARD))
        low, high = accuracy_interval(correct(rng, np.tile(hard, (runs, 1))))
        covered += low <= 1 - HARD / 2 <= high
    assert 0.93 <= covered / SIMULATIONS <= 0.97
