"""Exactness: unedited runs are the Hugging Face numbers bit for bit; captures are what the model computed."""

from __future__ import annotations

import pytest
import torch
from conftest_model import CONFIGS, TEXTS, random_model

from hooke.model.edits import Set
from hooke.model.model import Model
from hooke.model.sites import Site


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_zero_edit_logits_equal_hugging_face(family, dtype, attention, side):
    model = random_model(family, dtype, attention)
    tokens = model.tokens(TEXTS, padding_side=side)
    with torch.no_grad():
        expected = model.hf(**model.arguments(tokens), use_cache=False).logits
    for capture in ([], ["resid_post.*", "z.*", "mlp_post.1", "q.0", "resid_pre.2"]):
        assert (model.run(tokens, capture=capture).logits - expected).abs().max().item() == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_generation_equals_hugging_face_token_by_token(family, dtype, attention):
    model = random_model(family, dtype, attention)
    tokens = model.tokens(TEXTS, padding_side="left")
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
    handle = model.hf.lm_head.register_forward_hook(lambda module, args, out: seen.append(out[:, -1]))
    ours = model.generate(tokens, max_new_tokens=8, stop_at_end=False)
    handle.remove()
    assert torch.equal(ours.ids, expected.sequences[:, tokens.shape[1] :])
    for logits, reference in zip(seen, expected.logits, strict=True):
        assert (logits.float() - reference.float()).abs().max().item() == 0.0


def test_captured_residual_stream_adds_up(model: Model):
    run = model.run(TEXTS, capture=["resid_pre.*", "attn_out.*", "mlp_out.*", "resid_post.*"])
    for layer in range(model.n_layers):
        parts = [run[f"{name}.{layer}"] for name in ("resid_pre", "attn_out", "mlp_out")]
        torch.testing.assert_close(sum(parts), run[f"resid_post.{layer}"], atol=2e-6, rtol=1e-5)
        if layer:
            assert torch.equal(run[f"resid_pre.{layer}"], run[f"resid_post.{layer - 1}"])


def test_captured_attention_equals_recomputation(model: Model):
    run = model.run(TEXTS[0], capture=["scores.*", "pattern.*", "v.*", "z.*", "attn_out.*"])
    for layer in range(model.n_layers):
        pattern, v = run[f"pattern.{layer}"], run[f"v.{layer}"]
        torch.testing.assert_close(pattern, run[f"scores.{layer}"].softmax(-1))
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))
        assert pattern.triu(1).abs().max() == 0  # causal
        v = v.repeat_interleave(model.n_heads // v.shape[2], dim=2)
        z = torch.einsum("bhqk,bkhd->bqhd", pattern, v)
        torch.testing.assert_close(z, run[f"z.{layer}"], atol=1e-6, rtol=1e-5)
        attention = model.hf.get_submodule(f"{model.layout.blocks}.{layer}.{model.layout.attention}")
        project = getattr(attention, {"gpt2": "c_proj", "gpt_neox": "dense"}.get(model.family, "o_proj"))
        torch.testing.assert_close(project(z.flatten(-2)), run[f"attn_out.{layer}"], atol=1e-6, rtol=1e-5)


def test_maps_run_only_their_layers_step_by_step_and_say_so(model: Model):
    plain, mapped = model.run(TEXTS), model.run(TEXTS, capture=["pattern.1"])
    torch.testing.assert_close(mapped.logits, plain.logits, atol=1e-5, rtol=1e-5)
    assert "layers 1 ran attention step by step" in mapped.notes[0]
    assert plain.notes == ()
    assert torch.equal(model.run(TEXTS).logits, plain.logits)  # and nothing is left behind


def test_writing_a_captured_value_back_changes_nothing(model: Model):
    names = [str(info.site) for info in model.sites() if info.site.name not in ("scores", "pattern")]
    run = model.run(TEXTS, capture=names)
    for site, value in run.acts.items():
        again = model.run(TEXTS, edits=[Set(site, value)])
        assert torch.equal(again.logits, run.logits), site


def test_writing_attention_maps_back_changes_nothing(model: Model):
    run = model.run(TEXTS, capture=["scores.1", "pattern.1"])
    for site, value in run.acts.items():
        assert torch.equal(model.run(TEXTS, edits=[Set(site, value)]).logits, run.logits), site


def test_padding_does_not_matter(model: Model):
    everything = ["resid_post.*", "z.*"]
    left = model.run(model.tokens(TEXTS, padding_side="left"), capture=everything)
    right = model.run(model.tokens(TEXTS, padding_side="right"), capture=everything)
    for row, text in enumerate(TEXTS):
        alone = model.run(text, capture=everything)
        for run in (left, right):
            mask = run.tokens.mask[row]
            torch.testing.assert_close(run.logits[row][mask], alone.logits[0], atol=5e-6, rtol=1e-5)
            for site in alone.acts:
                torch.testing.assert_close(run[site][row][mask], alone[site][0], atol=5e-6, rtol=1e-5)


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


def test_every_family_has_a_config_here():
    from hooke.model.families import FAMILIES

    assert {config.model_type for config in CONFIGS.values()} == set(FAMILIES)


def test_captures_are_the_tensors_that_the_modules_computed(model: Model):
    """Independent hooks on the same modules see the same bits, site by site."""
    tokens = model.tokens(TEXTS, padding_side="left")
    for layer in range(model.n_layers):
        for name, tap in model.layout.inside.items():
            path = ".".join(filter(None, (model.layout.blocks, str(layer), tap.path)))
            module, seen = model.hf.get_submodule(path), []
            if tap.side == "through":  # derived, not computed by any module: recomputed in test_recompute
                continue
            if tap.side == "out":
                handle = module.register_forward_hook(
                    lambda m, a, out, seen=seen: seen.append(out[0] if isinstance(out, tuple) else out)
                )
            else:
                handle = module.register_forward_pre_hook(
                    lambda m, args, kwargs, seen=seen: seen.append(args[0] if args else kwargs["hidden_states"]),
                    with_kwargs=True,
                )
            run = model.run(tokens, capture=[f"{name}.{layer}"], until=f"{name}.{layer}")
            handle.remove()
            assert torch.equal(run[f"{name}.{layer}"], tap.view.read(seen[0])), (name, layer)
            with model.capture(f"{name}.{layer}") as acts, torch.no_grad():
                model.hf(**model.arguments(tokens), use_cache=False)
            assert torch.equal(acts[model.site(f"{name}.{layer}")], run[f"{name}.{layer}"]), (name, layer)
