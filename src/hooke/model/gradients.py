"""Gradients of a metric at sites: one forward, and one backward through the activations alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import DataError, ShapeError, SiteError, nearest
from hooke.model.capture import StopRun, applied, check_captured
from hooke.model.edits import Edit
from hooke.model.plan import Edits, PlacedEdit, resolve
from hooke.model.run import Run
from hooke.model.sites import INNER_SITES, MAP_SITES, Site

if TYPE_CHECKING:
    from hooke.model.model import Inputs, Model

# From a run to one number for each row; the run's logits and activations carry the graph.
RunMetric = Callable[[Run], Tensor]


@dataclass(frozen=True, eq=False)
class Gradients:
    """What one backward pass gives. Nothing here holds the graph.

    Args:
        run: logits and the values of the sites, after edits.
        values: the metric, one number for each row.
        grads: derivative of the metric's sum at each site, in the site's own shape. A row's metric depends on its own
            row, so that row of the gradient is the derivative of its own value.
    """

    run: Run
    values: Float[Tensor, " batch"]
    grads: Mapping[Site, Tensor] = field(default_factory=dict)

    def __getitem__(self, site: Site | str) -> Tensor:
        """The gradient at a site, under its name or as it was asked for.

        Raises:
            SiteError: where it was not asked for.
        """
        asked = site if isinstance(site, Site) else self.run.spelt.get(site) or Site.parse(site)
        if asked not in self.grads:
            known = [str(s) for s in self.grads]
            raise SiteError(f"no gradient at {str(asked)!r}{nearest(str(asked), known)}; there are: {', '.join(known)}")
        return self.grads[asked]


@dataclass(frozen=True, eq=False)
class _Here(Edit):
    """Changes nothing, and puts the site's tensor on the path to the output: what is read at a site may be a view or be
    worked out beside the path, and would have no gradient.

    The graph begins at the first of them: a value that nothing differentiable has made becomes a leaf.
    """

    def change(self, x: Tensor) -> Tensor:
        torch.set_grad_enabled(True)  # the run began without; it goes back to what it was at its end
        return x.view_as(x) if x.requires_grad else x.detach().requires_grad_().view_as(x)


def gradients(
    model: Model,
    inputs: Inputs,
    metric: RunMetric,
    sites: Sequence[Site | str] | Site | str,
    *,
    edits: Edits = (),
    capture: Sequence[Site | str] | Site | str = (),
    until: Site | str | None = None,
) -> Gradients:
    """Derivative of the sum of a metric at every site asked for, in one forward and one backward pass.

    The gradient at a site is that of the value after its edits, through all that is computed later. Weights get none:
    their `grad` and `requires_grad` stay as they are, and nothing is computed for them. Works inside `torch.no_grad`
    and `torch.inference_mode`.

    Args:
        metric: from the run (its logits, and the activations of `sites` and `capture`) to one number for each row.
        sites: sites or patterns.
        capture: further sites that the metric reads.
        until: stop after this site; the run has no logits then.

    Raises:
        SiteError, ShapeError, DataError, ConfigError: before the model runs, for anything that does not fit.
        ShapeError: for a metric that does not give one number for each row.
        DataError: for a metric that does not depend on the activations in a differentiable way, or is NaN or infinite.
        SiteError: for sites that the metric does not depend on, because they are computed after all that it reads, or
            beside it.
    """
    tokens = model.as_tokens(inputs)
    asked = [s for one in ([sites] if isinstance(sites, str | Site) else sites) for s in resolve(model.layout, one)]
    if not asked:
        raise SiteError("no site was asked for; name at least one")
    whole = list(dict.fromkeys(site.without_head for site in asked))
    if until is not None and all(site.order > model.site(until).order for site in whole):
        raise SiteError(f"the run stops after {until}, before any of the sites is computed")
    extra = [capture] if isinstance(capture, str | Site) else list(capture)
    plan = model.plan(tokens, capture=[*whole, *extra], edits=edits, until=until)
    here = tuple(PlacedEdit(site, _Here(site), None, generated=True) for site in (*_before(model, whole), *whole))
    plan = dataclasses.replace(plan, edits=(*plan.edits, *here))
    logits = None
    # No-grad up to the first site, whatever is outside.
    with torch.inference_mode(False), torch.no_grad():
        tokens = dataclasses.replace(tokens, ids=tokens.ids.clone(), mask=tokens.mask.clone())
        with applied(model.hf, model.layout, plan, tokens) as progress, suppress(StopRun):
            logits = model.hf(**model.arguments(tokens), use_cache=False).logits
        check_captured(plan, progress)
        with torch.enable_grad():
            values = metric(Run(tokens, logits, progress.acts))
        found = _backward(values, [progress.acts[site] for site in whole], whole, len(tokens))
    grads = dict(zip(whole, found, strict=True))
    acts = {site: value.detach() for site, value in progress.acts.items()}
    named = [name for name in (sites, capture) if isinstance(name, str)]
    named += [name for names in (sites, capture) if not isinstance(names, str | Site) for name in names]
    spelt = {name: s[0] for name in named if isinstance(name, str) and len(s := resolve(model.layout, name)) == 1}
    whole_acts = acts | {s: _head(acts, s) for s in asked}
    run = Run(tokens, None if logits is None else logits.detach(), whole_acts, spelt=spelt)
    return Gradients(run, values.detach(), {site: _head(grads, site) for site in asked})


def _before(model: Model, sites: list[Site]) -> list[Site]:
    """Where the graph has to begin before the first site: what is written in place must not be a view that was made
    without a graph, as OPT's flattened stream is.
    """
    first = min(sites, key=lambda site: site.order)
    if first.layer is None or first.name in INNER_SITES or not model.layout.tap(first.name, first.layer).in_place:
        return []
    return [Site("resid_pre", first.layer)]


def _backward(values: object, at: list[Tensor], sites: list[Site], batch: int) -> list[Tensor]:
    if not isinstance(values, Tensor) or values.shape != (batch,):
        shape = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ShapeError(f"the metric gave {shape}; expected one number for each of the {batch} rows")
    if not bool(torch.isfinite(values).all()):
        raise DataError(f"the metric is {values.tolist()}; a gradient needs finite numbers")
    if not values.requires_grad:
        raise DataError(
            "the metric does not depend on the sites in a differentiable way: it was detached, rounded or compared, or "
            "reads nothing that comes after them"
        )
    found = torch.autograd.grad(values.sum(), at, allow_unused=True)
    unused = [str(site) for site, gradient in zip(sites, found, strict=True) if gradient is None]
    if unused:
        raise SiteError(
            f"the metric does not depend on {', '.join(unused)}: computed after everything that it reads, or beside it"
        )
    return list(found)


def _head(tensors: Mapping[Site, Tensor], site: Site) -> Tensor:
    """One head of a site's tensor, or all of it."""
    whole = tensors[site.without_head]
    return whole if site.head is None else whole.select(1 if site.name in MAP_SITES else -2, site.head)
