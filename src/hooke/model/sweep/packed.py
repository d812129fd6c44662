"""The packed pass of a sweep: only what differs from the clean run is computed, all rows in one pass over the blocks.

Rows join at the layer where they leave the clean run, which is computed along or was kept. All tokens lie side by
side, `[1, n, d_model]`, so that the model's own modules see no padding and no unchanged token; inside attention each
row is spread out again, with the clean run's queries, keys and values where it does not differ. In the last layer only
the places that are read go through the output projection and the MLP.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooke.model.attention import routed, step_by_step
from hooke.model.capture import StopRun, own_run
from hooke.model.edits import Set
from hooke.model.families.family import Layout, Tap
from hooke.model.sites import INNER_SITES, MAP_SITES, Site
from hooke.model.sweep.clean import Clean, packed_options
from hooke.model.sweep.packing import Packing
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
        self.hf, self.layout, self.packing, self.layer, self.is_mine = hf, layout, packing, layer, is_mine
        self.whole, self.clean = clean, clean.layers[layer]
        self.block = self.module("")
        self.edits = edits
        self.n_rows, self.n_attending = packing.joined(layer), packing.attending(layer)
        self.n, self.n_spread = packing.starts[self.n_rows], packing.starts[self.n_attending]
        asking = packing.asking(layer, edits)
        # Modules cannot reshape nothing: where no token asks, one goes through attention, and nobody reads it.
        self.asking = asking if len(asking) else torch.zeros(1, dtype=torch.long, device=asking.device)
        self.narrow = len(self.asking) < self.n
        self.columns, self.read = columns, None
        if columns is not None:
            places = packing.places(columns)
            self.read = places[places >= 0].unique()
        touched = {site.name for site in edits}
        inside = touched & {*INNER_SITES, "result"}
        # Queries that nobody reads need no attention, unless an edit or a later pass wants to see them.
        self.few_queries = columns is not None and not inside and not (packing.n_clean and clean.keep)
        # Where every row is there with all columns, packed tokens are the spread ones, and nothing need be gathered.
        self.is_grid = self.n_spread == self.n_attending * packing.width
        self.mixed: Tensor | None = None

    @property
    def nothing(self) -> Tensor:
        """No token yet."""
        like = self.clean.inputs
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
        stack.enter_context(routed(attention, self._attend))
        if self.narrow or self.few_queries:
            self._hook(stack, self.module(self.tap("z").path), before=lambda _: self._mixed_of_all())
        spans = [] if self.read is None else self._spans()
        for _, end, places, n in spans:
            self._hook(stack, self.module(end), after=_widened(places, n))
        self._hook_edits(stack)
        for begin, _, places, _ in spans:
            for path in begin:
                self._hook(stack, self.module(path), before=_chosen(places))
        if self.narrow:
            self._hook(stack, attention, before=lambda x: x[:, self.asking])
        if not self.whole.keep:
            stack.callback(self.clean.forget)
            self._hook(stack, self.block, after=self._forget)

    def _forget(self, output: Tensor) -> Tensor:
        self.clean.forget()
        self.mixed = None
        return output

    # -- entering the block --------------------------------------------------------------------------------------------

    def _pack(self, module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> tuple[tuple, dict] | None:
        if kwargs is None or not self.is_mine():
            return None
        given = dict(_signature(type(module)).bind(module, *args, **kwargs).arguments)
        given.pop(next(iter(given)))  # the module itself
        given.update(given.pop("kwargs", {}))
        hidden = given.pop(next(iter(given)))  # hidden states come first in every family
        packing, whole = self.packing, self.whole
        if packing.n_clean:
            if self.layer == 0:  # the model's own [batch, pos, d_model]
                hidden = hidden[whole.example, whole.column][None]
            self.clean.options = {name: value for name, value in given.items() if value is not None}
            self.clean.inputs = whole.kept(hidden[0, : packing.n_clean])
        assert self.clean.inputs is not None
        new = slice(hidden.shape[1], self.n)
        hidden = torch.cat([hidden, self.clean.inputs[packing.clean_place[new]][None]], dim=1)
        site = Site("resid_pre", self.layer)
        if site in self.edits:
            hidden = self._changed(site, hidden, owned=True)
        ask = self.asking
        options = packed_options(self.clean.options, packing.example[ask], packing.column[ask], whole.shape)
        return (hidden,), options

    # -- attention -----------------------------------------------------------------------------------------------------

    def _attend(
        self, kernel: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
    ) -> tuple[Tensor, None]:
        """Attention of the packed tokens, each row spread out over its columns."""
        packing, rows, width = self.packing, self.n_attending, self.packing.width
        query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))  # [n, head, d_head]
        if packing.n_clean:
            self.clean.mask = self.clean.options.get("attention_mask")
        if packing.n_clean and self.whole.keep:
            self.clean.queries, self.clean.keys, self.clean.values = (
                tensor[: packing.n_clean].clone() for tensor in (query, key, value)
            )
        if rows == 0:
            return query.new_zeros(1, len(query), query.shape[1], value.shape[-1]), None
        source, offset = self._sources(rows)

        def of(tokens: Tensor, clean: Tensor | None, columns: Tensor | None = None) -> Tensor:
            if source is None:
                spread = tokens.unflatten(0, (rows, width))
                picked = (
                    spread if columns is None else spread[torch.arange(rows, device=columns.device)[:, None], columns]
                )
            else:
                where = source if columns is None else source.gather(1, columns)
                picked = (torch.cat([clean, tokens]) if offset else tokens)[where]
            return picked.transpose(1, 2)

        keys, values = of(key, self.clean.keys), of(value, self.clean.values)
        mask = self.clean.mask
        if mask is not None and mask.shape[0] != 1:
            mask = mask[packing.examples[:rows]]
        if self.few_queries:
            columns = self.columns[packing.examples[:rows]]
            queries = of(query, self.clean.queries, columns)
            mixed, _ = kernel(module, queries, keys, values, self._mask_of(mask, columns, module, options), **options)
            self.mixed = mixed.flatten(-2)
            return query.new_empty(1, len(query), query.shape[1], value.shape[-1]), None  # see `_mixed_of_all`
        full = of(query, self.clean.queries), keys, values
        inner = {row for site, items in self.edits.items() if site.name in INNER_SITES for row, _ in items}
        if not inner:
            mixed, _ = kernel(module, *full, mask, **options)
        else:
            mixed = self._attend_apart(kernel, module, full, mask, sorted(inner), options)
        self.mixed = mixed.flatten(-2)
        if packing.n_clean:
            self.clean.mixed = self.whole.kept(self._mixed_at(slice(0, packing.n_clean)))
        if self.narrow:
            return query.new_empty(1, len(query), query.shape[1], value.shape[-1]), None
        return self._mixed_at(slice(0, self.n))[None].unflatten(-1, (-1, value.shape[-1])), None

    def _sources(self, rows: int) -> tuple[Tensor | None, int]:
        """Where each column of each row lies, `[row, column]`: among those that ask, which come after `offset` clean
        tokens where these were kept. None where the tokens that ask are all there is, in order.
        """
        packing, whole = self.packing, self.whole
        offset = 0 if packing.n_clean else len(whole.example)
        if self.is_grid and not offset and len(self.asking) == self.n_spread:
            return None, 0
        source = whole.place[packing.examples[:rows]]
        place = packing.row[self.asking] * packing.width + packing.column[self.asking]
        source.view(-1)[place] = torch.arange(offset, offset + len(place), device=source.device)
        return source, offset

    def _mixed_at(self, places: slice) -> Tensor:
        """Attention's result at packed places of rows that attend."""
        assert self.mixed is not None
        if self.is_grid:
            return self.mixed.flatten(0, 1)[places]
        return self.mixed[self.packing.row[places], self.packing.column[places]]

    def _mask_of(
        self, mask: Tensor | None, columns: Tensor, module: nn.Module, options: dict[str, Any]
    ) -> Tensor | None:
        """The mask for some queries of each row `[row, 1, query, key]`; None where they see every key."""
        width = self.packing.width
        if mask is not None:
            mask = mask.expand(len(columns), -1, -1, -1)
            return mask.gather(2, columns[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[-1]))
        causal = options.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        if not causal or (columns.shape[1] == 1 and bool((columns == width - 1).all())):
            return None
        return torch.arange(width, device=columns.device) <= columns[:, None, :, None]

    def _mixed_of_all(self) -> Tensor:
        """What enters the output projection, of all rows, or of the places that are read: rows that join after
        attention take the clean run's.
        """
        packing, parts = self.packing, []
        if not self.few_queries:
            if self.n_spread:
                parts.append(self._mixed_at(slice(0, self.n_spread)))
            if self.n_spread < self.n:
                assert self.clean.mixed is not None
                parts.append(self.clean.mixed[packing.clean_place[self.n_spread : self.n]])
            self.mixed = None  # memory that the MLP can use
            return torch.cat(parts)[None]
        assert self.read is not None and self.columns is not None
        attending, late = self.read[self.read < self.n_spread], self.read[self.read >= self.n_spread]
        if len(attending):
            assert self.mixed is not None
            rows, columns = packing.row[attending], packing.column[attending]
            which = (self.columns[packing.examples[rows]] == columns[:, None]).int().argmax(1)
            parts.append(self.mixed[rows, which])
            if packing.n_clean:
                own = attending < packing.n_clean
                self.clean.mixed = self.mixed.new_zeros(packing.n_clean, self.mixed.shape[-1])
                self.clean.mixed[attending[own]] = parts[0][own]
        if len(late):
            assert self.clean.mixed is not None
            parts.append(self.clean.mixed[packing.clean_place[late]])
        return torch.cat(parts)[None]

    def _attend_apart(
        self,
        kernel: Callable,
        module: nn.Module,
        full: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        inner: list[int],
        options: dict[str, Any],
    ) -> Tensor:
        """Rows with edits inside attention go step by step, the others stay on the kernel."""
        rows = full[0].shape[0]
        plain = sorted(set(range(rows)) - set(inner))
        mixed = full[0].new_empty(rows, full[0].shape[2], full[0].shape[1], full[2].shape[-1])
        for chosen in (inner, plain):
            if not chosen:
                continue
            pick = torch.tensor(chosen, device=full[0].device)
            own = mask if mask is None or mask.shape[0] == 1 else mask[pick]
            parts = [tensor[pick] for tensor in full]
            if chosen is plain:
                mixed[pick], _ = kernel(module, *parts, own, **options)
            else:
                mixed[pick], _ = step_by_step(module, *parts, own, observe=self._observer(chosen), **options)
        return mixed

    def _observer(self, chosen: list[int]) -> Callable[[str, Tensor], Tensor]:
        def observe(name: str, value: Tensor) -> Tensor:
            items = self.edits.get(Site(name, self.layer), ())
            value = value.clone() if items else value
            for row, edit in items:
                here = chosen.index(row)
                columns = torch.tensor(edit.columns, device=value.device)
                head, by_query = edit.placed.site.head, name in MAP_SITES
                view = value[here : here + 1]
                view = view if head is None else view.select(1 if by_query else 2, head)
                turned = by_query and head is None  # [1, head, query, key]: queries second
                example = torch.tensor([[self.packing.rows[row].example]], device=value.device)
                own = edit.placed.edit.at(example, torch.arange(self.packing.width, device=value.device)[None])
                changed = own.change(view)
                if turned:
                    view[:, :, columns] = changed[:, :, columns]
                else:
                    view[:, columns] = changed[:, columns]
            return value

        return observe

    # -- edits at modules ----------------------------------------------------------------------------------------------

    def _hook_edits(self, stack: ExitStack) -> None:
        for site in self.edits:
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
            changed = self._changed(site, value.unflatten(0, (1, -1)) if tap.flat else value)
            return tap.view.write(module, x, output, changed.flatten(0, 1) if tap.flat else changed)

        return change

    def _written(self, site: Site, tap: Tap, tensor: Tensor) -> Tensor:
        value = tap.view.read(tensor)
        # What enters the output projection has just been put together by `_mixed_of_all`.
        owned = site.name == "z" and (self.narrow or self.few_queries)
        changed = self._changed(site, value.unflatten(0, (1, -1)) if tap.flat else value, owned=owned)
        return tap.view.write(tensor, changed.flatten(0, 1) if tap.flat else changed)

    def _changed(self, site: Site, value: Tensor, *, owned: bool = False) -> Tensor:
        """The site's packed tensor `[1, n, ...]` with the rows' edits applied, each to its own tokens; written in place
        where the tensor is ours.
        """
        value = value if owned else value.clone()
        given: dict[int | None, tuple[list[int], list[Tensor]]] = {}
        items = self.edits[site]
        alone = len({row for row, _ in items}) == len(items)  # no row has two edits here: their order is free
        for row, edit in items:
            place, head = self.packing.index(row, edit.columns), edit.placed.site.head
            example = self.packing.rows[row].example
            if alone and isinstance(edit.placed.edit, Set):
                places, values = given.setdefault(head, ([], []))
                places.extend(place)
                values.append(edit.placed.edit.value_at(example, edit.columns))
                continue
            here, there = self._there(site, torch.tensor(place, device=value.device))
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
        if site.name in ("q", "k", "v") and self.narrow:
            return torch.searchsorted(self.asking, place), slice(None)
        if site.name == "z" and self.few_queries:
            assert self.read is not None
            there = torch.isin(place, self.read)
            return torch.searchsorted(self.read, place[there]), there
        return place, slice(None)

    # -- fewer tokens in the last layer --------------------------------------------------------------------------------

    def _spans(self) -> list[tuple[list[str], str, Tensor, int]]:
        """Stretches of modules that act on each token alone: where they begin, where they end, which of how many tokens
        are needed there.
        """
        assert self.read is not None
        touched, has = {site.name for site in self.edits}, self.layout.has
        spans = []
        if "result" not in touched:
            # With few queries the projection is given the places that are read and no others.
            begin = [] if self.few_queries else [self.tap("z").path]
            spans.append((begin, self.tap("z").path, self.read, self.n))
        inside = {"mlp_pre", "mlp_gate", "mlp_pre_linear", "mlp_post"}
        if has("mlp_post", self.layer) and not touched & inside:
            begin = {self.tap(name).path for name in ("mlp_pre", "mlp_pre_linear") if has(name, self.layer)}
            spans.append((sorted(begin), self.tap("mlp_post").path, self.read, self.n))
        norm = self.layout.norms.get("mlp_norm_scale")
        if norm is not None and not touched & {"resid_mid", "mlp_norm_scale", "mlp_in"}:
            spans.append(([norm], norm, self.read, self.n))
        query, others = self.tap("q").path, {self.tap("k").path, self.tap("v").path}
        asked = self.read[torch.isin(self.read, self.asking)]
        if "q" not in touched and query not in others and len(asked):
            spans.append(([query], query, torch.searchsorted(self.asking, asked), len(self.asking)))
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


@functools.cache
def _signature(kind: type[nn.Module]) -> inspect.Signature:
    return inspect.signature(kind.forward)


def _chosen(places: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: x.index_select(-2, places)


def _widened(places: Tensor, n: int) -> Callable[[Tensor], Tensor]:
    def widen(output: Tensor) -> Tensor:
        wide = output.new_zeros(*output.shape[:-2], n, output.shape[-1])
        return wide.index_copy_(-2, places, output)

    return widen
