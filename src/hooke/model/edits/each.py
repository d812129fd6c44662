"""`positions="each"`: one edit set for every position."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from hooke.base.errors import DataError
from hooke.model.edits.edit import Edit
from hooke.model.tokens import Tokens


def expand_each(edits: Sequence[Edit], tokens: Tokens) -> list[list[Edit]]:
    """One edit set per position of the prompt: every edit whose positions are "each" acts at that position, the others
    stay as they are. Without any "each", the one set that was given.

    Raises:
        DataError: for rows of unequal length, which have no position in common at their ends.
    """
    if not any(is_each(edit) for edit in edits):
        return [list(edits)]
    lengths = tokens.lengths
    if bool((lengths != lengths[0]).any()):
        raise DataError(
            f"positions 'each' needs rows of one length; these have {lengths.tolist()} tokens: sweep rows of each "
            "length apart, or name the positions"
        )
    return [
        [dataclasses.replace(edit, **_at(position)) if is_each(edit) else edit for edit in edits]
        for position in range(int(lengths[0]))
    ]


def is_each(edit: Edit) -> bool:
    """Whether the edit stands for one edit per position."""
    positions: Any = getattr(edit, "positions", None)
    return isinstance(positions, str) and positions == "each"


def _at(position: int) -> dict[str, Any]:
    return {"positions": position}
