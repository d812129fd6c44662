"""Splice: a dictionary's reconstruction in the place of what it reads, with some of its latents set."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from hooke.base.errors import ConfigError, DataError, ShapeError
from hooke.model.edits.edit import Edit, Place, Positions


@runtime_checkable
class Reconstructs(Protocol):
    """What `Splice` needs of a dictionary."""

    def reconstruct(self, x: Tensor) -> Tensor: ...


@runtime_checkable
class Codes(Protocol):
    """Sparse codes: a frozen dataclass with a slot for each active latent; a slot of value 0 is empty."""

    indices: Tensor
    values: Tensor


@runtime_checkable
class Decodes(Reconstructs, Protocol):
    """What `Splice` needs of a dictionary whose latents are to be set."""

    n_latents: int

    def encode(self, x: Tensor) -> Codes: ...

    def decode(self, latents: Any) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Splice(Edit):
    """Put a dictionary's reconstruction in the place of the value it reads.

    Args:
        dictionary: has `reconstruct(x)`, from and to the site's width (heads side by side). One that knows the sites
            it reads and writes fits only there.
        error: "drop" leaves the reconstruction alone, "keep" adds back the clean error: without `latents` nothing
            changes then, with them only what they decode to.
        latents: latent -> number. Needs a dictionary with `encode`, `decode` and `n_latents`.
        by: "set" gives these latents these values at every position, active or not; "scale" multiplies their
            activations.
        folder: where the dictionary is saved; needed only to save the edit.
    """

    dictionary: Reconstructs
    error: Literal["drop", "keep"] = "drop"
    positions: Positions = "kept"
    latents: Mapping[int, float] = field(default_factory=dict)
    by: Literal["set", "scale"] = "set"
    folder: str | None = None

    def numbers(self) -> dict[str, object]:
        return {f"latents[{index}]": value for index, value in self.latents.items()}

    def check(self, place: Place) -> None:
        super().check(place)
        if not isinstance(self.dictionary, Reconstructs):
            raise ConfigError(
                f"{self.label}: {type(self.dictionary).__name__} is no dictionary: it has no reconstruct(x)"
            )
        self.refuse_maps(place, "a dictionary reads activations")
        feature = cast(tuple[int, ...], place.feature)
        for side in ("d_in", "d_out"):
            width = getattr(self.dictionary, side, None)
            if width is not None and width != math.prod(feature):
                raise ShapeError(f"{self.label}: the dictionary has {side} {width}; the site has {math.prod(feature)}")
        for verb in ("reads", "writes"):
            home = getattr(self.dictionary, verb, None)
            if home is not None and home != place.site:
                raise ConfigError(f"{self.label}: the dictionary {verb} {home}; splice it there")
        for name, words in (("error", ("drop", "keep")), ("by", ("set", "scale"))):
            if getattr(self, name) not in words:
                raise ConfigError(f"{self.label}: {name} is {getattr(self, name)!r}; use {words[0]!r} or {words[1]!r}")
        if self.latents:
            self._check_latents()

    def _check_latents(self) -> None:
        if not all(hasattr(self.dictionary, name) for name in ("encode", "decode", "n_latents")):
            raise ConfigError(
                f"{self.label}: setting latents needs a dictionary with encode, decode and n_latents; "
                f"{type(self.dictionary).__name__} has not all of them"
            )
        n_latents = cast(Decodes, self.dictionary).n_latents
        for index in self.latents:
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < n_latents:
                raise DataError(f"{self.label}: latent {index!r} does not exist; expected 0 to {n_latents - 1}")

    def change(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, getattr(self.dictionary, "d_in", x.shape[-1])).to(self._dtype(x))
        if not self.latents:
            rebuilt = self.dictionary.reconstruct(flat).to(x).reshape(x.shape)
            return rebuilt if self.error == "drop" else rebuilt + (x - rebuilt)
        dictionary = cast(Decodes, self.dictionary)
        codes = dictionary.encode(flat)
        new = dictionary.decode(self._set(codes)).to(x).reshape(x.shape)
        return new if self.error == "drop" else new + (x - dictionary.decode(codes).to(x).reshape(x.shape))

    def _dtype(self, x: Tensor) -> torch.dtype:
        """The dictionary's precision, or at least float32."""
        weights = next(self.dictionary.parameters(), None) if isinstance(self.dictionary, nn.Module) else None
        return torch.promote_types(x.dtype, torch.float32) if weights is None else weights.dtype

    def _set(self, codes: Codes) -> Codes:
        """The codes with the chosen latents set or scaled."""
        indices, values = codes.indices, codes.values
        if self.by == "scale":
            for latent, factor in self.latents.items():
                values = torch.where(indices == latent, values * factor, values)
            return dataclasses.replace(cast(Any, codes), values=values)
        chosen = torch.tensor(list(self.latents), dtype=indices.dtype, device=indices.device)
        numbers = torch.tensor(list(self.latents.values()), dtype=values.dtype, device=values.device)
        others = values.masked_fill(torch.isin(indices, chosen), 0)
        lead = values.shape[:-1]
        indices = torch.cat([indices, chosen.expand(*lead, -1)], dim=-1)
        return dataclasses.replace(
            cast(Any, codes), indices=indices, values=torch.cat([others, numbers.expand(*lead, -1)], dim=-1)
        )
