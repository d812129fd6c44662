"""TopK: each row keeps its k largest latents (Gao et al. 2024, arXiv 2406.04093, section 2.3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError
from hooke.dictionaries.select import top_of_each_row
from hooke.dictionaries.support import Support


@dataclass(frozen=True)
class TopK:
    """Keep the `k` largest pre-activations of each row, then ReLU: negative ones among them count as empty.

    Args:
        k: latents a row; a whole number, at least 1.

    Raises:
        ConfigError: for any other `k`.
    """

    k: int | float
    name: ClassVar[str] = "topk"
    has_threshold: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not math.isfinite(self.k) or self.k != int(self.k) or self.k < 1:
            raise ConfigError(
                f"TopK(k={self.k}): k is the number of latents a row; expected a whole number, at least 1"
            )
        object.__setattr__(self, "k", int(self.k))

    def select(self, pre: Float[Tensor, "row latent"], *, threshold: float = math.nan) -> Support:
        """The places kept at inference; `threshold` is not used."""
        return Support.of_rows(top_of_each_row(pre, int(self.k)), pre.shape[1])

    def select_batch(self, pre: Float[Tensor, "row latent"]) -> Support:
        """The places kept in training: the same as at inference."""
        return self.select(pre)

    def threshold_for(self, pre: Float[Tensor, "row latent"]) -> float:
        """There is none."""
        return math.nan

    def widened(self, factor: float, n_latents: int) -> TopK:
        """The same rule with `factor` times as many latents, at most all."""
        return replace(self, k=min(n_latents, round(self.k * factor)))
