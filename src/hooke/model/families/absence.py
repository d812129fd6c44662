"""Why sites are absent: the reasons that families share, as `site name -> reason`."""

from __future__ import annotations

PARALLEL = "attention and MLP of a block run in parallel, both on resid_pre"


def rotary() -> dict[str, str]:
    """For models whose positions are rotations of q and k."""
    return {"pos_embed": "its positions are rotary"}


def alibi() -> dict[str, str]:
    """For models whose positions are a bias on the scores."""
    return {"pos_embed": "its positions are a bias on the attention scores (ALiBi)"}


def no_gate() -> dict[str, str]:
    """For MLPs of two matrices."""
    return dict.fromkeys(("mlp_gate", "mlp_pre_linear"), "its MLP has no gate")


def no_experts() -> dict[str, str]:
    """For models with one MLP per block."""
    return dict.fromkeys(("router_logits", "expert_out"), "its MLP has no experts")


def no_post_norms() -> dict[str, str]:
    """For blocks that add what attention and MLP give as it is."""
    return dict.fromkeys(("attn_post_norm_scale", "mlp_post_norm_scale"), "it has no norm after attention or MLP")


def shared_norm() -> dict[str, str]:
    """For parallel blocks with one norm."""
    return {"resid_mid": PARALLEL, "mlp_norm_scale": "the MLP reads the attention's norm, see attn_norm_scale"}
