"""The two faces of the progress sink: live bars on a terminal, plain lines everywhere else."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import TextIOBase
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

SHOW_AFTER_SECONDS = 2.0  # shorter work is not worth a line
LINE_EVERY_SECONDS = 5.0


@dataclass
class _Job:
    began: float
    last: float
    shown: bool = False
    finished: bool = False


class PlainSink:
    """A line of text now and then, for logs and pipes. Nothing is printed about work that takes under two seconds.

    Args:
        stream: where the lines go.
        clock: seconds since some moment; replaced in tests.
    """

    def __init__(self, stream: TextIOBase, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self._clock = clock
        self._jobs: dict[str, _Job] = {}
        self._numbers: dict[str, float] = {}

    def metrics(self, values: Mapping[str, float | int], step: int) -> None:
        """Keep the newest numbers for the next line of progress."""
        self._numbers = {"step": step, **values}

    def progress(self, name: str, done: int, total: int | None, unit: str = "") -> None:
        """Print where the work stands, at most every five seconds, and once at its end."""
        now = self._clock()
        job = self._jobs.get(name)
        if job is None or (job.finished and done < (total or 0)):
            job = self._jobs[name] = _Job(now, now)
        ended = total is not None and done >= total
        due = now - job.began >= SHOW_AFTER_SECONDS and (not job.shown or now - job.last >= LINE_EVERY_SECONDS)
        if job.finished or not (due or (ended and job.shown)):
            job.finished |= ended
            self._numbers = {} if ended else self._numbers
            return
        job.shown, job.last, job.finished = True, now, ended
        self._print(progress_line(name, done, total, unit, now - job.began) + numbers_text(self._numbers))
        self._numbers = {}  # said once; they are not those of the next job

    def message(self, text: str) -> None:
        """Print the message."""
        self._print(text)

    def artefact(self, path: Path, kind: str) -> None:
        """Say nothing: the command ends with the path of what it made."""

    def close(self) -> None:
        """Nothing is open."""

    def _print(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class RichSink:
    """Live progress bars with the newest numbers beside them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._newest = ""

    def metrics(self, values: Mapping[str, float | int], step: int) -> None:
        """Show the newest numbers at the end of the bar that moves next."""
        self._newest = numbers_text(values)

    def progress(self, name: str, done: int, total: int | None, unit: str = "") -> None:
        """Move the bar called `name`."""
        bars = self._bars()
        if name not in self._tasks:
            self._tasks[name] = bars.add_task(name, total=total, unit=unit, numbers="")
        bars.update(self._tasks[name], completed=done, total=total)
        if self._newest:
            bars.update(self._tasks[name], numbers=self._newest)
            self._newest = ""

    def message(self, text: str) -> None:
        """Print the message above the bars."""
        self.console.print(text, markup=False, highlight=False)

    def artefact(self, path: Path, kind: str) -> None:
        """Say nothing: the command ends with the path of what it made."""

    def close(self) -> None:
        """Leave the bars as they stand; later progress opens new ones."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks = None, {}

    def _bars(self) -> Progress:
        if self._progress is None:
            self._progress = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=28),
                TextColumn("{task.completed:,.0f} {task.fields[unit]}", style="dim"),
                TimeElapsedColumn(),
                TimeRemainingColumn(compact=True),
                TextColumn("{task.fields[numbers]}", style="cyan", markup=False),
                console=self.console,
            )
            self._progress.start()
        return self._progress


def terminal_sink(console: Console) -> PlainSink | RichSink:
    """Bars where a person looks on, lines where a file or pipe does."""
    return RichSink(console) if console.is_terminal else PlainSink(console.file)


def progress_line(name: str, done: int, total: int | None, unit: str, seconds: float) -> str:
    """One line that says how far the work is and how long it may still take.

    Example:
        >>> progress_line("train", 250, 1000, "steps", 10.0)
        'train: 25 % (250 of 1,000 steps), about 30 s left'
        >>> progress_line("read", 1500, None, "rows", 3.0)
        'read: 1,500 rows'
    """
    if total is None:
        return f"{name}: {done:,} {unit}".rstrip()
    share = done / total if total else 1.0
    line = f"{name}: {share:.0%} ({done:,} of {total:,} {unit}".replace("%", " %").rstrip() + ")"
    if done >= total:
        return f"{line}, {seconds:.1f} s"
    return f"{line}, about {seconds / share - seconds:.0f} s left" if share > 0 else line


def numbers_text(values: Mapping[str, float | int]) -> str:
    """Numbers in short form, empty without any.

    Example:
        >>> numbers_text({"step": 12, "loss": 0.123456, "l0": 32.0})
        ' | step 12  loss 0.1235  l0 32'
    """
    if not values:
        return ""
    return " | " + "  ".join(f"{name} {value:.4g}" for name, value in values.items())


def visible(text: str) -> str:
    r"""Text of a token as one line: tabs and line ends are shown as marks, control characters as escapes.

    Example:
        >>> visible(" if\n\tx\x1b[31m")
        ' if⏎⇥x\\x1b[31m'
    """
    marks = {"\n": "⏎", "\t": "⇥", "\r": "␍"}
    return "".join(marks.get(c) or (c if c.isprintable() else c.encode("unicode_escape").decode()) for c in text)
