"""One command at work: where it prints, its run folder, its numbers, and how it ends."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import TextIOBase
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType

from hooke.base.jsonable import dumps
from hooke.base.progress import Sink, TeeSink
from hooke.cli.command import Command
from hooke.cli.terminal import terminal_sink
from hooke.runs.folder import RunFolder, RunSink

WIDTH_OF_LOGS = 120  # columns where the output is not a terminal


class Session:
    """What a command works with.

    Attributes:
        sink: reports to the terminal, and to the run folder once one is open.
        results: the numbers of the command; written to the run folder and printed under `--json`.
    """

    def __init__(self, command: Command, stdout: TextIOBase, stderr: TextIOBase) -> None:
        self.command = command
        self.stdout = stdout
        stream = stderr if command.as_json else stdout
        width = None if stream.isatty() else WIDTH_OF_LOGS
        self.console = Console(file=stream, width=width, highlight=False, soft_wrap=False)
        self.terminal = terminal_sink(self.console)
        self.sink: Sink = self.terminal
        self.results: dict[str, Any] = {}
        self.made: Path | None = None
        self.next: str | None = None
        self.exit_code = 0
        self.after: Callable[[], None] | None = None  # what goes on after the numbers are out: the page
        self.began = time.perf_counter()

    def say(self, text: str = "") -> None:
        """Print one line for people, as it stands."""
        self.sink.message(text)

    def show(self, *renderables: RenderableType) -> None:
        """Print tables or coloured text, below the bars that are done."""
        self.terminal.close()
        self.console.print(*renderables)

    @contextmanager
    def run_folder(self, path: Path | None = None, *, resume: bool = False) -> Iterator[RunFolder]:
        """Open the command's run folder: everything reported goes there too, results at the end, an error on failure.

        Without a path the folder is `runs/<command>-<time>`.
        """
        words = type(self.command).words
        path = path or default_run(words)
        config = self.command.model_dump(mode="json", exclude={"as_json", "run", *self.command.not_config})
        folder = RunFolder.create(path, command=words, config=config, resume=resume)
        self.sink = TeeSink(self.terminal, RunSink(folder))
        self.made = path
        try:
            yield folder
        except BaseException as error:
            folder.fail(error)
            raise
        self.results |= self.cost()
        folder.finish(self.results)
        self.sink = self.terminal

    def cost(self) -> dict[str, float]:
        """Seconds since the command began, and the largest memory so far."""
        return {"seconds": round(time.perf_counter() - self.began, 2), "peak_memory_gb": peak_memory_gb()}

    def end(self) -> None:
        """Print what was made, the next useful command, and the JSON line."""
        self.terminal.close()
        if self.made is not None:
            self.results.setdefault("run", str(self.made))
            self.say(f"\nmade  {self.made}")
        if self.next is not None:
            self.say(f"next  {self.next}")
        if self.command.as_json:
            print(dumps(self.results), file=self.stdout, flush=True)


def default_run(words: str) -> Path:
    """A fresh place below `runs/`, named by command and time."""
    name = f"{words.replace(' ', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    folders = (Path("runs") / (name if i == 1 else f"{name}-{i}") for i in range(1, 10_000))
    return next(folder for folder in folders if not folder.exists())


def peak_memory_gb() -> float:
    """Largest resident memory of this process so far, in GB (10^9 bytes)."""
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 3)
