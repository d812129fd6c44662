"""Head scores from attention patterns on random tokens that repeat with a random period.

A fixed repeat distance lets heads that attend a fixed number of tokens back look like induction heads; with the period
drawn anew for every sequence, only a head that compares tokens can score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError
from hooke.base.seeds import numpy_generator
from hooke.model.model import Model


@dataclass(frozen=True, eq=False)
class HeadScores:
    """One score a head, with the control that it must beat.

    Args:
        values: mean score of each head, 0 to 1.
        uniform: score of a head that attends to all earlier tokens alike, on the same sequences.
        n_sequences: sequences averaged over.
    """

    values: Float[Tensor, "layer head"]
    uniform: float
    n_sequences: int

    def best(self) -> tuple[int, int, float]:
        """Layer, head and score of the highest one."""
        layer, head = divmod(int(self.values.argmax()), self.values.shape[1])
        return layer, head, float(self.values[layer, head])


def prefix_matching(
    model: Model, *, n_sequences: int = 20, periods: tuple[int, int] = (8, 64), n_copies: int = 4, seed: int = 0
) -> HeadScores:
    """Attention of each head to the tokens that followed earlier occurrences of the current token.

    Sequences are BOS + random distinct tokens (no special ones) repeated `n_copies` times, the number of tokens drawn
    from `periods` (both ends included) for each sequence. The score is the mean, over positions from the second copy
    on, of the attention summed over all such tokens (arXiv 2209.11895, prefix-matching score, with a random period).

    Raises:
        ConfigError: where the longest sequence does not fit the model's context or the vocabulary is too small.
    """
    low, high = periods
    limit = getattr(model.hf.config, "max_position_embeddings", None) or np.inf
    words = np.setdiff1d(np.arange(model.d_vocab), model.special_ids)
    if not 1 < low <= high or n_copies < 2 or 1 + high * n_copies > limit or high > len(words):
        raise ConfigError(
            f"periods {periods} with {n_copies} copies need up to {1 + high * n_copies} positions and {high} tokens; "
            f"the model has {limit} and {len(words)}; at least two copies of two tokens are needed"
        )
    draw = numpy_generator(seed, "prefix-matching")
    bos = model.tokenizer.bos_token_id
    first = [] if bos is None else [bos]
    total = torch.zeros(model.n_layers, model.n_heads, dtype=torch.float64)
    uniform = 0.0
    for _ in range(n_sequences):
        period = int(draw.integers(low, high + 1))
        block = draw.choice(words, size=period, replace=False).tolist()
        tokens = model.batch([first + block * n_copies])
        run = model.run(tokens, capture=["pattern.*"], until=f"pattern.{model.n_layers - 1}")
        target = _following_earlier(len(first), period, tokens.shape[1])
        for layer in range(model.n_layers):
            total[layer] += (run[f"pattern.{layer}"][0].double().cpu() * target).sum((-1, -2)) / target.any(-1).sum()
        even = torch.ones_like(target, dtype=torch.float64).tril()
        uniform += float(((even / even.sum(-1, keepdim=True)) * target).sum() / target.any(-1).sum())
    return HeadScores((total / n_sequences).float(), uniform / n_sequences, n_sequences)


def _following_earlier(start: int, period: int, length: int) -> Tensor:
    """Bool [query, key]: keys right behind an earlier occurrence of the query's token, for queries in later copies."""
    query, key = torch.arange(length)[:, None], torch.arange(length)[None, :]
    behind = (query - (key - 1)) % period == 0
    return behind & (key - 1 >= start) & (key <= query) & (query >= start + period) & (query - (key - 1) > 0)
