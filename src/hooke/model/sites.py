"""Sites: named places in a model's computation, their string grammar, and the aliases that other tools use.

Grammar: `name`, `name.layer` or `name.layer.head`, for example `embed`, `resid_post.2`, `z.5.3`. In a pattern, `*`
stands for every layer or head, and a negative layer counts from the end. TransformerLens names such as
`blocks.5.attn.hook_z` are accepted everywhere.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Literal

from hooke.base.errors import SiteError, nearest

# Order of execution inside a block; `until` and the planning of runs rely on it.
BLOCK_SITES = (
    "resid_pre",
    "attn_norm_scale",
    "attn_in",
    "q",
    "k",
    "v",
    "q_rot",
    "k_rot",
    "scores",
    "pattern",
    "z",
    "result",
    "attn_post_norm_scale",
    "attn_out",
    "resid_mid",
    "mlp_norm_scale",
    "mlp_in",
    "router_logits",
    "mlp_pre",
    "mlp_gate",
    "mlp_pre_linear",
    "mlp_post",
    "expert_out",
    "mlp_post_norm_scale",
    "mlp_out",
    "resid_post",
)
BEFORE_BLOCKS = ("embed", "pos_embed")
AFTER_BLOCKS = ("final_norm_scale", "final_norm", "logits")
SITES = frozenset((*BEFORE_BLOCKS, *BLOCK_SITES, *AFTER_BLOCKS))
HEAD_SITES = frozenset({"q", "k", "v", "q_rot", "k_rot", "scores", "pattern", "z", "result"})
MAP_SITES = ("scores", "pattern")  # [batch, head, query, key]
INNER_SITES = ("q_rot", "k_rot", *MAP_SITES)  # they exist only inside the attention function

TRANSFORMER_LENS = {
    "hook_embed": "embed",
    "hook_pos_embed": "pos_embed",
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_q": "q",
    "attn.hook_k": "k",
    "attn.hook_v": "v",
    "attn.hook_z": "z",
    "attn.hook_rot_q": "q_rot",
    "attn.hook_rot_k": "k_rot",
    "attn.hook_result": "result",
    "attn.hook_attn_scores": "scores",
    "attn.hook_pattern": "pattern",
    "ln1.hook_scale": "attn_norm_scale",
    "ln1.hook_out": "attn_in",
    "ln2.hook_scale": "mlp_norm_scale",
    "ln2.hook_out": "mlp_in",
    "ln_final.hook_scale": "final_norm_scale",
    "ln_final.hook_out": "final_norm",
    "ln1_post.hook_scale": "attn_post_norm_scale",
    "ln2_post.hook_scale": "mlp_post_norm_scale",
    "mlp.hook_pre": "mlp_pre",
    "mlp.hook_pre_linear": "mlp_pre_linear",
    "mlp.hook_post": "mlp_post",
}
_LENS_BLOCK = re.compile(r"blocks\.(\d+|\*)\.(.+)")
_INDEX = re.compile(r"-?\d+")


@dataclass(frozen=True, order=False)
class Site:
    """A place in the computation: what it is, in which layer, and for which head where that makes sense.

    Example:
        >>> str(Site.parse("blocks.5.attn.hook_z"))
        'z.5'
        >>> Site.parse("z.5.3")
        Site(name='z', layer=5, head=3)
    """

    name: str
    layer: int | None = None
    head: int | None = None

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.name, self.layer, self.head) if part is not None)

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read one site.

        Raises:
            SiteError: for a name that is not in the grammar, a missing or superfluous index, or a pattern with `*`.
        """
        name, layer, head = parse_pattern(text)
        if layer == "*" or head == "*":
            raise SiteError(f"{text!r} is a pattern; one site was expected, for example {text.replace('*', '0')!r}")
        return cls(name, layer, head)

    @property
    def without_head(self) -> Site:
        """The site of all heads together."""
        return Site(self.name, self.layer)

    @property
    def order(self) -> tuple[int, int]:
        """Sort key: sites that are computed earlier come first (valid for non-negative layers)."""
        if self.name in BEFORE_BLOCKS:
            return (-1, BEFORE_BLOCKS.index(self.name))
        if self.name in AFTER_BLOCKS:
            return (10**6, AFTER_BLOCKS.index(self.name))
        return (self.layer or 0, BLOCK_SITES.index(self.name))


Index = int | Literal["*"] | None


@functools.lru_cache(maxsize=4096)  # sweeps name the same sites hundreds of times
def parse_pattern(text: str) -> tuple[str, Index, Index]:
    """Split a site or a pattern of sites into (name, layer, head); `*` stays as it is.

    Raises:
        SiteError: names the part that does not fit and the nearest valid name.
    """
    parts = _from_alias(text).split(".")
    name, indices = parts[0], parts[1:]
    known = BEFORE_BLOCKS + BLOCK_SITES + AFTER_BLOCKS
    if name not in known:
        raise SiteError(f"site {text!r}: no site is called {name!r}{nearest(name, known)}; known: {', '.join(known)}")
    for index in indices:
        if index != "*" and not _INDEX.fullmatch(index):
            raise SiteError(f"site {text!r}: {index!r} is not a number or '*'; expected for example '{name}.0'")
    if name not in BLOCK_SITES:
        if indices:
            raise SiteError(f"site {text!r}: {name!r} exists once per model and takes no layer; write {name!r}")
        return name, None, None
    if not indices:
        raise SiteError(f"site {text!r} needs a layer; write '{name}.0', or '{name}.*' for all layers")
    if len(indices) > 1 and name not in HEAD_SITES:
        raise SiteError(f"site {text!r}: {name!r} has no heads; write '{name}.{indices[0]}'")
    if len(indices) > 2:
        raise SiteError(f"site {text!r} has too many parts; expected '{name}.layer.head'")
    layer, head = ([*(index if index == "*" else int(index) for index in indices), None])[:2]
    if isinstance(head, int) and head < 0:
        raise SiteError(f"site {text!r}: heads count from 0")
    return name, layer, head


def _from_alias(text: str) -> str:
    """The canonical spelling of a TransformerLens hook name; other text is returned unchanged."""
    if text in TRANSFORMER_LENS and TRANSFORMER_LENS[text] not in BLOCK_SITES:
        return TRANSFORMER_LENS[text]
    if text.endswith(".hook_normalized"):
        raise SiteError(
            f"site {text!r}: in TransformerLens that lies before the norm's gain and bias or behind them, as weights "
            f"are raw or folded; what the next module reads is {text.replace('hook_normalized', 'hook_out')!r} "
            "(attn_in, mlp_in, final_norm)"
        )
    match = _LENS_BLOCK.fullmatch(text)
    if not match:
        return text
    layer, hook = match.groups()
    if hook not in TRANSFORMER_LENS:
        raise SiteError(f"site {text!r}: hook {hook!r} has no counterpart here{nearest(hook, TRANSFORMER_LENS)}")
    return f"{TRANSFORMER_LENS[hook]}.{layer}"
