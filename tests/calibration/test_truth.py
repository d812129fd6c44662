"""Recovery and support scores in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from hooke.base.errors import DataError, ShapeError
from hooke.calibration import low_coherence_directions, recovery, support_f1


def test_permuted_and_scaled_directions_are_recovered_exactly():
    true = torch.eye(6)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    found = recovery(true, 2.5 * true[order])
    assert (found.mmcs, found.recovered, found.reverse_mmcs) == (1.0, 1.0, 1.0)
    assert torch.equal(order[found.match], torch.arange(6))


def test_opposite_directions_do_not_count():
    assert recovery(torch.eye(2), -torch.eye(2)).mmcs == 0.0  # signed: the best is the orthogonal one


def test_half_recovered():
    found = recovery(torch.eye(4), torch.eye(4)[:2])
    assert found.mmcs == 0.5
    assert found.recovered == 0.5
    assert found.reverse_mmcs == 1.0


def test_reverse_looks_at_living_latents_only():
    learned = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    assert recovery(torch.eye(2), learned, alive=torch.tensor([True, False])).reverse_mmcs == 1.0
    assert math.isnan(recovery(torch.eye(2), learned, alive=torch.tensor([False, False])).reverse_mmcs)


@pytest.mark.parametrize(("latents", "level"), [(64, 0.404), (128, 0.445)])
def test_random_dictionary_level(latents, level):
    values = [
        recovery(low_coherence_directions(64, 32, seed=s), torch.randn(latents, 32, generator=g)).mmcs
        for s in range(3)
        for g in [torch.Generator().manual_seed(s)]
    ]
    assert sum(values) / 3 == pytest.approx(level, abs=0.015)


def test_support_f1_by_hand():
    true = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    codes = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 3.0], [1.0, 0.0]])
    # feature 0: one hit, one miss, one false alarm: F1 = 1/2; feature 1 exact
    assert support_f1(true, codes, torch.tensor([0, 1])) == 0.75


def test_features_that_never_occur_are_left_out():
    true = torch.tensor([[1.0, 0.0]])
    assert support_f1(true, torch.tensor([[1.0, 1.0]]), torch.tensor([0, 1])) == 1.0
    assert math.isnan(support_f1(torch.zeros(2, 2), torch.ones(2, 2), torch.tensor([0, 1])))


def test_bad_input():
    with pytest.raises(ShapeError, match="learned"):
        recovery(torch.eye(3), torch.eye(4))
    with pytest.raises(DataError, match="NaN"):
        recovery(torch.eye(3), torch.full((2, 3), math.nan))
    with pytest.raises(DataError, match="expected equal"):
        support_f1(torch.ones(2, 2), torch.ones(3, 2), torch.tensor([0, 1]))
