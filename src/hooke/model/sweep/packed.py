"""The packed pass of a sweep: only what differs from the clean run is computed, all rows in one pass over the blocks.

Rows join at the layer where they leave the clean run. All their tokens lie side by side, `[1, n, d_model]`, so that the
model's own modules see no padding and no unchanged token; inside attention each row is spread out again, with the clean
run's keys and values left of its first change. In the last layer only the places that are read go through the output
projection and the MLP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hooke.model.attention import routed, step_by_step
from hooke.model.capture import own_run
from hooke.model.families.family import Layout, Tap
from hooke.model.sites import INNER_SITES, MAP_SITES, Site
from hooke.model.sweep.clean import Clean
from hooke.model.sweep.rows import LocalEdit, Row


class Packing:
    """Where the tokens of a set of rows lie, rows in the order in which they join."""

    def __init__(self, rows: Sequence[Row], width: int, device: torch.device) -> None:
        self.rows = sorted(rows, key=lambda row: (row.layer, row.late))
        self.width = width
        widths = torch.tensor([row.width for row in self.rows])
        self.ends = widths.cumsum(0).tolist()
        self.starts = [0, *self.ends[:-1]]
        self.row = torch.repeat_interleave(torch.arange(len(self.rows)), widths).to(device)
        self.column = torch.cat([torch.arange(row.first, row.end) for row in self.rows]).to(device)
        self.examples = torch.tensor([row.example for row in self.rows], device=device)
        self.example = self.examples[self.row]

    def joined(self, layer: int) -> tuple[int, int]:
        """How many rows take part in a layer's attention, and how many in the layer at all."""
        early = sum(row.layer < layer or (row.layer == layer and not row.late) for row in self.rows)
        return early, sum(row.layer <= layer for row in self.rows)

    def tokens(self, n_rows: int) -> int:
        """Tokens of the first rows."""
        return self.ends[n_rows - 1] if n_rows else 0

    def index(self, row: int, columns: Tensor) -> Tensor:
        """Places of some columns of a row among the packed tokens."""
        return columns - self.rows[row].first + self.starts[row]

    def places(self, columns: Int[Tensor, "batch position"]) -> Int[Tensor, "row position"]:
        """Places of the columns that a metric reads, -1 where a row does not differ from the clean run there."""
        first = torch.tensor([row.first for row in self.rows], device=columns.device)[:, None]
        starts = torch.tensor(self.starts, device=columns.device)[:, None]
        asked = columns[self.examples]
        return torch.where(asked >= first, asked - first + starts, torch.full_like(asked, -1))


@torch.no_grad()
def packed_pass(
    hf: nn.Module, layout: Layout, clean: Clean, packing: Packing, read: Int[Tensor, " place"] | None
) -> Float[Tensor, "n d_model"]:
    """What the last block gives for every packed token; where `read` names the places that are needed, the others are
    undefined.
    """
    first = packing.rows[0].layer
    hidden = None
    with own_run() as mine:
        for n in range(first, layout.n_layers):
            _, now = packing.joined(n)
            before = 0 if hidden is None else hidden.shape[1]
            new = slice(before, packing.tokens(now))
            joining = clean.layers[n].inputs[packing.example[new], packing.column[new]][None]
            hidden = joining if hidden is None else torch.cat([hidden, joining], dim=1)
            last = n == layout.n_layers - 1
            hidden = _Block(hf, layout, clean, packing, n, mine).run(hidden, read if last else None)
    return hidden[0]


class _Block:
    """One block of the packed pass."""

    def __init__(
        self,
        hf: nn.Module,
        layout: Layout,
        clean: Clean,
        packing: Packing,
        layer: int,
        is_mine: Callable[[], bool],
    ) -> None:
        self.layout, self.packing, self.layer, self.is_mine = layout, packing, layer, is_mine
        self.clean, self.hf = clean.layers[layer], hf
        self.n_attending, self.n_rows = packing.joined(layer)
        self.block = self.module("")
        self.edits: dict[Site, list[tuple[int, LocalEdit]]] = {}
        for index, row in enumerate(packing.rows[: self.n_rows]):
            for edit in row.edits:
                site = self._site_here(edit)
                if site is not None:
                    self.edits.setdefault(site.without_head, []).append((index, edit))

    def _site_here(self, edit: LocalEdit) -> Site | None:
        site = edit.placed.site
        if site.name == "resid_post" and site.layer + 1 < self.layout.n_layers:
            site = dataclasses.replace(site, name="resid_pre", layer=site.layer + 1)
        return site if site.layer == self.layer else None

    def module(self, path: str) -> nn.Module:
        return self.hf.get_submodule(self.layout.module(self.layer, path))

    def tap(self, name: str) -> Tap:
        return self.layout.tap(name, self.layer)

    def run(self, hidden: Tensor, read: Tensor | None) -> Tensor:
        """The block's output for the packed tokens `[1, n, d_model]`."""
        packing = self.packing
        # Modules cannot reshape nothing: where no row attends, one token goes through attention and is dropped.
        n = max(1, packing.tokens(self.n_attending))
        shape = (self.clean.inputs.shape[0], packing.width)
        options = self.clean.options_at(packing.example[:n], packing.column[:n], shape)
        if ("resid_pre", self.layer) in {(site.name, site.layer) for site in self.edits}:
            hidden = self._changed(Site("resid_pre", self.layer), hidden)
        with ExitStack() as stack:
            attention = self.module(self.layout.attention)
            stack.enter_context(routed(attention, self._attend))
            self._hook(stack, attention, before=lambda x: x[:, :n])
            if n < hidden.shape[1]:
                self._hook(stack, self.module(self.tap("z").path), before=self._with_clean_mixed)
            if read is not None and len(read) < hidden.shape[1]:
                self._narrow_outputs(stack, read, hidden.shape[1])
            self._hook_edits(stack)
            if read is not None and len(read) < hidden.shape[1]:
                self._narrow_inputs(stack, read)
            output = self.block(hidden, **options)
        return output if isinstance(output, Tensor) else output[0]

    # -- attention -----------------------------------------------------------------------------------------------------

    def _attend(
        self, kernel: Callable, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _: Any, **options: Any
    ) -> tuple[Tensor, None]:
        """Attention of the packed tokens, each row spread out over its columns with the clean keys and values."""
        packing, n = self.packing, query.shape[2]
        rows, width = self.n_attending, packing.width
        if rows == 0:
            return query.new_zeros(1, n, query.shape[1], value.shape[-1]), None
        examples, place = packing.examples[:rows], packing.row[:n] * width + packing.column[:n]

        def spread(packed: Tensor, clean: Tensor | None) -> Tensor:
            tokens = packed[0].transpose(0, 1)  # [n, head, d_head]
            full = tokens.new_zeros(rows, width, *tokens.shape[1:]) if clean is None else clean[examples]
            full.view(rows * width, *tokens.shape[1:]).index_copy_(0, place, tokens)
            return full.transpose(1, 2)

        full = spread(query, None), spread(key, self.clean.keys), spread(value, self.clean.values)
        mask = self.clean.mask
        if mask is not None and mask.shape[0] != 1:
            mask = mask[examples]
        inner = {index for site, edits in self.edits.items() if site.name in INNER_SITES for index, _ in edits}
        if not inner:
            mixed, _ = kernel(module, *full, mask, **options)
        else:
            mixed = self._attend_apart(kernel, module, full, mask, sorted(inner), options)
        return mixed[packing.row[:n], packing.column[:n]][None], None

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
        plain = [index for index in range(rows) if index not in inner]
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
            edits = self.edits.get(Site(name, self.layer), ())
            if not edits:
                return value
            value = value.clone()
            for index, edit in edits:
                row = slice(chosen.index(index), chosen.index(index) + 1)
                columns = edit.columns.to(value.device)
                head, by_query = edit.placed.site.head, name in MAP_SITES
                view = value[row] if head is None else value[row].select(1 if by_query else 2, head)
                view = view.transpose(1, 2) if by_query and head is None else view  # positions second
                changed = self._new_value(index, edit, view, by_query and head is None)
                view[:, columns] = changed[:, columns]
            return value

        return observe

    def _new_value(self, index: int, edit: LocalEdit, view: Tensor, turned: bool) -> Tensor:
        """The edit's value for all columns of one row, `[1, pos, ...]`."""
        columns = torch.arange(view.shape[1], device=view.device)
        own = edit.placed.edit.at(torch.tensor([[self.packing.rows[index].example]]), columns[None])
        changed = own.change(view.transpose(1, 2) if turned else view)
        return changed.transpose(1, 2) if turned else changed

    # -- edits at modules ----------------------------------------------------------------------------------------------

    def _hook_edits(self, stack: ExitStack) -> None:
        for site in sorted(self.edits, key=lambda site: site.order):  # several sites may lie at one module
            if site.name in INNER_SITES or site.name == "resid_pre":
                continue
            tap = self.tap(site.name)
            module = self.module(tap.path)
            if tap.side == "through":
                self._hook(stack, module, through=self._through(site, tap))
            elif tap.side == "in":
                self._hook(stack, module, before=self._before(site, tap))
            else:
                self._hook(stack, module, after=self._after(site, tap))

    def _before(self, site: Site, tap: Tap) -> Callable[[Tensor], Tensor]:
        def change(x: Tensor) -> Tensor:
            written = self._written(site, tap, x)
            return x.copy_(written) if tap.in_place else written

        return change

    def _after(self, site: Site, tap: Tap) -> Callable[[Tensor], Tensor]:
        return lambda output: self._written(site, tap, output)

    def _through(self, site: Site, tap: Tap) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
        def change(module: nn.Module, x: Tensor, output: Any) -> Any:
            value = tap.view.read(module, x, output)
            shaped = value.unflatten(0, (1, -1)) if tap.flat else value
            changed = self._changed(site, shaped)
            return tap.view.write(module, x, output, changed.flatten(0, 1) if tap.flat else changed)

        return change

    def _written(self, site: Site, tap: Tap, tensor: Tensor) -> Tensor:
        value = tap.view.read(tensor)
        changed = self._changed(site, value.unflatten(0, (1, -1)) if tap.flat else value)
        return tap.view.write(tensor, changed.flatten(0, 1) if tap.flat else changed)

    def _changed(self, site: Site, value: Tensor) -> Tensor:
        """The site's packed tensor `[1, n, ...]` with the rows' edits applied, each to its own tokens."""
        value = value.clone()
        for index, edit in self.edits[site]:
            columns = edit.columns.to(value.device)
            place, head = self.packing.index(index, columns), edit.placed.site.head
            row = torch.tensor([[self.packing.rows[index].example]], device=value.device)
            own = edit.placed.edit.at(row, columns[None])
            if head is None:
                value[0, place] = own.change(value[:, place])[0]
            else:
                value[0, place, head] = own.change(value[:, place, head])[0]
        return value

    # -- fewer tokens where fewer are needed ---------------------------------------------------------------------------

    def _with_clean_mixed(self, x: Tensor) -> Tensor:
        """Attention's result for all rows: those that join after it take the clean run's."""
        done, end = self.packing.tokens(self.n_attending), self.packing.tokens(self.n_rows)
        late = slice(done, end)
        clean = self.clean.mixed[self.packing.example[late], self.packing.column[late]]
        return torch.cat([x[:, :done], clean[None]], dim=1)

    def _spans(self) -> list[tuple[list[str], str]]:
        """Stretches of modules that act on each token alone: where they begin and where they end."""
        touched = {site.name for site in self.edits}
        spans = []
        if "result" not in touched:
            spans.append(([self.tap("z").path], self.tap("z").path))
        inside = ("mlp_pre", "mlp_gate", "mlp_pre_linear", "mlp_post")
        if self.layout.has("mlp_post", self.layer) and not touched & set(inside):
            begin = {self.tap(n).path for n in ("mlp_pre", "mlp_pre_linear") if self.layout.has(n, self.layer)}
            if begin and all(self.tap(n).side == "out" for n in ("mlp_pre",) if self.layout.has(n, self.layer)):
                spans.append((sorted(begin), self.tap("mlp_post").path))
        return spans

    def _narrow_outputs(self, stack: ExitStack, read: Tensor, n: int) -> None:
        def widen(output: Tensor) -> Tensor:
            wide = output.new_zeros(*output.shape[:-2], n, output.shape[-1])
            return wide.index_copy_(-2, read, output)

        for _, end in self._spans():
            self._hook(stack, self.module(end), after=widen)

    def _narrow_inputs(self, stack: ExitStack, read: Tensor) -> None:
        for begin, _ in self._spans():
            for path in begin:
                self._hook(stack, self.module(path), before=lambda x: x.index_select(-2, read))

    def _hook(
        self,
        stack: ExitStack,
        module: nn.Module,
        *,
        before: Callable[[Tensor], Tensor] | None = None,
        after: Callable[[Tensor], Tensor] | None = None,
        through: Callable[[nn.Module, Tensor, Any], Any] | None = None,
    ) -> None:
        """Put a change of a module's input or output on for the time of this block."""

        def on_input(_: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
            if not self.is_mine():
                return None
            if args:
                return (before(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": before(kwargs["hidden_states"])}

        def on_output(_: nn.Module, args: tuple, output: Any) -> Any:
            if not self.is_mine():
                return None
            return after(output) if isinstance(output, Tensor) else (after(output[0]), *output[1:])

        def on_call(module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
            return through(module, args[0] if args else kwargs["hidden_states"], output) if self.is_mine() else None

        if before is not None:
            handle = module.register_forward_pre_hook(on_input, with_kwargs=True)
        elif after is not None:
            handle = module.register_forward_hook(on_output)
        else:
            handle = module.register_forward_hook(on_call, with_kwargs=True)
        stack.callback(handle.remove)
