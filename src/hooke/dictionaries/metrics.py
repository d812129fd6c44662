"""Scores of reconstructions, streamed in float64 and bounded memory, each with an interval.

All are ratios of sums over tokens (sheet: one global mean, ratio of totals; never a mean of ratios of batches). Sums
are kept for a fixed number of groups; leaving out one group at a time gives the interval (delete-a-group jackknife),
so pass the document of each row as its group and the interval knows that tokens of one text are alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Shaped
from scipy.special import stdtrit
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, ShapeError
from hooke.base.shapes import require_finite, require_floating, require_shape
from hooke.base.statistics import Estimate
from hooke.dictionaries.latents import Latents

N_GROUPS = 32
_METHOD = "delete-a-group jackknife"
LEVEL = 0.95


class GroupedSums:
    """Float64 sums of some named columns, kept apart for `N_GROUPS` groups of rows.

    Example:
        >>> sums = GroupedSums()
        >>> sums.add(torch.tensor([0, 1]), loss=torch.tensor([1.0, 3.0]), n=torch.ones(2))
        >>> sums.estimate(lambda s: s["loss"] / s["n"], n=2).value
        2.0
    """

    def __init__(self) -> None:
        self.columns: dict[str, Tensor] = {}

    def add(self, groups: Int[Tensor, " row"], **columns: Tensor) -> None:
        """Add each row of each column (`[row]` or `[row, d]`) to the sum of its group (taken modulo `N_GROUPS`)."""
        groups = (groups % N_GROUPS).cpu()
        for name, values in columns.items():
            values = values.detach().cpu().double()
            if name not in self.columns:
                self.columns[name] = torch.zeros(N_GROUPS, *values.shape[1:], dtype=torch.float64)
            self.columns[name].index_add_(0, groups, values)

    def total(self, name: str) -> Tensor:
        """The sum of a column over all rows."""
        return self.columns[name].sum(dim=0)

    def estimate(
        self, statistic: Callable[[dict[str, Tensor]], Tensor], *, n: int, undefined: str = "its denominator is 0"
    ) -> Estimate:
        """A function of the sums with its jackknife interval; NaN with the reason where it is not finite.

        Args:
            statistic: from sums, by column, to one number.
            n: how many tokens it rests on.
            undefined: why, in words, it would not be finite.
        """
        totals = {name: column.sum(dim=0) for name, column in self.columns.items()}
        value = float(statistic(totals)) if totals else math.nan
        if not math.isfinite(value):
            return Estimate(math.nan, math.nan, math.nan, n, LEVEL, _METHOD, undefined if n else "no tokens")
        present = [g for g in range(N_GROUPS) if any(bool((c[g] != 0).any()) for c in self.columns.values())]
        method = f"{_METHOD}, {len(present)} groups"
        if len(present) < 2:
            return Estimate(value, math.nan, math.nan, n, LEVEL, method, "all tokens are in one group")
        without = [{name: totals[name] - column[g] for name, column in self.columns.items()} for g in present]
        left = torch.tensor([float(statistic(sums)) for sums in without], dtype=torch.float64)
        if not bool(torch.isfinite(left).all()):
            return Estimate(value, math.nan, math.nan, n, LEVEL, method, f"without some group, {undefined}")
        count = len(present)
        error = math.sqrt((count - 1) / count * float((left - left.mean()).square().sum()))
        half = float(stdtrit(count - 1, (1 + LEVEL) / 2)) * error
        return Estimate(value, value - half, value + half, n, LEVEL, method)


class ReconstructionMetrics:
    """Stream rows in, read scores out.

    Example:
        >>> metrics = ReconstructionMetrics()
        >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> metrics.update(x, x)
        >>> metrics.scores()["fvu"].value
        0.0
    """

    def __init__(self) -> None:
        self.n = 0
        self._sums = GroupedSums()
        self._shift: Tensor | None = None
        self._counts: Tensor | None = None

    def update(
        self,
        target: Shaped[Tensor, "row d"],
        x_hat: Shaped[Tensor, "row d_hat"],
        latents: Latents | None = None,
        *,
        groups: Int[Tensor, " row"] | None = None,
    ) -> None:
        """Add rows.

        Args:
            target: what should have been written (the input itself for an autoencoder).
            x_hat: what was.
            latents: the codes, for L0 and densities.
            groups: for the interval: rows with the same number are not independent; blocks of 128 rows when `None`.

        Raises:
            ShapeError, DataError: shapes that differ, no rows, whole numbers, NaN or infinity.
        """
        rows = self._check(target, x_hat, latents)
        if groups is None:
            groups = (self.n + torch.arange(rows)) // 128
        require_shape(groups, f"row={rows}", "groups")
        target, x_hat = target.detach().double(), x_hat.detach().double()
        if self._shift is None:
            self._shift = target.mean(dim=0)  # sums of squares around a nearby point do not cancel
        error, centred = target - x_hat, target - self._shift
        dot, size, size_hat = (target * x_hat).sum(1), target.norm(dim=1), x_hat.norm(dim=1)
        has_cosine, has_ratio = (size > 0) & (size_hat > 0), size > 0
        zero = torch.zeros_like(dot)
        self._sums.add(
            groups,
            n=torch.ones_like(dot),
            error2=error.square().sum(1),
            error=error,
            error_square=error.square(),
            centred=centred,
            centred_square=centred.square(),
            target2=size.square(),
            hat2=size_hat.square(),
            dot=dot,
            cosine=torch.where(has_cosine, dot / (size * size_hat).clamp_min(1e-300), zero),
            n_cosine=has_cosine.double(),
            ratio=torch.where(has_ratio, size_hat / size.clamp_min(1e-300), zero),
            n_ratio=has_ratio.double(),
        )
        if latents is not None:
            self._sums.add(groups, l0=latents.l0())
            counts = latents.counts().cpu()
            self._counts = counts if self._counts is None else self._counts + counts
        self.n += rows

    def density(self) -> Float[Tensor, " latent"]:
        """For each latent, the share of tokens on which it is active.

        Raises:
            DataError: no codes were given.
        """
        if self._counts is None:
            raise DataError("densities need codes; pass latents to update")
        return self._counts.double() / self.n

    def scores(self) -> dict[str, Estimate]:
        """Every score by name.

        `l0` active latents a token; `dead_share` of latents that never fired on these tokens, `dense_share` of those
        that fired on more than a tenth; `mse` squared error summed over the width; `fvu` that over the variance
        around the one global mean; `nmse` over the mean squared norm; `cosine` and `norm_ratio` means over tokens
        where they are defined (their n); `gamma` = E|x_hat|^2 / E[x . x_hat], 1 without shrinkage; `fve_centered`,
        which ignores a constant error.
        """
        estimate, n = self._sums.estimate, self.n
        counted = {name: int(self._sums.total(name)) for name in ("n_cosine", "n_ratio")} if n else {}
        scores = {
            "mse": estimate(lambda s: s["error2"] / s["n"], n=n),
            "fvu": estimate(lambda s: s["error2"] / _variance(s), n=n, undefined="the activations do not vary"),
            "nmse": estimate(lambda s: s["error2"] / s["target2"], n=n, undefined="all activations are 0"),
            "cosine": estimate(
                lambda s: s["cosine"] / s["n_cosine"], n=counted.get("n_cosine", 0), undefined="a vector is always 0"
            ),
            "norm_ratio": estimate(
                lambda s: s["ratio"] / s["n_ratio"], n=counted.get("n_ratio", 0), undefined="all activations are 0"
            ),
            "gamma": estimate(
                lambda s: s["hat2"] / s["dot"], n=n, undefined="reconstructions are 0, or orthogonal to the activations"
            ),
            "fve_centered": estimate(
                lambda s: 1 - _spread(s, "error") / _spread(s, "centred"), n=n, undefined="the activations do not vary"
            ),
        }
        if self._counts is None:
            return scores
        rho = self.density()
        why = f"a share of the {len(rho)} latents, counted on these tokens"
        return {
            "l0": estimate(lambda s: s["l0"] / s["n"], n=n),
            "dead_share": _plain(float((rho == 0).double().mean()), n, why),
            "dense_share": _plain(float((rho > 0.1).double().mean()), n, why),
        } | scores

    def _check(self, target: Tensor, x_hat: Tensor, latents: Latents | None) -> int:
        for tensor, name in ((target, "target"), (x_hat, "x_hat")):
            require_floating(tensor, name)
            require_shape(tensor, "row d", name)
            require_finite(tensor, name)
        if target.shape != x_hat.shape:
            raise ShapeError(
                f"target has shape {list(target.shape)}, x_hat {list(x_hat.shape)}; expected the same shape"
            )
        if target.numel() == 0:
            raise DataError(f"target has shape {list(target.shape)}: there are no rows; pass at least one")
        if latents is not None and tuple(latents.values.shape[:-1]) != (target.shape[0],):
            raise ShapeError(
                f"latents are of rows {list(latents.values.shape[:-1])}; expected [{target.shape[0]}], one code a row"
            )
        if self.n and (latents is None) != (self._counts is None):
            raise ConfigError("pass latents with every update or with none")
        return target.shape[0]


def _plain(value: float, n: int, why: str) -> Estimate:
    return Estimate(value, math.nan, math.nan, n, LEVEL, "count", why)


def _variance(sums: dict[str, Tensor]) -> Tensor:
    """Summed squared distance from the one global mean."""
    return _spread(sums, "centred")


def _spread(sums: dict[str, Tensor], name: str) -> Tensor:
    spread = (sums[f"{name}_square"] - sums[name].square() / sums["n"]).sum()
    # what is left of equal rows after rounding is no variance
    return spread if spread > 1e-13 * sums[f"{name}_square"].sum() else torch.zeros_like(spread)
