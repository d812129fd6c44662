"""Freeze: hold sites at the values that they had in another run, such as all patterns or all norms' scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from torch import Tensor

from hooke.base.errors import DataError, SiteError, nearest
from hooke.model.edits.arithmetic import Set
from hooke.model.edits.edit import Edit, Place, Positions
from hooke.model.sites import Site
from hooke.model.tokens import Tokens

if TYPE_CHECKING:
    from hooke.model.run import Run


@dataclass(frozen=True, eq=False)
class Freeze(Edit):
    """Hold several sites at given values: one `Set` for each.

    Args:
        site: what was asked for, in words; `from_run` fills it in.
        values: site -> value of the whole prompt, as a capture gives it.
    """

    values: Mapping[Site | str, Tensor]
    positions: Positions = None

    @classmethod
    def from_run(cls, run: Run, *patterns: str, positions: Positions = None) -> Freeze:
        """At what a run captured. In patterns `*` stands for any text: "pattern.*", "*_norm_scale*".

        Args:
            patterns: which of the captured sites; without any, all of them.

        Raises:
            SiteError: for a pattern that no captured site matches.
            DataError: for a run that captured some positions only.

        Example:
            run = model.run(clean, capture=["pattern.*", "attn_norm_scale.*", "mlp_norm_scale.*"])
            model.run(clean, edits=[Freeze.from_run(run, "pattern.*", "*_norm_scale.*"), patch])
        """
        names = [str(site) for site in run.acts]
        chosen: dict[Site | str, Tensor] = {}
        for pattern in patterns or ("*",):
            found = [site for site in run.acts if fnmatchcase(str(site), pattern)]
            if not found:
                raise SiteError(
                    f"nothing that the run captured matches {pattern!r}{nearest(pattern, names)}; captured: "
                    f"{', '.join(names) or 'nothing'}"
                )
            chosen |= {site: run[site] for site in found}
        width = run.tokens.shape[1]
        for site, value in chosen.items():
            if value.shape[-2 if isinstance(site, Site) and site.name in ("scores", "pattern") else 1] != width:
                raise DataError(f"the run kept some positions of {site} only; capture it without `at` to freeze it")
        return cls(", ".join(patterns) or "*", chosen, positions)

    def __post_init__(self) -> None:
        sites = {Site.parse(site) if isinstance(site, str) else site: value for site, value in self.values.items()}
        object.__setattr__(self, "values", sites)

    @property
    def patterns(self) -> tuple[Site | str, ...]:
        return tuple(self.values)

    def tensors(self) -> dict[str, Tensor]:
        return {str(site): value for site, value in self.values.items()}

    def fit(self, tokens: Tokens, place: Place) -> Edit:
        if place.site not in self.values:
            raise SiteError(f"{self.label}: no value for {place.site}; values are kept by site, layers counted from 0")
        positions = self.positions
        if isinstance(positions, Sequence) and not isinstance(positions, str):
            positions = tokens.at(positions)  # values are of the whole prompt, in whatever order these are named
        return Set(place.site, self.values[place.site], positions).fit(tokens, place)
