"""Recipe P has the statistics that its sheet states, and its stream can stop and go on."""

from __future__ import annotations

import math

import pytest
import torch

from hooke.base.errors import ConfigError, DataError
from hooke.calibration import (
    ExactCounts,
    Independent,
    Planted,
    keep_largest_of_each,
    keep_largest_overall,
    low_coherence_directions,
    recipe_p,
    variable_complexity,
)


def fvu(x: torch.Tensor, x_hat: torch.Tensor) -> float:
    return float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())


@pytest.fixture(scope="module")
def sample():
    planted = recipe_p()
    return planted, planted.sample(20_000)


def test_directions_are_unit_and_nearly_orthogonal():
    directions = low_coherence_directions(64, 32)
    cosines = directions @ directions.T
    assert torch.allclose(cosines.diagonal(), torch.ones(64), atol=1e-5)
    largest = float((cosines - torch.eye(64)).abs().max())
    assert 0.15 <= largest <= 0.19  # sheet: about 0.17


def test_statistics_of_recipe_p(sample):
    planted, (x, codes) = sample
    active = (codes > 0).sum(1).double()
    assert float(active.mean()) == pytest.approx(2.0, abs=0.04)
    assert float((active == 0).double().mean()) == pytest.approx(0.13, abs=0.01)
    assert float((active > 2).double().mean()) == pytest.approx(0.32, abs=0.015)
    assert float(x.square().sum(1).mean()) == pytest.approx(2.15, abs=0.08)
    # E x = sum of directions / 32: sqrt(64) / 32 if they were orthogonal; 0.22 for those of the sheet
    assert float(x.mean(0).norm()) == pytest.approx(0.25, abs=0.06)
    assert torch.allclose(x, codes @ planted.directions, atol=1e-6)
    assert float(codes[codes > 0].min()) >= 0.5
    assert float(codes.max()) <= 1.5


def test_reference_levels(sample):
    planted, (x, codes) = sample
    directions = planted.directions
    assert fvu(x, keep_largest_of_each(codes, 2) @ directions) == pytest.approx(0.172, abs=0.006)
    assert fvu(x, keep_largest_overall(codes, 2) @ directions) < 0.001
    centred = (x - x.mean(0)).double()
    values = torch.linalg.eigvalsh(centred.T @ centred).flip(0)
    for k, level in ((2, 0.924), (4, 0.852), (16, 0.453)):
        assert float(1 - values[:k].sum() / values.sum()) == pytest.approx(level, abs=0.01)


def test_keeping_overall_keeps_exactly_so_many():
    codes = torch.rand(7, 13)
    assert int((keep_largest_overall(codes, 2.5) > 0).sum()) == 17
    assert torch.equal((keep_largest_of_each(codes, 3) > 0).sum(1), torch.full((7,), 3))


def test_variable_complexity_has_two_halves():
    codes = variable_complexity().sample(4000).codes
    counts = (codes > 0).sum(1)
    assert set(counts.tolist()) == {1, 5}
    assert float((counts == 5).double().mean()) == pytest.approx(0.5, abs=0.03)


def test_stream_goes_on_where_it_was():
    planted = recipe_p()
    whole = [next(stream) for stream in [planted.batches(16, seed=3)] for _ in range(5)]
    first = planted.batches(16, seed=3)
    for _ in range(3):
        next(first)
    second = planted.batches(16, seed=3)
    second.load_state_dict(first.state_dict())
    assert torch.equal(next(second), whole[3])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(whole[0], planted.sample(16, seed=3).x)  # training and test data are different


def test_noise_has_its_size():
    clean, noisy = recipe_p().sample(4000), recipe_p(noise=0.2).sample(4000)
    assert torch.equal(clean.codes, noisy.codes)
    assert float((noisy.x - clean.x).std()) == pytest.approx(0.2, rel=0.02)


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="probability is 0"):
        Independent(0.0)
    with pytest.raises(ConfigError, match="none below 0"):
        ExactCounts((-1, 2))
    with pytest.raises(ConfigError, match="only 8 features"):
        Planted(torch.eye(8), ExactCounts((9,))).sample(2)
    with pytest.raises(DataError, match="at least 1"):
        recipe_p().sample(0)
    with pytest.raises(ConfigError, match="k is 65"):
        keep_largest_of_each(torch.ones(2, 64), 65)
    with pytest.raises(ConfigError, match="0 codes"):
        keep_largest_overall(torch.ones(2, 64), 0.4)
    assert math.isclose(Independent(1.0).probability, 1.0)
