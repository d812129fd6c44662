"""Llama and its siblings: rotary positions, separate q, k, v with grouped key-value heads, gated MLP, RMSNorm.

Mistral differs by its sliding window, Qwen 2 by biases on q, k, v, Qwen 3 by norms on q and k, which lie between `q`
and `q_rot`: the module tree is the same. DeepSeek's distilled checkpoints are Llama or Qwen 2.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from hooke.model.families.absence import no_experts, no_post_norms, rotary
from hooke.model.families.family import Heads, Layout, Tap


def llama(config: PretrainedConfig) -> Layout:
    """Sites of `LlamaForCausalLM`, `MistralForCausalLM`, `Qwen2ForCausalLM` and `Qwen3ForCausalLM`."""
    d_head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Layout(
        family=config.model_type,
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
            "final_norm": Tap("model.norm", "out"),
            "logits": Tap("lm_head", "out"),
        },
        inside={
            "resid_pre": Tap("", "in"),
            "attn_in": Tap("input_layernorm", "out"),
            "q": Tap("self_attn.q_proj", "out", Heads(d_head)),
            "k": Tap("self_attn.k_proj", "out", Heads(d_head)),
            "v": Tap("self_attn.v_proj", "out", Heads(d_head)),
            "z": Tap("self_attn.o_proj", "in", Heads(d_head)),
            "attn_out": Tap("self_attn", "out"),
            "resid_mid": Tap("post_attention_layernorm", "in", in_place=True),
            "mlp_in": Tap("post_attention_layernorm", "out"),
            "mlp_pre": Tap("mlp.gate_proj", "out"),
            "mlp_gate": Tap("mlp.act_fn", "out"),
            "mlp_pre_linear": Tap("mlp.up_proj", "out"),
            "mlp_post": Tap("mlp.down_proj", "in"),
            "mlp_out": Tap("mlp", "out"),
            "resid_post": Tap("", "out"),
        },
        norms={"attn_norm_scale": "input_layernorm", "mlp_norm_scale": "post_attention_layernorm"},
        norm="rms",
        positions="rotary",
        absent=rotary() | no_experts() | no_post_norms(),
    )
