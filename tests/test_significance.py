"""What is said of two settings, against scipy, formulas and simulations."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem
from scipy import stats
from statsmodels.stats.power import TTestPower

from tools.lib import significance
from tools.lib.runs import Run
from tools.lib.significance import BETTER, NOTHING_SHOWN, TOO_FEW

LABELS = np.zeros(400, np.uint8)


class Bench:
    """Makes runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(
        self,
        wrong: Sequence[int] | np.ndarray,
        seed: int = 0,
        kind: str = "mlp",
        dataset: str = "tiny",
    ) -> Run:
        """A run of 400 test images of two classes that gets those of the given indexes wrong."""
        mistaken = np.isin(np.arange(400), wrong)
        path = self.folder / f"{len(list(self.folder.iterdir()))}/data/predictions.npz"
        path.parent.mkdir(parents=True)
        np.savez(
            path,
            test_labels=LABELS,
            test_probabilities=np.stack([~mistaken, mistaken], axis=1).astype("f4"),
        )
        return Run(
            name=f"{kind}-{seed}",
            dataset=dataset,
            images=dataset,
            seed=seed,
            params={"model.kind": kind},
            scores={"accuracy": float(1 - mistaken.mean())},
            predictions=str(sorted(np.flatnonzero(mistaken))),
            files=DirFileSystem(str(path.parents[1]), LocalFileSystem()),
        )

    def group(self, counts: Sequence[int], kind: str = "mlp", dataset: str = "tiny") -> list[Run]:
        """A run per seed with as many wrong as told."""
        return [self.run(range(count), seed, kind, dataset) for seed, count in enumerate(counts)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.parametrize("seed", range(5))
def test_an_interval_is_students_as_scipy_has_it(seed: int) -> None:
    values = np.random.default_rng(seed).normal(0.9, 0.01, 2 + seed)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert significance.interval([*values]) == pytest.approx((expected.low, expected.high))


def test_an_interval_of_equal_values_is_the_value() -> None:
    assert significance.interval([0.75, 0.75]) == (0.75, 0.75)


@pytest.mark.parametrize("seed", range(5))
def test_two_single_models_are_compared_by_mcnemars_exact_test(bench: Bench, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = (rng.choice(400, rng.integers(10, 60), replace=False) for _ in range(2))
    (verdict,) = significance.verdicts(
        [[bench.run(one)], [bench.run(other, kind="linear")]]
    ).values()
    only_first, only_second = len({*one} - {*other}), len({*other} - {*one})
    p = stats.binomtest(only_first, only_first + only_second, 0.5).pvalue
    assert verdict.p == pytest.approx(p)
    assert verdict.difference == pytest.approx((len(other) - len(one)) / 400)
    share = stats.binomtest(only_second, only_first + only_second).proportion_ci(
        0.95, method="exact"
    )
    ends = [(2 * end - 1) * (only_first + only_second) / 400 for end in (share.low, share.high)]
    assert verdict.images == pytest.approx(tuple(ends))
    assert verdict.images
    assert (verdict.images[0] > 0 or verdict.images[1] < 0) == (p < 0.05)
    assert verdict.seeds is None
    assert verdict.single
    needed = (
        significance.images_needed(only_first, only_second, 400) if only_first != only_second else 0
    )
    told = float(verdict.needed.split()[1].replace(",", "")) if verdict.needed else 0
    assert told == pytest.approx(needed, rel=0.05)
    assert verdict.how == f"McNemar, {only_first} and {only_second} images that only one gets wrong"
    assert verdict.words == (BETTER if p < 0.05 else NOTHING_SHOWN)


def test_models_that_err_alike_are_not_told_apart(bench: Bench) -> None:
    (verdict,) = significance.verdicts(
        [[bench.run([1, 2])], [bench.run([1, 2], kind="linear")]]
    ).values()
    assert (verdict.words, verdict.difference, verdict.p, verdict.needed) == (
        NOTHING_SHOWN,
        0,
        1,
        "",
    )
    assert (verdict.how, verdict.images) == ("both get the same images wrong", None)


def test_several_seeds_with_the_same_predictions_are_one_model(bench: Bench) -> None:
    same, other = (
        [bench.run([1, 2, 3], seed) for seed in range(5)],
        [bench.run([3, 4], 0, "linear")],
    )
    (verdict,) = significance.verdicts([same, other]).values()
    assert verdict.how.startswith("McNemar")


@pytest.mark.parametrize("seed", range(5))
def test_seeds_are_compared_in_pairs_by_scipys_t_test(bench: Bench, seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, other = rng.integers(20, 40, 6), rng.integers(20, 40, 6)
    (verdict,) = significance.verdicts(
        [bench.group([*one]), bench.group([*other], "linear")]
    ).values()
    expected = stats.ttest_rel(-one / 400, -other / 400)
    assert verdict.p == pytest.approx(expected.pvalue)
    assert verdict.difference == pytest.approx(np.mean(other - one) / 400)
    assert verdict.seeds == pytest.approx((*expected.confidence_interval(0.95),))
    of_images = [[(np.arange(400) < count) for count in counts] for counts in (one, other)]
    over_images = stats.ttest_rel(np.mean(of_images[1], axis=0), np.mean(of_images[0], axis=0))
    assert verdict.images == pytest.approx((*over_images.confidence_interval(0.95),))
    assert verdict.how == "paired t over 6 seeds"
    assert not verdict.single


def test_a_difference_that_every_seed_shows_may_be_that_of_a_few_images(bench: Bench) -> None:
    one, other = bench.group([20, 21, 20, 22, 20]), bench.group([22, 23, 22, 24, 23], "linear")
    (verdict,) = significance.verdicts([one, other]).values()
    assert verdict.words == BETTER
    assert verdict.seeds
    assert verdict.seeds[0] > 0
    assert verdict.images
    assert verdict.images[0] < 0 < verdict.images[1]


def test_only_seeds_that_both_have_are_paired(bench: Bench) -> None:
    one, other = bench.group([20, 22, 21, 40]), bench.group([30, 33, 31], "linear")
    (verdict,) = significance.verdicts([one, other]).values()
    assert verdict.how == "paired t over 3 seeds"
    assert verdict.difference == pytest.approx((10 + 11 + 10) / 3 / 400)
    assert verdict.words == BETTER


@pytest.mark.parametrize(("seeds", "words"), [(3, NOTHING_SHOWN), (5, NOTHING_SHOWN), (6, BETTER)])
def test_differences_all_alike_are_compared_by_their_signs(
    bench: Bench, seeds: int, words: str
) -> None:
    one, other = ([count + seed for seed in range(seeds)] for count in (20, 30))
    (verdict,) = significance.verdicts([bench.group(one), bench.group(other, "linear")]).values()
    assert verdict.p == stats.binomtest(seeds, seeds, 0.5).pvalue
    assert (verdict.words, verdict.needed, verdict.seeds) == (
        words,
        "6 such seeds would show it",
        None,
    )


def test_equal_accuracies_of_different_models_are_no_difference(bench: Bench) -> None:
    one = [bench.run(range(10 + seed), seed) for seed in range(3)]
    other = [bench.run(range(100, 110 + seed), seed, "linear") for seed in range(3)]
    (verdict,) = significance.verdicts([one, other]).values()
    assert (verdict.words, verdict.p, verdict.needed) == (NOTHING_SHOWN, 1, "")


@pytest.mark.parametrize("counts", [[20, 22], [20]])
def test_two_seeds_are_too_few_whatever_the_difference(bench: Bench, counts: list[int]) -> None:
    (verdict,) = significance.verdicts(
        [bench.group([2, 1, 2]), bench.group(counts, "linear")]
    ).values()
    assert verdict.words == TOO_FEW
    assert np.isnan(verdict.p)
    assert verdict.needed == f"needs 3 that both have, found {len(counts)}"


def test_nothing_is_said_between_data_sets(bench: Bench) -> None:
    groups = [
        bench.group([1, 2, 3], kind, dataset)
        for dataset in ("a", "b")
        for kind in ("mlp", "linear")
    ]
    assert [*significance.verdicts(groups)] == [(0, 1), (2, 3)]
    assert significance.verdicts([groups[0], groups[2]]) == {}


def test_more_pairs_ask_for_smaller_probabilities_by_holms_steps(bench: Bench) -> None:
    one, two = bench.group([20, 24, 22, 25, 21]), bench.group([24, 25, 25, 27, 26], "linear")
    (alone,) = significance.verdicts([one, two]).values()
    three = bench.group([23, 23, 26, 24, 25], "cnn")
    found = [*significance.verdicts([one, two, three]).values()]
    apart = [
        significance.verdicts([a, b])[0, 1] for a, b in ((one, two), (one, three), (two, three))
    ]
    plain = [verdict.p for verdict in apart]
    order, running, expected = np.argsort(plain), 0.0, [0.0] * 3
    for step, k in enumerate(order):
        running = max(running, min(1, (3 - step) * plain[k]))
        expected[k] = running
    assert [v.p for v in found] == pytest.approx(expected)
    needed = [[int(v.needed.split()[0]) for v in each] for each in (apart, found)]
    assert (
        needed[1][order[-1]] == needed[0][order[-1]]
    )  # the last step is at the level of a single pair
    assert needed[1][order[0]] > needed[0][order[0]]
    assert alone.p < found[0].p
    assert [v.pairs for v in found] == [3, 3, 3]
    elsewhere = [bench.group([20, 24, 22], kind, "b") for kind in ("mlp", "linear")]
    assert [*significance.verdicts([*elsewhere, one, two, three]).values()][
        1:
    ] == found  # a family for each dataset


def test_other_seeds_are_no_pairs(bench: Bench) -> None:
    others = [bench.run(range(9), seed, "linear") for seed in range(5, 10)]
    (verdict,) = significance.verdicts([bench.group([2, 1, 2, 3, 1]), others]).values()
    assert (verdict.words, verdict.needed) == (TOO_FEW, "needs 3 that both have, found 0")


def test_more_pairs_need_more_seeds_and_images() -> None:
    assert significance.seeds_needed([1.0, 2.0, 0.0], 0.01) > significance.seeds_needed(
        [1.0, 2.0, 0.0]
    )
    assert significance.images_needed(20, 40, 1_000, 0.01) > significance.images_needed(
        20, 40, 1_000
    )


def test_the_seeds_needed_find_the_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    sample = [-1.0, 0.5, 1.0, 2.0, 1.5]
    effect = np.mean(sample) / np.std(sample, ddof=1)
    needed = significance.seeds_needed(sample)
    found = [
        (stats.ttest_1samp(rng.normal(effect, 1, (4_000, count)), 0, axis=1).pvalue < 0.05).mean()
        for count in (needed - 1, needed)
    ]
    assert found[0] < 0.82
    assert found[1] > 0.78
    assert significance.seeds_needed([0.1, 0.1001]) == 3


@pytest.mark.parametrize("level", [0.05, 0.005])
@pytest.mark.parametrize("effect", np.random.default_rng(0).uniform(0.1, 1.5, 5))
def test_the_seeds_needed_are_those_of_statsmodels_give_or_take_one(
    effect: float, level: float
) -> None:
    differences = effect + np.array([-1.0, 1.0]) / 2**0.5
    assert np.std(differences, ddof=1) == pytest.approx(1)
    assert significance.seeds_needed(differences, level) == pytest.approx(
        max(3, TTestPower().solve_power(effect, alpha=level, power=0.8)), abs=1.5
    )


def test_the_images_needed_find_the_difference_four_times_in_five() -> None:
    rng = np.random.default_rng(0)
    needed = significance.images_needed(20, 40, 1_000)
    draws = rng.multinomial(needed, [0.02, 0.04, 0.94], 2_000)[:, :2]
    p = [stats.binomtest(int(a), int(a + b), 0.5).pvalue for a, b in draws]
    assert 0.74 < np.mean(np.array(p) < 0.05) < 0.86
