"""An index of many run folders in one SQLite file. It is never the truth: delete it, and it is made again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from hooke.base.errors import ConfigError, DataError, FormatError, nearest
from hooke.runs import metrics
from hooke.runs.record import METRICS, RUN_JSON, read_info

INDEX_NAME = ".hooke-runs.sqlite"

_MAX_INTEGER = 2**63 - 1  # of SQLite
_LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class IndexedRun:
    """What the index knows of a run folder.

    Args:
        path: of the run folder, relative to the root, with `/`.
        id, command, status, created, finished: as in `run.json`; "unreadable" is the status when that cannot be read.
        config, results: as in `run.json`.
        n_artefacts, bytes: how many artefacts, and their size together.
        last_step: of the metrics, `None` when there are none.
        problem: why the run cannot be read; `None` when it can.
    """

    path: str
    id: str | None
    command: str | None
    status: str
    created: str | None
    finished: str | None
    config: dict[str, Any] | None
    results: dict[str, Any] | None
    n_artefacts: int
    bytes: int
    last_step: int | None
    problem: str | None


Runs = list[IndexedRun]  # RunIndex has a method called `list`


class Refreshed(NamedTuple):
    """How many rows a refresh added or read again, and removed."""

    updated: int
    removed: int


_COLUMNS = tuple(field.name for field in dataclasses.fields(IndexedRun))
_CREATE = f"CREATE TABLE IF NOT EXISTS runs ({', '.join(_COLUMNS)}, stamp TEXT, PRIMARY KEY (path)) WITHOUT ROWID"
_INSERT = f"INSERT OR REPLACE INTO runs VALUES ({', '.join('?' * (len(_COLUMNS) + 1))})"
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM runs"


class RunIndex:
    """Lists the run folders under `root`, at any depth. `refresh` reads again only what changed on disk.

    Any number of threads and processes may refresh and list at once. A damaged index file is thrown away and made anew.

    Example:
        >>> import tempfile
        >>> from hooke.runs.folder import RunFolder
        >>> root = tempfile.mkdtemp()
        >>> _ = RunFolder.create(root + "/first", command="train", config={"k": 32})
        >>> index = RunIndex(root)
        >>> index.refresh()
        Refreshed(updated=1, removed=0)
        >>> [(run.path, run.status) for run in index.list()]
        [('first', 'running')]
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise ConfigError(f"{self.root} is not a folder; give the folder that holds the run folders")
        self.file = self.root / INDEX_NAME

    def rebuild(self) -> Refreshed:
        """Forget every row and read every run folder again."""
        return self._update(keep=False)

    def refresh(self) -> Refreshed:
        """Read the run folders that are new or changed, and forget those that are gone."""
        return self._update(keep=True)

    def list(self, *, command: str | None = None, status: str | None = None, limit: int | None = None) -> Runs:
        """The indexed runs, newest first. Call `refresh` before, to see what is on disk now.

        Args:
            command: only runs of this command.
            status: only runs in this state: "running" (also one that was killed), "finished", "failed", "unreadable".
            limit: at most so many.
        """
        where = [(name, value) for name, value in (("command", command), ("status", status)) if value is not None]
        query = _SELECT + (" WHERE " + " AND ".join(f"{name} = ?" for name, _ in where) if where else "")
        query += " ORDER BY created DESC, path LIMIT ?"
        return self._query(query, *(value for _, value in where), -1 if limit is None else limit)

    def get(self, id: str) -> IndexedRun:
        """The run with this id, the start of an id, or this path under the root.

        Raises:
            DataError: there is none, or more than one.
        """
        exact = self._query(_SELECT + " WHERE id = ? OR path = ? ORDER BY path", id, id)
        found = exact or self._query(_SELECT + " WHERE substr(id, 1, length(?)) = ? ORDER BY path", id, id)
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"{id!r} means several runs: {', '.join(run.path for run in found[:8])}; give more of the id"
            )
        known = [name for run in self.list() for name in (run.path, run.id) if name]
        raise DataError(f"no run {id!r} under {self.root}{nearest(id, known)}; refresh the index if it is new")

    def _update(self, keep: bool) -> Refreshed:
        with _only_writer(self.root / f"{INDEX_NAME}.lock"):
            try:
                return self._write(keep)
            except sqlite3.OperationalError as error:
                if "not a database" not in str(error) and "malformed" not in str(error):
                    raise DataError(f"the index {self.file} cannot be written: {error}") from error
                return self._make_again()
            except sqlite3.DatabaseError:
                return self._make_again()

    def _make_again(self) -> Refreshed:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.file}{suffix}").unlink(missing_ok=True)
        return self._write(keep=False)

    def _write(self, keep: bool) -> Refreshed:
        with contextlib.closing(self._connect()) as database, database:
            database.execute("BEGIN IMMEDIATE")
            columns = [row[1] for row in database.execute("PRAGMA table_info(runs)")]
            if not keep or columns != [*_COLUMNS, "stamp"]:  # also the table of another version of hooke
                database.execute("DROP TABLE IF EXISTS runs")
                database.execute(_CREATE)
            known = dict(database.execute("SELECT path, stamp FROM runs"))
            on_disk = {_relative(folder, self.root): folder for folder in _run_folders(self.root)}
            updated = 0
            for path, folder in on_disk.items():
                stamp = _stamp(folder)
                if known.get(path) != stamp:
                    database.execute(_INSERT, (*_as_columns(_read(path, folder)), stamp))
                    updated += 1
            gone = known.keys() - on_disk.keys()
            database.executemany("DELETE FROM runs WHERE path = ?", [(path,) for path in gone])
        return Refreshed(updated, len(gone))

    def _query(self, query: str, *values: Any) -> Runs:
        try:
            return self._rows(query, values)
        except sqlite3.DatabaseError:  # not made yet, or damaged: make it, and look again
            self.rebuild()
            return self._rows(query, values)

    def _rows(self, query: str, values: tuple) -> Runs:
        with contextlib.closing(self._connect()) as database:
            return [_from_columns(row) for row in database.execute(query, values)]

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self.file, timeout=_LOCK_SECONDS, isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
        except sqlite3.DatabaseError:
            database.close()
            raise
        return database


@contextlib.contextmanager
def _only_writer(path: Path) -> Iterator[None]:
    """One refresh at a time over all processes, so that a damaged file is never replaced under another writer."""
    try:
        import fcntl
    except ImportError:  # Windows: SQLite's own locks remain
        yield
        return
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run_folders(root: Path) -> Iterator[Path]:
    for folder, children, names in os.walk(root):
        if RUN_JSON in names:
            children.clear()  # what is inside a run folder belongs to that run
            yield Path(folder)
        else:
            children[:] = sorted(child for child in children if not child.startswith("."))


def _relative(folder: Path, root: Path) -> str:
    name = folder.relative_to(root).as_posix()
    return name.encode("utf-8", "backslashreplace").decode()  # a name that is no UTF-8 cannot go into SQLite


def _stamp(folder: Path) -> str:
    """What changes whenever the run folder's record or metrics do."""
    parts = []
    for name in (RUN_JSON, METRICS):
        try:
            status = (folder / name).stat()
            parts.append(f"{status.st_ino}:{status.st_size}:{status.st_mtime_ns}")
        except OSError:
            parts.append("-")
    return " ".join(parts)


def _read(path: str, folder: Path) -> IndexedRun:
    try:
        info = read_info(folder)
    except FormatError as error:
        reason = str(error).encode("utf-8", "backslashreplace").decode()
        return IndexedRun(path, None, None, "unreadable", None, None, None, None, 0, 0, None, reason)
    return IndexedRun(
        path=path,
        id=info.id,
        command=info.command,
        status=info.status,
        created=info.created,
        finished=info.finished,
        config=info.config,
        results=info.results,
        n_artefacts=len(info.artefacts),
        bytes=min(sum(artefact.bytes for artefact in info.artefacts), _MAX_INTEGER),
        last_step=metrics.last_step(folder / METRICS),
        problem=None,
    )


def _as_columns(run: IndexedRun) -> tuple:
    values = (getattr(run, name) for name in _COLUMNS)
    return tuple(json.dumps(value) if isinstance(value, dict) else value for value in values)


def _from_columns(row: tuple) -> IndexedRun:
    values = dict(zip(_COLUMNS, row, strict=True))
    for name in ("config", "results"):
        values[name] = None if values[name] is None else json.loads(values[name])
    return IndexedRun(**values)
