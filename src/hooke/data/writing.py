"""Writing a store: rows shuffled across documents through a bounded buffer, shard by shard, so that a kill costs at
most one buffer.

The unit is the buffer: a fixed number of consecutive rows of the harvest, permuted by a stream of the seed that
belongs to its number, cut into shards. The manifest records where each buffer began; a writer that was killed starts
the first unfinished buffer anew and so makes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from hooke.base.errors import ConfigError, DataError
from hooke.base.files import TEMPORARY_PREFIX, free_space_or_raise, sha256_file, write_json, write_tensors
from hooke.base.progress import SILENT, Sink
from hooke.base.seeds import numpy_generator
from hooke.data.harvest import DTYPES, Activations
from hooke.data.manifest import (
    CHECKED,
    MANIFEST,
    BufferRecord,
    FileRecord,
    Manifest,
    Place,
    ShardRecord,
    checked_entry,
    read_manifest,
    require_same_settings,
    write_manifest,
)
from hooke.data.packing import Cursor
from hooke.data.shards import COLUMNS, merge_moments, read_header, read_rows, write_shard

_SHARD_BYTES = 128 << 20
_COLUMN_BYTES = 4 * len(COLUMNS)


@dataclass(frozen=True)
class StoreOptions:
    """How a store is harvested and laid out.

    Args:
        context: tokens in a full row of the model's input, BOS included.
        batch: rows in a forward pass.
        dtype: float32, float16 or bfloat16.
        seed: of the shuffle.
        shard_rows: rows in a shard; `None` makes shards of about 128 MiB.
        shards_per_buffer: rows are mixed within this many shards, which are held in memory at once.
    """

    context: int = 128
    batch: int = 16
    dtype: torch.dtype = torch.float32
    seed: int = 0
    shard_rows: int | None = None
    shards_per_buffer: int = 4


DEFAULTS = StoreOptions()


@runtime_checkable
class Source(Protocol):
    """Where the rows of a store come from: a `Harvest`, or whatever can start at a cursor and describe itself."""

    def at(self, cursor: Cursor) -> Iterable[Activations]:
        """The rows from the batch at `cursor` on; the same each time, bit for bit."""

    def describe(self) -> dict[str, Any]:
        """The manifest's fields `model`, `corpus`, `sites`, `dtype`, `n_tokens`, `context`, `batch`."""


class _Buffer(NamedTuple):
    columns: dict[str, Tensor]
    rows: int
    start: Place
    end: Place


def write_rows(
    path: str | Path,
    source: Source,
    *,
    options: StoreOptions = DEFAULTS,
    resume: bool = True,
    sink: Sink = SILENT,
) -> None:
    """Write the rows of any source as a store; `store.write_store` does so for a harvest. Raises as it does."""
    folder = Path(path)
    manifest = _begin(folder, source, options, resume)
    if not manifest.complete:
        _clear_temporary(folder)
        for buffer in _buffers(source, manifest):
            manifest = _write_buffer(folder, manifest, buffer, sink)
        if not manifest.shards:
            raise DataError(f"nothing to store: corpus {manifest.corpus!r} gave no rows")
        _finish(folder, manifest)


def _begin(folder: Path, source: Source, options: StoreOptions, resume: bool) -> Manifest:
    described = source.describe()
    row_bytes = sum(site["width"] for site in described["sites"]) * DTYPES[described["dtype"]].itemsize + _COLUMN_BYTES
    shard_rows = options.shard_rows if options.shard_rows is not None else max(1, _SHARD_BYTES // row_bytes)
    if shard_rows < 1 or options.shards_per_buffer < 1:
        raise ConfigError(
            f"shard_rows={shard_rows}, shards_per_buffer={options.shards_per_buffer}: both must be at least 1"
        )
    layout = {"seed": options.seed, "shard_rows": shard_rows, "shards_per_buffer": options.shards_per_buffer}
    asked = Manifest.model_validate({**described, **layout})
    if not (folder / MANIFEST).exists():
        manifest = asked
    elif not resume:
        raise ConfigError(f"{folder} already holds a store; pass resume=True to go on with it, or another folder")
    else:
        manifest = read_manifest(folder)
        require_same_settings(manifest, asked, folder)
        if manifest.complete:
            return manifest
        whole = manifest.n_whole_shards
        rows = sum(shard.rows for shard in manifest.shards[:whole])
        manifest = manifest.model_copy(update={"shards": manifest.shards[:whole], "rows": rows})
    if asked.n_tokens is not None:
        free_space_or_raise(folder, (asked.n_tokens - manifest.rows) * row_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    return manifest


def _buffers(source: Source, manifest: Manifest) -> Iterator[_Buffer]:
    """Consecutive runs of rows, as many as a buffer holds, in memory that is used again for each."""
    capacity = manifest.shard_rows * manifest.shards_per_buffer
    if manifest.n_tokens is not None:
        capacity = min(capacity, manifest.n_tokens)
    dtype = DTYPES[manifest.dtype]
    columns = {record.site: torch.empty(capacity, record.width, dtype=dtype) for record in manifest.sites}
    columns |= {name: torch.empty(capacity, dtype=torch.int32) for name in COLUMNS}
    start, filled = manifest.next, 0
    end, skip = start, start.skip
    for chunk in source.at(Cursor(*start[:3])):
        offset, skip = skip, 0
        while offset < len(chunk):
            take = min(capacity - filled, len(chunk) - offset)
            _copy(columns, filled, chunk, offset, take)
            filled, offset = filled + take, offset + take
            end = Place(*chunk.cursor, offset)
            if filled == capacity:
                yield _Buffer(columns, filled, start, end)
                start, filled = end, 0
    if filled:
        yield _Buffer(columns, filled, start, end)


def _copy(columns: dict[str, Tensor], at: int, chunk: Activations, offset: int, take: int) -> None:
    for site, rows in chunk.rows.items():
        columns[str(site)][at : at + take] = rows[offset : offset + take]
    for name in COLUMNS:
        columns[name][at : at + take] = getattr(chunk, name)[offset : offset + take]


def _write_buffer(folder: Path, manifest: Manifest, buffer: _Buffer, sink: Sink) -> Manifest:
    """Shuffle a buffer, write its shards, and only then name it whole in the manifest."""
    order = torch.from_numpy(numpy_generator(manifest.seed, "store", len(manifest.buffers)).permutation(buffer.rows))
    sites = [record.site for record in manifest.sites]
    first = len(manifest.shards)
    parts = order.split(manifest.shard_rows)
    for i, part in enumerate(parts):
        tensors = {name: column[part] for name, column in buffer.columns.items()}
        record = write_shard(folder, first + i, tensors, sites)
        update: dict[str, Any] = {"shards": [*manifest.shards, record], "rows": manifest.rows + record.rows}
        if i == len(parts) - 1:
            whole = BufferRecord(start=buffer.start, rows=buffer.rows, shards=len(parts))
            update |= {"buffers": [*manifest.buffers, whole], "next": buffer.end}
        manifest = manifest.model_copy(update=update)
        write_manifest(folder, manifest)
        sink.progress("store", manifest.rows, manifest.n_tokens, "rows")
        sink.artefact(folder / record.file, "shard")
    return manifest


def _finish(folder: Path, manifest: Manifest) -> None:
    """Join the shards' statistics, and name the store complete."""
    tensors = {}
    for record in manifest.sites:
        rows, mean, m2 = merge_moments(_shard_moments(folder, shard, record.site) for shard in manifest.shards)
        tensors[f"mean:{record.site}"], tensors[f"std:{record.site}"] = mean, (m2 / rows).sqrt()
    path = folder / "statistics.safetensors"
    write_tensors(path, tensors)
    statistics = FileRecord(file=path.name, bytes=path.stat().st_size, sha256=sha256_file(path))
    write_json(folder / CHECKED, {shard.file: checked_entry(folder, shard) for shard in manifest.shards})
    write_manifest(folder, manifest.model_copy(update={"complete": True, "statistics": statistics}))


def _shard_moments(folder: Path, shard: ShardRecord, site: str) -> tuple[int, Tensor, Tensor]:
    extents = read_header(folder / shard.file)
    mean, m2 = (extents[f"{which}:{site}"] for which in ("mean", "m2"))
    path = folder / shard.file
    return shard.rows, read_rows(path, mean, 0, mean.shape[0]), read_rows(path, m2, 0, m2.shape[0])


def _clear_temporary(folder: Path) -> None:
    """Remove what a killed writer left half written."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        path.unlink(missing_ok=True)
