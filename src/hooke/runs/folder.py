"""The run folder: frozen settings, numbers by step, and checksummed artefacts. docs/runs.md is the format."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import BaseModel

from hooke.base import files, jsonable
from hooke.base.errors import ConfigError, DataError, FormatError, nearest
from hooke.runs import checksums, lines, metrics
from hooke.runs.environment import describe
from hooke.runs.record import (
    MESSAGES,
    METRICS,
    RUN_JSON,
    VERSION,
    Artefact,
    Failure,
    Resumption,
    RunInfo,
    check_name,
    config_sha256,
    now,
    read_info,
)


class RunFolder:
    """A folder that holds one run: made with `create`, read with `open`. One process writes it; any number may read.

    As a context manager it records the exception that leaves the block; `finish` is for the caller to say.

    Example:
        >>> import tempfile
        >>> with RunFolder.create(tempfile.mkdtemp(), command="train", config={"k": 32}) as run:
        ...     run.log({"loss": 0.5}, step=1)
        ...     run.finish({"loss": 0.5})
        >>> RunFolder.open(run.path).info.results
        {'loss': 0.5}
    """

    def __init__(self, path: Path, info: RunInfo) -> None:
        self.path = path
        self._info = info
        self._lock = threading.RLock()
        self._mended = False

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], *, command: str, config: dict | BaseModel, resume: bool = False
    ) -> RunFolder:
        """Start a run in a new or empty folder, or with `resume=True` take up the one that is there.

        Resuming needs the same command and config, removes what a killed writer left half done, and starts a run when
        there is none yet. A run that had finished stays finished: look at `.info.status`.

        Raises:
            ConfigError: the folder is in use, or its run had another command or config.
            FormatError: the folder's `run.json` cannot be read.
        """
        path = Path(path)
        plain = _plain_config(config)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file; a run needs a folder of its own")
        if (path / RUN_JSON).exists():
            if not resume:
                raise ConfigError(f"{path} already holds a run; choose another folder")
            return cls._resume(path, command, plain)
        path.mkdir(parents=True, exist_ok=True)
        if any(not child.name.startswith(files.TEMPORARY_PREFIX) for child in path.iterdir()):
            raise ConfigError(f"{path} is not empty and holds no run; choose a new or empty folder")
        created = now()
        info = RunInfo(
            version=VERSION,
            id=f"{created[:19].translate(_TIME_TO_ID)}-{secrets.token_hex(4)}",
            command=command,
            config=plain,
            config_sha256=config_sha256(plain),
            status="running",
            created=created,
            environment=describe(),
        )
        folder = cls(path, info)
        folder._save(info)
        return folder

    @classmethod
    def _resume(cls, path: Path, command: str, config: dict[str, Any]) -> RunFolder:
        info = read_info(path)
        if info.command != command:
            raise ConfigError(f"{path} holds a run of {info.command!r}, not of {command!r}; choose another folder")
        if info.config_sha256 != config_sha256(config):
            names = sorted(info.config.keys() | config.keys())
            changed = [name for name in names if info.config.get(name, _ABSENT) != config.get(name, _ABSENT)]
            raise ConfigError(
                f"{path} holds a run with other settings ({', '.join(changed) or 'same values, other types'}); "
                f"resume with the settings it began with, or choose another folder"
            )
        for leftover in path.rglob(f"{files.TEMPORARY_PREFIX}*"):
            files.remove(leftover)
        folder = cls(path, info)
        if info.status != "finished":
            resumption = Resumption(time=now(), environment=describe())
            resumed = [*info.resumed, resumption]
            folder._save(_changed(info, status="running", finished=None, error=None, resumed=resumed))
        return folder

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> RunFolder:
        """Open the folder of a run that exists.

        Raises:
            FormatError: there is no valid `run.json`, and why.
        """
        path = Path(path)
        return cls(path, read_info(path))

    @property
    def info(self) -> RunInfo:
        """The record of the run, as last written or read by this object."""
        return self._info

    def log(self, values: Mapping[str, float | int], step: int) -> None:
        """Append numbers measured at a step to `metrics.jsonl`. NaN is kept as NaN: an undefined number."""
        with self._lock:
            self._mend()
            metrics.append_row(self.path / METRICS, values, step)

    def rewind(self, step: int) -> None:
        """Take back the logged rows with this step or a later one; for a resume from a checkpoint made before them."""
        with self._lock:
            self._mend()
            if any(row.step >= step for row in self.metrics().rows):
                metrics.append_rewind(self.path / METRICS, step)

    def metrics(self, since: int = 0) -> metrics.Metrics:
        """Rows logged since a cursor (0: all), and the next cursor.

        Raises:
            FormatError: a line is malformed, with its place. A torn last line is not an error: it is not there yet.
        """
        return metrics.read_metrics(self.path / METRICS, since)

    def message(self, text: str) -> None:
        """Append a line for people to `messages.jsonl`."""
        with self._lock:
            self._mend()
            lines.append(self.path / MESSAGES, {"time": now(), "text": text})

    def messages(self) -> list[str]:
        """The lines written by `message`."""
        path = self.path / MESSAGES
        return [str(lines.parse(path, line).get("text", "")) for line in lines.read(path)[0]]

    @contextmanager
    def artefact(self, name: str, kind: str) -> Iterator[Path]:
        """Make an artefact: write a file or a folder to the path given, which is checked in when the block ends.

        It appears whole, under `name` in the run folder, and is recorded with size and checksum. When the block raises,
        nothing changes. An artefact of the same name is replaced.

        Raises:
            ConfigError: the name is not a plain relative path, or is taken by the run folder itself.
        """
        target = self._target(name)
        with files.atomic_path(target) as temporary:
            yield temporary
        self.record(target, kind)

    def record(self, path: Path, kind: str) -> Artefact:
        """Record a file or folder that is already complete inside the run folder.

        Raises:
            ConfigError: it is not inside the run folder.
            DataError: it does not exist.
        """
        try:
            name = path.resolve().relative_to(self.path.resolve()).as_posix()
        except ValueError:
            raise ConfigError(
                f"{path} is not inside the run folder {self.path}; use artefact() to make it there"
            ) from None
        target = self._target(name)
        if not target.exists():
            raise DataError(f"{target} does not exist; record an artefact after it is written")
        sums = checksums.of(target)
        artefact = Artefact(name=name, kind=kind, sha256=sums.sha256, bytes=sums.bytes, created=now(), files=sums.files)
        with self._lock:
            others = [other for other in self._info.artefacts if other.name != name]
            self._save(_changed(self._info, artefacts=[*others, artefact]))
        return artefact

    def file(self, name: str) -> Path:
        """The path of a recorded artefact.

        Raises:
            DataError: the run has none of that name; with the nearest names.
        """
        if self._info.artefact(name) is None:
            names = [artefact.name for artefact in self._info.artefacts]
            raise DataError(f"{self.path} has no artefact {name!r}{nearest(name, names)}; it has {names}")
        return self.path / name

    def verify(self) -> int:
        """Check every artefact against its checksum and every line of the metrics; give how many artefacts there are.

        Raises:
            FormatError: naming everything that is missing, truncated, altered or malformed.
        """
        self._info = read_info(self.path)
        problems = [text for artefact in self._info.artefacts for text in checksums.problems(self.path, artefact)]
        try:
            self.metrics()
            self.messages()
        except FormatError as error:
            problems.append(str(error))
        if problems:
            raise FormatError(f"{self.path} is damaged: {'; '.join(problems)}")
        return len(self._info.artefacts)

    def finish(self, results: dict[str, Any]) -> None:
        """Record that the run is done, with its final numbers (plain JSON values; NaN is kept as `"NaN"`)."""
        try:
            plain = jsonable.loads(jsonable.dumps(results))
        except (ValueError, RecursionError) as error:
            raise DataError(f"the results cannot be written as JSON: {error}") from error
        self._sync()
        with self._lock:
            self._save(_changed(self._info, status="finished", finished=now(), results=plain, error=None))

    def fail(self, error: BaseException | str) -> None:
        """Record that the run failed, and why."""
        kind, text = ("error", error) if isinstance(error, str) else (type(error).__name__, str(error))
        failure = Failure(type=kind, message=text.encode("utf-8", "replace").decode())
        with self._lock:
            self._save(_changed(self._info, status="failed", finished=now(), error=failure, results=None))

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.fail(error)

    def _target(self, name: str) -> Path:
        try:
            check_name(name)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        target = self.path / name
        if not target.resolve().is_relative_to(self.path.resolve()):
            raise ConfigError(
                f"artefact {name!r} would lie outside the run folder, through a link; choose another name"
            )
        return target

    def _save(self, info: RunInfo) -> None:
        files.write_json(self.path / RUN_JSON, info)
        self._info = info

    def _mend(self) -> None:
        if not self._mended:
            for name in (METRICS, MESSAGES):
                lines.mend(self.path / name)
            self._mended = True

    def _sync(self) -> None:
        for name in (METRICS, MESSAGES):
            if (self.path / name).exists():
                files.fsync(self.path / name)


class RunSink:
    """A sink that writes into a run folder: metrics and messages as lines, artefacts into the record.

    Progress is dropped (it is for the screen). An artefact made elsewhere is named in a message.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder

    def metrics(self, values: Mapping[str, float | int], step: int) -> None:
        """Append the numbers to `metrics.jsonl`."""
        self.folder.log(values, step)

    def progress(self, name: str, done: int, total: int | None, unit: str = "") -> None:
        """Drop the progress."""

    def message(self, text: str) -> None:
        """Append the text to `messages.jsonl`."""
        self.folder.message(text)

    def artefact(self, path: Path, kind: str) -> None:
        """Record the artefact, or name it in a message when it lies outside the folder."""
        if path.resolve().is_relative_to(self.folder.path.resolve()):
            self.folder.record(path, kind)
        else:
            self.folder.message(f"made {kind}: {path}")


_ABSENT = object()
_TIME_TO_ID = str.maketrans({"-": None, ":": None, "T": "-"})


def _plain_config(config: dict | BaseModel) -> dict[str, Any]:
    try:
        plain = jsonable.loads(jsonable.dumps(config))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the config cannot be written as JSON: {error}") from error
    return plain


def _changed(info: RunInfo, **fields: Any) -> RunInfo:
    kept = {name: getattr(info, name) for name in RunInfo.model_fields}
    return RunInfo.model_validate({**kept, **(info.model_extra or {}), **fields})
