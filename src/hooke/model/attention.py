"""Attention maps: scores and patterns exist only inside the attention function, so layers that need them take a path
of their own.

transformers dispatches attention through a registry of functions. For the layers whose maps are asked for, and for
these alone, the run points the layer at `attention_with_maps`, which computes scores, mask, softmax and mixing as
separate steps and shows the maps to an observer. All other layers stay on the kernel that the model was loaded with.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hooke.base.errors import ModelError

# Called with ("scores" | "pattern", tensor [batch, head, query, key]); returns the tensor to go on with.
Observer = Callable[[str, Tensor], Tensor]

_NAME = "hooke_maps"
_OBSERVER = "_hooke_observer"


def attention_with_maps(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, Tensor]:
    """Eager attention in the registry's calling convention: q [batch, head, query, d_head] to mixed values [batch,
    query, head, d_head].
    """
    observe: Observer = getattr(module, _OBSERVER)
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = observe("scores", _masked(scores, attention_mask))
    pattern = observe(
        "pattern", scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query)
    )
    pattern_used = nn.functional.dropout(pattern, p=dropout, training=module.training)
    return (pattern_used @ value).transpose(1, 2).contiguous(), pattern


def _masked(scores: Tensor, mask: Tensor | None) -> Tensor:
    lowest = torch.finfo(scores.dtype).min
    if mask is None:  # the kernels take a missing mask to mean causal
        n_query, n_key = scores.shape[-2:]
        causal = torch.ones(n_query, n_key, dtype=torch.bool, device=scores.device).tril(n_key - n_query)
        return scores.masked_fill(~causal, lowest)
    mask = mask[..., : scores.shape[-1]]
    return scores.masked_fill(~mask, lowest) if mask.dtype == torch.bool else scores + mask


@contextmanager
def observed(module: nn.Module, observer: Observer) -> Iterator[None]:
    """Send one attention module through `attention_with_maps` while the block lasts.

    Raises:
        ModelError: where the model runs on a kernel whose masks cannot be read (flash, flex).
    """
    kernel = module.config._attn_implementation
    if kernel not in ("eager", "sdpa", _NAME):
        raise ModelError(
            f"attention maps need a model loaded with attention 'sdpa' or 'eager'; this one runs {kernel!r}"
        )
    before, outer = module.config, getattr(module, _OBSERVER, None)
    module.config = copy.copy(before)
    module.config._attn_implementation = _NAME
    setattr(module, _OBSERVER, observer)
    try:
        yield
    finally:
        module.config = before
        if outer is None:
            delattr(module, _OBSERVER)
        else:
            setattr(module, _OBSERVER, outer)


ALL_ATTENTION_FUNCTIONS.register(_NAME, attention_with_maps)
