"""Capture and edit: an ordinary context manager over PyTorch hooks.

`applied(plan, ...)` puts the hooks of a checked `Plan` on and always takes them off. At one site edits come first, in
the order given, and captures see the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hooke.model.attention import observed
from hooke.model.families.family import Layout, Tap
from hooke.model.plan import MAP_SITES, PlacedEdit, Plan
from hooke.model.sites import Site
from hooke.model.tokens import Tokens


class StopRun(Exception):
    """Ends a forward pass once the last site that was asked for has been computed."""


@dataclass
class Progress:
    """What a run has captured, and which columns of the sequence the current forward pass covers."""

    acts: dict[Site, Tensor] = field(default_factory=dict)
    start: int = 0


@contextmanager
def applied(hf: nn.Module, layout: Layout, plan: Plan, tokens: Tokens | None) -> Iterator[Progress]:
    """Hooks for the plan while the block lasts; they are gone after it, whatever happens inside."""
    progress = Progress()
    by_module: dict[tuple[str, str], list[tuple[Site, Tap]]] = {}
    maps: dict[int, list[Site]] = {}
    for site in plan.sites:
        if site.name in MAP_SITES:
            maps.setdefault(_layer(site), []).append(site)
            continue
        tap = layout.outside.get(site.name) or layout.inside[site.name]
        path = tap.path if site.layer is None else ".".join(filter(None, (layout.blocks, str(site.layer), tap.path)))
        by_module.setdefault((path, tap.side), []).append((site, tap))
    with ExitStack() as stack:
        for (path, side), taps in by_module.items():
            worker = _Worker(plan, tokens, progress, taps)
            module = hf.get_submodule(path)
            if side == "in":
                handle = module.register_forward_pre_hook(worker.on_input, with_kwargs=True)
            else:
                handle = module.register_forward_hook(worker.on_output)
            stack.callback(handle.remove)
        for layer, sites in maps.items():
            worker = _Worker(plan, tokens, progress, [])
            attention = hf.get_submodule(f"{layout.blocks}.{layer}.{layout.attention}")
            stack.enter_context(observed(attention, worker.on_map(layer, [site.name for site in sites])))
        yield progress


def _layer(site: Site) -> int:
    assert site.layer is not None  # sites of a block always carry one
    return site.layer


@dataclass(frozen=True)
class _Worker:
    """Does the reading and changing at one side of one module."""

    plan: Plan
    tokens: Tokens | None
    progress: Progress
    taps: Sequence[tuple[Site, Tap]]

    def on_input(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict] | None:
        name = None if args else "hidden_states"
        tensor = args[0] if name is None else kwargs[name]
        changed = self._all_taps(tensor)
        if changed is tensor:
            return None
        return ((changed, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: changed})

    def on_output(self, module: nn.Module, args: tuple, output: Any) -> Any:
        joined = isinstance(output, tuple)
        tensor = output[0] if joined else output
        changed = self._all_taps(tensor)
        if changed is tensor:
            return None
        return (changed, *output[1:]) if joined else changed

    def on_map(self, layer: int, names: Sequence[str]) -> Callable[[str, Tensor], Tensor]:
        def observe(name: str, tensor: Tensor) -> Tensor:
            return self._site(Site(name, layer), tensor) if name in names else tensor

        return observe

    def _all_taps(self, tensor: Tensor) -> Tensor:
        stop = False
        for site, tap in self.taps:
            before = tap.view.read(tensor)
            # An in-place write must not touch what the edit itself still needs for its gradient.
            after = self._site(site, before.clone() if tap.in_place and self._has_edit(site) else before, raising=False)
            if after is not before and self._has_edit(site):
                written = tap.view.write(tensor, after)
                tensor = tensor.copy_(written) if tap.in_place else written
            stop = stop or self.plan.until == site
        if stop:
            raise StopRun
        return tensor

    def _has_edit(self, site: Site) -> bool:
        return any(placed.site.without_head == site for placed in self.plan.edits)

    def _site(self, site: Site, value: Tensor, raising: bool = True) -> Tensor:
        for placed in self.plan.edits:
            if placed.site.without_head == site:
                value = self._edited(placed, value)
        for asked in self.plan.captures:
            if asked.without_head == site:
                self.progress.acts[asked] = value if asked.head is None else value.select(_head_dim(site), asked.head)
        if raising and self.plan.until == site:
            raise StopRun
        return value

    def _edited(self, placed: PlacedEdit, value: Tensor) -> Tensor:
        if placed.site.head is None:
            return self._where(placed, value, query_dim=2 if placed.site.name in MAP_SITES else 1)
        dim = _head_dim(placed.site)
        heads = list(value.unbind(dim))
        heads[placed.site.head] = self._where(placed, heads[placed.site.head], query_dim=1)
        return torch.stack(heads, dim=dim)

    def _where(self, placed: PlacedEdit, value: Tensor, query_dim: int) -> Tensor:
        start, width = self.progress.start, value.shape[query_dim]
        n_prompt = self.tokens.shape[1] if self.tokens is not None else start + width
        if start >= n_prompt:  # a forward pass over generated tokens only
            return placed.edit.change(value) if placed.generated else value
        if placed.where is None:
            return placed.edit.change(value)
        mask = placed.where[:, start : start + width].to(value.device)
        if not bool(mask.any()):
            return value
        shape = [mask.shape[0], *([1] * (value.ndim - 1))]
        shape[query_dim] = width
        return torch.where(mask.reshape(shape), placed.edit.change(value), value)


def _head_dim(site: Site) -> int:
    return 1 if site.name in MAP_SITES else -2
