"""What one block of a packed pass computes: which rows take part, which tokens ask for attention, which are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hooke.model.sites import INNER_SITES, Site
from hooke.model.sweep.clean import Clean
from hooke.model.sweep.packing import Packing
from hooke.model.sweep.rows import LocalEdit


class Portion:
    """One block's part of a packed pass.

    Args:
        edits: what the block changes: site -> (row, edit).
        columns: what is read of each example behind the block, `[batch, position]`; None for everything.

    `n_rows` rows take part with `n` tokens; the first `n_attending` of them differ before attention has mixed
    positions, with `n_spread` tokens; of these, `asking` are the places whose queries, keys and values are computed,
    and `read` the places that are needed in the end.
    """

    def __init__(
        self,
        packing: Packing,
        clean: Clean,
        layer: int,
        edits: Mapping[Site, Sequence[tuple[int, LocalEdit]]],
        columns: Int[Tensor, "batch position"] | None,
    ) -> None:
        self.packing, self.whole, self.clean, self.layer, self.edits = packing, clean, clean.layers[layer], layer, edits
        self.n_rows, self.n_attending = packing.joined(layer), packing.attending(layer)
        self.n, self.n_spread = packing.starts[self.n_rows], packing.starts[self.n_attending]
        asking = packing.asking(layer, edits)
        # Modules cannot reshape nothing: where no token asks, one goes through attention, and nobody reads it.
        self.asking = asking if len(asking) else torch.zeros(1, dtype=torch.long, device=asking.device)
        self.narrow = len(asking) < self.n
        self.columns, self.read = columns, None
        if columns is not None:
            places = packing.places(columns)
            self.read = places[places >= 0].unique()
        self.touched = {site.name for site in edits}
        # Queries that nobody reads need no attention, unless an edit or a later pass wants to see them.
        seen = self.touched & {*INNER_SITES, "result"}
        self.few_queries = columns is not None and not seen and not (packing.n_clean and clean.keep)
        # Where every row is there with all columns, packed tokens are the spread ones, and nothing need be gathered.
        self.is_grid = self.n_spread == self.n_attending * packing.width
