"""Checksums of artefacts: of one file, or of a folder by the listing of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from hooke.base.errors import DataError
from hooke.base.files import TEMPORARY_PREFIX, sha256_file
from hooke.runs.record import Artefact


class Checksums(NamedTuple):
    """SHA-256, total size, and for a folder the SHA-256 of each file by its path in the folder."""

    sha256: str
    bytes: int
    files: dict[str, str] | None


def of(path: Path) -> Checksums:
    r"""Checksums of a file or folder. A folder's is that of the lines `<sha256>  <path>\n`, sorted by path.

    Raises:
        DataError: the folder holds a link, which a checksum cannot vouch for.
    """
    if not path.is_dir():
        return Checksums(sha256_file(path), path.stat().st_size, None)
    found: dict[str, str] = {}
    n_bytes = 0
    for child in sorted(path.rglob("*"), key=lambda child: child.relative_to(path).as_posix()):
        if child.is_symlink():
            raise DataError(f"{child} is a link; an artefact holds plain files only")
        if child.is_file() and not child.name.startswith(TEMPORARY_PREFIX):
            name = child.relative_to(path).as_posix()
            if not name.isprintable():  # also catches bytes that are no UTF-8
                raise DataError(f"{name!r} in {path} is no printable file name; rename it")
            found[name] = sha256_file(child)
            n_bytes += child.stat().st_size
    listing = "".join(f"{sha256}  {name}\n" for name, sha256 in found.items())
    return Checksums(hashlib.sha256(listing.encode()).hexdigest(), n_bytes, found)


def problems(folder: Path, artefact: Artefact) -> list[str]:
    """What is wrong with an artefact on disk, one text for each problem; nothing when it is whole."""
    path = folder / artefact.name
    if not path.resolve().is_relative_to(folder.resolve()):
        return [f"{artefact.name} lies outside the run folder, through a link"]
    if not path.exists():
        return [f"{artefact.name} is missing"]
    if path.is_dir() != (artefact.files is not None):
        return [f"{artefact.name} is a {'folder' if path.is_dir() else 'file'}, which the record does not say"]
    if artefact.files is None and path.stat().st_size < artefact.bytes:
        return [f"{artefact.name} is truncated: {path.stat().st_size} of {artefact.bytes} bytes"]
    try:
        found = of(path)
    except (DataError, OSError) as error:
        return [f"{artefact.name} cannot be read: {error}"]
    if found.sha256 == artefact.sha256 and found.bytes == artefact.bytes:
        return []
    if found.files is None or artefact.files is None:
        return [f"{artefact.name} was altered: its checksum is wrong"]
    names = sorted(found.files.keys() | artefact.files.keys())
    changed = [name for name in names if found.files.get(name) != artefact.files.get(name)]
    return [f"{artefact.name} was altered: {', '.join(changed[:8]) or 'its listing'}"]
