"""Module paths as nnsight writes them, against the maps and against hooks on the modules themselves."""

from __future__ import annotations

import pytest
import torch
from conftest_model import TEXTS, random_model

from hooke.base.errors import SiteError
from hooke.model.aliases import known_paths, module_path


def first(given):
    return given if isinstance(given, torch.Tensor) else given[0]


def layout(family):
    return random_model(family).layout


@pytest.mark.parametrize(
    ("family", "text", "site"),
    [
        ("gpt2", "transformer.h.2.output", "resid_post.2"),
        ("gpt2", "transformer.h[2].output[0]", "resid_post.2"),
        ("gpt2", "transformer.h[-1].input", "resid_pre.-1"),
        ("gpt2", "transformer.h.*.output", "resid_post.*"),
        ("gpt2", "model.transformer.h[1].mlp.output", "mlp_out.1"),
        ("gpt2", "transformer.h[0].attn.c_proj.input", "z.0"),
        ("gpt2", "transformer.h.0.attn.output[0]", "attn_out.0"),
        ("gpt2", "transformer.h.0.attn.input", "attn_in.0"),
        ("gpt2", "transformer.h.0.attn.inputs[0][0]", "attn_in.0"),
        ("gpt2", "transformer.h.0.mlp.input", "mlp_in.0"),
        ("gpt2", "transformer.h.0.ln_1.output", "attn_in.0"),
        ("gpt2", "transformer.h.0.ln_2.input", "resid_mid.0"),
        ("gpt2", "transformer.wte.output", "embed"),
        ("gpt2", "transformer.ln_f.output", "final_norm"),
        ("gpt2", "lm_head.output", "logits"),
        ("llama", "model.layers.1.mlp.output", "mlp_out.1"),
        ("llama", "model.layers[1].self_attn.o_proj.input", "z.1"),
        ("llama", "model.model.layers[1].self_attn.q_proj.output", "q.1"),
        ("llama", "model.layers[2].mlp.down_proj.input", "mlp_post.2"),
        ("llama", "model.norm.output", "final_norm"),
        ("gpt_neox", "gpt_neox.layers[0].attention.dense.input", "z.0"),
    ],
)
def test_paths_name_sites(family, text, site):
    assert module_path(layout(family), text) == site
    assert random_model(family).site(site.replace("*", "0"))  # and the model has it


@pytest.mark.parametrize("text", ["resid_post.2", "z.*.1", "blocks.2.attn.hook_z", "hook_embed", "no such thing", ""])
def test_other_text_is_no_path(text):
    assert module_path(layout("gpt2"), text) is None


@pytest.mark.parametrize(
    ("family", "text", "says"),
    [
        ("gpt2", "transformer.h[2].attn.c_attn.output", r"holds q\.2, k\.2, v\.2 together"),
        ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value.output", r"holds q\.0, k\.0, v\.0 together"),
        ("gpt2", "transformer.h[2].attn.c_prj.input", r"did you mean 'transformer\.h\.2\.attn\.c_proj\.input'"),
        ("gpt2", "transformer.h[2].mlp.outptu", None),
        ("gpt2", "transformer.h.1.mlp", r"is a module; write 'transformer\.h\.1\.mlp\.output'"),
        ("gpt2", "lm_head", r"write 'lm_head\.output'"),
        ("llama", "transformer.h.5.output", r"no site of this llama model lies there; .*model\.layers\.0\.output"),
        ("gpt2", "transformer.h.1.ln_1.input", "no site of this gpt2 model lies there"),  # resid_pre goes on beside it
        ("llama", "lm_haed.output", r"did you mean 'lm_head\.output'"),
    ],
)
def test_paths_that_are_no_single_site(family, text, says):
    with pytest.raises(SiteError, match=says):
        module_path(layout(family), text)


def test_every_path_reads_what_the_module_saw(model):
    """All paths of every family: the site that is named equals the tensor at that side of that module."""
    tokens = model.tokens(TEXTS, padding_side="left")
    tried = 0
    for text in known_paths(model.layout, "1"):
        try:
            site = module_path(model.layout, text)
        except SiteError as error:
            assert "together" in str(error)
            continue
        path, _, side = text.rpartition(".")
        module, seen = model.hf.get_submodule(path), []
        if side == "output":
            handle = module.register_forward_hook(lambda m, args, out, seen=seen: seen.append(first(out).clone()))
        else:
            handle = module.register_forward_pre_hook(
                lambda m, args, kwargs, seen=seen: seen.append(first(args or kwargs["hidden_states"]).clone()),
                with_kwargs=True,
            )
        value = model.run(tokens, capture=[site])[site]
        handle.remove()
        assert torch.equal(value.flatten(), seen[0].flatten()), text
        tried += 1
    assert tried >= 10
