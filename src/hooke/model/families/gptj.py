"""GPT-J: rotary positions (neighbouring dimensions turn together), attention and MLP in parallel behind one norm.

Its attention is its own code: computed in float32, not sent through transformers' registry.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from hooke.model.families.absence import no_experts, no_gate, no_post_norms, rotary, shared_norm
from hooke.model.families.family import Heads, Layout, Tap


def gptj(config: PretrainedConfig) -> Layout:
    """Sites of `GPTJForCausalLM`. A parallel block has no `resid_mid`."""
    d_head = config.n_embd // config.n_head
    return Layout(
        family="gptj",
        blocks="transformer.h",
        n_layers=config.n_layer,
        d_model=config.n_embd,
        n_heads=config.n_head,
        n_kv_heads=config.n_head,
        d_head=d_head,
        d_mlp=config.n_inner or 4 * config.n_embd,
        attention="attn",
        dispatches=False,
        outside={
            "embed": Tap("transformer.wte", "out"),
            "final_norm": Tap("transformer.ln_f", "out"),
            "logits": Tap("lm_head", "out"),
        },
        inside={
            "resid_pre": Tap("", "in"),
            "attn_in": Tap("attn", "in"),
            "q": Tap("attn.q_proj", "out", Heads(d_head)),
            "k": Tap("attn.k_proj", "out", Heads(d_head)),
            "v": Tap("attn.v_proj", "out", Heads(d_head)),
            "z": Tap("attn.out_proj", "in", Heads(d_head)),
            "attn_out": Tap("attn", "out"),
            "mlp_in": Tap("mlp", "in"),
            "mlp_pre": Tap("mlp.fc_in", "out"),
            "mlp_post": Tap("mlp.fc_out", "in"),
            "mlp_out": Tap("mlp", "out"),
            "resid_post": Tap("", "out"),
        },
        norms={"attn_norm_scale": "ln_1"},
        positions="rotary",
        absent=rotary() | no_gate() | no_experts() | no_post_norms() | shared_norm(),
    )
