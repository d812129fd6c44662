"""Runs the chunks of a sweep's plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import DataError
from hooke.model.compiled import hooks_fire
from hooke.model.metrics import Metric
from hooke.model.plan import columns_of
from hooke.model.run import Run
from hooke.model.sweep.batched import batched_pass
from hooke.model.sweep.clean import Clean, NotPlain
from hooke.model.sweep.layered import CleanBlocks, clean_blocks, layered_pass
from hooke.model.sweep.packed import packed_pass
from hooke.model.sweep.packing import Packing
from hooke.model.sweep.rows import Row
from hooke.model.sweep.tail import Tail

if TYPE_CHECKING:
    from hooke.model.sweep.planning import SweepPlan


class Worker:
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
        if not isinstance(values, Tensor) or values.shape != (len(self.tokens),):
            found = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise DataError(f"the metric gave {found}; expected one number per example")
        return values if values.is_floating_point() else values.float()  # true and false have no difference

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
