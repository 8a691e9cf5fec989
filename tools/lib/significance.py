"""What runs tell of the difference between two settings, and what they do not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from math import ceil, log2, sqrt
from statistics import NormalDist

import numpy as np
from scipy.stats import binomtest, ttest_1samp
from scipy.stats import t as student
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from tools.lib.runs import Run

LEVEL, POWER, SEEDS = (
    0.05,
    0.8,
    3,
)  # of a test; of what it should find; the fewest that say something of a setting
TINY = 1e-9  # accuracies are shares of some thousand images
WOULD = "would show a difference as large four times in five"
BETTER, NOTHING_SHOWN, TOO_FEW = "better", "no difference shown", "too few seeds to say"


@dataclass(frozen=True)
class Verdict:
    """What can be said of two groups on one dataset.

    Attributes:
        difference: Accuracy of the first less that of the second.
        words: One of the three, of the first against the second, or of the second where the
            difference is negative.
        p: Probability of as large a difference where there is none, after Holm's correction for all
            pairs on the dataset.
        how: Which test.
        seeds: 95 % interval of the difference, for these test images and other seeds.
        images: The same for these models and other test images.
        needed: What would show a difference of this size; where seeds are too few, how many are
            not.
        pairs: How many the correction is for.
        single: Whether one of the two is a single run.
    """

    difference: float
    words: str = NOTHING_SHOWN
    p: float = float("nan")
    how: str = ""
    seeds: tuple[float, float] | None = None
    images: tuple[float, float] | None = None
    needed: str = ""
    pairs: int = 1
    single: bool = False


def interval(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
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


def seeds_needed(differences: Sequence[float] | np.ndarray, level: float = LEVEL) -> int:
    """Pairs of runs with which a paired t-test would find the mean difference four times in five.

    Guenther 1981, The American Statistician 35:243: the normal approximation and half a squared
    quantile. (The root finder of statsmodels does not converge where the difference is many
    standard deviations.)

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
    disagreement, difference = (
        (only_first + only_second) / images,
        abs(only_first - only_second) / images,
    )
    return ceil(
        (z * sqrt(disagreement) + z_power * sqrt(disagreement - difference**2)) ** 2 / difference**2
    )


def wrong(run: Run) -> np.ndarray:
    """Whether the run gets each test image wrong, shape (n,), bool."""
    predictions = run.read("data/predictions.npz")
    mistaken: np.ndarray = (
        predictions["test_probabilities"].argmax(axis=1) != predictions["test_labels"]
    )
    return mistaken


def by_images(
    first: Mapping[int, np.ndarray], second: Mapping[int, np.ndarray], level: float
) -> Verdict:
    """McNemar's exact test of two single models on the same test images (McNemar 1947, Psychometrika 12:153).

    The interval is exact too, given how many images only one of them gets wrong.

    Args:
        first: Whether the first model gets each image wrong, shape (n,), bool, by seed; the same
            for each.
        second: The same of the second.
        level: Of the test, for what is needed.
    """
    one, other = (next(iter(by_seed.values())) for by_seed in (first, second))
    only_first, only_second = int((one & ~other).sum()), int((other & ~one).sum())
    only_one = only_first + only_second
    if not only_one:
        return Verdict(0.0, p=1.0, how="both get the same images wrong")
    how = f"McNemar, {only_first} and {only_second} images that only one gets wrong"
    p = float(mcnemar([[0, only_first], [only_second, 0]], exact=True).pvalue)
    share = binomtest(only_second, only_one).proportion_ci(1 - LEVEL, method="exact")
    low, high = ((2 * end - 1) * only_one / len(one) for end in (share.low, share.high))
    needed = ""
    if only_first != only_second:
        images = images_needed(only_first, only_second, len(one), level)
        needed = f"some {float(f'{images:.2g}'):,.0f} images {WOULD}"
    difference = (only_second - only_first) / len(one)
    return Verdict(difference, p=p, how=how, images=(low, high), needed=needed)


def by_seeds(
    first: Mapping[int, np.ndarray], second: Mapping[int, np.ndarray], level: float
) -> Verdict:
    """A t-test of the differences between runs of the same seed; of their signs, where all are the same.

    Args:
        first: Whether the first setting gets each image wrong, shape (n,), bool, by seed; `SEEDS`
            or more in common.
        second: The same of the second.
        level: Of the test, for what is needed.
    """
    seeds = sorted(first.keys() & second.keys())
    differences = np.array([second[seed].mean() - first[seed].mean() for seed in seeds])
    mean = float(differences.mean())
    of_images = np.mean([second[seed].astype(int) - first[seed] for seed in seeds], axis=0)
    verdict = Verdict(mean, p=1.0, images=interval(of_images))
    if np.ptp(differences) < TINY:  # which no t-test can take
        how = f"signs of {len(seeds)} equal differences"
        if abs(mean) < TINY:
            return replace(verdict, how=how)
        return replace(
            verdict,
            p=2.0 ** (1 - len(seeds)),
            how=how,
            needed=f"{ceil(1 - log2(level))} such seeds would show it",
        )
    p, ends = float(ttest_1samp(differences, 0).pvalue), interval(differences)
    needed = f"{seeds_needed(differences, level)} seeds {WOULD}" if abs(mean) > TINY else ""
    return replace(verdict, p=p, how=f"paired t over {len(seeds)} seeds", seeds=ends, needed=needed)


def single(group: Sequence[Run]) -> bool:
    """Whether a group is one model: one run, or several that predict the same to the byte."""
    return len({run.predictions for run in group}) == 1


def common_seeds(first: Sequence[Run], second: Sequence[Run]) -> int:
    """How many seeds both groups have."""
    return len({run.seed for run in first} & {run.seed for run in second})


def too_few(first: Sequence[Run], second: Sequence[Run]) -> Verdict:
    """What can be said where less than `SEEDS` are in common: the difference of the mean accuracies."""
    means = [float(np.mean([run.scores["accuracy"] for run in group])) for group in (first, second)]
    needed = f"needs {SEEDS} that both have, found {common_seeds(first, second)}"
    return Verdict(means[0] - means[1], TOO_FEW, needed=needed)


def verdicts(groups: Sequence[Sequence[Run]]) -> dict[tuple[int, int], Verdict]:
    """Compares every two groups on the same dataset.

    Args:
        groups: Runs that differ in the seed alone.

    Returns:
        A verdict for each pair, by the indices of the two; nothing between datasets.
    """
    found: dict[tuple[int, int], Verdict] = {}
    for dataset in dict.fromkeys(group[0].dataset for group in groups):
        indices = [i for i, group in enumerate(groups) if group[0].dataset == dataset]
        pairs = {(i, j): (groups[i], groups[j]) for i, j in combinations(indices, 2)}
        alone = {pair for pair, both in pairs.items() if all(map(single, both))}
        tested = [
            pair for pair, both in pairs.items() if pair in alone or common_seeds(*both) >= SEEDS
        ]
        mistaken = {
            i: {run.seed: wrong(run) for run in groups[i]}
            for i in {i for pair in tested for i in pair}
        }
        found |= {pair: too_few(*both) for pair, both in pairs.items()}  # until it is tested, below
        if tested:
            test = {pair: by_images if pair in alone else by_seeds for pair in tested}
            p = [test[i, j](mistaken[i], mistaken[j], LEVEL).p for i, j in tested]
            corrected = multipletests(p, LEVEL, method="holm")[1]
            for (i, j), plain, holm in zip(tested, p, corrected, strict=True):
                level = LEVEL / sum(other >= plain for other in p)  # of this step of Holm's
                found[i, j] = replace(
                    test[i, j](mistaken[i], mistaken[j], level),
                    words=BETTER if holm < LEVEL else NOTHING_SHOWN,
                    p=float(holm),
                    pairs=len(tested),
                    single=(i, j) in alone and any(len(groups[k]) == 1 for k in (i, j)),
                )
    return found
