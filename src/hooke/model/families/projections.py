"""Heads of an attention module, found by recomputing attention: v and z must give `pattern v = z`, q and k must be what
enters the scores before rotation. What does not meet its equation is not named.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hooke.base.errors import ModelError
from hooke.model.attention import observed
from hooke.model.families.family import Heads, InterleavedHeads, SplitHeads, Tap, View
from hooke.model.families.trial import Replay, Seen
from hooke.model.families.views import GroupedHeads


@dataclass(frozen=True)
class HeadSites:
    """What is known of the heads of one block.

    Args:
        attention: path of the module that dispatches to the attention function.
        rotated: whether queries are turned by position; None where that could not be told.
    """

    attention: str
    n_heads: int
    n_kv_heads: int
    d_head: int
    taps: dict[str, Tap] = field(default_factory=dict)
    rotated: bool | None = None


def find_heads(replay: Replay, attention: str) -> HeadSites | None:
    """Heads of a block, or None where its attention is not seen in transformers' registry."""
    shown: dict[str, Tensor] = {}
    for path, module in replay.block.named_modules():
        if path != attention and not path.startswith(f"{attention}."):
            continue
        # What dispatches keeps its own config, and its eager form beside it.
        if not hasattr(module, "config") or not hasattr(
            sys.modules[type(module).__module__], "eager_attention_forward"
        ):
            continue
        try:
            with observed(module, shown.setdefault):
                seen = replay.run()
        except ModelError:  # attention with more in its softmax than scores
            return None
        if "pattern" in shown and _near(seen[""].out, replay.seen.out):
            return _Equations(replay, seen, path, shown).solved()
        shown.clear()
    return None


def _near(a: Tensor, b: Tensor) -> bool:
    limit = max(1e-4, 16 * torch.finfo(a.dtype).eps) * float(b.abs().max())
    return a.shape == b.shape and float((a - b).abs().max()) <= limit


@dataclass(frozen=True)
class _Equations:
    replay: Replay
    seen: dict[str, Seen]
    attention: str
    shown: dict[str, Tensor]

    def solved(self) -> HeadSites:
        q_rot, k_rot = self.shown["q_rot"], self.shown["k_rot"]
        n_heads, n_kv, d_head = q_rot.shape[2], k_rot.shape[2], q_rot.shape[3]
        found = HeadSites(self.attention, n_heads, n_kv, d_head)
        places = list(self._places(n_heads, n_kv, d_head))
        for v_place, z_tap in self._mixed(places, n_heads, d_head):
            found.taps["v"], found.taps["z"] = v_place, z_tap
            break
        turned = []
        for name, rotated in (("q", q_rot), ("k", k_rot)):
            for part, tap in places:
                value = tap.view.read(self.seen[tap.path].out)
                if (
                    part == name
                    and value.shape == rotated.shape
                    and (kind := self._becomes(value, rotated)) is not None
                ):
                    found.taps[name] = tap
                    turned.append(kind)
                    break
        rotated = any(turned) if turned else None
        return HeadSites(self.attention, n_heads, n_kv, d_head, found.taps, rotated)

    def _places(self, n_heads: int, n_kv: int, d_head: int) -> Iterator[tuple[str, Tap]]:
        """Every place where q, k or v may lie: outputs of the attention's matrices, read as models lay them out."""
        joined = (n_heads * d_head, n_kv * d_head, n_kv * d_head)
        for path, entry in self._inside():
            if entry.out is None or not _is_matrix(self.replay.block.get_submodule(path)):
                continue
            width = entry.out.shape[-1]
            if width == n_heads * d_head:
                yield "q", Tap(path, "out", Heads(d_head))
            if width == n_kv * d_head:
                yield "k", Tap(path, "out", Heads(d_head))
                yield "v", Tap(path, "out", Heads(d_head))
            if width == sum(joined):
                for number, part in enumerate("qkv"):
                    views: list[View] = [SplitHeads(joined, number, d_head), GroupedHeads(n_kv, part, d_head)]
                    if n_heads == n_kv:
                        views[1] = InterleavedHeads(3, number, d_head)
                    yield from ((part, Tap(path, "out", view)) for view in views)

    def _mixed(self, places: list[tuple[str, Tap]], n_heads: int, d_head: int) -> Iterator[tuple[Tap, Tap]]:
        """Places of v and z that meet `pattern v = z`."""
        pattern = self.shown["pattern"]
        for path, entry in self._inside():
            if entry.x is None or entry.x.shape[-1] != n_heads * d_head or entry.x.ndim != 3:
                continue
            if not _is_matrix(self.replay.block.get_submodule(path)):
                continue
            z = entry.x.unflatten(-1, (n_heads, d_head))
            for part, tap in places:
                if part == "v" and entry.order > self.seen[tap.path].done:
                    v = tap.view.read(self.seen[tap.path].out)
                    v = v.repeat_interleave(n_heads // v.shape[2], dim=2)
                    if _near(torch.einsum("bhqk,bkhd->bqhd", pattern, v), z):
                        yield tap, Tap(path, "in", Heads(d_head))

    def _becomes(self, value: Tensor, rotated: Tensor) -> bool | None:
        """Whether a projection is turned by position, as it is or after a norm; None where it is not what is turned."""
        direct = _turned(value, rotated)
        if direct is not None:
            return direct
        for _, entry in self._inside():
            if entry.x is None or entry.out is None or entry.x.shape != entry.out.shape:
                continue
            for before, after in zip(_as_heads(entry.x, value), _as_heads(entry.out, value), strict=True):
                if torch.equal(before, value) and (kind := _turned(after, rotated)) is not None:
                    return kind
        return None

    def _inside(self) -> Iterator[tuple[str, Seen]]:
        """Modules called once within the attention module."""
        stem = f"{self.attention}."
        return ((path, entry) for path, entry in self.seen.items() if path.startswith(stem) and entry.calls == 1)


def _is_matrix(module: nn.Module) -> bool:
    """A plain linear map, whose weight is what its name says (a quantised or adapted one is not)."""
    return type(module) is nn.Linear or type(module).__name__ == "Conv1D"


def _as_heads(tensor: Tensor, like: Tensor) -> list[Tensor]:
    """A tensor in the shape `[batch, pos, head, d_head]`, in the ways that models lay it out."""
    batch, pos, n, d = like.shape
    if tensor.ndim == 3 and tensor.shape[-1] == n * d:
        return [tensor.unflatten(-1, (n, d))]
    ways = [tensor] if tensor.shape == like.shape else []
    return ways + ([tensor.transpose(1, 2)] if tensor.shape == (batch, n, pos, d) else [])


def _turned(before: Tensor, after: Tensor) -> bool | None:
    """Whether `after` is `before` turned by position: not at position 0, and elsewhere with its length kept. None for
    neither.
    """
    if _near(before, after):
        return False
    same_start = _near(before[:, 0], after[:, 0])
    return True if same_start and _near(before.norm(dim=-1), after.norm(dim=-1)) else None
