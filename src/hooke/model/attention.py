"""Inside attention: rotated queries and keys, scores and patterns exist only within the attention function, so layers
that need them take a path of their own.

Most families dispatch attention through transformers' registry of functions. For the layers that are asked for, and
for these alone, a run points the layer at an entry of ours, which hands the call to the run's handler. All other
layers, other threads, and runs that did not ask stay on the kernel that the model was loaded with. Families with
attention code of their own are watched from inside instead: the functions that make scores and patterns (matmul,
softmax, scaled dot product attention) show them while the attention module runs.
"""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hooke.base.errors import ModelError

# Called with an inner site's name and its tensor: q_rot and k_rot [batch, pos, head, d_head], scores and pattern
# [batch, head, query, key]. Returns the tensor to go on with.
Observer = Callable[[str, Tensor], Tensor]
# A replacement for one attention call in the registry's convention, given the kernel that would have run.
Handler = Callable[..., tuple[Tensor, Tensor | None]]

_NAME = "hooke"
_ROUTES: ContextVar[Mapping[int, tuple[Handler | Observer, bool]]] = ContextVar("hooke_attention_routes", default={})  # noqa: B039
_KERNELS: dict[int, tuple[Any, int]] = {}  # id of a routed module -> (its own config, how many runs route it)
_LOCK = threading.Lock()


def step_by_step(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    observe: Observer,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **rest: Any,
) -> tuple[Tensor, Tensor]:
    """Eager attention in the registry's calling convention: q `[batch, head, query, d_head]` to mixed values `[batch,
    query, head, d_head]`, showing every step to the observer.

    Raises:
        ModelError: for attention with sinks or position biases, whose scores are not these.
    """
    unknown = [name for name in ("s_aux", "position_bias") if rest.get(name) is not None]
    if unknown:
        raise ModelError(
            f"{type(module).__name__} passes {', '.join(unknown)} to attention; its maps are not supported"
        )
    query = observe("q_rot", query.transpose(1, 2)).transpose(1, 2)
    key = observe("k_rot", key.transpose(1, 2)).transpose(1, 2)
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2)
    scores *= query.shape[-1] ** -0.5 if scaling is None else scaling  # in place, as below: maps are large
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    scores = observe("scores", _masked(scores, attention_mask, causal))
    pattern = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    pattern = observe("pattern", pattern)
    pattern_used = functional.dropout(pattern, p=dropout, training=module.training)
    return (pattern_used @ value).transpose(1, 2).contiguous(), pattern


def _masked(scores: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    lowest = torch.finfo(scores.dtype).min
    if mask is None:  # the kernels take a missing mask to mean causal, where the module is, and everything otherwise
        n_query, n_key = scores.shape[-2:]
        if not causal or n_query == 1:
            return scores
        seen = torch.ones(n_query, n_key, dtype=torch.bool, device=scores.device).tril(n_key - n_query)
        return scores.masked_fill_(~seen, lowest)
    mask = mask[..., : scores.shape[-1]]
    return scores.masked_fill_(~mask, lowest) if mask.dtype == torch.bool else scores.add_(mask)


@contextmanager
def observed(
    module: nn.Module,
    observer: Observer,
    *,
    dispatches: bool = True,
    maps: bool = True,
    listening: bool = False,
    n_kv_heads: int | None = None,
) -> Iterator[None]:
    """Show what happens inside one attention module to an observer while the block lasts. Without `maps` only q_rot and
    k_rot are shown, and attention stays on its kernel.

    Raises:
        ModelError: where the model runs on a kernel whose masks cannot be read (flash, flex).
    """
    config = getattr(module, "config", None)  # a module without one has a single kernel, written out
    kernel = "eager" if config is None else config._attn_implementation
    if kernel not in ("eager", "sdpa", _NAME):
        raise ModelError(
            f"attention maps need a model loaded with attention 'sdpa' or 'eager'; this one runs {kernel!r}"
        )
    if not dispatches:
        with _watched(module, _each_once(observer, n_kv_heads), maps, listening=listening):
            yield
        return

    def handle(
        kernel: Handler, module: nn.Module, query: Tensor, key: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        if maps:
            return step_by_step(module, query, key, *args, observe=observer, **kwargs)
        query = observer("q_rot", query.transpose(1, 2)).transpose(1, 2)
        key = observer("k_rot", key.transpose(1, 2)).transpose(1, 2)
        return kernel(module, query, key, *args, **kwargs)

    with routed(module, handle, listening=listening):
        yield


@contextmanager
def routed(module: nn.Module, handler: Handler, *, listening: bool = False) -> Iterator[None]:
    """Hand the attention calls of one module to `handler(kernel, module, query, key, value, mask, **options)` while the
    block lasts, in this thread and context alone. A listening route stays in place for runs inside the block.
    """
    with _LOCK:
        own, users = _KERNELS.get(id(module), (module.config, 0))
        if not users:
            module.config = copy.copy(own)
            module.config._attn_implementation = _NAME
        _KERNELS[id(module)] = (own, users + 1)
    token = _ROUTES.set({**_ROUTES.get(), id(module): (handler, listening)})
    try:
        yield
    finally:
        _ROUTES.reset(token)
        with _LOCK:
            own, users = _KERNELS.pop(id(module))
            if users > 1:
                _KERNELS[id(module)] = (own, users - 1)
            else:
                module.config = own


@contextmanager
def unrouted(*, listeners: bool = True) -> Iterator[None]:
    """No attention is handled by an outer run while the block lasts; listeners stay, unless told otherwise."""
    token = _ROUTES.set({key: route for key, route in _ROUTES.get().items() if route[1] and listeners})
    try:
        yield
    finally:
        _ROUTES.reset(token)


def _dispatch(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """The registry's entry: the handler of this context, or the kernel that the module was loaded with."""
    own, _ = _KERNELS.get(id(module), (module.config, 0))
    # Every family that dispatches keeps its eager form beside its modules, under this name.
    eager = sys.modules[type(module).__module__].eager_attention_forward
    kernel = ALL_ATTENTION_FUNCTIONS.get_interface(own._attn_implementation, eager)
    handler, _ = _ROUTES.get().get(id(module), (None, False))
    return kernel(module, *args, **kwargs) if handler is None else handler(kernel, module, *args, **kwargs)


ALL_ATTENTION_FUNCTIONS.register(_NAME, _dispatch)


# -- families with attention code of their own ------------------------------------------------------------------------

_SOFTMAX = (functional.softmax, torch.softmax, Tensor.softmax)
_MATMUL = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


def _each_once(observe: Observer, n_kv_heads: int | None) -> Observer:
    """The observer, shown every key head once where the module has copied it for each of its queries (Falcon)."""

    def show(name: str, tensor: Tensor) -> Tensor:
        if name != "k_rot" or n_kv_heads in (None, tensor.shape[2]):
            return observe(name, tensor)
        copies = tensor.shape[2] // n_kv_heads
        before = tensor[:, :, ::copies]
        after = observe(name, before)
        return tensor if after is before else after.repeat_interleave(copies, dim=2)

    return show


class _Watch(TorchFunctionMode):
    """Shows the maps that an attention module makes with plain torch functions."""

    def __init__(self, module: nn.Module, observe: Observer, maps: bool) -> None:
        super().__init__()
        self.module, self.observe, self.maps, self.seen_scores = module, observe, maps, False

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            if self.maps:
                return self._attention(*args, **kwargs)
            query = self.observe("q_rot", args[0].transpose(1, 2)).transpose(1, 2)
            key = self.observe("k_rot", args[1].transpose(1, 2)).transpose(1, 2)
            return func(query, key, *args[2:], **kwargs)
        if func in _MATMUL and args[0].ndim == 4 and not self.seen_scores:
            self.seen_scores = True  # the first product is that of queries and keys
            query = self.observe("q_rot", args[0].transpose(1, 2)).transpose(1, 2)
            key = self.observe("k_rot", args[1].permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
            return func(query, key, *args[2:], **kwargs)
        if func in _SOFTMAX and args[0].ndim == 4:
            # Two masks may have added up to -inf, which cannot be told from a mistake when it is written back.
            scores = self.observe("scores", args[0].clamp(min=torch.finfo(args[0].dtype).min))
            return self.observe("pattern", func(scores, *args[1:], **kwargs))
        return func(*args, **kwargs)

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        mixed, _ = step_by_step(
            self.module,
            *(query, key, value, attn_mask),
            observe=self.observe,
            scaling=scale,
            dropout=dropout_p,
            is_causal=is_causal,
        )
        return mixed.transpose(1, 2)


@contextmanager
def _watched(module: nn.Module, observer: Observer, maps: bool, *, listening: bool = False) -> Iterator[None]:
    entered: dict[int, list[_Watch]] = {}  # by thread: modes are a thread's own
    key = id(entered)
    token = _ROUTES.set({**_ROUTES.get(), key: (observer, listening)})

    def enter(*_: Any) -> None:
        if key in _ROUTES.get():  # not for other threads, nor for a run within this one
            watch = _Watch(module, observer, maps)
            entered.setdefault(threading.get_ident(), []).append(watch)
            watch.__enter__()

    def leave(*_: Any) -> None:  # called after an exception too
        if key in _ROUTES.get() and entered.get(threading.get_ident()):
            entered[threading.get_ident()].pop().__exit__(None, None, None)

    handles = [
        module.register_forward_pre_hook(enter),
        module.register_forward_hook(leave, always_call=True, prepend=True),
    ]
    try:
        yield
    finally:
        _ROUTES.reset(token)
        for handle in handles:
            handle.remove()
