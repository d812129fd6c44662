"""`run.json`: the record of a run, checked when it is read. The format is written down in docs/runs.md."""

from __future__ import annotations

import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from hooke.base import files
from hooke.base.errors import FormatError

FORMAT = "hooke.run"
VERSION = 1
RUN_JSON = "run.json"
METRICS = "metrics.jsonl"
MESSAGES = "messages.jsonl"

Status = Literal["running", "finished", "failed"]


def check_name(name: str) -> str:
    """Check an artefact's name: a relative path inside the run folder, safe on every system.

    Raises:
        ValueError: saying what is wrong with it.
    """
    parts = name.split("/")
    if not name or len(name) > 1000 or any(len(part.encode("utf-8", "replace")) > 200 for part in parts):
        raise ValueError(f"artefact name {name[:40]!r} is empty or too long")
    if re.search(r'[\x00-\x1f\x7f\\:*?"<>|\ud800-\udfff]', name):
        raise ValueError(f"artefact name {name!r} holds a character that is not safe in file names")
    if any(part in ("", ".", "..") for part in parts):
        raise ValueError(f"artefact name {name!r} is not a plain relative path inside the run folder")
    if any(part.startswith(files.TEMPORARY_PREFIX) for part in parts):
        raise ValueError(f"artefact name {name!r} is one of a temporary file")
    if parts[0] in (RUN_JSON, METRICS, MESSAGES):
        raise ValueError(f"artefact name {name!r} is taken by the run folder itself")
    return name


def _check_time(text: str) -> str:
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text, re.ASCII):
        raise ValueError("expected a UTC time such as 2025-01-31T12:00:00.000Z")
    datetime.fromisoformat(text)
    return text


Name = Annotated[str, AfterValidator(check_name)]
Time = Annotated[str, AfterValidator(_check_time)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    """Part of `run.json`. Fields of later versions are kept, wrong types refused."""

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")


class Artefact(_Record):
    """A file or folder that the run made.

    Args:
        name: path inside the run folder, with `/`.
        kind: what it is, in a word (`dictionary`, `scores`, `figure`).
        sha256: of the file; of a folder, of its listing (see docs/runs.md).
        bytes: size of the file, or of all files in the folder.
        created: when it was recorded.
        files: for a folder, the checksum of each file by its path in the folder; `None` for a file.
    """

    name: Name
    kind: str = Field(min_length=1, max_length=100)
    sha256: Sha256
    bytes: int = Field(ge=0, le=2**53)
    created: Time
    files: dict[str, Sha256] | None = None


class Failure(_Record):
    """Why a run failed: the type of the exception and its message."""

    type: str
    message: str


class Resumption(_Record):
    """When a run was taken up again, and where it ran then."""

    time: Time
    environment: dict[str, Any]


class RunInfo(_Record):
    """The contents of `run.json`."""

    format: Literal["hooke.run"] = FORMAT
    version: int
    id: str = Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")
    command: str = Field(min_length=1, max_length=200)
    config: dict[str, Any]
    config_sha256: Sha256
    status: Status
    created: Time
    finished: Time | None = None
    environment: dict[str, Any]
    resumed: list[Resumption] = []
    artefacts: list[Artefact] = []
    results: dict[str, Any] | None = None
    error: Failure | None = None

    @model_validator(mode="after")
    def _agree(self) -> RunInfo:
        names = [artefact.name for artefact in self.artefacts]
        if len(set(names)) < len(names):
            raise ValueError("two artefacts have the same name")
        if (self.status == "finished") != (self.results is not None):
            raise ValueError("a run has results when, and only when, it finished")
        if (self.status == "failed") != (self.error is not None):
            raise ValueError("a run has an error when, and only when, it failed")
        if (self.status == "running") != (self.finished is None):
            raise ValueError("a run has an end time when, and only when, it is not running")
        if self.config_sha256 != config_sha256(self.config):
            raise ValueError("the config does not match config_sha256: one of them was altered")
        return self

    def artefact(self, name: str) -> Artefact | None:
        """The artefact of that name, or `None`."""
        return next((artefact for artefact in self.artefacts if artefact.name == name), None)


def config_sha256(config: dict[str, Any]) -> str:
    """SHA-256 of a config's canonical JSON: sorted keys, no spaces, ASCII."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def now() -> str:
    """The time as `run.json` writes it: UTC, milliseconds, so that text order is time order."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def read_info(folder: Path) -> RunInfo:
    """Read and check the record of a run folder.

    Raises:
        FormatError: naming the file and what is wrong with it.
    """
    path = folder / RUN_JSON
    if folder.is_dir() and not path.exists():
        raise FormatError(f"{folder} is not a run folder: it has no {RUN_JSON}")
    value = files.read_json(path)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise FormatError(f"{path} is not the record of a run: its 'format' is not {FORMAT!r}")
    version = value.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise FormatError(f"{path} has no valid format version; expected an integer from 1 to {VERSION}")
    if version > VERSION:
        raise FormatError(
            f"{path} was made by a newer hooke (format version above {VERSION}); upgrade hooke to read it"
        )
    try:
        return RunInfo.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the record"
        raise FormatError(f"{path} is not a valid record: {place}: {first['msg']}") from error
