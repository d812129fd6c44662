"""Compare a learned dictionary with the planted one: were its directions found, do codes fire where they should."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooke.base.errors import ConfigError, DataError
from hooke.base.shapes import require_finite, require_shape


@dataclass(frozen=True)
class Recovery:
    """How well learned directions cover the true ones.

    Args:
        mmcs: mean over true features of the largest cosine with any learned direction.
        reverse_mmcs: mean over the learned directions looked at of the largest cosine with any true feature.
        recovered: share of true features whose largest cosine is above `threshold`.
        threshold: that bound.
        match: for each true feature, the learned direction nearest to it.
        cosine: for each true feature, that largest cosine.
    """

    mmcs: float
    reverse_mmcs: float
    recovered: float
    threshold: float
    match: Int[Tensor, " feature"]
    cosine: Float[Tensor, " feature"]


def recovery(
    true: Float[Tensor, "feature d_in"],
    learned: Float[Tensor, "latent d_learned"],
    *,
    threshold: float = 0.9,
    alive: Bool[Tensor, " latent"] | None = None,
) -> Recovery:
    """Match learned directions to true ones by signed cosine (codes are not negative).

    Args:
        true: planted directions.
        learned: decoder rows; any norm. A row of norm 0 matches nothing (cosine 0).
        threshold: cosine above which a feature counts as recovered.
        alive: the latents over which `reverse_mmcs` is averaged; all when `None`, NaN when none is.

    Raises:
        ShapeError, DataError: for widths that differ, or NaN.

    Example:
        >>> recovery(torch.eye(3), 2 * torch.eye(3)).mmcs
        1.0
    """
    require_shape(learned, f"latent d_in={true.shape[1]}", "learned")
    require_finite(learned, "learned")
    unit = torch.nn.functional.normalize
    cosines = unit(true.double(), dim=1) @ unit(learned.double(), dim=1).T
    cosine, match = cosines.max(dim=1)
    backward = cosines.max(dim=0).values
    if alive is not None:
        backward = backward[alive]
    return Recovery(
        mmcs=float(cosine.mean()),
        reverse_mmcs=float(backward.mean()) if backward.numel() else math.nan,
        recovered=float((cosine > threshold).double().mean()),
        threshold=threshold,
        match=match,
        cosine=cosine,
    )


def support_f1(
    true_codes: Float[Tensor, "row feature"],
    codes: Float[Tensor, "row_too latent"],
    match: Int[Tensor, " feature"],
) -> float:
    """Mean over true features of the F1 score of "the matched latent fires" against "the feature is on".

    Features that are never on in `true_codes` have no recall and are left out; NaN when that leaves none.

    Raises:
        DataError: the two sets of codes have different numbers of rows.
    """
    if true_codes.shape[0] != codes.shape[0]:
        raise DataError(
            f"{true_codes.shape[0]} rows of true codes and {codes.shape[0]} of learned ones; expected equal"
        )
    on, fires = true_codes > 0, (codes != 0)[:, match]
    both, either = (on & fires).sum(0).double(), (on.sum(0) + fires.sum(0)).double()
    seen = on.any(dim=0)
    return float((2 * both / either)[seen].mean()) if bool(seen.any()) else math.nan


def keep_largest_of_each(codes: Float[Tensor, "row feature"], k: int) -> Float[Tensor, "row feature"]:
    """The true codes with only the `k` largest of each row kept: the best that a TopK dictionary can do."""
    if not 1 <= k <= codes.shape[1]:
        raise ConfigError(f"k is {k}; expected between 1 and the {codes.shape[1]} features")
    values, indices = codes.topk(k, dim=1)
    return torch.zeros_like(codes).scatter_(1, indices, values)


def keep_largest_overall(codes: Float[Tensor, "row feature"], k: int | float) -> Float[Tensor, "row feature"]:
    """The true codes with only the floor(rows * k) largest of all kept: the best that BatchTopK can do."""
    n = math.floor(codes.shape[0] * k)
    if not 1 <= n <= codes.numel():
        raise ConfigError(f"k is {k}: {n} codes of {codes.numel()} would be kept; expected between 1 and all")
    values, indices = codes.flatten().topk(n)
    return torch.zeros_like(codes).flatten().scatter_(0, indices, values).view_as(codes)
