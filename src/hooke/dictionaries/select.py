"""Exact selection of the largest pre-activations, of each row or of the whole batch."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

_GROUP = 16  # latents a group in the first stage
_SAMPLE = 1 << 17  # entries in the subsample that gives a first bound


def top_of_each_row(pre: Float[Tensor, "row latent"], k: int) -> Int[Tensor, "row k"]:
    """Indices of the `k` largest entries of each row, in no particular order.

    Wide rows go in two stages: the k groups with the largest maxima hold the k largest entries (each entry above the
    k-th largest maximum is in a group whose maximum is at least as large), so only those groups are searched. Exact;
    entries that tie for the last place may be chosen either way.
    """
    n_rows, n_latents = pre.shape
    if n_latents % _GROUP or k * _GROUP * 4 > n_latents or not pre.is_contiguous():
        return pre.topk(k, dim=1, sorted=False).indices
    n_groups = n_latents // _GROUP
    # group g holds the entries g, g + n_groups, ...: maxima over strided groups read memory in order
    best = pre.view(n_rows, _GROUP, n_groups).amax(dim=1).topk(k, dim=1, sorted=False).indices
    members = torch.arange(_GROUP, device=pre.device) * n_groups
    candidates = (best[:, :, None] + members).view(n_rows, -1)
    return candidates.gather(1, pre.gather(1, candidates).topk(k, dim=1, sorted=False).indices)


def top_of_batch(pre: Float[Tensor, "row latent"], n: int) -> Int[Tensor, " place"]:
    """Flat positions, increasing, of the `n` largest positive entries of the whole matrix; all positive ones if fewer.

    A subsample of the entries gives a bound that about 1.2 n of them pass; the exact selection is then among those.
    Ties for the last place go to the earlier position.
    """
    flat = pre.reshape(-1)
    if n == 0:  # floor(B * k) of a small batch with k below 1
        return flat.new_empty(0, dtype=torch.int64)
    places = places_above(flat, _bound(flat, n))
    if places.numel() < n:  # the bound was too high
        places = places_above(flat, 0.0)
    if places.numel() <= n:
        return places
    values = flat[places]
    last = values.kthvalue(places.numel() - n + 1).values
    kept = values > last
    missing = n - int(kept.sum())
    kept[(values == last).nonzero()[:missing, 0]] = True
    return places[kept]


def _bound(flat: Float[Tensor, " entry"], n: int) -> float:
    """A value at least 0 that, most likely, a few more than `n` entries exceed."""
    stride = (flat.numel() // _SAMPLE) | 1  # odd: over many rows it meets all latents of a dictionary of even size
    if stride == 1:
        return 0.0
    sample = flat[::stride].contiguous()
    expected = n / stride
    rank = round(expected + 6 * math.sqrt(expected) + 6)
    if rank >= sample.numel():
        return 0.0
    return max(0.0, float(sample.kthvalue(sample.numel() - rank).values))


def places_above(pre: Float[Tensor, "*shape"], bound: float) -> Int[Tensor, " place"]:
    """Flat positions, increasing, of the entries strictly above a bound."""
    flat = pre.reshape(-1)
    if flat.device.type == "cpu" and flat.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.flatnonzero(flat.numpy() > bound))
    return (flat > bound).nonzero()[:, 0]
