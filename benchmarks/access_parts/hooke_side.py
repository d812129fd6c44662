"""What hooke does, as a user would write it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

import hooke
from access_parts.shapes import Inputs
from hooke.model.edits import Add, Set
from hooke.model.metrics import LogitDifference
from hooke.model.model import Model

# Not among what the model computes: a product of its own for every head, as much work as the output projection. The
# peers leave it out unless told, too.
DERIVED = ("result",)


class Hooke:
    """Every measured piece of work, by name.

    Args:
        values: resid_pre of the corrupted run `[layer, pos, d_model]`; z: its z `[layer, pos, head * d_head]`.
    """

    def __init__(self, folder: Path, inputs: Inputs, values: Tensor, z: Tensor) -> None:
        self.model: Model = hooke.load(folder)
        self.inputs, self.values = inputs, values
        self.z = z.unflatten(-1, (self.model.n_heads, self.model.d_head))
        self.metric = LogitDifference(inputs.answer, inputs.wrong)
        self.residual_sites = ["resid_pre.*", "resid_mid.*", "resid_post.*"]
        self.everything_sites = [info.site for info in self.model.sites() if info.site.name not in DERIVED]

    def residual(self) -> None:
        self.model.run(self.inputs.batch, capture=self.residual_sites)

    def everything(self) -> None:
        self.model.run(self.inputs.batch, capture=self.everything_sites)

    def until(self, layers: int) -> None:
        """The first blocks only."""
        site = f"resid_post.{layers - 1}"
        self.model.run(self.inputs.batch, capture=site, until=site)

    def residual_sweep(self) -> Tensor:
        n_layers, width, _ = self.values.shape
        edits = [
            Set(f"resid_pre.{layer}", self.values[layer, p][None], positions=[p])
            for layer in range(n_layers)
            for p in range(width)
        ]
        found = self.model.sweep(self.inputs.clean[None], edits, self.metric)
        return found.values.view(n_layers, width)

    def head_sweep(self) -> Tensor:
        n_layers, n_heads = len(self.z), self.model.n_heads
        edits = [
            Set(f"z.{layer}.{head}", self.z[layer][None, :, head])
            for layer in range(n_layers)
            for head in range(n_heads)
        ]
        found = self.model.sweep(self.inputs.clean[None], edits, self.metric)
        return found.values.view(n_layers, n_heads)

    def attribution(self) -> Tensor:
        """Gradient times difference of every head, `[layer, row, head]`, summed over positions."""
        last = f"z.{self.model.n_layers - 1}"
        there = self.model.run(self.inputs.corrupted_batch, capture="z.*", until=last)
        here = self.model.gradients(self.inputs.batch, self.metric, "z.*")
        effects = [
            (here.grads[site] * (there[site] - here.run[site])).sum(dim=(1, 3))  # over positions and d_head
            for site in here.grads
        ]
        return torch.stack(effects)

    def generate(self, new: int, *, steered: bool = True) -> Tensor:
        """Greedy continuation `[row, new]`."""
        # Not a constant vector: a LayerNorm takes that away again.
        direction = torch.randn(self.model.d_model, generator=torch.Generator().manual_seed(0))
        edits = [Add(f"resid_post.{self.model.n_layers // 2}", direction)] if steered else []
        return self.model.generate(self.inputs.batch, edits=edits, max_new_tokens=new, stop_at_end=False).ids
