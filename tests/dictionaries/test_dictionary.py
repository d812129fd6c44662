"""The object: its forms agree, a row's code is its own, bad input is refused with the reason."""

from __future__ import annotations

import math

import pytest
import torch

from hooke.base.errors import ConfigError, DataError, ShapeError, SiteError
from hooke.dictionaries import BatchTopK, Dictionary, TopK, fold_decoder_norm_, fold_input_scale_, fold_pre_bias_
from hooke.dictionaries.activations import from_settings, settings
from hooke.model.sites import Site


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(200, 16, generator=torch.Generator().manual_seed(0)) + 0.3


@pytest.fixture(params=[TopK(3), BatchTopK(2.5)], ids=["topk", "batchtopk"])
def dictionary(request, x) -> Dictionary:
    made = Dictionary(16, 64, activation=request.param, reads="resid_post.2", seed=3)
    with torch.no_grad():
        made.b_dec.copy_(x.mean(0))
        made.b_enc.copy_(0.05 * torch.randn(64, generator=torch.Generator().manual_seed(1)))
    return made.calibrate(x)


def test_sparse_and_dense_forms_agree(dictionary, x):
    with torch.no_grad():
        latents = dictionary.encode(x)
        pre = (x - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc
        assert torch.allclose(dictionary.pre_activations(x), pre, atol=1e-5)
        codes = latents.dense()
        assert torch.allclose(codes[codes > 0], pre[codes > 0], atol=1e-5)
        dense = codes @ dictionary.W_dec + dictionary.b_dec
        assert torch.allclose(dictionary(x), dense, atol=1e-5)
        assert torch.allclose(dictionary.decode(latents), dense, atol=1e-5)


def test_initial_directions(dictionary):
    assert torch.allclose(dictionary.W_dec.norm(dim=1), torch.ones(64))
    assert dictionary.W_enc.shape == (16, 64)
    assert dictionary.encoder.is_contiguous() and dictionary.W_dec.is_contiguous()
    assert torch.equal(dictionary.W_enc.T, dictionary.encoder)
    other = Dictionary(16, 64, activation=TopK(3), seed=3)
    assert torch.equal(other.W_dec, dictionary.W_dec)
    assert not torch.equal(Dictionary(16, 64, activation=TopK(3), seed=4).W_dec, dictionary.W_dec)


def test_any_leading_shape(dictionary, x):
    with torch.no_grad():
        flat, cube = dictionary.encode(x), dictionary.encode(x.view(4, 50, 16))
        assert torch.equal(cube.dense().view(200, 64), flat.dense())
        assert torch.equal(dictionary(x.view(4, 50, 16)).view(200, 16), dictionary(x))
        assert dictionary.encode(x[0]).values.ndim == 1


def test_a_row_does_not_depend_on_its_batch(dictionary, x):
    with torch.no_grad():
        together = dictionary.encode(x).dense()
        for rows in (slice(0, 1), slice(5, 8), slice(0, 77)):
            alone = dictionary.encode(x[rows]).dense()
            assert torch.equal(alone != 0, together[rows] != 0)
            assert torch.allclose(alone, together[rows], atol=1e-5)


def test_in_training_mode_batchtopk_does_depend_on_it(x):
    dictionary = Dictionary(16, 64, activation=BatchTopK(2)).train()
    with torch.no_grad():
        crafted = torch.cat([x[:1], 100 * x[1:50]])  # loud neighbours take every place
        assert int(dictionary.encode(x[:1]).l0()) == 2
        assert int(dictionary.encode(crafted).l0()[0]) == 0


def test_calibration_meets_k_exactly(x):
    dictionary = Dictionary(16, 64, activation=BatchTopK(2.5)).calibrate(x)
    with torch.no_grad():
        assert float(dictionary.encode(x).l0().double().mean()) == 2.5


def test_gradients_reach_the_input(dictionary, x):
    x = x[:5].double().requires_grad_()
    assert torch.autograd.gradcheck(dictionary.double(), x, eps=1e-7, atol=1e-5)


def test_output_has_the_dtype_of_the_input(dictionary, x):
    with torch.no_grad():
        assert dictionary(x.bfloat16()).dtype == torch.bfloat16


def test_latent_is_a_view(dictionary, x):
    latent = dictionary[7]
    assert latent.decoder.data_ptr() == dictionary.W_dec[7].data_ptr()
    assert torch.equal(latent.encoder, dictionary.W_enc[:, 7])
    assert latent.bias == float(dictionary.b_enc[7].detach())
    assert torch.equal(latent.activation(x), dictionary.encode(x).dense()[:, 7].detach())
    assert "7 of 64" in repr(latent)
    with pytest.raises(IndexError, match="0 to 63"):
        dictionary[64]


def test_folding_the_input_scale_is_exact(dictionary, x):
    with torch.no_grad():
        scaled, codes = dictionary(x), dictionary.encode(x).dense()
        fold_input_scale_(dictionary, 4.0)  # a power of two: no rounding at all
        assert torch.equal(dictionary.encode(4 * x).dense(), 4 * codes)
        assert torch.equal(dictionary(4 * x), 4 * scaled)
        fold_input_scale_(dictionary, 1 / 3.7)
        assert torch.allclose(dictionary(4 * x / 3.7), 4 * scaled / 3.7, atol=1e-5)


def test_folding_two_scales_of_a_transcoder(x):
    made = Dictionary(16, 64, activation=BatchTopK(2), reads="mlp_in.1", writes="mlp_out.1", d_out=8).calibrate(x)
    assert not made.subtract_b_dec
    with torch.no_grad():
        before = made(x)
        fold_input_scale_(made, 2.0, 8.0)
        assert torch.allclose(made(2.0 * x), 8.0 * before, rtol=1e-5, atol=1e-5)


def test_folding_the_bias_is_exact(dictionary, x):
    with torch.no_grad():
        before = dictionary(x)
        fold_pre_bias_(dictionary)
        assert not dictionary.subtract_b_dec
        assert torch.allclose(dictionary(x), before, atol=1e-4)


def test_folding_decoder_norms(dictionary, x):
    with torch.no_grad():
        before = dictionary(x)
        dictionary.W_dec.mul_(2.0)
        dictionary.encoder.mul_(0.5)
        dictionary.b_enc.mul_(0.5)
        dictionary.threshold.mul_(0.5)
        fold_decoder_norm_(dictionary)
        assert torch.allclose(dictionary(x), before, atol=1e-5)
        dictionary.W_dec[3] *= 2
    with pytest.raises(ConfigError, match="would change which"):
        fold_decoder_norm_(dictionary)
    with torch.no_grad():
        dictionary.W_dec[3] = 0
    with pytest.raises(ConfigError, match="norm 0"):
        fold_decoder_norm_(dictionary)


def test_permuting_latents_changes_nothing(dictionary, x):
    with torch.no_grad():
        before = dictionary(x)
        order = torch.randperm(64)
        for parameter in (dictionary.encoder, dictionary.b_enc, dictionary.W_dec):
            parameter.copy_(parameter[order].clone())
        assert torch.allclose(dictionary(x), before, atol=1e-5)


def test_orthonormal_dictionary_keeps_the_largest_positive_coefficients(x):
    made = Dictionary(16, 16, activation=TopK(3))
    with torch.no_grad():
        basis = torch.linalg.qr(torch.randn(16, 16))[0]
        made.encoder.copy_(basis)
        made.W_dec.copy_(basis)
        coefficients = (x @ basis.T).relu()
        expected = torch.zeros_like(coefficients).scatter_(1, coefficients.topk(3).indices, coefficients.topk(3).values)
        assert torch.allclose(made.encode(x).dense(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("bad", "error", "words"),
    [
        (torch.zeros(0, 16), DataError, "no rows"),
        (torch.full((2, 16), math.nan), DataError, "NaN"),
        (torch.full((2, 16), math.inf), DataError, "infinite"),
        (torch.zeros(2, 15), ShapeError, "d_in=16"),
        (torch.zeros(2, 16, dtype=torch.long), DataError, "int64"),
    ],
    ids=["empty", "nan", "inf", "width", "integers"],
)
def test_bad_input(dictionary, bad, error, words):
    with pytest.raises(error, match=words):
        dictionary.encode(bad)
    with pytest.raises(error, match=words):
        dictionary(bad)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TopK(0), "at least 1"),
        (lambda: TopK(-2), "at least 1"),
        (lambda: TopK(2.5), "whole number"),
        (lambda: TopK(math.nan), "whole number"),
        (lambda: BatchTopK(0), "above 0"),
        (lambda: BatchTopK(-1.5), "above 0"),
        (lambda: BatchTopK(2, threshold_rate=0.0), "threshold_rate"),
        (lambda: Dictionary(8, 16, activation=TopK(17)), "only 16"),
        (lambda: Dictionary(8, 16, activation=BatchTopK(16.5)), "only 16"),
        (lambda: Dictionary(0, 16, activation=TopK(1)), "at least 1"),
        (lambda: Dictionary(8, 16, activation=TopK(1), d_out=4, subtract_b_dec=True), "equal widths"),
        (lambda: fold_input_scale_(Dictionary(8, 16, activation=TopK(1)), 0.0), "positive"),
        (lambda: fold_input_scale_(Dictionary(8, 16, activation=TopK(1)), 1.0, 2.0), "one scale"),
        (lambda: Dictionary(8, 16, activation=BatchTopK(2)).encode(torch.ones(1, 8)), "no inference threshold"),
        (lambda: from_settings({"name": "topp", "k": 3}), "did you mean 'topk'"),
        (lambda: from_settings({"name": "topk", "q": 3}), "topk"),
    ],
)
def test_bad_settings(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_settings_round_trip_and_sites():
    for activation in (TopK(5), BatchTopK(2.5, threshold_rate=0.1)):
        assert from_settings(settings(activation)) == activation
    made = Dictionary(4, 8, activation=TopK(1), reads="resid_post.2")
    assert made.reads == made.writes == Site("resid_post", 2)
    assert "resid_post.2" in repr(made)
    with pytest.raises(SiteError):
        Dictionary(4, 8, activation=TopK(1), reads="resid_pots.2")
