"""OLMo 2: Llama's tree with its norms on what attention and MLP give, none before them, and norms over all of q and k
(between `q` and `q_rot`).
"""

from __future__ import annotations

import dataclasses

from transformers import PretrainedConfig

from hooke.model.families.absence import no_experts, rotary
from hooke.model.families.family import Layout, Tap
from hooke.model.families.llama import llama

_UNNORMED = "attention and MLP read the residual stream as it is; the norms are on what they give"


def olmo2(config: PretrainedConfig) -> Layout:
    """Sites of `Olmo2ForCausalLM`. `attn_in` is `resid_pre` and `mlp_in` is `resid_mid`, but an edit there reaches the
    attention or the MLP only.
    """
    layout = llama(config)
    return dataclasses.replace(
        layout,
        inside={
            **layout.inside,
            "attn_in": Tap("self_attn", "in"),
            "attn_out": Tap("post_attention_layernorm", "out"),
            "resid_mid": Tap("mlp", "in", in_place=True),
            "mlp_in": Tap("mlp", "in"),
            "mlp_out": Tap("post_feedforward_layernorm", "out"),
        },
        norms={
            "attn_post_norm_scale": "post_attention_layernorm",
            "mlp_post_norm_scale": "post_feedforward_layernorm",
        },
        absent=rotary() | no_experts() | dict.fromkeys(("attn_norm_scale", "mlp_norm_scale"), _UNNORMED),
    )
