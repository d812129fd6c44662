"""JSON that any program can read: plain values only, and no bare NaN."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, NoReturn

import numpy as np
import torch
from pydantic import BaseModel

from hooke.base.errors import DataError

MAX_DEPTH = 64  # of nesting in files that hooke reads: more is an accident or an attack

_NOT_FINITE = {"NaN", "Infinity", "-Infinity"}
_TOO_DEEP = f"nested more than {MAX_DEPTH} deep"


def jsonable(value: Any) -> Any:
    """Plain JSON values (dict, list, str, int, float, bool, None) for what hooke puts in files.

    Dataclasses, named tuples and pydantic models become objects; tuples, sets, arrays and tensors lists; paths,
    dtypes and devices become text. JSON has no NaN or infinity: they become the strings `"NaN"`, `"Infinity"`,
    `"-Infinity"`, which `float(...)` reads back.

    Raises:
        DataError: for a value with no honest JSON form.

    Example:
        >>> jsonable({"loss": float("nan"), "shape": (2, 3)})
        {'loss': 'NaN', 'shape': [2, 3]}
    """
    match value:
        case None | bool() | enum.Enum():
            return jsonable(value.value) if isinstance(value, enum.Enum) else value
        case str():
            return str(value)
        case int() | np.bool_() | np.integer():
            return value.item() if isinstance(value, np.generic) else int(value)
        case float() | np.floating():
            return _number(float(value))
        case BaseModel():
            return jsonable(value.model_dump())
        case Mapping():
            return {_key(key): jsonable(item) for key, item in value.items()}
        case set() | frozenset():
            return sorted((jsonable(item) for item in value), key=repr)
        case np.ndarray() | torch.Tensor():
            return jsonable(value.tolist())
        case PurePath() | torch.dtype() | torch.device():
            return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return jsonable(value._asdict())
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    raise DataError(f"a {type(value).__name__} cannot be written as JSON; turn it into numbers, text, lists or objects")


def dumps(value: Any, *, indent: int | None = None) -> str:
    """JSON text of `value` (see `jsonable`): ASCII, strict, keys in the order given."""
    return json.dumps(jsonable(value), indent=indent, allow_nan=False)


def loads(text: str | bytes) -> Any:
    """Read strict JSON (UTF-8), nested at most `MAX_DEPTH` deep.

    Raises:
        ValueError: for everything that is not JSON, too deep, or not Unicode, with a reason in one line.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite_float)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > MAX_DEPTH:  # only then can it be too deep
        _require_depth(value)
    return value


def finite_or_not(value: Any) -> float:
    """The number that `jsonable` wrote: a JSON number, or one of the three strings for NaN and the infinities.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, str) and value in _NOT_FINITE:
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a number, got {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("the number is too large for a float") from None


def _number(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _key(key: Any) -> str:
    if isinstance(key, str):
        return str(key)
    if isinstance(key, int | PurePath) and not isinstance(key, bool):
        return str(key)
    raise DataError(f"{key!r} cannot be a name in a JSON object; use text")


def _require_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            item
            for outer in level
            if isinstance(outer, dict | list)
            for item in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large for a float")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")
