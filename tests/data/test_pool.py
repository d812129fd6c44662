from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
import torch
from data_fixtures import OTHER, SITE, CountingSource, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, spearmanr

from hooke.base.errors import ConfigError, DataError, FormatError, ShapeError
from hooke.base.files import read_tensors, write_tensors
from hooke.data.harvest import harvest
from hooke.data.pool import Pool
from hooke.data.store import Store
from hooke.data.writing import StoreOptions, write_rows


def numbers(batches, site=SITE):
    return [int(x) for batch in batches for x in batch[site][:, 0]]


def same(a, b):
    return len(a) == len(b) and all(torch.equal(x[s], y[s]) for x, y in zip(a, b, strict=True) for s in x)


@pytest.fixture
def store(tmp_path):
    write_rows(tmp_path, CountingSource(600), options=StoreOptions(shard_rows=64, shards_per_buffer=2))
    return Store.open(tmp_path)


@given(n=st.integers(1, 300), batch=st.integers(1, 40), extra=st.integers(0, 100))
def test_every_row_comes_out_once_and_sites_stay_together(n, batch, extra):
    batches = list(Pool(CountingSource(n), batch=batch, rows=batch + extra))
    assert sorted(numbers(batches)) == list(range(n))
    assert [len(b[SITE]) for b in batches[:-1]] == [batch] * (len(batches) - 1)
    assert 0 < len(batches[-1][SITE]) <= batch
    for b in batches:
        assert torch.equal(b[SITE][:, :2], b[OTHER])


def test_order_is_shuffled_as_far_as_the_ring_reaches():
    order = numbers(Pool(CountingSource(1000), batch=10, rows=1000))
    assert abs(spearmanr(order, range(1000)).statistic) < 0.1  # a ring that holds everything: a random order
    assert kstest(order[:300], "uniform", args=(0, 1000)).pvalue > 1e-3
    order = np.array(numbers(Pool(CountingSource(1000), batch=10, rows=100)))
    assert (order[:50] < 150).all()  # a row cannot come before it is read
    assert spearmanr(order, range(1000)).statistic > 0.8  # the control: a small ring mixes only nearby rows


def test_same_seed_same_batches_other_seed_other():
    a, b, c = (list(Pool(CountingSource(200), batch=16, rows=64, seed=s)) for s in (0, 0, 1))
    assert same(a, b) and not same(a, c)


def test_ring_is_refilled_in_place():
    pool = Pool(CountingSource(2000), batch=16, rows=64)
    next(pool)
    memory = {site: ring.data_ptr() for site, ring in pool._ring.items()}
    for _ in pool:
        assert {site: ring.data_ptr() for site, ring in pool._ring.items()} == memory
        assert pool._ring[SITE].shape == (64, 4)


def test_a_batch_is_no_view_of_the_ring():
    pool = Pool(CountingSource(500), batch=64, rows=64)
    first = next(pool)
    kept = first[SITE].clone()
    list(islice(pool, 3))
    assert torch.equal(first[SITE], kept)


def test_store_gives_every_row_once_an_epoch_in_a_new_order(store):
    one = numbers(Pool(store, batch=50, rows=200))
    two = numbers(Pool(store, batch=50, rows=200, epochs=2))
    assert sorted(one) == list(range(600)) and sorted(two) == sorted(2 * list(range(600)))
    assert one != numbers(Pool(store, batch=50, rows=200, seed=5))
    endless = numbers(islice(Pool(store, batch=50, rows=200, epochs=None), 60))
    assert len(endless) == 3000 and min(endless.count(i) for i in range(600)) >= 3  # the ring may hold some of them


def test_store_batches_of_chosen_sites_and_dtype(tmp_path):
    write_rows(tmp_path, CountingSource(300, torch.bfloat16), options=StoreOptions(shard_rows=64))
    store = Store.open(tmp_path, sites="mlp_post.0")
    assert next(Pool(store, batch=8, rows=16))[OTHER].dtype == torch.float32
    batch = next(Pool(store, batch=8, rows=16, dtype=None))
    assert set(batch) == {OTHER} and batch[OTHER].dtype == torch.bfloat16 and batch[OTHER].shape == (8, 2)


def sources(kind, store):
    if kind == "store":
        return Pool(store, batch=16, rows=64, epochs=2, seed=3)
    if kind == "iterable":
        return Pool(CountingSource(500), batch=16, rows=64, seed=3)
    from data_fixtures import tiny_corpus

    live = harvest(tiny_model(), tiny_corpus(), ["resid_post.1", "mlp_post.0"], n_tokens=500, context=16, batch=3)
    return Pool(live, batch=16, rows=64, seed=3)


@pytest.mark.parametrize("kind", ["store", "iterable", "harvest"])
@pytest.mark.parametrize("served", [0, 1, 7, 28, 31, 32, 75])
def test_goes_on_bit_for_bit_from_a_saved_state(kind, served, store, tmp_path):
    pool = sources(kind, store)
    list(islice(pool, served))
    write_tensors(tmp_path / "state.safetensors", pool.state_dict())
    rest = list(pool)
    state, _ = read_tensors(tmp_path / "state.safetensors")
    again = sources(kind, store)
    if served % 2:
        next(again)  # a pool that has begun goes back as well
    again.load_state_dict(state)
    assert same(list(again), rest)


def test_state_is_a_copy(store):
    pool = sources("store", store)
    next(pool)
    state = pool.state_dict()
    rest = list(pool)
    pool.load_state_dict(state)
    assert same(list(pool), rest)


def test_refusals(store):
    with pytest.raises(ConfigError, match="at least one batch"):
        Pool(store, batch=8, rows=4)
    with pytest.raises(ConfigError, match="gone through once"):
        Pool(CountingSource(10), epochs=2)
    with pytest.raises(DataError, match="gave no rows"):
        next(Pool([], batch=1, rows=1))
    state = sources("iterable", store).state_dict()
    with pytest.raises(ConfigError, match="had seed=3, this one has 4"):
        Pool(CountingSource(500), batch=16, rows=64, seed=4).load_state_dict(state)
    with pytest.raises(FormatError, match="no state of a pool"):
        Pool(CountingSource(500)).load_state_dict({})
    narrow = Pool(Store.open(store.path, sites="mlp_post.0"), batch=16, rows=64, seed=3)
    pool = sources("store", store)
    next(pool)
    with pytest.raises(ShapeError, match="the saved pool held"):
        narrow.load_state_dict(pool.state_dict())


def test_a_shard_that_is_lost_while_it_is_read_is_named(store):
    (store.path / "shard-00004.safetensors").unlink()
    with pytest.raises(FormatError, match=r"shard-00004\.safetensors"):
        list(Pool(store, batch=16, rows=64))
