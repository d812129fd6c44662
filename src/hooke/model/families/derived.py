"""Sites that no tensor of the model holds: each head's result, and the scale of a norm.

They are worked out from a module's input and output together, only when asked for, and written back as the change that
they make to the output. So writing back what was read leaves the output bit for bit.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hooke.model.families.family import Layout, Tap


@dataclass(frozen=True)
class HeadResults:
    """`z W_O` of every head, `[batch, pos, head, d_model]`, at the output projection. The projection's bias belongs to
    no head: results and bias sum to its output.
    """

    d_head: int

    def read(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        z = x.unflatten(-1, (-1, self.d_head))
        return torch.einsum("...hd,hdm->...hm", z, matrix(module).unflatten(0, (-1, self.d_head)))

    def write(self, module: nn.Module, x: Tensor, output: Tensor, value: Tensor) -> Tensor:
        return output + (value - self.read(module, x, output)).sum(-2)


@dataclass(frozen=True)
class NormScale:
    """What a norm divides by, `[batch, pos, 1]`: the standard deviation (LayerNorm) or the root mean square (RMSNorm)
    of its input, with its epsilon.
    """

    centred: bool

    def read(self, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        if self.centred:
            wide = wide - wide.mean(-1, keepdim=True)
        squares = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square()  # in one pass over the memory
        return (squares / wide.shape[-1] + epsilon(module)).sqrt()

    def write(self, module: nn.Module, x: Tensor, output: Tensor, value: Tensor) -> Tensor:
        bias = getattr(module, "bias", None)
        scaled = output if bias is None else output - bias
        ratio = self.read(module, x, output) / value.to(torch.promote_types(value.dtype, torch.float32))
        return output + (scaled * (ratio - 1)).to(output.dtype)


def matrix(module: nn.Module) -> Tensor:
    """The weight of a linear map as `[d_in, d_out]`, whatever way round the module keeps it."""
    return module.weight if type(module).__name__ == "Conv1D" else module.weight.T


def epsilon(module: nn.Module) -> float:
    """What a norm adds under its root."""
    return next(float(getattr(module, name)) for name in ("eps", "variance_epsilon") if hasattr(module, name))


def complete(layout: Layout) -> Layout:
    """The layout with its derived sites filled in from the taps and norms that the family named."""
    inside, outside = dict(layout.inside), dict(layout.outside)
    scale = NormScale(centred=layout.norm == "layer")
    if "z" in inside and inside["z"].side == "in":
        inside.setdefault("result", Tap(inside["z"].path, "through", HeadResults(layout.d_head)))
    for name, path in layout.norms.items():
        inside.setdefault(name, Tap(path, "through", scale))
    if "final_norm" in outside:
        outside.setdefault("final_norm_scale", Tap(outside["final_norm"].path, "through", scale))
    return dataclasses.replace(layout, inside=inside, outside=outside)
