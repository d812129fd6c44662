"""Append-only files of JSON lines that survive a kill: a line is whole, or it is the torn end that readers skip."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from hooke.base import jsonable
from hooke.base.errors import FormatError
from hooke.base.files import disk_full

_BLOCK = 1 << 16


class Line(NamedTuple):
    """One line of a file: its bytes without the newline, and where it starts."""

    offset: int
    text: bytes


def append(path: Path, value: Any) -> None:
    """Append one JSON line by a single write, so that readers and other writers never see half of it.

    Raises:
        DataError: the disk is full; the file is as it was before.
    """
    line = (jsonable.dumps(value) + "\n").encode()
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            os.ftruncate(descriptor, os.lseek(descriptor, 0, os.SEEK_CUR) - written)
            raise disk_full(path)
    finally:
        os.close(descriptor)


def mend(path: Path) -> None:
    """Cut off the torn last line that a killed writer may have left, so that the next line starts a line."""
    try:
        with open(path, "r+b") as file:
            end = file.seek(0, os.SEEK_END)
            keep = end
            while keep > 0:
                start = max(0, keep - _BLOCK)
                file.seek(start)
                newline = file.read(keep - start).rfind(b"\n")
                if newline >= 0:
                    keep = start + newline + 1
                    break
                keep = start
            if keep < end:
                file.truncate(keep)
    except FileNotFoundError:
        pass


def read(path: Path, since: int = 0) -> tuple[list[Line], int]:
    """Whole lines from byte `since` on, and the byte from which to read next time. No file is no lines.

    Raises:
        FormatError: `since` is not the start of a line of this file.
    """
    since = max(since, 0)
    try:
        with open(path, "rb") as file:
            if since > 0:
                file.seek(since - 1)
                if file.read(1) != b"\n":
                    raise FormatError(f"{path} has no line that starts at byte {since}: it was altered; read from 0")
            data = file.read()
    except FileNotFoundError:
        if since > 0:
            raise FormatError(f"{path} does not exist, but was read up to byte {since} before") from None
        return [], 0
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error
    end = data.rfind(b"\n") + 1
    lines, offset = [], since
    for text in data[:end].split(b"\n")[:-1]:
        lines.append(Line(offset, text))
        offset += len(text) + 1
    return lines, since + end


def parse(path: Path, line: Line) -> dict[str, Any]:
    """The JSON object on a line.

    Raises:
        FormatError: naming the file and the place.
    """
    try:
        value = jsonable.loads(line.text)
    except ValueError as error:
        raise FormatError(
            f"{path} has a line at byte {line.offset} that is not JSON ({error}): it was altered"
        ) from error
    if not isinstance(value, dict):
        raise FormatError(f"{path} has a line at byte {line.offset} that is not a JSON object: it was altered")
    return value
