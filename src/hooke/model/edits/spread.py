"""Values that an edit carries for each position, laid out as the prompt is; and for attention maps, as the map is."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, ShapeError
from hooke.model.edits.edit import Edit, Place, Positions
from hooke.model.sites import Site
from hooke.model.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Carrier(Edit):
    """An edit with one tensor that may hold a value for each position, named by `carried`."""

    carried: ClassVar[str]  # name of the field that holds the tensor
    # "value": as given; "columns": [batch, n, ...] for these columns of a prompt; "prompt": [batch, pos, ...]; "map":
    # [batch, (head,) query, key]
    _layout: str = field(default="value", repr=False, init=False)
    _columns: Tensor | None = field(default=None, repr=False, init=False)
    _width: int = field(default=0, repr=False, init=False)

    @property
    def per_position(self) -> bool:
        return self._layout != "value"

    @property
    def whole(self) -> Tensor:
        """The tensor, laid out over the whole prompt where it was given for some columns (zero elsewhere)."""
        value = getattr(self, self.carried)
        if self._columns is None:
            return value
        batch, n_columns = self._columns.shape
        spread = torch.zeros(batch, self._width, *value.shape[2:], dtype=value.dtype, device=value.device)
        rows = torch.arange(batch, device=value.device)[:, None]
        return spread.index_put(
            (rows, self._columns.to(value.device)), value.expand(batch, n_columns, *value.shape[2:])
        )

    def at(self, rows: Tensor, columns: Tensor) -> Carrier:
        if self._layout == "value":
            return self
        if self._layout == "columns":
            return self.laid(self.whole, "prompt").at(rows, columns)
        value = getattr(self, self.carried)
        rows, columns = rows.to(value.device), columns.to(value.device)
        return self.laid(value[rows, columns] if self._layout == "prompt" else map_at(value, rows, columns))

    def moved(self, rows: Tensor, columns: Tensor) -> Edit:
        if self._layout == "map":
            raise ConfigError(f"{self.label}: pad the prompts on the left to generate with a whole map")
        return self.at(rows, columns)

    def laid(self, value: Tensor, layout: str | None = None, **changes: Any) -> Carrier:
        """The same edit with its tensor laid out over the prompt."""
        laid = copy.copy(self)
        for name, new in {self.carried: value, "_layout": layout or self._layout, "_columns": None, **changes}.items():
            object.__setattr__(laid, name, new)
        return laid

    def fitted(self, tokens: Tokens, place: Place, positions: Positions) -> Carrier:
        """The edit with its tensor laid out over the prompt, where it was given per position."""
        value = getattr(self, self.carried)
        if place.feature is None:
            return self.laid(as_map(value, tokens, place, self.label), "map")
        lead = tuple(value.shape[: value.ndim - len(place.feature)])
        if not lead:
            return self
        columns = explicit_columns(lead, tokens, positions)
        # Where positions name the whole prompt in an order of their own, values come in that order too.
        if lead == tokens.shape and (columns is None or bool((columns.diff(dim=1) > 0).all())):
            return self.laid(value, "prompt")
        if columns is None:
            raise ShapeError(
                f"{self.label}: {self.carried} has shape {tuple(value.shape)}; before the site's {place.feature} only "
                f"[batch, pos] = {tokens.shape} fits, or with ints, 'last' or a name as positions [n_positions] or "
                "[batch, n_positions]"
            )
        if columns.shape[1] > 1 and any(len(set(row)) < len(row) for row in columns.tolist()):
            raise DataError(f"{self.label}: positions {positions} name one position twice")
        value = value if len(lead) == 2 else value[None]
        return self.laid(value, "columns", _columns=columns, _width=tokens.shape[1])

    def check_shape(self, name: str, tensor: Tensor, place: Place) -> None:
        if place.feature is None or name != self.carried:
            return
        feature, extra = place.feature, tensor.ndim - len(place.feature)
        if tuple(tensor.shape[max(0, extra) :]) != feature or extra not in (0, 1, 2):
            raise ShapeError(
                f"{self.label}: {name} has shape {tuple(tensor.shape)}; the site needs {feature}, alone or after "
                f"[batch, pos] or [n_positions]"
            )


_MANY = ("prompt", "generated", "kept", "image", "each")  # words that stand for no fixed number of positions


def explicit_columns(lead: tuple[int, ...], tokens: Tokens, positions: Positions) -> Tensor | None:
    """The columns `[batch, n]` that a value of this leading shape is for; None where it fits no explicit positions."""
    if isinstance(positions, int):
        positions = [positions]
    if isinstance(positions, str) and positions == "last":
        columns = tokens.columns([-1])
    elif isinstance(positions, str) and positions in tokens.names and positions not in _MANY:
        columns = tokens.named(positions)
    elif isinstance(positions, Sequence) and not isinstance(positions, str):
        columns = tokens.columns(positions)
    else:
        return None
    return columns if lead in ((columns.shape[1],), tuple(columns.shape)) else None


def as_map(value: Tensor, tokens: Tokens, place: Place, label: str) -> Tensor:
    """A whole attention map as `[batch or 1, (head or 1,) query, key]`, without `head` at the site of one head.

    Raises:
        ShapeError: for a map of another shape.
    """
    batch, width = tokens.shape
    lead, square = tuple(value.shape[:-2]), tuple(value.shape[-2:])
    one_head = place.site.head is not None
    fits = square == (width, width) and len(lead) <= (1 if one_head else 2)
    fits = fits and (not lead or lead[0] in (1, batch)) and (len(lead) < 2 or lead[1] in (1, place.heads))
    if not fits:
        form = "[batch, query, key]" if one_head else "[batch, head, query, key]"
        sizes = f"[{batch}, {width}, {width}]" if one_head else f"[{batch}, {place.heads}, {width}, {width}]"
        raise ShapeError(
            f"{label}: the value has shape {tuple(value.shape)}; a map of this prompt at {place.site} is {form} = "
            f"{sizes}, or the trailing [query, key] alone"
        )
    if not lead:
        return value[None] if one_head else value[None, None]
    return value[:, None] if len(lead) == 1 and not one_head else value


def map_at(value: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The rows and queries of a map `[batch or 1, (head,) query, key]`, as `[row, (head,) column, key]`."""
    rows, columns = torch.broadcast_tensors(rows.clamp(max=len(value) - 1), columns)
    if value.ndim == 3:
        return value[rows, columns]
    return value.transpose(1, 2)[rows, columns].transpose(1, 2)


def keep_masked(site: Site | str, before: Tensor, after: Tensor) -> Tensor:
    """At scores, keys that attention may not see stay out of its sight: an edit that shrinks scores must not open the
    future. For fitted edits, whose site is resolved.
    """
    if not (isinstance(site, Site) and site.name == "scores"):
        return after
    return torch.where(before <= torch.finfo(before.dtype).min / 2, before, after)
