"""Guards for tensors that come from outside: shape, finiteness, kind of number."""

from __future__ import annotations

import torch
from torch import Tensor

from hooke.base.errors import DataError, ShapeError


def require_shape(tensor: Tensor, spec: str, name: str) -> dict[str, int]:
    """Check a tensor's shape against words, and give the size that each word got.

    Args:
        tensor: what to check.
        spec: one word per dimension, separated by spaces. A word is a name (`row`; the same name twice means the same
            size), a size (`64`), a name with its size (`d_in=64`), `_` (any size), or a leading `...` (any dimensions).
        name: what to call the tensor in the error.

    Raises:
        ShapeError: naming the shape that came and the one expected.

    Example:
        >>> import torch
        >>> require_shape(torch.zeros(2, 3, 64), "batch pos d_model=64", "x")
        {'batch': 2, 'pos': 3, 'd_model': 64}
    """
    shape = tuple(tensor.shape)
    words = spec.split()
    if words[:1] == ["..."]:
        words = words[1:]
        sizes = shape[len(shape) - len(words) :] if len(shape) >= len(words) else None
    else:
        sizes = shape if len(shape) == len(words) else None
    if sizes is None:
        raise ShapeError(f"{name} has shape {list(shape)}, {len(shape)} dimensions; expected [{spec}]")
    found: dict[str, int] = {}
    for word, size in zip(words, sizes, strict=True):
        label, _, wanted = word.rpartition("=")
        if wanted.isdecimal():
            if size != int(wanted):
                raise ShapeError(f"{name} has shape {list(shape)}; expected [{spec}], that is {word}, but got {size}")
        else:
            label = wanted
        if label in ("", "_"):
            continue
        if found.setdefault(label, size) != size:
            raise ShapeError(
                f"{name} has shape {list(shape)}; expected [{spec}], but {label} is both {found[label]} and {size}"
            )
    return found


def require_floating(tensor: Tensor, name: str) -> None:
    """Check that a tensor holds floating-point numbers.

    Raises:
        DataError: naming the dtype that came.
    """
    if not tensor.is_floating_point():
        raise DataError(
            f"{name} has dtype {tensor.dtype}; expected floating point (float32, bfloat16 ...); call .float() on it"
        )


def require_finite(tensor: Tensor, name: str) -> None:
    """Check that no element is NaN or infinite.

    Raises:
        DataError: with how many are not, and where the first one is.
    """
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return
    finite = torch.isfinite(tensor)
    if bool(finite.all()):
        return
    n_nan = int(torch.isnan(tensor).sum())
    n_infinite = int((~finite).sum()) - n_nan
    first = torch.nonzero(~finite)[0].tolist()
    raise DataError(
        f"{name} of shape {list(tensor.shape)} holds {n_nan} NaN and {n_infinite} infinite values, the first at index "
        f"{first}; find what made them (an overflow in half precision is the usual cause) before going on"
    )
