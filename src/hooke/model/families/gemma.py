"""Gemma 1, 2 and 3 (text): Llama's tree with norms that multiply by 1 + weight, and scaled embeddings.

Gemma 2 and 3 norm what attention and MLP give before it is added, alternate sliding and full attention, and may cap
scores and logits with a tanh. Gemma 3 also norms q and k, between `q` and `q_rot`.
"""

from __future__ import annotations

import dataclasses

from transformers import PretrainedConfig

from hooke.model.families.absence import no_experts, rotary
from hooke.model.families.family import Layout, Tap
from hooke.model.families.llama import llama


def gemma(config: PretrainedConfig) -> Layout:
    """Sites of `GemmaForCausalLM`, `Gemma2ForCausalLM` and `Gemma3ForCausalLM`. `embed` is what enters the residual
    stream: after the scale by sqrt(d_model).
    """
    layout = dataclasses.replace(llama(config), gain_offset=1.0)
    return layout if config.model_type == "gemma" else _sandwiched(layout, config)


def _sandwiched(layout: Layout, config: PretrainedConfig) -> Layout:
    """The layout with a norm on each side of attention and MLP."""
    capped = config.final_logit_softcapping is not None
    return dataclasses.replace(
        layout,
        # The cap comes after the head, outside any module: capped logits are what the model itself gives.
        outside={**layout.outside, "logits": Tap("" if capped else "lm_head", "out")},
        inside={
            **layout.inside,
            "attn_out": Tap("post_attention_layernorm", "out"),
            "resid_mid": Tap("pre_feedforward_layernorm", "in", in_place=True),
            "mlp_in": Tap("pre_feedforward_layernorm", "out"),
            "mlp_out": Tap("post_feedforward_layernorm", "out"),
        },
        norms={
            "attn_norm_scale": "input_layernorm",
            "attn_post_norm_scale": "post_attention_layernorm",
            "mlp_norm_scale": "pre_feedforward_layernorm",
            "mlp_post_norm_scale": "post_feedforward_layernorm",
        },
        logit_softcap=config.final_logit_softcapping,
        causal=not config.use_bidirectional_attention,
        absent=rotary() | no_experts(),
    )
