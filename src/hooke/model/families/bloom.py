"""BLOOM: ALiBi, q, k, v interleaved by head, a norm behind the embedding.

Its attention and MLP modules add the residual stream themselves, so what each part adds is found at its last matrix.
Its attention is its own code, not sent through transformers' registry.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from hooke.model.families.absence import alibi, no_experts, no_gate, no_post_norms
from hooke.model.families.family import Heads, InterleavedHeads, Layout, Tap


def bloom(config: PretrainedConfig) -> Layout:
    """Sites of `BloomForCausalLM`. `embed` is what enters the residual stream: behind the embedding's norm.

    With `apply_residual_connection_post_layernorm` (no released checkpoint has it) each part is added to its own normed
    input instead of to the stream.
    """
    d_model, d_head = config.hidden_size, config.hidden_size // config.n_head
    return Layout(
        family="bloom",
        blocks="transformer.h",
        n_layers=config.n_layer,
        d_model=d_model,
        n_heads=config.n_head,
        n_kv_heads=config.n_head,
        d_head=d_head,
        d_mlp=4 * d_model,
        attention="self_attention",
        dispatches=False,
        outside={
            "embed": Tap("transformer.word_embeddings_layernorm", "out"),
            "final_norm": Tap("transformer.ln_f", "out"),
            "logits": Tap("lm_head", "out"),
        },
        inside={
            "resid_pre": Tap("", "in"),
            "attn_in": Tap("self_attention", "in"),
            "q": Tap("self_attention.query_key_value", "out", InterleavedHeads(3, 0, d_head)),
            "k": Tap("self_attention.query_key_value", "out", InterleavedHeads(3, 1, d_head)),
            "v": Tap("self_attention.query_key_value", "out", InterleavedHeads(3, 2, d_head)),
            "z": Tap("self_attention.dense", "in", Heads(d_head)),
            "attn_out": Tap("self_attention.dense", "out"),
            "resid_mid": Tap("self_attention", "out"),
            "mlp_in": Tap("mlp", "in"),
            "mlp_pre": Tap("mlp.dense_h_to_4h", "out"),
            "mlp_post": Tap("mlp.dense_4h_to_h", "in"),
            "mlp_out": Tap("mlp.dense_4h_to_h", "out"),
            "resid_post": Tap("", "out"),
        },
        norms={"attn_norm_scale": "input_layernorm", "mlp_norm_scale": "post_attention_layernorm"},
        positions="alibi",
        absent=alibi() | no_gate() | no_experts() | no_post_norms(),
    )
