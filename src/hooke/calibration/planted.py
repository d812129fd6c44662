"""Planted data: sparse combinations of known directions, drawn as often as needed and never stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hooke.base.errors import ConfigError, DataError
from hooke.base.seeds import torch_generator


class PlantedSample(NamedTuple):
    """Activations and the true codes that made them: `x = codes @ directions`."""

    x: Float[Tensor, "row d_in"]
    codes: Float[Tensor, "row feature"]


@dataclass(frozen=True)
class Independent:
    """Every feature is on with the same probability, independently of the others."""

    probability: float

    def __post_init__(self) -> None:
        if not 0 < self.probability <= 1:
            raise ConfigError(f"probability is {self.probability}; expected above 0 and at most 1")

    def draw(self, n: int, n_features: int, generator: torch.Generator) -> Bool[Tensor, "row feature"]:
        """Which features are on, for `n` samples."""
        return torch.rand(n, n_features, generator=generator) < self.probability


@dataclass(frozen=True)
class ExactCounts:
    """Each sample has exactly one of the given numbers of features on, all numbers equally likely."""

    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.counts or min(self.counts) < 0:
            raise ConfigError(f"counts are {self.counts}; expected at least one number, none below 0")

    def draw(self, n: int, n_features: int, generator: torch.Generator) -> Bool[Tensor, "row feature"]:
        """Which features are on, for `n` samples."""
        if max(self.counts) > n_features:
            raise ConfigError(f"counts are {self.counts}, but there are only {n_features} features")
        wanted = torch.tensor(self.counts)[torch.randint(len(self.counts), (n,), generator=generator)]
        rank = torch.rand(n, n_features, generator=generator).argsort(dim=1).argsort(dim=1)
        return rank < wanted[:, None]


@dataclass(frozen=True)
class Planted:
    """A source of activations with known features.

    Args:
        directions: one unit vector a feature.
        support: which features are on together (`Independent` or `ExactCounts`).
        magnitudes: lowest and highest value of a feature that is on; uniform between.
        noise: standard deviation of Gaussian noise added to every coordinate of `x`.
    """

    directions: Float[Tensor, "feature d_in"]
    support: Independent | ExactCounts
    magnitudes: tuple[float, float] = (0.5, 1.5)
    noise: float = 0.0

    @property
    def n_features(self) -> int:
        """How many features there are."""
        return self.directions.shape[0]

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.directions.shape[1]

    def sample(self, n: int, *, seed: int = 0, stream: str = "test", part: int = 0) -> PlantedSample:
        """Draw `n` samples. Different `stream` or `part`: independent samples of the same source.

        Raises:
            DataError: for fewer than one sample.

        Example:
            >>> x, codes = recipe_p().sample(3)
            >>> x.shape, codes.shape
            (torch.Size([3, 32]), torch.Size([3, 64]))
        """
        if n < 1:
            raise DataError(f"{n} samples were asked for; expected at least 1")
        generator = torch_generator(seed, "planted", stream, part)
        on = self.support.draw(n, self.n_features, generator)
        low, high = self.magnitudes
        codes = on * (low + (high - low) * torch.rand(n, self.n_features, generator=generator))
        x = codes @ self.directions
        if self.noise:
            x = x + self.noise * torch.randn(x.shape, generator=generator)
        return PlantedSample(x, codes)

    def batches(self, batch: int = 512, *, seed: int = 0) -> PlantedBatches:
        """An endless stream of batches for training, which can stop and go on anywhere."""
        return PlantedBatches(self, batch, seed)


class PlantedBatches:
    """Endless batches `[batch, d_in]`; batch number i is the same whatever was drawn before it."""

    def __init__(self, planted: Planted, batch: int, seed: int) -> None:
        self.planted = planted
        self.batch = batch
        self.seed = seed
        self.position = 0

    def __iter__(self) -> Iterator[Float[Tensor, "batch d_in"]]:
        return self

    def __next__(self) -> Float[Tensor, "batch d_in"]:
        x = self.planted.sample(self.batch, seed=self.seed, stream="train", part=self.position).x
        self.position += 1
        return x

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state_dict` was taken."""
        self.position = int(state["position"])


def low_coherence_directions(
    n: int, d_in: int, *, seed: int = 0, steps: int = 400, learning_rate: float = 0.02
) -> Float[Tensor, "feature d_in"]:
    """Unit vectors that are nearly orthogonal: Gaussian, then Adam on the sum of fourth powers of their cosines.

    With 64 vectors in 32 dimensions the largest absolute cosine is about 0.17.
    """
    raw = torch.randn(n, d_in, generator=torch_generator(seed, "planted", "directions"))
    raw = torch.nn.functional.normalize(raw, dim=1).requires_grad_()
    adam = torch.optim.Adam([raw], lr=learning_rate)
    for _ in range(steps):
        unit = torch.nn.functional.normalize(raw, dim=1)
        cosines = unit @ unit.T
        loss = cosines.pow(4).sum() - cosines.diagonal().pow(4).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return torch.nn.functional.normalize(raw.detach(), dim=1)


def recipe_p(seed: int = 0, *, n_features: int = 64, d_in: int = 32, noise: float = 0.0) -> Planted:
    """Recipe P: 64 features in 32 dimensions, each on with probability 2/64, magnitudes between 0.5 and 1.5.

    Mean true L0 is 2; 13 % of the samples are all zero; E|x|^2 is about 2.15 and |E x| about 0.25.
    """
    directions = low_coherence_directions(n_features, d_in, seed=seed)
    return Planted(directions, Independent(2 / n_features), noise=noise)


def variable_complexity(seed: int = 0, *, counts: tuple[int, ...] = (1, 5)) -> Planted:
    """Recipe P's dictionary where half of the samples have exactly 1 feature and the other half exactly 5."""
    return Planted(low_coherence_directions(64, 32, seed=seed), ExactCounts(counts))
