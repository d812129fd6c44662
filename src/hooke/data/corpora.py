"""Corpora: re-iterable, deterministic streams of documents.

A corpus never holds its text in memory: it is a name and a function that opens a fresh stream of `Document`s, so that
anything built on it (harvest, training, indexes) can start over, skip ahead after a resume, and stay in bounded memory.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sysconfig
import tokenize
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hooke.base.errors import DataError, require_extra

Split = str  # "train", "heldout" or "all"

_TEST_FOLDERS = {"test", "tests", "idle_test"}
_NOT_SOURCE = {"__pycache__", "site-packages", "dist-packages", "_bundled"}
_GENERATED_TABLES = {"encodings", "pydoc_data"}  # code pages and rendered docs: data in the shape of a module
_HELDOUT_SHARE = 13 / 256  # about 5 % of the modules


@dataclass(frozen=True)
class Document:
    """One text with the name by which people can find it again."""

    id: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """A named stream of documents. Iterating twice gives the same documents in the same order.

    Args:
        name: short name that says what the text is; it is stored with everything made from it.
        open: returns a fresh iterator over the documents.
    """

    name: str
    open: Callable[[], Iterator[Document]]

    def __iter__(self) -> Iterator[Document]:
        return self.open()

    def take(self, n_documents: int) -> Corpus:
        """The first `n_documents` documents as a corpus of their own."""
        return Corpus(f"{self.name}[:{n_documents}]", lambda: itertools.islice(self.open(), n_documents))

    def repeated(self, times: int | None = None) -> Corpus:
        """The corpus over and over: `times` passes, or without end. It ends after a pass without any text."""

        def documents() -> Iterator[Document]:
            for _ in itertools.count() if times is None else range(times):
                has_text = False
                for document in self.open():
                    has_text = has_text or bool(document.text)
                    yield document
                if not has_text:
                    return

        return Corpus(self.name if times is None else f"{self.name}*{times}", documents)


def stdlib(split: Split = "train", tests: bool = False) -> Corpus:
    """Source files of the running interpreter's standard library, one document a module, in a fixed mixed order.

    The split is by module: about 5 % of the modules are held out by a hash of the module's name, so that the held-out
    set is the same on every machine. A module and its tests (`argparse`, `test_argparse`) always fall on the same side.
    Code-page tables and rendered documentation (`encodings`, `pydoc_data`) are left out.

    Args:
        split: "train", "heldout" or "all".
        tests: also the library's own test modules, where the interpreter carries them.

    Raises:
        DataError: for an unknown split, or where the interpreter has no source files.
    """
    if split not in ("train", "heldout", "all"):
        raise DataError(f"split {split!r} is not known; choose 'train', 'heldout' or 'all'")
    root = Path(sysconfig.get_paths()["stdlib"])

    def documents() -> Iterator[Document]:
        found = [path for path in _modules(root, tests) if split == "all" or is_heldout(path) == (split == "heldout")]
        if not found:
            raise DataError(f"no standard-library source files under {root}; install the interpreter with its sources")
        for path in sorted(found, key=_digest):
            text = _read_source(root / path)
            if text.strip():
                yield Document(path, text)

    return Corpus(f"stdlib-{split}" + ("+tests" if tests else ""), documents)


def is_heldout(module_path: str) -> bool:
    """Whether the standard-library module at this relative path belongs to the held-out split.

    Example:
        >>> is_heldout("json/decoder.py") == is_heldout("test/test_json/test_decoder.py")
        True
    """
    path = Path(module_path)
    stem = path.parent.name if path.stem in ("__init__", "__main__") else path.stem
    return hashlib.sha256(stem.removeprefix("test_").encode()).digest()[0] < 256 * _HELDOUT_SHARE


def texts(documents: Iterable[str], name: str = "texts") -> Corpus:
    """A corpus from strings that are already in memory."""
    kept = tuple(documents)
    return Corpus(name, lambda: (Document(f"{name}-{i}", text) for i, text in enumerate(kept)))


def files(path: str | Path, pattern: str = "**/*.txt") -> Corpus:
    """One document a file: a single UTF-8 file, or all files below a folder that match `pattern`.

    Raises:
        DataError: where the path does not exist, nothing matches, or a file is not UTF-8.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} does not exist; expected a text file or a folder of them")

    def documents() -> Iterator[Document]:
        found = [path] if path.is_file() else sorted(p for p in path.glob(pattern) if p.is_file())
        if not found:
            raise DataError(f"no file below {path} matches {pattern!r}; pass another pattern")
        for file in found:
            try:
                text = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise DataError(f"{file} is not UTF-8 text ({error}); convert it or narrow the pattern") from error
            yield Document(str(file.relative_to(path)) if path.is_dir() else file.name, text)

    return Corpus(path.name, documents)


def jsonl(path: str | Path, field: str = "text") -> Corpus:
    """One document a line of a JSON Lines file, its text under `field`, its id under `id` where present.

    Raises:
        DataError: names the first line that is not a JSON object or lacks the field.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not a file; expected JSON Lines")

    def documents() -> Iterator[Document]:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path} line {number} is not JSON: {error}") from error
                if not isinstance(row, dict) or not isinstance(row.get(field), str):
                    raise DataError(
                        f"{path} line {number} has no text under {field!r}; pass field= with the right name"
                    )
                yield Document(str(row.get("id", f"{path.name}:{number}")), row[field])

    return Corpus(path.name, documents)


def huggingface(name: str, split: str = "train", field: str = "text", config: str | None = None) -> Corpus:
    """A Hugging Face dataset (hub name or local folder), streamed. Needs the extra `data`.

    Raises:
        MissingExtraError: where `datasets` is not installed.
        DataError: where a row has no text under `field`.
    """

    def documents() -> Iterator[Document]:
        datasets = require_extra("datasets", "data")
        for i, row in enumerate(datasets.load_dataset(name, config, split=split, streaming=True)):
            if not isinstance(row.get(field), str):
                raise DataError(f"row {i} of {name} has no text under {field!r}; it has {sorted(row)}")
            yield Document(f"{name}:{split}:{i}", row[field])

    return Corpus(f"{name}:{split}", documents)


def _modules(root: Path, tests: bool) -> Iterator[str]:
    left_out = _NOT_SOURCE | _GENERATED_TABLES | (set() if tests else _TEST_FOLDERS)
    for folder, below, names in os.walk(root):
        below[:] = [
            name for name in below if name not in left_out
        ]  # pruned here, so that site-packages is never entered
        yield from ((Path(folder) / name).relative_to(root).as_posix() for name in names if name.endswith(".py"))


def _read_source(path: Path) -> str:
    """Source text in the encoding that the file declares; files that are broken on purpose give an empty text."""
    try:
        with tokenize.open(path) as source:
            return source.read()
    except (SyntaxError, UnicodeDecodeError):
        return ""


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
