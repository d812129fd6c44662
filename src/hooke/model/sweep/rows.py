"""Rows of a sweep: one example under one edit set, and where it leaves the clean run.

Below the first edited layer, and (in a causal model) left of the first edited position, a row equals the clean run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hooke.model.families.family import Layout
from hooke.model.plan import PlacedEdit
from hooke.model.sites import AFTER_BLOCKS, BEFORE_BLOCKS, BLOCK_SITES, Site
from hooke.model.tokens import Tokens

# What an edit at one of these sites changes comes after attention has mixed positions.
LATE_SITES = frozenset(BLOCK_SITES[BLOCK_SITES.index("z") :])


@dataclass(frozen=True)
class LocalEdit:
    """A placed edit as one row sees it.

    Args:
        columns: the columns of the row that it changes, ascending.
    """

    placed: PlacedEdit
    columns: Tensor


@dataclass(frozen=True)
class Row:
    """One example under one edit set.

    Args:
        layer: the first layer that differs from the clean run.
        late: whether that layer differs only after its attention has mixed positions.
        first, end: the columns that may differ, end excluded.
    """

    edit_set: int
    example: int
    layer: int
    late: bool
    first: int
    end: int
    edits: tuple[LocalEdit, ...]

    @property
    def width(self) -> int:
        """Columns that may differ."""
        return self.end - self.first


def why_not_packed(placed: Sequence[PlacedEdit]) -> str | None:
    """Why an edit set cannot be computed as a change to the clean run, or None where it can."""
    for item in placed:
        name, label = item.site.name, item.edit.label
        if name in BEFORE_BLOCKS:
            return f"{label}: acts before the blocks"
        if name in AFTER_BLOCKS:
            return f"{label}: acts after the blocks"
        if not item.edit.is_local:
            return f"{label}: the value at a position depends on other positions or rows"
    return None


def rows_of(layout: Layout, tokens: Tokens, edit_set: int, placed: Sequence[PlacedEdit]) -> list[Row]:
    """The rows of one edit set, one per example that it changes."""
    rows = []
    starts, lengths = tokens.starts.tolist(), tokens.lengths.tolist()
    for example, (start, length) in enumerate(zip(starts, lengths, strict=True)):
        local = [LocalEdit(item, _columns(item, example, start, start + length)) for item in placed]
        local = [edit for edit in local if len(edit.columns)]
        if not local:
            continue  # nothing of this example changes
        places = [_place_of(layout, edit.placed) for edit in local]
        local.sort(key=lambda edit: edit.placed.site.without_head.order)  # as they meet in a forward pass
        layer, late = min(places)
        first = min(int(edit.columns[0]) for edit in local) if layout.causal else start
        rows.append(Row(edit_set, example, layer, bool(late), first, start + length, tuple(local)))
    return rows


def _columns(item: PlacedEdit, example: int, start: int, end: int) -> Tensor:
    if item.where is None:
        return torch.arange(start, end)
    return item.where[example, :end].nonzero()[:, 0].cpu()


def acts_at(site: Site, n_layers: int) -> Site:
    """Where an edit is applied: what a block gives is what the next one reads, and there it costs a layer less."""
    assert site.layer is not None  # sites outside the blocks are not packed
    if site.name == "resid_post" and site.layer + 1 < n_layers:
        return Site("resid_pre", site.layer + 1)
    return site


def _place_of(layout: Layout, item: PlacedEdit) -> tuple[int, bool]:
    site = acts_at(item.site, layout.n_layers)
    assert site.layer is not None
    return site.layer, site.name in LATE_SITES
