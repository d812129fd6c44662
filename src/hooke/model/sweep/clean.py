"""The clean run of a sweep, recorded: what each block read, and the keys and values of its attention."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooke.model.attention import routed
from hooke.model.capture import StopRun, own_run
from hooke.model.families.family import Layout
from hooke.model.tokens import Tokens


@dataclass
class CleanLayer:
    """One block of the clean run.

    Args:
        inputs: what the block read.
        options: its other arguments by name.
        keys, values: as the attention function got them.
        mask: the attention function's mask.
        mixed: what entered the output projection, where asked for.
    """

    inputs: Float[Tensor, "batch pos d_model"] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    keys: Float[Tensor, "batch pos kv_head d_head"] | None = None
    values: Float[Tensor, "batch pos kv_head d_head"] | None = None
    mask: Tensor | None = None
    mixed: Float[Tensor, "batch pos d_z"] | None = None

    def options_at(
        self, example: Int[Tensor, " n"], column: Int[Tensor, " n"], shape: tuple[int, int]
    ) -> dict[str, Any]:
        """The block's other arguments for packed tokens: what lies along positions is gathered, caches and masks are
        left out.
        """
        return {
            name: _gathered(value, example, column, shape)
            for name, value in self.options.items()
            if name not in _NOT_FOR_PACKED
        }


@dataclass
class Clean:
    """The clean run from its first recorded layer on, and what the last block gave."""

    layers: dict[int, CleanLayer]
    output: Float[Tensor, "batch pos d_model"]

    @property
    def bytes(self) -> int:
        """Memory that is held."""
        kept = [t for layer in self.layers.values() for t in (layer.inputs, layer.keys, layer.values, layer.mixed)]
        return sum(t.nbytes for t in [*kept, self.output] if t is not None)


class NotPlain(Exception):
    """The model does something between or around its blocks that a packed pass would miss."""


def clean_run(
    hf: nn.Module, layout: Layout, arguments: Mapping[str, Tensor], tokens: Tokens, first: int, mixed: set[int]
) -> Clean:
    """Run the model up to its last block and record the layers from `first` on.

    Raises:
        NotPlain: where a block's input is not what the block before it gave.
    """
    layers = {n: CleanLayer() for n in range(first, layout.n_layers)}
    outputs: dict[int, Tensor] = {}
    with ExitStack() as stack:
        mine = stack.enter_context(own_run())
        stack.enter_context(torch.no_grad())
        for n, layer in layers.items():
            block = hf.get_submodule(f"{layout.blocks}.{n}")
            hooks = [
                block.register_forward_pre_hook(_record_block(layer, mine), with_kwargs=True),
                block.register_forward_hook(_record_output(outputs, n, n == layout.n_layers - 1, mine)),
            ]
            if n in mixed:
                module = hf.get_submodule(layout.path("z", n))
                hooks.append(module.register_forward_pre_hook(_record_mixed(layer, mine)))
            for hook in hooks:
                stack.callback(hook.remove)
            attention = hf.get_submodule(layout.module(n, layout.attention))
            stack.enter_context(routed(attention, _record_attention(layer)))
        with suppress(StopRun):
            hf(**arguments, use_cache=False)
    for n, layer in layers.items():
        if layer.keys is None or (n > first and layer.inputs is not outputs[n - 1]):
            raise NotPlain(f"layer {n} does not simply follow layer {n - 1}")
    return Clean(layers, outputs[layout.n_layers - 1])


def _record_block(layer: CleanLayer, mine: Callable[[], bool]) -> Callable:
    def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if not mine():
            return
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        given = dict(bound.arguments)
        given.update(given.pop("kwargs", {}))
        names = iter(given)
        layer.inputs = given.pop(next(names))  # hidden states come first in every family
        layer.options = {name: value for name, value in given.items() if value is not None}

    return record


def _record_output(outputs: dict[int, Tensor], n: int, last: bool, mine: Callable[[], bool]) -> Callable:
    def record(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        if not mine():
            return
        outputs[n] = output if isinstance(output, Tensor) else output[0]
        if last:
            raise StopRun

    return record


def _record_mixed(layer: CleanLayer, mine: Callable[[], bool]) -> Callable:
    def record(module: nn.Module, args: tuple) -> None:
        if mine():
            layer.mixed = args[0]

    return record


def _record_attention(layer: CleanLayer) -> Callable:
    def record(kernel: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **rest: Any):
        layer.keys, layer.values = key.transpose(1, 2).contiguous(), value.transpose(1, 2).contiguous()
        layer.mask = mask
        return kernel(module, query, key, value, mask, **rest)

    return record


_NOT_FOR_PACKED = frozenset({"attention_mask", "past_key_values", "past_key_value", "layer_past", "use_cache"})


def _gathered(value: Any, example: Tensor, column: Tensor, shape: tuple[int, int]) -> Any:
    batch, width = shape
    if isinstance(value, tuple):
        return tuple(_gathered(item, example, column, shape) for item in value)
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    if value.ndim >= 2 and value.shape[1] == width and value.shape[0] in (1, batch):
        rows = example if value.shape[0] == batch else torch.zeros_like(example)
        return value[rows, column][None]
    if value.shape[0] == width:
        return value[column]
    raise NotPlain(f"a block's argument of shape {tuple(value.shape)} does not lie along positions")
