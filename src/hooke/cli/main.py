"""`hooke`: find the command, read its options, run it, and report what went wrong in one line."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from hooke.base.errors import HookeError, nearest
from hooke.cli.command import Command
from hooke.cli.session import Session
from hooke.cli.usage import read_options

USAGE_ERROR = 2


class Entry(NamedTuple):
    """A command of the table: where its options are defined, and one line about it."""

    place: str  # "module:Class" below hooke.cli; imported only when the command is called
    summary: str


COMMANDS = {
    "demo": Entry("demo:Demo", "Built-in model and text -> dictionary -> scores -> feature page, in a few minutes."),
    "train": Entry("train:Train", "Train a dictionary on the activations of a model."),
    "eval": Entry("evaluate:Evaluate", "Score a dictionary, each number beside its control."),
    "features": Entry("features:Features", "Build the index of latents: examples, histograms, logit lists."),
    "serve": Entry("serve:Serve", "Open the local page on a dictionary and its index."),
    "generate": Entry("generate:Generate", "Continue a prompt, plainly or steered by a latent."),
    "run": Entry("run_file:RunFile", "Replay a saved experiment: edits, inputs and a metric."),
    "runs list": Entry("runs:List", "List the run folders below a folder."),
    "runs show": Entry("runs:Show", "Show the configuration, results and artefacts of one run."),
    "runs verify": Entry("runs:Verify", "Check the files of a run against their checksums."),
    "models list": Entry("models:List", "List the built-in models and the families that can be opened."),
    "models show": Entry("models:Show", "Show a model: shapes, sites, identity, measured quality."),
    "bench": Entry("bench:Bench", "Measure speed against the plain way, as ratios in one run."),
    "train-builtin": Entry("train_builtin:TrainBuiltin", "Train the built-in model `hooke/stdlib` from scratch."),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code: 0 done, 1 checked and found wanting, 2 wrong use, 130 interrupted."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a token that the terminal cannot show is no reason to stop
    try:
        return _run(argv)
    except KeyboardInterrupt:
        print("hooke: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone; Python must not complain at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except (HookeError, OSError) as error:
        if os.environ.get("HOOKE_DEBUG") == "1":
            raise
        text = " ".join(str(error).split())
        print(f"hooke: error: {text}", file=sys.stderr)
        return USAGE_ERROR
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(error, MemoryError) or "out of memory" in str(error) or "allocate memory" in str(error)):
            raise
        print("hooke: error: not enough memory; lower --n-latents, --batch-size or --context", file=sys.stderr)
        return USAGE_ERROR


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        _print_help("")
        return 0
    if argv[0] == "--version":
        from importlib.metadata import version

        print(f"hooke {version('hooke')}")
        return 0
    words, rest = _split(argv)
    if words is None:
        _print_help(argv[0])
        return 0 if rest else USAGE_ERROR
    session = Session(parse(words, rest), sys.stdout, sys.stderr)
    try:
        session.command.execute(session)
    finally:
        session.terminal.close()
    session.end()
    if session.after is not None:
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how a page is closed
            session.after()
    return session.exit_code


def parse(words: str, arguments: Sequence[str]) -> Command:
    """The options of the command `words` ("models show") from the rest of the command line.

    Raises:
        OptionError: for options that the command does not have, and values that they cannot take.
        SystemExit: for `--help`.
    """
    return read_options(command_class(words), arguments)


def command_class(words: str) -> type[Command]:
    """The class that defines a command's options."""
    module, name = COMMANDS[words].place.split(":")
    return getattr(importlib.import_module(f"hooke.cli.{module}"), name)


def _split(argv: list[str]) -> tuple[str | None, list[str]]:
    """The command's words and its arguments; no words where a group such as `runs` is asked for help."""
    if argv[0] in COMMANDS:
        return argv[0], argv[1:]
    pair = " ".join(argv[:2])
    if pair in COMMANDS:
        return pair, argv[2:]
    group = [words for words in COMMANDS if words.startswith(argv[0] + " ")]
    if group and (len(argv) == 1 or argv[1] in ("-h", "--help")):
        return None, argv[1:]
    asked, known = (pair, group) if group else (argv[0], list(COMMANDS))
    expected = ", ".join(dict.fromkeys(words if group else words.split()[0] for words in known))
    raise HookeError(f"{asked!r} is not a command{nearest(asked, known)}; commands: {expected}")


def _print_help(group: str) -> None:
    console = Console(highlight=False)
    console.print("[bold]hooke[/bold]: a microscope for language models\n")
    console.print("usage: hooke COMMAND [OPTIONS]        hooke COMMAND --help for the options\n", markup=False)
    table = Table.grid(padding=(0, 3))
    for words, entry in COMMANDS.items():
        if words.startswith(group):
            table.add_row(f"  [cyan]{words}[/cyan]", entry.summary)
    console.print(table)
    console.print("\n--json ends stdout with one JSON object; HOOKE_DEBUG=1 shows where an error came from.")
    console.print("Start with: hooke demo")
