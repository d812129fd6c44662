"""Edits: frozen descriptions of a change at a site and positions.

An edit is data. It can be kept, shown, batched and planned, and it is checked against the model before anything runs.
Edits of one run are applied in the order given; what later layers see, and what a capture of the same site returns,
is the edited value.

Positions: None (everywhere, generated tokens included), an int or a sequence of ints (in terms of each row's own
tokens, negative from the end), "last" (the last prompt token), "prompt", "generated", "kept" (the one mask: no
padding, no special tokens; generated tokens count as kept), "image" (placeholders of image features), a name that the
tokens carry (`Tokens.names`), or a Bool tensor [batch, pos].
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, ShapeError
from hooke.model.sites import Site
from hooke.model.tokens import Tokens

# A plain str, so that an unknown word is refused by name and not by a type checker.
Positions = int | Sequence[int] | Tensor | str | None


@runtime_checkable
class Reconstructs(Protocol):
    """What `Splice` needs of a dictionary."""

    def reconstruct(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True, eq=False)
class Edit:
    """A change at one site. `change` gives the new value at every position; the engine keeps it where the positions
    say so.
    """

    site: Site | str
    # Whether the new value at a position depends on the old value at that position alone.
    is_local: ClassVar[bool] = True

    def fit(self, tokens: Tokens, site: Site, feature: tuple[int, ...] | None) -> Edit:
        """The edit checked and made concrete for a batch and one resolved site; `feature` is the site's trailing shape
        (None for attention maps).

        Raises:
            ShapeError, DataError, ConfigError: before the model runs, for an edit that does not fit.
        """
        self.check(feature, site)
        return self

    @property
    def per_position(self) -> bool:
        """Whether the edit, once fitted, carries a value of its own for each row and column of the prompt."""
        return False

    def at(self, rows: Tensor, columns: Tensor) -> Edit:
        """The edit for these places of the batch only: values that it carries per position are gathered there.

        Args:
            rows: ints that broadcast with `columns`; together they index `[batch, pos]`.
        """
        return self

    def change(self, x: Tensor) -> Tensor:
        """The edited value of the site's tensor `x`, same shape."""
        raise TypeError(
            f"{type(self).__name__} is not an edit by itself; use Set, Add, Scale, Project, Ablate or Splice"
        )

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the edit carries, by field name, for checks and storage."""
        return {}

    def check(self, feature: tuple[int, ...] | None, site: Site) -> None:
        """Check the edit against its site, resolved, and the site's trailing shape (None where it has no fixed one).

        Raises:
            ShapeError: for a tensor of the wrong width.
            DataError: for NaN or infinite values.
        """
        for name, tensor in self.tensors().items():
            if not tensor.is_floating_point():
                raise DataError(f"{self.label}: {name} has dtype {tensor.dtype}; expected floating point")
            if not bool(torch.isfinite(tensor).all()):
                raise DataError(
                    f"{self.label}: {name} has {int((~torch.isfinite(tensor)).sum())} NaN or infinite values"
                )
            if feature is not None:
                self._check_shape(name, tensor, feature)

    def _check_shape(self, name: str, tensor: Tensor, feature: tuple[int, ...]) -> None:
        if tuple(tensor.shape) != feature:
            raise ShapeError(f"{self.label}: {name} has shape {tuple(tensor.shape)}; the site needs {feature}")

    @property
    def label(self) -> str:
        """Name for messages, such as `Add at resid_post.2`."""
        return f"{type(self).__name__} at {self.site}"


@dataclass(frozen=True, eq=False)
class Set(Edit):
    """Replace the value.

    Args:
        value: of the site's own trailing shape (the same vector at all positions), or `[batch, pos, ...]` for the whole
            prompt, or, with explicit int positions, `[n_positions, ...]` or `[batch, n_positions, ...]`.
    """

    value: Tensor
    positions: Positions = None
    _fitted: bool = field(default=False, repr=False)  # the value is [batch, pos, ...]

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value}

    def fit(self, tokens: Tokens, site: Site, feature: tuple[int, ...] | None) -> Set:
        self.check(feature, site)
        return self._fit_map(tokens) if feature is None else self._spread(tokens, feature)

    @property
    def per_position(self) -> bool:
        return self._fitted

    def at(self, rows: Tensor, columns: Tensor) -> Set:
        if not self._fitted:
            return self
        return dataclasses.replace(self, value=self.value[rows.to(self.value.device), columns.to(self.value.device)])

    def change(self, x: Tensor) -> Tensor:
        return self.value.to(x).expand(x.shape)

    def _fit_map(self, tokens: Tokens) -> Set:
        batch, width = tokens.shape
        lead, square = tuple(self.value.shape[:-2]), tuple(self.value.shape[-2:])
        if square != (width, width) or (lead and lead[0] not in (1, batch)):
            raise ShapeError(
                f"{self.label}: value has shape {tuple(self.value.shape)}; a map of this prompt is [batch, (head,) "
                f"query, key] = [{batch}, .., {width}, {width}]"
            )
        return self

    def _spread(self, tokens: Tokens, feature: tuple[int, ...]) -> Set:
        """The value over the whole prompt, `[batch, pos, ...]`, where it was given per position."""
        lead = tuple(self.value.shape[: self.value.ndim - len(feature)])
        if not lead:
            return self
        batch, width = tokens.shape
        if lead == (batch, width):
            return dataclasses.replace(self, _fitted=True)
        positions = [self.positions] if isinstance(self.positions, int) else self.positions
        if isinstance(positions, Sequence) and not isinstance(positions, str):
            columns = tokens.columns(positions)
            if lead in ((columns.shape[1],), (batch, columns.shape[1])):
                value = self.value.expand(batch, columns.shape[1], *feature)
                spread = torch.zeros(batch, width, *feature, dtype=value.dtype, device=value.device)
                rows = torch.arange(batch, device=value.device)[:, None]
                spread = spread.index_put((rows, columns.to(value.device)), value)
                return dataclasses.replace(self, value=spread, _fitted=True)
        raise ShapeError(
            f"{self.label}: value has shape {tuple(self.value.shape)}; before the site's {feature} only [batch, pos] = "
            f"{(batch, width)} fits, or one entry per explicit position"
        )

    def _check_shape(self, name: str, tensor: Tensor, feature: tuple[int, ...]) -> None:
        extra = tensor.ndim - len(feature)
        if tuple(tensor.shape[max(0, extra) :]) != feature or extra not in (0, 1, 2):
            raise ShapeError(
                f"{self.label}: value has shape {tuple(tensor.shape)}; expected {feature}, "
                f"or [batch, pos] or [n_positions] before it"
            )


@dataclass(frozen=True, eq=False)
class Add(Edit):
    """Add `scale * vector`: steering. The vector has the site's trailing shape."""

    vector: Tensor
    scale: float = 1.0
    positions: Positions = None

    def tensors(self) -> dict[str, Tensor]:
        return {"vector": self.vector}

    def change(self, x: Tensor) -> Tensor:
        return x + self.scale * self.vector.to(x)


@dataclass(frozen=True, eq=False)
class Scale(Edit):
    """Multiply by a number."""

    factor: float
    positions: Positions = None

    def change(self, x: Tensor) -> Tensor:
        return x * self.factor


@dataclass(frozen=True, eq=False)
class Project(Edit):
    """Remove the component along a direction: x - (x . u) u with u the unit vector. Acts on the last dimension."""

    direction: Tensor
    positions: Positions = None

    def tensors(self) -> dict[str, Tensor]:
        return {"direction": self.direction}

    def check(self, feature: tuple[int, ...] | None, site: Site) -> None:
        super().check(None if feature is None else feature[-1:], site)
        if float(self.direction.norm()) == 0.0:
            raise DataError(f"{self.label}: the direction has norm 0; there is nothing to remove")

    def change(self, x: Tensor) -> Tensor:
        unit = (self.direction / self.direction.norm()).to(x)
        return x - (x @ unit)[..., None] * unit


@dataclass(frozen=True, eq=False)
class Ablate(Edit):
    """Remove what a site says: set it to zero, or to a mean that was taken over a dataset.

    Args:
        kind: "zero" or "mean".
        reference: the mean, of the site's trailing shape; needed for kind "mean".
    """

    kind: Literal["zero", "mean"] = "zero"
    reference: Tensor | None = None
    positions: Positions = None

    def tensors(self) -> dict[str, Tensor]:
        return {} if self.reference is None else {"reference": self.reference}

    def check(self, feature: tuple[int, ...] | None, site: Site) -> None:
        if (self.kind == "mean") != (self.reference is not None):
            raise ConfigError(
                f"{self.label}: kind 'mean' needs a reference, kind 'zero' takes none; kind is {self.kind!r}"
            )
        super().check(feature, site)

    def change(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if self.reference is None else self.reference.to(x).expand(x.shape)


@dataclass(frozen=True, eq=False)
class Splice(Edit):
    """Put a dictionary's reconstruction in the place of the value it reads.

    Args:
        dictionary: has `reconstruct(x)`, from and to the site's width (heads side by side). One that knows the sites
            it reads and writes fits only there.
        error: "drop" leaves the reconstruction alone, "keep" adds back the clean error, so that nothing changes.
    """

    dictionary: Reconstructs
    error: Literal["drop", "keep"] = "drop"
    positions: Positions = "kept"

    def check(self, feature: tuple[int, ...] | None, site: Site) -> None:
        for side in ("d_in", "d_out"):
            width = getattr(self.dictionary, side, None)
            if feature is not None and width is not None and width != math.prod(feature):
                raise ShapeError(f"{self.label}: the dictionary has {side} {width}; the site has {math.prod(feature)}")
        for verb in ("reads", "writes"):
            home = getattr(self.dictionary, verb, None)
            if home is not None and home != site:
                raise ConfigError(f"{self.label}: the dictionary {verb} {home}; splice it there")

    def change(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, getattr(self.dictionary, "d_in", x.shape[-1]))
        rebuilt = self.dictionary.reconstruct(flat.float()).to(x).reshape(x.shape)
        return rebuilt if self.error == "drop" else rebuilt + (x - rebuilt)
