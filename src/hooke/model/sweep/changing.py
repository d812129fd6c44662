"""Edits in a packed pass: each row's, at its own tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from hooke.model.edits import Set
from hooke.model.sites import Site
from hooke.model.sweep.portion import Portion


class Changes:
    """One block's edits."""

    def __init__(self, portion: Portion) -> None:
        self.portion = portion

    def changed(self, site: Site, value: Tensor, *, owned: bool = False) -> Tensor:
        """The site's packed tensor `[1, n, ...]` with the rows' edits applied, each to its own tokens; written in place
        where the tensor is ours.
        """
        value = value if owned else value.clone()
        given: dict[int | None, tuple[list[int], list[Tensor]]] = {}
        items = self.portion.edits[site]
        alone = len({row for row, _ in items}) == len(items)  # no row has two edits here: their order is free
        for row, edit in items:
            place, head = self.portion.packing.index(row, edit.columns), edit.placed.site.head
            example = self.portion.packing.rows[row].example
            if alone and isinstance(edit.placed.edit, Set):
                places, values = given.setdefault(head, ([], []))
                places.extend(place)
                values.append(edit.placed.edit.value_at(example, edit.columns))
                continue
            here, there = self._there(site, torch.tensor(place, device=value.device))
            if not len(here):
                continue  # nobody reads what it changes
            columns = torch.tensor(edit.columns, device=value.device)[there]
            own = edit.placed.edit.at(torch.tensor([[example]], device=value.device), columns[None])
            if head is None:
                value[0, here] = own.change(value[:, here])[0]
            else:
                value[0, here, head] = own.change(value[:, here, head])[0]
        for head, (places, values) in given.items():  # patches, all at once
            here, there = self._there(site, torch.tensor(places, device=value.device))
            new = torch.cat(values)[there].to(value)
            if head is None:
                value[0, here] = new
            else:
                value[0, here, head] = new
        return value

    def _there(self, site: Site, place: Tensor) -> tuple[Tensor, Tensor | slice]:
        """Where packed tokens lie at a site, and which of them are there at all: queries, keys and values of those that
        ask, in the last layer the mixed values of those that are read.
        """
        if site.name in ("q", "k", "v") and self.portion.narrow:
            return torch.searchsorted(self.portion.asking, place), slice(None)
        if site.name == "z" and self.portion.few_queries:
            assert self.portion.read is not None
            there = torch.isin(place, self.portion.read)
            return torch.searchsorted(self.portion.read, place[there]), there
        return place, slice(None)
