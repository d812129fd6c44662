"""How much memory a capture takes, worked out before the run, and refused where it would not fit."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch

from hooke.base.errors import ConfigError
from hooke.model.families.family import Layout
from hooke.model.sites import MAP_SITES, Site

_GIB = 2**30


def capture_bytes(
    layout: Layout,
    vocab: int,
    sites: Sequence[Site],
    shape: tuple[int, int],
    dtype: torch.dtype,
    kept: int | None = None,
) -> int:
    """Bytes that the captured tensors of these sites hold after a run, as an upper bound (views of one module's output
    count each for itself).

    Args:
        shape: (batch, pos) of the input.
        kept: positions kept of each row, None for all.
    """
    batch, width = shape
    rows = batch * (width if kept is None else kept)
    total = 0
    for site in sites:
        if site.name in MAP_SITES:
            size = (1 if site.head is not None else layout.n_heads) * width
        else:
            feature = layout.feature_shape(site.name, vocab)
            size = math.prod(feature[1:] if site.head is not None else feature)
        total += rows * size
    return total * dtype.itemsize


def available_bytes(device: torch.device) -> int:
    """Free memory where captured tensors would lie."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        return free * 1024
    except (OSError, StopIteration):  # not Linux: what is installed is the best that can be said
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def refuse_if_too_large(needed: int, limit: int | None, device: torch.device) -> None:
    """Raise before the run where a capture would not fit.

    Raises:
        ConfigError: with the estimate, the limit, and what to do.
    """
    room = available_bytes(device) if limit is None else limit
    if needed > room:
        raise ConfigError(
            f"this capture would hold {needed / _GIB:.2f} GiB; {'free' if limit is None else 'allowed'} on {device}: "
            f"{room / _GIB:.2f} GiB. Capture fewer sites, keep fewer positions (at=), move them off the device "
            f"(offload=True), or run smaller batches"
        )
