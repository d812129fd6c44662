"""Falcon: rotary positions or ALiBi, key-value heads grouped with their queries, parallel blocks (with two norms, or
one that both parts share) or sequential ones.

Its attention is its own code, not sent through transformers' registry.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from hooke.model.families.absence import PARALLEL, alibi, no_experts, no_gate, no_post_norms, rotary, shared_norm
from hooke.model.families.family import Heads, Layout, Tap, Whole
from hooke.model.families.views import Copied, GroupedHeads


def falcon(config: PretrainedConfig) -> Layout:
    """Sites of `FalconForCausalLM`: 7B (multi-query), 40B and 180B (grouped, two norms), 11B (grouped, one norm), RW
    (sequential, ALiBi).
    """
    n_heads, d_head = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    n_groups = config.num_kv_heads if config.new_decoder_architecture else 1 if config.multi_query else n_heads
    norms, absent = _norms(config)
    inside = {
        "resid_pre": Tap("", "in"),
        "attn_in": Tap("self_attention", "in"),
        "q": Tap("self_attention.query_key_value", "out", GroupedHeads(n_groups, "q", d_head)),
        "k": Tap("self_attention.query_key_value", "out", GroupedHeads(n_groups, "k", d_head)),
        "v": Tap("self_attention.query_key_value", "out", GroupedHeads(n_groups, "v", d_head)),
        "z": Tap("self_attention.dense", "in", Heads(d_head)),
        "attn_out": Tap("self_attention", "out"),
        "mlp_in": Tap("mlp", "in"),
        "mlp_pre": Tap("mlp.dense_h_to_4h", "out"),
        "mlp_post": Tap("mlp.dense_4h_to_h", "in"),
        # Parallel blocks add the attention's output into this tensor.
        "mlp_out": Tap("mlp", "out", Copied() if "resid_mid" in absent else Whole()),
        "resid_post": Tap("", "out"),
    }
    if "resid_mid" not in absent:
        inside["resid_mid"] = Tap("post_attention_layernorm", "in", in_place=True)
    return Layout(
        family="falcon",
        blocks="transformer.h",
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=n_heads,
        n_kv_heads=n_groups,
        d_head=d_head,
        d_mlp=config.ffn_hidden_size,
        attention="self_attention",
        dispatches=False,
        outside={
            "embed": Tap("transformer.word_embeddings", "out"),
            "final_norm": Tap("transformer.ln_f", "out"),
            "logits": Tap("lm_head", "out"),
        },
        inside=inside,
        norms=norms,
        positions="alibi" if config.alibi else "rotary",
        absent=(alibi() if config.alibi else rotary()) | no_gate() | no_experts() | no_post_norms() | absent,
    )


def _norms(config: PretrainedConfig) -> tuple[dict[str, str], dict[str, str]]:
    """Norm modules by scale site, and what the shape of the block leaves out."""
    if config.new_decoder_architecture and config.num_ln_in_parallel_attn in (None, 2):  # transformers reads None as 2
        return {"attn_norm_scale": "ln_attn", "mlp_norm_scale": "ln_mlp"}, {"resid_mid": PARALLEL}
    if config.new_decoder_architecture or config.parallel_attn:
        return {"attn_norm_scale": "input_layernorm"}, shared_norm()
    return {"attn_norm_scale": "input_layernorm", "mlp_norm_scale": "post_attention_layernorm"}, {}
