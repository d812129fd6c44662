"""`metrics.jsonl`: numbers by step, append-only, read by cursor."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from hooke.base import jsonable
from hooke.base.errors import DataError, FormatError
from hooke.runs import lines

MAX_STEP = 2**53 - 1  # the largest integer that every JSON reader keeps
_TAIL = 1 << 16


class MetricRow(NamedTuple):
    """Numbers measured at one step. `time` is in seconds since 1970; NaN values are undefined numbers."""

    step: int
    time: float
    values: dict[str, float]


class Metrics(NamedTuple):
    """What was logged since a cursor.

    Args:
        rows: in the order logged. Rows that a resume took back are left out.
        cursor: give it as `since` to read only what comes after.
        rewound_to: when not `None`, drop the rows with this step or a later one that you read before; a resumed run
            logs those steps again.
    """

    rows: list[MetricRow]
    cursor: int
    rewound_to: int | None

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric."""
        rows = [row for row in self.rows if name in row.values]
        return [row.step for row in rows], [row.values[name] for row in rows]


def append_row(path: Path, values: Mapping[str, float | int], step: int) -> None:
    """Append the numbers of one step.

    Raises:
        DataError: a value is not a number, or the step is not an integer from 0 to 2^53 - 1.
    """
    _require_step(step)
    numbers: dict[str, float] = {}
    for name, value in values.items():
        try:
            numbers[str(name)] = float(value)
        except (TypeError, ValueError, OverflowError):
            raise DataError(f"metric {name!r} is a {type(value).__name__}; expected one number") from None
    lines.append(path, {"step": int(step), "time": round(time.time(), 3), "values": numbers})


def append_rewind(path: Path, step: int) -> None:
    """Take back every row with this step or a later one: a resumed run is about to log them again."""
    _require_step(step)
    lines.append(path, {"rewind": int(step)})


def read_metrics(path: Path, since: int = 0) -> Metrics:
    """Read the rows logged since a cursor (0: all). A torn last line is not there yet.

    Raises:
        FormatError: a line is not what the format says, with its place.
    """
    found, cursor = lines.read(path, since)
    rows: list[MetricRow] = []
    rewound_to: int | None = None
    for line in found:
        row = _row(path, line)
        if isinstance(row, MetricRow):
            rows.append(row)
            continue
        rows = [kept for kept in rows if kept.step < row]
        rewound_to = row if rewound_to is None else min(row, rewound_to)
    return Metrics(rows, cursor, rewound_to)


def last_step(path: Path) -> int | None:
    """The step of the last row, from the end of the file; `None` when there is none or it cannot be read."""
    try:
        with open(path, "rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - _TAIL)
            file.seek(start)
            texts = file.read().split(b"\n")[:-1]
    except OSError:
        return None
    below = math.inf
    for text in reversed(texts if start == 0 else texts[1:]):
        try:
            row = _row(path, lines.Line(0, text))
        except FormatError:
            return None
        if isinstance(row, int):
            below = min(below, row)
        elif row.step < below:
            return row.step
    return None


def _row(path: Path, line: lines.Line) -> MetricRow | int:
    """A row, or the step of a rewind."""
    value = lines.parse(path, line)
    try:
        if "rewind" in value:
            return _step(value["rewind"])
        if not isinstance(value.get("values"), dict):
            raise ValueError("'values' is not an object")
        numbers = {name: jsonable.finite_or_not(number) for name, number in value["values"].items()}
        return MetricRow(_step(value.get("step")), jsonable.finite_or_not(value.get("time")), numbers)
    except ValueError as error:
        raise FormatError(f"{path} has a line at byte {line.offset} that is no row of metrics ({error})") from error


def _step(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_STEP:
        raise ValueError("the step is not an integer from 0 to 2^53 - 1")
    return value


def _require_step(step: int) -> None:
    try:
        _step(step)
    except ValueError:
        raise DataError(f"step is {step!r}; expected an integer from 0 to 2^53 - 1") from None
