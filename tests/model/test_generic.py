"""Sites found by structure: where a map exists they are the map's, elsewhere they meet the equations of their names."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
import transformers
from conftest_model import random_model
from transformers import AutoModelForCausalLM

from hooke.base.errors import HookeWarning, ModelError
from hooke.model.capture import applied
from hooke.model.edits import Set
from hooke.model.families.generic import generic
from hooke.model.plan import available, make_plan
from hooke.model.sites import AFTER_BLOCKS, BEFORE_BLOCKS, BLOCK_SITES, INNER_SITES
from hooke.model.tokens import Tokens
from hooke.model.toy import network as toy_network
from hooke.model.toy.make import toy

VOCAB = {"vocab_size": 120, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = {**VOCAB, **SIZES, "max_position_embeddings": 64}
GROUPED = {**LLAMA, "num_key_value_heads": 2}
GPT = {
    "vocab_size": 120,
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 3,
    "n_positions": 64,
    "bos_token_id": 0,
    "eos_token_id": 0,
}

INSIDE_MLP = {"router_logits", "expert_out", "mlp_pre", "mlp_gate", "mlp_pre_linear", "mlp_post"}
POST_NORMS = {"attn_post_norm_scale", "mlp_post_norm_scale"}
HEADS = {"q", "k", "v", "q_rot", "k_rot", "scores", "pattern", "z", "result"}
RESIDUAL = {"resid_pre", "resid_post"}
ALL = set(BLOCK_SITES)
USUAL = INSIDE_MLP | POST_NORMS | {"pos_embed"}
PARALLEL = USUAL | {"resid_mid", "mlp_norm_scale"}

# architecture -> (its configuration, every site that must be missing; all others must be there)
UNMAPPED = {
    "cohere": ("CohereConfig", GROUPED, PARALLEL | {"logits"}),  # its logits are scaled
    "cohere-normed": ("CohereConfig", {**GROUPED, "logit_scale": 1.0, "use_qk_norm": True}, PARALLEL),
    "granite": ("GraniteConfig", GROUPED, USUAL),
    "granite-scaled": (
        "GraniteConfig",
        {**LLAMA, "residual_multiplier": 0.3, "embedding_multiplier": 4.0, "logits_scaling": 3.0},
        (ALL - RESIDUAL) | {"embed", "pos_embed", "logits"},
    ),
    "xglm": (
        "XGLMConfig",
        {**VOCAB, "d_model": 32, "ffn_dim": 48, "num_layers": 3, "attention_heads": 4, "max_position_embeddings": 64},
        (USUAL | HEADS) - {"pos_embed"},
    ),
    "mpt": (
        "MptConfig",
        {"vocab_size": 120, "d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 64, "expansion_ratio": 2},
        USUAL | HEADS,
    ),
    "codegen": ("CodeGenConfig", {**GPT, "rotary_dim": 8}, PARALLEL | HEADS),
    "biogpt": ("BioGptConfig", LLAMA, (USUAL | {"q_rot", "k_rot"}) - {"pos_embed"}),
    "smollm3": ("SmolLM3Config", GROUPED, USUAL),
    "glm4": ("Glm4Config", {**GROUPED, "head_dim": 8}, USUAL - POST_NORMS),
    "starcoder2": ("Starcoder2Config", GROUPED, USUAL),
    "gpt_bigcode": ("GPTBigCodeConfig", GPT, (USUAL | {"q_rot", "k_rot"}) - {"pos_embed"}),
    "persimmon": ("PersimmonConfig", LLAMA, USUAL),
    "olmoe": ("OlmoeConfig", {**LLAMA, "num_experts": 4, "num_experts_per_tok": 2}, USUAL),
    "gpt_oss": (
        "GptOssConfig",
        {**GROUPED, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
        USUAL | HEADS,  # sinks in its softmax
    ),
    "lfm2": (
        "Lfm2Config",
        {**GROUPED, "layer_types": ["conv", "full_attention", "conv"]},
        USUAL | HEADS | {"attn_in", "attn_out", "attn_norm_scale"},
    ),
    "mamba": (
        "MambaConfig",
        {**VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "state_size": 8},
        (ALL - RESIDUAL) | {"pos_embed"},
    ),
}

TURNED = ("cohere", "granite", "smollm3", "glm4", "starcoder2")  # rotary, without norms on queries and keys


@functools.cache
def built(name: str, dtype: torch.dtype = torch.float32):
    config = getattr(transformers, UNMAPPED[name][0])(**UNMAPPED[name][1])
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in hf.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    return hf.to(dtype)


def found(hf):
    with pytest.warns(HookeWarning, match="have no map of sites"):
        return generic(hf)


@functools.cache
def layout_of(name):
    return found(built(name))


def ran(hf, layout, ids, capture=(), edits=()):
    """(logits, what was captured by site name) without anything that needs a map."""
    tokens = Tokens.from_ids(ids)
    plan = make_plan(layout, hf.get_input_embeddings().weight.shape[0], tokens, capture=capture, edits=edits)
    with torch.no_grad(), applied(hf, layout, plan, tokens) as progress:
        logits = hf(input_ids=tokens.ids, use_cache=False).logits
    return logits, {str(site): value for site, value in progress.acts.items()}


def ids(seed=1, n=9):
    return torch.randint(2, 119, (2, n), generator=torch.Generator().manual_seed(seed))


MAPPED = [
    "gpt2", "gpt_neo", "gpt_neox", "gpt_neox-sequential", "gptj", "opt", "bloom", "falcon", "falcon-grouped",
    "falcon-sequential", "llama-gqa", "mistral-window", "qwen3", "stablelm-parallel", "gemma2", "gemma3_text", "phi",
    "phi3", "olmo2",
]  # fmt: skip


@pytest.mark.parametrize("family", MAPPED)
def test_where_a_map_exists_the_sites_are_the_maps(family):
    model = random_model(family)
    layout, mapped = found(model.hf), model.layout
    outside = {name: None for name in layout.outside}
    inside = {name: 1 for name in layout.inside}
    assert all(mapped.has(name, layer) for name, layer in (outside | inside).items())
    names = [name if layer is None else f"{name}.{layer}" for name, layer in (outside | inside).items()]
    _, ours = ran(model.hf, layout, ids(), names)
    _, theirs = ran(model.hf, mapped, ids(), names)
    for name in names:
        assert torch.equal(ours[name], theirs[name]), name
    for site in names:  # where a wrong module could give the same numbers, an edit tells
        if site in ("resid_pre.1", "attn_in.1", "v.1", "attn_out.1", "resid_mid.1", "mlp_in.1", "mlp_out.1"):
            edit = Set(site, torch.randn(ours[site].shape, generator=torch.Generator().manual_seed(2)).abs())
            logits, _ = ran(model.hf, layout, ids(), edits=[edit])
            assert torch.equal(logits, ran(model.hf, mapped, ids(), edits=[edit])[0]), site
    facts = ("blocks", "n_layers", "d_model", "n_heads", "norm", "gain_offset", "causal")
    if layout.dispatches:
        facts += ("n_kv_heads", "d_head", "attention", "dispatches", "positions")
    assert {fact: getattr(layout, fact) for fact in facts} == {fact: getattr(mapped, fact) for fact in facts}


@pytest.mark.parametrize("name", list(UNMAPPED))
def test_what_is_found_and_what_is_missing(name):
    hf = built(name)
    with pytest.warns(HookeWarning) as caught:
        layout = generic(hf)
    missing = UNMAPPED[name][2]
    text = str(caught[0].message)
    assert f"{hf.config.model_type!r} models have no map" in text
    assert set(layout.absent) == missing
    assert all(site in text for site in missing)
    present = {*layout.inside, *layout.outside, *({"scores", "pattern"} if layout.dispatches else ())}
    if layout.dispatches and layout.positions == "rotary":
        present |= {"q_rot", "k_rot"}
    assert present == {*BEFORE_BLOCKS, *BLOCK_SITES, *AFTER_BLOCKS} - missing
    assert all(len(reason) > 20 for reason in layout.absent.values())


@pytest.mark.parametrize("name", list(UNMAPPED))
def test_sites_meet_the_equations_of_their_names(name):
    hf, layout = built(name), layout_of(name)
    names = [str(site) for site in available(layout) if site.name not in layout.absent]
    logits, acts = ran(hf, layout, ids(), names)
    with torch.no_grad():
        plain = hf(input_ids=ids(), use_cache=False).logits
    maps = any(site.startswith("pattern") for site in names)
    torch.testing.assert_close(logits, plain, atol=1e-4 if maps else 0, rtol=0)
    close = functools.partial(torch.testing.assert_close, atol=2e-5, rtol=2e-4)
    if "embed" in acts:
        assert torch.equal(acts["embed"] + acts.get("pos_embed", 0), acts["resid_pre.0"])
    for n in range(3):
        x, out = acts[f"resid_pre.{n}"], acts[f"resid_post.{n}"]
        if n:
            assert torch.equal(x, acts[f"resid_post.{n - 1}"])
        if "attn_out" in layout.inside:
            close(x + acts[f"attn_out.{n}"] + acts[f"mlp_out.{n}"], out)
        if "resid_mid" in layout.inside:
            close(acts[f"resid_mid.{n}"] + acts[f"mlp_out.{n}"], out)
        for branch, base in (("attn", x), ("mlp", acts.get(f"resid_mid.{n}", x))):
            if f"{branch}_norm_scale" in layout.norms:
                centred = base - base.mean(-1, keepdim=True) if layout.norm == "layer" else base
                scale = acts[f"{branch}_norm_scale.{n}"]
                norm = hf.get_submodule(f"{layout.blocks}.{n}.{layout.norms[f'{branch}_norm_scale']}")
                bias = 0 if getattr(norm, "bias", None) is None else norm.bias
                close(centred / scale * (norm.weight + layout.gain_offset) + bias, acts[f"{branch}_in.{n}"])
        if "z" in layout.inside:
            repeats = layout.n_heads // layout.n_kv_heads
            v = acts[f"v.{n}"].repeat_interleave(repeats, dim=2)
            close(torch.einsum("bhqk,bkhd->bqhd", acts[f"pattern.{n}"], v), acts[f"z.{n}"])
            project = hf.get_submodule(layout.path("z", n))
            bias = 0 if project.bias is None else project.bias
            close(acts[f"result.{n}"].sum(2) + bias, project(acts[f"z.{n}"].flatten(-2)))
        if "q" in layout.inside and layout.positions == "rotary" and name in TURNED:
            close(acts[f"q.{n}"][:, 0], acts[f"q_rot.{n}"][:, 0])
            close(acts[f"q.{n}"].norm(dim=-1), acts[f"q_rot.{n}"].norm(dim=-1))
    if "logits" in acts:
        assert torch.equal(acts["logits"], logits)


@pytest.mark.parametrize("name", list(UNMAPPED))
def test_writing_back_changes_nothing_and_writing_noise_does(name):
    hf, layout = built(name), layout_of(name)
    names = [str(s) for s in available(layout)
             if s.name not in (*layout.absent, *INNER_SITES, "pos_embed") and s.layer in (None, 1)]  # fmt: skip
    logits, acts = ran(hf, layout, ids(), names)
    for site in names:
        assert torch.equal(ran(hf, layout, ids(), edits=[Set(site, acts[site])])[0], logits), site
        changed = ran(hf, layout, ids(), edits=[Set(site, acts[site] * 1.5 + 0.1)])[0]
        assert (changed - logits).abs().max() > 1e-5, site


def test_bfloat16_finds_the_same():
    for name in ("starcoder2", "cohere", "xglm"):
        ours, theirs = found(built.__wrapped__(name, torch.bfloat16)), layout_of(name)
        assert (ours.inside, ours.outside, ours.absent) == (theirs.inside, theirs.outside, theirs.absent)


def test_nothing_is_left_behind():
    hf = built("smollm3").train()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    before = {name: weight.clone() for name, weight in hf.state_dict().items()}
    found(hf)
    assert hf.training
    hf.eval()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(weight, before[name]) for name, weight in hf.state_dict().items())
    for module in hf.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert not hf.model.layers[0].self_attn.config._attn_implementation.startswith("hooke")


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("T5Config(vocab_size=99, d_model=16, d_kv=4, d_ff=16, num_layers=2, num_heads=2)", "a trial run .* failed"),
        ("AlbertConfig(vocab_size=99, embedding_size=16, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, "
         "intermediate_size=16)", r"no list of blocks was found .*albert_layer_groups \(1\)"),
        ("XLNetConfig(vocab_size=99, d_model=16, n_layer=2, n_head=2, d_inner=16)", "no list of blocks was found"),
    ],
)  # fmt: skip
def test_models_without_blocks_in_one_stream_are_refused(config, says):
    name, _, arguments = config.partition("(")
    made = getattr(transformers, name)(**eval(f"dict({arguments}"))  # noqa: S307 (our own text, above)
    with warnings.catch_warnings():
        warnings.simplefilter("error", HookeWarning)
        hf = transformers.AutoModel.from_config(made)
        with pytest.raises(ModelError, match=says):
            generic(hf)


# -- blocks that look right and are not: the site must be absent ------------------------------------------------------


def altered(monkeypatch, forward):
    monkeypatch.setattr(toy_network.ToyBlock, "forward", forward)
    return found(toy(seed=1, n_layers=2, d_model=16).hf)


def test_the_toy_as_it_is_has_every_site():
    hf = toy(seed=1, n_layers=2, d_model=16).hf
    assert set(found(hf).absent) == INSIDE_MLP | POST_NORMS | {"q_rot", "k_rot"}


def test_a_branch_that_is_scaled_after_its_module(monkeypatch):
    def forward(self, x, **options):
        middle = x + 0.999 * self.attn(self.attn_norm(x), **options)
        return middle + self.mlp(self.mlp_norm(middle))

    assert set(altered(monkeypatch, forward).inside) == RESIDUAL


def test_a_branch_that_reads_the_stream_beside_its_norm(monkeypatch):
    def forward(self, x, **options):
        middle = x + self.attn(self.attn_norm(x), **options)
        return middle + self.mlp(self.mlp_norm(middle) * middle.std(-1, keepdim=True))

    layout = altered(monkeypatch, forward)
    assert "mlp_in" in layout.absent
    assert {"attn_in", "attn_out", "resid_mid", "mlp_out"} <= set(layout.inside)


def test_a_middle_that_is_a_copy(monkeypatch):
    def forward(self, x, **options):
        middle = x + self.attn(self.attn_norm(x), **options)
        return middle + self.mlp(self.mlp_norm(middle.clone()))

    layout = altered(monkeypatch, forward)
    assert "resid_mid" in layout.absent  # writing there would reach the MLP alone
    assert {"attn_out", "mlp_in", "mlp_out"} <= set(layout.inside)


def test_a_branch_whose_output_is_overwritten_is_read_by_value(monkeypatch):
    def forward(self, x, **options):
        attn = self.attn(self.attn_norm(x), **options)
        mlp = self.mlp(self.mlp_norm(x))
        mlp += attn
        return x + mlp

    layout = altered(monkeypatch, forward)
    hf = toy(seed=1, n_layers=2, d_model=16).hf
    seen = []
    handle = hf.blocks[1].mlp.register_forward_hook(lambda m, a, out: seen.append(out.clone()))
    _, acts = ran(hf, layout, ids() % 60, ["mlp_out.1"])
    handle.remove()
    assert torch.equal(acts["mlp_out.1"], seen[0])
    assert layout.absent["resid_mid"].endswith("run in parallel, both on resid_pre")


def test_two_token_wise_branches_are_no_attention(monkeypatch):
    def forward(self, x, **options):
        middle = x + self.attn.v_proj(self.attn_norm(x)).tanh()
        return middle + self.mlp(self.mlp_norm(middle))

    assert set(altered(monkeypatch, forward).inside) == RESIDUAL
