"""What a sweep has done, kept in a file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hooke.base.errors import FormatError
from hooke.base.files import read_tensors, write_tensors
from hooke.model.metrics import Metric
from hooke.model.plan import columns_of

if TYPE_CHECKING:
    from hooke.model.sweep.planning import SweepPlan


class Saved:
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
    assert isinstance(plan.metric, Metric)  # functions are refused
    read = columns_of(plan.tokens, plan.metric.positions, "metric")  # names may stand for other places in other tokens
    add([type(plan.metric).__name__, vars(plan.metric), read, plan.tokens.media])
    for placed in plan.placed:
        for item in placed:
            add([str(item.site), type(item.edit).__name__, item.where, vars(item.edit)])
    return digest.hexdigest()
