"""Numbers with their uncertainty: bootstrap and Wilson intervals, permutation tests."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import ndtri

from hooke.base.errors import ConfigError, DataError, ShapeError
from hooke.base.seeds import numpy_generator

Values = Sequence[Any] | np.ndarray | torch.Tensor
Alternative = Literal["two-sided", "greater", "less"]

_BLOCK = 1 << 20  # resampled numbers held at once, so that memory does not grow with the number of resamples


@dataclass(frozen=True)
class Estimate:
    """A number, its interval, and how both were found.

    Args:
        value: the number; NaN when undefined.
        low, high: the interval; NaN when undefined.
        n: how many values it rests on.
        level: the interval's coverage, such as 0.95.
        method: how the interval was made.
        reason: why something is NaN; `None` when nothing is.
    """

    value: float
    low: float
    high: float
    n: int
    level: float
    method: str
    reason: str | None = None

    def __str__(self) -> str:
        if math.isnan(self.value):
            return f"undefined ({self.reason})"
        if math.isnan(self.low):
            return f"{self.value:.4g} (n={self.n}; no interval: {self.reason})"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}] (n={self.n})"


@dataclass(frozen=True)
class PValue:
    """The result of a permutation test.

    Args:
        p: the share of relabellings at least as extreme as what was observed; NaN when undefined.
        observed: the statistic of the data.
        n: how many values both groups hold together.
        n_permutations: how many relabellings were looked at.
        exact: every relabelling was looked at, so `p` has no sampling error.
        alternative: "two-sided", "greater" or "less".
        reason: why `p` is NaN; `None` when it is not.
    """

    p: float
    observed: float
    n: int
    n_permutations: int
    exact: bool
    alternative: str
    reason: str | None = None


def bootstrap(
    values: Values,
    statistic: Callable[..., Any] = np.mean,
    *,
    n_resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Estimate:
    """A statistic of independent values with its percentile bootstrap interval (Efron 1979).

    Args:
        values: one number per independent unit. Resample the unit of independence: documents, not their tokens.
        statistic: array -> number. With an `axis` argument, as NumPy's have, it is called on many resamples at once.
        n_resamples: how many resamples.
        level: coverage of the interval.
        seed: of the resampling.

    Returns:
        The statistic and its interval. No values: NaN with a reason. One value: the value, no interval, and a reason. A
        statistic that is undefined on some resample: no interval, and a reason.

    Raises:
        DataError: a value is NaN or infinite.
        ShapeError: the values are not one-dimensional.

    Example:
        >>> bootstrap([1, 2, 3, 4]).value
        2.5
    """
    _require_level(level)
    if n_resamples < 1:
        raise ConfigError(f"n_resamples is {n_resamples}; expected at least 1")
    data = _vector(values, "values")
    method = f"percentile bootstrap, {n_resamples} resamples"
    nan = math.nan
    if data.size == 0:
        return Estimate(nan, nan, nan, 0, level, method, "no values")
    value = float(statistic(data))
    if math.isnan(value):
        return Estimate(nan, nan, nan, data.size, level, method, "the statistic is undefined on these values")
    if data.size == 1:
        return Estimate(value, nan, nan, 1, level, method, "one value says nothing about its spread")
    draws = _resampled(data, statistic, n_resamples, seed)
    n_undefined = int(np.isnan(draws).sum())
    if n_undefined:
        reason = f"the statistic is undefined on {n_undefined} of {n_resamples} resamples"
        return Estimate(value, nan, nan, data.size, level, method, reason)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high), data.size, level, method)


def wilson(successes: int, n: int, level: float = 0.95) -> Estimate:
    """A proportion with its Wilson score interval (Wilson 1927), which holds for few trials and near 0 and 1.

    Raises:
        DataError: fewer than 0 or more than `n` successes.

    Example:
        >>> estimate = wilson(0, 10)
        >>> estimate.value, estimate.low, round(estimate.high, 4)
        (0.0, 0.0, 0.2775)
    """
    _require_level(level)
    if not 0 <= successes <= n:
        raise DataError(f"{successes} successes of {n} trials; expected between 0 and {n}")
    if n == 0:
        return Estimate(math.nan, math.nan, math.nan, 0, level, "wilson", "no trials")
    z = float(ndtri((1 + level) / 2))
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low = 0.0 if successes == 0 else max(0.0, centre - half)  # exact at the ends, not 1e-17
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Estimate(share, low, high, n, level, "wilson")


def difference_of_means(a: np.ndarray, b: np.ndarray) -> float:
    """Mean of `a` minus mean of `b`."""
    return float(np.mean(a) - np.mean(b))


def permutation_test(
    a: Values,
    b: Values,
    *,
    statistic: Callable[[np.ndarray, np.ndarray], float] = difference_of_means,
    n_permutations: int = 2000,
    seed: int = 0,
    alternative: Alternative = "two-sided",
) -> PValue:
    """Test whether two groups of independent values differ, by relabelling them.

    When there are at most `n_permutations` ways to split the values, all are tried and `p` is exact. Otherwise random
    splits are drawn and `p` is (1 + count) / (1 + n_permutations): valid, and never 0 (Phipson & Smyth 2010).
    "two-sided" compares absolute values, so the statistic should be 0 when the groups are alike.

    Returns:
        `p` with the observed statistic; NaN with a reason when a group is empty.

    Raises:
        DataError: a value is NaN or infinite, or the statistic is.

    Example:
        >>> permutation_test([5, 6, 7], [1, 2, 3]).p     # 2 of the 20 splits are as extreme
        0.1
    """
    if n_permutations < 1:
        raise ConfigError(f"n_permutations is {n_permutations}; expected at least 1")
    if alternative not in ("two-sided", "greater", "less"):
        raise ConfigError(f"alternative is {alternative!r}; expected 'two-sided', 'greater' or 'less'")
    first, second = _vector(a, "a"), _vector(b, "b")
    pooled = np.concatenate([first, second])
    if first.size == 0 or second.size == 0:
        return PValue(math.nan, math.nan, pooled.size, 0, False, alternative, "a group is empty")
    n_splits = math.comb(pooled.size, first.size)
    exact = n_splits <= n_permutations
    splits = _all_splits(pooled, first.size) if exact else _random_splits(pooled, first.size, n_permutations, seed)
    observed = float(statistic(first, second))
    drawn = np.array([float(statistic(x, y)) for x, y in splits])
    if math.isnan(observed) or np.isnan(drawn).any():
        raise DataError("the statistic is NaN on some split of the values; use one that every split defines")
    count = int(_as_extreme(drawn, observed, alternative).sum())
    p = count / n_splits if exact else (1 + count) / (1 + n_permutations)
    return PValue(p, observed, pooled.size, len(drawn), exact, alternative)


def _resampled(data: np.ndarray, statistic: Callable[..., Any], n_resamples: int, seed: int) -> np.ndarray:
    rng = numpy_generator(seed, "bootstrap")
    at_once = _takes_axis(statistic)
    rows = max(1, _BLOCK // data.size)
    draws = np.empty(n_resamples)
    for start in range(0, n_resamples, rows):
        stop = min(start + rows, n_resamples)
        sample = data[rng.integers(data.size, size=(stop - start, data.size))]
        draws[start:stop] = statistic(sample, axis=-1) if at_once else [float(statistic(row)) for row in sample]
    return draws


def _takes_axis(statistic: Callable[..., Any]) -> bool:
    try:
        return "axis" in inspect.signature(statistic).parameters
    except (TypeError, ValueError):  # some built-in functions have no signature
        return False


def _as_extreme(drawn: np.ndarray, observed: float, alternative: str) -> np.ndarray:
    """Which draws are at least as extreme; equal but for rounding counts, or an exact test would miss its own split."""
    slack = 1e-9 * max(float(np.abs(drawn).max()), abs(observed))
    if alternative == "greater":
        return drawn >= observed - slack
    if alternative == "less":
        return drawn <= observed + slack
    return np.abs(drawn) >= abs(observed) - slack


def _all_splits(pooled: np.ndarray, n_first: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for chosen in itertools.combinations(range(pooled.size), n_first):
        mask = np.zeros(pooled.size, dtype=bool)
        mask[list(chosen)] = True
        yield pooled[mask], pooled[~mask]


def _random_splits(
    pooled: np.ndarray, n_first: int, n_permutations: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rng = numpy_generator(seed, "permutation_test")
    for _ in range(n_permutations):
        mixed = rng.permutation(pooled)
        yield mixed[:n_first], mixed[n_first:]


def _vector(values: Values, name: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ShapeError(
            f"{name} has shape {list(array.shape)}; expected one dimension, one number per independent unit"
        )
    n_bad = int((~np.isfinite(array)).sum())
    if n_bad:
        raise DataError(
            f"{n_bad} of {array.size} {name} are NaN or infinite; leave them out and say so, or find what made them"
        )
    return array


def _require_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level is {level}; expected a share between 0 and 1, such as 0.95")
