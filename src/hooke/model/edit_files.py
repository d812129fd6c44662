"""Edits, metrics and token batches on disk: readable JSON, with a safetensors file beside it for what is large.

Both are whole or absent, and checksummed: the JSON names its tensor file with that file's checksum, and carries one of
itself. A file written by hand may leave that last one out.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooke.base import jsonable
from hooke.base.errors import ConfigError, DataError, FormatError, nearest
from hooke.base.files import read_json, read_tensors, sha256_file, write_json, write_tensors
from hooke.model.edits import KINDS, Call, Edit, Splice
from hooke.model.edits.splice import Reconstructs
from hooke.model.metrics import METRICS, Metric
from hooke.model.sites import Site
from hooke.model.tokens import Tokens

FORMAT, VERSION = "hooke.edits", 1
_TYPES: dict[str, type] = {**KINDS, **METRICS, "Tokens": Tokens}
_INLINE = 4096  # whole numbers and booleans up to this many stand in the JSON itself

OpenDictionary = Callable[[Path], Reconstructs]


def save_edits(path: str | os.PathLike[str], edits: Sequence[Edit] | Sequence[Sequence[Edit]]) -> None:
    """Write edits, one list or one list for each row, to a JSON file, with their tensors beside it.

    Raises:
        DataError: for an edit that cannot be saved: a `Call`, or a `Splice` whose dictionary is saved nowhere.
    """
    write_document(path, FORMAT, VERSION, {"edits": list(edits)})


def load_edits(path: str | os.PathLike[str], *, open_dictionary: OpenDictionary | None = None) -> list[Any]:
    """Read what `save_edits` wrote.

    Args:
        open_dictionary: opens the folder of a spliced dictionary, such as `hooke.Dictionary.load`.

    Raises:
        FormatError: names the file that is missing, truncated, altered, or of another format.
        ConfigError: for a splice without `open_dictionary`.
    """
    return read_document(path, FORMAT, VERSION, open_dictionary=open_dictionary)["edits"]


# -- documents --------------------------------------------------------------------------------------------------------


def write_document(path: str | os.PathLike[str], format: str, version: int, content: Mapping[str, Any]) -> None:
    """Write values that hold edits, metrics, tokens and tensors.

    The tensor file gets a name of its own content, so that a crash between the two files leaves the old pair whole.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    plain = {key: _plain(value, tensors, key, path.parent) for key, value in content.items()}
    side = None
    if tensors:
        file = path.with_name(f"{path.stem}-{_digest(tensors)[:12]}.safetensors")
        write_tensors(file, tensors, {"format": format})
        side = {"file": file.name, "sha256": sha256_file(file)}
    before = _tensor_file(path)
    document = jsonable.jsonable({"format": format, "version": version, **plain, "tensors": side})
    write_json(path, {**document, "sha256": _checksum(document)})
    if before is not None and (side is None or before.name != side["file"]):
        before.unlink(missing_ok=True)


def read_document(
    path: str | os.PathLike[str], format: str, version: int, *, open_dictionary: OpenDictionary | None = None
) -> dict[str, Any]:
    """Read what `write_document` wrote.

    Raises:
        FormatError: naming the file and what is wrong with it.
    """
    path = Path(path)
    document = read_json(path)
    if not isinstance(document, dict) or document.get("format") != format:
        raise FormatError(f"{path} is not a {format} file")
    if document.get("version") != version:
        raise FormatError(f"{path} has version {document.get('version')!r}; this hooke reads version {version}")
    checksum = document.pop("sha256", None)
    if checksum is not None and checksum != _checksum(document):
        raise FormatError(f"{path} was altered: its checksum differs; restore it, or remove 'sha256' if that was meant")
    tensors: dict[str, Tensor] = {}
    try:
        if (side := document.get("tensors")) is not None:
            tensors, _ = read_tensors(path.parent / Path(side["file"]).name, sha256=side["sha256"])
        skip = ("format", "version", "tensors")
        return {
            key: _built(value, tensors, path, open_dictionary) for key, value in document.items() if key not in skip
        }
    except (ConfigError, FormatError):
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(f"{path} lacks a field or holds one of another kind ({error}); restore it") from error


# -- to plain values --------------------------------------------------------------------------------------------------


def _plain(value: Any, tensors: dict[str, Tensor], name: str, folder: Path) -> Any:
    match value:
        case Tensor():
            return _plain_tensor(value, tensors, name)
        case Call():
            raise DataError(f"{value.label} holds a function and cannot be saved; use another kind of edit")
        case Edit() | Metric() | Tokens():
            fields = [f for f in dataclasses.fields(value) if f.init and not f.name.startswith("_")]
            plain = {f.name: (getattr(value, f.name), f) for f in fields}
            saved = {
                key: _plain(item, tensors, f"{name}.{key}", folder)
                for key, (item, field) in plain.items()
                if key != "dictionary" and not _is_default(item, field)
            }
            if isinstance(value, Splice):
                saved |= {"dictionary": _saved_dictionary(value, folder)}
                saved.pop("folder", None)
            return {"type": type(value).__name__, **saved}
        case Site():
            return str(value)
        case Mapping():
            return {"map": {str(key): _plain(item, tensors, f"{name}.{key}", folder) for key, item in value.items()}}
        case str():
            return value
        case Sequence():
            return [_plain(item, tensors, f"{name}.{i}", folder) for i, item in enumerate(value)]
    return jsonable.jsonable(value)


def _is_default(value: Any, field: dataclasses.Field) -> bool:
    """Whether a field may be left out: what stands there is the plain value that it has by default."""
    if field.default_factory is not dataclasses.MISSING:
        return value == field.default_factory()
    return type(value) is type(field.default) and not isinstance(value, Tensor) and value == field.default


def _plain_tensor(tensor: Tensor, tensors: dict[str, Tensor], name: str) -> dict[str, Any]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if not tensor.is_floating_point() and tensor.numel() <= _INLINE:
        return {"values": tensor.tolist(), "dtype": dtype, "shape": list(tensor.shape)}
    tensors[name] = tensor
    return {"tensor": name, "dtype": dtype, "shape": list(tensor.shape)}


def _saved_dictionary(edit: Splice, folder: Path) -> dict[str, str]:
    if edit.folder is None:
        raise DataError(
            f"{edit.label}: the dictionary is saved nowhere that the edit knows; save it, and give "
            "Splice(..., folder=...) to keep this edit in a file"
        )
    place = Path(edit.folder)
    sha256 = _folder_checksum(place, edit.label)
    load = getattr(type(edit.dictionary), "load", None)
    if load is not None:
        ours, theirs = (dictionary.state_dict() for dictionary in (edit.dictionary, load(place)))  # type: ignore[attr-defined]
        differ = [name for name in ours if not torch.equal(ours[name].cpu().nan_to_num(), theirs[name].nan_to_num())]
        if differ:
            raise DataError(
                f"{edit.label}: {place} holds another dictionary ({', '.join(differ)} differ); save this one"
            )
    return {"folder": os.path.relpath(place, folder), "sha256": sha256}


# -- back from plain values -------------------------------------------------------------------------------------------


def _built(value: Any, tensors: Mapping[str, Tensor], path: Path, open_dictionary: OpenDictionary | None) -> Any:
    def built(item: Any) -> Any:
        return _built(item, tensors, path, open_dictionary)

    if isinstance(value, list):
        return [built(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "map" in value:
        return {key: built(item) for key, item in value["map"].items()}
    if "type" not in value and "dtype" in value:
        return _built_tensor(value, tensors, path)
    if value.get("type") not in _TYPES:
        hint = nearest(str(value.get("type")), _TYPES)
        raise FormatError(f"{path}: {value.get('type')!r} is no kind of edit or metric{hint}")
    kind = _TYPES[value["type"]]
    fields = {key: item for key, item in value.items() if key not in ("type", "dictionary")}
    fields = {key: built(item) for key, item in fields.items()}
    if kind is Splice:
        fields |= _opened(value["dictionary"], path, open_dictionary)
        fields["latents"] = {int(index): number for index, number in fields.get("latents", {}).items()}
    if isinstance(fields.get("edges"), list):  # JSON has no pairs
        fields["edges"] = [tuple(edge) for edge in fields["edges"]]
    return kind(**fields)


def _built_tensor(value: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path) -> Tensor:
    dtype, shape = getattr(torch, value["dtype"]), list(value["shape"])
    if "values" in value:
        return torch.tensor(value["values"], dtype=dtype).reshape(shape)
    tensor = tensors.get(value["tensor"])
    if tensor is None or list(tensor.shape) != shape or tensor.dtype != dtype:
        found = "is missing" if tensor is None else f"has {tensor.dtype} {list(tensor.shape)}"
        raise FormatError(f"{path}: its tensor {value['tensor']!r} {found}; expected {dtype} {shape}")
    return tensor


def _opened(saved: Mapping[str, str], path: Path, open_dictionary: OpenDictionary | None) -> dict[str, Any]:
    place = (path.parent / saved["folder"]).resolve()
    if open_dictionary is None:
        raise ConfigError(f"{path} splices the dictionary in {place}; give open_dictionary=hooke.Dictionary.load")
    if _folder_checksum(place, str(path)) != saved["sha256"]:
        raise FormatError(f"{place} is not the dictionary that {path} was saved with; restore it")
    return {"dictionary": open_dictionary(place), "folder": str(place)}


# -- checksums --------------------------------------------------------------------------------------------------------


def _checksum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(jsonable.dumps(document).encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _folder_checksum(folder: Path, label: str) -> str:
    """Of the names and contents of a folder's files."""
    files = sorted(file for file in folder.glob("*") if file.is_file()) if folder.is_dir() else []
    if not files:
        raise FormatError(f"{label}: {folder} holds no dictionary")
    lines = "\n".join(f"{file.name} {sha256_file(file)}" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _tensor_file(path: Path) -> Path | None:
    """The tensor file that an earlier document at this path names; None where there is none."""
    try:
        name = read_json(path)["tensors"]["file"]
        return path.with_name(name) if name.startswith(f"{path.stem}-") and name.endswith(".safetensors") else None
    except (FormatError, KeyError, TypeError, AttributeError):
        return None
