"""What a dictionary's scores must beat: a random dictionary, principal components, and the mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError, DataError
from hooke.dictionaries.dictionary import Dictionary
from hooke.dictionaries.folds import fold_input_scale_
from hooke.dictionaries.latents import Latents


@dataclass(frozen=True, eq=False)
class MeanBaseline:
    """Always write the mean."""

    mean: Float[Tensor, " d_out"]

    @staticmethod
    def fit(y: Float[Tensor, "row d_out"]) -> MeanBaseline:
        """The mean of some rows."""
        return MeanBaseline(y.double().mean(dim=0).to(y.dtype))

    def reconstruct(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_out"]:
        """The mean for every row."""
        return self.mean.to(x).expand(*x.shape[:-1], -1)

    def encode(self, x: Float[Tensor, "*row d_in"]) -> Latents:
        """No latent, ever."""
        empty = x.new_zeros(*x.shape[:-1], 1)
        return Latents(empty.long(), empty, 1)


@dataclass(frozen=True, eq=False)
class PrincipalComponents:
    """The best linear rebuild through a few numbers a row: principal components, or for another target the best
    low-rank regression on the input's principal components.
    """

    mean: Float[Tensor, " d_in"]
    components: Float[Tensor, "k d_in"]
    written: Float[Tensor, "k d_out"]
    offset: Float[Tensor, " d_out"]

    @staticmethod
    def fit(x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], k: int) -> PrincipalComponents:
        """The `k` leading components of `x`; `y` is regressed on them (for `y = x` that is PCA itself).

        Raises:
            ConfigError: `k` is not between 1 and the width.
            DataError: too few rows.
        """
        if not 1 <= k <= x.shape[1]:
            raise ConfigError(f"{k} components of width {x.shape[1]}; expected between 1 and the width")
        if x.shape[0] <= k:
            raise DataError(f"{x.shape[0]} rows cannot give {k} components; pass more rows")
        x64, y64 = x.double(), y.double()
        mean, offset = x64.mean(dim=0), y64.mean(dim=0)
        centred = x64 - mean
        components = torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -k:].T
        codes = centred @ components.T
        written = torch.linalg.lstsq(codes, y64 - offset).solution
        return PrincipalComponents(*(part.to(x.dtype) for part in (mean, components, written, offset)))

    def encode(self, x: Float[Tensor, "*row d_in"]) -> Latents:
        """The coordinates: `k` numbers for every row."""
        codes = (x - self.mean.to(x)) @ self.components.to(x).T
        k = codes.shape[-1]
        return Latents(torch.arange(k, device=x.device).expand_as(codes), codes, k)

    def reconstruct(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_out"]:
        """The rebuild from the coordinates."""
        return self.encode(x).values @ self.written.to(x) + self.offset.to(x)


@torch.no_grad()
def random_dictionary(
    dictionary: Dictionary, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], *, seed: int = 0
) -> Dictionary:
    """A dictionary of the same shape and k with random directions, helped as far as that goes.

    The encoder is the decoder's transpose, `b_dec` the mean, the threshold such that k latents are active on average,
    and the decoder has the one gain that minimises the squared error on the rows given.

    Args:
        dictionary: what it is a control for.
        x, y: rows that are read and written; not those on which it will be scored.
        seed: of the directions.
    """
    control = Dictionary(
        dictionary.d_in,
        dictionary.n_latents,
        activation=dictionary.activation,
        reads=dictionary.reads,
        writes=dictionary.writes,
        d_out=dictionary.d_out,
        subtract_b_dec=dictionary.subtract_b_dec,
        seed=seed,
    ).to(x.device)
    control.b_dec.copy_(y.double().mean(dim=0))
    if not control.subtract_b_dec:
        control.b_enc.copy_(-(control.encoder @ x.mean(dim=0)))
    control.calibrate(x)
    rebuilt, wanted = control.reconstruct(x) - control.b_dec, y - control.b_dec
    size = float(rebuilt.double().square().sum())
    gain = float((rebuilt.double() * wanted.double()).sum()) / size if size > 0 else 0.0
    if gain <= 0:  # random directions say nothing of this target; writing the mean is then the best that they can do
        control.W_dec.zero_()
        return control
    b_dec = control.b_dec.clone()
    if control.subtract_b_dec:
        control.b_enc.sub_(control.encoder @ b_dec)
        control.subtract_b_dec = False
    control.b_dec.zero_()
    fold_input_scale_(control, 1.0, gain)
    control.b_dec.copy_(b_dec)
    return control
