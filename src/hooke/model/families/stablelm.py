"""StableLM: Llama's tree with LayerNorm, part of each head rotated, and, if the config says so, parallel blocks."""

from __future__ import annotations

import dataclasses

from transformers import PretrainedConfig

from hooke.model.families.absence import shared_norm
from hooke.model.families.family import Layout, Tap
from hooke.model.families.llama import llama


def stablelm(config: PretrainedConfig) -> Layout:
    """Sites of `StableLmForCausalLM`. A parallel block has one norm and no `resid_mid`."""
    layout = dataclasses.replace(llama(config), norm="layer")
    if not config.use_parallel_residual:
        return layout
    inside = {**layout.inside, "attn_in": Tap("self_attn", "in"), "mlp_in": Tap("mlp", "in")}
    del inside["resid_mid"]
    return dataclasses.replace(
        layout,
        inside=inside,
        norms={"attn_norm_scale": "input_layernorm"},
        absent={**layout.absent, **shared_norm()},
    )
