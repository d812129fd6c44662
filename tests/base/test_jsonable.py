from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from hooke.base.errors import DataError
from hooke.base.jsonable import MAX_DEPTH, dumps, finite_or_not, jsonable, loads


@dataclass(frozen=True)
class Point:
    x: float
    name: str


class Pair(NamedTuple):
    a: int
    b: int


class Settings(BaseModel):
    k: int = 32
    path: Path = Path("a/b")


class Colour(enum.Enum):
    RED = "red"


def test_every_kind_of_value():
    assert jsonable(Point(1.0, "p")) == {"x": 1.0, "name": "p"}
    assert jsonable(Pair(1, 2)) == {"a": 1, "b": 2}
    assert jsonable(Settings()) == {"k": 32, "path": "a/b"}
    assert jsonable([Colour.RED, {3, 1, 2}, (1, None, True)]) == ["red", [1, 2, 3], [1, None, True]]
    assert jsonable({1: np.float32(0.5), "a": np.int64(3), "b": np.bool_(True)}) == {"1": 0.5, "a": 3, "b": True}
    assert jsonable(torch.tensor([[1, 2]])) == [[1, 2]]
    assert jsonable(np.array([math.inf, 1.0])) == ["Infinity", 1.0]
    assert jsonable([torch.float32, torch.device("cpu")]) == ["torch.float32", "cpu"]


@pytest.mark.parametrize("value", [object(), {(1, 2): 3}, {None: 1}, b"bytes", Point, 1j])
def test_what_has_no_honest_form_is_refused(value):
    with pytest.raises(DataError):
        jsonable(value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_undefined_numbers_survive_as_text(value):
    text = dumps({"x": value})
    json.loads(text, parse_constant=lambda name: pytest.fail(f"bare {name}"))
    assert repr(finite_or_not(loads(text)["x"])) == repr(value)


@pytest.mark.parametrize("text", ["", "{", "NaN", "[Infinity]", "1e999", "{'a': 1}", b"\xff", "[1,]", "9" * 5000])
def test_what_is_not_strict_json_is_a_value_error(text):
    with pytest.raises(ValueError):
        loads(text)


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 5000, 200_000])
@pytest.mark.parametrize(("left", "right"), [("[", "]"), ('{"a":', "}")])
def test_deep_nesting_is_refused(depth, left, right):
    with pytest.raises(ValueError, match="nested more than 64 deep"):
        loads(left * depth + "1" + right * depth)
    assert loads("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not None
    assert loads(json.dumps([[1]] * 500)) == [[1]] * 500  # wide is not deep


@pytest.mark.parametrize("value", [True, None, "nan", "inf", [1.0], 10**400])
def test_finite_or_not_takes_only_numbers_and_our_three_words(value):
    with pytest.raises(ValueError):
        finite_or_not(value)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(plain)
def test_plain_values_come_back_equal(value):
    assert jsonable(value) == value
    assert loads(dumps(value)) == value


@given(st.binary(max_size=60) | st.text(max_size=60))
def test_any_input_is_json_or_a_value_error(text):
    try:
        value = loads(text)
    except ValueError:
        return
    assert loads(dumps(value)) == value
