"""What runs tell of the difference between two settings, and what they do not."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil, log2, sqrt
from statistics import NormalDist

import numpy as np
from scipy.stats import binomtest, ttest_1samp
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from tools.runs import Run

LEVEL, POWER, SEEDS = 0.05, 0.8, 3  # of a test; of what it should find; the fewest that say something of a setting
TINY = 1e-9  # accuracies are shares of some thousand images
BETTER, NOTHING_SHOWN, TOO_FEW = "better", "no difference shown", "too few seeds to say"


@dataclass(frozen=True)
class Verdict:
    """What can be said of two groups on one data set.

    Attributes:
        words: One of the three, of the first against the second, or of the second where the difference is negative.
        difference: Accuracy of the first less that of the second.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Probability of as large a difference where there is none, after Holm's correction for all pairs on the
            data set.
        how: Which test.
        needed: What would show a difference of this size four times in five; where seeds are too few, how many are not.
        pairs: How many the correction is for.
    """

    words: str
    difference: float
    low: float = float("nan")
    high: float = float("nan")
    p: float = float("nan")
    how: str = ""
    needed: str = ""
    pairs: int = 1


def interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of a mean, by Student's t.

    Args:
        values: Two or more.

    Returns:
        Its ends; both the mean where all values are equal.
    """
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1)) / sqrt(len(values))
    half = float(student.ppf(1 - LEVEL / 2, len(values) - 1)) * error
    return mean - half, mean + half


def quantiles(level: float) -> tuple[float, float]:
    """Of the normal distribution, for a two-sided test at this level and for `POWER`."""
    return NormalDist().inv_cdf(1 - level / 2), NormalDist().inv_cdf(POWER)


def seeds_needed(differences: Sequence[float], level: float = LEVEL) -> int:
    """Pairs of runs with which a paired t-test would find the mean difference four times in five.

    Guenther 1981, The American Statistician 35:243: the normal approximation and half a squared quantile.

    Args:
        differences: Of pairs of runs, not all equal, with a mean that is not 0.
        level: Of the test.
    """
    z, z_power = quantiles(level)
    effect = abs(float(np.mean(differences))) / float(np.std(differences, ddof=1))
    return max(SEEDS, ceil(((z + z_power) / effect) ** 2 + z**2 / 2))


def images_needed(only_first: int, only_second: int, images: int, level: float = LEVEL) -> int:
    """Test images with which McNemar's test would find this difference four times in five (Connor 1987, eq. 3).

    Args:
        only_first: Images that only the first model gets wrong.
        only_second: Images that only the second one gets wrong; another number.
        images: All test images.
        level: Of the test.
    """
    z, z_power = quantiles(level)
    disagreement, difference = (only_first + only_second) / images, abs(only_first - only_second) / images
    return ceil((z * sqrt(disagreement) + z_power * sqrt(disagreement - difference**2)) ** 2 / difference**2)


def wrong(run: Run) -> np.ndarray:
    """Whether the run gets each test image wrong, shape (n,), bool."""
    predictions = run.read("data/predictions.npz")
    mistaken: np.ndarray = predictions["test_probabilities"].argmax(axis=1) != predictions["test_labels"]
    return mistaken


def by_images(first: Run, second: Run, level: float = LEVEL) -> Verdict:
    """McNemar's exact test of two single models on the same test images (McNemar 1947, Psychometrika 12:153).

    The interval is exact too, given how many images only one of them gets wrong.
    """
    one, other = wrong(first), wrong(second)
    only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
    how = f"McNemar, {only_first} and {only_second} images that only one gets wrong"
    p = float(mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue)
    only_one = only_first + only_second
    if not only_one:
        return Verdict("", 0.0, 0.0, 0.0, p, how)
    share = binomtest(only_second, only_one).proportion_ci(1 - LEVEL, method="exact")
    low, high = ((2 * end - 1) * only_one / len(one) for end in (share.low, share.high))
    needed = f"{images_needed(only_first, only_second, len(one), level):,} images" if only_first != only_second else ""
    return Verdict("", (only_second - only_first) / len(one), low, high, p, how, needed)


def common_seeds(first: Sequence[Run], second: Sequence[Run]) -> list[int]:
    """Seeds that both groups have."""
    return sorted({run.seed for run in first} & {run.seed for run in second})


def by_seeds(first: Sequence[Run], second: Sequence[Run], level: float = LEVEL) -> Verdict:
    """A t-test of the differences between runs of the same seed; of their signs, where all are the same."""
    accuracies = [{run.seed: run.scores["accuracy"] for run in group} for group in (first, second)]
    seeds = common_seeds(first, second)
    differences = [accuracies[0][seed] - accuracies[1][seed] for seed in seeds]
    if len(seeds) < SEEDS:
        means = [np.mean([*group.values()]) for group in accuracies]
        return Verdict(TOO_FEW, float(means[0] - means[1]), needed=f"needs {SEEDS} that both have, found {len(seeds)}")
    mean, ends = float(np.mean(differences)), interval(differences)
    if np.ptp(differences) < TINY:
        how = f"signs of {len(seeds)} equal differences"
        if abs(mean) < TINY:
            return Verdict("", mean, *ends, 1.0, how)
        return Verdict("", mean, *ends, 2.0 ** (1 - len(seeds)), how, f"{ceil(1 - log2(level))} seeds")
    p = float(ttest_1samp(differences, 0).pvalue)
    needed = f"{seeds_needed(differences, level)} seeds" if abs(mean) > TINY else ""
    return Verdict("", mean, *ends, p, f"paired t over {len(seeds)} seeds", needed)


def single(group: Sequence[Run]) -> bool:
    """Whether a group is one model: one run, or several that predict the same to the byte."""
    return len({run.predictions for run in group}) == 1


def verdicts(groups: Sequence[Sequence[Run]]) -> dict[tuple[int, int], Verdict]:
    """Compares every two groups on the same data set.

    Args:
        groups: Runs that differ in the seed alone.

    Returns:
        A verdict for each pair, by the indices of the two; nothing between data sets.
    """
    found = {}
    for dataset in dict.fromkeys(group[0].dataset for group in groups):
        pairs = [*combinations([i for i, group in enumerate(groups) if group[0].dataset == dataset], 2)]
        images = {pair for pair in pairs if all(single(groups[k]) for k in pair)}
        tested = [pair for pair in pairs if pair in images or len(common_seeds(*(groups[k] for k in pair))) >= SEEDS]
        level = LEVEL / max(1, len(tested))  # Holm's first step
        for i, j in pairs:
            first, second = groups[i], groups[j]
            alone = (i, j) in images
            found[i, j] = by_images(first[0], second[0], level) if alone else by_seeds(first, second, level)
        if tested:
            corrected = multipletests([found[pair].p for pair in tested], LEVEL, method="holm")[1]
            for pair, p in zip(tested, corrected, strict=True):
                words = BETTER if p < LEVEL else NOTHING_SHOWN
                found[pair] = replace(found[pair], p=float(p), words=words, pairs=len(tested))
    return found
