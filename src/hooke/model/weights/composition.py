"""What weights say about heads without running them: composition between heads, and copying.

Both take raw or folded weights; they depend on which. Nothing of size `d_model x d_model` is made for a pair of heads,
nothing of size `vocab x vocab` for a head. Definitions: Elhage et al. 2021, in row-vector form.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError, ModelError, ShapeError
from hooke.base.seeds import torch_generator
from hooke.model.families.family import Layout
from hooke.model.weights.factored import Factored, solid
from hooke.model.weights.names import WeightSet

KINDS = ("Q", "K", "V")


@dataclass(frozen=True, eq=False)
class Composition:
    """How much of what one head writes can be read by another, for all pairs, with the control.

    Args:
        kind: through which input of the reader: queries, keys or values.
        values: `[writer layer, writer head, reader layer, reader head]`, 0 to 1. NaN where nothing that the writer adds
            can reach the reader: its layer is not an earlier one.
        random_mean, random_std: the same score for Gaussian matrices of equal shape and rank.
        draws, seed: how those two were made.
    """

    kind: str
    values: Float[Tensor, "layer head layer head"]
    random_mean: float
    random_std: float
    draws: int
    seed: int

    @property
    def above_random(self) -> Float[Tensor, "layer head layer head"]:
        """Scores with the value for random matrices taken away, as the paper plots them."""
        return self.values - self.random_mean


def composition(weights: WeightSet, kind: str, *, draws: int = 100, seed: int = 0) -> Composition:
    """Composition scores of all pairs of heads; see `composition_scores` for the definition.

    Raises:
        ConfigError: an unknown kind, or fewer than two draws.
        ModelError: where a layer has no heads that could be read.
    """
    _check(kind)
    if draws < 2:
        raise ConfigError(f"{draws} random draws give no spread; ask for 2 or more")
    layout, n = weights.layout, weights.layout.n_layers
    values = torch.full((n, layout.n_heads, n, layout.n_heads), torch.nan, dtype=solid(weights.W_O[0]).dtype)
    readers = [weights.OV(layer) if kind == "V" else weights.QK(layer) for layer in range(n)]
    with torch.no_grad():
        for writer in range(n - 1):
            written = weights.OV(writer)
            for reader in range(writer + 1, n):
                values[writer, :, reader] = composition_scores(written, readers[reader], kind).cpu()
    control = torch.tensor(list(_random_scores(layout, draws, seed)))
    return Composition(kind, values, float(control.mean()), float(control.std()), draws, seed)


def composition_scores(writer: Factored, reader: Factored, kind: str) -> Float[Tensor, "*pairs"]:
    """Composition of one head's or several heads' OV with the QK (kinds Q and K) or OV (kind V) of another or others.

    With F the Frobenius norm, j the writer and i the reader:
    Q: `F(W_OV_j W_QK_i) / (F(W_OV_j) F(W_QK_i))`; K: `F(W_QK_i W_OV_j^T) / ...`; V: `F(W_OV_j W_OV_i) / ...`.

    Returns:
        `[writers, readers]`, an axis left out where a single head is given. NaN for a head that is zero.

    Raises:
        ConfigError: for an unknown kind.
        ShapeError: for heads of different width.
    """
    _check(kind)
    if writer.shape[-1] != reader.shape[-2]:
        raise ShapeError(f"the writer {writer} and the reader {reader} are not of one model")
    second = reader.T if kind == "K" else reader
    first_r = torch.linalg.qr(solid(writer.left), mode="r").R
    second_r = torch.linalg.qr(solid(second.right).mT, mode="r").R.mT
    between = _pairs(first_r @ solid(writer.right), solid(second.left) @ second_r)
    return torch.linalg.matrix_norm(between) / _outer(writer.norm(), second.norm())


def copying_score(circuit: Factored) -> Float[Tensor, "*stack"]:
    """Eigenvalue copying: `sum(Re lambda) / sum(|lambda|)`. 1: each token raises itself; -1: it lowers itself.

    For a head the circuit is `W_E @ weights.OV(layer, head) @ W_U`, vocabulary by vocabulary; its non-zero eigenvalues
    are those of a matrix of size `d_head`. NaN where all are zero. A random circuit scores 0 on average, with a
    standard deviation of about 0.4 at rank 4, falling with the rank.

    Raises:
        ShapeError: when the circuit is not square.
    """
    values = circuit.eigenvalues()
    return values.real.sum(-1) / values.abs().sum(-1)


def copying_scores(weights: WeightSet) -> Float[Tensor, "layer head"]:
    """`copying_score` of every head's way from the token embedding through its OV circuit to the unembedding.

    Raises:
        ModelError: where tokens that come in and tokens that go out differ in number, or a projection lies between.
    """
    W_E, W_U = solid(weights.W_E), solid(weights.W_U)
    if W_E.shape != W_U.T.shape or W_E.shape[1] != weights.layout.d_model:
        raise ModelError(f"copying needs W_E and W_U of one vocabulary and width, got {W_E.shape} and {W_U.shape}")
    around = W_U @ W_E  # d_model x d_model, once for all heads
    with torch.no_grad():
        layers = (weights.OV(layer) for layer in range(weights.layout.n_layers))
        return torch.stack([copying_score(Factored(around @ solid(ov.left), solid(ov.right))) for ov in layers])


def _random_scores(layout: Layout, draws: int, seed: int) -> Iterator[Tensor]:
    """Scores of pairs of random heads. The three kinds have one distribution: two products of Gaussian factors."""
    generator = torch_generator(seed, "composition")
    for _ in range(draws):
        left, right = (torch.randn(2, layout.d_model, layout.d_head, generator=generator) for _ in range(2))
        stack = Factored(left, right.mT)
        yield composition_scores(stack.select(0), stack.select(1), "Q")


def _pairs(first: Tensor, second: Tensor) -> Tensor:
    """Every matrix of one stack times every matrix of the other; a single matrix adds no axis."""
    return torch.einsum(
        f"{'a' * (first.ndim - 2)}rm,{'b' * (second.ndim - 2)}ms->{_axes(first, second)}rs", first, second
    )


def _axes(first: Tensor, second: Tensor) -> str:
    return "a" * (first.ndim - 2) + "b" * (second.ndim - 2)


def _outer(first: Tensor, second: Tensor) -> Tensor:
    return first[(..., *(None,) * second.ndim)] * second


def _check(kind: str) -> None:
    if kind not in KINDS:
        raise ConfigError(f"composition through {kind!r} is not known; choose 'Q', 'K' or 'V'")
