"""Write a latent index in bounded memory: token-major arrays as they come, feature-major arrays by an external sort.

The folder (version 1 of the format, described in docs/features.md) holds plain `.npy` files and `manifest.json`;
every array is appended to its file, so nothing that grows with the corpus stays in memory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hooke.base.errors import DataError
from hooke.base.files import sha256_file, write_json
from hooke.features.external_sort import ExternalSort

FORMAT, VERSION = "hooke-latent-index", 1
MAX_TOKENS = 2**31 - 1
ARRAYS: dict[str, str] = {  # file stem -> dtype; what each holds is said in docs/features.md
    "token_id": "<i4",
    "doc": "<i4",
    "pos": "<i4",
    "row": "<i4",
    "indptr": "<i8",
    "ids": "<i4",
    "values": "<f4",
    "row_ptr": "<i8",
    "row_start": "<i4",
    "offsets": "<i8",
    "at": "<i4",
    "strength": "<f4",
    "doc_ptr": "<i8",
    "doc_text": "|u1",
}


class TokenBlock(NamedTuple):
    """Parallel columns of kept tokens, in corpus order.

    Args:
        token_id: vocabulary id.
        doc: number of the document (as `IndexWriter.add_documents` gave it).
        pos: position in the packed row; the BOS that opens a row is 0.
        row: number of the packed row; each new row counts one up.
        start: position in the document of the first token of the packed row.
    """

    token_id: np.ndarray
    doc: np.ndarray
    pos: np.ndarray
    row: np.ndarray
    start: np.ndarray


class IndexWriter:
    """Append blocks of tokens with their active latents, then `finish`.

    Args:
        folder: an existing, empty folder; the caller makes it appear atomically.
        n_latents: width of the dictionary.
        memory_bytes: budget of the sort.
    """

    def __init__(self, folder: Path, *, n_latents: int, memory_bytes: int) -> None:
        self.folder, self.n_latents = folder, n_latents
        self.n_tokens = self.n_entries = self.n_documents = 0
        self._files = {name: _GrowingArray(folder / f"{name}.npy", dtype) for name, dtype in ARRAYS.items()}
        self._scratch = folder / "sort"
        self._scratch.mkdir()
        self._sort = ExternalSort(self._scratch, memory_bytes)
        self._counts = np.zeros(n_latents, dtype=np.int64)
        self._last_row = -1
        self._files["indptr"].append(np.zeros(1))
        self._files["doc_ptr"].append(np.zeros(1))

    def add_documents(self, names: Sequence[str]) -> None:
        """Name the next documents; they are numbered from 0 in order of arrival."""
        encoded = [name.encode() for name in names]
        ends = self._files["doc_text"].size + np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._files["doc_text"].append(np.frombuffer(b"".join(encoded), dtype=np.uint8))
        self._files["doc_ptr"].append(ends)
        self.n_documents += len(names)

    def add(self, tokens: TokenBlock, ids: np.ndarray, values: np.ndarray) -> None:
        """Append tokens and their codes, `[token, k]` each; an id of -1 or a value of 0 is an empty place.

        Raises:
            DataError: activations that are not finite, latents outside the dictionary, rows out of order, too many
                tokens.
        """
        n = len(tokens.token_id)
        active = (values != 0) & (ids >= 0)
        flat_ids, flat_values = ids[active], values[active].astype(np.float32)
        self._check(tokens, flat_ids, flat_values)
        per_token = active.sum(axis=1)
        at = np.repeat(np.arange(self.n_tokens, self.n_tokens + n), per_token)
        self._sort.add(flat_ids, flat_values, at)
        self._counts += np.bincount(flat_ids, minlength=self.n_latents)
        new_row = np.flatnonzero(np.diff(tokens.row, prepend=self._last_row))
        columns = {
            "token_id": tokens.token_id,
            "doc": tokens.doc,
            "pos": tokens.pos,
            "row": tokens.row,
            "indptr": self.n_entries + np.cumsum(per_token),
            "ids": flat_ids,
            "values": flat_values,
            "row_ptr": self.n_tokens + new_row,
            "row_start": tokens.start[new_row],
        }
        for name, column in columns.items():
            self._files[name].append(column)
        self.n_tokens += n
        self.n_entries += len(flat_ids)
        self._last_row = int(tokens.row[-1]) if n else self._last_row

    def finish(self, vocabulary: Sequence[str], about: Mapping[str, object]) -> None:
        """Sort, close every file, and write the manifest with checksums, last."""
        for block in self._sort.merged():
            self._files["at"].append(block.at)
            self._files["strength"].append(block.value)
        shutil.rmtree(self._scratch)
        self._files["offsets"].append(np.concatenate([[0], np.cumsum(self._counts)]))
        self._files["row_ptr"].append(np.array([self.n_tokens]))
        for file in self._files.values():
            file.close()
        (self.folder / "vocabulary.json").write_text(json.dumps(list(vocabulary)), encoding="utf-8")
        names = [*(f"{name}.npy" for name in ARRAYS), "vocabulary.json"]
        manifest = {
            "format": FORMAT,
            "version": VERSION,
            **about,
            "n_tokens": self.n_tokens,
            "n_latents": self.n_latents,
            "n_entries": self.n_entries,
            "n_rows": self._last_row + 1,
            "n_documents": self.n_documents,
            "files": {
                name: {"bytes": (self.folder / name).stat().st_size, "sha256": sha256_file(self.folder / name)}
                for name in names
            },
        }
        write_json(self.folder / "manifest.json", manifest)

    def close(self) -> None:
        """Close the files without finishing; safe to call twice."""
        for file in self._files.values():
            file.close()

    def _check(self, tokens: TokenBlock, ids: np.ndarray, values: np.ndarray) -> None:
        if not np.isfinite(values).all():
            raise DataError(
                f"{int((~np.isfinite(values)).sum())} activations near token {self.n_tokens} are NaN or infinite; "
                "check the model's activations and the dictionary's weights"
            )
        if len(ids) and ids.max() >= self.n_latents:
            raise DataError(f"latent {ids.max()} does not exist; the dictionary has {self.n_latents}")
        steps = np.diff(tokens.row, prepend=max(self._last_row, 0))
        if len(steps) and not np.isin(steps, (0, 1)).all():
            raise DataError("packed rows must be numbered 0, 1, 2, ... in order")
        if self.n_tokens + len(tokens.token_id) > MAX_TOKENS:
            raise DataError(f"an index holds at most {MAX_TOKENS} tokens; index a part of the corpus")


class _GrowingArray:
    """A one-dimensional `.npy` file that is appended to; its header gets the true length at the end."""

    def __init__(self, path: Path, dtype: str) -> None:
        self._file = path.open("w+b")
        self._dtype = np.dtype(dtype)
        self.size = 0
        self._write_header()

    def append(self, values: np.ndarray) -> None:
        column = np.ascontiguousarray(values, dtype=self._dtype)
        self._file.write(column.data if column.size else b"")
        self.size += column.size

    def close(self) -> None:
        if not self._file.closed:
            self._file.seek(0)
            self._write_header()
            self._file.close()

    def _write_header(self) -> None:
        # numpy pads the header so that the length may grow to 21 digits in place
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.size,)}
        np.lib.format.write_array_header_1_0(self._file, header)
