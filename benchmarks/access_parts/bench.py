"""One shape on every side: what is compared, checked to be equal, then timed."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from access_parts import floor, floor_parts, peers, plain, shapes
from access_parts.hooke_side import Hooke
from access_parts.timing import Side, Turns, missing, take_turns, timed

NEW_TOKENS = 64
EXACT = 1e-5
PEER_EXACT = 1e-4  # TransformerLens runs eager attention, the others fused kernels


@dataclass(frozen=True)
class Options:
    """How to measure.

    Args:
        peers: folder of the peers' environment, or None to leave the peers out.
        turns, peer_turns: how often each side runs; the peers' loops take long.
        clock: "perf_counter" (wall clock), or "process_time" for a busy machine, with one thread only.
    """

    peers: Path | None
    threads: int = 2
    turns: int = 7
    peer_turns: int = 2
    clock: str = "perf_counter"
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True)

    def side(self, work: Callable[[], object]) -> Side:
        return timed(work, getattr(time, self.clock))


class Bench:
    """One shape: its model on every side."""

    def __init__(self, shape: shapes.Shape, folder: Path, options: Options) -> None:
        self.shape, self.options = shape, options
        self.folder = shapes.write(shape, folder)
        self.inputs = shapes.read(folder)
        self.hf = shapes.open_hf(folder)
        self.metric = (self.inputs.answer, self.inputs.wrong)
        self.values, self.z = plain.record(self.hf, self.inputs.corrupted)
        self.parts = floor_parts.parts_of(self.hf)
        self.hooke = Hooke(folder, self.inputs, self.values, self.z)
        self.peers: dict[str, peers.Peer] = {}
        self.without: dict[str, str] = {}

    def start_peers(self, python: Path | None, reason: str) -> None:
        """Load the model in each peer's process; a peer that cannot is remembered with the reason."""
        for package in peers.PACKAGES:
            if python is None:
                self.without[package] = reason
                continue
            log = self.folder / f"{package}.log"
            settings = {"threads": self.options.threads, "clock": self.options.clock, "log": log}
            try:
                self.peers[package] = peers.Peer(package, python, self.folder, **settings)
            except peers.PeerError as error:
                self.without[package] = str(error)

    def close(self) -> None:
        for peer in self.peers.values():
            peer.close()

    def rows(self) -> list[dict]:
        """All rows of this shape."""
        found = []
        steps = (self.captures, self.residual_sweeps, self.head_sweeps, self.attribution, self.generation)
        for number, step in enumerate(steps):
            self.options.say(f"{self.shape.name}: {step.__name__.replace('_', ' ')} ({number + 1} of {len(steps)}) ...")
            found += step()
        versions = {p: v for peer in self.peers.values() for p, v in peer.versions.items() if p in peers.PACKAGES}
        return [
            {**row, "name": f"{self.shape.name}: {row['name']}", "versions": versions, "threads": self.options.threads}
            for row in found
        ]

    # -- captures ------------------------------------------------------------------------------------------------------

    def captures(self) -> list[dict]:
        """Captures and `until` against the forward, and against the peers' captures."""
        ours, ids, side = self.hooke, self.inputs.batch, self.options.side
        n_layers = ours.model.n_layers
        parts = (n_layers // 4, n_layers // 2)
        sides = {
            "forward": side(lambda: plain.forward(self.hf, ids)),
            "residual": side(ours.residual),
            "everything": side(ours.everything),
        }
        for layers in parts:
            cut = plain.first_blocks(self.hf, layers)
            sides[f"cut {layers}"] = side(lambda cut=cut: plain.run_body(cut, ids))
            sides[f"until {layers}"] = side(lambda layers=layers: ours.until(layers))
        orders = [("transformer_lens", "everything"), ("transformer_lens", "residual"), ("nnsight", "residual")]
        for package, order in orders:
            if package in self.peers:
                sides[f"{package} {order}"] = self.peers[package].side(order)
        turns = take_turns(sides, self.options.turns)
        words = "{} x {} tokens".format(*self.shape.batch)
        rows = [
            turns.row(f"capture of all residual sites, {words}, against forward", "residual", "forward", at_most=1.05),
            turns.row(f"capture of everything, {words}, against forward", "everything", "forward", at_most=1.6),
        ]
        for layers in parts:
            name = f"until layer {layers} of {n_layers}, {words}, against a model cut there"
            rows.append(turns.row(name, f"until {layers}", f"cut {layers}", at_most=1.05))
        for package, order in orders:
            name = f"capture of {'all residual sites' if order == 'residual' else order}, {words}"
            target = {"at_most": 1.0} if (package, order) == orders[0] else {}
            mine = "everything" if order == "everything" else "residual"
            rows.append(self._peer_row(turns, name, mine, package, order, **target))
        return rows

    # -- sweeps --------------------------------------------------------------------------------------------------------

    def residual_sweeps(self) -> list[dict]:
        """Layer x position."""
        truth = plain.residual_loop(self.hf, self.inputs.clean, self.values, *self.metric)
        work = {
            "ours": self.hooke.residual_sweep,
            "floor": lambda: floor.residual_packed(self.parts, self.inputs.clean, self.values, *self.metric),
            "loop": lambda: plain.residual_loop(self.hf, self.inputs.clean, self.values, *self.metric),
        }
        return self._sweeps("layer x position residual sweep", "residual_sweep", truth, work)

    def head_sweeps(self) -> list[dict]:
        """Every head's z at all positions."""
        truth = plain.head_loop(self.hf, self.inputs.clean, self.z, *self.metric)
        work = {
            "ours": self.hooke.head_sweep,
            "floor": lambda: floor.head_wavefront(self.parts, self.inputs.clean, self.z, *self.metric),
            "loop": lambda: plain.head_loop(self.hf, self.inputs.clean, self.z, *self.metric),
        }
        return self._sweeps("z sweep of all heads", "head_sweep", truth, work)

    def _sweeps(self, name: str, order: str, truth: Tensor, work: Mapping[str, Callable[[], Tensor]]) -> list[dict]:
        name = f"{name}, {truth.numel()} patches of {shapes.PAIR_LENGTH} tokens"
        if truth.std() < 1e3 * EXACT:
            raise AssertionError("the patches hardly change the metric; the comparison would show nothing")
        for who in ("ours", "floor"):
            agree(f"{name}: {who}", work[who](), truth, EXACT)
        sides = {who: self.options.side(do) for who, do in work.items()}
        orders = [("transformer_lens", order), ("nnsight", order), ("nnsight", f"{order}_invokes")]
        slow = {"ours": sides["ours"], "loop": sides["loop"]}
        for package, what in orders:
            if package not in self.peers:
                continue
            peer = self.peers[package]
            agree(f"{name}: {peer.label}", peer.do(what)[1], truth, PEER_EXACT)
            slow[f"{package} {what}"] = peer.side(what)
        fast = take_turns({"floor": sides["floor"], "ours": sides["ours"]}, 2 * self.options.turns)
        loops = take_turns(slow, self.options.peer_turns, warm_up=0)
        rows = [fast.row(f"{name}, against the hand-written floor", "ours", "floor", at_most=1.3)]
        for package, what in orders:
            batched = what.endswith("invokes")
            target = {} if batched else {"at_least": 4.0}
            label = f"{name} ({'a trace a layer, an invoke a patch' if batched else 'its loop'})"
            rows.append(self._peer_row(loops, label, "ours", package, what, times=True, **target))
        rows.append(
            loops.row(f"{name}, times as fast as one hooked forward a patch", "ours", "loop", at_least=math.nan)
        )
        return rows

    def _peer_row(
        self, turns: Turns, name: str, mine: str, package: str, order: str, *, times: bool = False, **target: float
    ) -> dict:
        """A row against a peer, or the reason why there is none."""
        against = ", times as fast as" if times else ", against"
        if package not in self.peers:
            bound = next(iter(target.values()), math.nan)
            return missing(f"{name}{against} {peers.NAMES[package]}", self.without[package], bound)
        if times and not target:
            target = {"at_least": math.nan}
        return turns.row(f"{name}{against} {self.peers[package].label}", mine, f"{package} {order}", **target)

    # -- gradients and generation --------------------------------------------------------------------------------------

    def attribution(self) -> list[dict]:
        """All heads, gradient times difference."""
        ids, other = self.inputs.batch, self.inputs.corrupted_batch
        truth = plain.attribution(self.hf, ids, other, *self.metric)
        agree("attribution of all heads", self.hooke.attribution(), truth, 1e-4 * float(truth.abs().max()))
        sides = {
            "floor": lambda: plain.forward_and_backward(self.hf, ids, other, *self.metric),
            "ours": self.hooke.attribution,
        }
        turns = take_turns({who: self.options.side(do) for who, do in sides.items()}, self.options.turns)
        name = "attribution of all heads, {} x {} tokens, against a forward and a forward-backward"
        return [turns.row(name.format(*self.shape.batch), "ours", "floor", at_most=1.3)]

    def generation(self) -> list[dict]:
        """Greedy, one `Add`."""
        expected = plain.generate(self.hf, self.inputs.batch, NEW_TOKENS)
        found = self.hooke.generate(NEW_TOKENS, steered=False)
        if not torch.equal(found, expected):
            raise AssertionError("without edits, generation differs from Hugging Face's")
        if torch.equal(self.hooke.generate(NEW_TOKENS), expected):
            raise AssertionError("the steering vector changes nothing")
        sides = {
            "plain": lambda: plain.generate(self.hf, self.inputs.batch, NEW_TOKENS),
            "steered": lambda: self.hooke.generate(NEW_TOKENS),
        }
        turns = take_turns({who: self.options.side(do) for who, do in sides.items()}, self.options.turns)
        name = f"steered greedy generation of {NEW_TOKENS} tokens for {self.shape.batch[0]} prompts of "
        return [turns.row(f"{name}{self.shape.batch[1]}, against `generate`", "steered", "plain", at_most=1.05)]


def agree(name: str, found: Tensor | None, truth: Tensor, tolerance: float) -> None:
    """Raise where two sides do not compute the same numbers."""
    error = math.inf if found is None or found.shape != truth.shape else float((found - truth).abs().max())
    if not error <= tolerance:
        raise AssertionError(f"{name}: {error:.1e} away from what it should equal; at most {tolerance:.0e} is allowed")
