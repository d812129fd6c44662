"""The external sort against one lexsort, whatever the budget."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hooke.base.errors import ConfigError
from hooke.features.external_sort import BYTES_PER_ENTRY, ExternalSort, pack_keys, unpack_keys

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda x: x != 0)


@given(st.lists(st.tuples(st.integers(0, 2**31 - 1), FLOATS), max_size=40))
def test_keys_order_as_tuples_and_come_back(pairs):
    latent = np.array([p[0] for p in pairs], dtype=np.int64)
    value = np.array([p[1] for p in pairs], dtype=np.float32)
    keys = pack_keys(latent, value)
    back = unpack_keys(keys)
    np.testing.assert_array_equal(back[0], latent)
    np.testing.assert_array_equal(back[1], value)
    np.testing.assert_array_equal(np.argsort(keys, kind="stable"), np.lexsort((-value, latent)))


@pytest.mark.parametrize("entries", [8192, 20_000, 10**6])
def test_merged_is_one_lexsort_for_every_budget(tmp_path, entries):
    rng = np.random.default_rng(0)
    n = 60_000
    latent = (rng.zipf(1.3, n) % 50).astype(np.int32)
    value = (rng.integers(1, 300, n) / 7).astype(np.float32)  # many ties
    at = np.arange(n)
    sorter = ExternalSort(tmp_path, entries * BYTES_PER_ENTRY)
    for begin in range(0, n, 777):
        part = slice(begin, begin + 777)
        sorter.add(latent[part], value[part], at[part])
    blocks = list(sorter.merged())
    order = np.lexsort((at, -value, latent))
    for name, expected in (("latent", latent), ("value", value), ("at", at)):
        np.testing.assert_array_equal(np.concatenate([getattr(b, name) for b in blocks]), expected[order])
    n_runs = -(-n // entries)
    assert all(len(b.at) <= max(entries, (n_runs + 1) * 1024) for b in blocks)
    assert list(tmp_path.iterdir()) == []


def test_nothing_in_nothing_out(tmp_path):
    assert list(ExternalSort(tmp_path, 10**6).merged()) == []


def test_a_budget_too_small_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="or more"):
        ExternalSort(tmp_path, 1000)
