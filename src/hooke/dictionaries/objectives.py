"""What training minimises: a reconstruction term, and small terms that can be added to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooke.base.errors import ConfigError
from hooke.dictionaries.dictionary import Dictionary
from hooke.dictionaries.support import Support, decode_at, encode_at


@dataclass(frozen=True)
class AuxK:
    """Let dead latents model what the others left over (Gao et al. 2024, arXiv 2406.04093, appendix A.2).

    Args:
        coefficient: weight of the term in the loss.
        k: dead latents used a row; half the width of the output when `None`.
    """

    coefficient: float = 1 / 32
    k: int | None = None

    def __post_init__(self) -> None:
        if self.coefficient < 0 or (self.k is not None and self.k < 1):
            raise ConfigError(f"{self}: the coefficient must not be negative and k must be at least 1")


@dataclass(frozen=True)
class MultiTopK:
    """Also reconstruct with more latents, so that codes stay good at other k (arXiv 2406.04093, section 5.3.2).

    Args:
        factor: how many times as many latents.
        coefficient: weight of the term.
    """

    factor: float = 4.0
    coefficient: float = 1 / 8

    def __post_init__(self) -> None:
        if self.coefficient < 0 or self.factor < 1:
            raise ConfigError(f"{self}: the coefficient must not be negative and the factor must be at least 1")


@dataclass(frozen=True)
class Objective:
    """The loss: reconstruction, plus AuxK, plus multi-TopK.

    Args:
            raise ConfigError(f"{self}: the coefficient must not be negative, the factor at least 1")
            that has no variance); or "sum", the squared
            error summed over the width and averaged over rows.
        aux_k: the term for dead latents; `None` for none.
        multi_topk: the term for other k; `None` for none.
    """

    reconstruction: Literal["fvu", "sum"] = "fvu"
    aux_k: AuxK | None = AuxK()  # noqa: RUF009
    multi_topk: MultiTopK | None = None

    def __post_init__(self) -> None:
        if self.reconstruction not in ("fvu", "sum"):
            raise ConfigError(f"reconstruction {self.reconstruction!r} is not known; expected 'fvu' or 'sum'")


class Losses(NamedTuple):
    """The terms of one batch. `total` is differentiable; the rest are for reports.

    Args:
        total: what is minimised.
        error, spread: squared error of the reconstruction and of the batch mean, summed over the batch.
        auxiliary: the AuxK term before its coefficient; 0 without dead latents.
        unrevivable: dead latents that no row gives a positive pre-activation: no gradient reaches them.
        support, values: the code.
    """

    total: Tensor
    error: Tensor
    spread: Tensor
    auxiliary: Tensor
    unrevivable: Tensor
    support: Support
    values: Float[Tensor, " place"]


def squared_error(a: Tensor, b: Tensor) -> Float[Tensor, ""]:
    """Sum of squared differences."""
    return (a - b).square().sum()


def losses(
    dictionary: Dictionary,
    x: Float[Tensor, "row d_in"],
    y: Float[Tensor, "row d_out"],
    objective: Objective,
    *,
    dead: Int[Tensor, " dead"] | None = None,
    workspace: Tensor | None = None,
) -> Losses:
    """The training loss of one batch, with gradients on active latents only.

    Args:
        x, y: what is read and what should be written.
        dead: latents that AuxK may use.
        workspace: memory for the pre-activations, at least as large, reused between calls.
    """
    b_dec = dictionary.b_dec if dictionary.subtract_b_dec else None
    pre = _pre_activations(dictionary, x, workspace)
    spread = squared_error(y, y.mean(dim=0))
    scale = 1 / _baseline(y, spread) if objective.reconstruction == "fvu" else 1 / x.shape[0]

    def reconstruction(support: Support) -> tuple[Tensor, Tensor, Tensor]:
        values = encode_at(x, dictionary.encoder, dictionary.b_enc, b_dec, support, pre)
        x_hat = decode_at(values, dictionary.W_dec, support) + dictionary.b_dec
        error = squared_error(y, x_hat)
        return values, x_hat, error

    support = dictionary.activation.select_batch(pre)
    values, x_hat, error = reconstruction(support)
    total = error * scale
    if objective.multi_topk is not None:
        wider = dictionary.activation.widened(objective.multi_topk.factor, dictionary.n_latents).select_batch(pre)
        total = total + objective.multi_topk.coefficient * reconstruction(wider)[2] * scale
    auxiliary = unrevivable = total.new_zeros(())
    if objective.aux_k is not None and dead is not None and dead.numel():
        k = objective.aux_k.k or max(1, dictionary.d_out // 2)
        auxiliary, unrevivable = auxiliary_loss(dictionary, x, (y - x_hat).detach(), dead, k)
        total = total + objective.aux_k.coefficient * auxiliary
    return Losses(total, error.detach(), spread, auxiliary.detach(), unrevivable, support, values.detach())


def _baseline(y: Float[Tensor, "row d_out"], spread: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """What the error is compared with: always writing the mean. A batch without variance (one row, or all rows alike)
    has no such error; there it is always writing zero, and nothing is learnt from a batch of zeros.
    """
    size = y.square().sum()
    return torch.where(spread > 1e-9 * size, spread, torch.where(size > 0, size, torch.inf))


def auxiliary_loss(
    dictionary: Dictionary,
    x: Float[Tensor, "row d_in"],
    residual: Float[Tensor, "row d_out"],
    dead: Int[Tensor, " dead"],
    k: int,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """How badly the `k` largest dead latents of each row rebuild the residual: 1 for predicting its mean, 0 for exact.

    Dense products, but on the dead rows only. A residual without variance gives 0. The second result counts dead
    latents whose pre-activation is negative in every row.
    """
    centred = x - dictionary.b_dec if dictionary.subtract_b_dec else x
    pre = torch.nn.functional.linear(centred, dictionary.encoder[dead], dictionary.b_enc[dead])
    unrevivable = (pre.detach().amax(dim=0) <= 0).sum().to(x.dtype)
    codes = pre.relu()
    if dead.numel() > k:
        kept = codes.detach().topk(k, dim=1, sorted=False).indices
        codes = codes * torch.zeros_like(codes).scatter_(1, kept, 1.0)
    error = squared_error(residual, codes @ dictionary.W_dec[dead])
    spread = squared_error(residual, residual.mean(dim=0))
    return torch.where(spread > 0, error / spread.clamp_min(torch.finfo(x.dtype).tiny), 0.0), unrevivable


@torch.no_grad()
def _pre_activations(dictionary: Dictionary, x: Tensor, workspace: Tensor | None) -> Float[Tensor, "row latent"]:
    """What `Dictionary.pre_activations` gives, in memory that is there: fresh pages cost as much as the product."""
    centred = x - dictionary.b_dec if dictionary.subtract_b_dec else x
    out = None if workspace is None else workspace[: x.shape[0]]
    return torch.addmm(dictionary.b_enc, centred, dictionary.encoder.T, out=out)
