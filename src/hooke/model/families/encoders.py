"""Encoders (BERT, RoBERTa): attention in both directions, and post-norm blocks.

The stream is normalised after each addition: `resid_mid = norm(resid_pre + attn_out)`, `resid_post = norm(resid_mid +
mlp_out)`. Attention and MLP read the stream itself.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from hooke.model.families.family import Heads, Layout, Tap

_NO_SCALE = "its norms follow the additions (post-norm): they act on the sums, not on what a branch reads or adds"


def bert(config: PretrainedConfig) -> Layout:
    """Sites of `BertForMaskedLM`."""
    return _encoder(config, stem="bert", head="cls")


def roberta(config: PretrainedConfig) -> Layout:
    """Sites of `RobertaForMaskedLM`."""
    return _encoder(config, stem="roberta", head="lm_head")


def _encoder(config: PretrainedConfig, stem: str, head: str) -> Layout:
    d_head = config.hidden_size // config.num_attention_heads
    return Layout(
        family=config.model_type,
        blocks=f"{stem}.encoder.layer",
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_attention_heads,
        d_head=d_head,
        d_mlp=config.intermediate_size,
        attention="attention.self",
        norm="layer",
        positions="learned",
        causal=bool(config.is_decoder),
        outside={
            "embed": Tap(f"{stem}.embeddings.word_embeddings", "out"),
            "pos_embed": Tap(f"{stem}.embeddings.position_embeddings", "out"),
            "logits": Tap(head, "out"),
        },
        inside={
            "resid_pre": Tap("", "in"),
            "attn_in": Tap("attention.self", "in"),
            "q": Tap("attention.self.query", "out", Heads(d_head)),
            "k": Tap("attention.self.key", "out", Heads(d_head)),
            "v": Tap("attention.self.value", "out", Heads(d_head)),
            "z": Tap("attention.output.dense", "in", Heads(d_head)),
            "attn_out": Tap("attention.output.dense", "out"),
            "resid_mid": Tap("attention.output", "out"),
            "mlp_in": Tap("intermediate", "in"),
            "mlp_pre": Tap("intermediate.dense", "out"),
            "mlp_post": Tap("output.dense", "in"),
            "mlp_out": Tap("output.dense", "out"),
            "resid_post": Tap("", "out"),
        },
        absent={
            "mlp_pre_linear": "its MLP has no gate",
            "mlp_gate": "its MLP has no gate",
            "attn_norm_scale": _NO_SCALE,
            "mlp_norm_scale": _NO_SCALE,
            "attn_post_norm_scale": _NO_SCALE,
            "mlp_post_norm_scale": _NO_SCALE,
            "final_norm": "its head passes the stream through a layer of its own before the unembedding",
            "final_norm_scale": "its head passes the stream through a layer of its own before the unembedding",
        },
    )
