"""Experiments: a model, inputs, edit sets and a metric as one file, which replays.

What was found can be kept beside them; a replay then says by how much it differs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, FormatError
from hooke.base.progress import SILENT, Sink
from hooke.model.edit_files import OpenDictionary, read_document, write_document
from hooke.model.edits import Edit
from hooke.model.metrics import Metric
from hooke.model.tokens import Tokens

if TYPE_CHECKING:
    from hooke.model.model import Model

FORMAT, VERSION = "hooke.experiment", 1


@dataclass(frozen=True, eq=False)
class Outcome:
    """The metric of an experiment.

    Args:
        values: under each edit set, for each example.
        baseline: without edits.
        notes: what is not as it was when the experiment was kept, in words.
    """

    values: Float[Tensor, "set batch"]
    baseline: Float[Tensor, " batch"]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Experiment:
    """A metric under several edit sets, on the same inputs.

    Args:
        model: name of the model, as `hooke.load` takes it.
        inputs: texts (the model's BOS is added), or tokens.
        edit_sets: name -> edits, or one edit; kept as lists.
        metric: one number per example.
        expected: what came out when it was kept; see `kept`.
        dtype: precision of the model then.
        weights: hash of the model's weights then.
    """

    model: str
    inputs: Sequence[str] | Tokens
    edit_sets: Mapping[str, Sequence[Edit] | Edit]
    metric: Metric
    expected: Outcome | None = None
    dtype: str | None = field(default=None, kw_only=True)
    weights: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not self.edit_sets:
            raise ConfigError("an experiment needs at least one edit set")
        if not isinstance(self.edit_sets, Mapping):
            raise ConfigError(
                f"an experiment's edit sets are a mapping from names to edits; got {type(self.edit_sets).__name__}"
            )
        sets = {name: [own] if isinstance(own, Edit) else own for name, own in self.edit_sets.items()}
        object.__setattr__(self, "edit_sets", sets)
        if not isinstance(self.inputs, Tokens) and (isinstance(self.inputs, str) or not len(self.inputs)):
            raise DataError(f"an experiment's inputs are texts in a list, or tokens; got {self.inputs!r}")
        if self.dtype is not None and not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ConfigError(f"{self.dtype!r} is no precision; expected for example 'float32'")

    def replay(self, model: Model, *, sink: Sink = SILENT, memory: int | None = None) -> Outcome:
        """Run it.

        Args:
            memory: most bytes of activations in one pass; see `Model.sweep`.

        Raises:
            SiteError, ShapeError, DataError, ConfigError: before anything runs, for what does not fit the model.
        """
        inputs = self.inputs if isinstance(self.inputs, Tokens) else list(self.inputs)
        sets = [list(edits) for edits in self.edit_sets.values()]
        swept = model.sweep(inputs, sets, self.metric, sink=sink, memory=memory)
        return Outcome(swept.values, swept.baseline, self._changes(model))

    def kept(self, model: Model) -> Experiment:
        """The experiment with what it gives on this model as the expected outcome."""
        found = dataclasses.replace(self, expected=None, weights=None, dtype=None).replay(model)
        weights = model.identity["weights"]
        return dataclasses.replace(self, expected=found, weights=weights, dtype=_name(model.dtype))

    def difference(self, outcome: Outcome) -> float | None:
        """The largest difference from what was expected, relative to the largest expected number; None where nothing
        was kept. Undefined numbers (NaN) must be undefined again: else the difference is infinite.

        Raises:
            FormatError: where the expected numbers are not of this shape.
        """
        if self.expected is None:
            return None
        pairs = [(getattr(outcome, name).double(), getattr(self.expected, name)) for name in ("values", "baseline")]
        if any(found.shape != kept.shape for found, kept in pairs):
            shapes = [tuple(kept.shape) for _, kept in pairs]
            raise FormatError(f"the expected numbers have shapes {shapes}; the experiment gives {_shapes(outcome)}")
        found, kept = (torch.cat([t.double().cpu().flatten() for t in side]) for side in zip(*pairs, strict=True))
        if not torch.equal(found.isnan(), kept.isnan()):
            return float("inf")
        scale = float(kept.nan_to_num().abs().max())
        return float((found - kept).nan_to_num().abs().max()) / max(scale, 1e-12)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as one JSON file, with a safetensors file beside it for its tensors.

        Raises:
            DataError: for an edit that cannot be saved.
        """
        content: dict[str, Any] = {
            "model": self.model,
            "dtype": self.dtype,
            "weights": self.weights,
            "inputs": self.inputs,
            "edit_sets": {name: list(edits) for name, edits in self.edit_sets.items()},
            "metric": self.metric,
        }
        if self.expected is not None:
            content["expected"] = {"values": self.expected.values, "baseline": self.expected.baseline}
        write_document(path, FORMAT, VERSION, content)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, open_dictionary: OpenDictionary | None = None) -> Experiment:
        """Read what `save` wrote.

        Args:
            open_dictionary: opens the folder of a spliced dictionary, such as `hooke.Dictionary.load`.

        Raises:
            FormatError: names the file that is missing, truncated, altered, or not an experiment.
        """
        content = read_document(path, FORMAT, VERSION, open_dictionary=open_dictionary)
        try:
            expected = content.pop("expected", None)
            outcome = None if expected is None else Outcome(expected["values"], expected["baseline"])
            made = cls(**content, expected=outcome)
        except (TypeError, KeyError, DataError, ConfigError) as error:
            raise FormatError(f"{path} lacks a field or holds one of another kind ({error}); restore it") from error
        edits = [edit for own in made.edit_sets.values() for edit in own]
        if not isinstance(made.metric, Metric) or not all(isinstance(edit, Edit) for edit in edits):
            raise FormatError(f"{path}: an experiment holds a metric and lists of edits")
        return made

    def _changes(self, model: Model) -> tuple[str, ...]:
        notes = []
        if model.name != self.model:
            notes.append(f"made with the model {self.model}, run on {model.name}")
        if self.dtype is not None and _name(model.dtype) != self.dtype:
            notes.append(f"made in {self.dtype}, run in {_name(model.dtype)}")
        if self.weights is not None and model.identity["weights"] != self.weights:
            notes.append("the model's weights are not those that it was made with")
        return tuple(notes)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shapes(outcome: Outcome) -> list[tuple[int, ...]]:
    return [tuple(outcome.values.shape), tuple(outcome.baseline.shape)]
