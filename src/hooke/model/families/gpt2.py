"""GPT-2: learned positions, one joined qkv matrix split in three, sequential blocks with LayerNorm before each part."""

from __future__ import annotations

from transformers import PretrainedConfig

from hooke.model.families.absence import no_experts, no_gate, no_post_norms
from hooke.model.families.family import Heads, Layout, SplitHeads, Tap


def gpt2(config: PretrainedConfig) -> Layout:
    """Sites of `GPT2LMHeadModel`."""
    d_model, d_head = config.n_embd, config.n_embd // config.n_head
    joined = (d_model, d_model, d_model)
    return Layout(
        family="gpt2",
        blocks="transformer.h",
        n_layers=config.n_layer,
        d_model=d_model,
        n_heads=config.n_head,
        n_kv_heads=config.n_head,
        d_head=d_head,
        d_mlp=config.n_inner or 4 * d_model,
        attention="attn",
        outside={
            "embed": Tap("transformer.wte", "out"),
            "pos_embed": Tap("transformer.wpe", "out"),
            "final_norm": Tap("transformer.ln_f", "out"),
            "logits": Tap("lm_head", "out"),
        },
        inside={
            "resid_pre": Tap("", "in"),
            "attn_in": Tap("ln_1", "out"),
            "q": Tap("attn.c_attn", "out", SplitHeads(joined, 0, d_head)),
            "k": Tap("attn.c_attn", "out", SplitHeads(joined, 1, d_head)),
            "v": Tap("attn.c_attn", "out", SplitHeads(joined, 2, d_head)),
            "z": Tap("attn.c_proj", "in", Heads(d_head)),
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
