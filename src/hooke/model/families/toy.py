"""The toy transformer: every switch changes which sites exist."""

from __future__ import annotations

from hooke.model.families.absence import PARALLEL, no_experts, no_gate, no_post_norms, rotary
from hooke.model.families.derived import NormScale
from hooke.model.families.family import Heads, Layout, Tap
from hooke.model.toy.network import ToyConfig  # importing the network registers it with transformers

_ATTENTION_ONLY = "its blocks have attention only"
_MLP_SITES = ("mlp_norm_scale", "mlp_in", "mlp_pre", "mlp_gate", "mlp_pre_linear", "mlp_post", "mlp_out")


def toy(config: ToyConfig) -> Layout:
    """Sites of `ToyTransformer`."""
    absent = _absent(config)
    kind = config.final_norm if config.norm == "none" else config.norm
    heads = Heads(config.d_head)
    inside = {
        "resid_pre": Tap("", "in"),
        "attn_in": Tap("attn_norm", "out"),
        "q": Tap("attn.q_proj", "out", heads),
        "k": Tap("attn.k_proj", "out", heads),
        "v": Tap("attn.v_proj", "out", heads),
        "z": Tap("attn.o_proj", "in", heads),
        "attn_out": Tap("attn", "out"),
        "resid_mid": Tap("mlp_norm", "in", in_place=True),
        "mlp_in": Tap("mlp_norm", "out"),
        "mlp_pre": Tap("mlp.gate_proj" if config.gated else "mlp.up_proj", "out"),
        "mlp_gate": Tap("mlp.act_fn", "out"),
        "mlp_pre_linear": Tap("mlp.up_proj", "out"),
        "mlp_post": Tap("mlp.down_proj", "in"),
        "mlp_out": Tap("mlp", "out"),
        "resid_post": Tap("", "out"),
    }
    outside = {
        "embed": Tap("embed", "out"),
        "pos_embed": Tap("pos_embed", "out"),
        "final_norm": Tap("final_norm", "out"),
        "final_norm_scale": Tap("final_norm", "through", NormScale(centred=config.final_norm == "layer")),
        "logits": Tap("unembed", "out"),
    }
    norms = {"attn_norm_scale": "attn_norm", "mlp_norm_scale": "mlp_norm"}
    return Layout(
        family="toy",
        blocks="blocks",
        n_layers=config.n_layers,
        d_model=config.d_model,
        n_heads=config.n_heads,
        n_kv_heads=config.n_kv_heads,
        d_head=config.d_head,
        d_mlp=0 if config.attention_only else config.d_mlp,
        attention="attn",
        outside={name: tap for name, tap in outside.items() if name not in absent},
        inside={name: tap for name, tap in inside.items() if name not in absent},
        absent=absent,
        norms={name: path for name, path in norms.items() if name not in absent},
        norm="rms" if kind == "rms" else "layer",
        positions="learned" if config.positions == "shortformer" else config.positions,
        causal=config.causal,
    )


def _absent(config: ToyConfig) -> dict[str, str]:
    absent = no_experts() | no_post_norms()
    if config.positions == "rotary":
        absent |= rotary()
    elif config.positions == "none":
        absent["pos_embed"] = "it has no positions"
    if config.norm == "none":
        absent |= dict.fromkeys(("attn_norm_scale", "mlp_norm_scale"), "its blocks have no norms")
    if config.final_norm == "none":
        absent |= dict.fromkeys(("final_norm", "final_norm_scale"), "it has no final norm")
    if not config.gated:
        absent |= no_gate()
    if config.parallel:
        absent["resid_mid"] = PARALLEL
    if config.attention_only:
        absent |= dict.fromkeys(_MLP_SITES, _ATTENTION_ONLY)
        absent["resid_mid"] = f"{_ATTENTION_ONLY}; see resid_post"
    return absent
