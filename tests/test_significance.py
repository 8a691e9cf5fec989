"""Intervals and tests against SciPy, statsmodels, published values and each other."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestIndPower
from statsmodels.stats.proportion import proportion_confint

from tools.lib import significance
from tools.lib.significance import ALPHA, Estimate, Runs

N = 400


def runs_with(counts: Sequence[int]) -> np.ndarray:
    """Runs that misclassify the first images, as many as given for each run."""
    return np.arange(N) >= np.array(counts)[:, None]


def random_runs(seed: int, count: int, n: int = N) -> np.ndarray:
    """Runs that differ on images of different difficulty."""
    rng = np.random.default_rng(seed)
    return rng.random((count, n)) >= rng.beta(0.2, 1, n) * rng.uniform(0.7, 1.3, (count, 1))


@pytest.mark.parametrize("seed", range(3))
def test_components_agree_with_two_way_anova(seed: int) -> None:
    correct = random_runs(seed, 4, 30)
    run, image = np.indices(correct.shape)
    frame = pd.DataFrame(
        {"y": correct.ravel().astype(float), "run": run.ravel(), "image": image.ravel()}
    )
    table = anova_lm(ols("y ~ C(run) + C(image)", frame).fit())
    squares = table["mean_sq"]
    found = significance.estimate(correct)
    assert found.runs[0].accuracy == pytest.approx(squares["C(run)"] / 30)
    assert found.runs[0].interaction == pytest.approx(squares["Residual"])
    assert found.per_image == pytest.approx(squares["C(image)"] / 4)
    variance, _ = found.over_both()
    combined = squares["C(run)"] + squares["C(image)"] - squares["Residual"]
    assert variance == pytest.approx(max(combined, squares["C(image)"]) / 120)


def test_mean_interval_agrees_with_students_t() -> None:
    """The variance of sampled runs is over both runs and images."""
    scores = np.random.default_rng(0).gamma(0.1, size=(1, N))
    expected = stats.t.interval(0.95, N - 1, scores.mean(), stats.sem(scores[0]))
    assert significance.mean_interval(scores) == pytest.approx(expected)
    correct = random_runs(0, 5)
    variance, df = significance.estimate(correct).over_both()
    expected = stats.t.interval(0.95, df, correct.mean(), np.sqrt(variance))
    assert significance.mean_interval(correct) == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_p_over_runs_agrees_with_welchs_t_test(seed: int) -> None:
    first, second = random_runs(seed, 4), random_runs(seed + 10, 6)
    expected = stats.ttest_ind(first.mean(axis=1), second.mean(axis=1), equal_var=False)
    _, df = significance.estimate(first, second).over_runs()
    assert df == pytest.approx(expected.df)
    assert significance.verdict(first, second, 0.005).p_here == pytest.approx(expected.pvalue)


def test_fixed_models_use_a_paired_t_test_over_images() -> None:
    first, second = random_runs(0, 2), random_runs(1, 1)
    expected = stats.ttest_rel(first.mean(axis=0), second[0])
    low, high, p = significance.difference_interval(first, second)
    assert (low, high) == pytest.approx((*expected.confidence_interval(),))
    assert p == pytest.approx(expected.pvalue)
    assert np.isnan(significance.verdict(first, second, 0.005).p_here)


def test_sample_requires_three_runs() -> None:
    assert [len(significance.estimate(random_runs(0, n)).runs) for n in (2, 3)] == [0, 1]


def test_new_images_widen_an_interval_over_runs() -> None:
    first, second = runs_with([20, 21, 20, 22, 20]), runs_with([22, 23, 22, 24, 23])
    verdict = significance.verdict(first, second, 0.005)
    assert verdict.p_here < 0.01
    assert verdict.low < 0 < verdict.high
    assert not verdict.better


def test_equal_differences_are_stronger_evidence() -> None:
    first = runs_with([20, 21, 22])
    equal, unequal = (
        significance.difference_interval(first, runs_with(counts))
        for counts in ([60, 61, 62], [60, 61, 64])
    )
    assert equal[2] < unequal[2] < 0.001


@pytest.mark.parametrize("counts", [[20], [20, 20], [20, 20, 20]])
def test_identical_models_do_not_differ(counts: list[int]) -> None:
    verdict = significance.verdict(runs_with(counts), runs_with(counts), 0.005)
    assert (verdict.difference, verdict.p, verdict.better) == (0, 1, False)
    assert verdict.low < 0 < verdict.high


def test_perfect_models_have_an_interval() -> None:
    low, high, p = significance.difference_interval(runs_with([0] * 3), runs_with([0] * 3))
    assert -0.02 < low < 0 < high < 0.02
    assert p == 1


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.filterwarnings("error")
def test_few_images_show_no_significant_difference(n: int) -> None:
    rng = np.random.default_rng(n)
    drawn = [rng.random((count, n)) < 0.5 for count in (1, 2, 3, 3, 5)]
    configurations = [np.ones((3, n), bool), np.zeros((3, n), bool), *drawn]
    for correct in configurations:
        low, high = significance.accuracy_interval(correct)
        assert 0 <= low <= correct.mean() <= high <= 1
        assert high - low > 0.3
    for verdict in significance.verdicts(configurations, 0.1).values():
        assert verdict.low <= verdict.difference <= verdict.high
        assert not verdict.better
        assert verdict.images_needed is None or verdict.images_needed > n


@pytest.mark.parametrize("seed", range(3))
def test_single_models_use_mcnemars_exact_test(seed: int) -> None:
    first, second = random_runs(seed, 1), random_runs(seed + 10, 1)
    only_first, only_second = (int((a & ~b).sum()) for a, b in ((first, second), (second, first)))
    expected = stats.binomtest(only_first, only_first + only_second).pvalue
    assert significance.difference_interval(first, second)[2] == pytest.approx(expected)


def test_newcombe_interval_matches_published_example() -> None:
    """Newcombe 1998, table III: 36, 12, 2 and 0 images of each kind."""
    first = np.repeat([True, True, False, False], [36, 12, 2, 0])
    second = np.repeat([True, False, True, False], [36, 12, 2, 0])
    assert significance.newcombe(first, second) == pytest.approx((0.0569, 0.3404), abs=5e-5)


def test_newcombe_interval_is_antisymmetric() -> None:
    (first,), (second,) = random_runs(0, 1), random_runs(1, 1)
    low, high = significance.newcombe(first, second)
    assert significance.newcombe(second, first) == pytest.approx((-high, -low))


def test_newcombe_interval_of_one_sided_disagreements() -> None:
    """All 10 disagreements on 10,000 images favor the first model."""
    first = np.ones(10_000, bool)
    second = first.copy()
    second[:10] = False
    low, high = significance.newcombe(first, second)
    assert 0 < low < 0.001 < high < 0.002


@pytest.mark.parametrize("errors", [0, 1, 40, N])
def test_accuracy_interval_of_one_model_is_wilson(errors: int) -> None:
    expected = proportion_confint(N - errors, N, method="wilson")
    assert significance.accuracy_interval(runs_with([errors])) == pytest.approx(expected, abs=2e-4)


@pytest.mark.parametrize("counts", [[45, 65], [0, 0, 1], [0, 3, 30], [1, 1, 1]])
def test_accuracy_intervals_stay_between_0_and_1(counts: list[int]) -> None:
    low, high = significance.accuracy_interval(runs_with(counts))
    assert 0 < low < 1 - np.mean(counts) / N < high <= 1


def test_accuracy_interval_reflects_variance_over_runs() -> None:
    widths = [
        np.ptp(significance.accuracy_interval(runs_with(counts)))
        for counts in ([40, 40, 40], [20, 40, 60])
    ]
    assert widths[1] > 2 * widths[0]


def test_holm_correction_agrees_with_statsmodels() -> None:
    configurations = [runs_with(c) for c in ([20, 24, 22], [23, 28, 25], [44, 45, 43])]
    found = significance.verdicts(configurations, 0.005)
    plain = [
        significance.difference_interval(configurations[i], configurations[j]) for i, j in found
    ]
    expected = multipletests([p for _, _, p in plain], method="holm")[1]
    assert [verdict.p for verdict in found.values()] == pytest.approx(expected)
    assert [(v.low, v.high) for v in found.values()] == [ends[:2] for ends in plain]


def test_p_values_over_runs_are_corrected_separately() -> None:
    """They hold for these images only, a weaker statement."""
    configurations = [runs_with([20]), runs_with([30]), runs_with([40, 42, 43])]
    found = [*significance.verdicts(configurations, 0.005).values()]
    alone = significance.verdict(configurations[0], configurations[2], 0.005).p_here
    assert np.isnan(found[0].p_here)
    assert found[1].p_here == pytest.approx(2 * alone)


def only_runs(count: int, accuracy: float) -> Estimate:
    """A difference on so many images that its uncertainty comes from the runs alone."""
    return Estimate(0.0, 10**9, 0.0, 0.0, (Runs(count, accuracy, 0.0), Runs(count, accuracy, 0.0)))


def test_runs_needed_agree_with_statsmodels() -> None:
    """The variance is its upper confidence bound."""
    bound = 1e-4 * 9 / stats.chi2.ppf(0.2, 9)
    needed, _ = significance.sizes_needed(only_runs(10, 1e-4), 0.01)
    expected = TTestIndPower().solve_power(0.01 / bound**0.5, alpha=ALPHA, power=0.8)
    assert needed == pytest.approx(expected, abs=1.5)


def test_fewer_runs_raise_the_number_needed() -> None:
    """The upper confidence bound of the variance is then higher."""
    needed = [significance.sizes_needed(only_runs(n, 1e-4), 0.01)[0] or 0 for n in (3, 5, 20)]
    assert needed == sorted(needed, reverse=True)


def test_images_needed_give_80_percent_power() -> None:
    """Two single models are compared on simulated test sets."""
    rng = np.random.default_rng(0)
    first, second = np.ones((2, 1, 20_000), bool)
    first[0, :400], second[0, 400:1000] = False, False
    _, needed = significance.sizes_needed(significance.estimate(first, second), 0.01)
    assert needed
    draws = rng.multinomial(needed, [0.02, 0.03, 0.95], 1_000)[:, :2]
    p = np.array([stats.binomtest(int(a), int(a + b)).pvalue for a, b in draws])
    assert 0.75 < np.mean(p < ALPHA) < 0.9


def test_no_number_of_runs_makes_up_for_few_images() -> None:
    """No number of runs is then given."""
    first, second = random_runs(0, 3), random_runs(1, 3)
    runs, images = significance.sizes_needed(significance.estimate(first, second), 0.001)
    assert runs is None
    assert images is None or images > N


def test_stricter_level_requires_more_runs_and_images() -> None:
    found = significance.estimate(random_runs(0, 10, 4_000), random_runs(1, 10, 4_000))
    loose, strict = (significance.sizes_needed(found, 0.1, alpha) for alpha in (0.05, 0.005))
    assert [a < b for a, b in zip(loose, strict, strict=True) if a and b] == [True, True]
