"""Relatives of a latent: the decoder rows that point its way, among all latents of the dictionary."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooke.base.errors import DataError

_BLOCK = 16_384


class Similar(NamedTuple):
    """Other latents, nearest first, with signed cosines."""

    latents: Int[np.ndarray, " n"]
    cosines: Float[np.ndarray, " n"]


def similar(decoder: Float[Tensor, "latent d_out"], latent: int, n: int = 10) -> Similar:
    """The `n` latents whose decoder rows have the largest cosine with that of `latent`.

    Rows are compared in blocks, so that no copy of the decoder is made. Rows of norm 0 have no direction and are left
    out; for a latent with such a row there are none.

    Raises:
        DataError: no such latent.

    Example:
        >>> import torch
        >>> similar(torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 3.0]]), 0, n=1).latents.tolist()
        [2]
    """
    if not 0 <= latent < len(decoder):
        raise DataError(f"latent {latent} does not exist; the dictionary has {len(decoder)}")
    with torch.no_grad():
        own = decoder[latent].float()
        blocks = []
        for rows in decoder.detach().split(_BLOCK):
            rows = rows.float()
            blocks.append(rows @ own / (rows.norm(dim=-1) * own.norm()))
        cosines = torch.cat(blocks)
        cosines[latent] = torch.nan
        cosines = cosines.nan_to_num(nan=-torch.inf)
        best = cosines.topk(min(n, len(cosines)))
    found = torch.isfinite(best.values)
    return Similar(best.indices[found].cpu().numpy(), best.values[found].clamp(-1, 1).cpu().numpy())
