"""Selection equals a brute-force sort, whatever the shortcuts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hooke.dictionaries.activations import BatchTopK, TopK
from hooke.dictionaries.select import _bound, top_of_batch, top_of_each_row


def dense(support, pre: torch.Tensor) -> torch.Tensor:
    return support.latents(support.gather(pre).relu()).dense()


@pytest.mark.parametrize("k", [1, 2, 2.5])
def test_batchtopk_keeps_the_largest_of_all_91(k):
    pre = torch.rand(7, 13, generator=torch.Generator().manual_seed(1)) + 0.01
    kept = dense(BatchTopK(k).select_batch(pre), pre)
    n = math.floor(7 * k)
    bound = np.sort(pre.numpy().ravel())[-n]
    assert int((kept != 0).sum()) == n
    assert torch.equal(kept, torch.where(pre >= float(bound), pre, 0))


@pytest.mark.parametrize(("rows", "latents", "k"), [(5, 13, 3), (9, 512, 4), (17, 2048, 32), (3, 4096, 1), (4, 64, 64)])
def test_topk_keeps_the_largest_of_each_row(rows, latents, k):
    pre = torch.randn(rows, latents, generator=torch.Generator().manual_seed(k))
    chosen = top_of_each_row(pre, k)
    assert torch.equal(pre.gather(1, chosen).sort(1).values, pre.sort(1).values[:, -k:])
    assert all(len(set(row)) == k for row in chosen.tolist())


@given(
    hnp.arrays(np.float32, (3, 256), elements=st.integers(-3, 3).map(float)),
    st.integers(1, 4),
)
def test_topk_values_are_right_with_many_ties(values, k):
    pre = torch.from_numpy(values)
    chosen = top_of_each_row(pre, k)
    assert torch.equal(pre.gather(1, chosen).sort(1).values, pre.topk(k, 1).values.flip(1))
    assert all(len(set(row)) == k for row in chosen.tolist())


@given(hnp.arrays(np.float32, (6, 40), elements=st.integers(-2, 4).map(float)), st.integers(1, 240))
def test_batch_selection_breaks_ties_to_exactly_n(values, n):
    pre = torch.from_numpy(values)
    places = top_of_batch(pre, n)
    positive = int((pre > 0).sum())
    assert len(places) == min(n, positive)
    assert (np.diff(places.numpy()) > 0).all()
    assert torch.equal(pre.flatten()[places].sort().values, pre.flatten().sort().values[-len(places) :][: len(places)])


@pytest.mark.parametrize("n", [1, 50, 4000, 200_000])
def test_large_batches_use_a_subsample_and_stay_exact(n):
    pre = torch.randn(300, 4096, generator=torch.Generator().manual_seed(n))
    assert 0 <= _bound(pre.flatten(), n) < float(pre.max())
    assert torch.equal(top_of_batch(pre, n), pre.flatten().topk(n).indices.sort().values)


def test_a_misleading_subsample_costs_time_but_not_exactness():
    pre = torch.zeros(300, 4096)
    stride = (pre.numel() >> 17) | 1
    pre.view(-1)[::stride] = torch.rand(len(pre.view(-1)[::stride])) + 1  # all large entries are in the subsample
    n = 100_000
    assert torch.equal(top_of_batch(pre, n), pre.flatten().topk(n).indices.sort().values)


def test_fewer_positive_entries_than_wanted():
    pre = -torch.ones(4, 8)
    pre[1, 2] = 3.0
    assert top_of_batch(pre, 16).tolist() == [10]
    codes = TopK(2).select(pre)
    assert dense(codes, pre).count_nonzero() == 1  # negative ones among the two are empty slots


def test_one_row_is_topk():
    pre = torch.randn(1, 50)
    assert torch.equal(dense(BatchTopK(5).select_batch(pre), pre), dense(TopK(5).select(pre), pre))


def test_zeros_are_never_counted():
    pre = torch.zeros(3, 5)
    assert BatchTopK(2).select_batch(pre).latent.numel() == 0
    assert BatchTopK(2).select(pre, threshold=-1.0).latent.numel() == 0
