"""The plain way of a sweep: the inputs repeated for several edit sets, whole forward passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hooke.model.capture import applied
from hooke.model.plan import PlacedEdit, Plan
from hooke.model.run import Run
from hooke.model.tokens import Tokens

if TYPE_CHECKING:
    from hooke.model.model import Model


@torch.no_grad()
def batched_pass(model: Model, tokens: Tokens, sets: Mapping[int, Sequence[PlacedEdit]]) -> dict[int, Run]:
    """One forward pass for several edit sets; the run of each, its logits a part of the whole."""
    batch = len(tokens)
    repeated = tokens.rows(list(range(batch)) * len(sets))
    placed = [
        dataclasses.replace(edit, rows=range(slot * batch, (slot + 1) * batch), where=_for_batch(edit, batch))
        for slot, edits in enumerate(sets.values())
        for edit in edits
    ]
    with applied(model.hf, model.layout, Plan(edits=tuple(placed)), repeated):
        logits = model.hf(**model.arguments(repeated), use_cache=False).logits
    return {number: Run(tokens, logits[slot * batch : (slot + 1) * batch]) for slot, number in enumerate(sets)}


def _for_batch(edit: PlacedEdit, batch: int) -> Tensor | None:
    return None if edit.where is None else edit.where.expand(batch, -1)
