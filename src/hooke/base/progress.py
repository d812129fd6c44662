"""Where library code reports to. The library never prints: it calls a `Sink`, and the command line renders it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable


@runtime_checkable
class Sink(Protocol):
    """What receives numbers, progress, messages and files from a piece of work."""

    def metrics(self, values: Mapping[str, float | int], step: int) -> None:
        """Numbers measured at a step. NaN is allowed and means undefined."""

    def progress(self, name: str, done: int, total: int | None, unit: str = "") -> None:
        """How far the work called `name` is: `done` of `total` units (`None`: not known)."""

    def message(self, text: str) -> None:
        """One line for a person."""

    def artefact(self, path: Path, kind: str) -> None:
        """A file or folder that was made, complete and in its final place."""


class SilentSink:
    """A sink that drops everything; the default of library functions."""

    def metrics(self, values: Mapping[str, float | int], step: int) -> None:
        """Drop the numbers."""

    def progress(self, name: str, done: int, total: int | None, unit: str = "") -> None:
        """Drop the progress."""

    def message(self, text: str) -> None:
        """Drop the message."""

    def artefact(self, path: Path, kind: str) -> None:
        """Drop the artefact."""


SILENT = SilentSink()


class Call(NamedTuple):
    """One call that a `RecordingSink` received: the method's name and its arguments."""

    method: str
    arguments: tuple


class RecordingSink:
    """A sink that keeps every call in `.calls`, in order; for tests and notebooks."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def metrics(self, values: Mapping[str, float | int], step: int) -> None:
        """Keep a copy of the numbers."""
        self.calls.append(Call("metrics", (dict(values), step)))

    def progress(self, name: str, done: int, total: int | None, unit: str = "") -> None:
        """Keep the progress."""
        self.calls.append(Call("progress", (name, done, total, unit)))

    def message(self, text: str) -> None:
        """Keep the message."""
        self.calls.append(Call("message", (text,)))

    def artefact(self, path: Path, kind: str) -> None:
        """Keep the artefact's path and kind."""
        self.calls.append(Call("artefact", (path, kind)))

    def of(self, method: str) -> list[tuple]:
        """The arguments of every call of one method, in order."""
        return [call.arguments for call in self.calls if call.method == method]

    def series(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of one metric, in order."""
        return [(step, values[name]) for values, step in self.of("metrics") if name in values]


class TeeSink:
    """A sink that passes every call on to several sinks, in order."""

    def __init__(self, *sinks: Sink) -> None:
        self.sinks = sinks

    def metrics(self, values: Mapping[str, float | int], step: int) -> None:
        """Pass the numbers on."""
        for sink in self.sinks:
            sink.metrics(values, step)

    def progress(self, name: str, done: int, total: int | None, unit: str = "") -> None:
        """Pass the progress on."""
        for sink in self.sinks:
            sink.progress(name, done, total, unit)

    def message(self, text: str) -> None:
        """Pass the message on."""
        for sink in self.sinks:
            sink.message(text)

    def artefact(self, path: Path, kind: str) -> None:
        """Pass the artefact on."""
        for sink in self.sinks:
            sink.artefact(path, kind)
