"""Feeds: how a pool gets rows from a harvest, a store, or any iterable, and finds its place again after a resume."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError
from hooke.base.seeds import numpy_generator
from hooke.data.harvest import Activations, Harvest
from hooke.data.packing import Cursor
from hooke.data.shards import read_into
from hooke.data.store import Store
from hooke.model.sites import Site

Chunk = dict[Site, Float[Tensor, "row d"]]

_THREADS = 8
_BLOCK_BYTES = 1 << 20  # of all sites together; large enough that a disk spends its time on reading


@runtime_checkable
class Feed(Protocol):
    """An iterator of chunks of rows that knows where it is."""

    position: tuple[int, ...]  # of the chunk that was given last

    @property
    def widths(self) -> dict[Site, int]:
        """Width of each site's rows; empty where it is not known before the first chunk."""

    def seek(self, position: tuple[int, ...]) -> None:
        """Go to a position: the next chunk is the one that was given there."""

    def __next__(self) -> Chunk:
        """The next chunk. Its memory may be used again once the chunk after it is asked for."""


def feed_of(source: Harvest | Store | Iterable[Activations], seed: int, epochs: int | None, read_ahead: int) -> Feed:
    """The feed for a source; `read_ahead` is how many rows of a store are read before they are needed.

    Raises:
        ConfigError: for more than one epoch of a source that is not a store.
    """
    if isinstance(source, Store):
        return StoreFeed(source, seed, epochs, read_ahead)
    if epochs != 1:
        raise ConfigError("a live source is gone through once; pass corpus.repeated() to the harvest for more epochs")
    return HarvestFeed(source) if isinstance(source, Harvest) else ReplayFeed(source)


class HarvestFeed:
    """Rows straight from the model; goes back to a batch by its cursor."""

    def __init__(self, harvest: Harvest) -> None:
        self._harvest = harvest
        self.position: tuple[int, ...] = Cursor()

    @property
    def widths(self) -> dict[Site, int]:
        return self._harvest.widths

    def seek(self, position: tuple[int, ...]) -> None:
        self._harvest = self._harvest.at(Cursor(*position))

    def __next__(self) -> Chunk:
        activations = next(self._harvest)
        self.position = activations.cursor
        return activations.rows


class ReplayFeed:
    """Rows of any iterable of `Activations`; finds its place by going through it again from the start."""

    def __init__(self, source: Iterable[Activations]) -> None:
        self._source = source
        self._iterator = iter(source)
        self.position: tuple[int, ...] = (-1,)

    @property
    def widths(self) -> dict[Site, int]:
        return {}

    def seek(self, position: tuple[int, ...]) -> None:
        if self.position != (-1,):
            self._iterator = iter(self._source)
        self.position = (position[0] - 1,)
        next(islice(self._iterator, position[0], position[0]), None)

    def __next__(self) -> Chunk:
        activations = next(self._iterator)
        self.position = (self.position[0] + 1,)
        return activations.rows


class _Block(NamedTuple):
    shard: int
    start: int
    stop: int


class StoreFeed:
    """Blocks of a store in random order, read ahead by threads into memory that is used again.

    A block is some hundred consecutive rows, which were shuffled when they were written. The order of the blocks of
    each epoch is a stream of the seed; blocks arrive in that order whatever thread is first.
    """

    def __init__(self, store: Store, seed: int, epochs: int | None, read_ahead: int) -> None:
        self._store, self._seed, self._epochs = store, seed, epochs
        row_bytes = sum(width * store.dtype.itemsize for width in store.widths.values())
        block_rows = max(1, min(_BLOCK_BYTES // row_bytes, max(store.shard_rows)))
        self._blocks = [
            _Block(shard, start, min(start + block_rows, rows))
            for shard, rows in enumerate(store.shard_rows)
            for start in range(0, rows, block_rows)
        ]
        self.position: tuple[int, ...] = (0, 0)
        self._next = (0, 0)  # epoch and number of the block to be asked for next
        self._order: list[int] = []
        n_slots = min(max(_THREADS, -(-read_ahead // block_rows)) + 1, len(self._blocks) + 1)
        self._free: deque[dict[Site, Tensor]] = deque(
            {site: torch.empty(block_rows, width, dtype=store.dtype) for site, width in store.widths.items()}
            for _ in range(n_slots)
        )
        self._waiting: deque[tuple[tuple[int, int], dict[Site, Tensor], Future[Chunk]]] = deque()
        self._given: dict[Site, Tensor] | None = None
        self._threads: ThreadPoolExecutor | None = None

    @property
    def widths(self) -> dict[Site, int]:
        return self._store.widths

    def seek(self, position: tuple[int, ...]) -> None:
        self._next = (position[0], position[1])
        self._order = []
        while self._waiting:
            _, slot, future = self._waiting.popleft()
            future.exception()  # wait: its thread still writes there
            self._free.append(slot)

    def __next__(self) -> Chunk:
        if self._given is not None:
            self._free.append(self._given)
            self._given = None
        self._ask()
        if not self._waiting:
            self._close()
            raise StopIteration
        self.position, self._given, future = self._waiting.popleft()
        return future.result()

    def _ask(self) -> None:
        """Ask for blocks as long as there is memory to read them into."""
        while self._free and (self._epochs is None or self._next[0] < self._epochs):
            epoch, number = self._next
            if not self._order:
                self._order = numpy_generator(self._seed, "blocks", epoch).permutation(len(self._blocks)).tolist()
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="hooke-pool")
            slot = self._free.popleft()
            block = self._blocks[self._order[number]]
            self._waiting.append(((epoch, number), slot, self._threads.submit(_read, self._store, block, slot)))
            self._next = (epoch, number + 1)
            if number + 1 == len(self._blocks):
                self._next, self._order = (epoch + 1, 0), []

    def _close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(wait=False)
            self._threads = None


def _read(store: Store, block: _Block, slot: dict[Site, Tensor]) -> Chunk:
    rows = block.stop - block.start
    chunk: Chunk = {}
    for site, memory in slot.items():
        path, extent = store.place(block.shard, site)
        _read_rows_into(path, extent.offset, block.start, memory[:rows])
        chunk[site] = memory[:rows]
    return chunk


def _read_rows_into(path: Path, offset: int, start: int, out: Tensor) -> None:
    raw = out.view(torch.uint8)
    read_into(path, offset + start * raw.shape[1], memoryview(raw.numpy()).cast("B"))
