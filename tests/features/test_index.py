"""The index against brute force, the sheet's planted values, and damaged folders."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from hooke.base.errors import ConfigError, DataError, FormatError
from hooke.base.files import sha256_file
from hooke.features import verification
from hooke.features.index import LatentIndex


@pytest.fixture
def planted(write):
    """Ground-truth check 1 of the sheet: 200 prompts x 64 tokens, one value i/100 in each of 100 prompts."""
    dense = np.zeros((200 * 64, 2), dtype=np.float32)
    rng = np.random.default_rng(0)
    prompts = rng.permutation(200)[:100]
    dense[prompts * 64 + rng.integers(0, 64, 100), 0] = np.arange(1, 101) / 100
    return write(dense, row_length=64)


def test_top_twenty_of_the_planted_values(planted):
    np.testing.assert_array_equal(planted.top(0).values, (np.arange(100, 80, -1) / 100).astype(np.float32))


def test_density_is_exact(planted):
    assert planted.density[0] == 100 / 12_800 == 0.0078125


def test_interval_groups_have_the_planted_edges_and_values(planted):
    groups = planted.intervals(0, 5, 20)
    np.testing.assert_allclose([g.low for g in groups], [0.8, 0.6, 0.4, 0.2, 0.0], atol=1e-7)
    np.testing.assert_allclose([g.high for g in groups], [1.0, 0.8, 0.6, 0.4, 0.2], atol=1e-7)
    for number, group in enumerate(groups):
        top = 100 - 20 * number
        np.testing.assert_array_equal(group.values, (np.arange(top, top - 20, -1) / 100).astype(np.float32))
        assert group.share == 0.2 and group.name == f"interval {5 - number} of 5"


def test_dead_latent_has_no_examples_and_a_reason(planted):
    assert planted.density[1] == 0 and planted.max_activation[1] == 0 and planted.top_token[1] == -1
    assert len(planted.top(1).at) == 0 and planted.quantiles(1) == [] and planted.intervals(1) == []
    histogram = planted.histogram(1)
    assert np.isnan(histogram.edges).all() and histogram.counts.sum() == 0 and "never fired" in histogram.reason
    assert np.isnan(planted.mean_activation(1))


def test_histogram_spans_the_non_zero_activations(planted):
    edges, counts, reason = planted.histogram(0, bins=50)
    assert counts.sum() == 100 and reason is None
    np.testing.assert_allclose(edges[[0, -1]], [0.01, 1.0], rtol=1e-6)


def test_faces_agree_with_the_dense_matrix(write):
    rng = np.random.default_rng(1)
    dense = np.where(rng.random((300, 20)) < 0.2, rng.integers(1, 5, (300, 20)), 0).astype(np.float32)  # many ties
    index = write(dense, row_length=10)
    for latent in range(20):
        at, values = index.firings(latent)
        expected = np.lexsort((np.arange(300), -dense[:, latent]))[: (dense[:, latent] > 0).sum()]
        np.testing.assert_array_equal(at, expected)
        np.testing.assert_array_equal(values, dense[expected, latent])
        np.testing.assert_array_equal(index.activations(latent, 37, 61), dense[37:61, latent])
    ids, values = index.active(5)
    assert dict(zip(ids.tolist(), values.tolist(), strict=True)) == {
        int(i): float(dense[5, i]) for i in np.flatnonzero(dense[5])
    }
    np.testing.assert_array_equal(index.density, (dense > 0).mean(axis=0))
    np.testing.assert_array_equal(index.max_activation, dense.max(axis=0))


def test_one_example_a_document(write):
    dense = np.ones((60, 1), dtype=np.float32)
    dense[:10, 0] = np.arange(20, 10, -1)  # the first document holds the ten strongest places
    index = write(dense, row_length=10, rows_per_doc=2)
    at, values = index.top(0, 10)
    assert index.n_documents == 3 and len(at) == 3
    assert sorted(index.doc[at]) == [0, 1, 2] and values[0] == 20
    np.testing.assert_array_equal(index.top(0, 10, per_document=False).at, np.arange(10))


def test_quantiles_have_equal_counts_are_seeded_and_do_not_repeat(planted):
    groups = planted.quantiles(0, 5, 5, seed=3)
    assert [g.n for g in groups] == [20] * 5 and [g.share for g in groups] == [0.2] * 5
    assert all(
        len(set(g.at.tolist())) == 5 and (g.values >= g.low).all() and (g.values <= g.high).all() for g in groups
    )
    assert groups[0].high == 1.0 and groups[-1].low == np.float32(0.01)
    again = planted.quantiles(0, 5, 5, seed=3)
    assert all((a.at == b.at).all() for a, b in zip(groups, again, strict=True))
    other = planted.quantiles(0, 5, 5, seed=4)
    assert any((a.at != b.at).any() for a, b in zip(groups, other, strict=True))


def test_fewer_places_than_groups(write):
    dense = np.zeros((20, 1), dtype=np.float32)
    dense[[3, 4], 0] = [2, 1]
    groups = write(dense, row_length=10).quantiles(0, 5, 5)
    assert [(g.n, g.low) for g in groups] == [(1, 2.0), (1, 1.0)]


def test_windows_stay_in_their_row(write):
    dense = np.zeros((30, 1), dtype=np.float32)
    dense[[12, 13, 19], 0] = [1, 5, 2]
    index = write(dense, row_length=10, rows_per_doc=3, token_id=np.arange(30) % 3)
    example = index.example(0, 13, before=2, after=100)
    assert example.doc == "doc-0" and example.row == 1 and example.start == 11 and example.focus == 2
    assert example.positions == [2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert example.activations.tolist() == [0, 1, 5, 0, 0, 0, 0, 0, 2] and example.value == 5
    assert example.text == "".join("abc"[i % 3] for i in range(11, 20))
    whole = index.example(0, 13)
    assert whole.start == 10 and len(whole.tokens) == 10


@pytest.mark.parametrize("latent", [-1, 2])
def test_latents_that_do_not_exist(planted, latent):
    with pytest.raises(DataError, match="the dictionary has 2"):
        planted.firings(latent)


def test_ids_outside_the_vocabulary_are_marked(planted):
    assert planted.strings([0, 77]) == ["a", "<id 77 out of range>"]


@pytest.mark.parametrize("file", ["at.npy", "token_id.npy", "offsets.npy"])
def test_a_truncated_file_is_named(planted, tmp_path, file):
    copy = tmp_path / "copy"
    shutil.copytree(planted.path, copy)
    data = (copy / file).read_bytes()
    (copy / file).write_bytes(data[:-4])
    with pytest.raises(FormatError, match=file):
        LatentIndex.open(copy)
    (copy / file).unlink()
    with pytest.raises(FormatError, match=file):
        LatentIndex.open(copy)


def test_verify_names_an_altered_file(planted, tmp_path):
    planted.verify()
    copy = tmp_path / "copy"
    shutil.copytree(planted.path, copy)
    altered(copy / "strength.npy")
    with pytest.raises(FormatError, match=r"strength\.npy was altered"):
        LatentIndex.open(copy).verify()


def altered(file):
    """The same number of bytes, one of them different."""
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))


def test_a_remembered_check_reads_only_what_changed(planted, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(planted.path, copy)
    read = []
    monkeypatch.setattr(verification, "sha256_file", lambda path: read.append(path.name) or sha256_file(path))
    index = LatentIndex.open(copy)
    before = sorted(path.name for path in copy.iterdir())
    index.verify(remember=True)
    assert sorted(read) == sorted(index.manifest["files"]) and len(read) > 10
    index.verify(remember=True)
    assert len(read) == len(index.manifest["files"])  # nothing was read again
    index.verify()
    assert len(read) == 2 * len(index.manifest["files"])  # the whole check reads everything
    assert sorted(path.name for path in copy.iterdir()) == before  # the artefact is as it was
    altered(copy / "strength.npy")
    os.utime(copy / "strength.npy", ns=(1, 1))  # another time, whatever the clock's steps
    read.clear()
    with pytest.raises(FormatError, match=r"strength\.npy was altered"):
        index.verify(remember=True)
    assert read == ["strength.npy"]


def test_a_note_of_other_files_or_none_at_all_is_no_harm(planted, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(planted.path, copy)
    index = LatentIndex.open(copy)
    altered(copy / "at.npy")
    note = verification.note_of(copy)
    for text in ("{", "[1]", '{"at.npy": [1, 2, "3"]}'):
        note.write_text(text)
        with pytest.raises(FormatError, match=r"at\.npy was altered"):
            index.verify(remember=True)
    note.unlink()
    note.mkdir()  # a place that cannot be written
    altered(copy / "at.npy")
    index.verify(remember=True)


@pytest.mark.parametrize("change", [{"format": "other"}, {"version": 99}])
def test_other_manifests_are_refused(planted, change):
    manifest = json.loads((planted.path / "manifest.json").read_text())
    (planted.path / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(FormatError):
        LatentIndex.open(planted.path)


def test_no_index_there(tmp_path):
    with pytest.raises(FormatError, match="does not exist"):
        LatentIndex.open(tmp_path)


def test_bins_and_groups_count_from_one(planted):
    with pytest.raises(ConfigError):
        planted.histogram(0, bins=0)
    with pytest.raises(ConfigError):
        planted.quantiles(0, 0)
