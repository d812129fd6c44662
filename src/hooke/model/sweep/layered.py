"""The layered pass of a sweep: for families whose attention cannot be spread out, rows run whole but join late.

A row enters at the layer where it leaves the clean run; what lies left of its first change is computed again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooke.model.capture import StopRun, applied, own_run
from hooke.model.families.family import Layout
from hooke.model.plan import Plan
from hooke.model.sweep.clean import block_arguments
from hooke.model.sweep.rows import Row, acts_at
from hooke.model.tokens import Tokens


@dataclasses.dataclass
class CleanBlocks:
    """The clean run: what each block read `[batch, pos, d_model]`, its other arguments, and the last block's output."""

    inputs: list[Tensor]
    options: list[dict[str, Any]]
    output: Tensor


@torch.no_grad()
def clean_blocks(hf: nn.Module, layout: Layout, arguments: Mapping[str, Tensor]) -> CleanBlocks:
    """Run the model up to its last block and record what went into each."""
    clean = CleanBlocks([], [], torch.empty(0))
    with ExitStack() as stack:
        mine = stack.enter_context(own_run())

        def record(module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> None:
            if mine() and kwargs is not None:  # another thread may call a hook just taken off, without keywords
                hidden, given = block_arguments(module, args, kwargs)
                clean.inputs.append(hidden)
                clean.options.append(given)

        def finish(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
            if mine():
                clean.output = output if isinstance(output, Tensor) else output[0]
                raise StopRun

        blocks = [hf.get_submodule(f"{layout.blocks}.{n}") for n in range(layout.n_layers)]
        for block in blocks:
            stack.callback(block.register_forward_pre_hook(record, with_kwargs=True).remove)
        stack.callback(blocks[-1].register_forward_hook(finish).remove)
        with suppress(StopRun):
            hf(**arguments, use_cache=False)
    return clean


@torch.no_grad()
def layered_pass(
    hf: nn.Module, layout: Layout, clean: CleanBlocks, tokens: Tokens, rows: Sequence[Row]
) -> Float[Tensor, "row pos d_model"]:
    """What the last block gives for every row; rows must come in the order in which they join."""
    examples = torch.tensor([row.example for row in rows], device=tokens.ids.device)
    placed = []
    for index, row in enumerate(rows):
        for edit in row.edits:
            where = edit.placed.where
            own = edit.placed.edit.at(
                torch.tensor([[row.example]], device=examples.device),
                torch.arange(tokens.shape[1], device=examples.device)[None],
            )
            placed.append(
                dataclasses.replace(
                    edit.placed,
                    site=acts_at(edit.placed.site, layout.n_layers),
                    edit=own,
                    rows=range(index, index + 1),
                    where=None if where is None else where[row.example][None],
                )
            )
    repeated = dataclasses.replace(tokens, media={}, image=None).rows(examples.tolist())
    hidden = clean.inputs[rows[0].layer][:0]
    with own_run(), applied(hf, layout, Plan(edits=tuple(placed)), repeated):  # no listener of the caller's hears it
        for n in range(rows[0].layer, layout.n_layers):
            joined = sum(row.layer <= n for row in rows)
            hidden = torch.cat([hidden, clean.inputs[n][examples[len(hidden) : joined]]])
            options = {
                name: _of_rows(value, examples[:joined], tokens.shape[0], layout.n_heads)
                for name, value in clean.options[n].items()
            }
            output = hf.get_submodule(f"{layout.blocks}.{n}")(hidden, **options)
            hidden = output if isinstance(output, Tensor) else output[0]
    return hidden


def _of_rows(value: Any, examples: Tensor, batch: int, n_heads: int) -> Any:
    """An argument of a block for some examples, repeated as asked."""
    if isinstance(value, tuple):
        return tuple(_of_rows(item, examples, batch, n_heads) for item in value)
    if not isinstance(value, Tensor) or value.ndim < 2:
        return value
    if value.shape[0] == batch * n_heads and value.ndim == 3:  # ALiBi: [batch * head, 1, key]
        return value.unflatten(0, (batch, n_heads))[examples].flatten(0, 1)
    return value[examples] if value.shape[0] == batch else value.expand(len(examples), *value.shape[1:])
