from __future__ import annotations

import errno
import json
import os
import struct
from pathlib import Path

import pytest
import torch
from data_fixtures import OTHER, SITE, CountingSource, tiny_corpus, tiny_model
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hooke.base import files
from hooke.base.errors import ConfigError, DataError, FormatError, HookeError, SiteError
from hooke.base.progress import SilentSink
from hooke.data.harvest import harvest
from hooke.data.manifest import MANIFEST
from hooke.data.store import Store, write_store
from hooke.data.writing import StoreOptions, write_rows

SMALL = StoreOptions(shard_rows=16, shards_per_buffer=3)


def contents(folder):
    """Bytes of every file but the cache of modification times."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.name != "checked.json"}


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "store", CountingSource(200), options=SMALL)
    return tmp_path / "store"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_row_is_there_once_with_its_columns(tmp_path, dtype):
    write_rows(tmp_path, CountingSource(200, dtype), options=SMALL)
    store = Store.open(tmp_path)
    assert store.shard_rows == [16] * 12 + [8]
    parts = [store.read(shard) for shard in range(13)]
    number = torch.cat([part.token_id for part in parts])
    assert number.sort().values.tolist() == list(range(200))
    for part in parts:
        assert part.rows[SITE].dtype == store.dtype == dtype
        assert torch.equal(part.rows[SITE], part.token_id.to(dtype)[:, None].expand(-1, 4))
        assert torch.equal(part.rows[OTHER], part.token_id.to(dtype)[:, None].expand(-1, 2))
        assert torch.equal(part.doc * 10 + part.pos, part.token_id)


def test_rows_are_mixed_within_the_buffer_and_never_beyond(folder):
    store = Store.open(folder)
    for buffer in range(4):
        inside = torch.cat([store.read(s).token_id for s in range(buffer * 3, min(buffer * 3 + 3, 12))])
        assert inside.sort().values.tolist() == list(range(buffer * 48, buffer * 48 + 48))
        documents = [len(set(store.read(s).doc.tolist())) for s in range(buffer * 3, buffer * 3 + 3)]
        assert min(documents) >= 4  # of about 5 in the buffer; unmixed shards would have 2
    other = StoreOptions(seed=1, shard_rows=16, shards_per_buffer=3)
    write_rows(folder.parent / "other", CountingSource(200), options=other)
    assert not torch.equal(Store.open(folder.parent / "other").read(0).token_id, store.read(0).token_id)


def test_mean_and_std_are_those_of_the_rows(tmp_path, model, corpus):
    store = write_store(tmp_path, model, corpus, ["resid_post.*", "embed"], options=StoreOptions(shard_rows=100))
    for site in store.sites:
        rows = torch.cat([store.read(shard).rows[site] for shard in range(len(store.shard_rows))]).double()
        torch.testing.assert_close(store.mean(site), rows.mean(dim=0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(store.std(site), rows.std(dim=0, correction=0), rtol=1e-10, atol=1e-12)


def test_store_holds_what_the_harvest_gave(tmp_path, model, corpus):
    store = write_store(tmp_path, model, corpus, "resid_post.1", n_tokens=300, options=StoreOptions(shard_rows=70))
    chunks = list(harvest(model, corpus, "resid_post.1", n_tokens=300))
    rows = {
        (int(d), int(p)): row for c in chunks for d, p, row in zip(c.doc, c.pos, c.rows[store.sites[0]], strict=True)
    }
    assert store.n_rows == 300 == len(rows)
    for shard in range(len(store.shard_rows)):
        part = store.read(shard)
        for d, p, row in zip(part.doc, part.pos, part.rows[store.sites[0]], strict=True):
            assert torch.equal(rows[int(d), int(p)], row)


def test_shards_are_plain_safetensors_with_one_tensor_per_site(folder):
    tensors = load_file(folder / "shard-00000.safetensors")
    assert set(tensors) == {
        *("resid_post.1", "mlp_post.0", "token_id", "doc", "pos"),
        *("mean:resid_post.1", "m2:resid_post.1", "mean:mlp_post.0", "m2:mlp_post.0"),
    }
    assert torch.equal(tensors["resid_post.1"], Store.open(folder).read(0).rows[SITE])


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("write", range(1, 14))  # 13 is after the last shard and before the end
def test_a_writer_that_stops_anywhere_goes_on_to_the_same_bytes(tmp_path, write):
    write_rows(tmp_path / "whole", CountingSource(200), options=SMALL)
    count = 0

    class Stopping(SilentSink):
        def artefact(self, path, kind):
            nonlocal count
            count += 1
            if count == write:
                (tmp_path / "cut" / ".tmp-0-shard-00009.safetensors").write_bytes(b"half a shard")
                raise Killed

    with pytest.raises(Killed):
        write_rows(tmp_path / "cut", CountingSource(200), options=SMALL, sink=Stopping())
    with pytest.raises(DataError, match="is not finished"):
        Store.open(tmp_path / "cut")
    write_rows(tmp_path / "cut", CountingSource(200), options=SMALL)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_a_finished_store_is_left_as_it_is(folder):
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    write_rows(folder, CountingSource(200), options=SMALL)
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="already holds a store"):
        write_rows(folder, CountingSource(200), options=SMALL, resume=False)


def test_other_settings_do_not_go_on_with_a_store(folder):
    with pytest.raises(ConfigError, match=r"n_tokens is 200 there, 201 asked; shard_rows is 16 there, 32 asked"):
        write_rows(folder, CountingSource(201), options=StoreOptions(shard_rows=32, shards_per_buffer=3))


def test_refuses_another_model(tmp_path, model, corpus):
    write_store(tmp_path, model, corpus, "embed", n_tokens=50)
    Store.open(tmp_path, model)
    stranger = tiny_model(seed=1)
    with pytest.raises(DataError, match=r"holds activations of model .* not of .*: weights differ"):
        Store.open(tmp_path, stranger)
    with pytest.raises(DataError, match="weights differ"):
        write_store(tmp_path, stranger, corpus, "embed", n_tokens=50)


def test_refuses_a_site_that_it_does_not_hold(folder):
    with pytest.raises(SiteError, match=r"holds no site 'resid_post\.0'; did you mean 'resid_post\.1'"):
        Store.open(folder, sites="resid_post.0")
    store = Store.open(folder, sites=["blocks.0.mlp.hook_post"])
    assert store.sites == (OTHER,) and set(store.read(0).rows) == {OTHER}


@pytest.mark.parametrize("keep", [0, 7, 8, 100, -1])
def test_refuses_a_truncated_shard(folder, keep):
    path = folder / "shard-00003.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    for verify in ("none", "changed", "all"):
        with pytest.raises(FormatError, match=r"shard-00003\.safetensors"):
            Store.open(folder, verify=verify)


def test_refuses_a_missing_shard(folder):
    (folder / "shard-00012.safetensors").unlink()
    with pytest.raises(FormatError, match=r"shard-00012\.safetensors cannot be read"):
        Store.open(folder)


@settings(max_examples=20)
@given(place=st.floats(0, 1, exclude_max=True))
def test_refuses_a_shard_with_one_altered_byte(tmp_path_factory, place):
    folder = tmp_path_factory.mktemp("altered")
    write_rows(folder, CountingSource(20), options=SMALL)
    path = folder / "shard-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"shard-00001\.safetensors"):
        Store.open(folder)


def test_verify_all_finds_what_the_file_times_hide(folder):
    path = folder / "shard-00001.safetensors"
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    Store.open(folder)  # size and time are the same: the checksum is not computed again
    with pytest.raises(FormatError, match="was altered"):
        Store.open(folder, verify="all")


def test_checked_again_where_the_cache_is_lost_or_broken(folder):
    for broken in (None, "[]", "{not json", '{"shard-00001.safetensors": 3}'):
        (folder / "checked.json").unlink(missing_ok=True)
        if broken is not None:
            (folder / "checked.json").write_text(broken)
        Store.open(folder)
        assert len(json.loads((folder / "checked.json").read_text())) == 13


def test_refuses_altered_statistics(folder):
    path = folder / "statistics.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"statistics\.safetensors was altered"):
        Store.open(folder).mean(SITE)


def test_full_disk_before_the_work(tmp_path, monkeypatch, model, corpus):
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(DataError, match="has only 1.0 kB free"):
        write_store(tmp_path / "store", model, corpus, "resid_post.1", n_tokens=100)
    assert not (tmp_path / "store").exists()


def test_full_disk_in_the_middle_keeps_what_is_whole_and_goes_on(tmp_path, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    write_rows(whole, CountingSource(200), options=SMALL)
    real, count = files.save_file, 0

    def full(tensors, path, metadata=None):
        nonlocal count
        count += 1
        if count == 6:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path, metadata)

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(DataError, match=r"disk is full: .*shard-00005\.safetensors was not written"):
        write_rows(cut, CountingSource(200), options=SMALL)
    assert sorted(path.name for path in cut.iterdir()) == [MANIFEST, *(f"shard-0000{i}.safetensors" for i in range(5))]
    write_rows(cut, CountingSource(200), options=SMALL)
    assert contents(cut) == contents(whole)


def test_nan_stops_the_writing_and_leaves_nothing_half_written(tmp_path):
    with pytest.raises(DataError, match=r"'resid_post.1' is NaN or infinite at document 7, token 3"):
        write_rows(tmp_path, CountingSource(200, bad_row=73), options=SMALL)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert not manifest["complete"]
    shards = {path.name for path in tmp_path.glob("*.safetensors")}
    assert shards == {shard["file"] for shard in manifest["shards"]}
    assert all(load_file(tmp_path / name)["resid_post.1"].isfinite().all() for name in shards)


def test_empty_corpus(tmp_path, model):
    with pytest.raises(DataError, match="is empty"):
        write_store(tmp_path / "a", model, tiny_corpus(0), "embed")
    with pytest.raises(DataError, match="gave no rows"):
        write_rows(tmp_path / "b", EmptySource(), options=SMALL)


class EmptySource(CountingSource):
    """Asks for no number of rows and gives none."""

    def __init__(self):
        super().__init__(0)

    def describe(self):
        return {**super().describe(), "n_tokens": None}


def test_no_store_there(tmp_path):
    with pytest.raises(FormatError, match=r"manifest\.json cannot be read: it does not exist"):
        Store.open(tmp_path)


def test_read_refuses_rows_that_do_not_exist(folder):
    with pytest.raises(DataError, match="rows 10 to 17 of shard 0 do not exist; it has 16"):
        Store.open(folder).read(0, 10, 17)


BAD_MANIFESTS = {
    "not an object": lambda m: [m],
    "another format": lambda m: {**m, "format": "zip"},
    "a later version": lambda m: {**m, "version": 2},
    "no sites": lambda m: {**m, "sites": []},
    "unknown dtype": lambda m: {**m, "dtype": "int8"},
    "a shard outside": lambda m: {**m, "shards": [{**m["shards"][0], "file": "../x.safetensors"}, *m["shards"][1:]]},
    "no checksum": lambda m: {**m, "shards": [{**m["shards"][0], "sha256": "0"}, *m["shards"][1:]]},
    "wrong sum": lambda m: {**m, "rows": m["rows"] + 1},
    "twice": lambda m: {**m, "shards": [m["shards"][0], *m["shards"][:-1]], "rows": 208},
    "text for a number": lambda m: {**m, "context": "8"},
    "another site": lambda m: {**m, "sites": [{"site": "embed", "width": 4}]},
    "another width": lambda m: {**m, "sites": [{"site": "resid_post.1", "width": 5}]},
    "no such site": lambda m: {**m, "sites": [{"site": "nonsense", "width": 5}]},
}


@pytest.mark.parametrize("name", list(BAD_MANIFESTS))
def test_malformed_manifests_are_refused_by_name(folder, name):
    path = folder / MANIFEST
    path.write_text(json.dumps(BAD_MANIFESTS[name](json.loads(path.read_text()))))
    with pytest.raises(FormatError, match=r"manifest\.json|shard-00000"):
        Store.open(folder)


def test_unknown_fields_are_ignored(folder):
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["note"] = manifest["shards"][0]["note"] = "from a later writer"
    path.write_text(json.dumps(manifest))
    assert Store.open(folder).n_rows == 200


@settings(max_examples=40)
@given(data=st.data())
def test_no_bytes_make_a_store_fail_in_another_way(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("fuzz")
    write_rows(folder, CountingSource(30), options=SMALL)
    path = data.draw(st.sampled_from(sorted(folder.iterdir())))
    content = path.read_bytes()
    start = data.draw(st.integers(0, len(content)))
    stop = data.draw(st.integers(start, min(len(content), start + 20)))
    path.write_bytes(content[:start] + data.draw(st.binary(max_size=20)) + content[stop:])
    try:
        Store.open(folder, verify="none").read(0)
    except HookeError as error:
        assert str(folder) in str(error) or isinstance(error, DataError)


def test_a_header_that_promises_too_much_is_refused_without_reading_it(folder):
    path = folder / "shard-00000.safetensors"
    path.write_bytes(struct.pack("<Q", 2**63) + path.read_bytes()[8:])
    with pytest.raises(FormatError, match="no safetensors file"):
        Store.open(folder, verify="none")
