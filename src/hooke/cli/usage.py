"""Read a command's options, and say wrong use in one line: what was wrong, what was expected, the nearest flag."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

import tyro
from pydantic.fields import FieldInfo

from hooke.base.errors import nearest
from hooke.cli.command import Command, OptionError

_NUMBERS = {int: "a whole number", float: "a number"}


def read_options(kind: type[Command], arguments: Sequence[str]) -> Command:
    """The options of a command from the words after its name.

    Raises:
        OptionError: for unknown flags, missing or surplus arguments, and values that a flag does not take.
        SystemExit: for `--help`, with code 0.
    """
    markers = (tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                kind,
                prog=f"hooke {kind.words}",
                description=inspect.getdoc(kind),
                args=list(arguments),
                config=markers,
            )
    except SystemExit as ended:
        if not ended.code:
            raise
        # The parser frames its refusals over many lines; we say our own, and its own only where we see nothing wrong.
        found = next(_complaints(kind, arguments), None) or _unframed(said.getvalue())
        raise OptionError(f"{found} (hooke {kind.words} --help)") from None
    finally:
        if sys.exc_info()[0] is None:
            sys.stderr.write(said.getvalue())


def flags_of(kind: type[Command]) -> dict[str, FieldInfo | None]:
    """The flags of a command with the fields that they set; no field for the flag of the help."""
    found: dict[str, FieldInfo | None] = {"--help": None, "-h": None}
    for name, field in kind.model_fields.items():
        if not _positional(field):
            given = next((marker.name for marker in field.metadata if getattr(marker, "name", None)), name)
            found["--" + "no-" * (field.default is True) + given.replace("_", "-")] = field
    return found


def _complaints(kind: type[Command], arguments: Sequence[str]) -> Iterator[str]:
    """What is wrong with the arguments, unknown flags first."""
    flags = flags_of(kind)
    wrong: list[str] = []
    free: list[str] = []
    words = list(arguments)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        name = "--" + name[2:].replace("_", "-") if name.startswith("--") else name
        if not re.match(r"--?[A-Za-z]", word):
            free.append(word)
        elif name not in flags:
            yield _unknown(kind, name, flags)
        elif _takes_value(flags[name]):
            if not equals and (not words or words[0].partition("=")[0] in flags):
                wrong.append(f"{name} needs a value")
            else:
                wrong += _refused(name, flags[name], value if equals else words.pop(0))
    yield from wrong
    places = [(name.upper(), field) for name, field in kind.model_fields.items() if _positional(field)]
    for name, field in places[len(free) :]:
        if field.is_required():
            yield f"hooke {kind.words} needs {name} ({field.description})"
    if len(free) > len(places) and not any(get_origin(field.annotation) is tuple for _, field in places):
        yield f"{free[len(places)]!r} is more than hooke {kind.words} takes; quote a text that has spaces"


def _refused(flag: str, field: FieldInfo | None, value: str) -> list[str]:
    """Why a flag cannot take a value, where it cannot."""
    types = [] if field is None else [field.annotation, *get_args(field.annotation)]
    choices = [choice for kind in types if get_origin(kind) is Literal for choice in get_args(kind)]
    if choices and value not in choices:
        return [f"{flag}: expected {' or '.join(choices)}, got {value!r}{nearest(value, choices)}"]
    number = next((kind for kind in types if kind in (int, float)), None)
    if number is not None and not (type(None) in types and value == "None"):
        try:
            number(value)
        except ValueError:
            return [f"{flag}: expected {_NUMBERS[number]}, got {value!r}"]
    return []


def _unknown(kind: type[Command], flag: str, flags: dict[str, Any]) -> str:
    if f"--no-{flag[2:]}" in flags:
        return f"{flag} is what happens anyway: leave it out; its opposite is --no-{flag[2:]}"
    return f"{flag} is not an option of hooke {kind.words}{nearest(flag, flags)}"


def _takes_value(field: FieldInfo | None) -> bool:
    return field is not None and field.annotation is not bool


def _positional(field: FieldInfo) -> bool:
    return any(marker is tyro.conf.Positional for marker in field.metadata)


def _unframed(text: str) -> str:
    """A framed message as one line."""
    return " ".join(re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]|-{3,}", " ", text).split())
