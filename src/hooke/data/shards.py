"""Shards: safetensors files of rows, written with their own statistics and read in blocks at known offsets, without
mapping them.

Reading goes through `pread`, which waits for the disk without holding the interpreter, so that a few threads keep it
busy; a memory map would fault page by page.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import DataError, FormatError
from hooke.base.files import sha256_file, write_tensors
from hooke.data.manifest import ShardRecord

COLUMNS = ("token_id", "doc", "pos")
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
}
_LARGEST_HEADER = 100_000_000  # the limit that safetensors itself sets
_STATISTICS_ROWS = 8192


class Extent(NamedTuple):
    """Where a tensor lies in its file."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype


def write_shard(folder: Path, index: int, tensors: Mapping[str, Tensor], sites: Iterable[str]) -> ShardRecord:
    """Write one shard atomically, with the mean and the summed squared deviation of each site's rows.

    Raises:
        DataError: for a NaN or infinity (names document and position), or a full disk.
    """
    path = folder / f"shard-{index:05d}.safetensors"
    content = dict(tensors)
    for site in sites:
        mean, m2 = _moments(tensors[site])
        if not bool(torch.isfinite(m2).all()):
            _refuse_not_finite(site, tensors)
        content[f"mean:{site}"], content[f"m2:{site}"] = mean, m2
    about = json.dumps({"format": "hooke-store-shard", "version": 1, "index": index})
    write_tensors(path, content, {"hooke": about})  # one entry: safetensors does not keep the order of several
    rows = len(tensors["token_id"])
    return ShardRecord(file=path.name, bytes=path.stat().st_size, sha256=sha256_file(path), rows=rows)


def read_header(path: Path) -> dict[str, Extent]:
    """The tensors of a safetensors file and where they lie.

    Raises:
        FormatError: where the file is missing, truncated, or no safetensors file.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(8)
            (length,) = struct.unpack("<Q", head) if len(head) == 8 else (0,)
            if not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                raise FormatError(f"{path} is no safetensors file, or cut off within its header; restore or remake it")
            header = json.loads(file.read(length))
        extents, end = _extents(header, base=8 + length)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} cannot be read ({error}); restore or remake it") from error
    if end != size:
        raise FormatError(f"{path} has {size} bytes, its header says {end}: truncated or altered; restore or remake it")
    return extents


def read_into(path: Path, offset: int, out: memoryview) -> None:
    """Fill `out` with the bytes of a file from `offset` on.

    Raises:
        FormatError: where the file ends before that, or cannot be read.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}") from error
    try:
        done = 0
        while done < len(out):
            got = os.preadv(descriptor, [out[done:]], offset + done)
            if got == 0:
                raise FormatError(f"{path} ended at byte {offset + done} while it was read; was it replaced?")
            done += got
    finally:
        os.close(descriptor)


def read_rows(path: Path, extent: Extent, start: int, stop: int) -> Tensor:
    """Rows `start` to `stop` of one tensor of a shard.

    Raises:
        FormatError: as `read_into`.
    """
    shape = (stop - start, *extent.shape[1:])
    raw = torch.empty(_n_bytes(shape, extent.dtype), dtype=torch.uint8)
    row = _n_bytes(extent.shape[1:], extent.dtype)
    read_into(path, extent.offset + start * row, memoryview(raw.numpy()))
    return raw.view(extent.dtype).view(shape)


def merge_moments(parts: Iterable[tuple[int, Tensor, Tensor]]) -> tuple[int, Tensor, Tensor]:
    """Join (rows, mean, summed squared deviation) of disjoint parts, in the order given (Chan, Golub, LeVeque 1979)."""
    total, mean, m2 = 0, torch.zeros(()), torch.zeros(())
    for rows, part_mean, part_m2 in parts:
        if total == 0:
            total, mean, m2 = rows, part_mean.clone(), part_m2.clone()
            continue
        delta = part_mean - mean
        both = total + rows
        mean += delta * (rows / both)
        m2 += part_m2 + delta.square() * (total * rows / both)
        total = both
    return total, mean, m2


def _moments(rows: Float[Tensor, "row d"]) -> tuple[Float[Tensor, " d"], Float[Tensor, " d"]]:
    parts = []
    for part in rows.split(_STATISTICS_ROWS):
        exact = part.double()
        mean = exact.mean(dim=0)
        parts.append((len(part), mean, (exact - mean).square_().sum(dim=0)))
    _, mean, m2 = merge_moments(parts)
    return mean, m2


def _refuse_not_finite(site: str, tensors: Mapping[str, Tensor]) -> None:
    first = int((~torch.isfinite(tensors[site])).any(dim=1).nonzero()[0])
    raise DataError(
        f"site '{site}' is NaN or infinite at document {int(tensors['doc'][first])}, "
        f"token {int(tensors['pos'][first])}; nothing of this shard was written"
    )


def _extents(header: dict, base: int) -> tuple[dict[str, Extent], int]:
    extents, end = {}, base
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        shape, dtype = tuple(entry["shape"]), _DTYPES[entry["dtype"]]
        if not all(isinstance(n, int) and n >= 0 for n in (first, last, *shape)):
            raise ValueError(f"tensor {name!r} has an impossible shape or place")
        if last - first != _n_bytes(shape, dtype):
            raise ValueError(f"tensor {name!r} does not fit its place")
        extents[name] = Extent(base + first, shape, dtype)
        end = max(end, base + last)
    return extents, end


def _n_bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    size = dtype.itemsize
    for n in shape:
        size *= n
    return size
