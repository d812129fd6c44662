"""The dictionary: what it reads, how it encodes, which latents stay active, how it decodes, what it writes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, linear, normalize

from hooke.base.errors import ConfigError, DataError
from hooke.base.seeds import torch_generator
from hooke.base.shapes import require_finite, require_floating, require_shape
from hooke.dictionaries.activations import Activation
from hooke.dictionaries.latents import Latents
from hooke.dictionaries.support import Support
from hooke.model.sites import Site


@dataclass(frozen=True, eq=False)
class Latent:
    """A view of one latent: `dictionary[i]`.

    Args:
        index: its number.
        dictionary: the dictionary that it is part of.
    """

    index: int
    dictionary: Dictionary

    @property
    def encoder(self) -> Float[Tensor, " d_in"]:
        """The direction that it reads."""
        return self.dictionary.encoder.detach()[self.index]

    @property
    def decoder(self) -> Float[Tensor, " d_out"]:
        """The direction that it writes."""
        return self.dictionary.W_dec.detach()[self.index]

    @property
    def bias(self) -> float:
        """Its encoder bias."""
        return float(self.dictionary.b_enc.detach()[self.index])

    def activation(self, x: Float[Tensor, "*row d_in"]) -> Float[Tensor, "*row"]:
        """Its activation for each row."""
        with torch.no_grad():
            return self.dictionary.encode(x).of(self.index)

    def __repr__(self) -> str:
        return f"Latent({self.index} of {self.dictionary.n_latents}, reads {self.dictionary.reads})"


class Dictionary(nn.Module):
    """A sparse dictionary: `x_hat = activation((x - b_dec) @ W_enc + b_enc) @ W_dec + b_dec`.

    Encoder and decoder are stored one row a latent, so that everything after selection reads whole rows: `encoder`
    and `W_dec` are parameters of shape `[latent, d]`; `W_enc` is `encoder` seen as `[d_in, latent]`. Decoder rows
    start with norm 1 and the encoder as the decoder's transpose; both biases start at 0. A new dictionary is in
    evaluation mode, where the code of a row does not depend on the rows around it; `train(...)` switches modes by
    itself.

    Args:
        d_in: width of what it reads.
        n_latents: how many latents.
        activation: `TopK(k)` or `BatchTopK(k)`.
        reads, writes: sites, or their names; `writes` is `reads` when `None`.
        d_out: width of what it writes; `d_in` when `None`.
        subtract_b_dec: whether `b_dec` is taken from `x` before the encoder; when `None`, exactly if it writes what
            it reads.
        seed: of the random initial directions.

    Raises:
        ConfigError: for sizes below 1, more active latents than there are, or `subtract_b_dec` between unequal widths.
    """

    b_enc: Tensor
    threshold: Tensor

    def __init__(
        self,
        d_in: int,
        n_latents: int,
        *,
        activation: Activation,
        reads: Site | str | None = None,
        writes: Site | str | None = None,
        d_out: int | None = None,
        subtract_b_dec: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        d_out = d_in if d_out is None else d_out
        if min(d_in, d_out, n_latents) < 1:
            raise ConfigError(f"d_in {d_in}, d_out {d_out}, n_latents {n_latents}: each must be at least 1")
        if activation.k > n_latents:
            raise ConfigError(
                f"{activation} keeps {activation.k} latents, but there are only {n_latents}; lower k or raise n_latents"
            )
        self.activation: Activation = activation
        self.reads = Site.parse(reads) if isinstance(reads, str) else reads
        self.writes = self.reads if writes is None else Site.parse(writes) if isinstance(writes, str) else writes
        same = self.reads == self.writes and d_in == d_out
        self.subtract_b_dec = same if subtract_b_dec is None else subtract_b_dec
        if self.subtract_b_dec and d_in != d_out:
            raise ConfigError(f"subtract_b_dec needs equal widths, but d_in is {d_in} and d_out is {d_out}")
        generator = torch_generator(seed, "dictionary", "init")
        rows = normalize(torch.randn(n_latents, d_out, generator=generator), dim=1)
        tied = rows if d_in == d_out else normalize(torch.randn(n_latents, d_in, generator=generator), dim=1)
        self.encoder = nn.Parameter(tied.clone())
        self.b_enc = nn.Parameter(torch.zeros(n_latents))
        self.W_dec = nn.Parameter(rows)
        self.b_dec = nn.Parameter(torch.zeros(d_out))
        # float64: an average over many steps must not drift (NaN: not set)
        self.register_buffer("threshold", torch.tensor(math.nan, dtype=torch.float64))
        self.eval()

    @property
    def W_enc(self) -> Float[Tensor, "d_in latent"]:
        """The encoder in the field's layout; a view of `encoder`."""
        return self.encoder.T

    @property
    def d_in(self) -> int:
        """Width of what it reads."""
        return self.encoder.shape[1]

    @property
    def d_out(self) -> int:
        """Width of what it writes."""
        return self.W_dec.shape[1]

    @property
    def n_latents(self) -> int:
        """How many latents there are."""
        return self.encoder.shape[0]

    def pre_activations(self, x: Shaped[Tensor, "*row d_in"]) -> Float[Tensor, "*row latent"]:
        """`(x - b_dec) @ W_enc + b_enc`, or without `b_dec` where `subtract_b_dec` is false."""
        x = self._checked(x)
        return linear(x - self.b_dec if self.subtract_b_dec else x, self.encoder, self.b_enc)

    def encode(self, x: Shaped[Tensor, "*row d_in"]) -> Latents:
        """Sparse codes of each row. Differentiable.

        Raises:
            ShapeError: the last dimension is not `d_in`.
            DataError: no rows, whole numbers, NaN or infinity.
            ConfigError: a BatchTopK dictionary without a threshold.
        """
        pre = self.pre_activations(x)
        flat = pre.reshape(-1, self.n_latents)
        support = self._select(flat.detach())
        codes = support.latents(support.gather(flat).relu())
        return codes.reshape(*x.shape[:-1])

    def decode(self, latents: Latents) -> Float[Tensor, "*row d_out"]:
        """The reconstruction that some codes stand for. Differentiable."""
        slots = latents.indices.shape[-1]
        indices, values = latents.indices.reshape(-1, slots), latents.values.reshape(-1, slots)
        out = embedding_bag(indices, self.W_dec, mode="sum", per_sample_weights=values.to(self.W_dec.dtype))
        return (out + self.b_dec).view(*latents.indices.shape[:-1], self.d_out)

    def reconstruct(self, x: Shaped[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_out"]:
        """`decode(encode(x))`, in the dtype of `x`."""
        return self.decode(self.encode(x)).to(x.dtype)

    def forward(self, x: Shaped[Tensor, "*row d_in"]) -> Float[Tensor, "*row d_out"]:
        """The same as `reconstruct`."""
        return self.reconstruct(x)

    @torch.no_grad()
    def calibrate(self, x: Shaped[Tensor, "*row d_in"]) -> Dictionary:
        """Set the inference threshold so that the rows of `x` have `k` active latents on average. Returns the
        dictionary.

        Does nothing for activations without a threshold. When fewer pre-activations than `k` a row are positive, all
        are kept.
        """
        self.threshold.fill_(self.activation.threshold_for(self.pre_activations(x).reshape(-1, self.n_latents)))
        return self

    def __getitem__(self, index: int) -> Latent:
        """One latent, as a view.

        Raises:
            IndexError: there is no such latent.
        """
        if not 0 <= index < self.n_latents:
            raise IndexError(f"latent {index} does not exist; this dictionary has 0 to {self.n_latents - 1}")
        return Latent(index, self)

    def save(self, folder: str | PathLike[str], *, metadata: Mapping[str, Any] | None = None) -> None:
        """Write `cfg.json` and `weights.safetensors` to a folder, which appears whole or not at all.

        Args:
            folder: a folder that it replaces if it exists.
            metadata: anything worth knowing about how it was made, as JSON values.
        """
        from hooke.dictionaries.saved import write_dictionary

        write_dictionary(self, folder, metadata or {})

    @staticmethod
    def load(folder: str | PathLike[str], *, device: str | torch.device = "cpu") -> Dictionary:
        """Read a dictionary that `save` wrote, and check that it gives the outputs that it gave then.

        Raises:
            FormatError: a file is missing, truncated, altered or of another format, or the outputs differ.
        """
        from hooke.dictionaries.saved import read_dictionary

        return read_dictionary(folder, device=device)

    def extra_repr(self) -> str:
        """The sizes, for `repr`."""
        where = f"{self.reads}" if self.reads == self.writes else f"{self.reads} -> {self.writes}"
        return f"{where}, d_in={self.d_in}, n_latents={self.n_latents}, d_out={self.d_out}, {self.activation}"

    def _select(self, pre: Float[Tensor, "row latent"]) -> Support:
        if self.training:
            return self.activation.select_batch(pre)
        return self.activation.select(pre, threshold=float(self.threshold))

    def _checked(self, x: Tensor) -> Tensor:
        require_floating(x, "x")
        require_shape(x, f"... d_in={self.d_in}", "x")
        if x.numel() == 0:
            raise DataError(f"x has shape {list(x.shape)}: there are no rows; pass at least one")
        require_finite(x, "x")
        return x.to(self.encoder.dtype)
