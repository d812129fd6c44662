"""Opening models: folders in the Hugging Face layout, pairs, and what is refused."""

from __future__ import annotations

import copy
import json
import sys
import time

import pytest
import torch
from conftest_model import TEXTS, byte_tokenizer, random_model
from safetensors.torch import load_file, save_file
from test_encoders import random_encoder
from test_moe import random_moe
from test_vision_language import random_vision_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForMaskedLM,
    BertConfig,
    CodeGenConfig,
    Gemma3Config,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
)

from hooke.base.errors import HookeWarning, ModelError, SiteError
from hooke.model.load import _auto_class, load

opening = sys.modules["hooke.model.load"]  # the module; the function of the same name may hide it


def test_a_local_folder_gives_the_same_numbers(tmp_path, family):
    model = random_model(family)
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path)
    # The weights are equal bit for bit; mapped memory is aligned differently, so kernels may differ in the last bit.
    assert all(torch.equal(w, again.hf.state_dict()[name]) for name, w in model.hf.state_dict().items())
    torch.testing.assert_close(again.run(TEXTS).logits, model.run(TEXTS).logits, atol=2e-6, rtol=1e-5)
    assert again.identity["weights"] == model.identity["weights"]
    if not family.startswith(
        "qwen2"
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


# -- which class -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "saved", "expected"),
    [
        (GPT2Config(), "GPT2LMHeadModel", AutoModelForCausalLM),
        (GPT2Config(), None, AutoModelForCausalLM),
        (GPT2Config(), "GPT2Model", AutoModelForCausalLM),  # its head is the embedding, which is there
        (LlamaConfig(tie_word_embeddings=False), "LlamaModel", AutoModel),  # its head would be random
        (LlamaConfig(), "LlamaForSequenceClassification", AutoModel),
        (BertConfig(), "BertForMaskedLM", AutoModelForMaskedLM),
        (BertConfig(), "BertForPreTraining", AutoModelForMaskedLM),  # which has that head too
        (BertConfig(), "BertModel", AutoModel),
        (BertConfig(), None, AutoModelForMaskedLM),
        (BertConfig(is_decoder=True), "BertLMHeadModel", AutoModelForCausalLM),
        (LlavaConfig(), "LlavaForConditionalGeneration", AutoModelForImageTextToText),
        (Gemma3Config(), "Gemma3ForConditionalGeneration", AutoModelForImageTextToText),
        (Gemma3Config(), None, AutoModelForImageTextToText),
    ],
)
def test_the_class_is_that_of_the_checkpoint(config, saved, expected):
    config.architectures = None if saved is None else [saved]
    assert _auto_class(config) is expected


@pytest.mark.parametrize(
    "make",
    [
        lambda: random_encoder("bert"),
        lambda: random_encoder("bert", bare=True),
        lambda: random_encoder("roberta"),
        lambda: random_moe("mixtral"),
        lambda: random_moe("qwen2_moe"),
        lambda: random_vision_model("llava"),
        lambda: random_vision_model("qwen2_vl"),
        lambda: random_vision_model("gemma3"),
    ],
)
def test_folders_of_other_kinds_open_as_what_was_saved(tmp_path, make):
    model = make()
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert type(again.hf) is type(model.hf)
    assert all(torch.equal(w, again.hf.state_dict()[name]) for name, w in model.hf.state_dict().items())
    assert again.sites() == model.sites()
    assert again.notes == ()


def test_a_decoder_without_its_head(family):
    """The bare stack of blocks has all sites but the logits."""
    whole = random_model(family)
    bare = load((whole.hf.base_model, whole.tokenizer))
    names = [str(info.site) for info in bare.sites() if info.site.name not in ("scores", "pattern")]
    tokens = whole.tokens(TEXTS, padding_side="left")
    ours, theirs = bare.run(tokens, capture=names), whole.run(tokens, capture=names)
    assert ours.logits is None
    assert all(torch.equal(ours[name], theirs[name]) for name in names)
    assert {str(info.site) for info in whole.sites()} - {str(info.site) for info in bare.sites()} == {"logits"}
    with pytest.raises(SiteError, match="has no head over the vocabulary"):
        bare.site("logits")


def test_an_architecture_without_a_map_opens_with_what_is_found(tmp_path):
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "rotary_dim": 4, "vocab_size": 300}
    hf = AutoModelForCausalLM.from_config(CodeGenConfig(**sizes, bos_token_id=0, eos_token_id=0))
    hf.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.warns(HookeWarning, match="'codegen' models have no map of sites"):
        model = load(tmp_path)
    tokens = model.tokens(TEXTS)
    with torch.no_grad():
        expected = model.hf(**model.arguments(tokens), use_cache=False).logits
    run = model.run(tokens, capture=["resid_pre.*", "resid_post.*"])
    assert torch.equal(run.logits, expected)
    assert torch.equal(run["resid_pre.1"], run["resid_post.0"])


# -- kernels, quantised weights, devices -------------------------------------------------------------------------------


def test_an_architecture_without_sdpa_runs_eager_and_says_so(tmp_path):
    model = random_model("gemma2", attention="eager")
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.hf.config._attn_implementation == "eager"
    assert again.notes == ("attention runs 'eager', not 'sdpa': transformers has no SDPA for Gemma2ForCausalLM",)
    assert load(tmp_path, attention="eager").notes == ()


def test_experts_in_float64_run_on_a_kernel_that_takes_it(tmp_path):
    model = random_moe("mixtral")
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path, dtype=torch.float64)
    assert again.notes == ("experts run 'eager': the grouped kernel takes no float64",)
    torch.testing.assert_close(again.run("x = 1").logits.float(), model.run("x = 1").logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'; run: pip install bitsandbytes"),
        ({"load_in_8bit": True}, "quantised with 'bitsandbytes'"),
        ({"quant_method": "torchao", "quant_type": {}}, "'torchao'; run: pip install torchao"),
        ({"quant_method": "awq"}, "run: pip install gptqmodel, or open an unquantised"),
        ({"quant_method": "quanto"}, "run: pip install optimum-quanto"),
    ],
)
def test_quantised_checkpoints_are_refused_before_weights_are_read(tmp_path, monkeypatch, settings, says):
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    config = {"model_type": "llama", "quantization_config": settings}  # and there are no weights to read
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=says):
        load(tmp_path)


def test_device_map_needs_accelerate(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "find_spec", lambda name: None)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="device_map needs the package 'accelerate'; run: pip install accelerate"):
        load(tmp_path, device_map="auto")


def test_sites_that_need_a_plain_matrix_are_absent_where_it_is_packed():
    """As bitsandbytes keeps it: bytes in the place of the matrix."""
    hf = copy.deepcopy(random_model("llama").hf)
    packed = hf.model.layers[1].self_attn.o_proj
    packed.weight = torch.nn.Parameter(packed.weight.detach().to(torch.int8), requires_grad=False)
    model = load((hf, byte_tokenizer()))
    with pytest.raises(SiteError, match="output projections are quantised or not in memory; z is what they read"):
        model.site("result.0")
    assert "z" in model.layout.inside
    assert load((random_model("llama").hf, byte_tokenizer())).site("result.0").layer == 0


def test_weights_that_are_not_in_memory_are_not_read():
    hf = copy.deepcopy(random_model("llama").hf)
    hf.lm_head.weight = torch.nn.Parameter(hf.lm_head.weight.to("meta"))
    model = load((hf, byte_tokenizer()))
    with pytest.raises(ModelError, match="the unembedding of unnamed is not in memory"):
        _ = model.unembed
    with pytest.raises(ModelError, match=r"not in memory \(lm_head\.weight\); load it without offloading"):
        _ = model.identity
    assert model.run("x", capture="resid_post.1", until="resid_post.1")["resid_post.1"].shape[-1] == model.d_model


def test_a_model_spread_over_devices_gives_the_same_numbers(tmp_path):
    pytest.importorskip("accelerate")
    model = random_model("llama")
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    places = dict.fromkeys(("model.norm", "model.rotary_emb", "model.layers.0"), "cpu")
    places |= dict.fromkeys(("model.embed_tokens", "model.layers.1", "model.layers.2", "lm_head"), "disk")
    for device_map in ({"": "cpu"}, "auto", places):
        again = load(tmp_path, device_map=device_map)
        assert again.device == torch.device("cpu")
        names = [str(info.site) for info in again.sites()]
        run = again.run(TEXTS, capture=names)
        torch.testing.assert_close(run.logits, model.run(TEXTS, capture=names).logits, atol=2e-6, rtol=1e-5)
        assert ("result" in again.layout.inside) == (device_map is not places)


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    model = random_model("llama")
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no weights for model\.layers\.1\.mlp\.up_proj\.weight; .* random"):
        load(tmp_path)


# -- the hub -----------------------------------------------------------------------------------------------------------


def test_an_unreachable_hub_is_noticed_at_once(monkeypatch):
    asked = []

    def unreachable(url, **options):
        asked.append(options["timeout"])
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(opening, "get_hf_file_metadata", unreachable)
    monkeypatch.setattr(opening, "is_offline_mode", lambda: False)
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"not in the local cache, and the hub cannot be reached \(Name or service"):
        load("some-org/some-model")
    assert time.perf_counter() - start < 3
    assert asked == [5.0, 5.0]


def test_a_name_in_the_cache_does_not_ask_the_hub(monkeypatch, tmp_path):
    def never(url, **options):
        raise AssertionError("asked the hub")

    monkeypatch.setattr(opening, "get_hf_file_metadata", never)
    monkeypatch.setattr(opening, "try_to_load_from_cache", lambda name, file: str(tmp_path / file))
    assert opening._place("some-org/some-model") == "some-org/some-model"
    monkeypatch.setattr(opening, "try_to_load_from_cache", lambda name, file: None)
    monkeypatch.setattr(opening, "is_offline_mode", lambda: True)
    with pytest.raises(ModelError, match="not in the local cache, and offline mode is on"):
        opening._place("some-org/some-model")


def test_an_answer_of_the_hub_is_for_transformers_to_explain(monkeypatch):
    def refuses(url, **options):
        raise opening.FileMetadataError("a mirror without headers")

    monkeypatch.setattr(opening, "get_hf_file_metadata", refuses)
    monkeypatch.setattr(opening, "is_offline_mode", lambda: False)
    assert opening._place("some-org/some-model") == "some-org/some-model"
