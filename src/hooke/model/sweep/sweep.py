"""Sweeps: one metric under many edit sets, planned together, costed before they run, streamed and resumed.

A metric per edit set and example equals that of one edited forward pass each. Rows are computed as changes to one clean
run (`packed.py`); edit sets for which that does not hold are run whole, and the plan says which and why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError
from hooke.base.progress import SILENT, Sink
from hooke.model.edits import Call, Edit
from hooke.model.metrics import Metric

if TYPE_CHECKING:
    from hooke.model.model import Inputs, Model

from hooke.model.sweep.planning import MetricFunction, SweepPlan, plan_sweep
from hooke.model.sweep.saved import Saved
from hooke.model.sweep.worker import Worker


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
    order; less where the model itself works in float32 inside, as eager softmaxes do); the unchanged prefix is computed
    once, by layer and, in causal models, by position.

    Args:
        edit_sets: what is tried, each a list of edits (or one edit) applied to all examples.
        metric: one number per example, a `Metric` or any function of a `Run`.
        memory: most bytes of activations in one pass; None takes 1 GiB or half of what is free.
        resume: a file that keeps what is done; a sweep that was stopped goes on from there. Needs a `Metric`, and edits
            other than `Call`.

    Raises:
        SiteError, ShapeError, DataError, ConfigError: before anything runs.
        FormatError: for a `resume` file of another sweep.
    """
    plan = plan_sweep(model, inputs, edit_sets, metric, memory=memory)
    values = torch.full((len(plan.placed), len(plan.tokens)), math.nan, dtype=torch.float64, device=model.device)
    calls = any(isinstance(item.edit, Call) for own in plan.placed for item in own)
    if resume is not None and (calls or not isinstance(metric, Metric)):
        what = "Call" if calls else "a function as metric"
        raise ConfigError(
            f"a sweep with {what} cannot be resumed: nobody can tell whether the function is still the same"
        )
    done, saved = 0, None if resume is None else Saved(Path(resume), plan)
    if saved is not None:
        done = saved.load(values)
    result_type = torch.float32
    worker = Worker(plan)
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
