"""BatchTopK: the batch keeps its k largest latents a row on average (Bussmann et al. 2024, arXiv 2412.06410)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError
from hooke.dictionaries.select import places_above, top_of_batch
from hooke.dictionaries.support import Support


@dataclass(frozen=True)
class BatchTopK:
    """In training keep the floor(rows * k) largest positive pre-activations of the whole batch, so rows that need
    more get more.

    At inference a row is judged by itself: latents above one threshold are active. The threshold is the moving
    average, over training batches, of the smallest value kept.

    Args:
        k: latents a row on average; above 0, may be fractional.
        threshold_rate: weight of the newest batch in the moving average.

    Raises:
        ConfigError: for a `k` or rate out of range.
    """

    k: int | float
    threshold_rate: float = 0.03
    name: ClassVar[str] = "batchtopk"
    has_threshold: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not math.isfinite(self.k) or self.k <= 0:
            raise ConfigError(f"BatchTopK(k={self.k}): k is the mean number of latents a row; expected above 0")
        if not 0 < self.threshold_rate <= 1:
            raise ConfigError(f"BatchTopK(threshold_rate={self.threshold_rate}): expected above 0 and at most 1")

    def select(self, pre: Float[Tensor, "row latent"], *, threshold: float) -> Support:
        """The places kept at inference: strictly above the threshold, whatever the other rows are.

        Raises:
            ConfigError: there is no threshold yet.
        """
        if math.isnan(threshold):
            raise ConfigError(
                "this BatchTopK dictionary has no inference threshold yet; train it, or call calibrate(x) on some "
                "activations"
            )
        n_rows, n_latents = pre.shape
        return Support.of_flat(places_above(pre, max(threshold, 0.0)), n_rows, n_latents)

    def select_batch(self, pre: Float[Tensor, "row latent"]) -> Support:
        """The places kept in training, chosen over the whole batch."""
        n_rows, n_latents = pre.shape
        return Support.of_flat(top_of_batch(pre, math.floor(n_rows * self.k)), n_rows, n_latents)

    def threshold_for(self, pre: Float[Tensor, "row latent"]) -> float:
        """A threshold that exactly floor(rows * k) entries exceed, halfway to the next; 0 if fewer are positive."""
        n = math.floor(pre.shape[0] * self.k)
        largest = pre.reshape(-1)[top_of_batch(pre, n + 1)].double()
        return float(largest.sort().values[:2].mean()) if len(largest) > n > 0 else 0.0

    def widened(self, factor: float, n_latents: int) -> BatchTopK:
        """The same rule with `factor` times as many latents, at most all."""
        return replace(self, k=min(n_latents, self.k * factor))
