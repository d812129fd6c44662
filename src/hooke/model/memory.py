"""How much memory a capture takes, worked out before the run, and refused where it would not fit."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence

import torch

from hooke.base.errors import ConfigError
from hooke.model.families.family import InterleavedHeads, Layout, SplitHeads
from hooke.model.families.views import GroupedHeads, Part
from hooke.model.sites import INNER_SITES, MAP_SITES, Site

_GIB = 2**30


def capture_bytes(
    layout: Layout,
    vocab: int,
    sites: Sequence[Site],
    shape: tuple[int, int],
    dtype: torch.dtype,
    kept: int | None = None,
) -> int:
    """Bytes that the captured tensors of these sites hold after a run, as an upper bound. What is a part of a joined
    tensor, as q of q, k and v in one matrix, keeps all of it, once for all its parts.

    Args:
        shape: (batch, pos) of the input.
        kept: positions kept of each row, None for all.
    """
    batch, width = shape
    rows = batch * (width if kept is None else kept)
    total, joined = 0, dict[str, int]()
    for site in sites:
        # Norms' scales, and what families with attention code of their own compute inside it, are in float32.
        wide = site.name.endswith("_scale") or (site.name in INNER_SITES and not layout.dispatches)
        itemsize = max(dtype.itemsize, 4) if wide else dtype.itemsize
        width_joined = None if kept is not None or site.head is not None else _joined_width(layout, site)
        if width_joined is not None:
            joined[layout.path(site.name, site.layer)] = rows * width_joined * itemsize
            continue
        if site.name in MAP_SITES:
            size = (1 if site.head is not None else layout.n_heads) * width
        else:
            feature = layout.feature_shape(site.name, vocab)
            size = math.prod(feature[1:] if site.head is not None else feature)
        total += rows * size * itemsize
    return total + sum(joined.values())


def _joined_width(layout: Layout, site: Site) -> int | None:
    """Width of the tensor that a site's is a part of; None where it is a tensor of its own."""
    if site.name in INNER_SITES:
        return None
    view = layout.tap(site.name, site.layer).view
    if isinstance(view, SplitHeads | Part):
        return sum(view.widths)
    if isinstance(view, InterleavedHeads | GroupedHeads):
        return (layout.n_heads + 2 * layout.n_kv_heads) * view.d_head
    return None


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
