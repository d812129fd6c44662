"""Trial runs: what every module of a model reads and gives for a few tokens, and one block replayed with changes.

The generic map is built on these: nothing is believed about an architecture that a trial run did not show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import Cache

Change = Callable[[Tensor], Tensor]
Place = tuple[str, Literal["in", "out", "place"]]  # module path; "place" changes the input tensor itself


@dataclass
class Seen:
    """What one module read and gave in a trial, by value."""

    x: Tensor | None
    out: Tensor | None = None
    order: int = 0  # when it was called
    done: int = 0  # when it returned
    calls: int = 1
    args: tuple = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    x_kept: bool = True  # the tensor that it read was still the same at the end of the trial
    out_kept: bool = True


def main_input(args: tuple, kwargs: Mapping[str, Any]) -> Tensor | None:
    """The tensor that hooks can read and replace: the first argument, or `hidden_states`."""
    tensor = args[0] if args else kwargs.get("hidden_states")
    return tensor if isinstance(tensor, Tensor) and tensor.is_floating_point() else None


def main_output(output: Any) -> Tensor | None:
    """The tensor that hooks can read and replace: the output, or the first of a tuple."""
    tensor = output[0] if isinstance(output, tuple) and output else output
    return tensor if isinstance(tensor, Tensor) and tensor.is_floating_point() else None


def record(
    root: nn.Module, call: Callable[[], Any], *, changes: Mapping[Place, Change] | None = None, arguments: bool = False
) -> dict[str, Seen]:
    """Run once without gradients and write down what each module of `root` read and gave.

    Args:
        changes: what to change on the way, by place.
        arguments: keep each module's arguments too, for replaying.
    """
    recorder = _Recorder(arguments)
    with ExitStack() as stack, torch.no_grad():
        for (path, side), change in (changes or {}).items():
            module = root.get_submodule(path)
            if side == "out":
                handle = module.register_forward_hook(partial(_change_output, change))
            else:
                handle = module.register_forward_pre_hook(partial(_change_input, change, side), with_kwargs=True)
            stack.callback(handle.remove)
        for name, module in root.named_modules():
            before, after = partial(recorder.before, name), partial(recorder.after, name)
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after).remove)
        call()
    for entry, which, tensor in recorder.kept:
        setattr(entry, f"{which}_kept", torch.equal(tensor, getattr(entry, which)))
    return recorder.seen


@dataclass
class _Recorder:
    arguments: bool
    seen: dict[str, Seen] = field(default_factory=dict)
    kept: list[tuple[Seen, str, Tensor]] = field(default_factory=list)
    time: int = 0

    def before(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if name in self.seen:
            self.seen[name].calls += 1
            return
        tensor = main_input(args, kwargs)
        entry = self.seen[name] = Seen(None if tensor is None else tensor.clone(), order=self.tick())
        if tensor is not None:
            self.kept.append((entry, "x", tensor))
        if self.arguments:
            entry.args, entry.kwargs = args, kwargs

    def after(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        entry, tensor = self.seen[name], main_output(output)
        if tensor is not None and entry.out is None:
            entry.out = tensor.clone()
            self.kept.append((entry, "out", tensor))
        entry.done = self.tick()

    def tick(self) -> int:
        self.time += 1
        return self.time


def _change_input(
    change: Change, side: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]
) -> tuple[tuple, dict[str, Any]] | None:
    tensor = main_input(args, kwargs)
    if tensor is None:
        return None
    if side == "place":
        tensor.copy_(change(tensor.clone()))
        return None
    new = change(tensor)
    return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": new})


def _change_output(change: Change, module: nn.Module, args: tuple, output: Any) -> Any:
    tensor = main_output(output)
    if tensor is None:
        return None
    return (change(tensor), *output[1:]) if isinstance(output, tuple) else change(tensor)


@dataclass(frozen=True)
class Replay:
    """One block with the arguments that it had in a trial."""

    block: nn.Module
    seen: Seen

    def run(self, changes: Mapping[Place, Change] | None = None) -> dict[str, Seen]:
        """The block again, with changes; paths are relative to the block and "" is the block itself."""
        assert self.seen.x is not None  # blocks are chosen by what they read
        x = self.seen.x.clone()
        kwargs = {name: None if isinstance(v, Cache) else v for name, v in self.seen.kwargs.items()}
        args = self.seen.args
        if args:
            args = (x, *(None if isinstance(v, Cache) else v for v in args[1:]))
        else:
            kwargs["hidden_states"] = x
        return record(self.block, lambda: self.block(*args, **kwargs), changes=changes)


def shallowest(paths: Iterable[str], seen: Mapping[str, Seen]) -> str | None:
    """Of several modules, the one nearest to the root; of those the one called first."""
    return min(paths, key=lambda path: (path.count(".") + bool(path), seen[path].order), default=None)
