"""Compiled models and hooks: torch.compile ignores hooks that are put on after it compiled, so runs that read or
change sites take the model as it was before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

_LOCK = threading.Lock()
_STANCE = ExitStack()
_USERS = 0


@contextmanager
def hooks_fire(hf: nn.Module) -> Iterator[None]:
    """While the block lasts, compiled parts of the model run step by step, with their hooks. Nothing changes for a
    model that is not compiled.

    The switch is one for the process: what other threads have compiled runs step by step meanwhile.
    """
    if not is_compiled(hf):
        yield
        return
    _enter()
    try:
        yield
    finally:
        _leave()


def is_compiled(hf: nn.Module) -> bool:
    """Whether the model or a part of it is compiled, as `torch.compile(model)` or in place."""
    return any("_orig_mod" in module._modules or module._compiled_call_impl is not None for module in hf.modules())


def _enter() -> None:
    global _USERS
    with _LOCK:
        if not _USERS:
            _STANCE.enter_context(torch.compiler.set_stance("force_eager"))
        _USERS += 1


def _leave() -> None:
    global _USERS
    with _LOCK:
        _USERS -= 1
        if not _USERS:
            _STANCE.close()
