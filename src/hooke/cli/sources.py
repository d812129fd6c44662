"""What people name on the command line: a corpus, a dictionary, an index."""

from __future__ import annotations

import json
from pathlib import Path

from hooke.base.errors import DataError, FormatError
from hooke.base.files import read_json
from hooke.data import corpora
from hooke.data.corpora import Corpus

_JSON_LINES = (".jsonl", ".ndjson")
CORPUS_HELP = (
    "Text: stdlib, stdlib:heldout, stdlib:all, a text file, a folder of .txt or .py files, a .jsonl file "
    "(FILE:FIELD where the text is not under text), or hf:NAME for a Hugging Face dataset."
)


def open_corpus(name: str) -> Corpus:
    """The corpus that a name on the command line stands for; see `CORPUS_HELP`.

    Raises:
        DataError: for a name that is none of these.
    """
    if name == "stdlib" or name.startswith("stdlib:"):
        return corpora.stdlib(name.partition(":")[2] or "train")
    if name.startswith("hf:"):
        return corpora.huggingface(name.removeprefix("hf:"))
    path, field = Path(name), "text"
    before, _, after = name.rpartition(":")
    if not path.exists() and Path(before).suffix in _JSON_LINES:
        path, field = Path(before), after
    if not path.exists():
        raise DataError(f"corpus {name!r} is neither a file nor a folder; expected stdlib, a path, or hf:NAME")
    if path.suffix in _JSON_LINES:
        _check_field(path, field)
        return corpora.jsonl(path, field)
    texts = path.is_file() or any(path.glob("**/*.txt"))
    return corpora.files(path, "**/*.txt" if texts else "**/*.py")


def _check_field(path: Path, field: str) -> None:
    """Refuse a file of JSON Lines whose first row has no text under `field`; what else is wrong is said on reading."""
    with path.open(encoding="utf-8", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        row = json.loads(first)
    except ValueError:
        return
    if isinstance(row, dict) and not isinstance(row.get(field), str):
        fields = [name for name, value in row.items() if isinstance(value, str)]
        known = f"it has text under {', '.join(map(repr, fields))}" if fields else "it has no text at all"
        raise DataError(f"--corpus: {path} has no text under {field!r}; {known}; name the field as {path}:FIELD")


def find_dictionary(path: Path) -> Path:
    """The dictionary's folder, from itself or from the run folder that holds it.

    Raises:
        FormatError: where there is none.
    """
    return _find(path, "dictionary", "cfg.json", "hooke train")


def find_index(path: Path) -> Path:
    """The latent index's folder, from itself or from the run folder that holds it.

    Raises:
        FormatError: where there is none.
    """
    return _find(path, "index", "manifest.json", "hooke features")


def model_of(dictionary: Path) -> str:
    """Name of the model that a dictionary was trained on; the built-in one where its file does not say."""
    metadata = read_json(dictionary / "cfg.json").get("metadata") or {}
    return str((metadata.get("model") or {}).get("name") or "hooke/stdlib")


def _find(path: Path, name: str, mark: str, command: str) -> Path:
    for folder in (path, path / name):
        if (folder / mark).is_file():
            return folder
    raise FormatError(f"{path} holds no {name} (looked for {mark} there and in {path / name}); make one with {command}")
