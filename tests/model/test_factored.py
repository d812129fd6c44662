"""Factored matrices against the dense computation, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hooke.base.errors import ShapeError
from hooke.model.weights.factored import Factored

CLOSE = {"atol": 1e-10, "rtol": 1e-10}
STACKS = [(), (3,), (2, 3)]


def factored(rows: int, cols: int, rank: int, *, stack: tuple[int, ...] = (), seed: int = 0) -> Factored:
    draw = torch.Generator().manual_seed(seed)
    left = torch.randn(*stack, rows, rank, generator=draw, dtype=torch.float64)
    return Factored(left, torch.randn(*stack, rank, cols, generator=draw, dtype=torch.float64))


def random(*shape: int, seed: int = 9) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("stack", STACKS)
def test_shape_selection_and_transpose_are_those_of_the_dense_matrix(stack):
    f = factored(7, 5, 3, stack=stack)
    assert f.shape == f.dense().shape
    assert f.rank == 3
    torch.testing.assert_close(f.T.dense(), f.dense().mT, **CLOSE)
    torch.testing.assert_close(f.rows([4, 1]).dense(), f.dense()[..., [4, 1], :], **CLOSE)
    torch.testing.assert_close(f.columns(torch.tensor([0, 3])).dense(), f.dense()[..., [0, 3]], **CLOSE)
    torch.testing.assert_close(f.rows(slice(2, None)).dense(), f.dense()[..., 2:, :], **CLOSE)
    assert f.to(torch.float32).left.dtype == torch.float32
    if stack:
        torch.testing.assert_close(f.select(-1).dense(), f.dense()[-1], **CLOSE)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("ranks", [(2, 4), (4, 2), (3, 3)])
def test_products_are_those_of_the_dense_matrices(stack, ranks):
    f, g = factored(7, 5, ranks[0], stack=stack), factored(5, 6, ranks[1], seed=1)
    product = f @ g
    assert product.left.shape[-1] == min(ranks)  # the thinner inner width stays
    torch.testing.assert_close(product.dense(), f.dense() @ g.dense(), **CLOSE)
    before, after = random(4, 7), random(5, 8)
    whole = before @ f @ after
    assert isinstance(whole, Factored)
    torch.testing.assert_close(whole.dense(), before @ f.dense() @ after, **CLOSE)
    torch.testing.assert_close(f @ random(5), f.dense() @ random(5), **CLOSE)
    torch.testing.assert_close(random(7) @ f, random(7) @ f.dense(), **CLOSE)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("rank", [1, 3, 6, 9])  # also inner widths beyond the matrix' own size
def test_numbers_are_those_of_the_dense_matrix(stack, rank):
    f = factored(6, 6, rank, stack=stack)
    dense = f.dense()
    torch.testing.assert_close(f.trace(), dense.diagonal(dim1=-2, dim2=-1).sum(-1), **CLOSE)
    torch.testing.assert_close(f.diagonal(), dense.diagonal(dim1=-2, dim2=-1), **CLOSE)
    torch.testing.assert_close(f.norm(), torch.linalg.matrix_norm(dense), **CLOSE)
    u, s, vh = f.svd()
    torch.testing.assert_close(u * s.unsqueeze(-2) @ vh, dense, **CLOSE)
    torch.testing.assert_close(s, torch.linalg.svdvals(dense)[..., : f.rank], **CLOSE)
    identity = torch.eye(s.shape[-1], dtype=torch.float64).expand(*stack, -1, -1)
    torch.testing.assert_close(u.mT @ u, identity, **CLOSE)
    torch.testing.assert_close(vh @ vh.mT, identity, **CLOSE)
    large = torch.linalg.eigvals(dense)
    large = large.gather(-1, large.abs().argsort(dim=-1, descending=True))[..., : f.rank]
    torch.testing.assert_close(f.eigenvalues().sum(-1), large.sum(-1), **CLOSE)
    torch.testing.assert_close(f.eigenvalues().abs(), large.abs(), **CLOSE)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 10**6))
def test_norm_and_singular_values_of_any_shape(rows, cols, rank, seed):
    f = factored(rows, cols, rank, seed=seed)
    torch.testing.assert_close(f.norm(), torch.linalg.matrix_norm(f.dense()), **CLOSE)
    values = torch.linalg.svdvals(f.dense())[: f.rank]
    torch.testing.assert_close(f.svd()[1][: len(values)], values, atol=1e-9, rtol=1e-9)


def test_norm_survives_cancellation_that_a_gram_matrix_does_not():
    """Two large opposite terms leave a small matrix: tr(L'L RR') in the same precision loses all digits."""
    a, small = random(50, 1), 1e-9 * random(50, 1, seed=3)
    f = Factored(torch.cat([a, -a + small], 1), torch.ones(2, 50, dtype=torch.float64))
    exact = small.norm() * 50**0.5
    gram = (f.left.mT @ f.left * (f.right @ f.right.mT)).sum().clamp(min=0).sqrt()
    assert abs(f.norm() / exact - 1) < 1e-6
    assert abs(gram / exact - 1) > 1e-2


def test_nothing_of_the_large_size_is_made():
    """A vocabulary by vocabulary matrix would need 20 GB here."""
    n = 50_000
    f = Factored(torch.ones(n, 2), torch.ones(2, n) / n)
    assert f.trace().item() == pytest.approx(2.0, rel=1e-5)
    assert f.eigenvalues().real.tolist() == pytest.approx([2.0, 0.0], abs=1e-5)
    assert (f @ f).shape == (n, n)


def test_half_precision_is_decomposed_in_float32():
    f = factored(6, 6, 2).to(torch.bfloat16)
    assert f.norm().dtype == f.svd()[1].dtype == torch.float32
    assert f.eigenvalues().dtype == torch.complex64


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Factored(torch.ones(3, 2), torch.ones(3, 2)), "do not fit"),
        (lambda: Factored(torch.ones(2, 3, 2), torch.ones(2, 3)), "stacked differently"),
        (lambda: factored(3, 4, 2).trace(), "square"),
        (lambda: factored(3, 4, 2).eigenvalues(), "square"),
        (lambda: factored(3, 4, 2) @ random(3), "vector of shape"),
        (lambda: factored(3, 4, 2) @ factored(3, 4, 2), "matrix of shape"),
        (lambda: random(2, 4) @ factored(3, 4, 2), "3 expected"),
        (lambda: factored(3, 4, 2).select(0), "no matrix 0"),
        (lambda: factored(3, 4, 2, stack=(2,)).select(2), "no matrix 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(make, says):
    with pytest.raises(ShapeError, match=says):
        make()
