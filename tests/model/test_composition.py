"""Composition and copying scores against the dense definition, and on heads whose answer is known."""

from __future__ import annotations

import pytest
import torch
from conftest_model import random_model

from hooke.base.errors import ConfigError, ModelError, ShapeError
from hooke.model.toy.make import toy
from hooke.model.weights.composition import composition, composition_scores, copying_score, copying_scores
from hooke.model.weights.factored import Factored
from hooke.model.weights.views import Weights

CLOSE = {"atol": 1e-10, "rtol": 1e-10}


def dense_score(writer: torch.Tensor, reader: torch.Tensor, kind: str) -> torch.Tensor:
    product = {"Q": lambda: writer @ reader, "K": lambda: reader @ writer.T, "V": lambda: writer @ reader}[kind]()
    return product.norm() / (writer.norm() * reader.norm())


@pytest.mark.parametrize("family", ["gpt2", "llama-gqa"])
@pytest.mark.parametrize("kind", ["Q", "K", "V"])
def test_all_pairs_equal_the_dense_definition(family, kind):
    weights = Weights(random_model(family, torch.float64))
    result = composition(weights, kind, draws=20)
    n_layers, n_heads = weights.layout.n_layers, weights.layout.n_heads
    for j in range(n_layers):
        for i in range(n_layers):
            for a in range(n_heads):
                for b in range(n_heads):
                    if j >= i:
                        assert result.values[j, a, i, b].isnan()  # nothing goes back
                        continue
                    reader = weights.OV(i, b) if kind == "V" else weights.QK(i, b)
                    expected = dense_score(weights.OV(j, a).dense(), reader.dense(), kind)
                    torch.testing.assert_close(result.values[j, a, i, b], expected, **CLOSE)


def test_random_heads_score_like_the_control():
    """For Gaussian heads the score is near 1 / sqrt(d_model); scores of a random model must lie on the control."""
    draw = torch.Generator().manual_seed(0)
    d, r = 64, 8
    heads = Factored(torch.randn(40, d, r, generator=draw), torch.randn(40, r, d, generator=draw))
    scores = composition_scores(heads, heads, "V")
    off_diagonal = scores[~torch.eye(40, dtype=torch.bool)]
    control = composition(Weights(toy(d_model=d, n_heads=8, n_layers=2)), "V", draws=200)
    assert control.random_mean == pytest.approx(off_diagonal.mean().item(), abs=3 * control.random_std / 200**0.5)
    assert control.random_mean == pytest.approx(d**-0.5, rel=0.1)
    assert control.above_random[0, :, 1].abs().max() < 5 * control.random_std


def test_a_planted_pair_composes_and_the_others_do_not():
    """The writer writes into a subspace; only one reader reads it, through its keys alone."""
    eye = torch.eye(12, dtype=torch.float64)
    writer = Factored(eye[:, :3], eye[3:6])  # reads dims 0-2, writes dims 3-5
    keys = Factored(eye[:, 6:9], eye[3:6])  # queries from 6-8, keys from 3-5
    assert composition_scores(writer, keys, "K").item() == pytest.approx(3**0.5 / 3)  # all of it, 1 / sqrt(rank)
    assert composition_scores(writer, keys, "Q").item() == 0
    assert composition_scores(writer, keys.T, "Q").item() == pytest.approx(3**0.5 / 3)
    assert composition_scores(writer, writer, "V").item() == 0


def test_a_single_head_adds_no_axis():
    weights = Weights(random_model("gpt2", torch.float64))
    table = composition_scores(weights.OV(0), weights.QK(1), "K")
    assert table.shape == (4, 4)
    torch.testing.assert_close(composition_scores(weights.OV(0, 2), weights.QK(1), "K"), table[2], **CLOSE)
    torch.testing.assert_close(composition_scores(weights.OV(0), weights.QK(1, 3), "K"), table[:, 3], **CLOSE)


# -- copying: check 4 of the common sheet ----------------------------------------------------------------------------


@pytest.mark.parametrize(("sign", "score"), [(1, 1.0), (-1, -1.0)])
def test_identity_copies_and_minus_identity_anti_copies(sign, score):
    eye = torch.eye(20, dtype=torch.float64)
    assert copying_score(Factored(sign * eye, eye)).item() == pytest.approx(score, abs=1e-12)


def test_random_maps_neither_copy_nor_anti_copy():
    """300 circuits of rank 4: mean below 0.1 in size, standard deviation about 0.4."""
    draw = torch.Generator().manual_seed(0)
    stack = Factored(
        torch.randn(300, 30, 4, generator=draw, dtype=torch.float64),
        torch.randn(300, 4, 30, generator=draw, dtype=torch.float64),
    )
    scores = copying_score(stack)
    assert abs(scores.mean()) < 0.1
    assert 0.3 < scores.std() < 0.5


@pytest.mark.parametrize("family", ["gpt2", "llama-gqa", "gemma", "opt"])
def test_the_small_matrix_and_the_vocabulary_sized_one_agree(family):
    weights = Weights(random_model(family, torch.float64))
    scores = copying_scores(weights)
    for layer, head in [(0, 0), (2, 3)]:
        circuit = weights.W_E @ weights.OV(layer, head) @ weights.W_U
        assert circuit.shape == (300, 300)
        values = torch.linalg.eigvals(circuit.dense())  # 300 of them, all but d_head zero
        large = values.real.sum() / values.abs().sum()
        torch.testing.assert_close(scores[layer, head], large, **CLOSE)
        torch.testing.assert_close(copying_score(circuit), large, **CLOSE)


def test_what_does_not_fit_is_refused():
    weights = Weights(random_model("gpt2"))
    with pytest.raises(ConfigError, match="'Q', 'K' or 'V'"):
        composition(weights, "O")
    with pytest.raises(ConfigError, match="no spread"):
        composition(weights, "Q", draws=1)
    with pytest.raises(ShapeError, match="not of one model"):
        composition_scores(weights.OV(0), Factored(torch.ones(5, 1), torch.ones(1, 5)), "V")
    with pytest.raises(ModelError, match="one vocabulary and width"):
        copying_scores(Weights(random_model("opt-postnorm")))
    assert copying_score(Factored(torch.zeros(5, 1), torch.ones(1, 5))).isnan()
