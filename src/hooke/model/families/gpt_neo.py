"""GPT-Neo: as GPT-2, with q, k, v apart, scores without a scale, and every other layer looking a few tokens back only.

Its attention is its own code: computed in float32, not sent through transformers' registry.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from hooke.model.families.absence import no_experts, no_gate, no_post_norms
from hooke.model.families.family import Heads, Layout, Tap


def gpt_neo(config: PretrainedConfig) -> Layout:
    """Sites of `GPTNeoForCausalLM`."""
    d_head = config.hidden_size // config.num_heads
    return Layout(
        family="gpt_neo",
        blocks="transformer.h",
        n_layers=config.num_layers,
        d_model=config.hidden_size,
        n_heads=config.num_heads,
        n_kv_heads=config.num_heads,
        d_head=d_head,
        d_mlp=config.intermediate_size or 4 * config.hidden_size,
        attention="attn.attention",
        dispatches=False,
        outside={
            "embed": Tap("transformer.wte", "out"),
            "pos_embed": Tap("transformer.wpe", "out"),
            "final_norm": Tap("transformer.ln_f", "out"),
            "logits": Tap("lm_head", "out"),
        },
        inside={
            "resid_pre": Tap("", "in"),
            "attn_in": Tap("ln_1", "out"),
            "q": Tap("attn.attention.q_proj", "out", Heads(d_head)),
            "k": Tap("attn.attention.k_proj", "out", Heads(d_head)),
            "v": Tap("attn.attention.v_proj", "out", Heads(d_head)),
            "z": Tap("attn.attention.out_proj", "in", Heads(d_head)),
            "attn_out": Tap("attn", "out"),
            "resid_mid": Tap("ln_2", "in", in_place=True),
            "mlp_in": Tap("ln_2", "out"),
            "mlp_pre": Tap("mlp.c_fc", "out"),
            "mlp_post": Tap("mlp.c_proj", "in"),
            "mlp_out": Tap("mlp", "out"),
            "resid_post": Tap("", "out"),
        },
        norms={"attn_norm_scale": "ln_1", "mlp_norm_scale": "ln_2"},
        positions="learned",
        absent=no_gate() | no_experts() | no_post_norms(),
    )
