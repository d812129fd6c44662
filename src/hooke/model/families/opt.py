"""OPT: learned positions, q, k, v apart, ReLU; its MLP sees all tokens of a batch in one long row.

OPT-350m norms after each part instead of before: `resid_mid` and `resid_post` are then normed sums.
"""

from __future__ import annotations

from transformers import PretrainedConfig

from hooke.model.families.absence import no_experts, no_gate, no_post_norms
from hooke.model.families.derived import NormScale
from hooke.model.families.family import Heads, Layout, Tap

_AFTER = "its norms come after each part, on the residual stream itself"


def opt(config: PretrainedConfig) -> Layout:
    """Sites of `OPTForCausalLM`.

    `embed` is what enters the residual stream: behind the projection where the token embedding has a width of its own.
    """
    d_head, narrow = config.hidden_size // config.num_attention_heads, config.word_embed_proj_dim != config.hidden_size
    before = config.do_layer_norm_before
    outside = {
        "embed": Tap("model.decoder.project_in" if narrow else "model.decoder.embed_tokens", "out"),
        "pos_embed": Tap("model.decoder.embed_positions", "out"),
        "logits": Tap("lm_head", "out"),
    }
    absent = no_gate() | no_experts() | no_post_norms()
    if before and not config._remove_final_layer_norm:
        outside["final_norm"] = Tap("model.decoder.final_layer_norm", "out")
    else:
        absent |= dict.fromkeys(("final_norm", "final_norm_scale"), "no norm comes after the last block")
    inside, norms = {}, {}
    if before:
        norms["attn_norm_scale"] = "self_attn_layer_norm"
        inside["mlp_norm_scale"] = Tap("final_layer_norm", "through", NormScale(centred=True), flat=True)
        inside["resid_mid"] = Tap("final_layer_norm", "in", in_place=True, flat=True)
    else:
        absent |= dict.fromkeys(("attn_norm_scale", "mlp_norm_scale"), _AFTER)
        inside["resid_mid"] = Tap("self_attn_layer_norm", "out")
    return Layout(
        family="opt",
        blocks="model.decoder.layers",
        n_layers=config.num_hidden_layers,
        d_model=config.hidden_size,
        n_heads=config.num_attention_heads,
        n_kv_heads=config.num_attention_heads,
        d_head=d_head,
        d_mlp=config.ffn_dim,
        attention="self_attn",
        outside=outside,
        inside={
            "resid_pre": Tap("", "in"),
            "attn_in": Tap("self_attn", "in"),
            "q": Tap("self_attn.q_proj", "out", Heads(d_head)),
            "k": Tap("self_attn.k_proj", "out", Heads(d_head)),
            "v": Tap("self_attn.v_proj", "out", Heads(d_head)),
            "z": Tap("self_attn.out_proj", "in", Heads(d_head)),
            "attn_out": Tap("self_attn", "out"),
            "mlp_in": Tap("fc1", "in", flat=True),
            "mlp_pre": Tap("fc1", "out", flat=True),
            "mlp_post": Tap("fc2", "in", flat=True),
            "mlp_out": Tap("fc2", "out", flat=True),
            "resid_post": Tap("", "out"),
            **inside,
        },
        norms=norms,
        positions="learned",
        absent=absent,
    )
