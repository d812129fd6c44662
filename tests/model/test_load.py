"""Opening models: folders in the Hugging Face layout, pairs, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from conftest_model import TEXTS, byte_tokenizer, random_model

from hooke.base.errors import ModelError
from hooke.model.load import load


def test_a_local_folder_gives_the_same_numbers(tmp_path, family):
    model = random_model(family)
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path)
    # The weights are equal bit for bit; mapped memory is aligned differently, so kernels may differ in the last bit.
    assert all(torch.equal(w, again.hf.state_dict()[name]) for name, w in model.hf.state_dict().items())
    torch.testing.assert_close(again.run(TEXTS).logits, model.run(TEXTS).logits, atol=2e-6, rtol=1e-5)
    assert again.identity["weights"] == model.identity["weights"]
    if (
        family != "qwen2"
    ):  # transformers opens any tokenizer beside a Qwen 2 config as a Qwen 2 tokenizer and adds to it
        assert again.identity["tokenizer"] == model.identity["tokenizer"]
    assert load(str(tmp_path), dtype=torch.bfloat16, attention="eager").dtype == torch.bfloat16


def test_identity_sees_one_changed_weight(tmp_path):
    model = random_model("gpt2")
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    other = load(tmp_path)
    with torch.no_grad():
        other.hf.transformer.h[1].mlp.c_fc.weight[7, 11] += 1e-3  # any single one
    assert other.identity["weights"] != model.identity["weights"]


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("hooke/stdlb", "did you mean 'hooke/stdlib'"),
        ("no-such-org/no-such-model", "cannot open model 'no-such-org/no-such-model'"),
        ((1, 2), "expected a transformers model first, got int"),
        ((1, 2, 3), "got a tuple of 3"),
    ],
)
def test_unknown_models(source, says):
    with pytest.raises(ModelError, match=says):
        load(source)


def test_folders_that_are_no_model(tmp_path):
    with pytest.raises(ModelError, match=r"without config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ModelError, match="a 't5' model with an encoder and a decoder"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1}))
    with pytest.raises(ModelError, match="cannot open model"):
        load(tmp_path)


def test_pair_needs_a_tokenizer():
    with pytest.raises(ModelError, match="expected a transformers tokenizer second"):
        load((random_model("gpt2").hf, "gpt2"))
    assert byte_tokenizer().pad_token_id == 1
