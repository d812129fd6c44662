"""Sort more (latent, value, token) entries than fit in memory: by latent, then by descending value, then by token.

Sorted runs go to disk with every 1024th key kept in memory. The kept keys give splitters that cut the key range into
buckets of bounded size; each bucket reads its piece of every run, merges the pieces, and is handed on. The result
does not depend on the memory budget: ties keep the order in which the entries came.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hooke.base.errors import ConfigError

BYTES_PER_ENTRY = 40  # key 8, token 4, order 8, the gathered copies 12, and the waiting arrays 8 more on average
_STRIDE = 1024  # sampled keys take 1/128 byte an entry; a bucket may exceed its share by one stride for each run
_TOP_BIT = np.uint32(0x8000_0000)


class Entries(NamedTuple):
    """Parallel columns: the latent, its activation, and the number of the token where it fired."""

    latent: np.ndarray
    value: np.ndarray
    at: np.ndarray


class _Run(NamedTuple):
    keys: Path
    at: Path
    size: int
    sample: np.ndarray  # keys 0, _STRIDE, 2 * _STRIDE, ...


def pack_keys(latent: np.ndarray, value: np.ndarray) -> np.ndarray:
    """One unsigned 64-bit key an entry, whose ascending order is latent ascending, then value descending.

    Example:
        >>> keys = pack_keys(np.array([1, 0, 0]), np.array([5.0, -2.0, 3.0], dtype=np.float32))
        >>> np.argsort(keys).tolist()
        [2, 1, 0]
    """
    bits = np.ascontiguousarray(value, dtype=np.float32).view(np.uint32)
    ascending = np.where(bits & _TOP_BIT, ~bits, bits | _TOP_BIT)  # the order of floats as the order of integers
    return (latent.astype(np.uint64) << np.uint64(32)) | (~ascending).astype(np.uint64)


def unpack_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The latents and the values of packed keys, bit for bit."""
    ascending = ~(keys & np.uint64(0xFFFF_FFFF)).astype(np.uint32)
    bits = np.where(ascending & _TOP_BIT, ascending ^ _TOP_BIT, ~ascending)
    return (keys >> np.uint64(32)).astype(np.int32), bits.view(np.float32)


class ExternalSort:
    """Collect entries with `add`, then read them sorted, once, from `merged`.

    Args:
        folder: where the runs are kept; the caller removes it.
        memory_bytes: budget for the buffers of either phase.
    """

    def __init__(self, folder: Path, memory_bytes: int) -> None:
        self.capacity = memory_bytes // BYTES_PER_ENTRY
        if self.capacity < 2 * _STRIDE:
            raise ConfigError(
                f"a sort needs {2 * _STRIDE * BYTES_PER_ENTRY} bytes of memory or more, not {memory_bytes}"
            )
        self.folder = folder
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._n_waiting = 0
        self._runs: list[_Run] = []

    def add(self, latent: np.ndarray, value: np.ndarray, at: np.ndarray) -> None:
        """Take entries in; their order of arrival decides ties."""
        keys, at = pack_keys(latent, value), at.astype(np.uint32)
        while len(keys):
            room = self.capacity - self._n_waiting
            self._waiting.append((keys[:room], at[:room]))
            self._n_waiting += len(keys[:room])
            keys, at = keys[room:], at[room:]
            if self._n_waiting == self.capacity:
                self._spill()

    def merged(self) -> Iterator[Entries]:
        """All entries in order, in blocks of about `capacity` at most; the runs are deleted at the end."""
        self._spill()
        begins = [0] * len(self._runs)
        for splitter in [*self._splitters(), None]:
            ends = [_position(run, splitter) for run in self._runs]
            if ends != begins:
                keys = [_read(r.keys, np.uint64, b, e) for r, b, e in zip(self._runs, begins, ends, strict=True)]
                at = [_read(r.at, np.uint32, b, e) for r, b, e in zip(self._runs, begins, ends, strict=True)]
                yield _sorted_entries(np.concatenate(keys), np.concatenate(at))
            begins = ends
        for run in self._runs:
            run.keys.unlink()
            run.at.unlink()
        self._runs = []

    def _spill(self) -> None:
        if not self._n_waiting:
            return
        keys = np.concatenate([pair[0] for pair in self._waiting])
        at = np.concatenate([pair[1] for pair in self._waiting])
        self._waiting, self._n_waiting = [], 0
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        name = f"run-{len(self._runs):05d}"
        run = _Run(self.folder / f"{name}.keys", self.folder / f"{name}.at", len(keys), keys[::_STRIDE].copy())
        keys.tofile(run.keys)
        at[order].tofile(run.at)
        self._runs.append(run)

    def _splitters(self) -> list[np.uint64]:
        """Keys that cut everything into buckets of at most about `capacity` entries."""
        if len(self._runs) <= 1:
            return []
        samples = np.sort(np.concatenate([run.sample for run in self._runs]))
        per_bucket = max(self.capacity // _STRIDE - len(self._runs), 1)  # each run adds at most one stride of slack
        return list(np.unique(samples[per_bucket::per_bucket]))


def _position(run: _Run, splitter: np.uint64 | None) -> int:
    """How many keys of the run are smaller than the splitter (all, where there is none)."""
    if splitter is None:
        return run.size
    block = int(np.searchsorted(run.sample, splitter, side="left"))  # the answer lies in the stride before this sample
    if block == 0:
        return 0
    begin = (block - 1) * _STRIDE
    keys = _read(run.keys, np.uint64, begin, min(begin + _STRIDE, run.size))
    return begin + int(np.searchsorted(keys, splitter, side="left"))


def _read(path: Path, dtype: type, begin: int, end: int) -> np.ndarray:
    """A slice of a raw file by plain reads: a memory map would count as resident memory while it is walked."""
    return np.fromfile(path, dtype=dtype, count=end - begin, offset=begin * np.dtype(dtype).itemsize)


def _sorted_entries(keys: np.ndarray, at: np.ndarray) -> Entries:
    order = np.argsort(keys, kind="stable")  # timsort: pieces that are sorted already are merged
    latent, value = unpack_keys(keys[order])
    return Entries(latent, value, at[order].astype(np.int32))
