"""The toy transformer against plain torch, switch by switch, and a model built by hand whose numbers are known."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hooke.base.errors import ConfigError, DataError, HookeError
from hooke.model.edits import Set
from hooke.model.load import load
from hooke.model.sites import Site
from hooke.model.toy.config import ToyConfig
from hooke.model.toy.make import toy
from hooke.model.toy.network import sinusoids

ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "silu": lambda x: x * torch.sigmoid(x),
    "solu": lambda x: x * torch.exp(x) / torch.exp(x).sum(-1, keepdim=True),
}
KINDS = st.sampled_from(["none", "layer", "rms"])
SWITCHES = st.fixed_dictionaries(
    {
        "n_layers": st.integers(1, 3),
        "d_head": st.sampled_from([None, 6]),
        "n_kv_heads": st.sampled_from([None, 1, 2]),
        "d_mlp": st.sampled_from([None, 20]),
        "vocab_out": st.sampled_from([None, 11]),
        "attention_only": st.booleans(),
        "norm": KINDS,
        "final_norm": st.none() | KINDS,
        "positions": st.sampled_from(["none", "learned", "sinusoidal", "rotary", "shortformer"]),
        "parallel": st.booleans(),
        "activation": st.sampled_from(list(ACTIVATIONS)),
        "gated": st.booleans(),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "unembed_bias": st.booleans(),
        "attention_scale": st.sampled_from([None, 1.0]),
        "causal": st.booleans(),
        "tie_word_embeddings": st.booleans(),
    }
)
SMALL = {"vocab_size": 12, "n_ctx": 16, "d_model": 16, "n_heads": 4}


def built(switches, *, attention="sdpa", dtype=torch.float64, seed=0):
    """A toy whose biases and gains are random too, so that nothing is hidden by zeros and ones."""
    switches = {**SMALL, **switches}
    if switches.get("tie_word_embeddings"):
        switches["vocab_out"] = None
    model = toy(seed=seed, attention=attention, **switches)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.hf.named_parameters():
            if weight.ndim == 1:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)
            elif name == "pos_embed.weight" and not weight.requires_grad:
                assert torch.equal(weight, sinusoids(*weight.shape))
    model.hf.to(dtype)
    return model


def normed(x, kind, weights, name, eps=1e-5):
    if kind == "none":
        return x
    if kind == "layer":
        x = x - x.mean(-1, keepdim=True)
        return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"] + weights[f"{name}.bias"]
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weights[f"{name}.weight"]


def linear(x, weights, name):
    return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0.0)


def turned(x, base=10_000.0):
    """Rotary positions as complex numbers: pair (i, i + half) times exp(i angle)."""
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[1])[:, None] * base ** (-torch.arange(half, dtype=x.dtype) / half)
    spun = torch.complex(x[..., :half], x[..., half:]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat([spun.real, spun.imag], -1)


def attention(x, added, c, weights, name, seen):
    """One attention layer, head by head."""
    q, k, v = (
        linear(x if part == "v" or added is None else x + added, weights, f"{name}.{part}_proj").unflatten(
            -1, (-1, c.d_head)
        )
        for part in "qkv"
    )
    if c.positions == "rotary":
        q, k = turned(q), turned(k)
    scale = c.d_head**-0.5 if c.attention_scale is None else c.attention_scale
    z, patterns = [], []
    for head in range(c.n_heads):
        group = head * c.n_kv_heads // c.n_heads
        scores = q[:, :, head] @ k[:, :, group].mT * scale
        if c.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).triu(1).bool(), -torch.inf)
        patterns.append(scores.softmax(-1))
        z.append(patterns[-1] @ v[:, :, group])
    seen |= {"q_rot": q, "k_rot": k, "v": v, "pattern": torch.stack(patterns, 1), "z": torch.stack(z, 2)}
    return linear(torch.cat(z, -1), weights, f"{name}.o_proj")


def reference(model, ids):
    """Logits and sites from the weights alone."""
    c, weights = model.hf.config, model.hf.state_dict()
    x, added, sites = weights["embed.weight"][ids], None, {}
    if "pos_embed.weight" in weights:
        added = weights["pos_embed.weight"][: ids.shape[1]][None]
        if c.positions != "shortformer":
            x, added = x + added, None
    for layer in range(c.n_layers):
        name, seen = f"blocks.{layer}", {"resid_pre": x}
        seen["attn_in"] = normed(x, c.norm, weights, f"{name}.attn_norm")
        seen["attn_out"] = attention(seen["attn_in"], added, c, weights, f"{name}.attn", seen)
        middle = x + seen["attn_out"]
        if not c.attention_only:
            seen["mlp_in"] = normed(x if c.parallel else middle, c.norm, weights, f"{name}.mlp_norm")
            up = linear(seen["mlp_in"], weights, f"{name}.mlp.up_proj")
            seen["mlp_pre"] = linear(seen["mlp_in"], weights, f"{name}.mlp.gate_proj") if c.gated else up
            gate = ACTIVATIONS[c.activation](seen["mlp_pre"])
            seen["mlp_post"] = gate * up if c.gated else gate
            seen["mlp_out"] = linear(seen["mlp_post"], weights, f"{name}.mlp.down_proj")
            if not c.parallel:
                seen["resid_mid"] = middle
        x = middle + seen.get("mlp_out", 0.0)
        sites |= {Site(site, layer): value for site, value in {**seen, "resid_post": x}.items()}
    if c.positions != "rotary":
        sites = {site: value for site, value in sites.items() if not site.name.endswith("_rot")}
    last = normed(x, c.final_norm, weights, "final_norm")
    return linear(last, weights, "unembed"), sites


@given(switches=SWITCHES, kernel=st.sampled_from(["sdpa", "eager"]), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_logits_and_sites_equal_plain_torch(switches, kernel, seed):
    model = built(switches, attention=kernel, seed=seed)
    ids = torch.randint(0, 12, (2, 7), generator=torch.Generator().manual_seed(seed))
    logits, sites = reference(model, ids)
    run = model.run(ids, capture=list(sites))
    torch.testing.assert_close(run.logits, logits, atol=1e-11, rtol=1e-10)
    for site, value in sites.items():
        torch.testing.assert_close(
            run[site], value, atol=1e-11, rtol=1e-10, msg=lambda text, site=site: f"{site} {text}"
        )
    named = {info.site.name for info in model.sites() if info.site.layer is not None}
    extra = {"q", "k", "scores", "result", "attn_norm_scale", "mlp_norm_scale", "mlp_gate", "mlp_pre_linear"}
    assert {site.name for site in sites} == named - extra  # no site that the weights do not have, none missing


@given(switches=SWITCHES)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
def test_zero_edits_and_writing_back_change_no_bit(switches):
    model = built(switches, dtype=torch.float32)
    tokens = model.batch([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8]])
    with torch.no_grad():
        expected = model.hf(**model.arguments(tokens)).logits
    names = [info.site for info in model.sites() if info.site.name not in ("scores", "pattern", "q_rot", "k_rot")]
    run = model.run(tokens, capture=names)
    assert torch.equal(run.logits, expected)
    for site in names:
        assert torch.equal(model.run(tokens, edits=[Set(site, run[site])]).logits, expected), site


POSITIONS = ["none", "learned", "sinusoidal", "rotary", "shortformer"]


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_generation_with_a_cache_equals_running_again(positions, kernel):
    model = built({"positions": positions, "n_kv_heads": 2}, attention=kernel)
    rows = [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
    together = model.generate(model.batch(rows, padding_side="left"), max_new_tokens=6)
    assert torch.equal(
        together.ids, model.hf.generate(
            together.prompts.ids, attention_mask=together.prompts.mask.long(), max_new_tokens=6, do_sample=False,
            pad_token_id=0,
        )[:, 5:],
    )  # fmt: skip
    for row, new in zip(rows, together.ids.tolist(), strict=True):
        for token in new:
            logits = model.hf(torch.tensor([row])).logits[0, -1]
            assert int(logits.argmax()) == token
            row = [*row, token]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("causal", [True, False])
def test_padding_on_either_side_changes_no_token(positions, causal):
    model = built({"positions": positions, "causal": causal})
    rows = [[3, 1, 4, 1], [5, 9, 2, 6, 5, 3], [5]]
    for side in ("left", "right"):
        tokens = model.batch(rows, padding_side=side)
        run = model.run(tokens, capture=["z.1"])
        for i, row in enumerate(rows):
            alone = model.run(torch.tensor([row]), capture=["z.1"])
            for ours, theirs in ((run.logits, alone.logits), (run["z.1"], alone["z.1"])):
                torch.testing.assert_close(ours[i][tokens.mask[i]], theirs[0], atol=1e-11, rtol=1e-10)


def test_logits_to_keep_and_cached_chunks_are_the_same_numbers():
    model = built({"positions": "rotary"})
    ids = torch.arange(10)[None]
    with torch.no_grad():
        full = model.hf(ids).logits
        assert full.shape == (1, 10, 12)
        for keep, kept in ((2, [-2, -1]), (torch.tensor([1, 3]), [1, 3])):
            some = model.hf(ids, logits_to_keep=keep).logits
            torch.testing.assert_close(some, full[:, kept], atol=1e-13, rtol=1e-12)
        first = model.hf(ids[:, :6], use_cache=True)
        second = model.hf(ids[:, 6:], past_key_values=first.past_key_values)
        assert model.hf(ids).past_key_values is None
        embedded = model.hf(inputs_embeds=model.hf.embed(ids)).logits
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), full, atol=1e-12, rtol=1e-11)
    assert torch.equal(embedded, full)


@pytest.mark.parametrize("positions", POSITIONS)
def test_folders_open_again(tmp_path, positions):
    model = built({"positions": positions, "vocab_out": 9, "gated": True, "final_norm": "rms"}, dtype=torch.float32)
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert type(again.hf) is type(model.hf)
    fields = ToyConfig.__annotations__
    assert {n: getattr(again.hf.config, n) for n in fields} == {n: getattr(model.hf.config, n) for n in fields}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["norm"] == "layer"  # defaults are written down
    assert saved["d_mlp"] == 64
    assert again.identity["weights"] == model.identity["weights"]
    assert again.identity["tokenizer"] == model.identity["tokenizer"]
    assert again.layout == model.layout
    torch.testing.assert_close(again.run("3 1 4 1 5").logits, model.run("3 1 4 1 5").logits, atol=2e-6, rtol=1e-5)


def test_tied_embeddings_share_one_matrix(tmp_path):
    model = built({"tie_word_embeddings": True}, dtype=torch.float32)
    assert model.hf.unembed.weight is model.hf.embed.weight
    model.hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert again.hf.unembed.weight is again.hf.embed.weight
    torch.testing.assert_close(again.run("3 1").logits, model.run("3 1").logits, atol=2e-6, rtol=1e-5)


def test_a_seed_gives_the_same_bits_and_switches_do_not_shift_the_others():
    def weights(**switches):
        return toy(**switches).hf.state_dict()

    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = weights(seed=1), weights(seed=1), weights(seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's numbers are not touched
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all(not torch.equal(first[name], other[name]) for name in first if first[name].ndim == 2)
    bare = weights(seed=1, attention_only=True, norm="none")
    assert all(torch.equal(first[name], bare[name]) for name in bare)
    spread = weights(d_model=128, n_heads=4, vocab_size=500)
    assert spread["blocks.0.attn.q_proj.weight"].std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert spread["unembed.weight"].std().item() == pytest.approx(500**-0.5, rel=0.02)


def test_rotary_scores_see_only_distances():
    model = built({"positions": "rotary", "n_layers": 1, "norm": "none", "causal": False})
    same = torch.full((1, 9), 3)
    scores = model.run(same, capture=["scores.0"])["scores.0"][0]
    for shift in (-4, 0, 3):
        diagonal = scores.diagonal(shift, dim1=-2, dim2=-1)
        torch.testing.assert_close(diagonal, diagonal[:, :1].expand_as(diagonal), atol=1e-12, rtol=1e-11)


def test_sinusoids_are_those_of_the_paper():
    table = sinusoids(9, 8)
    for place, column in ((3, 0), (3, 1), (7, 4), (8, 7)):
        angle = place / 10_000 ** ((column - column % 2) / 8)
        assert table[place, column].item() == pytest.approx([math.sin, math.cos][column % 2](angle), abs=1e-7)


@pytest.mark.parametrize(
    ("switches", "says"),
    [
        ({"norms": "rms"}, "no switch 'norms'; did you mean 'norm'"),
        ({"norm": "layr"}, "did you mean 'layer'"),
        ({"positions": "rope"}, "known: none, learned, sinusoidal, rotary, shortformer"),
        ({"activation": "mish"}, "known: relu, gelu"),
        ({"d_model": 30}, "d_model 30 does not divide into 4 heads"),
        ({"n_kv_heads": 3}, "4 heads do not divide among 3"),
        ({"positions": "rotary", "d_head": 5}, "d_head 5 is odd"),
        ({"tie_word_embeddings": True, "vocab_out": 9}, "tied embeddings need vocab_out 9 equal to vocab_size 64"),
    ],
)
def test_settings_that_do_not_fit_are_refused(switches, says):
    with pytest.raises(ConfigError, match=says):
        toy(**switches)


def test_text_is_integers():
    model = toy(vocab_size=20, bos=0, n_ctx=8)
    tokens = model.tokens("3 17 4")
    assert tokens.ids.tolist() == [[0, 3, 17, 4]]
    assert tokens.keep.tolist() == [[False, True, True, True]]
    assert model.token_strings([0, 3, 17]) == ["<bos>", " 3", " 17"]
    assert toy(vocab_size=20).tokens("3 17 4").ids.tolist() == [[3, 17, 4]]
    for text in ("3 20", "3 x"):
        with pytest.raises(DataError, match="token id 20 is outside the vocabulary, 0 to 19"):
            model.run(text)
    with pytest.raises(DataError, match="takes at most 8"):
        model.run(" ".join("3" * 9))


def test_a_bidirectional_toy_has_no_cache():
    model = toy(causal=False)
    assert model.run("3 1 4", capture=["pattern.0"])["pattern.0"].triu(1).abs().sum() > 0
    with pytest.raises(ConfigError, match="no KV cache"):
        model.hf(torch.tensor([[3, 1, 4]]), use_cache=True)
    with pytest.raises(HookeError, match="no KV cache"):
        model.generate("3 1 4", max_new_tokens=2)


def test_one_hot_induction_by_hand():
    """Common sheet, check 3: token, position, previous token and prediction each have a slot of the residual stream."""
    vocab, n = 60, 25
    model = toy(
        vocab_size=vocab, n_ctx=51, d_model=3 * vocab + 51, n_heads=1, d_head=vocab, attention_only=True, norm="none",
        attention_scale=30.0,
    )  # fmt: skip
    token, previous, out, place = 0, vocab, 2 * vocab, 3 * vocab
    hf = model.hf.to(torch.float64)
    with torch.no_grad():
        for weight in hf.parameters():
            weight.zero_()
        eye = torch.eye(vocab)
        hf.embed.weight[:, token:previous] = eye
        hf.pos_embed.weight[:, place:] = torch.eye(51)
        first, second = hf.blocks[0].attn, hf.blocks[1].attn
        first.q_proj.weight[:50, place + 1 :] = torch.eye(50)  # position p asks for p - 1
        first.k_proj.weight[:51, place:] = torch.eye(51)
        first.v_proj.weight[:, token:previous] = eye
        first.o_proj.weight[previous:out] = eye
        second.q_proj.weight[:, token:previous] = eye  # this token asks where it came just before
        second.k_proj.weight[:, previous:out] = eye
        second.v_proj.weight[:, token:previous] = eye
        second.o_proj.weight[out:place] = eye
        hf.unembed.weight[:, out:place] = 10 * eye
    generator = torch.Generator().manual_seed(0)
    once = torch.stack([torch.randperm(vocab - 1, generator=generator)[:n] + 1 for _ in range(8)])
    ids = torch.cat([torch.zeros(8, 1, dtype=torch.long), once, once], 1)
    run = model.run(ids, capture=["pattern.*"])
    assert run["pattern.0"].diagonal(-1, dim1=-2, dim2=-1).mean() > 0.9999
    assert run["pattern.1"].diagonal(-(n - 1), dim1=-2, dim2=-1)[..., 2:].mean() > 0.9999
    loss = functional.cross_entropy(run.logits[:, :-1].mT, ids[:, 1:], reduction="none")
    assert loss[:, n + 1 :].mean().item() == pytest.approx(math.log(1 + 59 * math.exp(-10)), abs=1e-6)
    assert loss[:, n + 1 :].mean().item() == pytest.approx(0.002675, abs=1e-6)
    assert loss[:, :n].min() > math.log(60) - 0.1
    attn = hf.blocks[1].attn
    copying = hf.embed.weight @ attn.v_proj.weight.T @ attn.o_proj.weight.T @ hf.unembed.weight.T
    values = torch.linalg.eigvals(copying.detach())
    assert (values.real.sum() / values.abs().sum()).item() == pytest.approx(1, abs=1e-9)
