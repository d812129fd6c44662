"""Which norm a module is, told by its numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hooke.model.families.derived import NormScale


def norm_kind(module: nn.Module, x: Tensor | None, out: Tensor | None) -> tuple[str, float] | None:
    """("layer" or "rms", what it adds to its gain: 0, or 1 in Gemma's way), or None where it is neither."""
    if x is None or out is None or x.shape != out.shape or torch.equal(x, out):
        return None
    if not any(hasattr(module, name) for name in ("eps", "variance_epsilon")):
        return None
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if isinstance(weight, Tensor) and weight.shape != x.shape[-1:]:
        return None
    wide = x.double()
    limit = max(1e-4, 8 * torch.finfo(out.dtype).eps) * float(out.abs().max())
    for centred in (True, False):
        scaled = (wide - wide.mean(-1, keepdim=True) if centred else wide) / NormScale(centred).read(module, x, out)
        for offset in (0.0, 1.0):
            gain = torch.ones(()) if weight is None else weight.double() + offset
            expected = scaled * gain.to(scaled) + (0.0 if bias is None else bias.double())
            if float((expected - out.double()).abs().max()) <= limit:
                return ("layer" if centred else "rms"), offset
    return None
