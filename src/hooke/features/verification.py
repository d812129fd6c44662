"""Check the files of an index against their checksums; files that have not changed since the last check once only."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hooke.base.errors import FormatError
from hooke.base.files import read_json, sha256_file, write_json
from hooke.base.progress import SILENT, Sink


def verify_files(
    folder: Path, files: Mapping[str, Mapping[str, Any]], *, remember: bool = False, sink: Sink = SILENT
) -> None:
    """Compare files with their checksums.

    Args:
        folder: where the files lie.
        files: `{"bytes", "sha256"}` of each file by its name, as the manifest says.
        remember: trust a file whose size and time of change are those that an earlier call with `remember` noted,
            so that only the first check reads everything. The note lies beside the folder, which itself is not touched;
            where it cannot be written, the next check reads everything again.
        sink: hears the progress, in megabytes (10^6 bytes).

    Raises:
        FormatError: names the first file that is missing or was altered.
    """
    note = note_of(folder)
    known = _read(note) if remember else {}
    found: dict[str, list[Any]] = {}
    total, done = sum(int(facts["bytes"]) for facts in files.values()), 0
    for name, facts in files.items():
        path = folder / name
        try:
            before = path.stat()
            stamp = [before.st_size, before.st_mtime_ns, facts["sha256"]]
            altered = known.get(name) != stamp and sha256_file(path) != facts["sha256"]
        except OSError as error:
            raise FormatError(f"{path} cannot be read: {error.strerror or error}; build the index again") from error
        if altered:
            raise FormatError(f"{path} was altered since it was written; build the index again")
        found[name] = stamp
        done += before.st_size
        sink.progress("check the index", done // 1_000_000, total // 1_000_000, "MB")
    if remember and found != known:
        try:
            write_json(note, found)
        except OSError:  # a folder that others own
            return


def note_of(folder: Path) -> Path:
    """Where the last check of a folder is noted: beside it, so that the folder stays as it was written."""
    folder = folder.absolute()
    return folder.with_name(f".{folder.name}.verified.json")


def _read(note: Path) -> dict[str, Any]:
    try:
        known = read_json(note)
    except FormatError:
        return {}
    return known if isinstance(known, dict) else {}
