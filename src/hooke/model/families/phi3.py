"""Phi 3: Llama's tree with q, k, v joined in one matrix and gate and up joined in another."""

from __future__ import annotations

import dataclasses

from transformers import PretrainedConfig

from hooke.model.families.family import Layout, SplitHeads, Tap
from hooke.model.families.llama import llama
from hooke.model.families.views import Part


def phi3(config: PretrainedConfig) -> Layout:
    """Sites of `Phi3ForCausalLM`."""
    layout = llama(config)
    d_head, d_mlp = layout.d_head, layout.d_mlp
    widths = (layout.n_heads * d_head, layout.n_kv_heads * d_head, layout.n_kv_heads * d_head)
    joined = {
        "q": Tap("self_attn.qkv_proj", "out", SplitHeads(widths, 0, d_head)),
        "k": Tap("self_attn.qkv_proj", "out", SplitHeads(widths, 1, d_head)),
        "v": Tap("self_attn.qkv_proj", "out", SplitHeads(widths, 2, d_head)),
        "mlp_pre": Tap("mlp.gate_up_proj", "out", Part((d_mlp, d_mlp), 0)),
        "mlp_pre_linear": Tap("mlp.gate_up_proj", "out", Part((d_mlp, d_mlp), 1)),
        "mlp_gate": Tap("mlp.activation_fn", "out"),
    }
    return dataclasses.replace(layout, inside={**layout.inside, **joined})
