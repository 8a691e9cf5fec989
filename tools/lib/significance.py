"""Intervals and tests for accuracies on a shared test set; docs/experiments.md has the method.

A configuration is a bool array of shape (runs, n): whether each run classifies each of the n test
images correctly.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import sqrt
from statistics import NormalDist

import numpy as np
from scipy.special import chdtri, stdtrit
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

ALPHA = 0.05
POWER = 0.8
BOUND = 0.8  # confidence level of the upper bounds of variances in power analysis
MIN_RUNS = 3  # with fewer, the variance between runs is not estimated
MIN_DISCORDANT = 10  # images with different mean accuracies; with fewer, the interval is widened
MAX_RUNS, MAX_IMAGES = 1_000, 10_000_000  # larger sample sizes are not reported


@dataclass(frozen=True)
class Runs:
    """Variance components of a configuration with at least `MIN_RUNS` runs.

    Attributes:
        count: Number of runs.
        accuracy: Variance of the runs' accuracies on these test images.
        interaction: Variance of the interaction between run and image.
    """

    count: int
    accuracy: float
    interaction: float


@dataclass(frozen=True)
class Estimate:
    """An accuracy, or a difference of accuracies, with crossed random effects of runs and images.

    Attributes:
        mean: The accuracy, or that of the first configuration minus that of the second.
        images: Number of test images.
        per_image: Variance over images of the mean over runs.
        per_image_bound: Upper confidence bound of `per_image` at level `BOUND`.
        runs: Variance components of the configurations with enough runs; the others are treated as
            fixed models.
    """

    mean: float
    images: int
    per_image: float
    per_image_bound: float
    runs: tuple[Runs, ...]

    def over_runs(self) -> tuple[float, float]:
        """Estimate the variance of the mean over new runs on the same images.

        Returns:
            Variance and degrees of freedom (Welch 1947, Biometrika 34:28).
        """
        parts = [(each.accuracy / each.count, each.count - 1) for each in self.runs]
        variance = sum(part for part, _ in parts)
        return variance, _degrees_of_freedom(variance, parts)

    def over_both(self) -> tuple[float, float]:
        """Estimate the variance of the mean over new runs and new images.

        Both mean squares contain the interaction, which is subtracted once; the variance of runs
        is at least 0 (Searle, Casella and McCulloch 1992, "Variance components", chapter 4).

        Returns:
            Variance and Satterthwaite's degrees of freedom.
        """
        over_runs, _ = self.over_runs()
        over_images = self.per_image / self.images
        interaction = sum(each.interaction / each.count / self.images for each in self.runs)
        variance = over_images + max(0.0, over_runs - interaction)
        parts = [(each.accuracy / each.count, each.count - 1) for each in self.runs]
        parts.append((over_images, self.images - 1))
        return variance, _degrees_of_freedom(variance, parts)

    def can_show(
        self, difference: float, alpha: float, runs: int | None = None, images: int | None = None
    ) -> bool:
        """Return whether a test would detect a true difference with power `POWER`.

        Variances are taken at their upper bounds.

        Args:
            difference: Difference in accuracy.
            alpha: Significance level of the two-sided test.
            runs: Number of runs of each sampled configuration; the present number by default.
            images: Number of test images; the present number by default.
        """
        images = images or self.images
        own = sum(each.interaction / each.count for each in self.runs)
        parts = [(max(0.0, self.per_image_bound - own) / images, images - 1)]
        for each in self.runs:
            bound = each.accuracy * (each.count - 1) / chdtri(each.count - 1, BOUND)
            of_runs = max(0.0, bound - each.interaction / self.images)
            count = runs or each.count
            parts.append(((of_runs + each.interaction / images) / count, count - 1))
        variance = sum(part for part, _ in parts)
        df = _degrees_of_freedom(variance, parts)
        quantiles = stdtrit(df, 1 - alpha / 2) + stdtrit(df, POWER)  # of Student's t
        return bool(quantiles**2 * variance <= difference**2)


def _degrees_of_freedom(variance: float, parts: Sequence[tuple[float, int]]) -> float:
    """Compute the degrees of freedom of a sum of mean squares (Satterthwaite 1946).

    Satterthwaite 1946, Biometrics Bulletin 2:110.

    Args:
        variance: The sum.
        parts: Each mean square and its degrees of freedom.
    """
    squares = sum(part**2 / max(df, 1) for part, df in parts)
    return max(variance**2 / squares, 1.0) if squares else float("inf")


def estimate(first: np.ndarray, second: np.ndarray | None = None) -> Estimate:
    """Estimate an accuracy, or the difference of two accuracies on the same images.

    Runs of the two configurations are treated as independent. If they share seeds or training
    images, the interval is conservative.
    """
    configurations = [first] if second is None else [first, second]
    means = [correct.mean(axis=0) for correct in configurations]
    per_image = means[0] - means[1] if len(means) > 1 else means[0]
    squares = (per_image - per_image.mean()) ** 2
    n = len(per_image)
    runs = []
    for correct in configurations:
        if len(correct) >= MIN_RUNS:
            by_run = correct.mean(axis=1, keepdims=True)
            rest = correct - by_run - correct.mean(axis=0) + correct.mean()
            interaction = float((rest**2).sum() / ((len(correct) - 1) * max(n - 1, 1)))
            runs.append(Runs(len(correct), float(by_run.var(ddof=1)), interaction))
    variance = float(squares.sum() / max(n - 1, 1))
    error = float(squares.std(ddof=1)) / sqrt(n) if n > 1 else 0.0
    rare = 1 - (1 - BOUND) ** (1 / n)  # bound of the share of discordant images if none is found
    bound = max(variance + NormalDist().inv_cdf(BOUND) * error, rare)
    return Estimate(float(per_image.mean()), n, variance, bound, tuple(runs))


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """Compute the 95% confidence interval of an accuracy for new images and, if sampled, new runs.

    This is Wilson's interval with n divided by the design effect, and Student's quantile (Kish
    1965, "Survey sampling"; Kott and Carr 1997, Journal of Official Statistics 13:367). For a
    single model it is Wilson's interval.
    """
    found = estimate(correct)
    mean, n = found.mean, found.images
    variance, df = found.over_both()
    simple = mean * (1 - mean) / max(n - 1, 1)
    effective = n * simple / variance if variance else float(n)
    square = float(student.ppf(1 - ALPHA / 2, df)) ** 2 / effective  # Wilson 1927, equation 13
    center, scale = (mean + square / 2) / (1 + square), 1 / (1 + square)
    half = scale * sqrt(square * (mean * (1 - mean) + square / 4))
    return max(min(center - half, mean), 0.0), min(max(center + half, mean), 1.0)


def mean_interval(scores: np.ndarray) -> tuple[float, float]:
    """Compute the 95% confidence interval of a mean score per image.

    The interval is for new images and, if sampled, new runs.

    Args:
        scores: Score of each run on each image, shape (runs, n).
    """
    found = estimate(scores)
    variance, df = found.over_both()
    half = float(student.ppf(1 - ALPHA / 2, df)) * sqrt(variance)
    return found.mean - half, found.mean + half


def newcombe(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Compute the 95% confidence interval of the difference in accuracy of two models.

    The interval is for new images (Newcombe 1998, Statistics in Medicine 17:2635, method 10).

    Args:
        first: Whether the first model classifies each image correctly, shape (n,), bool.
        second: As `first`, for the second model.
    """
    n = len(first)
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_first, only_second = int((first & ~second).sum()), int((second & ~first).sum())
    counts = both + only_first, both + only_second
    (low_1, high_1), (low_2, high_2) = (
        proportion_confint(count, n, ALPHA, method="wilson") for count in counts
    )
    p_1, p_2 = counts[0] / n, counts[1] / n
    product = float(both * neither - only_first * only_second)
    if product > 0:
        product = max(product - n / 2, 0.0)  # continuity correction of the correlation
    scale = sqrt(counts[0] * (n - counts[0]) * counts[1] * (n - counts[1]))
    phi = product / scale if scale else 0.0

    def half(one: float, other: float) -> float:
        return sqrt(max(0.0, one**2 - 2 * phi * one * other + other**2))

    difference = p_1 - p_2
    return difference - half(p_1 - low_1, high_2 - p_2), difference + half(
        high_1 - p_1, p_2 - low_2
    )


@dataclass(frozen=True)
class Verdict:
    """Comparison of two configurations on one dataset.

    Attributes:
        difference: Accuracy of the first minus that of the second.
        low: Lower end of its 95% confidence interval.
        high: Upper end.
        p: p-value for no difference on new images and runs, Holm-adjusted.
        p_here: p-value for no difference on these images and new runs, Holm-adjusted; NaN if
            neither configuration is sampled.
        runs_needed: Number of runs per sampled configuration to detect the difference of interest
            with the present images; None if no number is enough, or if none is sampled.
        images_needed: Number of images to detect it with the present runs; None if no number is
            enough.
    """

    difference: float
    low: float
    high: float
    p: float
    p_here: float = float("nan")
    runs_needed: int | None = None
    images_needed: int | None = None

    @property
    def better(self) -> bool:
        """Whether the difference is significant at level `ALPHA`."""
        return self.p < ALPHA


def _p(mean: float, variance: float, df: float) -> float:
    """Compute the two-sided p-value of Student's t-test of a mean."""
    if not variance:
        return float(mean == 0)
    return float(2 * student.sf(abs(mean) / sqrt(variance), df))


def _mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Compute McNemar's exact p-value (1947, Psychometrika 12:153); arguments as in `newcombe`."""
    only = int((first & ~second).sum()), int((second & ~first).sum())
    if not any(only):
        return 1.0
    return float(mcnemar([[0, only[0]], [only[1], 0]], exact=True).pvalue)


def difference_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """Compute the 95% confidence interval of the difference in accuracy, and the p-value.

    Both are for new images, and for new runs of configurations with at least `MIN_RUNS` runs. For
    two single models they are Newcombe's interval and McNemar's exact p-value. With fewer than
    `MIN_DISCORDANT` discordant images, the estimate of the variance is unreliable: the interval
    then also covers Newcombe's for the first run of each configuration, and p is at least
    McNemar's.

    Args:
        first: Shape (runs, n), bool.
        second: Shape (runs, n), bool, on the same images; the number of runs may differ.

    Returns:
        Lower end, upper end, p.
    """
    if len(first) == len(second) == 1:
        return *newcombe(first[0], second[0]), _mcnemar(first[0], second[0])
    found = estimate(first, second)
    variance, df = found.over_both()
    half = float(student.ppf(1 - ALPHA / 2, df)) * sqrt(variance)
    low, high, p = found.mean - half, found.mean + half, _p(found.mean, variance, df)
    if (first.mean(axis=0) != second.mean(axis=0)).sum() < MIN_DISCORDANT:
        low_1, high_1 = newcombe(first[0], second[0])
        low, high = min(low, low_1), max(high, high_1)
        p = max(p, _mcnemar(first[0], second[0]))
    return low, high, p


def sizes_needed(
    found: Estimate, interest: float, alpha: float = ALPHA
) -> tuple[int | None, int | None]:
    """Compute the runs or test images needed to detect a difference of interest.

    Args:
        found: Estimate of the difference of two configurations.
        interest: A difference in accuracy.
        alpha: Significance level.

    Returns:
        Number of runs per sampled configuration with the present images, and number of images with
        the present runs. None if no number is enough, or if no configuration is sampled.
    """
    runs, images = range(MIN_RUNS, MAX_RUNS + 1), range(2, MAX_IMAGES + 1)
    more_runs = bisect_left(runs, True, key=lambda n: found.can_show(interest, alpha, runs=n))
    more_images = bisect_left(images, True, key=lambda n: found.can_show(interest, alpha, images=n))
    return (
        runs[more_runs] if found.runs and more_runs < len(runs) else None,
        images[more_images] if more_images < len(images) else None,
    )


def verdict(
    first: np.ndarray, second: np.ndarray, interest: float, alpha: float = ALPHA
) -> Verdict:
    """Compare two configurations, without correction for multiple comparisons."""
    found = estimate(first, second)
    over_runs, df = found.over_runs()
    return Verdict(
        found.mean,
        *difference_interval(first, second),
        _p(found.mean, over_runs, df) if over_runs else float("nan"),
        *sizes_needed(found, interest, alpha),
    )


def verdicts(
    configurations: Sequence[np.ndarray], interest: float
) -> dict[tuple[int, int], Verdict]:
    """Compare all pairs of configurations on one dataset.

    p is corrected for all pairs (Holm 1979, Scandinavian Journal of Statistics 6:65). Sample sizes
    are for the strictest of Holm's levels, `ALPHA` divided by the number of pairs.

    Args:
        configurations: Shape (runs, n) each, bool.
        interest: The smallest difference in accuracy of interest.
    """
    pairs = [*combinations(range(len(configurations)), 2)]
    found = [
        verdict(configurations[i], configurations[j], interest, ALPHA / len(pairs))
        for i, j in pairs
    ]
    p, p_here = (_holm([getattr(each, name) for each in found]) for name in ("p", "p_here"))
    corrected = (
        replace(each, p=one, p_here=other)
        for each, one, other in zip(found, p, p_here, strict=True)
    )
    return dict(zip(pairs, corrected, strict=True))


def _holm(p: Sequence[float]) -> np.ndarray:
    """Compute Holm-adjusted p-values; NaN stays NaN."""
    adjusted = np.array(p, float)
    tested = ~np.isnan(adjusted)
    if tested.any():
        adjusted[tested] = multipletests(adjusted[tested], ALPHA, method="holm")[1]
    return adjusted
