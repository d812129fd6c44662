"""A run that goes on: prompts once, then what follows them, on one KV cache and under the same edits."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager
from contextvars import copy_context
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import DynamicCache

from hooke.base.errors import ConfigError, ModelError
from hooke.model.capture import Progress, applied
from hooke.model.plan import Edits, PlacedEdit, Plan, repadded
from hooke.model.tokens import Tokens

if TYPE_CHECKING:
    from hooke.model.model import Model


class CachedRun:
    """Prompts and what has been appended to them. A pass costs the new tokens alone and equals a run of the whole text
    under the same edits.

    Its hooks lie on the model between `with` and the end of the block and act for its own passes only: code that runs
    between two passes, in the same thread too, sees the model as if they were not there.

    Args:
        prompts: padding goes to the left, so that all rows go on at the same column.
        edits: positions are those of the prompts.

    Raises:
        ModelError: for a model that is not causal.
        SiteError, ShapeError, DataError, ConfigError: for edits that do not fit.
    """

    def __init__(self, model: Model, prompts: Tokens, edits: Edits = ()) -> None:
        if not model.layout.causal:
            raise ModelError(f"{model.name} reads in both directions: it has no next token and no KV cache")
        plan = model.plan(prompts, edits=edits)
        self.model = model
        self.prompts = prompts if bool(prompts.mask[:, -1].all()) else prompts.padded("left")
        self.plan = plan if self.prompts is prompts else repadded(plan, prompts, self.prompts)
        self.tokens = self.prompts
        self.cache = DynamicCache(config=model.hf.config)
        self.n_cached = 0

    def start(self) -> Float[Tensor, "batch vocab"]:
        """Run the prompts; logits after their last token.

        Raises:
            ModelError: where they are NaN, as transformers' eager attention gives in float64 for padded prompts.
        """
        logits = self._pass(keep=1)[:, -1]
        lost = logits.isnan().any(dim=-1)
        if bool(lost.any()):
            raise ModelError(
                f"the logits after prompt {int(lost.nonzero()[0])} are NaN. The eager kernel gives that in float64 "
                "where prompts are padded: give prompts of one length, or load the model with attention 'sdpa' or in "
                "float32"
            )
        return logits

    def extend(
        self, ids: Int[Tensor, "batch new"], mask: Bool[Tensor, "batch new"] | None = None
    ) -> Float[Tensor, "batch new vocab"]:
        """Append tokens to every row; logits after each of them.

        Args:
            mask: false at padding on the right, after which nothing can be appended.
        """
        live = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        grown = {
            name: torch.cat([getattr(self.tokens, name), new], dim=1)
            for name, new in (("ids", ids), ("mask", live), ("keep", live))
        }
        image = (
            self.tokens.image
            if self.tokens.image is None
            else torch.cat([self.tokens.image, torch.zeros_like(live)], dim=1)
        )
        self.tokens = dataclasses.replace(self.tokens, **grown, image=image)
        return self._pass(keep=ids.shape[1])

    def rows(self, index: Int[Tensor, " row"]) -> CachedRun:
        """A run of its own that goes on from here with these rows, which may repeat."""
        chosen = copy.copy(self)
        chosen.prompts, chosen.tokens = (tokens.rows(index.tolist()) for tokens in (self.prompts, self.tokens))
        chosen.plan = _rows_of_plan(self.plan, index, self.prompts.shape[1])
        # Layers append by making new tensors, so it is enough to copy the containers.
        chosen.cache = copy.copy(self.cache)
        chosen.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        chosen.cache.batch_select_indices(index)
        return chosen

    def __enter__(self) -> CachedRun:
        # A context of its own: hooks and routes know their run by it, and nobody else's code runs there.
        self._context = copy_context()
        self._hooks: AbstractContextManager[Progress] = applied(
            self.model.hf, self.model.layout, self.plan, self.prompts
        )
        self._progress = self._context.run(self._hooks.__enter__)
        return self

    def __exit__(self, *_: object) -> None:
        self._context.run(self._hooks.__exit__, None, None, None)

    def _pass(self, keep: int) -> Float[Tensor, "batch new vocab"]:
        given = self.model.arguments(self.tokens, cached=self.n_cached)
        if "logits_to_keep" in self.model.forward_parameters:
            given["logits_to_keep"] = keep
        width = self.tokens.shape[1] - self.n_cached
        self._progress.start, self._progress.width = self.n_cached, width
        with torch.no_grad():
            out = self._context.run(self.model.hf, past_key_values=self.cache, use_cache=True, **given)
        self.n_cached += width
        return out.logits[:, -keep:]


def check_length(model: Model, prompts: Tokens, new: int) -> None:
    """Raise where prompts and what follows would not fit.

    Raises:
        ConfigError: names the lengths and the limit.
    """
    limit, longest = model.context, int(prompts.lengths.max())
    if limit is not None and longest + new > limit:
        raise ConfigError(f"{longest} prompt tokens + {new} new ones exceed the context of {limit} tokens")


def _rows_of_plan(plan: Plan, index: Int[Tensor, " row"], width: int) -> Plan:
    """The plan for these rows of its batch."""
    column = torch.arange(width, device=index.device)[None]

    def chosen(placed: PlacedEdit) -> Sequence[PlacedEdit]:
        if placed.rows is None:
            return [_picked(placed, index, column)]
        kept = ((index >= placed.rows.start) & (index < placed.rows.stop)).nonzero()[:, 0].tolist()
        return [
            dataclasses.replace(_picked(placed, index[i : i + 1] - placed.rows.start, column), rows=range(i, i + 1))
            for i in kept
        ]

    return dataclasses.replace(plan, edits=tuple(new for placed in plan.edits for new in chosen(placed)))


def _picked(placed: PlacedEdit, index: Int[Tensor, " row"], column: Int[Tensor, "1 pos"]) -> PlacedEdit:
    """The edit for some of the rows that it knows."""
    where = placed.where if placed.where is None or len(placed.where) == 1 else placed.where[index]
    return dataclasses.replace(placed, edit=placed.edit.at(index[:, None], column), where=where)
