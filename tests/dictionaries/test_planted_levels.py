"""Recipe P: what TopK and BatchTopK reach on data whose features are known (sheet batchtopk-sae)."""

from __future__ import annotations

import functools
import statistics
from typing import NamedTuple

import numpy as np
import pytest
import torch

from hooke.calibration import Planted, recipe_p, recovery, support_f1, variable_complexity
from hooke.dictionaries import AuxK, BatchTopK, Dictionary, Objective, ReconstructionMetrics, TopK, TrainConfig, train
from hooke.dictionaries.activations import Activation

BATCH = 512


class Level(NamedTuple):
    l0: float
    fvu: float
    gamma: float
    mmcs: float
    recovered: float
    f1: float
    dead: float
    l0_rows: torch.Tensor
    codes: torch.Tensor


@functools.cache
def planted(kind: str, seed: int) -> Planted:
    return recipe_p(seed) if kind == "p" else variable_complexity(seed)


@functools.cache
def level(
    activation: Activation,
    seed: int = 0,
    *,
    n_latents: int = 64,
    kind: str = "p",
    steps: int = 2500,
    aux: float = 1 / 32,
) -> Level:
    dictionary = Dictionary(32, n_latents, activation=activation, seed=seed)
    return measure(dictionary, planted(kind, seed), seed, steps, Objective("sum", aux_k=AuxK(aux)))


def measure(dictionary: Dictionary, source: Planted, seed: int, steps: int, objective: Objective) -> Level:
    config = TrainConfig(
        steps * BATCH,
        learning_rate=3e-3,
        warmup_steps=200,
        scale="none",
        sample_tokens=8 * BATCH,
        dead_after_tokens=30 * BATCH,
    )
    train(dictionary, source.batches(BATCH, seed=seed), objective=objective, config=config)
    x, codes = source.sample(20_000, seed=seed)
    metrics = ReconstructionMetrics()
    with torch.no_grad():
        latents = dictionary.encode(x)
        metrics.update(x, dictionary.decode(latents), latents)
        dense = latents.dense()
    scores = {name: estimate.value for name, estimate in metrics.scores().items()}
    found = recovery(source.directions, dictionary.W_dec.detach())
    return Level(
        scores["l0"],
        scores["fvu"],
        scores["gamma"],
        found.mmcs,
        found.recovered,
        support_f1(codes, dense, found.match),
        scores["dead_share"],
        latents.l0(),
        codes,
    )


def check(topk: list[Level], batchtopk: list[Level]) -> None:
    """The levels of the sheet, as medians over the seeds given."""

    def median(levels: list[Level], name: str) -> float:
        return statistics.median(getattr(one, name) for one in levels)

    for levels in (topk, batchtopk):
        assert median(levels, "mmcs") >= 0.93
        assert abs(median(levels, "gamma") - 1) <= 0.005
        assert median(levels, "dead") <= 0.1
    assert 0.172 <= median(topk, "fvu") <= 0.23  # 0.172: the floor even with the true dictionary
    assert median(topk, "mmcs") >= 0.97
    assert median(topk, "f1") >= 0.74
    assert median(topk, "l0") == pytest.approx(1.73, abs=0.15)
    assert median(batchtopk, "fvu") <= 0.13
    assert median(batchtopk, "fvu") <= 0.75 * median(topk, "fvu")
    assert median(batchtopk, "f1") >= 0.84
    assert median(batchtopk, "f1") > median(topk, "f1")
    assert median(batchtopk, "l0") == pytest.approx(2.0, rel=0.05)  # threshold calibration, on fresh data


def test_levels_of_one_seed():
    check([level(TopK(2), steps=1500)], [level(BatchTopK(2), steps=1500)])


@pytest.mark.slow
def test_levels_over_three_seeds():
    check([level(TopK(2), s) for s in range(3)], [level(BatchTopK(2), s) for s in range(3)])


@pytest.mark.slow
def test_threshold_at_k_4():
    found = level(BatchTopK(4))
    assert found.l0 == pytest.approx(4.0, rel=0.05)
    assert found.fvu <= 0.085
    assert found.gamma == pytest.approx(1.0, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("activation", [TopK(2), BatchTopK(2)], ids=["topk", "batchtopk"])
def test_overcomplete_dictionaries_recover_all_and_half_of_them_die(activation):
    found = level(activation, n_latents=128)
    assert found.mmcs >= 0.97
    assert found.recovered == 1.0
    assert found.dead == pytest.approx(0.5, abs=0.03)  # only 64 features exist
    assert found.fvu <= (0.2 if activation == TopK(2) else 0.07)


def correlation(found: Level) -> float:
    true = (found.codes > 0).sum(1).numpy()
    return float(np.corrcoef(found.l0_rows.numpy() + 1e-9 * np.arange(len(true)), true)[0, 1])


def test_batchtopk_gives_complex_samples_more_latents():
    fixed = level(TopK(3), kind="variable", steps=800)
    free = level(BatchTopK(3), kind="variable", steps=800)
    simple = (free.codes > 0).sum(1) == 1
    assert float(free.l0_rows[simple].double().mean()) == pytest.approx(0.94, abs=0.25)
    assert float(free.l0_rows[~simple].double().mean()) == pytest.approx(5.06, abs=0.25)
    assert correlation(free) >= 0.85
    assert abs(correlation(fixed)) <= 0.5  # only empty slots vary
    assert free.fvu <= 0.7 * fixed.fvu


def weakened(alpha: float, steps: int) -> tuple[Level, int]:
    """A quarter of the encoder columns start 50 times too small: they never win a place, but stay positive."""
    dictionary = Dictionary(32, 64, activation=TopK(2))
    with torch.no_grad():
        dictionary.encoder[:16] *= 0.02
    found = measure(dictionary, planted("p", 0), 0, steps, Objective("sum", aux_k=AuxK(alpha)))
    with torch.no_grad():
        counts = dictionary.encode(planted("p", 0).sample(20_000).x).counts()
    return found, int((counts[:16] > 0).sum())


def test_aux_k_revives_latents_that_never_win():
    with_aux, revived = weakened(1 / 32, 1500)
    without, still = weakened(0.0, 600)
    assert revived == 16
    assert still <= 1
    assert without.dead == pytest.approx(0.25, abs=0.03)
    assert with_aux.dead <= 0.05
    assert with_aux.fvu <= 0.22 < 0.28 <= without.fvu
    assert with_aux.mmcs >= 0.97


def test_controls_do_not_reach_the_levels():
    source = planted("p", 0)
    x = source.sample(4000).x
    random = Dictionary(32, 64, activation=BatchTopK(2)).calibrate(x)
    assert recovery(source.directions, random.W_dec.detach()).mmcs < 0.5
    metrics = ReconstructionMetrics()
    with torch.no_grad():
        metrics.update(x, random(x), random.encode(x))
    assert metrics.scores()["fvu"].value > 0.4
