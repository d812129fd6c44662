"""Exactness: unedited runs are the Hugging Face numbers bit for bit; captures are what the model computed."""

from __future__ import annotations

import pytest
import torch
from conftest_model import CASES, CONFIGS, TEXTS, random_model

from hooke.model.edits import Set
from hooke.model.model import Model
from hooke.model.sites import Site


def same_bits(x: torch.Tensor, y: torch.Tensor) -> bool:
    """NaN counts as equal to NaN: on the eager kernel transformers' own float64 logits are NaN in rows with left
    padding (in its float32 softmax the mask's lowest float64 is -inf, and a padded query sees nothing else).
    """
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())


def outside_attention(model: Model) -> list[Site]:
    """All sites but scores and patterns, whose capture takes attention off its kernel."""
    return [info.site for info in model.sites() if info.site.name not in ("scores", "pattern")]


@pytest.mark.parametrize(("family", "attention", "dtype"), CASES)
def test_zero_edit_logits_equal_hugging_face(family, dtype, attention):
    model = random_model(family, dtype, attention)
    for side in ("left", "right"):
        tokens = model.tokens(TEXTS, padding_side=side)
        with torch.no_grad():
            expected = model.hf(**model.arguments(tokens), use_cache=False).logits
        for capture in ([], outside_attention(model)):
            assert same_bits(model.run(tokens, capture=capture).logits, expected)
        finite = attention == "sdpa" or dtype != torch.float64
        assert bool(expected[tokens.mask].isfinite().all()) or not finite


@pytest.mark.parametrize(("family", "attention", "dtype"), CASES)
def test_generation_equals_hugging_face_token_by_token(family, dtype, attention):
    model = random_model(family, dtype, attention)
    # The eager kernel gives NaN in float64 where prompts are padded, and `generate` refuses it.
    finite = attention == "sdpa" or dtype != torch.float64
    tokens = model.tokens(TEXTS if finite else TEXTS[:1], padding_side="left")
    expected = model.hf.generate(
        input_ids=tokens.ids,
        attention_mask=tokens.mask.long(),
        max_new_tokens=8,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=1,
        return_dict_in_generate=True,
        output_logits=True,
    )
    seen = []
    handle = model.hf.register_forward_hook(lambda module, args, out: seen.append(out.logits[:, -1]))
    ours = model.generate(tokens, max_new_tokens=8, stop_at_end=False)
    handle.remove()
    assert torch.equal(ours.ids, expected.sequences[:, tokens.shape[1] :])
    for logits, reference in zip(seen, expected.logits, strict=True):
        # `generate` gives its logits in float32, whatever it computed in.
        assert same_bits(logits.float(), reference.float())


@pytest.mark.parametrize("family", [name for name in CONFIGS if name != "opt-postnorm"])  # there, sums are normed
def test_captured_residual_stream_adds_up(family):
    model = random_model(family)
    run = model.run(TEXTS, capture=["resid_pre.*", "attn_out.*", "mlp_out.*", "resid_post.*"])
    for layer in range(model.n_layers):
        parts = [run[f"{name}.{layer}"] for name in ("resid_pre", "attn_out", "mlp_out")]
        torch.testing.assert_close(sum(parts), run[f"resid_post.{layer}"], atol=2e-6, rtol=1e-5)
        if layer:
            assert torch.equal(run[f"resid_pre.{layer}"], run[f"resid_post.{layer - 1}"])


def test_captured_attention_equals_recomputation(model: Model):
    run = model.run(TEXTS[0], capture=["scores.*", "pattern.*", "v.*", "z.*", "result.*", "attn_out.*"])
    for layer in range(model.n_layers):
        pattern, v = run[f"pattern.{layer}"], run[f"v.{layer}"]
        torch.testing.assert_close(pattern, run[f"scores.{layer}"].softmax(-1))
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))
        assert pattern.triu(1).abs().max() == 0  # causal
        v = v.repeat_interleave(model.n_heads // v.shape[2], dim=2)
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
        torch.testing.assert_close(z, run[f"z.{layer}"], atol=1e-6, rtol=1e-5)
        project = model.hf.get_submodule(model.layout.path("z", layer))
        projected = project(z.flatten(-2))
        results = run[f"result.{layer}"].sum(-2) + (0 if project.bias is None else project.bias)
        torch.testing.assert_close(results, projected, atol=2e-6, rtol=1e-5)
        if not model.layout.has("attn_post_norm_scale", layer):
            torch.testing.assert_close(projected, run[f"attn_out.{layer}"], atol=1e-6, rtol=1e-5)


def test_maps_run_only_their_layers_step_by_step_and_say_so(model: Model):
    plain, mapped = model.run(TEXTS), model.run(TEXTS, capture=["pattern.1"])
    kept = plain.tokens.mask  # padded queries with no key in their window mix values differently on each kernel
    torch.testing.assert_close(mapped.logits[kept], plain.logits[kept], atol=1e-5, rtol=1e-5)
    assert "layers 1 ran attention step by step" in mapped.notes[0]
    assert plain.notes == ()
    assert torch.equal(model.run(TEXTS).logits, plain.logits)  # and nothing is left behind


def test_writing_a_captured_value_back_changes_nothing(model: Model):
    run = model.run(TEXTS, capture=outside_attention(model))
    everything = [Set(site, value) for site, value in run.acts.items()]
    assert torch.equal(model.run(TEXTS, edits=everything).logits, run.logits)
    for edit in everything:
        if edit.site.layer in (None, 1):
            assert torch.equal(model.run(TEXTS, edits=[edit]).logits, run.logits), edit.site


def test_writing_attention_maps_back_changes_nothing(model: Model):
    run = model.run(TEXTS, capture=["scores.1", "pattern.1"])
    for site, value in run.acts.items():
        assert torch.equal(model.run(TEXTS, edits=[Set(site, value)]).logits, run.logits), site


def test_padding_does_not_matter(model: Model):
    everything = outside_attention(model)
    left = model.run(model.tokens(TEXTS, padding_side="left"), capture=everything)
    right = model.run(model.tokens(TEXTS, padding_side="right"), capture=everything)
    for row, text in enumerate(TEXTS):
        alone = model.run(text, capture=everything)
        for run in (left, right):
            mask = run.tokens.mask[row]
            for site, expected in [*alone.acts.items(), (None, alone.logits)]:
                found = (run.logits if site is None else run[site])[row][mask]
                assert found.shape == expected[0].shape
                assert float(((found - expected[0]).abs() - 1e-5 * expected[0].abs()).max()) < 5e-6, site


def test_until_stops_and_captures_the_same(model: Model):
    full = model.run(TEXTS, capture=["resid_post.0", "mlp_out.1"])
    ran = []
    handles = [
        model.hf.get_submodule(f"{model.layout.blocks}.{layer}").register_forward_pre_hook(
            lambda module, args, layer=layer: ran.append(layer)
        )
        for layer in range(model.n_layers)
    ]
    short = model.run(TEXTS, capture=["resid_post.0", "mlp_out.1"], until="mlp_out.1")
    for handle in handles:
        handle.remove()
    assert short.logits is None
    assert ran == [0, 1]
    for site in full.acts:
        assert torch.equal(short[site], full[site])


def test_capture_context_reads_what_hugging_face_runs(model: Model):
    ids = model.tokens(TEXTS[0]).ids
    with model.capture("resid_post.*") as acts, torch.no_grad():
        model.hf(ids)
    run = model.run(ids, capture=["resid_post.*"])
    assert set(acts) == {Site("resid_post", layer) for layer in range(model.n_layers)}
    assert all(torch.equal(acts[site], run[site]) for site in acts)


# Families of another kind have test files of their own.
ELSEWHERE = {
    *("mixtral", "qwen2_moe", "qwen3_moe"),
    *("bert", "roberta"),
    *("gemma3", "llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
    "hooke_toy",
}


def test_every_family_has_a_config_here():
    from hooke.model.families import FAMILIES

    assert {config.model_type for config in CONFIGS.values()} | ELSEWHERE == set(FAMILIES)


def test_captures_are_the_tensors_that_the_modules_computed(model: Model):
    """Independent hooks on the same modules see the same bits, site by site."""
    tokens = model.tokens(TEXTS, padding_side="left")
    seen: dict[Site, torch.Tensor] = {}
    handles = []

    def remember(site: Site, tensor: torch.Tensor) -> None:
        tap = model.layout.tap(site.name, site.layer)
        value = tap.view.read(tensor.clone())  # by value: Falcon goes on writing into what its MLP gave
        seen[site] = value.unflatten(0, tokens.shape) if tap.flat else value

    def listen(site: Site) -> None:
        side = model.layout.tap(site.name, site.layer).side
        module = model.hf.get_submodule(model.layout.path(site.name, site.layer))
        if side == "out":
            hook = lambda m, a, out: remember(site, out[0] if isinstance(out, tuple) else getattr(out, "logits", out))  # noqa: E731
            handles.append(module.register_forward_hook(hook))
        elif side == "in":
            hook = lambda m, args, kwargs: remember(site, args[0] if args else kwargs["hidden_states"])  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    sites = [site for site in outside_attention(model) if site.name not in ("q_rot", "k_rot")]
    for site in sites:
        listen(site)
    run = model.run(tokens, capture=sites)
    for handle in handles:
        handle.remove()
    assert len(seen) > 10 * model.n_layers
    for site, tensor in seen.items():
        assert torch.equal(run[site], tensor), site
    with model.capture(*sites) as acts, torch.no_grad():
        model.hf(**model.arguments(tokens), use_cache=False)
    assert all(torch.equal(acts[site], run[site]) for site in sites)
