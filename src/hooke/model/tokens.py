"""Token batches that are safe under padding: ids, which of them are text, and where a person's position lies.

There is one mask in hooke. `Tokens.keep` is true at the tokens of the text itself: not padding, not BOS, EOS or other
special tokens. Training, statistics and scores all use it. Positions that people give count from the first token of
their row (BOS included where it was added), whatever side the padding is on.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hooke.base.errors import DataError, nearest
from hooke.model.media import moved, of_rows


@dataclass(frozen=True, eq=False)
class Tokens:
    """A rectangular batch of token ids.

    Args:
        ids: token ids; padding holds any valid id.
        mask: true at tokens, false at padding. Padding is contiguous, on one side of each row.
        keep: true at tokens of the text, false at padding and special tokens.
        names: positions that have a name, one per row, in terms of each row's own tokens (negative from its end).
        media: what goes in beside the tokens, by argument name of the Hugging Face model: pixels, grids, token types.
        image: true at the tokens whose places an image takes; None where the model reads no images.
    """

    ids: Int[Tensor, "batch pos"]
    mask: Bool[Tensor, "batch pos"]
    keep: Bool[Tensor, "batch pos"]
    names: Mapping[str, Int[Tensor, " batch"]] = field(default_factory=dict)
    media: Mapping[str, Tensor] = field(default_factory=dict)
    image: Bool[Tensor, "batch pos"] | None = None

    _found: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)
    _marked: dict[tuple[int, ...], Tensor] = field(default_factory=dict, init=False, repr=False)

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
        if ids.is_floating_point() or ids.dtype == torch.bool:
            raise DataError(f"token ids have dtype {ids.dtype}; expected whole numbers")
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

    @classmethod
    def from_encoding(cls, encoding: Mapping[str, Any], *, special_ids: Collection[int] = ()) -> Tokens:
        """Build from what a tokenizer or processor of transformers returns with `return_tensors="pt"`.

        Raises:
            DataError: where there are no `input_ids`, for values that are not tensors, and as `from_ids`.
        """
        if "input_ids" not in encoding:
            raise DataError(f"no input_ids among {', '.join(map(repr, encoding)) or 'nothing'}; expected an encoding")
        loose = [name for name, value in encoding.items() if not isinstance(value, Tensor)]
        if loose:
            raise DataError(f"{loose[0]!r} is no tensor; ask the processor for them with return_tensors='pt'")
        rest = {name: value for name, value in encoding.items() if name not in ("input_ids", "attention_mask")}
        mask = encoding["attention_mask"].bool() if "attention_mask" in encoding else None
        built = cls.from_ids(encoding["input_ids"], mask=mask, special_ids=special_ids)
        return dataclasses.replace(built, media=rest)

    @property
    def shape(self) -> tuple[int, int]:
        """(batch, pos)."""
        return self.ids.shape[0], self.ids.shape[1]

    @functools.cached_property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Tokens in each row, padding not counted."""
        return self.mask.sum(dim=1)

    @functools.cached_property
    def starts(self) -> Int[Tensor, " batch"]:
        """Column of each row's first token."""
        return self.mask.int().argmax(dim=1)

    @functools.cached_property
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
            DataError: for a position beyond a row, naming the row and its length, or one that is no whole number.
        """
        asked = _whole_numbers(positions)
        if asked not in self._found:  # sweeps ask for the same few positions again and again
            given = torch.tensor(asked, dtype=torch.long, device=self.ids.device).expand(len(self.ids), -1)
            self._found[asked] = self._columns(given)
        return self._found[asked]

    def at(self, positions: Sequence[int]) -> Bool[Tensor, "batch pos"]:
        """True at these positions, given in terms of each row's own tokens. Not to be written into."""
        asked = _whole_numbers(positions)
        if asked not in self._marked:
            columns = self.columns(asked)
            self._marked[asked] = torch.zeros_like(self.mask).scatter(1, columns, True)
        return self._marked[asked]

    def named(self, name: str) -> Int[Tensor, "batch 1"]:
        """Column of a named position in each row.

        Raises:
            DataError: for a name that these tokens do not carry, a position beyond a row, or another number of them
                than there are rows.
        """
        if name not in self.names:
            known = ", ".join(self.names) or "none"
            raise DataError(
                f"position {name!r} is not a name of these tokens{nearest(name, self.names)}; named: {known}"
            )
        places = self.names[name]
        if not isinstance(places, Tensor) or tuple(places.shape) != (len(self),) or places.is_floating_point():
            found = tuple(places.shape) if isinstance(places, Tensor) else repr(places)
            raise DataError(
                f"name {name!r} has positions {found}; expected an Int tensor of shape ({len(self)},), one for each row"
            )
        return self._columns(places.to(self.ids.device)[:, None])

    def rows(self, index: Sequence[int] | slice) -> Tokens:
        """Some of the rows, same width, with their own media.

        Raises:
            DataError: for media that cannot be divided by rows.
        """
        index = list(range(len(self)))[index] if isinstance(index, slice) else list(index)
        return dataclasses.replace(
            self,
            ids=self.ids[index],
            mask=self.mask[index],
            keep=self.keep[index],
            names={name: places[index] for name, places in self.names.items()},
            media=of_rows(self.media, self.shape, self.image, index),
            image=None if self.image is None else self.image[index],
        )

    def padded(self, side: Literal["left", "right"]) -> Tokens:
        """The same rows with their padding on one side; names, media and the mask of image tokens go along."""
        if not self.is_padded:
            return self
        width = self.shape[1]
        starts = width - self.lengths if side == "left" else torch.zeros_like(self.lengths)
        column = torch.arange(width, device=self.ids.device)[None] - starts[:, None] + self.starts[:, None]
        column = column % width  # what was padding stays padding
        rows = torch.arange(len(self), device=self.ids.device)[:, None]
        changed = {name: getattr(self, name)[rows, column] for name in ("ids", "mask", "keep")}
        image = None if self.image is None else self.image[rows, column]
        return dataclasses.replace(self, **changed, media=moved(self.media, self.shape, column), image=image)

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
        there = {name: getattr(self, name).to(device) for name in ("ids", "mask", "keep")}
        media = {name: tensor.to(device) for name, tensor in self.media.items()}
        image = None if self.image is None else self.image.to(device)
        return dataclasses.replace(self, **there, media=media, image=image)

    def __len__(self) -> int:
        return self.ids.shape[0]


def _whole_numbers(positions: Any) -> tuple[int, ...]:
    """Positions as a tuple. True is no position, though Python counts it as 1: a mask would name two tokens."""
    asked = tuple(positions) if hasattr(positions, "__iter__") else (positions,)
    for position in asked:
        if type(position) is not int:
            hint = "; a mask is a Bool tensor [batch, pos]" if isinstance(position, bool) else ""
            raise DataError(f"position {position!r} is of type {type(position).__name__}; expected an int{hint}")
    return asked


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
