"""Mask: cut edges of attention, so that queries do not see keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, ShapeError
from hooke.model.edits.edit import Edit, Place
from hooke.model.edits.spread import map_at
from hooke.model.tokens import Tokens

# A position in each row's own tokens: a number (negative from the end), "last", or a name that the tokens carry.
End = int | str


@dataclass(frozen=True, eq=False)
class Mask(Edit):
    """Cut attention edges: their scores become the lowest number there is, and the other keys share the attention.

    Args:
        site: "scores.layer", "scores.layer.head" or "scores.*".
        edges: pairs (query, key) of positions in each row's own tokens; or true where an edge is cut: Bool `[query,
            key]`, also in each row's own tokens, or `[batch, query, key]` by columns of the prompt.
    """

    edges: Sequence[tuple[End, End]] | Tensor
    # [batch, (1,) query, key] by columns, once fitted
    _cut: Tensor | None = field(default=None, repr=False, init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.edges, Tensor):
            object.__setattr__(self, "edges", tuple(tuple(edge) for edge in self.edges))

    @property
    def per_position(self) -> bool:
        return self._cut is not None

    def check(self, place: Place) -> None:
        if place.site.name != "scores":
            layer = "*" if place.site.layer is None else place.site.layer
            raise ConfigError(f"{self.label}: edges are cut at scores; write Mask('scores.{layer}', ...)")
        loose = () if isinstance(self.edges, Tensor) else [edge for edge in self.edges if len(edge) != 2]
        if loose:
            raise DataError(f"{self.label}: edge {loose[0]} is no pair (query, key)")
        if isinstance(self.edges, Tensor) and self.edges.dtype != torch.bool:
            raise DataError(f"{self.label}: edges has dtype {self.edges.dtype}; expected Bool, or pairs of positions")

    def fit(self, tokens: Tokens, place: Place) -> Edit:
        self.check(place)
        if not isinstance(self.edges, Tensor):
            cut = self._from_pairs(tokens, place)
        elif self.edges.ndim == 2:
            cut = self._from_own(tokens, self.edges)
        elif tuple(self.edges.shape) == (*tokens.shape, tokens.shape[1]):
            cut = self.edges.to(tokens.ids.device)
        else:
            batch, width = tokens.shape
            raise ShapeError(
                f"{self.label}: edges has shape {tuple(self.edges.shape)}; expected [query, key] of at least the "
                f"longest row, or [batch, query, key] = [{batch}, {width}, {width}]"
            )
        self._check_something_is_left(cut, tokens, place)
        return self._with(cut if place.site.head is not None else cut[:, None])

    def at(self, rows: Tensor, columns: Tensor) -> Mask:
        assert self._cut is not None
        return self._with(map_at(self._cut, rows.to(self._cut.device), columns.to(self._cut.device)))

    def moved(self, rows: Tensor, columns: Tensor) -> Mask:
        cut = self.at(rows, columns)._cut
        assert cut is not None
        keys = columns.to(cut.device)[:, None, :] if cut.ndim == 3 else columns.to(cut.device)[:, None, None, :]
        return self._with(cut.take_along_dim(keys, dim=-1))

    def change(self, x: Tensor) -> Tensor:
        assert self._cut is not None
        lowest = torch.finfo(x.dtype).min
        cut = self._cut.to(x.device)[..., : x.shape[-1]]
        masked = x.masked_fill(cut, lowest)
        # Windows of attention are known only here: a query must keep a key that it saw.
        blind = (masked <= lowest / 2).all(-1) & ~(x <= lowest / 2).all(-1)
        if bool(blind.any()):
            raise DataError(f"{self.label}: query in column {int(blind.nonzero()[0, -1])} would see no key at all")
        return masked

    # -- fitting -------------------------------------------------------------------------------------------------------

    def _with(self, cut: Tensor) -> Mask:
        fitted = replace(self)
        object.__setattr__(fitted, "_cut", cut)
        return fitted

    def _from_pairs(self, tokens: Tokens, place: Place) -> Bool[Tensor, "batch pos pos"]:
        batch, width = tokens.shape
        cut = torch.zeros(batch, width, width, dtype=torch.bool, device=tokens.ids.device)
        rows = torch.arange(batch, device=cut.device)
        for query, key in self.edges:
            columns = [_column(tokens, end, self.label) for end in (query, key)]
            if place.causal and bool((columns[1] > columns[0]).any()):
                raise DataError(
                    f"{self.label}: edge {(query, key)} is (query, key), and this model's queries see earlier keys "
                    f"only; did you mean {(key, query)}?"
                )
            cut[rows, columns[0], columns[1]] = True
        return cut

    def _from_own(self, tokens: Tokens, edges: Tensor) -> Bool[Tensor, "batch pos pos"]:
        longest = int(tokens.lengths.max())
        if edges.shape[0] != edges.shape[1] or edges.shape[0] < longest:
            raise ShapeError(
                f"{self.label}: edges has shape {tuple(edges.shape)}; [query, key] of at least {longest} positions, "
                "the longest row, is needed"
            )
        positions = tokens.position_ids.clamp(max=len(edges) - 1)
        cut = edges.to(positions.device)[positions[:, :, None], positions[:, None, :]]
        return cut & tokens.mask[:, :, None] & tokens.mask[:, None, :]

    def _check_something_is_left(self, cut: Tensor, tokens: Tokens, place: Place) -> None:
        seen = tokens.mask[:, None, :] & tokens.mask[:, :, None]
        seen = seen.tril() if place.causal else seen
        blind = seen.any(-1) & ~(seen & ~cut).any(-1)
        if bool(blind.any()):
            row, column = (int(i) for i in blind.nonzero()[0])
            query = column - int(tokens.starts[row])
            raise DataError(
                f"{self.label}: query {query} of row {row} would see no key at all; leave it one, such as its own "
                "position or the first token"
            )


def _column(tokens: Tokens, end: End, label: str) -> Tensor:
    """The column of one position in each row."""
    if isinstance(end, bool) or not isinstance(end, int | str):
        raise DataError(f"{label}: {end!r} is no position; expected a number, 'last', or a name of these tokens")
    if end == "last":
        end = -1
    return (tokens.named(end) if isinstance(end, str) else tokens.columns([end]))[:, 0]
