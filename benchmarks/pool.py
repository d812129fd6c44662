"""How fast the pool delivers shuffled rows: from a store that is not in the page cache, and from memory.

Run: python benchmarks/pool.py [--json] [--folder WHERE]

1. A store of 262,144 x 2,048 fp16 (1.07 GB) in a temporary folder. Before every measurement its pages are dropped from
the page cache. The
   pool makes one whole pass; beside it, single rows at random places are read through a memory map, as a loader
   without a pool does, few enough (2,048) that the map stays cold. Rows per second of each, three turns, median of the
   ratios.
2. A ring of 262,144 x 512 fp32 fed by a source that costs nothing, batch 2,048, against the mixing buffer that is
common elsewhere:
   concatenate what is held with each new chunk, permute all once it is full, serve half.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from hooke.base.files import free_space_or_raise
from hooke.data.harvest import Activations
from hooke.data.packing import START, Cursor
from hooke.data.pool import Pool
from hooke.data.store import Store
from hooke.data.writing import StoreOptions, write_rows
from hooke.model.sites import Site

SITE = Site("resid_post", 0)
ROWS, WIDTH, BATCH = 262_144, 2048, 4096
TARGET = 10.0


class RandomRows:
    """A source of rows that costs next to nothing: windows of one block of random numbers."""

    def __init__(self, n_rows: int, width: int, dtype: torch.dtype, chunk: int = 2048) -> None:
        self.n_rows, self.width, self.dtype, self.chunk = n_rows, width, dtype, chunk
        self.block = torch.randn(16_384, width, generator=torch.Generator().manual_seed(0)).to(dtype)

    def describe(self) -> dict:
        return {
            "model": {"name": "random numbers"},
            "corpus": "random numbers",
            "sites": [{"site": str(SITE), "width": self.width}],
            "dtype": str(self.dtype).removeprefix("torch."),
            "n_tokens": self.n_rows,
            "context": 1,
            "batch": 2048,
        }

    def at(self, cursor: Cursor) -> Iterator[Activations]:
        for first in range(cursor.tokens, self.n_rows, self.chunk):
            number = torch.arange(first, min(first + self.chunk, self.n_rows))
            start = first % (len(self.block) - self.chunk + 1)
            rows = self.block[start : start + len(number)]
            yield Activations({SITE: rows}, number, number, number, Cursor(0, 0, first))

    def __iter__(self) -> Iterator[Activations]:
        return self.at(START)


def drop_from_cache(folder: Path) -> None:
    """Make the files of a folder cold: flush what is not on disk yet, then give up their pages."""
    for path in folder.glob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def pool_rate(store: Store) -> float:
    """Rows per second of one whole pass, the filling of the ring included."""
    start = time.perf_counter()
    n = sum(len(batch[SITE]) for batch in Pool(store, batch=BATCH, rows=65_536, dtype=None))
    assert n == store.n_rows
    return n / (time.perf_counter() - start)


def naive_rate(store: Store, n: int = 2048) -> float:
    """Rows per second of single rows at random places, read through memory maps into a batch."""
    maps = []
    for shard, rows in enumerate(store.shard_rows):
        path, extent = store.place(shard, SITE)
        maps.append(np.memmap(path, dtype=np.float16, mode="r", offset=extent.offset, shape=(rows, WIDTH)))
    rng = np.random.default_rng(time.perf_counter_ns())
    places = rng.choice(store.n_rows, n, replace=False)
    ends = np.cumsum(store.shard_rows)
    batch = np.empty((n, WIDTH), dtype=np.float16)
    start = time.perf_counter()
    for i, place in enumerate(places):
        shard = int(np.searchsorted(ends, place, side="right"))
        batch[i] = maps[shard][place - (ends[shard - 1] if shard else 0)]
    return n / (time.perf_counter() - start)


def cold_store(folder: str | None, turns: int = 3) -> dict:
    """Pool against single rows, both from a cold store."""
    free_space_or_raise(folder or tempfile.gettempdir(), 3 * ROWS * WIDTH)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "store"
        write_rows(path, RandomRows(ROWS, WIDTH, torch.float16), options=StoreOptions(dtype=torch.float16))
        store = Store.open(path, verify="none")
        ours, against = [], []
        for turn in range(turns):
            for which in ("ours", "naive") if turn % 2 else ("naive", "ours"):
                drop_from_cache(path)
                if which == "ours":
                    ours.append(pool_rate(store))
                else:
                    against.append(naive_rate(store))
    ratio = statistics.median(a / b for a, b in zip(ours, against, strict=True))
    name = f"rows/s of the pool from a cold store of {ROWS:,} x {WIDTH} fp16, against single rows through a memory map"
    return _row(name, statistics.median(ours), statistics.median(against), ratio)


def mixing_buffer(source: Iterator[torch.Tensor], rows: int, batch: int) -> Iterator[torch.Tensor]:
    """The usual mixing buffer: concatenate what is held with each new chunk; once full, permute it and serve half."""
    held: torch.Tensor | None = None
    for new in source:
        held = new if held is None else torch.cat([held, new])
        if len(held) >= rows:
            held = held[torch.randperm(len(held))]
            serve = max(1, len(held) // (2 * batch)) * batch
            yield from held[:serve].split(batch)
            held = held[serve:]


def in_memory(rows: int = 262_144, width: int = 512, batch: int = 2048, n_batches: int = 64) -> dict:
    """The ring against a mixing buffer, both warm; each first fills, then delivers the same number of rows."""
    source = RandomRows(10**9, width, torch.float32, chunk=8192)
    pool = Pool(source, batch=batch, rows=rows)
    buffer = mixing_buffer((chunk.rows[SITE] for chunk in source), rows, batch)
    next(pool), next(buffer)
    ours, against = [], []
    for _ in range(3):
        for stream, rates in ((pool, ours), (buffer, against)):
            start = time.perf_counter()
            for _ in range(n_batches):
                next(stream)
            rates.append(n_batches * batch / (time.perf_counter() - start))
    ratio = statistics.median(a / b for a, b in zip(ours, against, strict=True))
    name = f"rows/s of a live pool of {rows:,} x {width} fp32, against concatenate-and-permute"
    return _row(name, statistics.median(ours), statistics.median(against), ratio)


def _row(name: str, ours: float, against: float, ratio: float) -> dict:
    return {"name": name, "ours": ours, "against": against, "ratio": ratio, "target": TARGET, "holds": ratio >= TARGET}


def main(folder: str | None = None) -> list[dict]:
    """The rows of the benchmark: rows per second; larger ratios are better."""
    return [cold_store(folder), in_memory()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="the last line is one JSON object with the rows")
    parser.add_argument("--folder", help="where the temporary store goes; a real disk, not memory")
    options = parser.parse_args()
    results = main(options.folder)
    for row in results:
        print(f"{row['name']}: {row['ours']:,.0f} / {row['against']:,.0f}, ratio {row['ratio']:.1f}", end=" ")
        print(f"(at least {row['target']:.0f}: {'holds' if row['holds'] else 'does not hold'})")
    if options.json:
        print(json.dumps({"rows": results}))
