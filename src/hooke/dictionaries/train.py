"""Train a dictionary on batches of activations: a pure function with a sink, that resumes exactly after a kill.

Per step: loss, backward, decoder gradient without its component along each row, optional clip, Adam, decoder rows
back to norm 1. The first batches are held until `sample_tokens` rows are there; from them come the scale by which all
input is divided (frozen, and folded into the weights at the end) and the starting `b_dec`; then they are trained on
like all others.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, ShapeError
from hooke.base.jsonable import jsonable
from hooke.base.progress import SILENT, Sink
from hooke.base.shapes import require_finite, require_floating, require_shape
from hooke.dictionaries.activations import settings
from hooke.dictionaries.checkpoints import Checkpoints, read_checkpoint
from hooke.dictionaries.dictionary import Dictionary
from hooke.dictionaries.folds import fold_decoder_norm_, fold_input_scale_
from hooke.dictionaries.initialise import Centre, Scale, centre_of, scale_of
from hooke.dictionaries.objectives import Objective
from hooke.dictionaries.trainer import Trainer, rate_at

_DEAD_AFTER = 10_000_000


@runtime_checkable
class Resumable(Protocol):
    """A stream of batches that can tell where it is and go there. Streams that cannot are read again from the start."""

    def state_dict(self) -> Any:
        """Where the stream is."""

    def load_state_dict(self, state: Any) -> None:
        """Go to where `state_dict` was taken."""


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Args:
        n_tokens: rows to train on; the last batch may go a little beyond.
        learning_rate: of Adam at its height. The default suits a few million tokens; take 3e-4 to 1e-3 for hundreds
            of millions.
        warmup_steps: linear warm-up; a tenth of the steps, at most 1000, when `None`.
        decay_share: last share of the steps, over which the rate falls linearly to 0.
        betas, eps: of Adam.
        clip: largest norm of the whole gradient; `None` for no limit.
        centre: where `b_dec` starts: "mean" or (geometric) "median" of (32,768 rows of) the first sample, or "zero".
        scale: what the input's scale is made in training: "unit" mean squared norm, "sqrt_d", or "none".
        sample_tokens: rows of that first sample.
        dead_after_tokens: a latent that has not fired for so many tokens is dead; a tenth of the tokens, at most 10
            million, when `None`.
        log_every: steps between reports to the sink.

    Raises:
        ConfigError: for numbers out of range.
    """

    n_tokens: int
    learning_rate: float = 4e-3
    warmup_steps: int | None = None
    decay_share: float = 0.2
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    clip: float | None = None
    centre: Centre = "mean"
    scale: Scale = "unit"
    sample_tokens: int = 100_000
    dead_after_tokens: int | None = None
    log_every: int = 50

    def __post_init__(self) -> None:
        at_least_1 = {"n_tokens": self.n_tokens, "sample_tokens": self.sample_tokens, "log_every": self.log_every}
        if self.dead_after_tokens is not None:
            at_least_1["dead_after_tokens"] = self.dead_after_tokens
        for name, number in at_least_1.items():
            if number < 1:
                raise ConfigError(f"{name} is {number}; expected at least 1")
        if not (self.learning_rate > 0 and math.isfinite(self.learning_rate)):
            raise ConfigError(f"learning_rate is {self.learning_rate}; expected a positive number")
        if not 0 <= self.decay_share <= 1 or (self.warmup_steps or 0) < 0:
            raise ConfigError(
                f"warmup_steps {self.warmup_steps}, decay_share {self.decay_share}; expected 0 or more, share at most 1"
            )
        if self.clip is not None and not self.clip > 0:
            raise ConfigError(f"clip is {self.clip}; expected above 0, or None")


@dataclass(frozen=True)
class TrainResult:
    """What training gave.

    Args:
        dictionary: the one that was passed, trained, in units of the raw input, in evaluation mode.
        steps, tokens: how many batches and rows it saw.
        input_scale, output_scale: what input and output were divided by in training (already folded in).
        metrics: the last report.
        resumed_at: the step from which it went on; `None` when it started afresh.
        ended_early: the batches ended before `n_tokens` rows.
    """

    dictionary: Dictionary
    steps: int
    tokens: int
    input_scale: float
    output_scale: float
    metrics: dict[str, float]
    resumed_at: int | None
    ended_early: bool


def train(
    dictionary: Dictionary,
    batches: Iterable[Any],
    *,
    objective: Objective,
    config: TrainConfig,
    sink: Sink = SILENT,
    checkpoints: Checkpoints | None = None,
) -> TrainResult:
    """Train a dictionary in place.

    Args:
        dictionary: a new one (its `b_dec` is set from the data), or a trained one to go on with (`centre` is then
            ignored).
        batches: tensors `[row, d_in]`, or mappings from sites to tensors such as a `Pool` gives. With `state_dict` and
            `load_state_dict` they resume at once, otherwise they are read again up to the place.
        objective: the loss.
        config: how.
        sink: gets `loss, fvu, l0, dead_share, ...` every `log_every` steps, and progress in tokens.
        checkpoints: where to write checkpoints, and whether to go on from one. On a CPU the same settings and machine
            give the same weights, bit for bit, however often the process was killed in between.

    Raises:
        ShapeError: a batch of another width.
        DataError: no batches, whole numbers, NaN or infinity in a batch, or a loss that is no longer finite.
        ConfigError: a checkpoint from other settings, or decoder rows of unequal norms to go on with.
    """
    run = _Training(dictionary, batches, objective, config, checkpoints)
    if run.resumed_at is not None:
        sink.message(f"resumed at step {run.resumed_at} of {run.n_steps}")
    metrics: dict[str, float] = run.metrics
    for x, y in run.pairs():
        run.step(x, y)
        if run.steps % config.log_every == 0 or run.done:
            metrics = run.report()
            sink.metrics(metrics, run.steps)
        sink.progress("train", min(run.tokens, config.n_tokens), config.n_tokens, "tokens")
        run.checkpoint()
        if run.done:
            break
    if not run.done:
        if run.steps % config.log_every:  # what came after the last report
            metrics = run.report()
            sink.metrics(metrics, run.steps)
        sink.message(
            f"the batches ended after {run.tokens} of {config.n_tokens} tokens; the learning rate had not fallen yet"
        )
    fold_input_scale_(dictionary, run.input_scale, run.output_scale)
    dictionary.eval()
    return TrainResult(
        dictionary, run.steps, run.tokens, run.input_scale, run.output_scale, metrics, run.resumed_at, not run.done
    )


class _Training:
    """A training in progress: the trainer, its place in the batches, and its checkpoints."""

    def __init__(
        self,
        dictionary: Dictionary,
        batches: Iterable[Any],
        objective: Objective,
        config: TrainConfig,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.dictionary, self.config, self.checkpoints = dictionary, config, checkpoints
        self.batches = batches
        self.settings = _settings(dictionary, objective, config)
        self.steps = self.tokens = 0
        self.resumed_at: int | None = None
        self.metrics: dict[str, float] = {}
        self.held: list[tuple[Tensor, Tensor]] = []
        newest = checkpoints.newest() if checkpoints is not None else None
        state = read_checkpoint(newest) if newest is not None else None
        if state is not None and state["settings"] != jsonable(self.settings):
            raise ConfigError(f"{newest} is of another training ({_difference(state['settings'], self.settings)})")
        self.stream: Iterator[Any] = iter(batches) if state is None else self._seek(batches, state)
        if state is None:
            self._start()
        else:
            self.input_scale, self.output_scale = state["input_scale"], state["output_scale"]
            self.n_steps, self.metrics = state["n_steps"], state["metrics"]
        self.trainer = Trainer(
            dictionary,
            objective,
            adam={"betas": config.betas, "eps": config.eps},
            clip=config.clip,
            dead_after_tokens=config.dead_after_tokens or max(1, min(_DEAD_AFTER, config.n_tokens // 10)),
        )
        if state is not None:
            self.trainer.load_state_dict(state["trainer"])
            self.steps = self.resumed_at = state["steps"]
            self.tokens = state["tokens"]
        if config.warmup_steps is None:
            self.warmup = min(1000, self.n_steps // 10)
        else:
            self.warmup = config.warmup_steps

    @property
    def done(self) -> bool:
        return self.tokens >= self.config.n_tokens

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """What is left to train on, checked and scaled."""
        if self.done:
            return
        while self.held:
            yield self._scaled(self.held.pop(0))
        for batch in self.stream:
            yield self._scaled(self._pair(batch))

    def step(self, x: Tensor, y: Tensor) -> None:
        share = rate_at(self.steps, self.n_steps, warmup_steps=self.warmup, decay_share=self.config.decay_share)
        self.trainer.step(x, y, self.config.learning_rate * share)
        self.steps += 1
        self.tokens += x.shape[0]

    def report(self) -> dict[str, float]:
        self.metrics = self.trainer.report() | {"tokens": float(self.tokens)}
        return self.metrics

    def checkpoint(self) -> None:
        """Write one if it is time. Not while the first sample is held: a restart then costs only seconds."""
        if self.checkpoints is None or self.held or (self.steps % self.checkpoints.every and not self.done):
            return
        state = {
            "settings": self.settings,
            "steps": self.steps,
            "tokens": self.tokens,
            "n_steps": self.n_steps,
            "input_scale": self.input_scale,
            "output_scale": self.output_scale,
            "metrics": self.metrics,
            "trainer": self.trainer.state_dict(),
            "batches": self.batches.state_dict() if isinstance(self.batches, Resumable) else None,
        }
        self.checkpoints.write(self.steps, state)

    def _start(self) -> None:
        """Hold a first sample; take scale and centre from it; bring the dictionary to the scaled units."""
        rows = 0
        while rows < self.config.sample_tokens and (batch := next(self.stream, None)) is not None:
            self.held.append(self._pair(batch))
            rows += self.held[-1][0].shape[0]
        if not self.held:
            raise DataError("there are no batches to train on")
        self.n_steps = math.ceil(self.config.n_tokens / self.held[0][0].shape[0])
        x, y = (torch.cat(side) for side in zip(*self.held, strict=True))
        dictionary, config = self.dictionary, self.config
        self.output_scale = scale_of(y, config.scale)
        same = dictionary.subtract_b_dec or self.held[0][0] is self.held[0][1]
        self.input_scale = self.output_scale if same else scale_of(x, config.scale)
        with torch.no_grad():
            norms = dictionary.W_dec.norm(dim=1)
        if bool(((norms - 1).abs() > 1e-4).any()):  # the trainer's gradient projection takes rows to have norm 1
            fold_decoder_norm_(dictionary)
        if bool((dictionary.b_dec == 0).all()):
            with torch.no_grad():
                dictionary.b_dec.copy_(centre_of(y[: 1 << 15], config.centre))
        fold_input_scale_(dictionary, 1 / self.input_scale, 1 / self.output_scale)

    def _seek(self, batches: Iterable[Any], state: dict[str, Any]) -> Iterator[Any]:
        if isinstance(batches, Resumable) and state["batches"] is not None:
            batches.load_state_dict(state["batches"])
            return iter(batches)
        return itertools.islice(iter(batches), state["steps"], None)

    def _pair(self, batch: Any) -> tuple[Float[Tensor, "row d_in"], Float[Tensor, "row d_out"]]:
        """What is read and what is to be written, on the dictionary's device, checked."""
        dictionary = self.dictionary
        sides = []
        for site, width in ((dictionary.reads, dictionary.d_in), (dictionary.writes, dictionary.d_out)):
            tensor = _at(batch, site)
            name = f"the batch after {self.tokens} tokens" + ("" if site is None else f" at {site}")
            require_floating(tensor, name)
            require_shape(tensor, f"row d={width}", name)
            if tensor.shape[0] == 0:
                raise DataError(f"{name} has no rows")
            if not math.isfinite(float(tensor.sum())):  # one cheap pass settles almost every batch
                require_finite(tensor, name)
            sides.append(tensor.to(dictionary.encoder))
            if dictionary.reads == dictionary.writes and dictionary.d_in == dictionary.d_out:
                return sides[0], sides[0]
        if sides[0].shape[0] != sides[1].shape[0]:
            raise ShapeError(
                f"a batch has {sides[0].shape[0]} rows to read and {sides[1].shape[0]} to write; expected equal"
            )
        return sides[0], sides[1]

    def _scaled(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x = pair[0] / self.input_scale
        return x, x if pair[0] is pair[1] else pair[1] / self.output_scale


def _at(batch: Any, site: Any) -> Tensor:
    if isinstance(batch, Tensor):
        return batch
    if not isinstance(batch, Mapping):
        raise DataError(f"a batch is a {type(batch).__name__}; expected a tensor, or a mapping from sites to tensors")
    if site is None and len(batch) == 1:
        return next(iter(batch.values()))
    if site not in batch:
        raise DataError(f"the batch has {', '.join(map(str, batch))}; the dictionary needs {site}")
    return batch[site]


def _settings(dictionary: Dictionary, objective: Objective, config: TrainConfig) -> dict[str, Any]:
    """What must agree for a checkpoint to belong to this training; plain values."""
    shape = {
        "d_in": dictionary.d_in,
        "n_latents": dictionary.n_latents,
        "d_out": dictionary.d_out,
        "reads": str(dictionary.reads),
        "writes": str(dictionary.writes),
        "subtract_b_dec": dictionary.subtract_b_dec,
        "activation": settings(dictionary.activation),
    }
    return shape | {"objective": dataclasses.asdict(objective), "config": dataclasses.asdict(config)}


def _difference(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    wanted = jsonable(wanted)
    parts = [
        f"{key}: saved {saved.get(key)}, asked for {wanted[key]}" for key in wanted if saved.get(key) != wanted[key]
    ]
    return "; ".join(parts)
