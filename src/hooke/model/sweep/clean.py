"""The clean run inside a sweep: what rows that leave it later start from, and what they share with it."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooke.model.tokens import Tokens


@dataclass
class CleanLayer:
    """One block of the clean run, for its tokens side by side (no padding).

    Args:
        options: the block's arguments by name, as the model gave them.
        inputs: what the block read.
        queries, keys, values: as the attention function got them.
        mask: the attention function's mask.
        mixed: what entered the output projection.
    """

    options: dict[str, Any] = field(default_factory=dict)
    inputs: Float[Tensor, "token d_model"] | None = None
    queries: Float[Tensor, "token head d_head"] | None = None
    keys: Float[Tensor, "token kv_head d_head"] | None = None
    values: Float[Tensor, "token kv_head d_head"] | None = None
    mask: Tensor | None = None
    mixed: Float[Tensor, "token d_z"] | None = None

    def forget(self) -> None:
        """Let go of the tensors."""
        self.inputs = self.queries = self.keys = self.values = self.mixed = self.mask = None
        self.options = {}


class Clean:
    """The clean run of a batch: its layers, its output, and where each of its tokens lies among them.

    Args:
        keep: whether later passes will want it; otherwise each layer is forgotten once it has been used.
    """

    def __init__(self, tokens: Tokens, n_layers: int, keep: bool) -> None:
        self.layers = [CleanLayer() for _ in range(n_layers)]
        self.output: Tensor | None = None
        self.keep = keep
        self.shape = tokens.shape
        self.example, self.column = tokens.mask.nonzero(as_tuple=True)
        # Padding points at the first token: finite, and masked wherever it is read.
        self.place = torch.zeros(tokens.shape, dtype=torch.long, device=tokens.mask.device)
        self.place[self.example, self.column] = torch.arange(len(self.example), device=self.place.device)

    def kept(self, tensor: Tensor) -> Tensor:
        """A tensor to remember: a copy of its own where it stays, so that what it is a part of does not."""
        return tensor.clone() if self.keep else tensor


class NotPlain(Exception):
    """The model does something around its blocks that a packed pass would miss."""


def block_arguments(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """What a block was called with: its hidden states, which come first in every family, and the rest by name."""
    signature = _signature(type(module))
    given = dict(signature.bind(module, *args, **kwargs).arguments)
    given.pop(next(iter(given)))  # the module itself
    hidden = given.pop(next(iter(given)))
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            given.update(given.pop(name, {}))
    return hidden, given


@functools.cache
def _signature(kind: type[nn.Module]) -> inspect.Signature:
    return inspect.signature(kind.forward)


# Packed tokens see no cache, and the attention function gets its mask from the row.
_LEFT_OUT = frozenset({"attention_mask", "past_key_values", "past_key_value", "layer_past", "use_cache"})


def packed_options(
    options: dict[str, Any], example: Int[Tensor, " n"], column: Int[Tensor, " n"], shape: tuple[int, int]
) -> dict[str, Any]:
    """A block's other arguments for packed tokens: what lies along positions is gathered.

    Raises:
        NotPlain: for an argument of another form.
    """
    return {name: _gathered(value, example, column, shape) for name, value in options.items() if name not in _LEFT_OUT}


def _gathered(value: Any, example: Tensor, column: Tensor, shape: tuple[int, int]) -> Any:
    batch, width = shape
    if isinstance(value, tuple):
        return tuple(_gathered(item, example, column, shape) for item in value)
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if value.ndim >= 2 and value.shape[1] == width and value.shape[0] in (1, batch):
        return (value[0, column] if value.shape[0] == 1 else value[example, column])[None]
    if value.shape[0] == width:
        return value[column]
    raise NotPlain(f"a block's argument of shape {tuple(value.shape)} does not lie along positions")
