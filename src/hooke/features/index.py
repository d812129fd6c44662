"""The latent index: where every latent of a dictionary fires in a corpus, memory-mapped and answered in microseconds.

Two faces of the same entries: token-major (which latents are active on a token) and feature-major (where a latent
fires, strongest first). All statistics count kept tokens only: BOS, EOS and padding never enter (the one mask).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hooke.base.errors import ConfigError, DataError, FormatError
from hooke.base.files import read_json
from hooke.base.progress import SILENT, Sink
from hooke.features.examples import (
    Example,
    Group,
    Histogram,
    histogram_of,
    interval_groups,
    quantile_groups,
)
from hooke.features.verification import verify_files
from hooke.features.writer import ARRAYS, FORMAT, VERSION
from hooke.model.model import Model


class Firings(NamedTuple):
    """Where a latent fires: numbers of tokens in the index, and activations."""

    at: Int[np.ndarray, " n"]
    values: Float[np.ndarray, " n"]


class LatentIndex:
    """A read-only index, opened with `LatentIndex.open`. Nothing is read until it is asked for.

    Token-major columns, one entry a kept token: `token_id`, `doc`, `pos` (position in its packed row), `row`; the
    latents active on token `t` are `ids[indptr[t]:indptr[t + 1]]` with `values` beside them. Feature-major: latent
    `i` fires on the tokens `at[offsets[i]:offsets[i + 1]]`, its activations `strength` beside them in descending order.
    """

    token_id: np.ndarray
    doc: np.ndarray
    pos: np.ndarray
    row: np.ndarray
    indptr: np.ndarray
    ids: np.ndarray
    values: np.ndarray
    row_ptr: np.ndarray
    row_start: np.ndarray
    offsets: np.ndarray
    at: np.ndarray
    strength: np.ndarray
    doc_ptr: np.ndarray
    doc_text: np.ndarray

    def __init__(
        self, path: Path, manifest: dict[str, Any], arrays: dict[str, np.ndarray], model: Model | None
    ) -> None:
        self.path, self.manifest, self.model = path, manifest, model
        for name, array in arrays.items():
            setattr(self, name, array)

    @classmethod
    def open(cls, path: str | Path, model: Model | None = None) -> LatentIndex:
        """Open an index folder.

        Args:
            path: the folder that `build_index` made.
            model: with it, characters that span several tokens are put together for display; must be the indexed model.

        Raises:
            FormatError: no index there, another version, or a file that is missing or truncated (`verify` finds
                altered ones).
            ConfigError: `model` is not the one that was indexed.
        """
        path = Path(path)
        manifest = read_json(path / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise FormatError(f"{path / 'manifest.json'} is no manifest of a latent index; build one with build_index")
        if manifest.get("version") != VERSION:
            raise FormatError(f"{path} has version {manifest.get('version')} of the format; this hooke reads {VERSION}")
        arrays = {name: _map(path / f"{name}.npy", manifest, dtype) for name, dtype in ARRAYS.items()}
        if model is not None and dict(model.identity) != manifest["model"]:
            raise ConfigError(
                f"{path} was built with weights or a tokenizer of {manifest['model'].get('name')!r} that "
                f"{model.name!r} does not have; open it with that model, or build it again"
            )
        return cls(path, manifest, arrays, model)

    def verify(self, *, remember: bool = False, sink: Sink = SILENT) -> None:
        """Compare every file with its checksum.

        Args:
            remember: pass over files whose size and time of change are those at the last check, and keep a note of
                this one beside the folder, where that can be written.
            sink: hears the progress.

        Raises:
            FormatError: names the first file that was altered.
        """
        verify_files(self.path, self.manifest["files"], remember=remember, sink=sink)

    @property
    def n_tokens(self) -> int:
        """Kept tokens in the index."""
        return int(self.manifest["n_tokens"])

    @property
    def n_latents(self) -> int:
        """Width of the dictionary."""
        return int(self.manifest["n_latents"])

    @property
    def n_documents(self) -> int:
        """Documents that the tokens come from."""
        return int(self.manifest["n_documents"])

    @cached_property
    def n_firing(self) -> Int[np.ndarray, " latent"]:
        """On how many tokens each latent fires."""
        return np.diff(self.offsets)

    @cached_property
    def density(self) -> Float[np.ndarray, " latent"]:
        """Share of the kept tokens on which each latent fires, in float64 and never rounded."""
        return self.n_firing / self.n_tokens

    @cached_property
    def max_activation(self) -> Float[np.ndarray, " latent"]:
        """Largest activation of each latent; 0 where it never fires."""
        out = np.zeros(self.n_latents, dtype=np.float32)
        alive = np.flatnonzero(self.n_firing)
        out[alive] = self.strength[self.offsets[alive]]
        return out

    @cached_property
    def top_token(self) -> Int[np.ndarray, " latent"]:
        """Vocabulary id of the token on which each latent is strongest; -1 where it never fires."""
        out = np.full(self.n_latents, -1, dtype=np.int64)
        alive = np.flatnonzero(self.n_firing)
        out[alive] = self.token_id[self.at[self.offsets[alive]]]
        return out

    @cached_property
    def vocabulary(self) -> list[str]:
        """Display text of each vocabulary id on its own."""
        return read_json(self.path / "vocabulary.json")

    def firings(self, latent: int) -> Firings:
        """All places where a latent fires, strongest first, as views of the memory map.

        Raises:
            DataError: no such latent.
        """
        latent = int(latent)
        if not 0 <= latent < self.n_latents:
            raise DataError(
                f"latent {latent} does not exist; the dictionary has {self.n_latents} (0 to {self.n_latents - 1})"
            )
        begin, end = self.offsets[latent], self.offsets[latent + 1]
        return Firings(self.at[begin:end], self.strength[begin:end])

    def active(self, token: int) -> Firings:
        """The latents active on one token of the index, as (latents, activations) in no particular order."""
        begin, end = self.indptr[token], self.indptr[token + 1]
        return Firings(self.ids[begin:end], self.values[begin:end])

    def top(self, latent: int, n: int = 20, per_document: bool = True) -> Firings:
        """The strongest places of a latent.

        Args:
            latent: its number.
            n: at most this many; fewer where there are no more. A dead latent has none.
            per_document: at most one place a document, its strongest, so that one text cannot fill the list.
        """
        at, values = self.firings(latent)
        if not per_document or len(at) <= 1:
            return Firings(at[:n], values[:n])
        size = 4 * n
        while True:
            _, first = np.unique(self.doc[at[:size]], return_index=True)
            if len(first) >= min(n, self.n_documents) or size >= len(at):
                chosen = np.sort(first)[:n]
                return Firings(at[chosen], values[chosen])
            size *= 4

    def quantiles(self, latent: int, n_groups: int = 5, per_group: int = 5, *, seed: int = 0) -> list[Group]:
        """Groups of equal count, strongest first, each with a random sample; see `examples.quantile_groups`."""
        return quantile_groups(
            *self.firings(latent), n_groups=n_groups, per_group=per_group, seed=seed + 1000003 * int(latent)
        )

    def intervals(self, latent: int, n_groups: int = 5, per_group: int = 5, *, seed: int = 0) -> list[Group]:
        """Groups of equal width of activation, strongest first; see `examples.interval_groups`."""
        return interval_groups(
            *self.firings(latent), n_groups=n_groups, per_group=per_group, seed=seed + 1000003 * int(latent)
        )

    def histogram(self, latent: int, bins: int = 50) -> Histogram:
        """How strong a latent is where it fires: counts in equal bins from its smallest to its largest activation."""
        return histogram_of(self.firings(latent).values, bins=bins)

    def mean_activation(self, latent: int) -> float:
        """Mean activation where the latent fires; NaN for a dead latent."""
        values = self.firings(latent).values
        return float(values.mean(dtype=np.float64)) if len(values) else float("nan")

    def activations(self, latent: int, begin: int, end: int) -> Float[np.ndarray, " token"]:
        """A latent's activation on the tokens `begin` to `end` of the index, 0 where it is silent."""
        indptr = np.asarray(self.indptr[begin : end + 1])
        hits = np.flatnonzero(self.ids[indptr[0] : indptr[-1]] == latent) + indptr[0]
        out = np.zeros(end - begin, dtype=np.float32)
        out[np.searchsorted(indptr, hits, side="right") - 1] = self.values[hits]
        return out

    def example(
        self, latent: int, at: int | np.integer, *, before: int | None = None, after: int | None = None
    ) -> Example:
        """The text around one token of the index, with the latent's activation on every token of it.

        The window never leaves the packed row, hence never the document.

        Args:
            latent: whose activations to show.
            at: number of the token, as `top` and the groups give it.
            before: tokens before it at most; `None` for all of its packed row.
            after: tokens after it at most; `None` likewise.

        Raises:
            DataError: no such token.
        """
        at = int(at)
        if not 0 <= at < self.n_tokens:
            raise DataError(f"token {at} is not in the index, which has {self.n_tokens}")
        row = int(self.row[at])
        first, last = int(self.row_ptr[row]), int(self.row_ptr[row + 1])
        begin = first if before is None else max(first, at - before)
        end = last if after is None else min(last, at + after + 1)
        strings = self.strings(self.token_id[first:last])  # the whole row, so that no character is cut in two
        positions = self.pos[begin:end]
        return Example(
            latent=latent,
            doc=self.document(int(self.doc[at])),
            row=row,
            start=int(self.row_start[row] + positions[0] - self.pos[first]),
            focus=at - begin,
            tokens=strings[begin - first : end - first],
            ids=[int(i) for i in self.token_id[begin:end]],
            positions=[int(p) for p in positions],
            activations=self.activations(latent, begin, end),
        )

    def document(self, number: int) -> str:
        """Name of a document by its number."""
        return bytes(self.doc_text[self.doc_ptr[number] : self.doc_ptr[number + 1]]).decode()

    def strings(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """Display texts of a run of token ids; ids outside the vocabulary are shown as `<id 12345 out of range>`."""
        ids = [int(i) for i in ids]
        if self.model is not None:
            return self.model.token_strings(ids)
        return [self.vocabulary[i] if 0 <= i < len(self.vocabulary) else f"<id {i} out of range>" for i in ids]

    def tokens_by_text(self, text: str) -> list[int]:
        """Vocabulary ids that display as exactly `text`; where there are none, those that do without surrounding
        spaces.
        """
        exact = [i for i, shown in enumerate(self.vocabulary) if shown == text]
        return exact or [i for i, shown in enumerate(self.vocabulary) if text.strip() and shown.strip() == text.strip()]


def _map(path: Path, manifest: dict[str, Any], dtype: str) -> np.ndarray:
    expected = manifest.get("files", {}).get(path.name, {}).get("bytes")
    if not path.is_file() or path.stat().st_size != expected:
        found = f"{path.stat().st_size} bytes" if path.is_file() else "nothing"
        raise FormatError(f"{path} is truncated or missing: expected {expected} bytes, found {found}; build it again")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise FormatError(f"{path} is not a .npy file ({error}); build the index again") from error
    if array.dtype != np.dtype(dtype) or array.ndim != 1:
        raise FormatError(f"{path} holds {array.dtype} {array.shape}; expected a list of {dtype}; build it again")
    return array.view(np.ndarray)
