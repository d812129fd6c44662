"""The whole loss with AuxK against dense float64 autograd, away from every special case."""

from __future__ import annotations

import pytest
import torch

from hooke.dictionaries import BatchTopK, Dictionary, Objective, TopK
from hooke.dictionaries.objectives import losses

D, N, ROWS = 10, 24, 17


@pytest.mark.parametrize("activation", [TopK(k=3), BatchTopK(k=3)])
@pytest.mark.parametrize("subtract", [True, False])
def test_loss_and_gradients_with_dead_latents(activation, subtract):
    torch.manual_seed(0)
    made = Dictionary(D, N, activation=activation, subtract_b_dec=subtract, seed=2).double()
    with torch.no_grad():
        made.b_dec.copy_(torch.randn(D))
        made.b_enc.copy_(0.3 * torch.randn(N))
        made.encoder.add_(0.2 * torch.randn(N, D))
    dead = torch.tensor([1, 4, 5, 8, 9, 13, 16, 20, 22])
    x = torch.randn(ROWS, D, dtype=torch.float64) + 0.5
    found = losses(made, x, x, Objective(), dead=dead)
    ours = torch.autograd.grad(found.total, [made.encoder, made.b_enc, made.W_dec, made.b_dec])

    encoder, b_enc, W_dec, b_dec = (
        p.detach().clone().requires_grad_() for p in (made.encoder, made.b_enc, made.W_dec, made.b_dec)
    )
    pre = (x - b_dec if subtract else x) @ encoder.T + b_enc
    positive = pre.relu()
    if isinstance(activation, TopK):
        kept = torch.zeros_like(pre).scatter(1, positive.topk(3, dim=1).indices, 1.0)
    else:
        kept = (positive >= positive.flatten().sort(descending=True).values[ROWS * 3 - 1]).double()
    x_hat = (positive * kept) @ W_dec + b_dec
    residual = (x - x_hat).detach()  # the target of AuxK is a constant, without b_dec
    codes = pre[:, dead].relu()
    codes = codes * torch.zeros_like(codes).scatter(1, codes.topk(D // 2, dim=1).indices, 1.0)
    auxiliary = (residual - codes @ W_dec[dead]).square().sum() / (residual - residual.mean(0)).square().sum()
    total = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum() + auxiliary / 32
    expected = torch.autograd.grad(total, [encoder, b_enc, W_dec, b_dec])
    assert found.total.item() == pytest.approx(total.item(), rel=1e-12)
    for got, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-9)
