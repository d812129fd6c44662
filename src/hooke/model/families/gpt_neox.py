"""GPT-NeoX (Pythia): rotary positions, q, k, v interleaved by head, attention and MLP in parallel unless the config
says otherwise.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from hooke.model.families.absence import PARALLEL, no_experts, no_gate, no_post_norms, rotary
from hooke.model.families.family import Heads, InterleavedHeads, Layout, Tap


def gpt_neox(config: PretrainedConfig) -> Layout:
    """Sites of `GPTNeoXForCausalLM`. A parallel block has no `resid_mid`."""
    d_model, d_head = config.hidden_size, config.hidden_size // config.num_attention_heads
    inside = {
        "resid_pre": Tap("", "in"),
        "attn_in": Tap("input_layernorm", "out"),
        "q": Tap("attention.query_key_value", "out", InterleavedHeads(3, 0, d_head)),
        "k": Tap("attention.query_key_value", "out", InterleavedHeads(3, 1, d_head)),
        "v": Tap("attention.query_key_value", "out", InterleavedHeads(3, 2, d_head)),
        "z": Tap("attention.dense", "in", Heads(d_head)),
        "attn_out": Tap("attention", "out"),
        "mlp_in": Tap("post_attention_layernorm", "out"),
        "mlp_pre": Tap("mlp.dense_h_to_4h", "out"),
        "mlp_post": Tap("mlp.dense_4h_to_h", "in"),
        "mlp_out": Tap("mlp", "out"),
        "resid_post": Tap("", "out"),
    }
    absent = rotary() | no_gate() | no_experts() | no_post_norms()
    if config.use_parallel_residual:
        absent["resid_mid"] = PARALLEL
    else:
        inside["resid_mid"] = Tap("post_attention_layernorm", "in", in_place=True)
    return Layout(
        family="gpt_neox",
        blocks="gpt_neox.layers",
        n_layers=config.num_hidden_layers,
        d_model=d_model,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_attention_heads,
        d_head=d_head,
        d_mlp=config.intermediate_size,
        attention="attention",
        outside={
            "embed": Tap("gpt_neox.embed_in", "out"),
            "final_norm": Tap("gpt_neox.final_layer_norm", "out"),
            "logits": Tap("lm_head", "out"),
        },
        inside=inside,
        norms={"attn_norm_scale": "input_layernorm", "mlp_norm_scale": "post_attention_layernorm"},
        positions="rotary",
        absent=absent,
    )
