"""Sweeps: one metric under many edit sets, planned together, costed before they run, streamed and resumed.

A metric per edit set and example equals that of one edited forward pass each. Rows are computed as changes to one clean
run (`packed.py`); edit sets for which that does not hold are run whole, and the plan says which and why.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hooke.base.errors import ConfigError, DataError, FormatError
from hooke.base.files import read_tensors, write_tensors
from hooke.base.progress import SILENT, Sink
from hooke.model.compiled import hooks_fire
from hooke.model.edits import Call, Edit
from hooke.model.memory import available_bytes
from hooke.model.metrics import Metric
from hooke.model.plan import PlacedEdit, columns_of, place_edits
from hooke.model.run import Run
from hooke.model.sweep.batched import batched_pass
from hooke.model.sweep.clean import Clean, NotPlain
from hooke.model.sweep.layered import CleanBlocks, clean_blocks, layered_pass
from hooke.model.sweep.packed import packed_pass
from hooke.model.sweep.packing import Packing
from hooke.model.sweep.rows import Row, Rows, why_not_packed
from hooke.model.sweep.tail import Tail, is_plain
from hooke.model.tokens import Tokens

if TYPE_CHECKING:
    from hooke.model.model import Inputs, Model

MetricFunction = Metric | Callable[[Run], Tensor]
_BUDGET = 2**30  # bytes of activations in one pass, where nothing else is said; larger passes are not faster on a CPU


@dataclass(frozen=True, eq=False)
class SweepPlan:
    """What a sweep will do. `str(plan)` says it for people; `stream` does it.

    Args:
        placed: the edits of every set, positions worked out.
        rows: the rows of every set that is computed as a change to the clean run.
        whole: the sets that are run whole, with the reason.
        chunks: consecutive sets that one pass takes together.
    """

    model: Model
    tokens: Tokens
    metric: MetricFunction
    placed: Sequence[Sequence[PlacedEdit]]
    rows: Mapping[int, Sequence[Row]]
    whole: Mapping[int, str]
    chunks: Sequence[range]

    @property
    def token_layers(self) -> int:
        """Cost: tokens times blocks that will be computed, the clean run included."""
        n_layers, n_tokens = self.model.n_layers, int(self.tokens.mask.sum())
        lengths = self.tokens.lengths.tolist()
        packed = sum(
            (row.width if self.model.layout.dispatches else lengths[row.example]) * (n_layers - row.layer)
            for rows in self.rows.values()
            for row in rows
        )
        return packed + n_tokens * n_layers * (1 + len(self.whole))

    @property
    def token_layers_one_by_one(self) -> int:
        """What one forward pass for each edit set and the clean run would cost."""
        return int(self.tokens.mask.sum()) * self.model.n_layers * (1 + len(self.placed))

    def __str__(self) -> str:
        share = self.token_layers / self.token_layers_one_by_one
        lines = [
            f"{len(self.placed)} edit sets x {len(self.tokens)} examples: {len(self.chunks)} passes after a clean run",
            f"{self.token_layers:,} token-layers, {share:.1%} of the {self.token_layers_one_by_one:,} of a pass each",
        ]
        if self.rows and not self.model.layout.dispatches:
            family = self.model.layout.family
            lines.append(f"by layer only: {family} models do their attention outside transformers' registry")
        reasons: dict[str, int] = {}
        for reason in self.whole.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lines += [f"{n} of them run whole: {reason}" for reason, n in reasons.items()]
        return "\n".join(lines)

    def stream(self, *, first: int = 0) -> Iterator[tuple[range, Float[Tensor, "set batch"]]]:
        """Results in order: the numbers of the edit sets, and the metric under each of them. Sets before `first` are
        left out.
        """
        worker = _Worker(self)
        for chunk in self.chunks:
            if chunk.stop > first:
                yield chunk, worker.values(chunk)


@dataclass(frozen=True, eq=False)
class Sweep:
    """Result of a sweep.

    Args:
        values: the metric under each edit set, for each example.
        baseline: the metric without edits.
        plan: how it was computed.
    """

    values: Float[Tensor, "set batch"]
    baseline: Float[Tensor, " batch"]
    plan: SweepPlan = field(repr=False)

    @property
    def change(self) -> Float[Tensor, "set batch"]:
        """What each edit set does to the metric."""
        return self.values - self.baseline


def plan_sweep(
    model: Model,
    inputs: Inputs,
    edit_sets: Sequence[Sequence[Edit] | Edit],
    metric: MetricFunction,
    *,
    memory: int | None = None,
) -> SweepPlan:
    """Check every edit set against the model and the inputs, and plan the work; nothing runs yet.

    Args:
        edit_sets: what is tried, each a list of edits (or one edit) applied to all examples.
        metric: one number per example; a `Metric` says which logits it reads, so that only these are computed.
        memory: most bytes of activations in one pass; None takes 1 GiB or half of what is free.

    Raises:
        SiteError, ShapeError, DataError, ConfigError: for an edit that does not fit, named by its set.
    """
    if not len(edit_sets):
        raise ConfigError("a sweep needs at least one edit set; got none")
    tokens = model.as_tokens(inputs)
    if isinstance(metric, Metric):
        metric.check(tokens, model.d_vocab)
    placed = [_placed(model, tokens, number, edits) for number, edits in enumerate(edit_sets)]
    general = _why_all_whole(model, tokens)
    rows, whole, working = {}, {}, Rows(model.layout, tokens)
    for number, edits in enumerate(placed):
        reason = general or why_not_packed(edits)
        if reason is None:
            rows[number] = working.of(number, edits)
        else:
            whole[number] = reason
    room = min(_BUDGET, available_bytes(model.device) // 2) if memory is None else memory
    return SweepPlan(model, tokens, metric, placed, rows, whole, _chunks(model, tokens, rows, len(placed), room))


def sweep(
    model: Model,
    inputs: Inputs,
    edit_sets: Sequence[Sequence[Edit] | Edit],
    metric: MetricFunction,
    *,
    memory: int | None = None,
    resume: str | Path | None = None,
    sink: Sink = SILENT,
) -> Sweep:
    """The metric of every example under every edit set.

    Equal to one edited forward pass for each set, to 1e-5 in float32 and 1e-12 in float64 (sums are taken in another
    order); the unchanged prefix is computed once, by layer and, in causal models, by position.

    Args:
        edit_sets: what is tried, each a list of edits (or one edit) applied to all examples.
        metric: one number per example, a `Metric` or any function of a `Run`.
        memory: most bytes of activations in one pass; None takes 1 GiB or half of what is free.
        resume: a file that keeps what is done; a sweep that was stopped goes on from there.

    Raises:
        SiteError, ShapeError, DataError, ConfigError: before anything runs.
        FormatError: for a `resume` file of another sweep.
    """
    plan = plan_sweep(model, inputs, edit_sets, metric, memory=memory)
    values = torch.full((len(plan.placed), len(plan.tokens)), math.nan, dtype=torch.float64, device=model.device)
    if resume is not None and any(isinstance(item.edit, Call) for own in plan.placed for item in own):
        raise ConfigError("a sweep with Call cannot be resumed: nobody can tell whether the function is still the same")
    done, saved = 0, None if resume is None else _Saved(Path(resume), plan)
    if saved is not None:
        done = saved.load(values)
    result_type = torch.float32
    worker = _Worker(plan)
    for numbers in plan.chunks:
        if numbers.stop <= done:
            continue
        part = worker.values(numbers)
        values[numbers.start : numbers.stop] = part.double()
        result_type = part.dtype
        if saved is not None:
            saved.store(values, numbers.stop)
        sink.progress("sweep", numbers.stop, len(values), "edit sets")
    baseline = worker.baseline()
    return Sweep(values.to(torch.promote_types(result_type, baseline.dtype)), baseline, plan)


# -- planning ---------------------------------------------------------------------------------------------------------


def _placed(model: Model, tokens: Tokens, number: int, edits: Sequence[Edit] | Edit) -> list[PlacedEdit]:
    own = [edits] if isinstance(edits, Edit) else list(edits)
    if not all(isinstance(edit, Edit) for edit in own):
        raise ConfigError(
            f"edit set {number}: a set is one list of edits for all examples, without a list for each; sweep the "
            "examples apart, or restrict edits to some rows by a Bool [batch, pos] as positions"
        )
    try:
        return place_edits(model.layout, model.d_vocab, tokens, own)
    except (KeyError, ValueError) as error:
        raise type(error)(f"edit set {number}: {error}") from error


def _why_all_whole(model: Model, tokens: Tokens) -> str | None:
    layout = model.layout
    if getattr(tokens, "media", None):
        return "inputs with images"
    if "z" not in layout.inside or not layout.attention:
        return f"{layout.family}: the place of z is not known"
    if not is_plain(model.hf, layout):
        return f"{layout.family}: more than a norm and an unembedding lies between the last block and the logits"
    return None


def _chunks(model: Model, tokens: Tokens, rows: Mapping[int, Sequence[Row]], n_sets: int, room: int) -> Sequence[range]:
    """Consecutive sets that fit into the memory budget together, at least one at a time."""
    layout, size = model.layout, model.dtype.itemsize
    width = tokens.shape[1]
    per_token = (10 * layout.d_model + 3 * max(layout.d_mlp, layout.d_model)) * size
    attention = (2 * layout.n_heads + 2 * layout.n_kv_heads) * layout.d_head * width * size
    attention += layout.n_heads * width * width * size
    whole = len(tokens) * (width * (per_token + 2 * model.d_vocab * size) + attention)
    chunks, start, used = [], 0, 0
    for number in range(n_sets):
        own = (
            sum((row.width if layout.dispatches else width) * per_token + attention for row in rows[number])
            if number in rows
            else whole
        )
        if used + own > room and number > start:
            chunks.append(range(start, number))
            start, used = number, 0
        used += own
    return [*chunks, range(start, n_sets)]


# -- running ----------------------------------------------------------------------------------------------------------


class _Worker:
    """Computes chunks; the clean run goes along in a single one, and is made first and kept where there are more."""

    def __init__(self, plan: SweepPlan) -> None:
        self.plan, self.model, self.tokens = plan, plan.model, plan.tokens
        self.tail = Tail(self.model.hf, self.model.layout)
        self.clean = Clean(self.tokens, self.model.n_layers, keep=len(plan.chunks) > 1)
        self.blocks: CleanBlocks | None = None
        self.unedited: Tensor | None = None
        self.not_plain = not plan.rows
        metric = plan.metric
        self.read = columns_of(self.tokens, metric.positions, "metric") if isinstance(metric, Metric) else None
        self.last_read = None if self.read is None else self.read.amax(dim=1).tolist()

    def values(self, chunk: range) -> Float[Tensor, "set batch"]:
        """The metric under the edit sets of a chunk."""
        with hooks_fire(self.model.hf):
            return self._values(chunk)

    def _values(self, chunk: range) -> Float[Tensor, "set batch"]:
        found: dict[int, Tensor] = {}
        packed = [number for number in chunk if number in self.plan.rows]
        if packed and not self.not_plain:
            try:
                found |= self._packed(packed)
            except NotPlain:
                self.not_plain = True
        left = {number: self.plan.placed[number] for number in chunk if number not in found}
        if left:
            found |= {n: self._metric(run) for n, run in batched_pass(self.model, self.tokens, left).items()}
        return torch.stack([found[number] for number in chunk])

    def baseline(self) -> Float[Tensor, " batch"]:
        """The metric without edits."""
        if self.unedited is None and not self.not_plain:
            try:
                with hooks_fire(self.model.hf):
                    self._packed([])
            except NotPlain:
                self.not_plain = True
        return self._metric(self.model.run(self.tokens)) if self.unedited is None else self.unedited

    def _metric(self, run: Run) -> Tensor:
        with torch.no_grad():
            values = self.plan.metric(run)
        if values.shape != (len(self.tokens),):
            raise DataError(f"the metric gave shape {tuple(values.shape)}; expected one number per example")
        return values

    def _is_read(self, row: Row) -> bool:
        """Whether the metric reads a position at which the row may differ from the clean run."""
        return self.last_read is None or self.last_read[row.example] >= row.first

    @torch.no_grad()
    def _packed(self, numbers: Sequence[int]) -> dict[int, Tensor]:
        rows = [row for number in numbers for row in self.plan.rows[number] if self._is_read(row)]
        if not self.model.layout.dispatches:
            return self._layered(numbers, sorted(rows, key=lambda row: row.layer))
        first_time = self.clean.output is None
        if first_time and self.clean.keep and rows:
            # Apart from the rows, so that a resumed sweep repeats the very same passes.
            self._packed([])
            first_time = False
        if not rows and not first_time:
            assert self.unedited is not None
            return dict.fromkeys(numbers, self.unedited)
        packing = Packing(rows, self.clean, with_clean=first_time)
        places = None if self.read is None else packing.places(self.read)
        arguments = self.model.arguments(self.tokens)
        hidden = packed_pass(
            self.model.hf, self.model.layout, self.clean, packing, arguments=arguments, columns=self.read
        )
        if first_time:
            self.clean.output = self.clean.kept(hidden[: packing.n_clean])
        if places is None:
            return self._whole_logits(numbers, packing, hidden)
        assert self.read is not None
        unchanged = self.clean.output[self.clean.place[packing.examples[:, None], self.read[packing.examples]]]
        final = torch.where((places >= 0)[..., None], hidden[places.clamp(min=0)], unchanged)
        scores = self._scores(final, packing.examples)
        joining = [(row, score) for row, score in zip(packing.rows, scores, strict=True) if row.edit_set >= 0]
        if first_time:
            self.unedited = scores[: len(packing.rows) - len(joining)]
        assert self.unedited is not None
        values = {number: self.unedited.clone() for number in numbers}
        for row, score in joining:
            values[row.edit_set][row.example] = score
        return values

    def _layered(self, numbers: Sequence[int], rows: Sequence[Row]) -> dict[int, Tensor]:
        """For families whose attention cannot be spread out."""
        hf, layout = self.model.hf, self.model.layout
        if self.blocks is None:
            self.blocks = clean_blocks(hf, layout, self.model.arguments(self.tokens))
            batch = torch.arange(len(self.tokens), device=self.blocks.output.device)
            self.unedited = self._of_outputs(self.blocks.output, batch)
        assert self.unedited is not None
        values = {number: self.unedited.clone() for number in numbers}
        if rows:
            outputs = layered_pass(hf, layout, self.blocks, self.tokens, rows)
            examples = torch.tensor([row.example for row in rows], device=outputs.device)
            scores = self._of_outputs(outputs, examples, rows)
            for row, score in zip(rows, scores, strict=True):
                values[row.edit_set][row.example] = score
        return values

    def _of_outputs(
        self, outputs: Float[Tensor, "row pos d_model"], examples: Tensor, rows: Sequence[Row] = ()
    ) -> Float[Tensor, " row"]:
        """The metric from what the last block gave for whole rows."""
        if self.read is not None:
            columns = self.read[examples]
            return self._scores(outputs[torch.arange(len(outputs), device=outputs.device)[:, None], columns], examples)
        if not rows:
            return self._metric(Run(self.tokens, self.tail.logits(outputs)))
        unchanged = self.tail.logits(self.blocks.output)
        scores = []
        for row, output in zip(rows, outputs, strict=True):
            logits = unchanged.clone()
            logits[row.example] = self.tail.logits(output)
            scores.append(self._metric(Run(self.tokens, logits))[row.example])
        return torch.stack(scores)

    def _scores(self, final: Float[Tensor, "row position d_model"], examples: Tensor) -> Float[Tensor, " row"]:
        metric = self.plan.metric
        assert isinstance(metric, Metric)
        ids = metric.vocab(len(self.tokens))
        if ids is not None:
            ids = ids.to(final.device)[examples][:, None].expand(-1, final.shape[1], -1)
        return metric.score(self.tail.logits(final, ids), examples)

    def _whole_logits(self, numbers: Sequence[int], packing: Packing, hidden: Tensor) -> dict[int, Tensor]:
        """For metrics that may read any logit: each set's logits, the clean ones with what changed put in."""
        clean = self.clean
        assert clean.output is not None
        unchanged = self.tail.logits(clean.output)[clean.place]
        if self.unedited is None:
            self.unedited = self._metric(Run(self.tokens, unchanged))
        values = {}
        for number in numbers:
            logits = unchanged.clone()
            for index, row in enumerate(packing.rows):
                if row.edit_set == number:
                    own = hidden[packing.starts[index] : packing.starts[index + 1]]
                    logits[row.example, row.first : row.end] = self.tail.logits(own)
            values[number] = self._metric(Run(self.tokens, logits))
        return values


# -- resuming ---------------------------------------------------------------------------------------------------------


class _Saved:
    """What a sweep has done, in a file that belongs to this sweep alone."""

    def __init__(self, path: Path, plan: SweepPlan) -> None:
        self.path, self.fingerprint = path, _fingerprint(plan)

    def load(self, values: Tensor) -> int:
        """Fill in what is done; returns the number of edit sets done."""
        if not self.path.exists():
            return 0
        tensors, metadata = read_tensors(self.path)
        if metadata.get("sweep") != self.fingerprint:
            raise FormatError(
                f"{self.path} belongs to another sweep (model, inputs, edits or metric differ); give another file, "
                "or remove it to start over"
            )
        done = int(tensors["done"])
        values[:done] = tensors["values"][:done].to(values.device)
        return done

    def store(self, values: Tensor, done: int) -> None:
        """Write what is done, atomically."""
        write_tensors(self.path, {"values": values.cpu(), "done": torch.tensor(done)}, {"sweep": self.fingerprint})


def _fingerprint(plan: SweepPlan) -> str:
    """Hash of everything that the values depend on."""
    digest = hashlib.sha256(plan.model.identity["weights"].encode())

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        elif isinstance(value, Mapping):
            add(sorted(((str(key), item) for key, item in value.items()), key=lambda pair: pair[0]))
        elif isinstance(value, nn.Module):
            add(type(value).__name__)
            add(value.state_dict())
        else:
            digest.update(repr(value).encode())

    add([plan.tokens.ids, plan.tokens.mask])
    add(vars(plan.metric) if isinstance(plan.metric, Metric) else getattr(plan.metric, "__qualname__", ""))
    for placed in plan.placed:
        for item in placed:
            add([str(item.site), type(item.edit).__name__, item.where, vars(item.edit)])
    return digest.hexdigest()
