"""Rows of a sweep: one example under one edit set, and where it leaves the clean run.

Below the first edited layer, and (in a causal model) left of the first edited position, a row equals the clean run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
        columns: the columns of the row that it changes, ascending; a range where they are next to each other.
    """

    placed: PlacedEdit
    columns: Sequence[int]


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


class Rows:
    """Works out the rows of edit sets over the same inputs."""

    def __init__(self, layout: Layout, tokens: Tokens) -> None:
        self.layout = layout
        self.bounds = list(zip(tokens.starts.tolist(), (tokens.starts + tokens.lengths).tolist(), strict=True))
        # Edits of a sweep share their masks: mask -> its columns by example; the mask itself is kept, so that no other
        # takes its place.
        self.seen: dict[int, tuple[Tensor | None, list[Sequence[int]]]] = {}

    def of(self, edit_set: int, placed: Sequence[PlacedEdit]) -> list[Row]:
        """The rows of one edit set, one per example that it changes."""
        rows = []
        for example, (start, end) in enumerate(self.bounds):
            local = [LocalEdit(item, self._columns(item, example)) for item in placed]
            local = [edit for edit in local if len(edit.columns)]
            if not local:
                continue  # nothing of this example changes
            if len(local) > 1:
                local.sort(key=lambda edit: edit.placed.site.without_head.order)  # as they meet in a forward pass
            layer, late = min(_place_of(self.layout, edit.placed) for edit in local)
            first = min(edit.columns[0] for edit in local) if self.layout.causal else start
            rows.append(Row(edit_set, example, layer, bool(late), first, end, tuple(local)))
        return rows

    def _columns(self, item: PlacedEdit, example: int) -> Sequence[int]:
        where = item.where
        if id(where) not in self.seen:
            found: list[Sequence[int]] = []
            for row, (start, end) in enumerate(self.bounds):
                if where is None:
                    found.append(range(start, end))
                else:  # a mask may be true at padding
                    found.append(_joined((where[row, start:end].nonzero()[:, 0] + start).tolist()))
            self.seen[id(where)] = (where, found)
        return self.seen[id(where)][1][example]


def _joined(columns: Sequence[int]) -> Sequence[int]:
    """Ascending columns as a range, where they are one."""
    whole = len(columns) and columns[-1] - columns[0] == len(columns) - 1
    return range(columns[0], columns[-1] + 1) if whole else columns


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
