"""Phi 1, 1.5 and 2: part of each head rotated, attention and MLP in parallel behind one LayerNorm, biases on all."""

from __future__ import annotations

from transformers import PretrainedConfig

from hooke.model.families.absence import no_experts, no_gate, no_post_norms, rotary, shared_norm
from hooke.model.families.family import Heads, Layout, Tap


def phi(config: PretrainedConfig) -> Layout:
    """Sites of `PhiForCausalLM`. A parallel block has no `resid_mid`."""
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Layout(
        family="phi",
        blocks="model.layers",
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_key_value_heads or config.num_attention_heads,
        d_head=d_head,
        d_mlp=config.intermediate_size,
        attention="self_attn",
        outside={
            "embed": Tap("model.embed_tokens", "out"),
            "final_norm": Tap("model.final_layernorm", "out"),
            "logits": Tap("lm_head", "out"),
        },
        inside={
            "resid_pre": Tap("", "in"),
            "attn_in": Tap("self_attn", "in"),
            "q": Tap("self_attn.q_proj", "out", Heads(d_head)),
            "k": Tap("self_attn.k_proj", "out", Heads(d_head)),
            "v": Tap("self_attn.v_proj", "out", Heads(d_head)),
            "z": Tap("self_attn.dense", "in", Heads(d_head)),
            "attn_out": Tap("self_attn", "out"),
            "mlp_in": Tap("mlp", "in"),
            "mlp_pre": Tap("mlp.fc1", "out"),
            "mlp_post": Tap("mlp.fc2", "in"),
            "mlp_out": Tap("mlp", "out"),
            "resid_post": Tap("", "out"),
        },
        norms={"attn_norm_scale": "input_layernorm"},
        positions="rotary",
        absent=rotary() | no_gate() | no_experts() | no_post_norms() | shared_norm(),
    )
