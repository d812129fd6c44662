"""How the rows of a sweep lie side by side, and which of their tokens each part of a block has to compute."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from hooke.model.sites import INNER_SITES, Site
from hooke.model.sweep.clean import Clean
from hooke.model.sweep.rows import LATE_SITES, LocalEdit, Row, acts_at


class Packing:
    """Rows in the order in which they join, their tokens side by side; the clean rows first, where they take part.

    Args:
        width: columns of the inputs.
        clean: whether the clean run is computed along.
    """

    def __init__(self, rows: Sequence[Row], clean: Clean, *, with_clean: bool) -> None:
        self.width = clean.shape[1]
        joining = sorted(rows, key=lambda row: (row.layer, row.late))
        self.rows = [*(_clean_rows(clean) if with_clean else ()), *joining]
        self._joins = [(row.layer, row.late) for row in self.rows]
        self.n_clean = len(clean.example) if with_clean else 0  # tokens
        device = clean.place.device
        widths = [row.width for row in self.rows]
        self.starts = [0]
        for n in widths:
            self.starts.append(self.starts[-1] + n)
        firsts = torch.tensor([row.first for row in self.rows], device=device)
        self.examples = torch.tensor([row.example for row in self.rows], device=device)
        self.row = torch.repeat_interleave(
            torch.arange(len(self.rows), device=device), torch.tensor(widths, device=device)
        )
        begins = torch.tensor(self.starts[:-1], device=device)
        self.column = torch.arange(self.starts[-1], device=device) - (begins - firsts)[self.row]
        self.example = self.examples[self.row]
        self.clean_place = clean.place[self.example, self.column]

    def older(self, layer: int) -> int:
        """How many rows differ from the clean run before a layer."""
        return bisect.bisect_left(self._joins, (layer, False))

    def attending(self, layer: int) -> int:
        """How many rows differ from the clean run before the attention of a layer has mixed positions."""
        return bisect.bisect_left(self._joins, (layer, True))

    def joined(self, layer: int) -> int:
        """How many rows take part in a layer."""
        return bisect.bisect_left(self._joins, (layer + 1, False))

    def index(self, row: int, columns: Sequence[int]) -> Sequence[int]:
        """Places of some columns of a row."""
        shift = self.starts[row] - self.rows[row].first
        if isinstance(columns, range):
            return range(columns.start + shift, columns.stop + shift)
        return [column + shift for column in columns]

    def places(self, columns: Int[Tensor, "batch position"]) -> Int[Tensor, "row position"]:
        """Places of the columns that a metric reads, -1 where a row does not differ from the clean run there."""
        first = torch.tensor([row.first for row in self.rows], device=columns.device)[:, None]
        starts = torch.tensor(self.starts[:-1], device=columns.device)[:, None]
        asked = columns[self.examples]
        return torch.where(asked >= first, asked - first + starts, -torch.ones_like(asked))

    def edits(self, n_layers: int) -> list[dict[Site, list[tuple[int, LocalEdit]]]]:
        """What each layer changes: site, heads joined -> (row, edit), in order of execution."""
        found: list[dict[Site, list[tuple[int, LocalEdit]]]] = [{} for _ in range(n_layers)]
        for index, row in enumerate(self.rows):
            for edit in row.edits:
                site = acts_at(edit.placed.site, n_layers).without_head
                assert site.layer is not None
                found[site.layer].setdefault(site, []).append((index, edit))
        return [dict(sorted(own.items(), key=lambda item: item[0].order)) for own in found]

    def asking(self, layer: int, edits: dict[Site, list[tuple[int, LocalEdit]]]) -> Int[Tensor, " n"]:
        """Places whose queries, keys and values are computed: in the layer at which a row joins, those that it changes
        there; the others are the clean run's.
        """
        older = self.older(layer)
        changed = {
            place
            for site, items in edits.items()
            if site.name not in LATE_SITES and site.name not in INNER_SITES
            for row, edit in items
            if row >= older
            for place in self.index(row, edit.columns)
        }
        before = torch.arange(self.starts[older], device=self.row.device)
        return torch.cat([before, before.new_tensor(sorted(changed))]) if changed else before


def _clean_rows(clean: Clean) -> list[Row]:
    """The unedited examples, which all rows start from."""
    counts = torch.bincount(clean.example, minlength=clean.shape[0]).tolist()
    firsts = [int(clean.column[clean.example == example][0]) for example in range(clean.shape[0])]
    return [
        Row(-1, example, -1, False, first, first + count, ())
        for example, (first, count) in enumerate(zip(firsts, counts, strict=True))
    ]
