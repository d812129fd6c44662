"""The trainer: a fingerprint, its rules, its schedules, and batches that it must refuse."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from hooke.base.errors import ConfigError, DataError, ShapeError
from hooke.base.progress import RecordingSink
from hooke.calibration import recipe_p
from hooke.dictionaries import (
    AuxK,
    BatchTopK,
    Dictionary,
    Objective,
    TopK,
    TrainConfig,
    geometric_median,
    train,
)
from hooke.dictionaries.initialise import centre_of, scale_of
from hooke.dictionaries.trainer import Trainer, rate_at, remove_parallel_
from hooke.model.sites import Site

PLANTED = recipe_p()
FINGERPRINT = [0.729519, 0.683859, 0.644768, 0.617338]  # loss, means of ten steps
THRESHOLD = 0.413366


def trained(activation=None, steps: int = 40, sink=None, objective=None, batches=None, **config):
    dictionary = Dictionary(32, 64, activation=activation or BatchTopK(2))
    settings = {"log_every": 10, "sample_tokens": 1024} | config
    result = train(
        dictionary,
        PLANTED.batches(256) if batches is None else batches,
        objective=objective or Objective("sum"),
        config=TrainConfig(steps * 256, **settings),
        sink=sink or RecordingSink(),
    )
    return dictionary, result


def test_fingerprint():
    sink = RecordingSink()
    dictionary, result = trained(sink=sink)
    curve = [value for _, value in sink.series("loss")]
    assert curve == pytest.approx(FINGERPRINT, abs=1e-5)
    assert float(dictionary.threshold) == pytest.approx(THRESHOLD, abs=1e-5)
    assert result.metrics["l0"] == 2.0
    assert [step for step, _ in sink.series("loss")] == [10, 20, 30, 40]
    assert sink.of("progress")[-1] == ("train", 40 * 256, 40 * 256, "tokens")


def test_the_same_again_and_decoder_rows_have_norm_1():
    first, result = trained(TopK(2))
    second, _ = trained(TopK(2))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    assert torch.allclose(first.W_dec.norm(dim=1), torch.ones(64), atol=1e-6)
    assert (result.steps, result.tokens, result.ended_early, result.resumed_at) == (40, 10240, False, None)
    assert not first.training


def test_input_scale_is_folded_back():
    """Training in units of the input's scale and folding is the same as training on scaled data."""
    dictionary, result = trained(TopK(2), scale="unit")
    scale = result.input_scale
    assert scale == pytest.approx(math.sqrt(2.15), rel=0.1)
    again = Dictionary(32, 64, activation=TopK(2))
    batches = (x / scale for x in PLANTED.batches(256))
    train(
        again,
        batches,
        objective=Objective("sum"),
        config=TrainConfig(40 * 256, sample_tokens=1024, scale="none", log_every=10),
    )
    assert torch.allclose(dictionary.b_dec, scale * again.b_dec, atol=1e-6)
    x = PLANTED.sample(50).x
    with torch.no_grad():
        assert torch.allclose(dictionary(x), scale * again(x / scale), atol=1e-5)


def test_learning_rate_schedule():
    rates = [rate_at(s, 100, warmup_steps=10, decay_share=0.2) for s in range(100)]
    assert rates[0] == 0.1
    assert rates[9:81] == [1.0] * 72
    assert rates[90] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.05)
    assert rate_at(0, 5, warmup_steps=0, decay_share=0.0) == 1.0


def test_parallel_gradient_is_removed():
    dictionary = Dictionary(8, 16, activation=TopK(2))
    dictionary.W_dec.grad = torch.randn(16, 8)
    remove_parallel_(dictionary)
    assert float((dictionary.W_dec.grad * dictionary.W_dec.detach()).sum(1).abs().max()) < 1e-6


def test_dead_latents_are_counted_in_tokens():
    dictionary = Dictionary(4, 8, activation=TopK(1))
    with torch.no_grad():
        dictionary.encoder.copy_(torch.eye(4).repeat(2, 1))
        dictionary.b_enc[4:] = -10.0  # the second half can never win
    objective = Objective("sum", aux_k=None)
    trainer = Trainer(dictionary, objective, adam={}, clip=None, dead_after_tokens=96)
    x = torch.eye(4).repeat(8, 1)
    for seen in (32, 64, 96):
        trainer.step(x, x, 0.0)
        assert trainer.since_fired[4:].tolist() == [seen] * 4
        assert trainer.since_fired[:4].tolist() == [0] * 4
        assert trainer.dead.tolist() == [False] * 4 + [seen >= 96] * 4


def test_clip_bounds_the_gradient():
    sink_free, _ = trained(TopK(2), steps=5, clip=1e-9, warmup_steps=1, betas=(0.0, 0.0), eps=1.0)
    fresh = Dictionary(32, 64, activation=TopK(2))
    assert (
        float((sink_free.encoder - fresh.encoder).detach().abs().max()) < 1e-8
    )  # Adam with eps 1 moves by the gradient


def test_training_goes_on_from_a_trained_dictionary():
    dictionary, _ = trained(TopK(2), steps=150)
    sink = RecordingSink()
    train(dictionary, PLANTED.batches(256, seed=5), objective=Objective("sum"), config=TrainConfig(20 * 256), sink=sink)
    fresh = RecordingSink()
    trained(TopK(2), steps=20, sink=fresh, log_every=20)
    assert sink.series("fvu")[-1][1] < 0.7 * fresh.series("fvu")[-1][1]


def test_batches_by_site():
    site, other = Site("resid_post", 1), Site("mlp_out", 0)
    stream = ({other: -x, site: x} for x in PLANTED.batches(128))
    dictionary = Dictionary(32, 64, activation=TopK(2), reads=site)
    config = TrainConfig(640, sample_tokens=1)
    train(dictionary, stream, objective=Objective("sum"), config=config)
    plain = Dictionary(32, 64, activation=TopK(2))
    train(plain, PLANTED.batches(128), objective=Objective("sum"), config=config)
    assert torch.equal(plain.W_dec, dictionary.W_dec)
    with pytest.raises(DataError, match="needs resid_post.1"):
        train(dictionary, [{other: torch.ones(4, 32)}], objective=Objective(), config=config)


def test_transcoder_learns_another_width():
    matrix = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    reads, writes = Site("mlp_in", 0), Site("mlp_out", 0)
    stream = ({reads: x, writes: x @ matrix} for x in PLANTED.batches(256))
    dictionary = Dictionary(32, 64, activation=TopK(4), reads=reads, writes=writes, d_out=6)
    sink = RecordingSink()
    result = train(dictionary, stream, objective=Objective(), config=TrainConfig(150 * 256, log_every=50), sink=sink)
    fvu = [value for _, value in sink.series("fvu")]
    assert fvu[-1] < 0.5 < fvu[0] + 0.2
    assert result.input_scale != result.output_scale
    sample = PLANTED.sample(500).x
    with torch.no_grad():
        error = (dictionary(sample) - sample @ matrix).square().sum()
    assert float(error / (sample @ matrix).square().sum()) < 0.5


def test_batches_that_end_early_are_said():
    sink = RecordingSink()
    _, result = trained(batches=itertools.islice(PLANTED.batches(256), 7), sink=sink)
    assert (result.ended_early, result.steps) == (True, 7)
    assert "ended after 1792 of 10240" in sink.of("message")[0][0]


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (torch.full((4, 32), math.nan), DataError, "after 512 tokens holds .*|NaN"),
        (torch.full((4, 32), math.inf), DataError, "infinite"),
        (torch.zeros(4, 31), ShapeError, "d=32"),
        (torch.zeros(0, 32), DataError, "no rows"),
        (torch.zeros(4, 32, dtype=torch.int32), DataError, "int32"),
        ("text", DataError, "expected a tensor"),
    ],
    ids=["nan", "inf", "width", "empty", "integers", "text"],
)
def test_bad_batches(bad, error, words):
    with pytest.raises(error, match=words):
        trained(batches=[*itertools.islice(PLANTED.batches(256), 4), bad], sample_tokens=256)


def test_nothing_to_train_on():
    with pytest.raises(DataError, match="no batches"):
        trained(batches=[])
    with pytest.raises(DataError, match="are 0"):
        trained(batches=[torch.zeros(8, 32)])


def test_loss_that_explodes_is_said():
    with pytest.raises(DataError, match="NaN or infinite"):
        trained(TopK(2), learning_rate=1e30, warmup_steps=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"n_tokens": 0},
        {"n_tokens": 1, "learning_rate": 0.0},
        {"n_tokens": 1, "learning_rate": math.nan},
        {"n_tokens": 1, "decay_share": 1.5},
        {"n_tokens": 1, "warmup_steps": -1},
        {"n_tokens": 1, "clip": 0.0},
        {"n_tokens": 1, "log_every": 0},
        {"n_tokens": 1, "dead_after_tokens": 0},
    ],
)
def test_bad_settings(settings):
    with pytest.raises(ConfigError):
        TrainConfig(**settings)


def test_geometric_median_and_scales():
    x = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [90.0, 0.0]])
    assert geometric_median(x).abs().max() < 1e-3  # the mean is 22.5 away; a row on the point does not divide by zero
    square = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    assert geometric_median(square + 5).tolist() == pytest.approx([5.0, 5.0], abs=1e-4)
    assert centre_of(x, "mean").tolist() == [22.5, 0.0]
    assert centre_of(x, "zero").tolist() == [0.0, 0.0]
    assert scale_of(square, "unit") == pytest.approx(math.sqrt(2))
    assert scale_of(square, "sqrt_d") == pytest.approx(1.0)
    assert scale_of(square, "none") == 1.0


def test_auxiliary_term_is_off_when_nothing_is_dead():
    on, off = RecordingSink(), RecordingSink()
    trained(TopK(2), sink=on, objective=Objective("sum"), dead_after_tokens=10**9)
    trained(TopK(2), sink=off, objective=Objective("sum", aux_k=None), dead_after_tokens=10**9)
    assert on.series("loss") == off.series("loss")
    busy = RecordingSink()
    trained(TopK(2), sink=busy, objective=Objective("sum", aux_k=AuxK(1.0)), dead_after_tokens=256)
    assert busy.series("loss") != off.series("loss")
