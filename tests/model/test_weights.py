"""Raw weights: what the matrices say must be what the model computes; views, refusals, circuits."""

from __future__ import annotations

import copy
import functools
from types import SimpleNamespace

import pytest
import torch
from conftest_model import random_model
from conftest_weights import ALL_MODELS, model_of, text_for
from torch import nn

from hooke.base.errors import ModelError, SiteError
from hooke.model.toy.make import toy
from hooke.model.weights.views import Weights

CLOSE = {"atol": 1e-10, "rtol": 1e-10}


@functools.cache
def run_of(family: str):
    """One run with every site that a weight makes or reads."""
    model = model_of(family)
    wanted = ("embed", "pos_embed", "final_norm", "logits")
    inner = ("attn_in", "q", "k", "v", "z", "result", "mlp_in", "mlp_pre", "mlp_pre_linear", "mlp_post")
    outputs = ("resid_pre", "resid_mid", "attn_norm_scale", "attn_out", "mlp_out")
    sites = [n for n in wanted if model.layout.has(n, None)]
    layers = range(model.n_layers)
    sites += [f"{n}.{i}" for n in (*inner, *outputs) for i in layers if model.layout.has(n, i)]
    return model.run(text_for(model), capture=sites)


@pytest.fixture(params=ALL_MODELS)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return model_of(family)


@pytest.fixture
def run(family):
    return run_of(family)


def test_attention_weights_are_what_the_model_multiplies_by(model, run):
    w = Weights(model)
    for i in range(model.n_layers):
        x = run[f"attn_in.{i}"]
        added = run["pos_embed"] if getattr(model.hf.config, "positions", None) == "shortformer" else 0
        for site, read, W, b in (
            ("q", x + added, w.W_Q, w.b_Q),
            ("k", x + added, w.W_K, w.b_K),
            ("v", x, w.W_V, w.b_V),
        ):
            made = torch.einsum("bpd,hde->bphe", read, W[i]) + b[i]
            torch.testing.assert_close(made, run[f"{site}.{i}"], **CLOSE)
        made = torch.einsum("bphe,hed->bphd", run[f"z.{i}"], w.W_O[i])
        torch.testing.assert_close(made, run[f"result.{i}"], **CLOSE)
        if not model.layout.has("attn_post_norm_scale", i):
            torch.testing.assert_close(made.sum(2) + w.b_O[i], run[f"attn_out.{i}"], **CLOSE)


def test_mlp_weights_are_what_the_model_multiplies_by(model, run):
    w = Weights(model)
    for i in range(model.n_layers):
        if not model.layout.has("mlp_post", i):
            continue
        gated = model.layout.has("mlp_pre_linear", i)
        x = run[f"mlp_in.{i}"]
        first = "mlp_pre_linear" if gated else "mlp_pre"
        torch.testing.assert_close(x @ w.W_in[i] + w.b_in[i], run[f"{first}.{i}"], **CLOSE)
        if gated:
            torch.testing.assert_close(x @ w.W_gate[i] + w.b_gate[i], run[f"mlp_pre.{i}"], **CLOSE)
        if not model.layout.has("mlp_post_norm_scale", i):
            made = run[f"mlp_post.{i}"] @ w.W_out[i] + w.b_out[i]
            torch.testing.assert_close(made, run[f"mlp_out.{i}"], **CLOSE)


def test_embeddings_norms_and_unembedding_are_what_the_model_uses(model, run):
    w = Weights(model)
    ids = run.tokens.ids
    if not any(note.startswith("W_E: its rows pass") for note in w.notes):
        # the scale itself is a float32 number
        torch.testing.assert_close(w.W_E[ids] * w.embed_scale, run["embed"], atol=1e-6, rtol=1e-6)
    if model.layout.has("pos_embed", None):
        expected = w.W_pos[: ids.shape[1]].expand_as(run["pos_embed"])
        torch.testing.assert_close(expected, run["pos_embed"], **CLOSE)
    if model.layout.has("final_norm", None):
        logits = run["final_norm"] @ w.W_U + w.b_U
        cap = model.layout.logit_softcap
        torch.testing.assert_close(logits if cap is None else cap * (logits / cap).tanh(), run["logits"], **CLOSE)
    for i in range(model.n_layers):
        if model.layout.has("attn_norm_scale", i):
            x = run[f"resid_pre.{i}"]
            x = x - x.mean(-1, keepdim=True) if model.layout.norm == "layer" else x
            made = x / run[f"attn_norm_scale.{i}"] * w.attn_norm_gain[i] + w.attn_norm_bias[i]
            torch.testing.assert_close(made, run[f"attn_in.{i}"], atol=1e-5, rtol=1e-5)  # HF's RMSNorm is float32


def test_every_name_reads_and_most_share_their_storage_with_the_model(model):
    w = Weights(model)
    kept = {weight.untyped_storage().data_ptr() for weight in model.hf.parameters()}
    names = list(w)
    assert len(names) == len(set(names)) == len(w)
    for name in names:
        if not name.startswith("W") or (model.family == "falcon" and name.startswith("W_Q")):
            continue  # a bias may not exist; Falcon's queries lie in groups
        assert w[name].untyped_storage().data_ptr() in kept, f"{name} is a copy"
        assert not w[name].requires_grad


def test_ov_takes_each_position_to_what_the_head_writes(model):
    """Patterns, OV and biases give every head's result: so grouped heads read the right group's values."""
    w = Weights(model)
    layer = model.n_layers - 1
    names = [f"{n}.{layer}" for n in ("pattern", "attn_in", "result")]
    run = model.run(text_for(model), capture=names)
    for head in (0, model.n_heads - 1):
        moved = run[f"attn_in.{layer}"] @ w.OV(layer, head).dense() + w.b_V.expanded[layer][head] @ w.W_O[layer][head]
        made = run[f"pattern.{layer}"][:, head].to(moved.dtype) @ moved
        # patterns come out of float32 softmax in several families
        torch.testing.assert_close(made, run[f"result.{layer}"][:, :, head], atol=1e-5, rtol=1e-5)


def test_qk_gives_the_scores_where_nothing_rotates():
    model = toy(n_layers=1, norm="layer", positions="learned")
    w = Weights(model)
    run = model.run("1 3 5 7", capture=["attn_in.0", "scores.0"])
    x = run["attn_in.0"][0]
    mask = torch.ones(x.shape[0], x.shape[0]).tril().bool()
    for head in range(model.n_heads):
        scores = x @ w.QK(0, head).dense() @ x.T / model.d_head**0.5
        torch.testing.assert_close(scores[mask], run["scores.0"][0, head][mask], atol=1e-5, rtol=1e-5)
    assert w.notes == ()
    assert any("rotated" in note for note in Weights(random_model("llama")).notes)
    assert any("normed" in note for note in Weights(random_model("qwen3")).notes)
    assert any("distance" in note for note in Weights(random_model("bloom")).notes)
    assert not any("normed" in note for note in Weights(random_model("llama")).notes)


def test_stacks_are_the_heads_one_by_one_and_grouped_heads_are_repeated():
    w = Weights(random_model("llama-gqa", torch.float64))
    assert w.W_K[1].shape == (2, 32, 12)
    assert w.W_K.expanded[1].shape == w.W_Q[1].shape == (4, 32, 12)
    assert torch.equal(w.W_K.expanded[1][1], w.W_K[1][0]) and torch.equal(w.W_K.expanded[1][2], w.W_K[1][1])
    assert w.b_K.expanded[1].shape == (4, 12)
    assert w.W_Q.expanded.words == w.W_Q.words
    assert w.W_Q.stacked().shape == (3, 4, 32, 12)
    assert torch.equal(w.W_Q[-1], w.W_Q[2]) and len(w.W_Q[1:]) == 2
    for head in range(4):
        torch.testing.assert_close(w.OV(2).select(head).dense(), w.OV(2, head).dense(), **CLOSE)
        torch.testing.assert_close(w.QK(2, head).dense(), w.W_Q[2][head] @ w.W_K[2][head // 2].T, **CLOSE)
    assert w.OV(0, 1).rank == 12
    assert "kv_head" in repr(w.W_K) and "raw" in repr(w)


def test_gains_are_what_the_norm_multiplies_by():
    gemma = random_model("gemma")
    stored = gemma.hf.model.layers[1].input_layernorm.weight
    assert torch.equal(Weights(gemma).attn_norm_gain[1], 1 + stored)
    plain = Weights(random_model("opt-plain"))
    assert torch.equal(plain.mlp_norm_gain[0], torch.ones(32)) and not plain.mlp_norm_bias[0].any()
    parallel = random_model("phi")
    assert torch.equal(Weights(parallel).mlp_norm_gain[0], parallel.hf.model.layers[0].input_layernorm.weight)


@pytest.mark.parametrize(
    ("family", "name", "says"),
    [
        ("gpt2", "W_gate.0", "no gate"),
        ("llama", "W_pos", "rotary"),
        ("bloom", "W_pos", "ALiBi"),
        ("olmo2", "attn_norm_gain.1", "residual stream as it is"),
        ("gpt2", "attn_post_norm_gain.0", "no norm after attention"),
        ("toy-attention_only", "W_in.0", "attention only"),
        ("toy-attention_only", "mlp_norm_gain.0", "attention only"),
        ("opt-postnorm", "final_norm_gain", "no norm comes after the last block"),
        ("gpt2", "W_QQ.0", "did you mean 'W_Q'"),
        ("gpt2", "W_Q", "'W_Q.0' to 'W_Q.2'"),
        ("gpt2", "W_Q.3", "'W_Q.0' to 'W_Q.2'"),
        ("gpt2", "W_Q.x", "'W_Q.0' to 'W_Q.2'"),
        ("gpt2", "W_U.1", "once per model"),
    ],
)
def test_what_is_absent_or_misspelt_is_refused_with_the_reason(family, name, says):
    w = Weights(model_of(family))
    with pytest.raises(ModelError, match=says):
        w[name]
    assert name not in w


def test_layers_and_heads_out_of_range_are_refused():
    w = Weights(random_model("gpt2"))
    for wrong in (lambda: w.W_Q[3], lambda: w.W_Q[-4], lambda: w.OV(0, 4), lambda: w.QK(7), lambda: w.OV(0, -5)):
        with pytest.raises(SiteError, match="does not exist; the model has"):
            wrong()


class _Adapter(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.base_layer = inner


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda m: setattr(m, "weight", nn.Parameter(m.weight.detach().to(torch.int8), requires_grad=False)), "int8"),
        (lambda m: setattr(m, "weight", nn.Parameter(m.weight.detach().to(torch.float8_e4m3fn))), "float8_e4m3fn"),
        (lambda m: m.to("meta"), "not in memory"),
    ],
)
def test_numbers_that_are_not_the_weights_are_refused(spoil, says):
    model = random_model("llama")
    hf = copy.deepcopy(model.hf)
    spoil(hf.model.layers[1].self_attn.q_proj)
    w = Weights(SimpleNamespace(hf=hf, layout=model.layout))
    assert w.W_Q[0].shape == (4, 32, 8)
    with pytest.raises(ModelError, match=says):
        w.W_Q[1]


def test_adapters_are_refused():
    model = random_model("llama")
    hf = copy.deepcopy(model.hf)
    attention = hf.model.layers[1].self_attn
    attention.q_proj = _Adapter(attention.q_proj)
    with pytest.raises(ModelError, match="merge adapters first"):
        Weights(SimpleNamespace(hf=hf, layout=model.layout)).W_Q[1]
