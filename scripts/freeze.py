"""Rewrite the snapshots of the public surface: exported names and command-line flags.

The laws compare against these files, so that a new name or flag is a decision that shows in the diff.
"""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

LAWS = Path(__file__).parents[1] / "tests" / "laws"


def exported_names() -> list[str]:
    import hooke

    return sorted(hooke.__all__)


def cli_flags() -> list[str]:
    from hooke.cli.main import COMMANDS

    return [line for words in COMMANDS for line in (words, *(f"  {flag}" for flag in flags_of(words)))]


def flags_of(words: str) -> list[str]:
    """Flags with their types, as `--help` lists them."""
    from hooke.cli.main import parse

    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        parse(words, ["--help"])
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())
    found = re.findall(r"^\W? ((?:--?[a-z]|[A-Z]|\[[A-Z])[^\s│]*(?: [^\s│]+)*)(?=  |\s*│?$)", plain, re.MULTILINE)
    return [flag for flag in found if flag != "-h, --help"]


SNAPSHOTS = {"exported_names.txt": exported_names, "cli_flags.txt": cli_flags}


def main() -> None:
    for name, current in SNAPSHOTS.items():
        (LAWS / name).write_text("\n".join(current()) + "\n")


if __name__ == "__main__":
    main()
