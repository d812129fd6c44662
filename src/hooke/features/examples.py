"""Examples of a latent: windows of text, groups over the range of its activation, and its histogram."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from hooke.base.errors import ConfigError
from hooke.base.seeds import numpy_generator


@dataclass(frozen=True)
class Example:
    """A window of one document.

    Args:
        latent: whose activations these are.
        doc: name of the document.
        row: number of the packed row.
        start: position in the document of the window's first token.
        focus: index in `tokens` of the token for which the window was chosen.
        tokens: display text of each token; joined they are the text.
        ids: vocabulary ids.
        positions: positions in the packed row; the BOS that opens it is 0.
        activations: of the latent, 0 where it is silent.
    """

    latent: int
    doc: str
    row: int
    start: int
    focus: int
    tokens: list[str]
    ids: list[int]
    positions: list[int]
    activations: Float[np.ndarray, " token"]

    @property
    def text(self) -> str:
        """The window as one string."""
        return "".join(self.tokens)

    @property
    def value(self) -> float:
        """The activation at the focus."""
        return float(self.activations[self.focus])


@dataclass(frozen=True)
class Group:
    """Places whose activation lies between `low` and `high`.

    Args:
        name: what kind of group, and which.
        low: smallest activation of the group (quantiles), or the open lower edge (intervals).
        high: largest activation of the group, or the closed upper edge.
        share: part of all firing places that fall into the group.
        n: how many do.
        at: the sampled places, strongest first.
        values: their activations.
    """

    name: str
    low: float
    high: float
    share: float
    n: int
    at: Int[np.ndarray, " sample"]
    values: Float[np.ndarray, " sample"]


class Histogram(NamedTuple):
    """Counts between `len(counts) + 1` edges; the edges are NaN, with a reason, where there is nothing to count."""

    edges: Float[np.ndarray, " edge"]
    counts: Int[np.ndarray, " bin"]
    reason: str | None = None


def quantile_groups(
    at: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"], *, n_groups: int, per_group: int, seed: int
) -> list[Group]:
    """Groups of equal count over places sorted by descending activation, each with a random sample without repeats.

    Fewer places than groups give fewer groups; none give none.
    """
    _check(n_groups, per_group)
    n_groups = min(n_groups, len(at))
    edges = np.linspace(0, len(at), n_groups + 1).round().astype(int) if n_groups else np.zeros(1, dtype=int)
    groups = []
    for number, (begin, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        rng = numpy_generator(seed, "quantile", number)
        chosen = begin + np.sort(rng.choice(end - begin, size=min(per_group, end - begin), replace=False))
        groups.append(
            Group(
                f"quantile {n_groups - number} of {n_groups}",
                low=float(values[end - 1]),
                high=float(values[begin]),
                share=float((end - begin) / len(at)),
                n=int(end - begin),
                at=np.asarray(at[chosen]),
                values=np.asarray(values[chosen]),
            )
        )
    return groups


def interval_groups(
    at: Int[np.ndarray, " n"], values: Float[np.ndarray, " n"], *, n_groups: int, per_group: int, seed: int
) -> list[Group]:
    """Groups of equal width over (0, max], strongest first; some may be empty.

    This is what dashboards in the wild call quantiles. A place belongs to the interval with low < activation <= high.
    """
    _check(n_groups, per_group)
    if not len(at):
        return []
    edges = np.linspace(0, float(values[0]), n_groups + 1)
    # number of places above each edge; compared in float32, the precision in which activations are stored
    above = np.searchsorted(-values, -edges.astype(np.float32), side="left")
    groups = []
    for number in reversed(range(n_groups)):
        begin, end = int(above[number + 1]), int(above[number])
        rng = numpy_generator(seed, "interval", number)
        chosen = begin + np.sort(rng.choice(end - begin, size=min(per_group, end - begin), replace=False))
        groups.append(
            Group(
                f"interval {number + 1} of {n_groups}",
                low=float(edges[number]),
                high=float(edges[number + 1]),
                share=(end - begin) / len(at),
                n=end - begin,
                at=np.asarray(at[chosen]),
                values=np.asarray(values[chosen]),
            )
        )
    return groups


def histogram_of(values: Float[np.ndarray, " n"], *, bins: int) -> Histogram:
    """Counts in equal bins from the smallest to the largest value."""
    if bins < 1:
        raise ConfigError(f"a histogram needs at least one bin, not {bins}")
    if not len(values):
        return Histogram(
            np.full(bins + 1, np.nan), np.zeros(bins, dtype=np.int64), "the latent never fired in the index"
        )
    counts, edges = np.histogram(np.asarray(values, dtype=np.float64), bins=bins)
    return Histogram(edges, counts.astype(np.int64))


def _check(n_groups: int, per_group: int) -> None:
    if n_groups < 1 or per_group < 1:
        raise ConfigError(f"groups and samples count from 1, not {n_groups} groups of {per_group}")
