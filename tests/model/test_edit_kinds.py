"""Every kind of edit equals a hand-written hook on the same module, in float64, on three kinds of block."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from conftest_edits import AT_A_BLOCK, MEAN, SAME, D, draw
from conftest_model import TEXTS, random_model
from torch import Tensor

from hooke.base.errors import ConfigError, DataError
from hooke.model.edits import (
    KINDS,
    Ablate,
    Add,
    Call,
    Freeze,
    Mask,
    Scale,
    Set,
    expand_each,
)
from hooke.model.model import Model
from hooke.model.tokens import Tokens

BLOCK = {"gpt2": "transformer.h.1", "llama-gqa": "model.layers.1", "gpt_neox": "gpt_neox.layers.1"}
ATTENTION = {"gpt2": "attn", "llama-gqa": "self_attn", "gpt_neox": "attention"}
OUT = {"gpt2": "c_proj", "llama-gqa": "o_proj", "gpt_neox": "dense"}
NORM = {"gpt2": "ln_1", "llama-gqa": "input_layernorm", "gpt_neox": "input_layernorm"}


@pytest.fixture(params=list(BLOCK))
def family(request):
    return request.param


@pytest.fixture
def model(family) -> Model:
    return random_model(family, torch.float64, "sdpa")


def logits_of(model: Model, tokens: Tokens, *hooks) -> Tensor:
    """A plain forward pass under hooks, each (module path, kind, function)."""
    with ExitStack() as stack, torch.no_grad():
        for path, kind, hook in hooks:
            module = model.hf.get_submodule(path)
            options = {"with_kwargs": True} if kind == "forward_pre" else {}
            stack.callback(getattr(module, f"register_{kind}_hook")(hook, **options).remove)
        return model.hf(**model.arguments(tokens), use_cache=False).logits


def same(edited: Tensor, by_hand: Tensor, plain: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(edited, by_hand, atol=tolerance, rtol=tolerance)
    assert (edited - plain).abs().max() > 1e-6  # the edit did something


@pytest.mark.parametrize("kind", list(AT_A_BLOCK))
def test_an_edit_of_the_residual_stream_equals_a_hook(model, family, kind):
    make, by_hand = AT_A_BLOCK[kind]
    tokens = model.tokens(SAME)
    expected = logits_of(model, tokens, (BLOCK[family], "forward", lambda module, args, out: by_hand(out, tokens)))
    same(model.run(tokens, edits=[make()]).logits, expected, model.run(tokens).logits)


def test_every_kind_is_here():
    makes = [make() for make, _ in AT_A_BLOCK.values()]
    assert {type(edit).__name__ for edit in makes} | {"Mask"} == set(KINDS)


# -- inside attention: the mask, and patterns applied by hand to the values ------------------------------------------


def cut_by_hand(model: Model, family: str, tokens: Tokens, cut: Tensor) -> Tensor:
    def hook(module, args, kwargs):
        return args, {**kwargs, "attention_mask": kwargs["attention_mask"] & ~cut}

    return logits_of(model, tokens, (f"{BLOCK[family]}.{ATTENTION[family]}", "forward_pre", hook))


@pytest.mark.parametrize("side", ["left", "right"])
def test_mask_by_pairs_equals_the_models_own_mask(model, family, side):
    tokens = model.tokens(TEXTS, padding_side=side)
    cut = torch.zeros(3, 1, *[tokens.shape[1]] * 2, dtype=torch.bool)
    for row, start in enumerate(tokens.starts):
        last = start + tokens.lengths[row] - 1
        cut[row, 0, last, start] = cut[row, 0, start + 3, start + 2] = True
    edit = Mask("scores.1", [("last", 0), (3, 2)])
    kept = tokens.mask
    same(
        model.run(tokens, edits=[edit]).logits[kept],
        cut_by_hand(model, family, tokens, cut)[kept],
        model.run(tokens).logits[kept],
    )


def test_mask_of_one_head_as_a_tensor(model, family):
    tokens = model.tokens(TEXTS, padding_side="left")
    edges = torch.rand(30, 30, generator=torch.Generator().manual_seed(0)) < 0.4
    edges.fill_diagonal_(False)
    cut = torch.zeros(3, 4, *[tokens.shape[1]] * 2, dtype=torch.bool)
    for row, start in enumerate(tokens.starts):
        own = int(tokens.lengths[row])
        cut[row, 2, start:, start:] = edges[:own, :own]
    by_hand = cut_by_hand(model, family, tokens, cut)[tokens.mask]
    plain = model.run(tokens).logits[tokens.mask]
    same(model.run(tokens, edits=[Mask("scores.1.2", edges)]).logits[tokens.mask], by_hand, plain)
    same(model.run(tokens, edits=[Mask("scores.1.2", cut[:, 2])]).logits[tokens.mask], by_hand, plain)


def values_of(model: Model, family: str) -> tuple[str, callable]:
    """The module that computes values, and how to read them, a head for each query head."""
    attention, d = f"{BLOCK[family]}.{ATTENTION[family]}", model.d_head
    if family == "gpt2":
        return f"{attention}.c_attn", lambda out: out[..., 2 * D :].unflatten(-1, (-1, d)).transpose(1, 2)
    if family == "gpt_neox":
        return f"{attention}.query_key_value", lambda out: out.unflatten(-1, (-1, 3 * d))[..., 2 * d :].transpose(1, 2)
    return f"{attention}.v_proj", lambda out: out.unflatten(-1, (-1, d)).transpose(1, 2).repeat_interleave(2, dim=1)


def attend_by_hand(model: Model, family: str, tokens: Tokens, pattern: Tensor, *more) -> Tensor:
    """The forward pass with a given pattern in layer 1: its values are read, mixed by hand, and put before the output
    projection.
    """
    path, read = values_of(model, family)
    seen = {}

    def store(module, args, out):
        seen["values"] = read(out)

    def replace(module, args, kwargs):
        return (pattern @ seen["values"]).transpose(1, 2).flatten(-2), *args[1:]

    def put(module, args, kwargs):
        return replace(module, args, kwargs), kwargs

    out = f"{BLOCK[family]}.{ATTENTION[family]}.{OUT[family]}"
    return logits_of(model, tokens, (path, "forward", store), (out, "forward_pre", put), *more)


OF_A_PATTERN = {
    "set": (lambda p: Set("pattern.1", p.roll(1, dims=1)), lambda p: p.roll(1, dims=1)),
    "set-one-map": (lambda p: Set("pattern.1", p[0, 0]), lambda p: p[0, 0].expand_as(p)),
    "set-a-map-a-row": (lambda p: Set("pattern.1", p[:, 3]), lambda p: p[:, 3:4].expand_as(p)),
    "scale": (lambda p: Scale("pattern.1", 0.5), lambda p: p / 2),
    "zero": (lambda p: Ablate("pattern.1"), lambda p: 0 * p),
    "resample": (lambda p: Ablate("pattern.1", "resample"), lambda p: p[[2, 0, 1]]),
    "mean": (lambda p: Ablate("pattern.1", "mean", p.mean(0, keepdim=True)), lambda p: p.mean(0).expand_as(p)),
    "call": (lambda p: Call("pattern.1", lambda x: x**2), lambda p: p**2),
    "uniform": (lambda p: Ablate("scores.1"), lambda p: (p > 0).double() / (p > 0).sum(-1, keepdim=True)),
    "hotter": (lambda p: Scale("scores.1", 2.0), lambda p: p**2 / (p**2).sum(-1, keepdim=True)),
    "queries": (
        lambda p: Ablate("pattern.1", positions=[2, -1]),
        lambda p: p.index_fill(2, torch.tensor([2, 6]), 0),
    ),
}


@pytest.mark.parametrize("kind", list(OF_A_PATTERN))
def test_an_edit_of_attention_equals_mixing_the_values_by_hand(model, family, kind):
    make, by_hand = OF_A_PATTERN[kind]
    tokens = model.tokens(SAME)
    plain = model.run(tokens, capture=["pattern.1"])
    pattern = plain["pattern.1"]
    edited = model.run(tokens, edits=[make(pattern)]).logits
    same(edited, attend_by_hand(model, family, tokens, by_hand(pattern)), plain.logits)


def test_freeze_holds_patterns_and_norms_of_another_run(model, family):
    clean, other = model.tokens(SAME), model.tokens(SAME[::-1])
    frozen = model.run(clean, capture=["pattern.1", "attn_norm_scale.1"])
    edit = Freeze.from_run(frozen, "pattern.*", "*_norm_scale.1")
    assert [str(site) for site in edit.patterns] == ["pattern.1", "attn_norm_scale.1"]
    norm = model.hf.get_submodule(f"{BLOCK[family]}.{NORM[family]}")

    def scaled(module, args, out):
        x = args[0] if family == "llama-gqa" else args[0] - args[0].mean(-1, keepdim=True)
        x = x / frozen["attn_norm_scale.1"] * norm.weight
        return x if family == "llama-gqa" else x + norm.bias

    hook = (f"{BLOCK[family]}.{NORM[family]}", "forward", scaled)
    expected = attend_by_hand(model, family, other, frozen["pattern.1"], hook)
    # Llama's own norm computes in float32 whatever the precision; by hand it is float64 here.
    tolerance = 1e-5 if family == "llama-gqa" else 1e-12
    same(model.run(other, edits=[edit]).logits, expected, model.run(other).logits, tolerance)


def test_freezing_everything_of_the_same_run_changes_nothing(model):
    tokens = model.tokens(TEXTS, padding_side="left")
    run = model.run(tokens, capture=["pattern.*", "scores.0", "attn_norm_scale.*", "final_norm_scale", "z.1.2"])
    again = model.run(tokens, edits=[Freeze.from_run(run)]).logits
    torch.testing.assert_close(again[tokens.mask], run.logits[tokens.mask], atol=1e-12, rtol=1e-12)


# -- positions -------------------------------------------------------------------------------------------------------


def test_edits_at_positions_are_the_same_whatever_the_padding(model):
    edits = [
        Ablate("resid_post.0", "mean", MEAN, positions=[1, -2]),
        Ablate("resid_post.1", "noise", std=0.3),
        Mask("scores.1", [(4, 1)]),
        Mask("scores.2.1", torch.ones(30, 30, dtype=torch.bool).tril(-2)),
    ]
    alone = [model.run(text, edits=edits[:1] + edits[2:]).logits[0] for text in TEXTS]
    for side in ("left", "right"):
        tokens = model.tokens(TEXTS, padding_side=side)
        together = model.run(tokens, edits=edits[:1] + edits[2:]).logits
        for row, logits in enumerate(alone):
            torch.testing.assert_close(together[row][tokens.mask[row]], logits, atol=1e-10, rtol=1e-10)
    noisy = [model.run(model.tokens(TEXTS, padding_side=s), edits=edits) for s in ("left", "right")]
    for row in range(3):
        left, right = (run.logits[row][run.tokens.mask[row]] for run in noisy)
        torch.testing.assert_close(left, right, atol=1e-10, rtol=1e-10)


def test_noise_depends_on_seed_site_row_and_position_only():
    model = random_model("gpt2", torch.float64)

    def drawn(texts, **options):
        site = options.pop("site", "resid_post.0")
        tokens = model.tokens(texts)
        run, plain = (
            model.run(tokens, capture=[site], edits=e) for e in ([Ablate(site, "noise", std=1.0, **options)], [])
        )
        return run[site] - plain[site]

    first = drawn(SAME)
    assert torch.allclose(drawn(SAME[:1]), first[:1])
    assert torch.allclose(drawn(["abcd"]), first[:1, :5])
    assert not torch.allclose(first[0], first[1])
    shared = drawn(SAME, shared=True)
    assert torch.allclose(shared[0], shared[2])
    assert not torch.allclose(drawn(SAME, seed=1), first)
    assert not torch.allclose(drawn(SAME, site="resid_post.1"), first)
    assert abs(float(first.std()) - 1) < 0.05


def test_positions_by_name_and_each():
    model = random_model("gpt2", torch.float64)
    plain = model.tokens(SAME)
    tokens = Tokens(plain.ids, plain.mask, plain.keep, {"subject": torch.tensor([1, -2, 3])})
    run = model.run(tokens, capture=["resid_post.1"], edits=[Ablate("resid_post.1", positions="subject")])
    assert (run["resid_post.1"] == 0).all(-1).nonzero().tolist() == [[0, 1], [1, 5], [2, 3]]
    cut = model.run(tokens, capture=["pattern.1"], edits=[Mask("scores.1", [("last", "subject")])])["pattern.1"]
    assert cut[:, 0, -1].eq(0).nonzero().tolist() == [[0, 1], [1, 5], [2, 3]]
    each = [Add("resid_post.0", draw(D), positions="each"), Scale("resid_post.1", 0.5, positions=0)]
    sets = expand_each(each, tokens)
    assert [[edit.positions for edit in own] for own in sets] == [[p, 0] for p in range(7)]
    assert all(own[1] is each[1] for own in sets)
    assert expand_each(each[1:], tokens) == [[each[1]]]
    with pytest.raises(DataError, match=r"rows of one length; these have \[16, 6, 27\]"):
        expand_each(each, model.tokens(TEXTS))
    with pytest.raises(ConfigError, match="'each' stands for many runs"):
        model.run(tokens, edits=each)


def test_generation_under_a_mask_pads_where_it_must(model):
    """The first new token under right padding, which generation moves to the left, is that of each prompt alone."""
    edit = Mask("scores.1", [(4, 1), (3, 2), ("last", 0)])
    together = model.generate(model.tokens(TEXTS), edits=[edit], max_new_tokens=3)
    for row, text in enumerate(TEXTS):
        alone = model.generate(text, edits=[edit], max_new_tokens=3)
        assert together.ids[row].tolist()[: alone.ids.shape[1]] == alone.ids[0].tolist()
