from __future__ import annotations

import pytest
import torch

from hooke.base.errors import DataError, ShapeError
from hooke.base.shapes import require_finite, require_floating, require_shape


def test_words_sizes_and_wildcards():
    x = torch.zeros(2, 3, 64)
    assert require_shape(x, "batch pos d=64", "x") == {"batch": 2, "pos": 3, "d": 64}
    assert require_shape(x, "_ 3 _", "x") == {}
    assert require_shape(x, "... d", "x") == {"d": 64}
    assert require_shape(torch.zeros(5), "... d", "x") == {"d": 5}
    assert require_shape(torch.zeros(4, 4), "row row", "x") == {"row": 4}
    assert require_shape(torch.tensor(0.0), "", "x") == {}


@pytest.mark.parametrize(
    ("shape", "spec", "says"),
    [
        ((2, 3), "batch pos d", r"x has shape \[2, 3\], 2 dimensions; expected \[batch pos d\]"),
        ((2, 3), "batch d=64", r"expected \[batch d=64\], that is d=64, but got 3"),
        ((2, 3), "2 4", "but got 3"),
        ((2, 3), "row row", "row is both 2 and 3"),
        ((), "... d", "0 dimensions"),
    ],
)
def test_a_wrong_shape_says_what_came_and_what_was_expected(shape, spec, says):
    with pytest.raises(ShapeError, match=says):
        require_shape(torch.zeros(shape), spec, "x")


def test_finite():
    require_finite(torch.ones(3), "x")
    require_finite(torch.arange(3), "x")
    require_finite(torch.zeros(0), "x")
    bad = torch.zeros(2, 3)
    bad[1, 2], bad[1, 0] = float("nan"), float("-inf")
    with pytest.raises(
        DataError, match=r"x of shape \[2, 3\] holds 1 NaN and 1 infinite values, the first at index \[1, 0\]"
    ):
        require_finite(bad, "x")
    with pytest.raises(DataError, match="1 infinite"):
        require_finite(torch.tensor([1e5]).half(), "x")


def test_floating():
    require_floating(torch.zeros(1, dtype=torch.bfloat16), "x")
    with pytest.raises(DataError, match=r"x has dtype torch.int64"):
        require_floating(torch.zeros(1, dtype=torch.int64), "x")
