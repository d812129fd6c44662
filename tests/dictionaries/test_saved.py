"""What is saved comes back bit for bit; what is damaged is refused and named."""

from __future__ import annotations

import json

import pytest
import torch

from hooke.base.errors import FormatError
from hooke.base.files import read_tensors, sha256_file, write_tensors
from hooke.dictionaries import BatchTopK, Dictionary, TopK


@pytest.fixture(params=[TopK(3), BatchTopK(2.5)], ids=["topk", "batchtopk"])
def dictionary(request) -> Dictionary:
    x = 20 * torch.randn(100, 12, generator=torch.Generator().manual_seed(0))
    made = Dictionary(12, 40, activation=request.param, reads="resid_post.1", seed=1)
    with torch.no_grad():
        made.b_dec.copy_(x[0])
    return made.calibrate(x)


@pytest.fixture
def folder(dictionary, tmp_path):
    dictionary.save(tmp_path / "d", metadata={"corpus": "x"})
    return tmp_path / "d"


def change(folder, **fields) -> None:
    cfg = json.loads((folder / "cfg.json").read_text())
    cfg.update(fields)
    (folder / "cfg.json").write_text(json.dumps(cfg))


def swap(folder, **tensors) -> None:
    """Replace tensors and make the checksum right again."""
    old, metadata = read_tensors(folder / "weights.safetensors")
    write_tensors(folder / "weights.safetensors", old | tensors, metadata)
    change(folder, weights={"file": "weights.safetensors", "sha256": sha256_file(folder / "weights.safetensors")})


def test_round_trip_is_bit_exact(dictionary, folder):
    loaded = Dictionary.load(folder)
    for name, tensor in dictionary.state_dict().items():
        assert torch.equal(loaded.state_dict()[name].nan_to_num(), tensor.nan_to_num()), name
    x = 20 * torch.randn(30, 12)
    assert torch.equal(loaded(x), dictionary(x))
    assert (loaded.reads, loaded.activation) == (dictionary.reads, dictionary.activation)
    assert not loaded.training
    assert json.loads((folder / "cfg.json").read_text())["metadata"] == {"corpus": "x"}
    assert read_tensors(folder / "weights.safetensors")[0]["W_enc"].shape == (12, 40)


def test_saving_over_replaces_and_saving_keeps_mode(dictionary, folder):
    dictionary.train()
    dictionary.save(folder)
    assert dictionary.training
    assert Dictionary.load(folder).n_latents == 40


def test_untrained_batchtopk_can_be_saved(tmp_path):
    Dictionary(4, 8, activation=BatchTopK(2)).save(tmp_path / "d")
    assert bool(Dictionary.load(tmp_path / "d").threshold.isnan())


def test_truncated_and_altered_weights(folder):
    data = (folder / "weights.safetensors").read_bytes()
    (folder / "weights.safetensors").write_bytes(data[:-10])
    with pytest.raises(FormatError, match="weights.safetensors was altered"):
        Dictionary.load(folder)
    (folder / "weights.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(FormatError, match="altered"):
        Dictionary.load(folder)
    (folder / "weights.safetensors").unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        Dictionary.load(folder)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": "other"}, "not a hooke.dictionary"),
        ({"version": 99}, "version 99"),
        ({"activation": {"name": "relu"}}, "'relu' is not known"),
        ({"d_in": 13}, "W_enc has shape|b_dec has shape|equal widths"),
        ({"weights": {}}, "lacks a field"),
        ({"d_in": None}, "lacks a field|another kind|d_in"),
        ({"reads": "nowhere.3"}, "nowhere"),
        ({"dtype": "float31"}, "lacks a field"),
    ],
)
def test_wrong_settings(folder, fields, words):
    change(folder, **fields)
    with pytest.raises(FormatError, match=words):
        Dictionary.load(folder)


def test_missing_folder_and_broken_json(tmp_path):
    with pytest.raises(FormatError, match="cannot be read"):
        Dictionary.load(tmp_path / "none")
    (tmp_path / "cfg.json").write_text("{")
    with pytest.raises(FormatError, match="not valid JSON"):
        Dictionary.load(tmp_path)


def test_missing_threshold(tmp_path):
    Dictionary(4, 8, activation=BatchTopK(2)).calibrate(torch.randn(50, 4)).save(tmp_path / "d")
    change(tmp_path / "d", threshold=None)
    with pytest.raises(FormatError, match="needs a threshold"):
        Dictionary.load(tmp_path / "d")


def test_the_probe_catches_what_a_checksum_cannot(dictionary, folder):
    change(folder, subtract_b_dec=False)
    with pytest.raises(FormatError, match="probe outputs differ"):
        Dictionary.load(folder)
    change(folder, subtract_b_dec=True)
    Dictionary.load(folder)
    swap(folder, W_dec=dictionary.W_dec.detach().flip(0))
    with pytest.raises(FormatError, match="probe outputs differ"):
        Dictionary.load(folder)


def test_rows_without_norm_are_said(dictionary, tmp_path):
    with torch.no_grad():
        dictionary.W_dec[5] = 0
    dictionary.save(tmp_path / "z")
    with pytest.warns(UserWarning, match="1 decoder rows have norm 0"):
        Dictionary.load(tmp_path / "z")
