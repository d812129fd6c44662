"""Errors that people can act on: what was wrong, what was expected, what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class HookeError(Exception):
    """Base of every error that hooke raises on purpose."""


class SiteError(HookeError, KeyError):
    """A site, head, position or alias that the model does not have."""

    def __str__(self) -> str:  # KeyError would show the message in quotes
        return str(self.args[0]) if self.args else ""


class ShapeError(HookeError, ValueError):
    """A tensor whose shape does not fit the place where it was to go."""


class DataError(HookeError, ValueError):
    """Text, tokens or activations that cannot be used."""


class ConfigError(HookeError, ValueError):
    """Settings that contradict each other or the model."""


class FormatError(HookeError, ValueError):
    """A file that is truncated, altered, or not of the format that it claims."""


class ModelError(HookeError, ValueError):
    """A model that cannot be found, opened or understood."""


class MissingExtraError(HookeError, ImportError):
    """An optional package is needed and not installed."""


class HookeWarning(UserWarning):
    """Something works, though not in full; the text says what is missing."""


def require_extra(module: str, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Raises:
        MissingExtraError: with the `pip install` line to run.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(f"{module!r} is not installed; run: pip install 'hooke[{extra}]'") from error


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for error messages: the closest known names, or an empty string.

    Example:
        >>> nearest("resid_pots", ["resid_post", "mlp_out"])
        "; did you mean 'resid_post'?"
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
