"""The two branches of a block, attention and MLP, found by what they do: their outputs add up to the block's, one mixes
positions and the other does not, and changing them changes the block's output by just that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hooke.base.seeds import torch_generator
from hooke.model.families.family import Tap, View, Whole
from hooke.model.families.norms import norm_kind
from hooke.model.families.trial import Change, Replay, Seen, shallowest
from hooke.model.families.views import Copied


@dataclass(frozen=True)
class Branches:
    """What is known of one block.

    Args:
        taps: sites that passed every check.
        norms: scale site -> (norm module, its kind, what it adds to its gain).
        attention: path of the attention module; None where what mixes positions is something else.
        parallel: whether attention and MLP both read the block's input.
    """

    taps: dict[str, Tap] = field(default_factory=dict)
    norms: dict[str, tuple[str, str, float]] = field(default_factory=dict)
    attention: str | None = None
    parallel: bool = False


def sums(x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    """The three ways to add three tensors; a model does one of them, and it must be met bit for bit."""
    return (x + a) + b, (x + b) + a, x + (a + b)


def find_branches(replay: Replay) -> Branches | None:
    """Attention and MLP of one block, or None where no two modules pass the checks."""
    seen = replay.run()
    whole = seen[""]
    if whole.x is None or whole.out is None or not torch.equal(whole.out, replay.seen.out):
        return None  # the block depends on more than its arguments
    for attn, mlp in _pairs(seen):
        probe = _Probe(replay, seen, attn, mlp)
        if probe.adds_up() and probe.attention_mixes() and probe.mlp_does_not():
            return probe.described()
    return None


def _pairs(seen: dict[str, Seen]) -> Iterator[tuple[str, str]]:
    """Pairs of modules whose outputs, with the block's input, add up to its output."""
    whole, groups = seen[""], []
    for path, entry in seen.items():
        if path and entry.calls == 1 and entry.out is not None and entry.out.shape == whole.x.shape:
            same = next((group for group in groups if torch.equal(seen[group[0]].out, entry.out)), None)
            groups.append([path]) if same is None else same.append(path)
    chosen = [shallowest(group, seen) for group in groups]
    for a in chosen:
        for b in chosen:
            if a != b and any(torch.equal(s, whole.out) for s in sums(whole.x, seen[a].out, seen[b].out)):
                yield a, b


@dataclass(frozen=True)
class _Probe:
    """Checks one guess by changing things in the block."""

    replay: Replay
    seen: dict[str, Seen]
    attn: str
    mlp: str

    def noise(self, like: Tensor, *, first_only: bool = False) -> Change:
        drawn = torch.randn(like.shape, generator=torch_generator(0, "generic", *like.shape)) * float(like.std() + 0.1)
        if first_only:
            drawn[:, 1:] = 0
        drawn = drawn.to(like)
        return lambda tensor: tensor + drawn

    def restore(self, tensor: Tensor) -> Change:
        return lambda _: tensor.clone()

    def unchanged(self, path: str, run: dict[str, Seen], *, later: bool = False) -> bool:
        """Whether a module gives the same again, up to rounding. `later`: leaving the first position out."""
        before, after = self.seen[path].out, run[path].out
        if later:
            before, after = before[:, 1:], after[:, 1:]
        limit = max(1e-4, 8 * torch.finfo(before.dtype).eps) * float(before.abs().max())
        return float((before - after).abs().max()) <= limit

    # -- the guess itself ----------------------------------------------------------------------------------------------

    def adds_up(self) -> bool:
        """Changing either branch's output moves the block's output by exactly that."""
        for path in (self.attn, self.mlp):
            run = self.replay.run({(path, "out"): self.noise(self.seen[path].out)})
            whole, added = run[""], (run[self.attn].out, run[self.mlp].out)
            if torch.equal(whole.out, self.seen[""].out):
                return False
            if not any(torch.equal(s, whole.out) for s in sums(whole.x, *added)):
                return False
        return True

    def attention_mixes(self) -> bool:
        run = self.replay.run({("", "in"): self.noise(self.seen[""].x, first_only=True)})
        return not self.unchanged(self.attn, run, later=True)

    def mlp_does_not(self) -> bool:
        run = self.replay.run(
            {
                ("", "in"): self.noise(self.seen[""].x, first_only=True),
                (self.attn, "out"): self.restore(self.seen[self.attn].out),
            }
        )
        return not self.unchanged(self.mlp, run) and self.unchanged(self.mlp, run, later=True)

    # -- what follows from it ------------------------------------------------------------------------------------------

    def described(self) -> Branches:
        seen = self.seen
        moved = self.replay.run({(self.attn, "out"): self.noise(seen[self.attn].out)})
        parallel = self.unchanged(self.mlp, moved)
        attends = self.is_attention(self.core(self.attn))
        found = Branches(attention=self.core(self.attn) if attends else None, parallel=parallel)
        base = seen[""].x
        if attends:
            found.taps["attn_out"] = Tap(self.attn, "out", self.view(seen[self.attn].out_kept))
            self.add_norm(found, "attn_post_norm_scale", self.attn)
            self.add_reader(found, "attn", base)
        found.taps["mlp_out"] = Tap(self.mlp, "out", self.view(seen[self.mlp].out_kept))
        self.add_norm(found, "mlp_post_norm_scale", self.mlp)
        if not parallel:
            base = base + seen[self.attn].out
            self.add_middle(found, base)
        self.add_reader(found, "mlp", base)
        return found

    def core(self, path: str) -> str:
        """The branch's own module: what a norm after it reads, where there is one."""
        if any(weight.ndim > 1 for weight in self.module(path).parameters()):
            return path
        read = self.seen[path].x
        same = [p for p, e in self.seen.items() if p and read is not None and e.out is not None and p != path
                and e.out.shape == read.shape and torch.equal(e.out, read)]  # fmt: skip
        return shallowest(same, self.seen) or path

    def is_attention(self, path: str) -> bool:
        """By the names of its classes: convolutions and recurrences mix positions too, and look alike from outside."""
        around = [path.rsplit(".", up)[0] for up in range(path.count(".") + 1)]
        kinds = [type(part).__name__.lower() for part in map(self.module, around)]
        kinds += [type(part).__name__.lower() for part in self.module(path).modules()]
        return any(word in kind for kind in kinds for word in ("attention", "attn"))

    def module(self, path: str) -> nn.Module:
        return self.replay.block.get_submodule(path)

    def view(self, kept: bool) -> View:
        return Whole() if kept else Copied()

    def add_norm(self, found: Branches, site: str, path: str) -> None:
        kind = norm_kind(self.module(path), self.seen[path].x, self.seen[path].out)
        if kind is not None:
            found.norms[site] = (path, *kind)

    def add_middle(self, found: Branches, middle: Tensor) -> None:
        """resid_mid: the input of the first module that reads the sum, if writing into it reaches the sum."""
        path = shallowest(
            (p for p in self.readers(middle) if self.seen[p].order > self.seen[self.attn].order), self.seen
        )
        if path is None:
            return
        run = self.replay.run({(path, "place"): self.noise(middle)})
        if torch.equal(run[path].x + run[self.mlp].out, run[""].out) and not torch.equal(
            run[""].out, self.seen[""].out
        ):
            found.taps["resid_mid"] = Tap(path, "in", self.view(self.seen[path].x_kept), in_place=True)

    def add_reader(self, found: Branches, branch: str, base: Tensor) -> None:
        """attn_in or mlp_in: a norm's output (or the stream itself) that is all that the branch reads of the stream."""
        path = self.attn if branch == "attn" else self.mlp
        core, norms = self.core(path), [p for p in self.readers(base) if self.seen[p].out is not None]
        read = self.seen[core].x
        norm = shallowest((p for p in norms if read is not None and self.equal(self.seen[p].out, read)), self.seen)
        tap = None
        if norm is not None or (read is not None and self.equal(read, base)):
            tap = Tap(core, "in", self.view(self.seen[core].x_kept))
        elif branch == "mlp":  # the MLP's matrices lie in the block itself; its norm shows what they read
            norm = shallowest((p for p in norms if norm_kind(self.module(p), base, self.seen[p].out)), self.seen)
            tap = None if norm is None else Tap(norm, "out", self.view(self.seen[norm].out_kept))
        if tap is None or not self.reads_only(tap, branch, path):
            return
        found.taps[f"{branch}_in"] = tap
        if norm is not None and found.norms.get("attn_norm_scale", ("",))[0] != norm:  # a shared norm is attention's
            self.add_norm(found, f"{branch}_norm_scale", norm)

    def readers(self, base: Tensor) -> list[str]:
        return [p for p, e in self.seen.items() if p and e.x is not None and e.calls == 1 and self.equal(e.x, base)]

    def equal(self, a: Tensor, b: Tensor) -> bool:
        return a.shape == b.shape and torch.equal(a, b)

    def reads_only(self, tap: Tap, branch: str, path: str) -> bool:
        """The branch changes with what it reads, alone, and with nothing else of the stream."""
        entry, place = self.seen[tap.path], (tap.path, tap.side)
        value = entry.x if tap.side == "in" else entry.out
        other = self.mlp if branch == "attn" else self.attn
        held = {} if branch == "mlp" else {(self.attn, "out"): self.restore(self.seen[self.attn].out)}
        changed = self.replay.run({place: self.noise(value)})
        alone = self.unchanged(other, self.replay.run({place: self.noise(value), **held}))
        moved = self.replay.run({("", "in"): self.noise(self.seen[""].x), place: self.restore(value)})
        return not self.unchanged(path, changed) and alone and self.unchanged(path, moved)
