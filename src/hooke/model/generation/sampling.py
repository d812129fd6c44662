"""How the next token is chosen: the most likely one, or a draw with a generator of its own for every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooke.base.errors import ConfigError


@dataclass(frozen=True)
class Sampling:
    """Settings of the choice.

    Args:
        temperature: what logits are divided by; 0 takes the most likely token.
        top_k: draw from this many most likely tokens; None for all.
        top_p: draw from the smallest set of tokens that holds this much probability.
        min_p: leave out tokens that are less likely than this times the most likely one.

    Where several are set, they act in this order, each on what the one before has left.

    Raises:
        ConfigError: for a setting out of range.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        # Written so that NaN is refused too.
        wrong = {
            "temperature": not 0 <= self.temperature < float("inf") and "0 or more",
            "top_k": self.top_k is not None and not self.top_k >= 1 and "at least 1",
            "top_p": not 0 < self.top_p <= 1 and "more than 0, up to 1",
            "min_p": not 0 <= self.min_p <= 1 and "0 to 1",
        }
        for name, expected in wrong.items():
            if expected:
                raise ConfigError(f"{name} {getattr(self, name)}: expected {expected}")

    def choose(self, logits: Float[Tensor, "batch vocab"], draws: Sequence[torch.Generator]) -> Int[Tensor, " batch"]:
        """The next token of each row; a row's draw does not depend on the others."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        probabilities = self.probabilities(logits)
        rows = [torch.multinomial(row.cpu(), 1, generator=draw) for row, draw in zip(probabilities, draws, strict=True)]
        return torch.cat(rows).to(logits.device)

    def probabilities(self, logits: Float[Tensor, "batch vocab"]) -> Float[Tensor, "batch vocab"]:
        """What a draw is made from, adding up to one; temperature 0 is no distribution."""
        wide = logits if logits.dtype == torch.float64 else logits.float()
        # Less the largest, so that a small temperature does not overflow.
        probabilities = ((wide - wide.max(dim=-1, keepdim=True).values) / self.temperature).softmax(dim=-1)
        if self.top_k is not None or self.top_p < 1:
            ranked, order = probabilities.sort(dim=-1, descending=True, stable=True)
            if self.top_k is not None:
                ranked[..., self.top_k :] = 0
                ranked = ranked / ranked.sum(dim=-1, keepdim=True)
            if self.top_p < 1:
                ranked = ranked * (ranked.cumsum(dim=-1) - ranked < self.top_p)
            probabilities = torch.zeros_like(ranked).scatter(-1, order, ranked)
        if self.min_p > 0:
            probabilities = probabilities * (
                probabilities >= self.min_p * probabilities.max(dim=-1, keepdim=True).values
            )
        return probabilities / probabilities.sum(dim=-1, keepdim=True)
