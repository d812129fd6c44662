"""The places of a sparse code matrix, and the three products on them that training needs.

After the encoder product everything works on active latents only: decoding is a weighted sum of decoder rows, the
gradient of a code value is one dot product, and both weight gradients are sums over the rows where a latent is
active. The places are kept row by row (compressed sparse rows); grouping them by latent is done once and cached.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from hooke.dictionaries.latents import Latents


class ByLatent(NamedTuple):
    """The same places grouped by latent: `order` sorts them, stably, so sums have one order on every run."""

    order: Int[Tensor, " place"]
    rows: Int[Tensor, " place"]
    offsets: Int[Tensor, " latent_end"]


@dataclass(frozen=True)
class Support:
    """Selected (row, latent) places, row by row.

    Args:
        offsets: places of row r are `offsets[r]` to `offsets[r + 1]`.
        latent: latent of each place.
        n_latents: width of the code matrix.
    """

    offsets: Int[Tensor, " row_end"]
    latent: Int[Tensor, " place"]
    n_latents: int

    @property
    def n_rows(self) -> int:
        """How many rows there are."""
        return self.offsets.numel() - 1

    @staticmethod
    def of_rows(indices: Int[Tensor, "row k"], n_latents: int) -> Support:
        """The same number of places in every row."""
        n_rows, k = indices.shape
        return Support(torch.arange(0, n_rows * k + 1, k, device=indices.device), indices.reshape(-1), n_latents)

    @staticmethod
    def of_flat(flat: Int[Tensor, " place"], n_rows: int, n_latents: int) -> Support:
        """Places given as increasing positions in the flattened code matrix."""
        ends = torch.arange(0, n_rows + 1, device=flat.device) * n_latents
        return Support(torch.searchsorted(flat, ends), flat % n_latents, n_latents)

    @cached_property
    def rows(self) -> Int[Tensor, " place"]:
        """Row of each place."""
        rows = torch.arange(self.n_rows, device=self.offsets.device)
        return rows.repeat_interleave(self.offsets.diff(), output_size=self.latent.numel())

    @cached_property
    def by_latent(self) -> ByLatent:
        """The places grouped by latent."""
        order = _stable_argsort(self.latent, self.n_latents)
        ends = torch.bincount(self.latent, minlength=self.n_latents).cumsum(0)
        return ByLatent(order, self.rows[order], torch.nn.functional.pad(ends, (1, 0)))

    def gather(self, dense: Float[Tensor, "row latent"]) -> Float[Tensor, " place"]:
        """The entries of a full matrix at the places."""
        return dense.reshape(-1)[self.rows * self.n_latents + self.latent]

    def latents(self, values: Float[Tensor, " place"]) -> Latents:
        """The padded form that users see."""
        counts = self.offsets.diff()
        width = max(1, int(counts.max()))
        if self.latent.numel() == self.n_rows * width:
            return Latents(self.latent.view(-1, width), values.view(-1, width), self.n_latents)
        slot = self.rows * width + torch.arange(self.latent.numel(), device=counts.device) - self.offsets[self.rows]
        indices = self.latent.new_zeros(self.n_rows * width).index_put_((slot,), self.latent)
        padded = values.new_zeros(self.n_rows * width).index_put((slot,), values)
        return Latents(indices.view(-1, width), padded.view(-1, width), self.n_latents)

    def sum_rows(self, values: Float[Tensor, " place"], weight: Float[Tensor, "latent d"]) -> Float[Tensor, "row d"]:
        """`codes @ weight` for the code matrix with these values."""
        return embedding_bag(
            self.latent, weight, self.offsets, mode="sum", per_sample_weights=values, include_last_offset=True
        )

    def sum_latents(self, values: Float[Tensor, " place"], dense: Float[Tensor, "row d"]) -> Float[Tensor, "latent d"]:
        """`codes.T @ dense`: for each latent the weighted sum of the rows where it is active."""
        order, rows, offsets = self.by_latent
        return embedding_bag(
            rows, dense, offsets, mode="sum", per_sample_weights=values[order], include_last_offset=True
        )

    def dot(self, dense: Float[Tensor, "row d"], weight: Float[Tensor, "latent d"]) -> Float[Tensor, " place"]:
        """`(dense @ weight.T)` at the places only."""
        with (
            torch.enable_grad()
        ):  # the derivative of sum_rows by its values is this product; torch has it as one kernel
            values = weight.new_zeros(self.latent.numel()).requires_grad_()
            return torch.autograd.grad(self.sum_rows(values, weight.detach()), values, dense)[0]


def _stable_argsort(latent: Int[Tensor, " place"], n_latents: int) -> Int[Tensor, " place"]:
    if latent.device.type == "cpu" and n_latents <= 1 << 16:  # numpy sorts 16-bit integers by radix, six times faster
        return torch.from_numpy(np.argsort(latent.numpy().astype(np.uint16), kind="stable"))
    return torch.sort(latent, stable=True).indices


class _EncodeAt(torch.autograd.Function):
    """Code values at the places, with gradients to the encoder rows of the places only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, encoder: Tensor, b_enc: Tensor, b_dec: Tensor | None, found: Any) -> Tensor:
        support, values = found
        ctx.support = support
        ctx.save_for_backward(x, encoder, b_dec, values)
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, encoder, b_dec, values = ctx.saved_tensors
        support: Support = ctx.support
        gradient = torch.where(values > 0, gradient, 0)
        to_bias = torch.bincount(support.latent, weights=gradient, minlength=support.n_latents).to(encoder.dtype)
        to_encoder = support.sum_latents(gradient, x if b_dec is None else x - b_dec)
        # sum over rows of -(gradient of pre-activations) @ encoder, rows summed first: latent * d work, not row *
        # latent * d
        to_b_dec = None if b_dec is None else -(to_bias @ encoder)
        return None, to_encoder, to_bias, to_b_dec, None


class _DecodeAt(torch.autograd.Function):
    """Weighted sums of decoder rows, with gradients on the places only."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, decoder: Tensor, support: Support) -> Tensor:
        ctx.support = support
        ctx.save_for_backward(values, decoder)
        return support.sum_rows(values, decoder)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        values, decoder = ctx.saved_tensors
        gradient = gradient.contiguous()
        support: Support = ctx.support
        return support.dot(gradient, decoder), support.sum_latents(values, gradient), None


def encode_at(
    x: Float[Tensor, "row d_in"],
    encoder: Float[Tensor, "latent d_in"],
    b_enc: Float[Tensor, " latent"],
    b_dec: Float[Tensor, " d_in"] | None,
    support: Support,
    pre: Float[Tensor, "row latent"],
) -> Float[Tensor, " place"]:
    """ReLU of the pre-activations at the places; differentiable in the encoder and the biases, not in `x`.

    Args:
        pre: the pre-activations `(x - b_dec) @ encoder.T + b_enc`, already computed without gradients.
    """
    return _EncodeAt.apply(x, encoder, b_enc, b_dec, (support, support.gather(pre).relu()))


def decode_at(
    values: Float[Tensor, " place"], decoder: Float[Tensor, "latent d_out"], support: Support
) -> Float[Tensor, "row d_out"]:
    """`codes @ decoder` for the sparse codes; differentiable in the values and the decoder."""
    return _DecodeAt.apply(values, decoder, support)
