"""Architectures without a map: their sites found by structure, each one checked in trial runs on a few tokens.

Where a check fails the site is absent and the reason says so; a site that is named is what its name says.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hooke.base.errors import HookeWarning, ModelError
from hooke.base.seeds import torch_generator
from hooke.model.families.absence import PARALLEL
from hooke.model.families.branches import Branches, find_branches
from hooke.model.families.derived import NormScale, complete
from hooke.model.families.ends import Ends
from hooke.model.families.family import Layout, Tap, Whole
from hooke.model.families.norms import norm_kind
from hooke.model.families.projections import find_heads
from hooke.model.families.trial import Replay, Seen, record
from hooke.model.families.views import Copied
from hooke.model.sites import AFTER_BLOCKS, BEFORE_BLOCKS, BLOCK_SITES

_SHAPE = (2, 6)  # rows and tokens of a trial
_INSIDE_MLP = ("router_logits", "mlp_pre", "mlp_gate", "mlp_pre_linear", "mlp_post", "expert_out")


@torch.no_grad()
def generic(hf: PreTrainedModel) -> Layout:
    """The sites of a model whose architecture has no map.

    Warns (`HookeWarning`) with the name of the architecture and the sites that are missing.

    Raises:
        ModelError: where not even the blocks can be found.
    """
    training = hf.training
    hf.eval()
    try:
        layout = _Finder(hf, *_trial(hf)).layout()
    finally:
        hf.train(training)
    missing = [n for n in (*BEFORE_BLOCKS, *BLOCK_SITES, *AFTER_BLOCKS) if n in layout.absent]
    warnings.warn(
        f"{hf.config.model_type!r} models have no map of sites; what was found by structure can be used, "
        f"and these are missing: {', '.join(missing)}",
        HookeWarning,
        stacklevel=2,
    )
    return layout


def _ids(hf: PreTrainedModel) -> Tensor:
    """Random tokens that are not special."""
    embedding = hf.get_input_embeddings()
    n = getattr(embedding, "num_embeddings", None) or embedding.weight.shape[0]
    special = {v for k, v in hf.config.to_dict().items() if k.endswith(("_token_id", "_token_index"))
               and isinstance(v, int)}  # fmt: skip
    plain = torch.tensor([i for i in range(min(n, 1000)) if i not in special])
    return plain[torch.randint(len(plain), _SHAPE, generator=torch_generator(0, "generic", "ids"))].to(hf.device)


def _trial(hf: PreTrainedModel) -> tuple[dict[str, Seen], Tensor | None, bool]:
    """What every module did, the logits, and whether earlier positions ignore later ones."""
    given = []
    try:
        ids = _ids(hf)
        seen = record(hf, lambda: given.append(hf(input_ids=ids, use_cache=False)), arguments=True)
        other = ids.clone()
        other[:, -1] = ids[:, 0]
        other[:, -2] = ids[:, 1]
        again = record(hf, lambda: given.append(hf(input_ids=other, use_cache=False)))
    except Exception as error:  # whatever an unknown model's code raises, the reason is passed on
        raise ModelError(
            f"{hf.config.model_type!r} models have no map of sites, and a trial run on tokens alone failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    early = slice(None, -2)
    causal = all(
        again[name].out is not None and torch.allclose(again[name].out[:, early], entry.out[:, early], atol=1e-4)
        for name, entry in seen.items()
        if entry.out is not None and entry.out.ndim == 3 and entry.out.shape[:2] == _SHAPE
    )
    return seen, getattr(given[0], "logits", None), causal


@dataclass(frozen=True)
class _Finder:
    hf: PreTrainedModel
    seen: Mapping[str, Seen]
    logits: Tensor | None
    causal: bool

    def layout(self) -> Layout:
        blocks = self.blocks()
        names = [f"{blocks}.{i}" for i in range(len(self.hf.get_submodule(blocks)))]
        replays = [Replay(self.hf.get_submodule(name), self.seen[name]) for name in names]
        branches = [find_branches(replay) for replay in replays]
        heads = [
            find_heads(r, b.attention) if b and b.attention else None for r, b in zip(replays, branches, strict=True)
        ]
        inside = self.residual(names) | _agreed([b.taps if b else {} for b in branches])
        known = [h for h in heads if h is not None]
        shapes = {(h.attention, h.n_heads, h.n_kv_heads, h.d_head) for h in known}
        dispatches = len(known) == len(heads) and len(shapes) == 1
        if dispatches:
            inside |= _agreed([h.taps for h in known])
        outside = Ends(self.hf, self.seen, self.logits).taps(self.seen[names[0]], self.seen[names[-1]])
        norms, kind, offset = self.norms(branches, outside)
        positions = self.positions([h.rotated for h in known], outside)
        there = {*inside, *outside, *norms, *(("result",) if "z" in inside else ())}
        if dispatches:
            there |= {"scores", "pattern"} | ({"q_rot", "k_rot"} if positions == "rotary" else set())
        absent = {
            site: reason for site, reason in self.reasons(branches, outside, dispatches).items() if site not in there
        }
        config = self.hf.config
        d_model = self.seen[names[0]].out.shape[-1]
        n_heads, n_kv_heads, d_head = _as_configured(self.hf, d_model)
        if dispatches:
            n_heads, n_kv_heads, d_head = known[0].n_heads, known[0].n_kv_heads, known[0].d_head
        return complete(
            Layout(
                family=config.model_type,
                blocks=blocks,
                n_layers=len(names),
                d_model=d_model,
                n_heads=n_heads,
                n_kv_heads=n_kv_heads,
                d_head=d_head,
                d_mlp=getattr(config, "intermediate_size", None) or 0,
                attention=known[0].attention if dispatches else "",
                outside=outside,
                inside=inside,
                absent=absent,
                norms=norms,
                norm=kind,
                gain_offset=offset,
                positions=positions,
                causal=self.causal,
                dispatches=dispatches,
            )
        )

    # -- blocks --------------------------------------------------------------------------------------------------------

    def blocks(self) -> str:
        """The longest list of modules that run once each, in order, each on what the one before it gave."""
        lists = {n: len(m) for n, m in self.hf.named_modules() if isinstance(m, nn.ModuleList) and len(m)}
        chains = {name: n for name, n in lists.items() if self.is_chain([f"{name}.{i}" for i in range(n)])}
        if not chains:
            seen = ", ".join(f"{name} ({n})" for name, n in lists.items()) or "none"
            raise ModelError(
                f"{self.hf.config.model_type!r} models have no map of sites, and no list of blocks was found that run "
                f"once each, in order, each on what the one before gave; lists of modules: {seen}"
            )

        def size(name: str) -> int:
            return sum(p.numel() for p in self.hf.get_submodule(name).parameters())

        return max(chains, key=lambda name: (chains[name], size(name)))

    def is_chain(self, names: Sequence[str]) -> bool:
        entries = [self.seen.get(name) for name in names]
        if any(e is None or e.calls > 1 or e.x is None or e.out is None for e in entries):
            return False
        if len({type(self.hf.get_submodule(name)) for name in names}) > 1:
            return False
        shape = entries[0].x.shape
        if len(shape) != 3 or shape[:2] != _SHAPE or any(e.x.shape != shape or e.out.shape != shape for e in entries):
            return False
        return all(
            after.order > before.done and torch.equal(after.x, before.out)
            for before, after in zip(entries, entries[1:], strict=False)
        )

    def residual(self, names: Sequence[str]) -> dict[str, Tap]:
        """Inputs and outputs of the blocks; by value where a block writes into what it was given."""
        x_kept = all(self.seen[name].x_kept for name in names)
        out_kept = all(self.seen[name].out_kept for name in names)
        return {
            "resid_pre": Tap("", "in", Whole() if x_kept else Copied()),
            "resid_post": Tap("", "out", Whole() if out_kept else Copied()),
        }

    def norms(self, branches: Sequence[Branches | None], outside: dict[str, Tap]) -> tuple[dict[str, str], str, float]:
        """Norm modules of the blocks by scale site, where all layers agree; their kind; what they add to their gain."""
        found = _agreed([b.norms if b else {} for b in branches])
        last = outside.get("final_norm")
        final = None
        if last is not None:
            entry = self.seen[last.path]
            final = norm_kind(self.hf.get_submodule(last.path), entry.x, entry.out)
            outside["final_norm_scale"] = Tap(last.path, "through", NormScale(centred=final[0] == "layer"))
        kind, offset = next(((k, o) for _, k, o in found.values()), final or ("layer", 0.0))
        return {site: path for site, (path, *same) in found.items() if same == [kind, offset]}, kind, offset

    def positions(self, rotated: Sequence[bool | None], outside: Mapping[str, Tap]) -> str:
        """How positions get in: as seen in the attention function, or else as the configuration says."""
        config = self.hf.config
        told = [turned for turned in rotated if turned is not None]
        configured = any(getattr(config, name, None) for name in ("rope_parameters", "rotary_dim"))
        if any(told) or (not told and configured):
            return "rotary"
        if getattr(config, "alibi", None) or getattr(getattr(config, "attn_config", None), "alibi", None):
            return "alibi"
        return "learned" if "pos_embed" in outside else "none"

    # -- what is missing -----------------------------------------------------------------------------------------------

    def reasons(
        self, branches: Sequence[Branches | None], outside: Mapping[str, Tap], dispatches: bool
    ) -> dict[str, str]:
        """For every site, why it would be missing."""
        if None in branches:
            reason = "no attention and MLP were found in its blocks whose outputs, as they are, add up to the block's"
        else:
            reason = "no module of its blocks passed the checks for it"
        reasons = dict.fromkeys(BLOCK_SITES, reason)
        if any(b is not None and b.attention is None for b in branches):
            mixer = "what mixes positions in some of its blocks is no attention"
            reasons |= dict.fromkeys(("attn_in", "attn_out", "attn_norm_scale", "attn_post_norm_scale"), mixer)
        reasons |= dict.fromkeys(_INSIDE_MLP, "without a map of the architecture its MLP is not looked into")
        if all(b is not None and b.parallel for b in branches):
            reasons["resid_mid"] = PARALLEL
        reasons |= dict.fromkeys(
            ("embed", "pos_embed"), "the embeddings, as they are, do not add up to what the first block reads"
        )
        if "embed" in outside:
            reasons["pos_embed"] = "nothing is added to the embedding before the first block"
        reasons["logits"] = "no head was found, or its output is scaled or capped before it becomes the logits"
        reasons |= dict.fromkeys(("final_norm", "final_norm_scale"), "no norm lies between the last block and the head")
        inner = ("q_rot", "k_rot", "scores", "pattern")
        if not dispatches:
            reasons |= dict.fromkeys(inner, "its attention was not seen in transformers' registry of functions")
        else:
            reasons |= dict.fromkeys(("q_rot", "k_rot"), "its queries and keys are not turned by position")
        return reasons


def _as_configured(hf: PreTrainedModel, d_model: int) -> tuple[int, int, int]:
    """Heads, key-value heads and d_head as the configuration has them, 0 where it has none."""
    n_heads = getattr(hf.config, "num_attention_heads", None) or 0
    n_kv = getattr(hf.config, "num_key_value_heads", None) or n_heads
    return n_heads, n_kv, getattr(hf.config, "head_dim", None) or (d_model // n_heads if n_heads else 0)


def _agreed(layers: Sequence[Mapping]) -> dict:
    """What is the same in every layer."""
    return {key: value for key, value in layers[0].items() if all(layer.get(key) == value for layer in layers)}
