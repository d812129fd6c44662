"""The store: activations on disk as checksummed safetensors shards, with a manifest that says which model made them.

`Store.open` checks before anything is read: the manifest, every shard's header and size, and the checksum of each
shard that changed since it was last checked. `write_store` harvests a corpus into a new store, or goes on with one
that was interrupted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import DataError, FormatError, SiteError, nearest
from hooke.base.files import read_json, read_tensors, sha256_file, write_json
from hooke.base.progress import SILENT, Sink
from hooke.data.corpora import Corpus
from hooke.data.harvest import DTYPES, Activations, harvest
from hooke.data.manifest import (
    CHECKED,
    MANIFEST,
    FileRecord,
    Manifest,
    ShardRecord,
    checked_entry,
    read_manifest,
    require_same_model,
)
from hooke.data.shards import COLUMNS, Extent, read_header, read_rows
from hooke.data.writing import DEFAULTS, StoreOptions, write_rows
from hooke.model.model import Model
from hooke.model.sites import Site

Verify = Literal["changed", "all", "none"]


def write_store(
    path: str | Path,
    model: Model,
    corpus: Corpus,
    sites: str | Site | Sequence[str | Site],
    *,
    n_tokens: int | None = None,
    options: StoreOptions = DEFAULTS,
    resume: bool = True,
    sink: Sink = SILENT,
) -> Store:
    """Harvest a corpus into a store on disk.

    Args:
        path: the store's folder; made where it does not exist.
        model: the model to look into.
        corpus: the text.
        sites: one site, several, or patterns.
        n_tokens: rows to write; `None` goes through the corpus once.
        options: context, batch, dtype, seed and layout.
        resume: go on with what an earlier call with the same settings left at `path`; the result has the same bytes as
            one that was never interrupted. A finished store is opened as it is. `False` refuses a folder that has a
            store.
        sink: hears progress, and each shard as an artefact.

    Raises:
        DataError: a full disk, an empty corpus, a NaN, another model's store at `path`. Whole buffers stay; nothing is
            half written.
        ConfigError: other settings than the store that was begun at `path`.
        SiteError: a site that the model does not have.
    """
    source = harvest(
        model,
        corpus,
        sites,
        n_tokens=n_tokens,
        context=options.context,
        batch=options.batch,
        dtype=options.dtype,
        sink=sink,
    )
    write_rows(path, source, options=options, resume=resume, sink=sink)
    return Store.open(path, model)


class Store:
    """Activations on disk, opened and checked; made by `Store.open`.

    `sites` are those chosen, `n_rows` the rows of each, `dtype` that of the rows, `manifest` the whole description.
    """

    def __init__(
        self, path: Path, manifest: Manifest, extents: list[dict[str, Extent]], sites: tuple[Site, ...]
    ) -> None:
        self.path, self.manifest, self.sites = path, manifest, sites
        self._extents = extents

    @classmethod
    def open(
        cls,
        path: str | Path,
        model: Model | None = None,
        *,
        sites: str | Site | Sequence[str | Site] | None = None,
        verify: Verify = "changed",
    ) -> Store:
        """Open a store and check it.

        Args:
            path: its folder.
            model: the model that its rows are to be used with; `None` does not compare.
            sites: use only these; `None` takes all.
            verify: which checksums to compute: of shards that "changed" since they were last found right (by size and
                time of the file), of "all", or of "none". Sizes and headers are always checked.

        Raises:
            FormatError: no manifest, a malformed one, or a shard that is missing, truncated or altered; names the
                file.
            DataError: the store was made by another model, or is not finished.
            SiteError: a site that it does not hold.
        """
        path = Path(path)
        manifest = read_manifest(path)
        if model is not None:
            require_same_model(manifest.model, model.identity, path)
        if not manifest.complete:
            raise DataError(
                f"{path} is not finished: {manifest.rows} of {manifest.n_tokens or 'all'} rows are written; "
                "run the same write again, it goes on where it stopped"
            )
        extents = [_checked_header(path, shard, manifest) for shard in manifest.shards]
        if verify != "none":
            _verify(path, manifest, trust_unchanged=verify == "changed")
        return cls(path, manifest, extents, _sites(path, manifest, sites))

    @property
    def n_rows(self) -> int:
        """Rows of each site."""
        return self.manifest.rows

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return DTYPES[self.manifest.dtype]

    @property
    def widths(self) -> dict[Site, int]:
        """Width of a row at each chosen site."""
        widths = {record.site: record.width for record in self.manifest.sites}
        return {site: widths[str(site)] for site in self.sites}

    @property
    def shard_rows(self) -> list[int]:
        """Rows of each shard."""
        return [shard.rows for shard in self.manifest.shards]

    def place(self, shard: int, name: str | Site) -> tuple[Path, Extent]:
        """File and extent of one tensor of one shard."""
        return self.path / self.manifest.shards[shard].file, self._extents[shard][str(name)]

    def read(self, shard: int, start: int = 0, stop: int | None = None) -> Activations:
        """Rows `start` to `stop` of one shard, in their stored (shuffled) order."""
        stop = self.shard_rows[shard] if stop is None else stop
        if not 0 <= start < stop <= self.shard_rows[shard]:
            raise DataError(f"rows {start} to {stop} of shard {shard} do not exist; it has {self.shard_rows[shard]}")
        rows = {site: read_rows(*self.place(shard, site), start, stop) for site in self.sites}
        token_id, doc, pos = (read_rows(*self.place(shard, name), start, stop) for name in COLUMNS)
        return Activations(rows, token_id, doc, pos)

    def mean(self, site: str | Site) -> Float[Tensor, " d"]:
        """Mean row at a site, over the whole store, in float64."""
        return self._statistics(site, "mean")

    def std(self, site: str | Site) -> Float[Tensor, " d"]:
        """Standard deviation of each coordinate at a site (divided by n), in float64."""
        return self._statistics(site, "std")

    def _statistics(self, site: str | Site, which: str) -> Tensor:
        (found,) = _sites(self.path, self.manifest, site)
        record = self.manifest.statistics
        if record is None:
            raise FormatError(f"{self.path / MANIFEST} names no statistics; restore or remake the store")
        tensors, _ = read_tensors(self.path / record.file, sha256=record.sha256)
        return tensors[f"{which}:{found}"]

    def __repr__(self) -> str:
        sites = ", ".join(str(site) for site in self.sites)
        size = f"{self.n_rows:,} rows of {sites}, {self.manifest.dtype}, {len(self._extents)} shards"
        return f"Store({str(self.path)!r}: {size})"


def _sites(path: Path, manifest: Manifest, asked: str | Site | Sequence[str | Site] | None) -> tuple[Site, ...]:
    held = {record.site: Site.parse(record.site) for record in manifest.sites}
    if asked is None:
        return tuple(held.values())
    names = [str(Site.parse(str(site))) for site in ([asked] if isinstance(asked, str | Site) else asked)]
    for name in names:
        if name not in held:
            raise SiteError(f"{path} holds no site '{name}'{nearest(name, held)}; it holds {', '.join(held)}")
    return tuple(held[name] for name in dict.fromkeys(names))


def _checked_header(folder: Path, shard: ShardRecord, manifest: Manifest) -> dict[str, Extent]:
    path = folder / shard.file
    extents = read_header(path)
    if path.stat().st_size != shard.bytes:
        raise FormatError(
            f"{path} has {path.stat().st_size} bytes, the manifest says {shard.bytes}; restore or remake it"
        )
    expected = {record.site: ((shard.rows, record.width), DTYPES[manifest.dtype]) for record in manifest.sites}
    expected |= {name: ((shard.rows,), torch.int32) for name in COLUMNS}
    for name, (shape, dtype) in expected.items():
        found = extents.get(name)
        if found is None or (found.shape, found.dtype) != (shape, dtype):
            there = "is missing" if found is None else f"is {found.dtype} of shape {list(found.shape)}"
            raise FormatError(
                f"{path}: tensor {name!r} {there}, expected {dtype} of shape {list(shape)}; remake the store"
            )
    return extents


def _verify(folder: Path, manifest: Manifest, *, trust_unchanged: bool) -> None:
    known: dict[str, list] = {}
    if trust_unchanged:
        with contextlib.suppress(FormatError):
            content = read_json(folder / CHECKED)
            known = content if isinstance(content, dict) else {}
    records: list[FileRecord] = list(manifest.shards)
    fresh = {record.file: checked_entry(folder, record) for record in records}
    for record in records:
        if known.get(record.file) != fresh[record.file] and sha256_file(folder / record.file) != record.sha256:
            raise FormatError(
                f"{folder / record.file} was altered: its bytes do not have the checksum in the manifest; "
                "restore it, or delete the store and write it again"
            )
    if known != fresh:
        with contextlib.suppress(OSError, DataError):  # a store on a read-only disk is checked each time
            write_json(folder / CHECKED, fresh)
