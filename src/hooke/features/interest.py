"""Which latents look interpretable at first sight: a ranking for people who want somewhere to start, not a score of
quality.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from hooke.features.index import LatentIndex

SAMPLE = 200  # places a latent, evenly spaced over its sorted activations
MIN_FIRING = 20
MIN_DOCUMENTS = 3
_BEST_LOG_DENSITY = -2.5


class Interesting(NamedTuple):
    """A latent with its interest and the share of its activation that falls on its three commonest tokens."""

    latent: int
    interest: float
    concentration: float


def interest(index: LatentIndex) -> tuple[Float[np.ndarray, " latent"], Float[np.ndarray, " latent"]]:
    """Interest and concentration of every latent.

    `interest = concentration * exp(-(log10(density) + 2.5)^2 / 2)`, where concentration is the share of the
    activation that falls on the latent's three commonest token types, over up to 200 places evenly spaced through its
    activations from strongest to weakest (so that the weak half counts as much as the top). It is 0 for latents with
    fewer than 20 places or fewer than 3 documents among those looked at: too little to judge. Dead latents have
    concentration NaN.
    """
    interests = np.zeros(index.n_latents)
    concentrations = np.full(index.n_latents, np.nan)
    offsets = np.asarray(index.offsets)
    for latent in np.flatnonzero(index.n_firing):
        begin, count = offsets[latent], index.n_firing[latent]
        places = begin + (np.arange(min(SAMPLE, count)) * count // min(SAMPLE, count))
        at = index.at[places]
        _, kind = np.unique(index.token_id[at], return_inverse=True)
        weight = np.bincount(kind, weights=np.abs(index.strength[places]))
        concentrations[latent] = np.sort(weight)[-3:].sum() / weight.sum()
        if count >= MIN_FIRING and len(np.unique(index.doc[at])) >= min(MIN_DOCUMENTS, index.n_documents):
            distance = np.log10(index.density[latent]) - _BEST_LOG_DENSITY
            interests[latent] = concentrations[latent] * np.exp(-(distance**2) / 2)
    return interests, concentrations


def interpretable(index: LatentIndex, n: int = 5) -> list[Interesting]:
    """The `n` latents that look most interpretable, no two with the same strongest token; see `interest` for the
    formula.

    Fewer where fewer qualify.
    """
    interests, concentrations = interest(index)
    chosen: list[Interesting] = []
    seen: set[str] = set()
    for latent in np.argsort(-interests, kind="stable"):
        if interests[latent] <= 0 or len(chosen) == n:
            break
        token = index.strings([int(index.top_token[latent])])[0].strip()
        if token not in seen:
            seen.add(token)
            chosen.append(Interesting(int(latent), float(interests[latent]), float(concentrations[latent])))
    return chosen
