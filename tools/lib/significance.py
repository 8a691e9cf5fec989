"""Intervals and tests of accuracies on a shared test set; docs/experiments.md explains the method.

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
BOUND = 0.8  # confidence of the upper bounds of variances with which sample sizes are planned
MIN_RUNS = 3  # of a sample: with fewer, the variance between runs is not estimated
MIN_DISCORDANT = 10  # images with different mean accuracies; with fewer, the interval is widened
MAX_RUNS, MAX_IMAGES = 1_000, 10_000_000  # beyond these a sample size is not reported


@dataclass(frozen=True)
class Runs:
    """Variance components of a configuration whose runs count as a sample.

    Attributes:
        count: Number of runs, at least `MIN_RUNS`.
        accuracy: Variance of the runs' accuracies on these test images.
        interaction: Variance of the interaction of run and image.
    """

    count: int
    accuracy: float
    interaction: float


@dataclass(frozen=True)
class Estimate:
    """An accuracy, or the difference of two, under crossed random effects of runs and images.

    Attributes:
        mean: The accuracy, or that of the first configuration minus that of the second.
        images: Number of test images.
        per_image: Variance over the images of the mean over the runs.
        per_image_bound: Its upper confidence bound, at level `BOUND`.
        runs: Components of the configurations with enough runs; the others are fixed models.
    """

    mean: float
    images: int
    per_image: float
    per_image_bound: float
    runs: tuple[Runs, ...]

    def over_runs(self) -> tuple[float, float]:
        """Variance of the mean over new runs on the same images, with Welch's degrees of freedom.

        Welch 1947, Biometrika 34:28.
        """
        parts = [(each.accuracy / each.count, each.count - 1) for each in self.runs]
        variance = sum(part for part, _ in parts)
        return variance, _degrees_of_freedom(variance, parts)

    def over_both(self) -> tuple[float, float]:
        """Variance of the mean over new runs and images, with Satterthwaite's degrees of freedom.

        Both mean squares contain the interaction, which is subtracted once; the variance of runs
        is at least 0 (Searle, Casella and McCulloch 1992, "Variance components", chapter 4).
        """
        over_runs, _ = self.over_runs()
        over_images = self.per_image / self.images
        twice = sum(each.interaction / each.count / self.images for each in self.runs)
        variance = over_images + max(0.0, over_runs - twice)
        parts = [(each.accuracy / each.count, each.count - 1) for each in self.runs]
        parts.append((over_images, self.images - 1))
        return variance, _degrees_of_freedom(variance, parts)

    def can_show(
        self, difference: float, alpha: float, runs: int | None = None, images: int | None = None
    ) -> bool:
        """Whether a test at level `alpha` would find a true difference with probability `POWER`.

        Variances are taken at their upper bounds.

        Args:
            difference: Of two accuracies.
            alpha: Level of the two-sided test.
            runs: Of each configuration that has enough now; as many as now if not given.
            images: Test images; as many as now if not given.
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
        quantiles = stdtrit(df, 1 - alpha / 2) + stdtrit(df, POWER)  # of Student's t, fast
        return bool(quantiles**2 * variance <= difference**2)


def _degrees_of_freedom(variance: float, parts: Sequence[tuple[float, int]]) -> float:
    """Those of a sum of mean squares, from each one's size and its own degrees of freedom.

    Satterthwaite 1946, Biometrics Bulletin 2:110.
    """
    squares = sum(part**2 / max(df, 1) for part, df in parts)
    return max(variance**2 / squares, 1.0) if squares else float("inf")


def estimate(first: np.ndarray, second: np.ndarray | None = None) -> Estimate:
    """Estimate an accuracy, or the difference of two on the same images.

    Runs of the two configurations count as independent. If they share seeds or training images,
    the interval is wider than necessary, not narrower.
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
    rare = 1 - (1 - BOUND) ** (1 / n)  # bound of the share of images that differ if none does
    bound = max(variance + NormalDist().inv_cdf(BOUND) * error, rare)
    return Estimate(float(per_image.mean()), n, variance, bound, tuple(runs))


def accuracy_interval(correct: np.ndarray) -> tuple[float, float]:
    """95% confidence interval of a configuration's accuracy, for new images and, if sampled, runs.

    Wilson's interval at n divided by the design effect, with Student's quantile (Kish 1965,
    "Survey sampling"; Kott and Carr 1997, Journal of Official Statistics 13:367). That of a single
    model is Wilson's.
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
    """95% confidence interval of the mean of any score per image, as `accuracy_interval` has it.

    Args:
        scores: Of each run on each of the same images, shape (runs, n).
    """
    found = estimate(scores)
    variance, df = found.over_both()
    half = float(student.ppf(1 - ALPHA / 2, df)) * sqrt(variance)
    return found.mean - half, found.mean + half


def newcombe(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """95% confidence interval of the difference in accuracy of two models, for new images.

    Newcombe 1998, Statistics in Medicine 17:2635, method 10.

    Args:
        first: Whether the first model classifies each image correctly, shape (n,), bool.
        second: The same of the second model.
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
    """What runs show of the difference of two configurations on one dataset.

    Attributes:
        difference: Accuracy of the first minus that of the second.
        low: Lower end of its 95% confidence interval.
        high: Upper end.
        p: For no difference on new images and runs, after Holm's correction.
        p_here: For no difference on these images and new runs, after Holm's correction; NaN if the
            runs of neither are a sample.
        runs_needed: Of each sampled configuration, to show the difference of interest on as many
            images; None if no number is enough, or if none is sampled.
        images_needed: To show it with as many runs; None if no number is enough.
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
        """Whether the difference is not 0, at level `ALPHA`."""
        return self.p < ALPHA


def _p(mean: float, variance: float, df: float) -> float:
    """Two-sided p of Student's t-test of a mean."""
    if not variance:
        return float(mean == 0)
    return float(2 * student.sf(abs(mean) / sqrt(variance), df))


def _mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """McNemar's exact p of two models (1947, Psychometrika 12:153); arguments as of `newcombe`."""
    only = int((first & ~second).sum()), int((second & ~first).sum())
    if not any(only):
        return 1.0
    return float(mcnemar([[0, only[0]], [only[1], 0]], exact=True).pvalue)


def difference_interval(first: np.ndarray, second: np.ndarray) -> tuple[float, float, float]:
    """95% confidence interval of the difference in accuracy, and p of no difference.

    Both are for new images, and for new runs of a configuration with at least `MIN_RUNS`. Of two
    single models they are Newcombe's and McNemar's exact p. With fewer than `MIN_DISCORDANT`
    discordant images the variance is hardly estimated, and 0 without any: the interval then also
    covers Newcombe's of the first run of each configuration, and p is at least McNemar's.

    Args:
        first: Shape (runs, n), bool.
        second: The same on the same images; its runs may be more or fewer.

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
    """Runs and test images that would show a difference of interest, each with the other as now.

    Args:
        found: Of the difference of two configurations.
        interest: A difference in accuracy.
        alpha: Level at which it is to be shown.

    Returns:
        Runs of each configuration that is sampled, and images; None if no number is enough, or if
        no configuration is sampled.
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
    """Compare two configurations, without correction for other pairs."""
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
    """Compare every two configurations on one dataset.

    p is corrected for all pairs (Holm 1979, Scandinavian Journal of Statistics 6:65). Sample sizes
    are for the strictest of Holm's levels, `ALPHA` over the number of pairs.

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
    """Holm's adjusted p, NaN where there is none."""
    adjusted = np.array(p, float)
    tested = ~np.isnan(adjusted)
    if tested.any():
        adjusted[tested] = multipletests(adjusted[tested], ALPHA, method="holm")[1]
    return adjusted
