"""Sparse codes say what full matrices say."""

from __future__ import annotations

import pytest
import torch

from hooke.base.errors import ShapeError
from hooke.dictionaries import Latents


@pytest.fixture
def codes() -> torch.Tensor:
    return torch.tensor([[[0.0, 2.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]], [[3.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]])


def test_round_trip_and_counts(codes):
    latents = Latents.from_dense(codes)
    assert torch.equal(latents.dense(), codes)
    assert torch.equal(latents.l0(), (codes != 0).sum(-1))
    assert torch.equal(latents.counts(), (codes != 0).flatten(0, 1).sum(0))
    assert torch.equal(latents.of(1), codes[..., 1])
    assert torch.equal(latents.reshape(4).dense(), codes.flatten(0, 1))


def test_empty_slots_are_harmless():
    latents = Latents(torch.tensor([[0, 0, 2]]), torch.tensor([[0.0, 0.0, 5.0]]), 3)
    assert latents.dense().tolist() == [[0.0, 0.0, 5.0]]
    assert latents.l0().tolist() == [1]
    assert latents.counts().tolist() == [0, 0, 1]


def test_shapes_must_agree():
    with pytest.raises(ShapeError, match="expected one shape"):
        Latents(torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, 2), 4)
