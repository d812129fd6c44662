"""Both ends of a model, found by what they give: embeddings before the first block, norm and head after the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hooke.model.families.family import Tap, Whole
from hooke.model.families.norms import norm_kind
from hooke.model.families.trial import Seen, shallowest
from hooke.model.families.views import Copied


@dataclass(frozen=True)
class Ends:
    """Looks at the modules outside the blocks in a trial run."""

    hf: PreTrainedModel
    seen: Mapping[str, Seen]
    logits: Tensor | None

    def taps(self, first: Seen, last: Seen) -> dict[str, Tap]:
        """Sites outside the blocks, given the first and the last block."""
        taps = {}
        before = {n: e for n, e in self.once().items() if e.done < first.order and e.out is not None}
        embed = self.path_of(self.hf.get_input_embeddings())
        if embed in before and before[embed].out.shape == first.x.shape:
            positions = [n for n in before if self.is_position(before[n].out, before[embed].out, first.x)]
            if positions:
                taps["pos_embed"] = self.tap(shallowest(positions, self.seen))
            if positions or torch.equal(before[embed].out, first.x):
                taps["embed"] = self.tap(embed)
        head = self.path_of(self.hf.get_output_embeddings())
        ending = self.once().get(head)
        if ending is not None and ending.out is not None and self.logits is not None:
            if torch.equal(ending.out, self.logits):
                taps["logits"] = self.tap(head)
            norms = [name for name in self.once() if self.is_last_norm(name, last.out, ending.x)]
            if norms:
                taps["final_norm"] = self.tap(shallowest(norms, self.seen))
        return taps

    def is_position(self, out: Tensor, embed: Tensor, first: Tensor) -> bool:
        """Added to the embedding it gives the first block's input, and it is the same for every row."""
        if out.ndim not in (2, 3) or out.shape[-2:] != embed.shape[-2:]:
            return False
        same = out.ndim == 2 or all(torch.equal(row, out[0]) for row in out)
        return same and torch.equal(embed + out, first)

    def is_last_norm(self, name: str, stream: Tensor, head: Tensor | None) -> bool:
        """A norm that reads what the last block gave, and gives what the head reads."""
        entry = self.seen[name]
        if (
            entry.x is None
            or entry.out is None
            or head is None
            or norm_kind(self.module(name), entry.x, entry.out) is None
        ):
            return False
        return all(a.shape == b.shape and torch.equal(a, b) for a, b in ((entry.x, stream), (entry.out, head)))

    def module(self, name: str) -> nn.Module:
        return self.hf.get_submodule(name)

    def once(self) -> dict[str, Seen]:
        return {name: entry for name, entry in self.seen.items() if entry.calls == 1 and name}

    def tap(self, path: str) -> Tap:
        return Tap(path, "out", Whole() if self.seen[path].out_kept else Copied())

    def path_of(self, module: nn.Module | None) -> str:
        return next((name for name, found in self.hf.named_modules() if found is module), "")
