"""Logit weights against planted unembeddings and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hooke.base.errors import ConfigError, DataError
from hooke.dictionaries.activations.topk import TopK
from hooke.dictionaries.dictionary import Dictionary
from hooke.features.logits import logit_directions, logit_weights


@pytest.fixture
def planted(model):
    """Ground-truth check 2 of the sheet: orthonormal rows of W_U, decoder row 0 = the unembedding of token 7."""
    head = model.hf.get_output_embeddings()
    kept = head.weight.data.clone()
    head.weight.data.zero_()
    head.weight.data[:16] = torch.linalg.qr(torch.randn(16, 16, generator=torch.Generator().manual_seed(0)))[0]
    dictionary = Dictionary(16, 4, activation=TopK(1), reads="resid_post.0")
    with torch.no_grad():
        dictionary.W_dec[0] = head.weight[7]
    yield dictionary
    head.weight.data.copy_(kept)


def test_the_decoder_of_token_seven_raises_token_seven_alone(model, planted):
    weights = logit_weights(model, planted, 0, 10)
    assert weights.raised[0] == 7 and weights.raised_values[0] == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(weights.raised_values[1:], 0, atol=1e-6)
    np.testing.assert_allclose(weights.lowered_values, 0, atol=1e-6)
    assert weights.histogram.counts.sum() == model.d_vocab and weights.histogram.reason is None


def test_raw_is_the_plain_product_and_the_lists_are_its_ends(model, dictionary):
    full = (dictionary.W_dec[3] @ model.unembed).detach().numpy()
    weights = logit_weights(model, dictionary, 3, 5)
    np.testing.assert_allclose(weights.raised_values, np.sort(full)[::-1][:5], atol=1e-6)
    np.testing.assert_allclose(weights.lowered_values, np.sort(full)[:5], atol=1e-6)
    np.testing.assert_allclose(full[weights.lowered], weights.lowered_values, atol=1e-6)


def test_centred_is_the_direction_of_the_true_logits(model, dictionary):
    """Adding a small multiple of the row before the final norm moves the centred logits that way, norm apart."""
    gain = model.hf.transformer.ln_f.weight
    with torch.no_grad():
        gain.copy_(torch.linspace(0.5, 2, 16))
    row = dictionary.W_dec[3].detach()
    expected = ((row - row.mean()) * gain) @ model.unembed
    found = logit_directions(model, dictionary, [3], variant="centred")[0]
    torch.testing.assert_close(found, expected - expected.mean(), atol=1e-6, rtol=1e-5)
    assert abs(float(found.mean())) < 1e-6
    x = torch.zeros(16)
    x[0] = 1e4  # the norm of a large x barely changes when the row is added, so the norm is a constant division
    moved = model.hf.lm_head(model.hf.transformer.ln_f(x + row)) - model.hf.lm_head(model.hf.transformer.ln_f(x))
    moved = (moved - moved.mean()) * torch.sqrt(x.var(correction=0) + model.hf.transformer.ln_f.eps)
    away = (x - x.mean()) / (x - x.mean()).norm()  # what the division removes: the part along x itself
    lost = (((row - row.mean()) @ away) * away * gain) @ model.unembed
    torch.testing.assert_close(moved, found - (lost - lost.mean()), atol=2e-2, rtol=1e-2)
    with torch.no_grad():
        gain.fill_(1)


@pytest.mark.parametrize(("writes", "words"), [("mlp_post.0", "not in the space"), ("resid_post.1", "d_model 16")])
def test_decoders_outside_the_residual_stream_have_a_reason(model, writes, words):
    other = Dictionary(16, 4, activation=TopK(1), reads="resid_post.0", writes=writes, d_out=64)
    weights = logit_weights(model, other, 0)
    assert words in weights.reason and len(weights.raised) == 0 and np.isnan(weights.histogram.edges).all()
    with pytest.raises(ConfigError, match=words):
        logit_directions(model, other, [0])


def test_what_does_not_exist(model, dictionary):
    with pytest.raises(DataError, match="latent 48"):
        logit_weights(model, dictionary, 48)
