from __future__ import annotations

import errno
import os
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from hooke.base import files
from hooke.base.errors import DataError, FormatError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_only_when_whole(tmp_path):
    target = tmp_path / "new" / "a.txt"
    with files.atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == target.parent and temporary.suffix == ".txt"
        assert not target.exists()
    assert target.read_text() == "whole" and names(target.parent) == ["a.txt"]


def test_an_error_keeps_what_was_there(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError, match="stop"), files.atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError("stop")
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(DataError, match="nothing was written"), files.atomic_path(tmp_path / "a"):
        pass


def test_a_folder_replaces_a_folder(tmp_path):
    for text in ("one", "two"):
        with files.atomic_path(tmp_path / "d") as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
    assert names(tmp_path) == ["d"] and names(tmp_path / "d") == ["two"]


def test_everything_is_flushed_before_the_rename(tmp_path, monkeypatch):
    order = []
    real_fsync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (order.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))), real_fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append("replace"), real_replace(a, b)))
    with files.atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert order == [temporary.name, "replace", tmp_path.name]


@pytest.fixture
def umask():
    """Sets the umask for one test."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_files_get_the_mode_of_the_umask_whoever_wrote_them(tmp_path, umask, mask, mode):
    umask(mask)
    files.write_tensors(tmp_path / "a.safetensors", {"x": torch.ones(2)})
    with files.atomic_path(tmp_path / "folder") as temporary:
        (temporary / "deep").mkdir(parents=True)
        save_file({"x": torch.ones(2)}, temporary / "deep" / "b.safetensors")
        (temporary / "narrow.txt").write_text("x")
        (temporary / "narrow.txt").chmod(0o400)
    found = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"a.safetensors": mode, "b.safetensors": mode, "narrow.txt": mode}
    assert names(tmp_path) == ["a.safetensors", "folder"]


def test_a_full_disk_says_so_and_keeps_the_old_file(tmp_path, monkeypatch):
    files.write_json(tmp_path / "a.json", 1)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"the disk is full: .*a\.json was not written"):
        files.write_json(tmp_path / "a.json", 2)
    assert files.read_json(tmp_path / "a.json") == 1 and names(tmp_path) == ["a.json"]


def test_free_space_is_asked_for_before_the_work(tmp_path, monkeypatch):
    files.free_space_or_raise(tmp_path / "not" / "yet", 1)
    usage = shutil.disk_usage(tmp_path)
    with pytest.raises(DataError, match=r"needs .* TB, but the disk has only .* free"):
        files.free_space_or_raise(tmp_path / "not" / "yet", usage.total + 10**13)


@pytest.mark.parametrize("text", [b"", b'{"a": 1', b"\x00\x01\xff", b"NaN"])
def test_broken_json_names_the_file(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(FormatError, match=r"a\.json is not valid JSON"):
        files.read_json(tmp_path / "a.json")


def test_what_cannot_be_read_names_the_file(tmp_path):
    with pytest.raises(FormatError, match=r"none\.json cannot be read: it does not exist"):
        files.read_json(tmp_path / "none.json")
    with pytest.raises(FormatError, match="cannot be read"):
        files.read_json(tmp_path)
    with pytest.raises(FormatError, match="it does not exist"):
        files.read_tensors(tmp_path / "none.safetensors")


def test_a_value_that_cannot_be_written_leaves_the_file(tmp_path):
    files.write_json(tmp_path / "a.json", [1])
    with pytest.raises(DataError):
        files.write_json(tmp_path / "a.json", [object()])
    assert files.read_json(tmp_path / "a.json") == [1] and names(tmp_path) == ["a.json"]


def test_sha256_of_a_known_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, B.1
    assert files.sha256_file(tmp_path / "abc") == expected


def test_tensors_come_back_bit_for_bit(tmp_path):
    base = torch.randn(4, 6)
    tensors = {
        "view": base[:, ::2],
        "same": base,
        "again": base,
        "half": base.bfloat16(),
        "whole": torch.arange(3),
        "empty": torch.zeros(0, 5),
        "grad": torch.ones(2, requires_grad=True),
        "nan": torch.tensor([float("nan")]),
    }
    files.write_tensors(tmp_path / "t.safetensors", tensors, {"site": "resid_post.2"})
    read, metadata = files.read_tensors(tmp_path / "t.safetensors")
    assert metadata == {"site": "resid_post.2"} and read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        torch.testing.assert_close(read[name], tensor.detach(), rtol=0, atol=0, equal_nan=True)


def test_a_truncated_or_altered_tensor_file_is_named(tmp_path):
    path = tmp_path / "t.safetensors"
    files.write_tensors(path, {"x": torch.zeros(100)})
    data, sha256 = path.read_bytes(), files.sha256_file(path)
    files.read_tensors(path, sha256=sha256)
    path.write_bytes(data[:-1])
    with pytest.raises(FormatError, match=r"t\.safetensors is not a whole safetensors file"):
        files.read_tensors(path)
    path.write_bytes(data[:-1] + b"\x01")
    assert files.read_tensors(path)[0]["x"][-1] != 0  # without a checksum nobody can know
    with pytest.raises(FormatError, match=r"t\.safetensors was altered"):
        files.read_tensors(path, sha256=sha256)


@given(st.data())
def test_any_bytes_are_tensors_or_a_format_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    files.write_tensors(path, {"x": torch.arange(4.0), "y": torch.ones(2, 2)}, {"a": "b"})
    text = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(text[: data.draw(st.integers(0, len(text)))]))
    try:
        tensors, _ = files.read_tensors(path)
    except FormatError as error:
        assert "fuzz.safetensors" in str(error)
    else:
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (5 * 10**9, "5.0 GB"), (10**15, "1000.0 TB")],
)
def test_sizes_for_people(n_bytes, text):
    assert files.readable_bytes(n_bytes) == text
