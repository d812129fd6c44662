"""One execution of a model, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

from hooke.base.errors import SiteError, nearest
from hooke.model.sites import Site
from hooke.model.tokens import Tokens


@dataclass(frozen=True, eq=False)
class Run:
    """Logits and captured activations of one run.

    Args:
        tokens: what went in.
        logits: `[batch, pos, vocab]`, or None where the run stopped earlier (`until`).
        acts: captured tensors by site, as the module computed them (after the edits of that site).
        notes: what was not exact, in words; empty for a plain run.
        spelt: sites as the capture spelt them, for names of other tools.
    """

    tokens: Tokens
    logits: Float[Tensor, "batch pos vocab"] | None
    acts: Mapping[Site, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    spelt: Mapping[str, Site] = field(default_factory=dict)

    def __getitem__(self, site: Site | str) -> Tensor:
        """A captured activation.

        Raises:
            SiteError: where the site was not captured.
        """
        asked = self._site(site)
        if asked not in self.acts:
            captured = [str(s) for s in self.acts]
            hint = nearest(str(asked), captured)
            raise SiteError(f"site {str(asked)!r} was not captured{hint}; captured: {', '.join(captured) or 'nothing'}")
        return self.acts[asked]

    def __contains__(self, site: Site | str) -> bool:
        return self._site(site) in self.acts

    def _site(self, site: Site | str) -> Site:
        return site if isinstance(site, Site) else self.spelt.get(site) or Site.parse(site)

    @property
    def keep(self) -> Bool[Tensor, "batch pos"]:
        """The one mask: tokens of the text, without padding and special tokens."""
        return self.tokens.keep
