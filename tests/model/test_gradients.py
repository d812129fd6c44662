"""Gradients at sites: finite differences, closed forms, and what stays untouched."""

from __future__ import annotations

import pytest
import torch
from conftest_model import TEXTS, random_model

from hooke.base.errors import DataError, ShapeError, SiteError
from hooke.model.edits import Add, Call, Scale
from hooke.model.plan import available
from hooke.model.run import Run
from hooke.model.sites import MAP_SITES, Site

FAMILIES = ("gpt2", "llama-gqa", "gemma2")


def metric(run: Run) -> torch.Tensor:
    """Differentiable everywhere, and reads every token."""
    weighted = run.logits * torch.linspace(-1, 1, run.logits.shape[-1], dtype=run.logits.dtype)
    return (weighted.tanh() * run.tokens.mask[..., None]).sum(dim=(1, 2))


def moved(model, site: Site, direction: torch.Tensor, size: float) -> Call:
    """The site's value plus a small step."""
    return Call(site, lambda x: x + size * direction)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_equal_finite_differences_at_every_site(family):
    model = random_model(family, torch.float64)
    # Without SDPA, transformers' attention over padding is NaN in float64.
    texts = TEXTS[:2] if model.hf.config._attn_implementation == "sdpa" else ["abcd", "xyz."]
    tokens = model.tokens(texts, padding_side="left")
    edits = [Scale("resid_post.0", 1.2), Add("z.1.2", torch.full((model.d_head,), 0.1).double(), positions="last")]
    sites = [site for site in available(model.layout) if site.layer in (None, 1)]
    found = model.gradients(tokens, metric, sites, edits=edits)
    assert list(found.grads) == sites
    # The others round their norms to float32, which the difference of two runs feels.
    step, tolerance = (1e-5, 1e-6) if family == "gpt2" else (1e-3, 5e-3)
    noise = torch.Generator().manual_seed(0)
    for site in sites:
        value, gradient = found.run[site], found[site]
        assert gradient.shape == value.shape
        direction = torch.randn(value.shape, generator=noise, dtype=torch.float64)
        if site.name in MAP_SITES:  # a key that attention may not see is no variable
            direction = direction * (value > torch.finfo(value.dtype).min / 2)
            direction = direction * torch.ones(value.shape[-2:]).tril().double()
        direction[~tokens.mask[:, None].expand(direction.shape[:3]) if site.name in MAP_SITES else ~tokens.mask] = 0
        size = step * float(value[value.abs() < 1e9].square().mean().sqrt())
        up, down = (
            metric(model.run(tokens, edits=[*edits, moved(model, site, direction, sign * size)])) for sign in (1, -1)
        )
        expected = (up - down) / (2 * size)
        ours = (gradient * direction).flatten(1).sum(dim=1)
        assert torch.allclose(ours, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())), site


@pytest.mark.parametrize("family", FAMILIES)
def test_closed_forms(family):
    model = random_model(family, torch.float64)
    tokens = model.tokens(TEXTS[0])
    found = model.gradients(
        tokens, metric, ["result.1", "attn_out.1", "resid_pre.*", "resid_post.*", "z.1", "mlp_norm_scale.1", "mlp_in.1"]
    )
    if family != "gemma2":  # there a norm lies between the heads and what is added
        same = found["attn_out.1"][:, :, None].expand_as(found["result.1"])
        assert torch.allclose(found["result.1"], same, atol=1e-12, rtol=1e-9)
    assert torch.allclose(found["resid_post.0"], found["resid_pre.1"], atol=0, rtol=0)
    weights = model.hf.get_submodule(model.layout.path("z", 1)).weight
    matrix = (weights if family == "gpt2" else weights.T).unflatten(0, (model.n_heads, -1))
    through = torch.einsum("bphm,hdm->bphd", found["result.1"], matrix)
    assert torch.allclose(found["z.1"], through, atol=1e-9, rtol=1e-9)
    # A norm divides by its scale, so the gradient there is minus that of the output, times the output over the scale.
    norm = model.hf.get_submodule(model.layout.path("mlp_norm_scale", 1))
    bias = getattr(norm, "bias", None)
    normed = found.run["mlp_in.1"] - (0 if bias is None else bias)
    expected = -(found["mlp_in.1"] * normed).sum(-1, keepdim=True) / found.run["mlp_norm_scale.1"]
    assert torch.allclose(found["mlp_norm_scale.1"], expected, rtol=1e-5, atol=1e-8)


def test_the_gradient_at_the_logits_is_that_of_the_metric():
    model = random_model("gpt2")
    found = model.gradients(TEXTS, lambda run: run.logits[:, -1, 7] - run.logits[:, -1, 9], "logits")
    expected = torch.zeros_like(found["logits"])
    expected[:, -1, 7], expected[:, -1, 9] = 1, -1
    assert torch.equal(found["logits"], expected)


@pytest.mark.parametrize("family", ["gpt2", "llama-gqa"])
def test_one_head_is_its_part_of_all(family):
    model = random_model(family)
    names = ("q", "z", "result", "scores", "pattern")
    found = model.gradients(TEXTS, metric, [f"{name}.1{end}" for name in names for end in ("", ".2")])
    for name in names:
        axis = 1 if name in MAP_SITES else 2
        assert torch.equal(found[f"{name}.1.2"], found[f"{name}.1"].select(axis, 2))
        assert found[f"{name}.1.2"].abs().max() > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_run_is_the_plain_run_and_nothing_is_touched(family):
    model = random_model(family)
    for flag in (True, False):
        model.hf.requires_grad_(flag)
        try:
            plain = model.run(TEXTS, capture=["resid_mid.*", "q.*"])
            found = model.gradients(TEXTS, metric, ["resid_mid.*", "q.*", "result.*", "attn_norm_scale.*"])
            assert torch.equal(found.run.logits, plain.logits)
            assert all(torch.equal(found.run[site], plain[site]) for site in plain.acts)
            assert all(p.grad is None and p.requires_grad == flag for p in model.hf.parameters())
            assert not any(t.requires_grad for t in (*found.grads.values(), *found.run.acts.values(), found.values))
            if flag:
                first = found
        finally:
            model.hf.requires_grad_(True)
    # Whether weights could have gradients is of no account.
    assert all(torch.equal(first[site], found[site]) for site in found.grads)


def test_only_activations_take_part_in_the_backward_pass():
    """No gradient of a weight is computed on the way: none of them is asked for its own."""
    model = random_model("gpt2")
    asked = []
    handles = [p.register_hook(lambda g, n=name: asked.append(n)) for name, p in model.hf.named_parameters()]
    try:
        model.gradients(TEXTS, metric, ["resid_pre.1", "pattern.2", "result.0"])
        assert asked == []
        metric(model.run(TEXTS, gradients=True)).sum().backward()
        assert len(asked) == len(handles)  # the hooks do report
    finally:
        for handle in handles:
            handle.remove()
        model.hf.zero_grad()


def test_edits_for_each_row_and_rows_alone():
    model = random_model("llama-gqa", torch.float64)
    edits = [[Scale("resid_post.0", 2.0)], [], [Add("resid_post.1", torch.ones(32).double(), positions=-1)]]
    sites = ["resid_post.0", "resid_post.1", "k.1"]
    batch = model.gradients(TEXTS, metric_of_last, sites, edits=edits)
    for row, text in enumerate(TEXTS):
        alone = model.gradients(text, metric_of_last, sites, edits=edits[row])
        n = int(batch.run.tokens.lengths[row])
        assert torch.allclose(batch.values[row], alone.values[0], atol=1e-6, rtol=0)
        for site in sites:
            assert torch.allclose(batch[site][row, :n], alone[site][0], atol=1e-5, rtol=1e-5)


def metric_of_last(run: Run) -> torch.Tensor:
    last = run.tokens.columns([-1])[:, 0]
    return run.logits[torch.arange(len(last)), last, 5].tanh()


def test_a_metric_may_read_activations_and_stop_early():
    model = random_model("gpt2")
    found = model.gradients(
        TEXTS,
        lambda run: run["resid_post.1"][..., 3].sum(dim=1) ** 2 / 2,
        ["resid_post.1", "mlp_out.1"],
        until="resid_post.1",
    )
    assert found.run.logits is None
    expected = torch.zeros_like(found["resid_post.1"])
    expected[..., 3] = found.run["resid_post.1"][..., 3].sum(dim=1, keepdim=True)
    assert torch.equal(found["resid_post.1"], expected)
    assert torch.equal(found["mlp_out.1"], expected)
    other = model.gradients(TEXTS, lambda run: run["resid_pre.2"].sum(dim=(1, 2)), "mlp_out.1", capture="resid_pre.2")
    assert torch.equal(other["mlp_out.1"], torch.ones_like(other["mlp_out.1"]))


def test_inside_other_modes():
    model = random_model("llama-gqa")
    plain = model.gradients(TEXTS, metric, "resid_pre.1")["resid_pre.1"]
    with torch.no_grad():
        assert torch.equal(model.gradients(TEXTS, metric, "resid_pre.1")["resid_pre.1"], plain)
        assert not torch.is_grad_enabled()
    with torch.inference_mode():
        tokens = model.tokens(TEXTS)
        assert torch.equal(model.gradients(tokens, metric, "resid_pre.1")["resid_pre.1"], plain)
        assert torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError):
        model.gradients(TEXTS, lambda run: 1 / 0, "resid_pre.1")
    assert torch.is_grad_enabled()


def test_the_embedding_of_a_batch_without_padding():
    """GPT-2 adds one row of position embeddings to all; each row has a gradient of its own all the same."""
    model = random_model("gpt2", torch.float64)
    found = model.gradients(["abc", "xyz"], metric, ["embed", "pos_embed"])
    assert torch.equal(found["embed"], found["pos_embed"].expand_as(found["embed"])) or torch.allclose(
        found["embed"].sum(0), found["pos_embed"].sum(0)
    )


@pytest.mark.parametrize(
    ("function", "sites", "options", "error", "words"),
    [
        (
            lambda run: run["resid_pre.1"].sum((1, 2)),
            ["resid_pre.1", "mlp_out.2"],
            {},
            SiteError,
            "depend on mlp_out.2",
        ),
        (
            lambda run: run.logits.sum(),
            ["resid_pre.1"],
            {},
            ShapeError,
            r"gave \(\); expected one number for each of the 3",
        ),
        (lambda run: [1.0] * 3, ["resid_pre.1"], {}, ShapeError, "gave list"),
        (lambda run: run.logits.argmax(-1)[:, 0].float(), ["resid_pre.1"], {}, DataError, "detached, rounded"),
        (lambda run: run.logits.sum((1, 2)) / 0, ["resid_pre.1"], {}, DataError, "finite"),
        (metric, ["resid_prr.1"], {}, SiteError, "did you mean 'resid_pre'"),
        (metric, [], {}, SiteError, "no site was asked for"),
        (metric, ["mlp_out.2"], {"until": "resid_pre.1"}, SiteError, "stops after resid_pre.1"),
    ],
)
def test_refusals(function, sites, options, error, words):
    model = random_model("gpt2")
    with pytest.raises(error, match=words):
        model.gradients(TEXTS, function, sites, **options)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.hf.modules())
    with pytest.raises(SiteError, match="no gradient at 'q.0'"):
        model.gradients(TEXTS, metric, ["q.1"])["q.0"]


@pytest.mark.parametrize("family", ["opt", "gpt2", "olmo2"])
def test_the_middle_of_a_block_may_be_the_first_site(family):
    """OPT flattens the stream there: a view, which is written in place."""
    model = random_model(family)
    alone = model.gradients(TEXTS, metric, "resid_mid.1")
    together = model.gradients(TEXTS, metric, ["resid_pre.0", "resid_mid.1"])
    torch.testing.assert_close(alone["resid_mid.1"], together["resid_mid.1"])
    assert list(alone.grads) == [Site("resid_mid", 1)]
