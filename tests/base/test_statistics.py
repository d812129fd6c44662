from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from hooke.base.errors import ConfigError, DataError, ShapeError
from hooke.base.statistics import bootstrap, permutation_test, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe (1998), Statistics in Medicine 17:857, table I, method 3
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_matches_published_intervals(successes, n, low, high):
    estimate = wilson(successes, n)
    assert estimate.value == successes / n and estimate.n == n and estimate.reason is None
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (low, high)


@given(
    st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.5, 0.9, 0.99])
)
def test_wilson_is_the_root_of_the_score_test_and_scipy_agrees(pair, level):
    successes, n = pair
    estimate = wilson(successes, n, level)
    other = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
    assert estimate.low == pytest.approx(other.low, abs=1e-12) and estimate.high == pytest.approx(other.high, abs=1e-12)
    z = stats.norm.ppf((1 + level) / 2)
    for bound in (estimate.low, estimate.high):
        if 0 < bound < 1:
            assert abs(estimate.value - bound) == pytest.approx(z * math.sqrt(bound * (1 - bound) / n), rel=1e-6)
    mirror = wilson(n - successes, n, level)
    assert mirror.low == pytest.approx(1 - estimate.high, abs=1e-12)
    assert 0 <= estimate.low <= estimate.value <= estimate.high <= 1


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5])
def test_wilson_covers_on_average_over_sample_sizes(share):
    sizes = range(30, 70)  # exact binomial sum; coverage swings with n, its mean is near the level
    covered = []
    for n in sizes:
        inside = [wilson(k, n).low <= share <= wilson(k, n).high for k in range(n + 1)]
        covered.append(float(stats.binom.pmf(np.arange(n + 1), n, share)[inside].sum()))
    assert 0.935 < np.mean(covered) < 0.975


def test_wilson_of_nothing_is_undefined_and_says_why():
    estimate = wilson(0, 0)
    assert all(math.isnan(x) for x in (estimate.value, estimate.low, estimate.high))
    assert estimate.reason == "no trials" and str(estimate) == "undefined (no trials)"


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(DataError, match="successes of"):
        wilson(successes, n)


def test_bootstrap_matches_the_exact_bootstrap_distribution():
    values = [0.0, 1.0, 5.0]
    means = np.sort([np.mean(draw) for draw in itertools.product(values, repeat=3)])  # all 27 resamples
    estimate = bootstrap(values, level=0.8, n_resamples=20_000)
    # the quantiles of the discrete distribution: 10 % and 90 % fall inside the steps at these means
    assert estimate.low == pytest.approx(np.quantile(means, 0.1, method="inverted_cdf"))
    assert estimate.high == pytest.approx(np.quantile(means, 0.9, method="inverted_cdf"))
    assert estimate.value == 2.0 and estimate.n == 3


def test_bootstrap_interval_of_a_mean_covers_the_truth():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(300):
        estimate = bootstrap(rng.normal(3.0, 2.0, size=60), n_resamples=400, seed=trial)
        hits += estimate.low <= 3.0 <= estimate.high
    assert 0.90 <= hits / 300 <= 0.98


def test_bootstrap_width_is_that_of_the_normal_theory():
    values = np.random.default_rng(1).normal(size=2000)
    estimate = bootstrap(values, n_resamples=4000)
    theory = 2 * 1.96 * values.std() / math.sqrt(2000)
    assert estimate.high - estimate.low == pytest.approx(theory, rel=0.06)


def test_bootstrap_gives_the_same_with_and_without_axis():
    values = np.random.default_rng(2).exponential(size=30)
    with_axis = bootstrap(values, np.median, n_resamples=300, seed=5)
    without = bootstrap(values, lambda x: np.median(x), n_resamples=300, seed=5)
    assert with_axis == without
    assert bootstrap(torch.from_numpy(values), np.median, n_resamples=300, seed=5) == with_axis
    assert bootstrap(values, np.median, n_resamples=300, seed=6) != with_axis


def test_bootstrap_says_why_it_is_undefined():
    empty = bootstrap([])
    assert math.isnan(empty.value) and math.isnan(empty.low) and empty.reason == "no values" and empty.n == 0
    one = bootstrap([2.0])
    assert one.value == 2.0 and math.isnan(one.low) and math.isnan(one.high) and "one value" in one.reason
    assert "no interval" in str(one)


def test_bootstrap_of_a_statistic_that_is_sometimes_undefined():
    def spread_ratio(x):
        return x.mean() / x.std() if x.std() > 0 else math.nan

    estimate = bootstrap([0.0, 0.0, 1.0], spread_ratio, n_resamples=200)
    assert estimate.value == pytest.approx((1 / 3) / math.sqrt(2 / 9))
    assert math.isnan(estimate.low) and "undefined on" in estimate.reason
    constant = bootstrap([1.0, 1.0], spread_ratio)
    assert math.isnan(constant.value) and "undefined on these values" in constant.reason


def test_bootstrap_of_equal_values_is_a_point():
    estimate = bootstrap([4.0] * 5)
    assert (estimate.value, estimate.low, estimate.high) == (4.0, 4.0, 4.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_undefined_values_are_refused_not_dropped(bad):
    with pytest.raises(DataError, match="1 of 3 values are NaN or infinite"):
        bootstrap([1.0, bad, 2.0])
    with pytest.raises(DataError, match="1 of 2 b are NaN"):
        permutation_test([1.0], [bad, 2.0])


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="level"):
        bootstrap([1.0, 2.0], level=95.0)
    with pytest.raises(ConfigError, match="n_resamples"):
        bootstrap([1.0, 2.0], n_resamples=0)
    with pytest.raises(ShapeError, match="one dimension"):
        bootstrap(np.zeros((2, 2)))


def test_permutation_test_is_exact_when_few_splits_exist():
    result = permutation_test([5, 6, 7], [1, 2, 3])
    assert result.exact and result.n_permutations == math.comb(6, 3) and result.p == 2 / 20
    assert result.observed == 4.0 and result.n == 6
    assert permutation_test([5, 6, 7], [1, 2, 3], alternative="greater").p == 1 / 20
    assert permutation_test([5, 6, 7], [1, 2, 3], alternative="less").p == 1.0


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=4), st.lists(st.integers(-50, 50), min_size=2, max_size=4))
def test_exact_permutation_test_matches_scipy_and_brute_force(a, b):
    def scipys(alternative):
        data = (np.array(a), np.array(b))
        return stats.permutation_test(
            data, lambda x, y: np.mean(x) - np.mean(y), n_resamples=10**6, vectorized=False, alternative=alternative
        ).pvalue

    assert permutation_test(a, b, alternative="greater").p == pytest.approx(scipys("greater"))
    assert permutation_test(a, b, alternative="less").p == pytest.approx(scipys("less"))
    # two-sided: scipy doubles the smaller tail, we compare sizes; in whole numbers, so that ties are exact
    total, count, splits = sum(a + b), 0, 0
    for chosen in itertools.combinations(range(len(a) + len(b)), len(a)):
        first = sum((a + b)[i] for i in chosen)
        count += abs(first * len(b) - (total - first) * len(a)) >= abs(sum(a) * len(b) - sum(b) * len(a))
        splits += 1
    assert permutation_test(a, b).p == count / splits


def test_random_permutations_come_close_to_the_exact_answer_and_are_never_zero():
    a, b = np.arange(8.0) + 2.1, np.arange(8.0)
    exact = permutation_test(a, b, n_permutations=20_000)
    drawn = permutation_test(a, b, n_permutations=5000)
    assert exact.exact and not drawn.exact
    assert drawn.p == pytest.approx(exact.p, abs=4 * math.sqrt(exact.p * (1 - exact.p) / 5000))
    far = permutation_test(a + 100, b, n_permutations=99)
    assert far.p == 1 / 100


def test_p_is_uniform_when_the_groups_are_alike():
    rng = np.random.default_rng(3)
    p = np.array([permutation_test(*rng.normal(size=(2, 12)), n_permutations=99, seed=i).p for i in range(300)])
    assert stats.kstest(p, "uniform").statistic < 0.09  # 1 % critical value at n = 300 is 0.094
    assert (p <= 0.05).mean() == pytest.approx(0.05, abs=0.04)


def test_p_is_small_when_they_are_not():
    rng = np.random.default_rng(4)
    assert permutation_test(rng.normal(2, 1, 30), rng.normal(0, 1, 30)).p < 0.002


def test_an_empty_group_is_undefined_and_a_nan_statistic_an_error():
    result = permutation_test([], [1.0])
    assert math.isnan(result.p) and math.isnan(result.observed) and result.reason == "a group is empty"
    with pytest.raises(DataError, match="statistic is NaN"):
        permutation_test([1.0, 2.0], [3.0], statistic=lambda x, y: math.nan)


def test_a_custom_statistic():
    result = permutation_test(
        [1, 9], [4, 5, 6], statistic=lambda x, y: float(np.ptp(x) - np.ptp(y)), alternative="greater"
    )
    assert result.observed == 6.0 and result.p == 1 / 10
