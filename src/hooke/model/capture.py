"""Capture and edit: an ordinary context manager over PyTorch hooks.

`applied(plan, ...)` puts the hooks of a checked `Plan` on and always takes them off. At one site edits come first, in
the order given, and captures see the result. Hooks act for their own run only: a run inside another run, or in another
thread, does not see them. A plan without tokens listens: it sees whatever its own thread runs while the block lasts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hooke.base.errors import SiteError
from hooke.model.attention import Observer, observed, unrouted
from hooke.model.compiled import hooks_fire
from hooke.model.families.family import Layout, Tap
from hooke.model.plan import PlacedEdit, Plan
from hooke.model.sites import INNER_SITES, MAP_SITES, Site
from hooke.model.tokens import Tokens


class StopRun(Exception):
    """Ends a forward pass once the last site that was asked for has been computed."""


@dataclass
class Progress:
    """What a run has captured, and which columns of the sequence the current forward pass covers."""

    acts: dict[Site, Tensor] = field(default_factory=dict)
    edited: set[Site] = field(default_factory=set)
    batch: int | None = None
    start: int = 0
    width: int | None = None


_RUN: ContextVar[Progress | None] = ContextVar("hooke_run", default=None)
_LISTENING: ContextVar[tuple[Progress, ...]] = ContextVar("hooke_listening", default=())


@contextmanager
def applied(hf: nn.Module, layout: Layout, plan: Plan, tokens: Tokens | None) -> Iterator[Progress]:
    """Hooks for the plan while the block lasts; they are gone after it, whatever happens inside."""
    progress = Progress()
    if tokens is not None:
        progress.batch, progress.width = tokens.shape
    by_module: dict[tuple[str, str], list[tuple[Site, Tap]]] = {}
    inner: dict[int, list[Site]] = {}
    for site in plan.sites:
        if site.name in INNER_SITES:
            inner.setdefault(_layer(site), []).append(site)
            continue
        tap = layout.tap(site.name, site.layer)
        by_module.setdefault((layout.module(site.layer, tap.path), tap.side), []).append((site, tap))
    with ExitStack() as stack:
        if plan.sites:
            stack.enter_context(hooks_fire(hf))
        if tokens is None:
            stack.callback(_LISTENING.reset, _LISTENING.set((*_LISTENING.get(), progress)))
            handle = hf.register_forward_pre_hook(_note_shape(progress), with_kwargs=True)
            stack.callback(handle.remove)
        else:
            stack.enter_context(unrouted())
            stack.callback(_RUN.reset, _RUN.set(progress))
        for (path, side), taps in by_module.items():
            worker = _Worker(plan, tokens, progress, taps)
            module = hf.get_submodule(path)
            if side == "in":
                handle = module.register_forward_pre_hook(worker.on_input, with_kwargs=True)
            elif side == "out":
                handle = module.register_forward_hook(worker.on_output)
            else:
                handle = module.register_forward_hook(worker.on_call, with_kwargs=True)
            stack.callback(handle.remove)
        for layer, sites in inner.items():
            worker = _Worker(plan, tokens, progress, [])
            attention = hf.get_submodule(layout.module(layer, layout.attention))
            names = [site.name for site in sites]
            maps = any(name in MAP_SITES for name in names)
            observer = worker.inside(layer, names)
            options = {"dispatches": layout.dispatches, "n_kv_heads": layout.n_kv_heads}
            options |= {"maps": maps, "listening": tokens is None}
            stack.enter_context(observed(attention, observer, **options))
        yield progress


@contextmanager
def own_run() -> Iterator[Callable[[], bool]]:
    """Inside the block no other run's hooks act, listeners included. Yields what hooks of this run ask to know whether
    it is this run that calls them.
    """
    mine = Progress()
    with ExitStack() as stack:
        stack.enter_context(unrouted(listeners=False))
        stack.callback(_RUN.reset, _RUN.set(mine))
        stack.callback(_LISTENING.reset, _LISTENING.set(()))
        yield lambda: _RUN.get() is mine


def check_captured(plan: Plan, progress: Progress) -> None:
    """Raise where a site that was to be read or changed was never computed.

    Raises:
        SiteError: names the sites.
    """
    missing = [str(site) for site in plan.captures if site not in progress.acts]
    missing += [str(placed.site) for placed in plan.edits if placed.site.without_head not in progress.edited]
    if missing:
        raise SiteError(
            f"never computed in this run: {', '.join(missing)}"
            + (f"; the run stopped after {plan.until}" if plan.until else "; the model did not run that module")
        )


def _note_shape(progress: Progress) -> Any:
    """For runs that are not ours: learn the shape of the batch from the model's arguments."""

    def note(module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> None:
        if kwargs is None or not any(listener is progress for listener in _LISTENING.get()):
            return  # another thread's run
        ids = args[0] if args else kwargs.get("input_ids", kwargs.get("inputs_embeds"))
        if ids is not None:
            progress.batch, progress.width = ids.shape[:2]

    return note


def _layer(site: Site) -> int:
    assert site.layer is not None  # sites of a block always carry one
    return site.layer


class _Worker:
    """Does the reading and changing at one side of one module."""

    def __init__(self, plan: Plan, tokens: Tokens | None, progress: Progress, taps: Sequence[tuple[Site, Tap]]) -> None:
        self.plan, self.tokens, self.progress, self.taps = plan, tokens, progress, taps
        self.edits, self.captures = plan.edits_at, plan.captures_at

    def _is_mine(self) -> bool:
        return _RUN.get() is self.progress or any(listener is self.progress for listener in _LISTENING.get())

    # -- hooks ---------------------------------------------------------------------------------------------------------

    # A hook that its own thread has just taken off may still be called by another one, and then without keywords.

    def on_input(self, module: nn.Module, args: tuple, kwargs: dict[str, Any] | None = None) -> Any:
        if kwargs is None or not self._is_mine():
            return None
        name = None if args else "hidden_states"
        tensor = args[0] if name is None else kwargs[name]
        changed = self._all_taps(tensor)
        if changed is tensor:
            return None
        return ((changed, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: changed})

    def on_output(self, module: nn.Module, args: tuple, output: Any) -> Any:
        if not self._is_mine():
            return None
        tensor = _tensor_of(output)
        changed = self._all_taps(tensor)
        return None if changed is tensor else _with_tensor(output, changed)

    def on_call(self, module: nn.Module, args: tuple, *rest: Any) -> Any:
        """For sites derived from a module's input and output together; `rest` is (keywords, output)."""
        if not self._is_mine():
            return None
        kwargs, output = rest
        x = args[0] if args else kwargs["hidden_states"]
        for site, tap in self.taps:
            before = self._shaped(tap, tap.view.read(module, x, output))
            after = self._site(site, before)
            if after is not before:
                value = after.flatten(0, 1) if tap.flat else after
                output = tap.view.write(module, x, output, value)
        return output

    def inside(self, layer: int, names: Sequence[str]) -> Observer:
        def observe(name: str, tensor: Tensor) -> Tensor:
            active = name in names and self._is_mine()
            return self._site(Site(name, layer), tensor) if active else tensor

        return observe

    # -- one module ----------------------------------------------------------------------------------------------------

    def _all_taps(self, tensor: Tensor) -> Tensor:
        stop = False
        for site, tap in self.taps:
            before = self._shaped(tap, tap.view.read(tensor))
            # An in-place write must not touch what the edit itself still needs for its gradient.
            after = self._site(site, before.clone() if tap.in_place and site in self.edits else before, raising=False)
            if after is not before and site in self.edits:
                written = tap.view.write(tensor, after.flatten(0, 1) if tap.flat else after)
                tensor = tensor.copy_(written) if tap.in_place else written
            stop = stop or self.plan.until == site
        if stop:
            raise StopRun
        return tensor

    def _shaped(self, tap: Tap, value: Tensor) -> Tensor:
        return value.unflatten(0, (self.progress.batch, -1)) if tap.flat else value

    def _site(self, site: Site, value: Tensor, raising: bool = True) -> Tensor:
        edits = self.edits.get(site, ())
        if edits:
            self.progress.edited.add(site)
            # One row of position embeddings for the whole batch. Inside blocks a sweep's rows may join one by one.
            if site.layer is None and len(value) == 1 < (self.progress.batch or 1):
                value = value.expand(self.progress.batch, *value.shape[1:])
        if edits and edits[0].rows is not None:
            value = self._by_rows(edits, value)
        for placed in edits:  # those of all rows come after those of some
            if placed.rows is None:
                value = self._edited(placed, value)
        for asked in self.captures.get(site, ()):
            self.progress.acts[asked] = self._captured(asked, value)
        if raising and self.plan.until == site:
            raise StopRun
        return value

    def _by_rows(self, edits: Sequence[PlacedEdit], value: Tensor) -> Tensor:
        """Apply edits that belong to some rows each; no row sees another's."""
        pieces, done = [], 0
        for rows in sorted({placed.rows for placed in edits if placed.rows is not None}, key=lambda rows: rows.start):
            piece = value[rows.start : rows.stop]
            for placed in edits:
                if placed.rows == rows:
                    piece = self._edited(placed, piece)
            pieces += [value[done : rows.start], piece]
            done = rows.stop
        return torch.cat([*pieces, value[done:]])

    def _captured(self, asked: Site, value: Tensor) -> Tensor:
        if asked.head is not None:
            value = value.select(_head_dim(asked), asked.head)
            if self.plan.at is None:
                value = value.clone()  # so that one head does not keep all of them
        if self.plan.at is not None:
            columns = self.plan.at.to(value.device)
            rows = torch.arange(len(columns), device=columns.device)[:, None]
            by_head = asked.name in MAP_SITES and asked.head is None
            value = value.transpose(1, 2)[rows, columns].transpose(1, 2) if by_head else value[rows, columns]
        return value.to("cpu") if self.plan.offload else value

    def _edited(self, placed: PlacedEdit, value: Tensor) -> Tensor:
        if placed.site.head is None:
            return self._where(placed, value, 2 if placed.site.name in MAP_SITES else 1)
        dim = _head_dim(placed.site)
        heads = list(value.unbind(dim))
        heads[placed.site.head] = self._where(placed, heads[placed.site.head], 1)
        return torch.stack(heads, dim=dim)

    def _where(self, placed: PlacedEdit, value: Tensor, query_dim: int) -> Tensor:
        """The edit at the positions it names. `value` covers the last columns of the pass, or all columns up to there
        (keys from the cache).
        """
        edit, width = placed.edit, value.shape[query_dim]
        n_prompt = self.tokens.shape[1] if self.tokens is not None else width
        end = width if self.tokens is None else self.progress.start + (self.progress.width or width)
        first = end - width
        if first >= n_prompt:  # generated tokens only
            return edit.change(value) if placed.generated else value
        whole = first == 0 and end == n_prompt
        if edit.per_position and not whole:
            columns = torch.arange(first, end, device=value.device).clamp(max=n_prompt - 1)
            edit = edit.at(torch.arange(len(value), device=value.device)[:, None], columns[None])
        if placed.where is None and (placed.generated or end <= n_prompt):
            return edit.change(value)
        mask = self._mask(placed, first, end).to(value.device)
        if not bool(mask.any()):
            return value
        shape = [mask.shape[0], *([1] * (value.ndim - 1))]
        shape[query_dim] = width
        return torch.where(mask.reshape(shape), edit.change(value), value)

    def _mask(self, placed: PlacedEdit, first: int, end: int) -> Tensor:
        assert self.tokens is not None
        prompt = placed.where if placed.where is not None else torch.ones_like(self.tokens.mask[:1])
        n_new = max(0, end - prompt.shape[1])
        new = torch.full((len(prompt), n_new), placed.generated, dtype=torch.bool, device=prompt.device)
        return torch.cat([prompt[:, first:end], new], dim=1)


def _tensor_of(output: Any) -> Tensor:
    """The main tensor of what a module returned: itself, a tuple's first, or the logits of a model's output."""
    if isinstance(output, Tensor):
        return output
    return output[0] if isinstance(output, tuple) else output.logits


def _with_tensor(output: Any, changed: Tensor) -> Any:
    if isinstance(output, Tensor):
        return changed
    if isinstance(output, tuple):
        return (changed, *output[1:])
    output.logits = changed
    return output


def _head_dim(site: Site) -> int:
    return 1 if site.name in MAP_SITES else -2
