"""Ablate: remove what a site says, in one of four ways."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, ShapeError, nearest
from hooke.base.seeds import torch_generator
from hooke.model.edits.edit import Edit, Place, Positions
from hooke.model.edits.spread import Carrier, keep_masked
from hooke.model.tokens import Tokens

Kind = Literal["zero", "mean", "resample", "noise"]


@dataclass(frozen=True, eq=False)
class Ablate(Carrier):
    """Remove what a site says: set it to zero, to a mean that was taken over a dataset, to what another row of this
    very run says there, or blur it with noise.

    Args:
        kind: "zero", "mean", "resample" or "noise".
        reference: the mean, needed for kind "mean": of the site's trailing shape, `[pos, ...]` by position in each
            row's own tokens, or `[batch, pos, ...]`.
        shift: for "resample": row i gets the value of row i - shift, counted around the batch.
        std: for "noise", needed: standard deviation of what is added to each component.
        seed: for "noise". A draw depends on seed, site, position in the row's own tokens and the row's number, on
            nothing else. Generated tokens get none.
        shared: for "noise": one draw for all rows, so that the row's number does not count.
    """

    carried: ClassVar[str] = "reference"
    kind: str = "zero"  # one of `Kind`; a plain str, so that an unknown word is refused by name
    reference: Tensor | None = None
    positions: Positions = None
    shift: int = field(default=1, kw_only=True)
    std: float | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    shared: bool = field(default=False, kw_only=True)

    @property
    def is_local(self) -> bool:
        return self.kind != "resample"

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.reference is None else {"reference": self.reference}

    def numbers(self) -> dict[str, object]:
        return {} if self.std is None else {"std": self.std}

    def check(self, place: Place) -> None:
        if self.kind not in get_args(Kind):
            known = get_args(Kind)
            raise ConfigError(f"{self.label}: kind {self.kind!r} is not known{nearest(self.kind, known)}; use {known}")
        if (self.kind == "mean") != (self.reference is not None):
            raise ConfigError(
                f"{self.label}: kind 'mean' needs a reference, the others take none; kind is {self.kind!r}"
            )
        if (self.kind == "noise") != (self.std is not None):
            raise ConfigError(f"{self.label}: kind 'noise' needs std, the others take none; kind is {self.kind!r}")
        super().check(place)

    def fit(self, tokens: Tokens, place: Place) -> Edit:
        self.check(place)
        if self.kind == "mean":
            return self._fit_mean(tokens, place)
        if self.kind == "resample":
            self._check_pairs(tokens)
        return self._fit_noise(tokens, place) if self.kind == "noise" else replace(self, site=place.site)

    def change(self, x: Tensor) -> Tensor:
        if self.kind == "zero":
            return keep_masked(self.site, x, torch.zeros_like(x))
        if self.kind == "resample":
            return x.roll(self.shift, dims=0)
        assert self.reference is not None  # checked when it was fitted
        reference = self.reference.to(x)
        if self.kind == "noise":
            return x + reference
        return (reference[..., : x.shape[-1]] if self._layout == "map" else reference).expand(x.shape)

    # -- fitting -------------------------------------------------------------------------------------------------------

    def _fit_mean(self, tokens: Tokens, place: Place) -> Edit:
        assert self.reference is not None
        feature = place.feature
        if feature is None or self.reference.ndim != 1 + len(feature):
            return self.fitted(tokens, place, None)
        longest, given = int(tokens.lengths.max()), len(self.reference)
        if given < longest:
            raise ShapeError(f"{self.label}: the reference has {given} positions; the longest row has {longest}")
        positions = tokens.position_ids.to(self.reference.device).clamp(max=given - 1)  # padding is not changed
        return self.laid(self.reference[positions], "prompt")

    def _check_pairs(self, tokens: Tokens) -> None:
        batch = len(tokens)
        if self.shift % batch == 0:
            raise DataError(
                f"{self.label}: shift {self.shift} in a batch of {batch} pairs every row with itself; expected "
                + (f"a shift that is no multiple of {batch}" if batch > 1 else "at least two rows")
            )
        if not bool((tokens.mask == tokens.mask[:1]).all()):
            raise DataError(
                f"{self.label}: kind 'resample' needs rows of one length; these have {tokens.lengths.tolist()} tokens"
            )

    def _fit_noise(self, tokens: Tokens, place: Place) -> Edit:
        self.refuse_maps(place, "add noise to q or k, or use Set")
        assert place.feature is not None and self.std is not None
        if self.std < 0:
            raise DataError(f"{self.label}: std is {self.std}; expected at least 0")
        if self.positions == "generated":
            raise ConfigError(f"{self.label}: noise is for the prompt; generated tokens get none")
        draws: dict[tuple[int, int], Tensor] = {}
        for row, length in enumerate(tokens.lengths.tolist()):
            number = 0 if self.shared else row
            for position in range(length):
                if (number, position) not in draws:
                    generator = torch_generator(self.seed, "noise", str(place.site), number, position)
                    draws[number, position] = torch.randn(place.feature, generator=generator)
        silence = torch.zeros(place.feature)
        rows = [
            torch.stack(
                [draws[0 if self.shared else row, p] if real else silence for p, real in zip(*pair, strict=True)]
            )
            for row, pair in enumerate(zip(tokens.position_ids.tolist(), tokens.mask.tolist(), strict=True))
        ]
        noise = self.std * torch.stack(rows)
        return self.laid(noise.to(tokens.ids.device), "prompt")
