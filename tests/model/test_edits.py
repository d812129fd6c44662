"""Edits: each equals a hand-written hook; what does not fit is refused before anything runs; nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from conftest_model import TEXTS, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from hooke.base.errors import ConfigError, DataError, HookeError, ShapeError, SiteError
from hooke.model.edits import Ablate, Add, Project, Scale, Set, Splice
from hooke.model.model import Model
from hooke.model.sites import Site

D = 32


@pytest.fixture(params=["gpt2", "llama-gqa", "gpt_neox"])
def family(request):
    """A block with learned positions, one with grouped queries, and a parallel one; other files take every family."""
    return request.param


class Halve:
    """A stand-in for a dictionary."""

    d_in = d_out = D

    def reconstruct(self, x):
        return x / 2


class Elsewhere(Halve):
    """One that knows its site."""

    reads = writes = Site("resid_post", 0)


def vector(seed: int = 0, width: int = D) -> torch.Tensor:
    return torch.randn(width, generator=torch.Generator().manual_seed(seed))


BY_HAND = {
    "set": (lambda v: Set("resid_post.1", v), lambda x, v: v.expand_as(x)),
    "add": (lambda v: Add("resid_post.1", v, scale=3.0), lambda x, v: x + 3 * v),
    "scale": (lambda v: Scale("resid_post.1", 0.3), lambda x, v: x * 0.3),
    "project": (lambda v: Project("resid_post.1", v), lambda x, v: x - (x @ v)[..., None] * v / (v @ v)),
    "zero": (lambda v: Ablate("resid_post.1"), lambda x, v: torch.zeros_like(x)),
    "mean": (lambda v: Ablate("resid_post.1", "mean", v), lambda x, v: v.expand_as(x)),
    "splice": (lambda v: Splice("resid_post.1", Halve(), positions=None), lambda x, v: x / 2),
}


@pytest.mark.parametrize("kind", list(BY_HAND))
def test_edit_equals_hand_written_hook(model: Model, kind):
    make, by_hand = BY_HAND[kind]
    tokens, v = model.tokens(TEXTS), vector()
    block = model.hf.get_submodule(f"{model.layout.blocks}.1")

    def hook(module, args, out):
        return by_hand(out, v) if isinstance(out, torch.Tensor) else (by_hand(out[0], v), *out[1:])

    handle = block.register_forward_hook(hook)
    with torch.no_grad():
        expected = model.hf(**model.arguments(tokens)).logits
    handle.remove()
    torch.testing.assert_close(model.run(tokens, edits=[make(v)]).logits, expected, atol=1e-5, rtol=1e-5)


@given(
    layer=st.integers(0, 2),
    name=st.sampled_from(["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_in"]),
    position=st.integers(-4, 3),
    side=st.sampled_from(["left", "right"]),
)
@settings(max_examples=25)
def test_position_edit_changes_that_position_of_each_text_only(layer, name, position, side):
    model = random_model("llama-gqa")
    site = f"{name}.{layer}"
    tokens = model.tokens(TEXTS, padding_side=side)
    before = model.run(tokens, capture=[site])
    after = model.run(tokens, capture=[site], edits=[Add(site, vector(), positions=position)])
    changed = (before[site] != after[site]).any(dim=-1)
    expected = torch.zeros_like(changed).scatter(1, tokens.columns([position]), True)
    assert torch.equal(changed, expected)
    # A causal model: nothing moves left of the edit.
    moved = (before.logits != after.logits).any(dim=-1)
    assert not (moved & (expected.int().cumsum(1) == 0)).any()


def test_resid_mid_moves_both_paths():
    for family in ("gpt2", "llama", "gpt_neox-sequential"):
        model = random_model(family)
        v = vector()
        run = model.run(TEXTS[0], capture=["resid_mid.1", "mlp_out.1", "resid_post.1"], edits=[Add("resid_mid.1", v)])
        torch.testing.assert_close(run["resid_mid.1"] + run["mlp_out.1"], run["resid_post.1"], atol=2e-6, rtol=1e-5)
        plain = model.run(TEXTS[0], capture=["resid_mid.1", "mlp_out.1"])
        torch.testing.assert_close(run["resid_mid.1"], plain["resid_mid.1"] + v)
        assert (run["mlp_out.1"] - plain["mlp_out.1"]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["q", "k", "v", "z"])
def test_head_edit_changes_that_head_only(model: Model, name):
    heads = model.layout.heads(name)
    v = vector(width=model.d_head)
    site = f"{name}.1.{heads - 1}"
    plain = model.run(TEXTS, capture=[f"{name}.1"])
    run = model.run(TEXTS, capture=[f"{name}.1", site], edits=[Set(site, v)])
    assert torch.equal(run[site], v.expand_as(run[site]))
    assert torch.equal(run[f"{name}.1"][..., :-1, :], plain[f"{name}.1"][..., :-1, :])


def test_pattern_edit_of_one_head(model: Model):
    plain = model.run(TEXTS[0], capture=["pattern.1", "z.1"])
    run = model.run(TEXTS[0], capture=["pattern.1", "z.1"], edits=[Ablate("pattern.1.2")])
    assert run["pattern.1"][:, 2].abs().max() == 0
    assert run["z.1"][:, :, 2].abs().max() == 0
    torch.testing.assert_close(run["z.1"][:, :, :2], plain["z.1"][:, :, :2])


def test_edits_apply_in_order_and_captures_see_the_result(model: Model):
    v = vector()
    run = model.run(TEXTS[0], capture=["resid_post.0"], edits=[Set("resid_post.0", v), Scale("resid_post.0", 2.0)])
    assert torch.equal(run["resid_post.0"], (v * 2).expand_as(run["resid_post.0"]))


def test_set_per_position_values(model: Model):
    tokens = model.tokens(TEXTS, padding_side="left")
    values = torch.randn(3, 2, D)
    run = model.run(tokens, capture=["resid_pre.1"], edits=[Set("resid_pre.1", values, positions=[1, -1])])
    picked = run["resid_pre.1"].gather(1, tokens.columns([1, -1])[..., None].expand(-1, -1, D))
    assert torch.equal(picked, values)


def test_splice_spares_special_tokens_and_keeps_the_error_exactly(model: Model):
    tokens = model.tokens(TEXTS)
    plain = model.run(tokens, capture=["resid_post.1"])
    dropped = model.run(tokens, capture=["resid_post.1"], edits=[Splice("resid_post.1", Halve())])
    same = (dropped["resid_post.1"] == plain["resid_post.1"]).all(-1)
    assert torch.equal(same, ~tokens.keep)
    kept = model.run(tokens, edits=[Splice("resid_post.1", Halve(), error="keep")])
    torch.testing.assert_close(kept.logits, plain.logits, atol=1e-5, rtol=1e-5)


def test_gradients_flow_through_edits(model: Model):
    v = vector().requires_grad_()
    run = model.run(
        TEXTS[0],
        capture=["resid_post.0"],
        edits=[Add("resid_mid.2", v)] if model.layout.inside.get("resid_mid") else [Add("resid_post.1", v)],
        gradients=True,
    )
    (gradient,) = torch.autograd.grad(run.logits[0, -1, 5], v)
    step = 1e-3 * vector(1)
    site = "resid_mid.2" if model.layout.inside.get("resid_mid") else "resid_post.1"
    up, down = (model.run(TEXTS[0], edits=[Add(site, (v + s * step).detach())]).logits[0, -1, 5] for s in (1, -1))
    assert abs(float(up - down) / 2 - float(gradient @ step)) < 2e-5


BAD = [
    (lambda: Add("resid_pots.1", vector()), SiteError, "did you mean 'resid_post'"),
    (lambda: Add("resid_post.9", vector()), SiteError, "layer 9 is out of range"),
    (lambda: Add("z.1.7", vector(width=8)), SiteError, "head 7 is out of range"),
    (lambda: Add("resid_post.1", vector(width=31)), ShapeError, r"vector has shape \(31,\); the site needs \(32,\)"),
    (lambda: Add("resid_post.1", torch.full((D,), torch.nan)), DataError, "32 NaN or infinite"),
    (lambda: Add("resid_post.1", torch.ones(D, dtype=torch.long)), DataError, "floating point"),
    (lambda: Add("resid_post.1", vector(), positions=99), DataError, "position 99 is beyond row 0"),
    (lambda: Add("resid_post.1", vector(), positions="first"), ConfigError, "'first' is not known"),
    (lambda: Add("resid_post.1", vector(), positions=torch.ones(1, 1, dtype=torch.bool)), ShapeError, "expected Bool"),
    (lambda: Set("resid_post.1", torch.zeros(3, 5, D)), ShapeError, "before the site's"),
    (lambda: Set("resid_post.1", torch.zeros(2, 2, 2, D)), ShapeError, "value has shape"),
    (lambda: Project("resid_post.1", torch.zeros(D)), DataError, "norm 0"),
    (lambda: Ablate("resid_post.1", "mean"), ConfigError, "needs a reference"),
    (lambda: Ablate("resid_post.1", "zero", vector()), ConfigError, "the others take none"),
    (lambda: Splice("mlp_post.1", Halve()), ShapeError, "dictionary has d_in 32"),
    (lambda: Splice("resid_post.1", Elsewhere()), ConfigError, "the dictionary reads resid_post.0; splice it there"),
]


@pytest.mark.parametrize("case", range(len(BAD)))
def test_what_does_not_fit_is_refused_before_the_model_runs(case):
    make, error, says = BAD[case]
    model = random_model("gpt2")
    ran = []
    handle = model.hf.register_forward_pre_hook(lambda module, args: ran.append(1))
    with pytest.raises(error, match=says) as caught:
        model.run(TEXTS, edits=[make()])
    handle.remove()
    assert isinstance(caught.value, HookeError)
    assert not ran


def test_until_before_a_capture_is_refused():
    with pytest.raises(SiteError, match="the run stops after resid_post.0, before resid_post.1"):
        random_model("gpt2").run("x", capture=["resid_post.1"], until="resid_post.0")


def test_uncaptured_site_names_what_was_captured():
    run = random_model("gpt2").run("x", capture=["resid_post.1"])
    with pytest.raises(SiteError, match="'resid_post.0' was not captured.*captured: resid_post.1"):
        run["resid_post.0"]


def n_hooks(model: Model) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.hf.modules())


def test_nothing_is_left_behind(model: Model):
    class Broken:
        def reconstruct(self, x):
            raise RuntimeError("inside the forward pass")

    config = model.hf.get_submodule(f"{model.layout.blocks}.1.{model.layout.attention}").config
    for edits in ([], [Splice("resid_post.1", Broken())]):
        try:
            model.run(TEXTS, capture=["pattern.1", "resid_pre.*"], edits=edits)
        except RuntimeError as error:
            assert "inside the forward pass" in str(error)
        assert n_hooks(model) == 0
        assert model.hf.get_submodule(f"{model.layout.blocks}.1.{model.layout.attention}").config is config


def test_nested_runs_and_two_models_do_not_disturb_each_other():
    a, b = random_model("gpt2"), random_model("llama")
    alone_a, alone_b = a.run(TEXTS).logits, b.run(TEXTS).logits
    with a.capture("resid_post.0", "pattern.1") as outer:
        inner = a.run(TEXTS[0], capture=["pattern.1"], edits=[Scale("resid_post.0", 0.0)])
        assert torch.equal(b.run(TEXTS).logits, alone_b)
        torch.testing.assert_close(a.run(TEXTS).logits, alone_a, atol=1e-5, rtol=1e-5)
    assert inner["pattern.1"].shape[0] == 1
    assert len(outer) == 2
    assert torch.equal(a.run(TEXTS).logits, alone_a)


def test_splice_takes_all_heads_side_by_side():
    model = random_model("llama-gqa")

    class Wide:
        d_in = d_out = 48

        def reconstruct(self, x):
            assert x.shape[-1] == 48
            return x / 2

    plain = model.run(TEXTS, capture=["z.1"])
    run = model.run(TEXTS, capture=["z.1"], edits=[Splice("z.1", Wide(), positions=None)])
    torch.testing.assert_close(run["z.1"], plain["z.1"] / 2)
