"""Metrics against closed forms, brute force, and the wrong formulas that are in use."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooke.base.errors import ConfigError, DataError, ShapeError
from hooke.dictionaries import Latents, ReconstructionMetrics
from hooke.dictionaries.metrics import GroupedSums


def scores(x, x_hat, latents=None, **options):
    metrics = ReconstructionMetrics()
    metrics.update(x, x_hat, latents, **options)
    return metrics.scores()


def data(n: int = 500, d: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator) + torch.arange(d)
    return x, x + 0.3 * torch.randn(n, d, generator=generator)


def test_identity():
    x, _ = data()
    found = scores(x, x.clone(), Latents.from_dense(x))
    exact = {"fvu": 0.0, "mse": 0.0, "nmse": 0.0, "fve_centered": 1.0, "l0": 6.0, "dead_share": 0.0}
    assert {name: found[name].value for name in exact} == exact
    for name in ("cosine", "gamma", "norm_ratio"):
        assert found[name].value == pytest.approx(1.0, abs=1e-12)


def test_all_off_with_the_mean_has_fvu_1():
    x, _ = data()
    mean = x.double().mean(0).expand(500, -1)
    found = scores(x.double(), mean, Latents.from_dense(torch.zeros(500, 9)))
    assert found["fvu"].value == pytest.approx(1.0, abs=1e-12)
    assert found["fve_centered"].value == pytest.approx(0.0, abs=1e-12)
    assert (found["l0"].value, found["dead_share"].value) == (0.0, 1.0)


def test_shrinkage_in_closed_form():
    x, _ = data()
    found = scores(x.double(), 0.8 * x.double())
    assert found["gamma"].value == pytest.approx(0.8)
    assert found["norm_ratio"].value == pytest.approx(0.8)
    assert found["nmse"].value == pytest.approx(0.04)
    assert found["cosine"].value == pytest.approx(1.0)


def test_brute_force_and_batching():
    x, x_hat = data()
    whole, parts = scores(x, x_hat), ReconstructionMetrics()
    for a, b in zip(x.split(130), x_hat.split(130), strict=True):
        parts.update(a, b)
    x, x_hat = x.double(), x_hat.double()
    e = x - x_hat
    expected = {
        "mse": e.square().sum(1).mean(),
        "fvu": e.square().sum() / (x - x.mean(0)).square().sum(),
        "nmse": e.square().sum() / x.square().sum(),
        "cosine": torch.cosine_similarity(x, x_hat).mean(),
        "norm_ratio": (x_hat.norm(dim=1) / x.norm(dim=1)).mean(),
        "gamma": x_hat.square().sum() / (x * x_hat).sum(),
        "fve_centered": 1 - e.var(0, correction=0).sum() / x.var(0, correction=0).sum(),
    }
    for name, value in expected.items():
        assert whole[name].value == pytest.approx(float(value), rel=1e-9), name
        assert parts.scores()[name].value == pytest.approx(float(value), rel=1e-9), name


def test_one_global_mean_not_one_a_batch():
    """Batches around different means: the ratio of totals is not the mean of batch ratios (a known wrong formula)."""
    a, b = torch.randn(100, 4), torch.randn(100, 4) + 50
    metrics = ReconstructionMetrics()
    for part in (a, b):
        metrics.update(part, part + 1)
    both = torch.cat([a, b]).double()
    right = 4 * 200 / float((both - both.mean(0)).square().sum())
    assert metrics.scores()["fvu"].value == pytest.approx(right, rel=1e-5)
    wrong = sum(4 * 100 / float((p - p.mean(0)).square().sum()) for p in (a, b)) / 2
    assert wrong > 100 * right


def test_constant_error_is_ignored_only_by_the_centred_variant():
    x, _ = data()
    found = scores(x.double(), x.double() + 1.0)
    assert found["fve_centered"].value == pytest.approx(1.0, abs=1e-9)
    assert found["fvu"].value > 0.1


def test_no_cancellation_far_from_zero():
    x = torch.randn(1000, 3, dtype=torch.float64)
    far = scores(x + 1e6, x + 1e6 + 0.1)["fvu"].value
    assert far == pytest.approx(scores(x, x + 0.1)["fvu"].value, rel=1e-6)


def test_undefined_is_nan_with_a_reason():
    zero = torch.zeros(10, 3)
    found = scores(zero, zero)
    for name in ("fvu", "nmse", "cosine", "norm_ratio", "gamma", "fve_centered"):
        assert math.isnan(found[name].value), name
        assert found[name].reason, name
    assert found["mse"].value == 0.0
    constant = torch.full((10, 3), 0.1)
    assert "do not vary" in (scores(constant, constant)["fvu"].reason or "")
    assert "no tokens" in (ReconstructionMetrics().scores()["mse"].reason or "")
    some = torch.cat([zero, torch.ones(10, 3)])
    assert scores(some, some)["cosine"].n == 10  # rows of zeros have no direction


def test_density_and_dead_share():
    codes = torch.zeros(20, 4)
    codes[:, 0] = 1.0
    codes[:2, 1] = 1.0
    codes[:3, 2] = -1.0
    metrics = ReconstructionMetrics()
    metrics.update(torch.ones(20, 2), torch.ones(20, 2), Latents.from_dense(codes))
    assert metrics.density().tolist() == [1.0, 0.1, 0.15, 0.0]
    found = metrics.scores()
    assert (found["dead_share"].value, found["dense_share"].value) == (0.25, 0.5)
    assert "4 latents" in (found["dead_share"].reason or "")


def test_interval_covers_at_its_level():
    """The jackknife interval of a ratio of means holds the truth about 95 times in 100, also with correlated rows."""
    inside = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        shared = torch.randn(64, 1, generator=generator).repeat_interleave(8, 0)  # 64 texts of 8 tokens
        x = 1 + shared + 0.1 * torch.randn(512, 1, generator=generator)
        sums = GroupedSums()
        sums.add(torch.arange(64).repeat_interleave(8), x=x[:, 0], n=torch.ones(512))
        estimate = sums.estimate(lambda s: s["x"] / s["n"], n=512)
        inside += estimate.low <= 1.0 <= estimate.high
    assert 180 <= inside <= 199


def test_one_group_has_no_interval():
    x, x_hat = data(20)
    found = scores(x, x_hat, groups=torch.zeros(20, dtype=torch.long))["fvu"]
    assert math.isnan(found.low) and "one group" in (found.reason or "")


@settings(max_examples=10)
@given(st.integers(2, 40), st.floats(0.1, 10))
def test_fvu_does_not_depend_on_units(n, scale):
    x, x_hat = data(n)
    one, other = scores(x.double(), x_hat.double()), scores(scale * x.double(), scale * x_hat.double())
    assert one["fvu"].value == pytest.approx(other["fvu"].value, rel=1e-9)


@pytest.mark.parametrize(
    ("target", "x_hat", "error", "words"),
    [
        (torch.zeros(0, 3), torch.zeros(0, 3), DataError, "no rows"),
        (torch.ones(2, 3), torch.ones(2, 4), ShapeError, "same shape"),
        (torch.full((2, 3), math.nan), torch.ones(2, 3), DataError, "NaN"),
        (torch.ones(2, 3), torch.full((2, 3), math.inf), DataError, "infinite"),
        (torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3), DataError, "int64"),
    ],
)
def test_bad_input(target, x_hat, error, words):
    with pytest.raises(error, match=words):
        ReconstructionMetrics().update(target, x_hat)


def test_codes_must_belong_to_the_rows():
    metrics = ReconstructionMetrics()
    with pytest.raises(ShapeError, match="one code a row"):
        metrics.update(torch.ones(3, 2), torch.ones(3, 2), Latents.from_dense(torch.ones(4, 5)))
    metrics.update(torch.ones(3, 2), torch.ones(3, 2))
    with pytest.raises(ConfigError, match="every update"):
        metrics.update(torch.ones(3, 2), torch.ones(3, 2), Latents.from_dense(torch.ones(3, 5)))
    with pytest.raises(DataError, match="need codes"):
        metrics.density()
