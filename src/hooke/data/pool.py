"""The pool: shuffled batches from a harvest or a store, through a ring of rows that is refilled in place.

The ring holds `rows` rows. A batch takes rows at random places, and the next rows of the source go into the places
that became free: nothing is concatenated, permuted as a whole, or allocated beyond the batch itself. Every row of the
source comes out exactly once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, FormatError, ShapeError
from hooke.base.seeds import numpy_generator
from hooke.data.feeds import Feed, feed_of
from hooke.data.harvest import Activations, Harvest
from hooke.data.store import Store
from hooke.model.sites import Site

Batch = dict[Site, Float[Tensor, "batch d"]]

_STATE_VERSION = 1


class _Counters(NamedTuple):
    """The whole numbers of a pool's state."""

    version: int
    batch: int
    rows: int
    seed: int
    batches: int  # given out so far
    filled: int  # rows in the ring
    offset: int  # rows of the chunk at `position` that went into the ring
    ended: int  # whether the source has no more


class Pool(Iterator[Batch]):
    """An iterator of shuffled batches `{site: [batch, d]}`.

    Args:
        source: a `Harvest` (live), a `Store`, or any iterable of `Activations`.
        batch: rows in a batch; only the last one of the source may have fewer.
        rows: rows in the ring. Memory is this many rows of every site, in the source's dtype, whatever the length of
            the source.
        seed: of the order.
        epochs: passes over a store, each in a new order of its blocks; `None` goes on for ever. A live source has one.
        dtype: of the batches; `None` leaves that of the source.

    Exact resume: `state_dict()` holds the ring, the place in the source and the counters, all as tensors, so it fits
    one safetensors file; `load_state_dict` on a pool made with the same arguments goes on with the same batches, bit
    for bit. A harvest and a store go to their place at once; another iterable is read again up to it.

    Raises:
        ConfigError: for sizes that make no sense.
        DataError: while iterating, as the source does; a source without any row.
    """

    def __init__(
        self,
        source: Harvest | Store | Iterable[Activations],
        *,
        batch: int = 2048,
        rows: int = 65_536,
        seed: int = 0,
        epochs: int | None = 1,
        dtype: torch.dtype | None = torch.float32,
    ) -> None:
        if batch < 1 or rows < batch:
            raise ConfigError(f"batch={batch}, rows={rows}: the ring must hold at least one batch of at least one row")
        self.batch, self.rows, self.seed, self.dtype = batch, rows, seed, dtype
        self._feed: Feed = feed_of(source, seed, epochs, read_ahead=2 * batch)
        self._ring: dict[Site, Tensor] = {}
        self._chunk: Mapping[Site, Tensor] = {}
        self._offset = self._left = 0
        self._batches = self._filled = 0
        self._ended = False

    def __next__(self) -> Batch:
        if self._batches == 0 and self._filled == 0 and not self._ended:
            self._fill()
        if self._filled == 0:
            raise StopIteration
        size = min(self.batch, self._filled)
        random = numpy_generator(self.seed, "pool", self._batches)
        slots = random.choice(self._filled, size, replace=False)
        given = {site: _take(ring, slots).to(self.dtype or ring.dtype) for site, ring in self._ring.items()}
        self._refill(slots)
        self._batches += 1
        return given

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of the state, every value a tensor: save it with the trainer's checkpoint, between two batches."""
        counters = _Counters(
            _STATE_VERSION,
            self.batch,
            self.rows,
            self.seed,
            self._batches,
            self._filled,
            self._offset,
            int(self._ended),
        )
        state = {f"ring:{site}": ring[: self._filled].clone() for site, ring in self._ring.items()}
        state["counters"] = torch.tensor(counters, dtype=torch.int64)
        state["position"] = torch.tensor(self._feed.position, dtype=torch.int64)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on where the pool was whose state this is.

        Raises:
            FormatError: for something that is no state of a pool.
            ConfigError: where the pool was made with other sizes or another seed.
            ShapeError: where its sites or widths differ.
        """
        try:
            counters = _Counters(*(int(n) for n in state["counters"]))
            position = tuple(int(n) for n in state["position"])
        except (KeyError, TypeError) as error:
            raise FormatError(f"this is no state of a pool: {error}; pass what state_dict() gave") from error
        if counters.version != _STATE_VERSION:
            raise FormatError(f"this state of a pool has version {counters.version}; expected {_STATE_VERSION}")
        for name in ("batch", "rows", "seed"):
            if getattr(counters, name) != getattr(self, name):
                raise ConfigError(
                    f"the saved pool had {name}={getattr(counters, name)}, this one has {getattr(self, name)}; "
                    "make it the same"
                )
        saved = {Site.parse(key[5:]): tensor for key, tensor in state.items() if key.startswith("ring:")}
        known = self._feed.widths
        if known and saved and {site: ring.shape[1] for site, ring in saved.items()} != known:
            raise ShapeError(f"the saved pool held {_names(saved)}, this source gives {_names(known)}")
        self._ring = {site: rows.new_empty(self.rows, rows.shape[1]) for site, rows in saved.items()}
        for site, rows in saved.items():
            self._ring[site][: counters.filled] = rows
        self._batches, self._filled, self._ended = counters.batches, counters.filled, bool(counters.ended)
        self._chunk, self._offset, self._left = {}, 0, 0
        if saved and not self._ended:
            self._feed.seek(position)
            self._next_chunk()
            self._offset, self._left = counters.offset, self._left - counters.offset

    def _fill(self) -> None:
        """Fill the ring from its beginning; it is made when the first chunk says what its rows are."""
        while self._filled < self.rows and self._available():
            take = min(self.rows - self._filled, self._left)
            for site, rows in self._chunk.items():
                if site not in self._ring:
                    self._ring[site] = rows.new_empty(self.rows, rows.shape[1])
                here = slice(self._filled, self._filled + take)
                _put(self._ring[site], here, rows[self._offset : self._offset + take])
            self._advance(take)
            self._filled += take
        if self._filled == 0:
            raise DataError("the source of the pool gave no rows; check the corpus, or n_tokens")

    def _refill(self, slots: np.ndarray) -> None:
        """Put the next rows of the source where rows were taken; where there are no more, close the gaps."""
        done = 0
        while done < len(slots) and self._available():
            take = min(len(slots) - done, self._left)
            for site, rows in self._chunk.items():
                _put(self._ring[site], slots[done : done + take], rows[self._offset : self._offset + take])
            self._advance(take)
            done += take
        if done < len(slots):
            self._close_gaps(slots[done:])

    def _close_gaps(self, empty: np.ndarray) -> None:
        left = self._filled - len(empty)
        holes = np.sort(empty[empty < left])
        movers = np.setdiff1d(np.arange(left, self._filled), empty, assume_unique=True)
        for ring in self._ring.values():
            _put(ring, holes, _take(ring, movers))
        self._filled = left

    def _advance(self, rows: int) -> None:
        self._offset, self._left = self._offset + rows, self._left - rows

    def _available(self) -> bool:
        """Whether there is a row to take; fetches the next chunk where this one is used up."""
        while self._left == 0 and not self._ended:
            self._next_chunk()
        return self._left > 0

    def _next_chunk(self) -> None:
        chunk = next(self._feed, None)
        if chunk is None:
            self._ended, self._chunk, self._left = True, {}, 0
            return
        self._chunk, self._offset = chunk, 0
        self._left = len(next(iter(chunk.values())))


def _take(ring: Float[Tensor, "row d"], slots: np.ndarray) -> Float[Tensor, "batch d"]:
    """A copy of rows. NumPy copies row by row in one thread, which is faster here than torch's parallel gather: a
    batch is too small for threads to pay, and where the cores are busy they wait for each other.
    """
    out = ring.new_empty(len(slots), ring.shape[1])
    np.take(_bits(ring), slots, axis=0, out=_bits(out), mode="clip")  # "clip" spares a buffer; every slot is in range
    return out


def _put(ring: Float[Tensor, "row d"], slots: np.ndarray | slice, rows: Float[Tensor, "batch d"]) -> None:
    _bits(ring)[slots] = _bits(rows)


def _bits(tensor: Tensor) -> np.ndarray:
    """The same memory as integers: NumPy has no bfloat16, and copying needs no numbers."""
    return tensor.view(torch.int32 if tensor.element_size() == 4 else torch.int16).numpy()


def _names(sites: Iterable[Site]) -> str:
    return ", ".join(str(site) for site in sites)
