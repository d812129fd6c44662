"""Token batches that are safe under padding: ids, which of them are text, and where a person's position lies.

There is one mask in hooke. `Tokens.keep` is true at the tokens of the text itself: not padding, not BOS, EOS or other
special tokens. Training, statistics and scores all use it. Positions that people give count from the first token of
their row (BOS included where it was added), whatever side the padding is on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooke.base.errors import DataError, nearest


@dataclass(frozen=True, eq=False)
class Tokens:
    """A rectangular batch of token ids.

    Args:
        ids: token ids; padding holds any valid id.
        mask: true at tokens, false at padding. Padding is contiguous, on one side of each row.
        keep: true at tokens of the text, false at padding and special tokens.
        names: positions that have a name, one per row, in terms of each row's own tokens (negative from its end).
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    keep: Bool[Tensor, "batch pos"]
    names: Mapping[str, Int[Tensor, " batch"]] = field(default_factory=dict)

    @classmethod
    def from_ids(
        cls,
        ids: Int[Tensor, "batch pos"] | Sequence[Sequence[int]],
        *,
        mask: Bool[Tensor, "batch pos"] | None = None,
        special_ids: Collection[int] = (),
        pad_id: int = 0,
        padding_side: Literal["left", "right"] = "right",
    ) -> Tokens:
        """Build from a tensor, or from rows of unequal length, which are padded.

        Raises:
            DataError: for an empty batch, an empty row, padding inside a row, or float ids.
        """
        if not isinstance(ids, Tensor):
            ids, mask = _pad(ids, pad_id, padding_side)
        if ids.ndim != 2 or ids.numel() == 0:
            raise DataError(f"token ids have shape {tuple(ids.shape)}; expected a non-empty [batch, pos]")
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.to(ids.device)
        if mask.shape != ids.shape:
            raise DataError(f"the mask has shape {tuple(mask.shape)}; the ids have {tuple(ids.shape)}")
        if not mask.any(dim=1).all():
            raise DataError(f"row {int((~mask.any(dim=1)).nonzero()[0])} has no token; every row needs at least one")
        edges = (mask[:, 1:] != mask[:, :-1]).sum(dim=1)
        if bool((edges > 1).any()) or bool((~mask[:, 0] & ~mask[:, -1]).any()):
            raise DataError("padding must be contiguous and on one side of each row")
        special = torch.isin(ids, torch.tensor(sorted(special_ids), dtype=ids.dtype, device=ids.device))
        return cls(ids, mask, mask & ~special)

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, pos)."""
        return self.ids.shape[0], self.ids.shape[1]

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Tokens in each row, padding not counted."""
        return self.mask.sum(dim=1)

    @property
    def starts(self) -> Int[Tensor, " batch"]:
        """Column of each row's first token."""
        return self.mask.int().argmax(dim=1)

    @property
    def is_padded(self) -> bool:
        """Whether any row has padding."""
        return not bool(self.mask.all())

    @property
    def position_ids(self) -> Int[Tensor, "batch pos"]:
        """Position of each token in its row; 0 at left padding."""
        return (self.mask.long().cumsum(dim=1) - 1).clamp(min=0)

    def columns(self, positions: Sequence[int]) -> Int[Tensor, "batch position"]:
        """Columns of positions that were given in terms of each row's own tokens; negative ones count from its end.

        Raises:
            DataError: for a position beyond a row, naming the row and its length.
        """
        return self._columns(torch.tensor(list(positions), device=self.ids.device).long().expand(len(self.ids), -1))

    def named(self, name: str) -> Int[Tensor, "batch 1"]:
        """Column of a named position in each row.

        Raises:
            DataError: for a name that these tokens do not carry, or a position beyond a row.
        """
        if name not in self.names:
            known = ", ".join(self.names) or "none"
            raise DataError(
                f"position {name!r} is not a name of these tokens{nearest(name, self.names)}; named: {known}"
            )
        return self._columns(self.names[name].to(self.ids.device)[:, None])

    def rows(self, index: Sequence[int] | slice) -> Tokens:
        """Some of the rows, same width."""
        index = index if isinstance(index, slice) else list(index)
        names = {name: places[index] for name, places in self.names.items()}
        return dataclasses.replace(self, ids=self.ids[index], mask=self.mask[index], keep=self.keep[index], names=names)

    def _columns(self, asked: Int[Tensor, "batch position"]) -> Int[Tensor, "batch position"]:
        lengths = self.lengths[:, None]
        inside = (asked >= -lengths) & (asked < lengths)
        if not bool(inside.all()):
            row, place = (int(i) for i in (~inside).nonzero()[0])
            length = int(lengths[row])
            raise DataError(
                f"position {int(asked[row, place])} is beyond row {row}, which has {length} tokens; "
                f"expected {-length} to {length - 1}"
            )
        return torch.where(asked < 0, asked + lengths, asked) + self.starts[:, None]

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on another device."""
        moved = {name: getattr(self, name).to(device) for name in ("ids", "mask", "keep")}
        return dataclasses.replace(self, **moved)

    def __len__(self) -> int:
        return self.ids.shape[0]


def _pad(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor]:
    if not rows or not all(len(row) for row in rows):
        raise DataError("an empty batch or an empty row; every row needs at least one token")
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, place] = torch.tensor(list(row), dtype=torch.long)
        mask[i, place] = True
    return ids, mask
