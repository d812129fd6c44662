"""What every edit is: a site, positions, a check before anything runs, and the new value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, ShapeError
from hooke.model.sites import MAP_SITES, Site
from hooke.model.tokens import Tokens

# A plain str, so that an unknown word is refused by name and not by a type checker.
Positions = int | Sequence[int] | Tensor | str | None


@dataclass(frozen=True)
class Place:
    """A resolved site of one model, as an edit needs to know it.

    Args:
        feature: the trailing shape of what the edit sees, after `batch pos`; None for attention maps.
        heads: how many heads the site has.
        causal: whether queries see earlier keys only.
    """

    site: Site
    feature: tuple[int, ...] | None
    heads: int = 0
    causal: bool = True


@dataclass(frozen=True, eq=False)
class Edit:
    """A change at one site. `change` gives the new value at every position; the engine keeps it where the positions
    say so.
    """

    site: Site | str

    # -- what the engine asks ------------------------------------------------------------------------------------------

    @property
    def is_local(self) -> bool:
        """Whether the new value at a position depends on the old value at that position alone."""
        return True

    @property
    def patterns(self) -> tuple[Site | str, ...]:
        """The sites, or patterns of sites, at which it acts."""
        return (self.site,)

    def fit(self, tokens: Tokens, place: Place) -> Edit:
        """The edit checked and made concrete for a batch and one resolved site.

        Raises:
            SiteError, ShapeError, DataError, ConfigError: before the model runs, for an edit that does not fit.
        """
        self.check(place)
        return self

    @property
    def per_position(self) -> bool:
        """Whether the edit, once fitted, carries a value of its own for each row and column of the prompt."""
        return False

    def at(self, rows: Tensor, columns: Tensor) -> Edit:
        """The edit for these places of the batch only: values that it carries per position are gathered there.

        Args:
            rows: ints that broadcast with `columns`; together they index `[batch, pos]` (of a map, the queries).
        """
        return self

    def moved(self, rows: Tensor, columns: Tensor) -> Edit:
        """The edit for the same rows with their padding elsewhere: column j of row i is now what was at `columns[i,
        j]`.

        Raises:
            ConfigError: for a whole attention map, whose keys would have to move too.
        """
        return self.at(rows, columns)

    def change(self, x: Tensor) -> Tensor:
        """The edited value of the site's tensor `x`, same shape."""
        raise TypeError(f"{type(self).__name__} is not an edit by itself; use Set, Add, Scale, Project, Ablate, ...")

    # -- checks --------------------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that the edit carries, by field name, for checks and storage."""
        return {}

    def numbers(self) -> dict[str, object]:
        """The numbers that the edit carries, by field name."""
        return {}

    def check(self, place: Place) -> None:
        """Check the edit against its site.

        Raises:
            ShapeError: for a tensor of the wrong width.
            DataError: for NaN or infinite values.
        """
        for name, number in self.numbers().items():
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                raise DataError(f"{self.label}: {name} is {number!r}; expected a finite number")
        for name, tensor in self.tensors().items():
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise DataError(f"{self.label}: {name} has dtype {kind}; expected a floating point tensor")
            # A finite sum has finite terms; an infinite one may still have overflowed.
            if not math.isfinite(float(tensor.detach().sum())) and not bool(torch.isfinite(tensor).all()):
                raise DataError(
                    f"{self.label}: {name} has {int((~torch.isfinite(tensor)).sum())} NaN or infinite values"
                )
            self.check_shape(name, tensor, place)

    def check_shape(self, name: str, tensor: Tensor, place: Place) -> None:
        """Check one tensor against the site's trailing shape."""
        if place.feature is not None and tuple(tensor.shape) != place.feature:
            raise ShapeError(f"{self.label}: {name} has shape {tuple(tensor.shape)}; the site needs {place.feature}")

    def refuse_maps(self, place: Place, instead: str) -> None:
        """Raise where the site is an attention map.

        Raises:
            ConfigError: with what to do instead.
        """
        if place.site.name in MAP_SITES:
            raise ConfigError(f"{self.label}: {place.site} is a map over positions; {instead}")

    @property
    def label(self) -> str:
        """Name for messages, such as `Add at resid_post.2`."""
        return f"{type(self).__name__} at {self.site}"
