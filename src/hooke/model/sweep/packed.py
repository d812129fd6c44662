"""The packed pass of a sweep: only what differs from the clean run is computed, all rows in one pass over the blocks.

Rows join at the layer where they leave the clean run, which is computed along or was kept. All tokens lie side by
side, `[1, n, d_model]`, so that the model's own modules see no padding and no unchanged token; inside attention each
row is spread out again, with the clean run's queries, keys and values where it does not differ. In the last layer only
the places that are read go through the output projection and the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooke.model.attention import routed
from hooke.model.capture import StopRun, own_run
from hooke.model.families.family import Layout, Tap
from hooke.model.sites import INNER_SITES, Site
from hooke.model.sweep.attending import Attention
from hooke.model.sweep.changing import Changes
from hooke.model.sweep.clean import Clean, block_arguments, packed_options
from hooke.model.sweep.packing import Packing
from hooke.model.sweep.portion import Portion
from hooke.model.sweep.rows import LocalEdit


@torch.no_grad()
def packed_pass(
    hf: nn.Module,
    layout: Layout,
    clean: Clean,
    packing: Packing,
    *,
    arguments: Mapping[str, Tensor],
    columns: Int[Tensor, "batch position"] | None,
) -> Float[Tensor, "n d_model"]:
    """What the last block gives for every packed token.

    Args:
        arguments: of the model's forward, for the inputs.
        columns: what is read of each example; the rest of the result is undefined. None reads all.

    Raises:
        NotPlain: where the blocks take something that cannot be packed.
    """
    last = layout.n_layers - 1
    first = 0 if packing.n_clean else min(row.layer for row in packing.rows)
    result: list[Tensor] = []

    def finish(_: nn.Module, args: tuple, output: Tensor | tuple) -> None:
        if mine():
            result.append(output if isinstance(output, Tensor) else output[0])
            raise StopRun

    with ExitStack() as stack:
        mine = stack.enter_context(own_run())
        edits = packing.edits(layout.n_layers)
        passes = [
            BlockPass(hf, layout, clean, packing, n, edits[n], mine, columns if n == last else None)
            for n in range(first, last + 1)
        ]
        for block in passes:
            block.enter(stack)
        stack.callback(passes[-1].block.register_forward_hook(finish).remove)
        with suppress(StopRun):
            if packing.n_clean:
                hf(**arguments, use_cache=False)  # the model itself leads from block to block
            else:
                hidden = passes[0].nothing
                for block in passes:
                    output = block.block(hidden, **clean.layers[block.layer].options)
                    hidden = output if isinstance(output, Tensor) else output[0]
    return result[0][0]


class BlockPass:
    """What the packed pass does at one block: hooks that pack, change and spread."""

    def __init__(
        self,
        hf: nn.Module,
        layout: Layout,
        clean: Clean,
        packing: Packing,
        layer: int,
        edits: Mapping[Site, Sequence[tuple[int, LocalEdit]]],
        is_mine: Callable[[], bool],
        columns: Tensor | None,
    ) -> None:
        self.hf, self.layout, self.layer, self.is_mine = hf, layout, layer, is_mine
        self.portion = Portion(packing, clean, layer, edits, columns)
        self.attention, self.changes = Attention(self.portion), Changes(self.portion)
        self.block = self.module("")

    @property
    def nothing(self) -> Tensor:
        """No token yet."""
        like = self.portion.clean.inputs
        assert like is not None
        return like.new_zeros(1, 0, like.shape[-1])

    def module(self, path: str) -> nn.Module:
        return self.hf.get_submodule(self.layout.module(self.layer, path))

    def tap(self, name: str) -> Tap:
        return self.layout.tap(name, self.layer)

    def enter(self, stack: ExitStack) -> None:
        """Put the hooks on. Those of one module act in this order: edits see all tokens, later parts fewer."""
        handle = self.block.register_forward_pre_hook(self._pack, with_kwargs=True)
        stack.callback(handle.remove)
        attention = self.module(self.layout.attention)
        stack.enter_context(routed(attention, self.attention.attend))
        if self.portion.narrow or self.portion.few_queries:
            self._hook(stack, self.module(self.tap("z").path), before=lambda _: self.attention.mixed_of_all())
        spans = [] if self.portion.read is None else self._spans()
        for _, end, places, n in spans:
            self._hook(stack, self.module(end), after=_widened(places, n))
        self._hook_edits(stack)
        for begin, _, places, _ in spans:
            for path in begin:
                self._hook(stack, self.module(path), before=_chosen(places))
        if self.portion.narrow:
            self._hook(stack, attention, before=lambda x: x[:, self.portion.asking])
        if not self.portion.whole.keep:
            stack.callback(self.portion.clean.forget)
            self._hook(stack, self.block, after=self._forget)

    def _forget(self, output: Tensor) -> Tensor:
        self.portion.clean.forget()
        self.attention.mixed = None
        return output

    # -- entering the block --------------------------------------------------------------------------------------------

    def _pack(self, module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> tuple[tuple, dict] | None:
        if kwargs is None or not self.is_mine():
            return None
        hidden, given = block_arguments(module, args, kwargs)
        packing, whole = self.portion.packing, self.portion.whole
        if packing.n_clean:
            if self.layer == 0:  # the model's own [batch, pos, d_model]
                hidden = hidden[whole.example, whole.column][None]
            self.portion.clean.options = {name: value for name, value in given.items() if value is not None}
            self.portion.clean.inputs = whole.kept(hidden[0, : packing.n_clean])
        assert self.portion.clean.inputs is not None
        new = slice(hidden.shape[1], self.portion.n)
        hidden = torch.cat([hidden, self.portion.clean.inputs[packing.clean_place[new]][None]], dim=1)
        site = Site("resid_pre", self.layer)
        if site in self.portion.edits:
            hidden = self.changes.changed(site, hidden, owned=True)
        ask = self.portion.asking
        options = packed_options(self.portion.clean.options, packing.example[ask], packing.column[ask], whole.shape)
        return (hidden,), options

    # -- edits at modules ----------------------------------------------------------------------------------------------

    def _hook_edits(self, stack: ExitStack) -> None:
        for site in self.portion.edits:
            if site.name in INNER_SITES or site.name == "resid_pre":
                continue
            tap = self.tap(site.name)
            module = self.module(tap.path)
            if tap.side == "through":
                self._hook(stack, module, through=self._through(site, tap))
            elif tap.side == "in":
                self._hook(stack, module, before=self._before(site, tap))
            else:
                self._hook(stack, module, after=lambda output, site=site, tap=tap: self._written(site, tap, output))

    def _before(self, site: Site, tap: Tap) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            written = self._written(site, tap, x)
            return x.copy_(written) if tap.in_place else written

        return change

    def _through(self, site: Site, tap: Tap) -> Callable[[nn.Module, Tensor, Any], Any]:
        def change(module: nn.Module, x: Tensor, output: Any) -> Any:
            value = tap.view.read(module, x, output)
            changed = self.changes.changed(site, value.unflatten(0, (1, -1)) if tap.flat else value)
            return tap.view.write(module, x, output, changed.flatten(0, 1) if tap.flat else changed)

        return change

    def _written(self, site: Site, tap: Tap, tensor: Tensor) -> Tensor:
        value = tap.view.read(tensor)
        # What enters the output projection has just been put together by `mixed_of_all`.
        owned = site.name == "z" and (self.portion.narrow or self.portion.few_queries)
        changed = self.changes.changed(site, value.unflatten(0, (1, -1)) if tap.flat else value, owned=owned)
        return tap.view.write(tensor, changed.flatten(0, 1) if tap.flat else changed)

    # -- fewer tokens in the last layer --------------------------------------------------------------------------------

    def _spans(self) -> list[tuple[list[str], str, Tensor, int]]:
        """Stretches of modules that act on each token alone: where they begin, where they end, which of how many tokens
        are needed there.
        """
        assert self.portion.read is not None
        touched, has = self.portion.touched, self.layout.has
        spans = []
        if "result" not in touched:
            # With few queries the projection is given the places that are read and no others.
            begin = [] if self.portion.few_queries else [self.tap("z").path]
            spans.append((begin, self.tap("z").path, self.portion.read, self.portion.n))
        inside = {"mlp_pre", "mlp_gate", "mlp_pre_linear", "mlp_post"}
        if has("mlp_post", self.layer) and not touched & inside:
            begin = {self.tap(name).path for name in ("mlp_pre", "mlp_pre_linear") if has(name, self.layer)}
            spans.append((sorted(begin), self.tap("mlp_post").path, self.portion.read, self.portion.n))
        norm = self.layout.norms.get("mlp_norm_scale")
        if norm is not None and not touched & {"resid_mid", "mlp_norm_scale", "mlp_in"}:
            spans.append(([norm], norm, self.portion.read, self.portion.n))
        query, others = self.tap("q").path, {self.tap("k").path, self.tap("v").path}
        asked = self.portion.read[torch.isin(self.portion.read, self.portion.asking)]
        if "q" not in touched and query not in others and len(asked):
            spans.append(([query], query, torch.searchsorted(self.portion.asking, asked), len(self.portion.asking)))
        return spans

    def _hook(
        self,
        stack: ExitStack,
        module: nn.Module,
        *,
        before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
        through: Callable[[nn.Module, Tensor, Any], Any] | None = None,
    ) -> None:
        """Put a change of a module's input or output on for the time of the pass."""

        # Another thread may meet a hook that has just been taken off, and then without keywords.
        def on_input(_: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> tuple[tuple, dict] | None:
            if kwargs is None or not self.is_mine():
                return None
            if args:
                return (before(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": before(kwargs["hidden_states"])}

        def on_output(_: nn.Module, args: tuple, output: Any) -> Any:
            if not self.is_mine():
                return None
            return after(output) if isinstance(output, Tensor) else (after(output[0]), *output[1:])

        def on_call(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any = None) -> Any:
            return through(module, args[0] if args else kwargs["hidden_states"], output) if self.is_mine() else None

        if before is not None:
            handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
        elif after is not None:
            handle = module.register_forward_hook(on_output)
        else:
            handle = module.register_forward_hook(on_call, with_kwargs=True)
        stack.callback(handle.remove)


def _chosen(places: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x.index_select(-2, places)


def _widened(places: Tensor, n: int) -> Callable[[Tensor], Tensor]:
    def widen(output: Tensor) -> Tensor:
        wide = output.new_zeros(*output.shape[:-2], n, output.shape[-1])
        return wide.index_copy_(-2, places, output)

    return widen
