"""What a replaced activation does to the language model: loss and divergence per token, streamed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.statistics import Estimate
from hooke.data.packing import Packed
from hooke.dictionaries.metrics import N_GROUPS, GroupedSums
from hooke.model.edits import Set
from hooke.model.model import Model
from hooke.model.sites import Site
from hooke.model.tokens import Tokens

_SMALLEST_GAP = 1e-4  # nats; below it "recovered" would divide by noise


class SplicedLosses:
    """Next-token loss of the clean model and of versions with the activation replaced, on the same tokens.

    Activations are replaced at kept positions only (one mask); a loss counts where the token to be predicted is kept.
    """

    def __init__(self) -> None:
        self.n = 0
        self._sums = GroupedSums()

    @torch.no_grad()
    def update(
        self, model: Model, packed: Packed, clean: Tensor, site: Site, replacements: dict[str, Tensor], written: Tensor
    ) -> None:
        """Run the model once for each replacement.

        Args:
            packed: the text.
            clean: logits without any change.
            site: where to write.
            replacements: by name, rows to write at the kept positions, in order.
            written: the site's own values, `[batch, pos, ...]`.
        """
        tokens = packed.tokens
        places = (tokens.keep[:, 1:]).nonzero(as_tuple=True)
        groups = packed.doc[places[0].cpu()]
        target = tokens.ids[:, 1:][places]
        before = clean[:, :-1][places].float().log_softmax(-1)
        columns = {"n": torch.ones(len(target)), "clean": _loss(before, target)}
        for name, rows in replacements.items():
            value = written.clone()
            value[tokens.keep] = rows.to(written).reshape(len(rows), *written.shape[2:])
            logits = model.run(tokens, edits=[Set(site, value)]).logits
            after = logits[:, :-1][places].float().log_softmax(-1)
            columns[name] = _loss(after, target)
            columns[f"{name}.kl"] = (before.exp() * (before - after)).sum(-1)
        self._sums.add(groups, **columns)
        self.n += len(target)

    def loss(self, name: str) -> Estimate:
        """Mean next-token loss in nats: "clean", or the name of a replacement."""
        return self._sums.estimate(lambda s: s[name] / s["n"], n=self.n)

    def difference(self, name: str, against: str) -> Estimate:
        """Mean loss with one replacement minus that with another (or "clean"), in nats."""
        return self._sums.estimate(lambda s: (s[name] - s[against]) / s["n"], n=self.n)

    def recovered(self, name: str, against: str) -> Estimate:
        """(loss[against] - loss[name]) / (loss[against] - loss[clean]): 1 loses nothing, 0 is no better."""

        def share(s: dict[str, Tensor]) -> Tensor:
            gap = s[against] - s["clean"]
            return torch.where(gap.abs() < _SMALLEST_GAP * s["n"], torch.nan, (s[against] - s[name]) / gap)

        why = f"the loss with {against} is within {_SMALLEST_GAP} nats of the clean one"
        return self._sums.estimate(share, n=self.n, undefined=why)

    def kl(self, name: str) -> Estimate:
        """Mean KL(clean || replaced) of the next-token distributions, in nats."""
        return self._sums.estimate(lambda s: s[f"{name}.kl"] / s["n"], n=self.n)

    def kl_score(self, name: str, against: str) -> Estimate:
        """1 - KL(clean || replaced) / KL(clean || against)."""
        why = f"the divergence with {against} is 0"
        return self._sums.estimate(lambda s: 1 - s[f"{name}.kl"] / s[f"{against}.kl"], n=self.n, undefined=why)


def kept_rows(captured: Float[Tensor, "batch pos *feature"], tokens: Tokens) -> Float[Tensor, "row d"]:
    """The rows at kept positions, heads side by side."""
    return captured[tokens.keep].flatten(1)


def document_groups(packed: Packed) -> Tensor:
    """The document of each kept row."""
    rows = packed.tokens.keep.nonzero()[:, 0].cpu()
    return packed.doc[rows] % N_GROUPS


def _loss(log_probabilities: Tensor, target: Tensor) -> Tensor:
    return -log_probabilities.gather(1, target[:, None])[:, 0]
