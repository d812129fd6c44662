"""Edits under gradients, torch's modes and compiled models; what does not fit is refused before anything runs."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest_edits import AT_A_BLOCK, SAME, D, dictionary, draw
from conftest_model import TEXTS, random_model
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, HookeError, ShapeError, SiteError
from hooke.model.edits import Ablate, Add, Call, Freeze, Mask, Project, Scale, Set, Splice
from hooke.model.load import load


@pytest.fixture(params=["gpt2", "llama-gqa", "gpt_neox"])
def family(request):
    return request.param


# -- gradients, precision, modes -------------------------------------------------------------------------------------

WITH_TENSORS = {
    "set": lambda v: Set("resid_post.0", v),
    "set-places": lambda v: Set("resid_post.0", v.expand(3, 2, D) * 1.0, positions=[1, -1]),
    "add": lambda v: Add("resid_post.0", v, scale=2.0),
    "project": lambda v: Project("resid_post.0", v),
    "mean": lambda v: Ablate("resid_post.0", "mean", v),
    "mean-by-position": lambda v: Ablate("resid_post.0", "mean", v.expand(7, D) * 1.0),
    "freeze": lambda v: Freeze("resid_post.0", {"resid_post.0": v}),
    "call": lambda v: Call("resid_post.0", lambda x: x * v),
}


@pytest.mark.parametrize("kind", list(WITH_TENSORS))
def test_gradients_reach_the_edits_own_tensors(kind):
    model = random_model("gpt2", torch.float64)
    tokens, vector, step = model.tokens(SAME), draw(D), 1e-6 * draw(D, seed=1)

    def value(v: Tensor) -> Tensor:
        return model.run(tokens, edits=[WITH_TENSORS[kind](v)], gradients=True).logits[:, -1, 5].sum()

    (gradient,) = torch.autograd.grad(value(vector.requires_grad_()), vector)
    slope = (value((vector + step).detach()) - value((vector - step).detach())).detach() / 2
    assert slope.item() == pytest.approx(float(gradient @ step), rel=1e-5)


THROUGH = {
    **{name: make for name, (make, _) in AT_A_BLOCK.items() if not name.startswith(("set", "mean", "freeze", "zero"))},
    "mask": lambda: Mask("scores.1", [(3, 1)]),
    "set-one-place": lambda: Set("resid_post.1", draw(D), positions=2),
}


@pytest.mark.parametrize("kind", list(THROUGH))
def test_gradients_flow_through_every_kind(kind):
    """From the logits through the edit to an added vector below it, against finite differences."""
    model = random_model("gpt2", torch.float64)  # Llama's norms compute in float32 whatever the precision
    tokens, vector, step = model.tokens(SAME), draw(D), 1e-6 * draw(D, seed=1)

    def value(v: Tensor) -> Tensor:
        edits = [Add("resid_post.0", v), THROUGH[kind]()]
        return model.run(tokens, edits=edits, gradients=True).logits[:, -1, 5].sum()

    (gradient,) = torch.autograd.grad(value(vector.requires_grad_()), vector)
    slope = (value((vector + step).detach()) - value((vector - step).detach())).detach() / 2
    assert gradient.abs().max() > 0
    assert slope.item() == pytest.approx(float(gradient @ step), rel=1e-4)


EVERYWHERE = [make() for make, _ in AT_A_BLOCK.values()] + [Mask("scores.1", [(3, 1)]), Scale("pattern.1.0", 0.5)]


@pytest.mark.parametrize("edit", EVERYWHERE, ids=lambda edit: edit.label)
def test_modes_of_torch_are_respected(edit, family):
    model = random_model(family, torch.float32)
    tokens = model.tokens(SAME)
    plain = model.run(tokens, edits=[edit])
    with torch.inference_mode():
        inside = model.run(tokens, edits=[edit])
    assert torch.equal(inside.logits, plain.logits)
    assert inside.logits.is_inference()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = model.run(tokens, capture=["resid_post.1", "v.1"], edits=[edit])
    assert low["v.1"].dtype == torch.bfloat16  # autocast was at work
    assert low["resid_post.1"].dtype == torch.float32  # and the edit did not lower the stream
    # Bfloat16 has 8 bits; a dictionary's choice of latents may flip.
    if not isinstance(edit, Splice):
        torch.testing.assert_close(low.logits.float(), plain.logits, atol=0.15, rtol=0.1)


@pytest.mark.parametrize("way", ["whole", "in place", "by block"])
def test_edits_and_captures_work_on_compiled_models(way):
    plain = random_model("gpt2", torch.float64)
    model = load((copy.deepcopy(plain.hf), plain.tokenizer))
    if way == "whole":
        model.hf = torch.compile(model.hf, backend="eager")
    else:
        for module in [model.hf] if way == "in place" else model.hf.transformer.h:
            module.compile(backend="eager")
    tokens = model.tokens(SAME)
    assert torch.equal(model.run(tokens).logits, plain.run(tokens).logits)  # compiled by now, without hooks
    for edit in (Scale("mlp_out.1", 0.3), Mask("scores.1", [(3, 1)]), Add("attn_out.1", draw(D))):
        for _ in range(2):
            ours, theirs = (m.run(tokens, capture=["mlp_in.2"], edits=[edit]) for m in (model, plain))
            assert torch.equal(ours.logits, theirs.logits)
            assert torch.equal(ours["mlp_in.2"], theirs["mlp_in.2"])
    assert torch.equal(model.run(tokens).logits, plain.run(tokens).logits)
    assert torch.compiler.is_compiling() is False
    assert torch._dynamo.eval_frame._stance.stance == "default"


def test_an_edit_that_never_happens_is_an_error(monkeypatch):
    model = load((copy.deepcopy(random_model("gpt2").hf), random_model("gpt2").tokenizer))
    block = model.hf.transformer.h[1]
    monkeypatch.setattr(block, "forward", lambda hidden_states, *args, **kwargs: hidden_states)  # no module inside runs
    with pytest.raises(SiteError, match=r"never computed in this run: mlp_out.1"):
        model.run("abc", edits=[Scale("mlp_out.1", 0.5)])


# -- refusals --------------------------------------------------------------------------------------------------------

WHOLE = torch.ones(7, 7, dtype=torch.bool)
BAD = [
    (lambda: Ablate("resid_post.1", "reasmple"), ConfigError, "did you mean 'resample'"),
    (
        lambda: Ablate("resid_post.1", "resample", shift=3),
        DataError,
        "shift 3 in a batch of 3 pairs every row with its",
    ),
    (lambda: Ablate("resid_post.1", "noise"), ConfigError, "kind 'noise' needs std"),
    (lambda: Ablate("resid_post.1", "noise", std=-1.0), DataError, "std is -1.0; expected at least 0"),
    (lambda: Ablate("resid_post.1", "noise", std=float("nan")), DataError, "std is nan; expected a finite number"),
    (lambda: Ablate("scores.1", "noise", std=1.0), ConfigError, "scores.1 is a map over positions"),
    (lambda: Ablate("resid_post.1", "mean", draw(5, D)), ShapeError, "5 positions; the longest row has 7"),
    (lambda: Ablate("pattern.1", "mean", draw(3, 5, 7, 7)), ShapeError, r"\[3, 4, 7, 7\]"),
    (lambda: Scale("resid_post.1", float("inf")), DataError, "factor is inf; expected a finite number"),
    (lambda: Add("resid_post.1", draw(D), scale=float("nan")), DataError, "scale is nan"),
    (lambda: Add("pattern.1", draw(7)), ShapeError, "map of this prompt at pattern.1"),
    (lambda: Project("pattern.1", draw(7)), ConfigError, "no direction to remove"),
    (lambda: Set("pattern.1", draw(2, 7, 7)), ShapeError, r"\[batch, head, query, key\]"),
    (lambda: Set("resid_post.1", draw(2, D), positions=[0, -7]), DataError, "name one position twice"),
    (lambda: Mask("pattern.1", [(1, 0)]), ConfigError, r"edges are cut at scores; write Mask\('scores.1'"),
    (lambda: Mask("scores.1", [(0, 1)]), DataError, r"did you mean \(1, 0\)"),
    (lambda: Mask("scores.1", [(9, 0)]), DataError, "position 9 is beyond row 0, which has 7 tokens"),
    (lambda: Mask("scores.1", [("lst", 0)]), DataError, "'lst' is not a name of these tokens"),
    (lambda: Mask("scores.1", [(1, 0), (1, 1)]), DataError, "query 1 of row 0 would see no key at all"),
    (lambda: Mask("scores.1", WHOLE), DataError, "query 0 of row 0 would see no key"),
    (lambda: Mask("scores.1", WHOLE[:4, :4]), ShapeError, "at least 7 positions"),
    (lambda: Mask("scores.1", WHOLE.float()), DataError, "expected Bool"),
    (lambda: Mask("scores.1.4", [(1, 0)]), SiteError, "head 4 is out of range"),
    (lambda: Freeze("x", {"resid_post.1": draw(3, 6, D)}), ShapeError, r"only \[batch, pos\] = \(3, 7\)"),
    (lambda: Freeze("x", {"resid_mid.9": draw(3, 7, D)}), SiteError, "layer 9 is out of range"),
    (lambda: Freeze("x", {"resid_post.1": draw(3, 7, D) / 0}), DataError, "NaN or infinite"),
    (lambda: Splice("resid_post.1", dictionary(), latents={20: 1.0}), DataError, "latent 20 .* expected 0 to 19"),
    (lambda: Splice("resid_post.1", dictionary(), latents={1: float("nan")}), DataError, r"latents\[1\] is nan"),
    (lambda: Splice("pattern.1", dictionary()), ConfigError, "a dictionary reads activations"),
]


@pytest.mark.parametrize(("make", "error", "says"), BAD)
def test_what_does_not_fit_is_refused_before_the_model_runs(make, error, says):
    model = random_model("gpt2")
    ran = []
    handle = model.hf.register_forward_pre_hook(lambda module, args: ran.append(1))
    try:
        with pytest.raises(error, match=says) as caught:
            model.run(SAME, edits=[make()])
    finally:
        handle.remove()
    assert isinstance(caught.value, HookeError)
    assert not ran


def test_resample_needs_aligned_rows_and_more_than_one():
    model = random_model("gpt2")
    with pytest.raises(DataError, match=r"rows of one length; these have \[16, 6, 27\] tokens"):
        model.run(TEXTS, edits=[Ablate("z.1", "resample")])
    with pytest.raises(DataError, match="batch of 1 .* at least two rows"):
        model.run("abc", edits=[Ablate("z.1", "resample")])


def test_a_window_that_leaves_no_key_is_found_out_and_nothing_is_left_behind():
    model = random_model("mistral-window")
    with pytest.raises(DataError, match="query in column 9 would see no key"):
        model.run(TEXTS[2], edits=[Mask("scores.1", [(9, key) for key in range(4, 10)])])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.hf.modules())


def test_a_function_that_changes_the_shape_is_named():
    with pytest.raises(ShapeError, match=r"Call\(<lambda>\) at resid_post.1: the function gave \(3, 1, 32\)"):
        random_model("gpt2").run(SAME, edits=[Call("resid_post.1", lambda x: x[:, :1])])


def test_freeze_from_a_run_that_has_not_what_is_asked_for():
    model = random_model("gpt2")
    run = model.run("abc", capture=["pattern.1"])
    with pytest.raises(SiteError, match="matches 'patern.1'; did you mean 'pattern.1'"):
        Freeze.from_run(run, "patern.1")
    with pytest.raises(DataError, match="capture it without `at`"):
        Freeze.from_run(model.run("abc", capture=["z.1"], at="last"))


def test_which_kinds_are_local():
    odd = {"resample", "resample-2", "call"}
    assert {name for name, (make, _) in AT_A_BLOCK.items() if not make().is_local} == odd
    assert Mask("scores.1", [(1, 0)]).is_local
