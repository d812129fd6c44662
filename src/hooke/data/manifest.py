"""The manifest of a store: what its rows are, which model made them, and the checksum of every file.

docs/data.md specifies the format.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hooke.base.errors import ConfigError, DataError, FormatError
from hooke.base.files import read_json, write_json

MANIFEST = "manifest.json"
CHECKED = "checked.json"  # which shard had which size and time when its checksum was last found right; may be deleted
FORMAT, VERSION = "hooke-store", 1

Count = Annotated[int, Field(ge=0, strict=True)]
Positive = Annotated[int, Field(ge=1, strict=True)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Place(NamedTuple):
    """A row of a harvest: the cursor of its batch, and how many rows of that batch come before it."""

    documents: Count = 0
    rows: Count = 0
    tokens: Count = 0
    skip: Count = 0


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # readers MUST ignore fields that they do not know


class SiteRecord(_Record):
    """A site and the width of its rows."""

    site: str
    width: Positive


class FileRecord(_Record):
    """A file beside the manifest. Its name has no folder in it, so that a manifest cannot point outside its store."""

    file: Annotated[str, Field(pattern=r"^[a-z]+(-[0-9]{5,9})?\.safetensors$")]
    bytes: Positive
    sha256: Sha256


class ShardRecord(FileRecord):
    """A shard and its number of rows."""

    rows: Positive


class BufferRecord(_Record):
    """A buffer that was shuffled and written: where in the harvest it began, and what it became."""

    start: Place
    rows: Positive
    shards: Positive


class Manifest(_Record):
    """What `manifest.json` holds."""

    format: Literal["hooke-store"] = FORMAT
    version: Literal[1] = VERSION
    model: dict[str, Any]
    corpus: str
    sites: Annotated[list[SiteRecord], Field(min_length=1)]
    dtype: Literal["float32", "float16", "bfloat16"]
    n_tokens: Positive | None
    context: Positive
    batch: Positive
    seed: Annotated[int, Field(strict=True)]
    shard_rows: Positive
    shards_per_buffer: Positive
    complete: bool = False
    rows: Count = 0
    next: Place = Place()
    buffers: list[BufferRecord] = []
    shards: list[ShardRecord] = []
    statistics: FileRecord | None = None

    @property
    def n_whole_shards(self) -> int:
        """Shards that belong to buffers which were written whole."""
        return sum(buffer.shards for buffer in self.buffers)


def read_manifest(folder: Path) -> Manifest:
    """Read and check `manifest.json` of a store.

    Raises:
        FormatError: naming the file and what is wrong with it.
    """
    path = folder / MANIFEST
    content = read_json(path)
    if isinstance(content, dict) and content.get("format") == FORMAT and content.get("version") != VERSION:
        raise FormatError(
            f"{path} has version {content.get('version')!r}; this hooke reads version {VERSION}: update hooke"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise FormatError(
            f"{path} is not a manifest of a store: {place}: {first['msg']}; restore or remake it"
        ) from error
    listed = sum(shard.rows for shard in manifest.shards)
    if listed != manifest.rows:
        raise FormatError(
            f"{path} says {manifest.rows} rows, its shards add up to {listed}: altered; restore or remake it"
        )
    if len({shard.file for shard in manifest.shards}) != len(manifest.shards):
        raise FormatError(f"{path} lists a shard twice: altered; restore or remake it")
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace `manifest.json` in one step."""
    write_json(folder / MANIFEST, manifest)


def require_same_model(stored: Mapping[str, Any], asked: Mapping[str, Any], where: Path) -> None:
    """Check that two identities mean the same weights and the same tokenizer. The name may differ: a folder can be a
    hub model's copy.

    Raises:
        DataError: with both names and what differs.
    """
    different = [key for key in stored if key != "name" and asked.get(key) != stored[key]]
    if different:
        raise DataError(
            f"{where} holds activations of model {stored.get('name')!r}, not of {asked.get('name')!r}: "
            f"{', '.join(different)} differ; load the model that made them, or harvest again"
        )


def require_same_settings(manifest: Manifest, asked: Manifest, where: Path) -> None:
    """Check that a store that was begun is the one that is now asked for, so that it can be gone on with.

    Raises:
        DataError: for another model.
        ConfigError: listing each setting with its value there and the value asked for.
    """
    require_same_model(manifest.model, asked.model, where)
    names = ("corpus", "sites", "dtype", "n_tokens", "context", "batch", "seed", "shard_rows", "shards_per_buffer")
    different = [name for name in names if getattr(manifest, name) != getattr(asked, name)]
    if different:
        pairs = [f"{name} is {_plain(manifest, name)} there, {_plain(asked, name)} asked" for name in different]
        raise ConfigError(
            f"{where} holds a store with other settings: {'; '.join(pairs)}. Use these settings, or another folder"
        )


def _plain(manifest: Manifest, name: str) -> Any:
    value = getattr(manifest, name)
    return [record.site for record in value] if name == "sites" else value


def checked_entry(folder: Path, record: FileRecord) -> list[int | str]:
    """What `checked.json` holds for a file whose checksum was found right: its size, its time, the checksum."""
    status = (folder / record.file).stat()
    return [status.st_size, status.st_mtime_ns, record.sha256]
