"""The three sparse products, and their gradients, equal dense ones."""

from __future__ import annotations

import pytest
import torch

from hooke.dictionaries.activations import BatchTopK, TopK
from hooke.dictionaries.dictionary import Dictionary
from hooke.dictionaries.latents import Latents
from hooke.dictionaries.objectives import AuxK, MultiTopK, Objective, losses
from hooke.dictionaries.support import Support, _stable_argsort


@pytest.fixture
def support() -> Support:
    return Support(torch.tensor([0, 2, 2, 5]), torch.tensor([1, 3, 0, 1, 2]), 4)  # the middle row is empty


def test_products(support):
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    codes = torch.tensor([[0, 1.0, 0, 2], [0, 0, 0, 0], [3, 4, 5, 0]])
    weight, rows = torch.randn(4, 6), torch.randn(3, 6)
    assert torch.allclose(support.sum_rows(values, weight), codes @ weight, atol=1e-6)
    assert torch.allclose(support.sum_latents(values, rows), codes.T @ rows, atol=1e-6)
    assert torch.allclose(support.dot(rows, weight), (rows @ weight.T)[codes != 0], atol=1e-5)
    assert torch.equal(support.gather(codes), values)
    assert torch.equal(support.latents(values).dense(), codes)
    assert support.rows.tolist() == [0, 0, 2, 2, 2]


def test_flat_places_round_trip():
    flat = torch.tensor([1, 3, 8, 9, 10])
    found = Support.of_flat(flat, 3, 4)
    assert torch.equal(found.rows * 4 + found.latent, flat)


@pytest.mark.parametrize("n_latents", [50, 1 << 17])
def test_grouping_by_latent_is_stable(n_latents):
    latent = torch.randint(50, (1000,))
    assert torch.equal(_stable_argsort(latent, n_latents), torch.sort(latent, stable=True).indices)


def reference(dictionary: Dictionary, x: torch.Tensor, support: Support, objective: Objective) -> torch.Tensor:
    """The same loss with dense autograd and the selection given."""
    pre = (x - dictionary.b_dec) @ dictionary.W_enc + dictionary.b_enc
    mask = Latents(*_padded(support)).dense() > 0
    codes = torch.where(mask, pre, 0).relu()
    x_hat = codes @ dictionary.W_dec + dictionary.b_dec
    return (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()


def _padded(support: Support):
    latents = support.latents(torch.ones(support.latent.numel(), dtype=torch.float64))
    return latents.indices, latents.values, latents.n_latents


@pytest.mark.parametrize("activation", [TopK(4), BatchTopK(3.5)], ids=["topk", "batchtopk"])
def test_gradients_equal_dense_autograd_in_float64(activation):
    dictionary = Dictionary(16, 128, activation=activation, seed=1).double()
    with torch.no_grad():
        dictionary.b_dec.normal_()
        dictionary.b_enc.normal_(std=0.1)
    x = torch.randn(40, 16, dtype=torch.float64) + 0.5
    objective = Objective("fvu", aux_k=None)
    found = losses(dictionary, x, x, objective)
    sparse = torch.autograd.grad(found.total, list(dictionary.parameters()))
    total = reference(dictionary, x, found.support, objective)
    dense = torch.autograd.grad(total, list(dictionary.parameters()))
    assert torch.allclose(found.total, total, atol=1e-12)
    for a, b in zip(sparse, dense, strict=True):
        assert torch.allclose(a, b, atol=1e-9), (a - b).abs().max()


def test_gradient_flows_to_kept_entries_only():
    dictionary = Dictionary(8, 64, activation=TopK(2))
    found = losses(dictionary, torch.randn(5, 8), torch.randn(5, 8), Objective("sum", aux_k=None))
    found.total.backward()
    used = torch.zeros(64, dtype=torch.bool)
    used[found.support.latent[found.values > 0]] = True
    assert bool((dictionary.encoder.grad[~used] == 0).all())
    assert bool((dictionary.W_dec.grad[used].norm(dim=1) > 0).all())


def test_multi_topk_is_the_sum_of_two_separate_losses():
    dictionary = Dictionary(16, 128, activation=TopK(3)).requires_grad_(False)
    x = torch.randn(64, 16)
    both = losses(dictionary, x, x, Objective("fvu", aux_k=None, multi_topk=MultiTopK())).total
    one = losses(dictionary, x, x, Objective("fvu", aux_k=None)).total
    dictionary.activation = TopK(12)
    four = losses(dictionary, x, x, Objective("fvu", aux_k=None)).total
    assert float(both) == pytest.approx(float(one + four / 8), abs=1e-6)


def test_auxiliary_loss_is_added_with_its_coefficient():
    dictionary = Dictionary(16, 128, activation=TopK(3)).requires_grad_(False)
    x, dead = torch.randn(64, 16), torch.arange(40)
    without = losses(dictionary, x, x, Objective("fvu", aux_k=None), dead=dead)
    found = losses(dictionary, x, x, Objective("fvu", aux_k=AuxK(0.5, 4)), dead=dead)
    assert float(found.total) == pytest.approx(float(without.total + 0.5 * found.auxiliary), rel=1e-6)
    assert float(losses(dictionary, x, x, Objective(), dead=dead[:0]).auxiliary) == 0.0
