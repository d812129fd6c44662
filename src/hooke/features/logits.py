"""What a latent writes: its decoder direction read through the unembedding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooke.base.errors import ConfigError, DataError
from hooke.dictionaries.dictionary import Dictionary
from hooke.features.examples import Histogram
from hooke.model.model import Model

VARIANTS = ("raw", "centred")
_RESIDUAL = (
    "embed",
    "pos_embed",
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
)  # one space


class LogitWeights(NamedTuple):
    """Tokens whose logits a latent moves most, per unit of its activation.

    `raised` and `lowered` are vocabulary ids, the strongest first, with their weights; `histogram` counts all
    vocabulary entries. All are empty, with a reason, for a dictionary that does not write to the residual stream.
    """

    raised: Int[np.ndarray, " k"]
    raised_values: Float[np.ndarray, " k"]
    lowered: Int[np.ndarray, " k"]
    lowered_values: Float[np.ndarray, " k"]
    histogram: Histogram
    variant: str
    reason: str | None = None


def logit_directions(
    model: Model, dictionary: Dictionary, latents: list[int], *, variant: str = "raw"
) -> Float[Tensor, "chosen vocab"]:
    """Weights of every vocabulary entry for some latents.

    - "raw": `W_dec[latent] @ W_U`; the final norm is left out. This is what most dashboards show.
    - "centred": the direction is centred where the final norm centres, multiplied by the norm's gain, then `@ W_U`, and
      the mean over the vocabulary is taken away (it moves no probability). The norm's division, which depends on the
      text, is left out.

    Raises:
        ConfigError: an unknown variant, or a dictionary that does not write to the residual stream.
        DataError: no such latent.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"variant {variant!r} is not known; choose 'raw' or 'centred'")
    if (reason := unreadable(model, dictionary)) is not None:
        raise ConfigError(reason)
    for latent in latents:
        if not 0 <= latent < dictionary.n_latents:
            raise DataError(f"latent {latent} does not exist; the dictionary has {dictionary.n_latents}")
    with torch.no_grad():
        directions = dictionary.W_dec[latents].detach().to(model.device, torch.float32)
        if variant == "raw":
            return directions @ model.unembed.float()
        if model.final_norm_centres:
            directions = directions - directions.mean(dim=-1, keepdim=True)
        weights = (directions * model.final_norm_gain.float()) @ model.unembed.float()
        return weights - weights.mean(dim=-1, keepdim=True)


def logit_weights(
    model: Model, dictionary: Dictionary, latent: int, k: int = 10, *, variant: str = "raw", bins: int = 50
) -> LogitWeights:
    """The `k` tokens that a latent raises and lowers most, and a histogram over the vocabulary; see
    `logit_directions`.
    """
    if (reason := unreadable(model, dictionary)) is not None:
        ids, values = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.float32)
        nothing = Histogram(np.full(bins + 1, np.nan), np.zeros(bins, dtype=np.int64), reason)
        return LogitWeights(ids, values, ids, values, nothing, variant, reason)
    weights = logit_directions(model, dictionary, [latent], variant=variant)[0]
    raised, lowered = weights.topk(min(k, len(weights))), (-weights).topk(min(k, len(weights)))
    counts, edges = np.histogram(weights.double().cpu().numpy(), bins=bins)
    return LogitWeights(
        raised.indices.cpu().numpy(),
        raised.values.cpu().numpy(),
        lowered.indices.cpu().numpy(),
        -lowered.values.cpu().numpy(),
        Histogram(edges, counts),
        variant,
    )


def unreadable(model: Model, dictionary: Dictionary) -> str | None:
    """Why this dictionary's decoder cannot be read through the unembedding, or None where it can."""
    site = dictionary.writes
    if site is None:
        return "the dictionary does not say which site it writes, so its decoder cannot be read as logits"
    if site.name not in _RESIDUAL:
        return f"the dictionary writes to {site}, which is not in the space of the residual stream"
    if dictionary.W_dec.shape[-1] != model.d_model:
        return f"the decoder is {dictionary.W_dec.shape[-1]} wide; {model.name} has d_model {model.d_model}"
    return None
