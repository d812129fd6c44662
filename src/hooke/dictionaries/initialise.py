"""Starting values that depend on the data: where `b_dec` starts, and the scale in which training sees its input."""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError, DataError

Centre = Literal["mean", "median", "zero"]
Scale = Literal["unit", "sqrt_d", "none"]


def geometric_median(
    x: Float[Tensor, "row d"], *, max_iterations: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " d"]:
    """The point with the least mean distance to the rows (Weiszfeld's iteration), in float64.

    Args:
        x: rows.
        max_iterations: at most so many steps.
        tolerance: stop when the point moves less than this share of the rows' mean distance.
    """
    rows = x.double()
    point = rows.mean(dim=0)
    for _ in range(max_iterations):
        distance = (rows - point).norm(dim=1)
        spread = distance.mean().clamp_min(1e-300)
        weight = 1 / distance.clamp_min(1e-12 * float(spread))  # a row on the point itself must not divide by zero
        new = (weight[:, None] * rows).sum(dim=0) / weight.sum()
        moved = (new - point).norm()
        point = new
        if moved < tolerance * spread:
            break
    return point.to(x.dtype)


def centre_of(x: Float[Tensor, "row d"], kind: Centre) -> Float[Tensor, " d"]:
    """The starting value of `b_dec` for rows like these."""
    match kind:
        case "mean":
            return x.double().mean(dim=0).to(x.dtype)
        case "median":
            return geometric_median(x)
        case "zero":
            return x.new_zeros(x.shape[1])
    raise ConfigError(f"centre {kind!r} is not known; expected 'mean', 'median' or 'zero'")


def scale_of(x: Float[Tensor, "row d"], kind: Scale) -> float:
    """The number by which activations like these are divided in training.

    `unit`: then the mean squared norm is 1. `sqrt_d`: then it is the width. `none`: 1.

    Raises:
        DataError: all rows are 0.
    """
    if kind == "none":
        return 1.0
    if kind not in ("unit", "sqrt_d"):
        raise ConfigError(f"scale {kind!r} is not known; expected 'unit', 'sqrt_d' or 'none'")
    root = math.sqrt(float(x.double().square().sum(dim=1).mean()))
    if root == 0:
        raise DataError(f"all {x.shape[0]} rows of the first sample are 0; there is nothing to learn from")
    return root if kind == "unit" else root / math.sqrt(x.shape[1])
