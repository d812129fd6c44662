"""Evaluation inside a model: exact ends of every scale, controls beside the scores, bad input."""

from __future__ import annotations

import math

import pytest
import torch

import hooke
from hooke.base.errors import ConfigError, ShapeError
from hooke.data import corpora
from hooke.dictionaries import BatchTopK, Dictionary, TopK
from hooke.evals import MeanBaseline, PrincipalComponents, evaluate, random_dictionary, score_rows
from hooke.evals.spliced import SplicedLosses

TEXTS = corpora.texts(
    [f"class A{i}:\n    def area(self):\n        return self.w * {i}\n" * 6 for i in range(16)], "tiny"
)
SIZES = {"corpus": TEXTS, "n_tokens": 600, "n_fit": 400, "context": 48, "batch": 4}


@pytest.fixture(scope="module")
def model():
    return hooke.load("hooke/stdlib")


def identity(d: int, site: str, **options) -> Dictionary:
    """Plus and minus every coordinate: exact for any input."""
    made = Dictionary(d, 2 * d, activation=TopK(d), reads=site, **options)
    with torch.no_grad():
        both = torch.cat([torch.eye(d), -torch.eye(d)])
        made.encoder.copy_(both)
        made.W_dec.copy_(both)
    return made


@pytest.mark.parametrize("site", ["resid_post.2", "mlp_out.1", "z.1"])
def test_identity_loses_nothing(model, site):
    found = evaluate(identity(model.d_model, site), model, **SIZES)
    assert found["fvu"].value == pytest.approx(0.0, abs=1e-12)
    assert found["cosine"].value == pytest.approx(1.0, abs=1e-9)
    assert found["loss_recovered"].value == pytest.approx(1.0, abs=1e-5)
    assert found["kl_score"].value == pytest.approx(1.0, abs=1e-5)
    assert found["ce"].value == pytest.approx(found["ce_clean"].value, abs=1e-5)
    assert found["l0"].value <= model.d_model


def test_scores_beside_controls(model):
    made = Dictionary(256, 512, activation=BatchTopK(8), reads="resid_post.2")
    with torch.no_grad():
        made.b_dec += 0.01
    made.calibrate(torch.randn(200, 256) * 10)
    found = evaluate(made, model, **SIZES)
    assert set(found.controls) == {"random", "pca", "mean"}
    mean = found.controls["mean"]
    assert mean["fvu"].value == pytest.approx(1.0, abs=0.1)
    assert mean["l0"].value == 0.0
    assert found.controls["pca"]["fvu"].value < 1
    assert found.n_tokens >= 600 and found.n_fit >= 400
    assert all(math.isfinite(value) for name, value in found.values().items() if name.startswith("pca."))
    assert found["fvu"].low <= found["fvu"].value <= found["fvu"].high
    assert found.density.shape == (512,)
    text = str(found)
    assert "resid_post.2" in text and "loss_recovered" in text
    assert found.rows()[0]["score"] in found.scores


def test_clean_loss_is_the_models_own(model):
    found = evaluate(identity(256, "resid_post.5"), model, **SIZES)
    losses, fitted, scored = [], 0, 0
    from hooke.data.packing import pack_mixed

    for packed in pack_mixed(TEXTS, model, context=48, batch=4):
        kept = int(packed.tokens.keep.sum())
        if fitted < 400:
            fitted += kept
            continue
        logits = model.run(packed.tokens).logits[:, :-1]
        every = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), packed.tokens.ids[:, 1:].flatten(), reduction="none"
        )
        losses.append(every[packed.tokens.keep[:, 1:].flatten()])
        scored += kept
        if scored >= 600:
            break
    assert found["ce_clean"].value == pytest.approx(float(torch.cat(losses).mean()), rel=1e-6)


def test_recovered_is_undefined_without_a_gap():
    spliced = SplicedLosses()
    spliced._sums.add(torch.arange(4), n=torch.ones(4), clean=torch.ones(4), zero=torch.ones(4), mine=torch.ones(4))
    spliced.n = 4
    found = spliced.recovered("mine", "zero")
    assert math.isnan(found.value) and "within 0.0001 nats" in (found.reason or "")


def test_bad_input(model):
    with pytest.raises(ConfigError, match="does not know which site"):
        evaluate(Dictionary(256, 512, activation=TopK(2)), model, **SIZES)
    with pytest.raises(ShapeError, match="width 128"):
        evaluate(Dictionary(128, 256, activation=TopK(2), reads="resid_post.2"), model, **SIZES)
    with pytest.raises(ConfigError, match="were asked for"):
        evaluate(identity(256, "resid_post.2"), model, **(SIZES | {"n_tokens": 10**6}))


def test_pca_is_the_best_linear_rebuild():
    x = torch.randn(400, 6) @ torch.diag(torch.tensor([5.0, 3.0, 1.0, 0.5, 0.2, 0.1])) + 4
    values = torch.linalg.eigvalsh(torch.cov(x.T.double(), correction=0)).flip(0)
    for k in (1, 2, 5):
        fitted = PrincipalComponents.fit(x, x, k)
        assert score_rows(fitted, x)["fvu"].value == pytest.approx(float(values[k:].sum() / values.sum()), rel=1e-3)
        assert score_rows(fitted, x)["l0"].value == k
    assert score_rows(PrincipalComponents.fit(x, x, 6), x)["fvu"].value == pytest.approx(0.0, abs=1e-9)
    assert score_rows(MeanBaseline.fit(x), x)["fvu"].value == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(ConfigError, match="7 components"):
        PrincipalComponents.fit(x, x, 7)


@pytest.mark.parametrize("activation", [TopK(4), BatchTopK(4)], ids=["topk", "batchtopk"])
def test_random_control_has_the_best_gain_and_the_same_k(activation):
    x = torch.randn(1000, 16) + 2
    control = random_dictionary(Dictionary(16, 128, activation=activation), x, x, seed=5)
    found = score_rows(control, x)
    assert found["l0"].value == pytest.approx(4.0, abs=0.01)
    with torch.no_grad():
        rebuilt = control(x) - control.b_dec
        best = float((rebuilt * (x - control.b_dec)).sum() / rebuilt.square().sum())
    assert best == pytest.approx(1.0, abs=1e-3)
    assert 0.3 < found["fvu"].value < 1.0
