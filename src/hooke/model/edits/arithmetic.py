"""Set, Add, Scale, Project: arithmetic on the value at a site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from hooke.base.errors import DataError, ShapeError
from hooke.model.edits.edit import Edit, Place, Positions
from hooke.model.edits.spread import Carrier, keep_masked
from hooke.model.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Set(Carrier):
    """Replace the value.

    Args:
        value: of the site's own trailing shape (the same vector at all positions), or `[batch, pos, ...]` for the whole
            prompt, or, with ints, "last" or a name as positions, `[n_positions, ...]` or `[batch, n_positions, ...]`.
            Of an attention map: `[query, key]`, `[batch, query, key]` or `[batch, head, query, key]`.
    """

    carried: ClassVar[str] = "value"
    value: Tensor
    positions: Positions = None

    def tensors(self) -> dict[str, Tensor]:
        return {"value": self.value}

    def fit(self, tokens: Tokens, place: Place) -> Edit:
        self.check(place)
        return self.fitted(tokens, place, self.positions)

    def value_at(self, row: int, columns: Sequence[int]) -> Tensor:
        """Once fitted: the new values of one row at the columns that it changes, ascending, `[n, ...]`; not of maps."""
        if self._layout == "value":
            return self.value.expand(len(columns), *self.value.shape)
        if self._layout == "columns":
            assert self._columns is not None
            own = self.value[min(row, len(self.value) - 1)]
            return own if len(own) == 1 else own[self._columns[row].argsort().to(own.device)]
        if isinstance(columns, range):
            return self.value[row, columns.start : columns.stop]
        return self.value[row, list(columns)]

    def change(self, x: Tensor) -> Tensor:
        value = self.whole.to(x)
        return (value[..., : x.shape[-1]] if self._layout == "map" else value).expand(x.shape)


@dataclass(frozen=True, eq=False)
class Add(Carrier):
    """Add `scale * vector`: steering.

    Args:
        vector: as `value` of `Set`.
    """

    carried: ClassVar[str] = "vector"
    vector: Tensor
    scale: float = 1.0
    positions: Positions = None

    def tensors(self) -> dict[str, Tensor]:
        return {"vector": self.vector}

    def numbers(self) -> dict[str, object]:
        return {"scale": self.scale}

    def fit(self, tokens: Tokens, place: Place) -> Edit:
        self.check(place)
        return self.fitted(tokens, place, self.positions)

    def change(self, x: Tensor) -> Tensor:
        vector = self.whole.to(x)
        return x + self.scale * (vector[..., : x.shape[-1]] if self._layout == "map" else vector)


@dataclass(frozen=True, eq=False)
class Scale(Edit):
    """Multiply by a number. Scores that attention may not see stay out of its sight."""

    factor: float
    positions: Positions = None

    def numbers(self) -> dict[str, object]:
        return {"factor": self.factor}

    def fit(self, tokens: Tokens, place: Place) -> Edit:
        self.check(place)
        return replace(self, site=place.site)

    def change(self, x: Tensor) -> Tensor:
        return keep_masked(self.site, x, x * self.factor)


@dataclass(frozen=True, eq=False)
class Project(Edit):
    """Remove the component along a direction: x - (x . u) u with u the unit vector. Acts on the last dimension."""

    direction: Tensor
    positions: Positions = None

    def tensors(self) -> dict[str, Tensor]:
        return {"direction": self.direction}

    def check(self, place: Place) -> None:
        self.refuse_maps(place, "there is no direction to remove; use Scale, Set or Mask")
        super().check(place)
        if float(self.direction.detach().norm()) == 0.0:
            raise DataError(f"{self.label}: the direction has norm 0; there is nothing to remove")

    def check_shape(self, name: str, tensor: Tensor, place: Place) -> None:
        if place.feature is not None and tuple(tensor.shape) != place.feature[-1:]:
            raise ShapeError(
                f"{self.label}: {name} has shape {tuple(tensor.shape)}; the site needs {place.feature[-1:]}"
            )

    def change(self, x: Tensor) -> Tensor:
        unit = (self.direction / self.direction.norm()).to(x)
        # A product and a sum, not a matrix product, which autocast would round.
        return x - (x * unit).sum(-1, keepdim=True) * unit
