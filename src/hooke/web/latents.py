"""Bodies of the overview, the latent table and the feature page, from a session."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from hooke.base.errors import DataError
from hooke.features.examples import Example, Histogram
from hooke.features.logits import logit_weights
from hooke.features.similar import similar
from hooke.web import code, schemas
from hooke.web.scores import scores_of
from hooke.web.session import Session

BEFORE, AFTER = 24, 12
TOP, GROUPS, PER_GROUP = 20, 5, 5
Sort = Literal["density", "max", "index", "interest"]


def overview(session: Session) -> schemas.Overview:
    """GET /api/overview."""
    model, dictionary = session.model, session.dictionary
    return schemas.Overview(
        model=schemas.ModelCard(name=model.name, n_layers=model.n_layers, d_model=model.d_model, n_vocab=model.d_vocab),
        dictionary=schemas.DictionaryCard(
            name=session.name,
            reads=_text(dictionary.reads),
            writes=_text(dictionary.writes),
            activation=type(dictionary.activation).__name__,
            k=getattr(dictionary.activation, "k", None),
            d_in=dictionary.d_in,
            n_latents=dictionary.n_latents,
        ),
        scores=scores_of(session.evaluation),
        density_histogram=density_histogram(session),
        n_tokens=session.index.n_tokens,
        corpus=session.index.manifest["corpus"],
        run=_text(session.run_path),
        code=code.overview(session),
    )


def density_histogram(session: Session, bins: int = 40) -> schemas.DensityHistogram:
    """Living latents by log10 density, from the lowest decade that occurs up to 0."""
    logs = np.log10(session.index.density[session.alive])
    low = math.floor(logs.min()) if len(logs) else -1
    counts, edges = np.histogram(logs, bins=bins, range=(min(low, -1), 0))
    dead = session.index.n_latents - len(session.alive)
    return schemas.DensityHistogram(edges=edges.tolist(), counts=counts.tolist(), dead=dead)


def page(
    session: Session, *, sort: Sort, order: str, offset: int, limit: int, query: str, alive: bool
) -> schemas.LatentPage:
    """GET /api/latents. Ties are in order of index; digits in `query` match the start of the index."""
    index = session.index
    chosen = session.alive if alive else np.arange(index.n_latents)
    if query.strip().isdigit():
        chosen = chosen[np.char.startswith(chosen.astype(str), query.strip())]
    elif query:
        chosen = chosen[np.char.find(session.top_texts[chosen], query.lower()) >= 0]
    key = {
        "density": lambda: index.density,
        "max": lambda: index.max_activation,
        "index": lambda: np.arange(index.n_latents),
        "interest": lambda: session.interest,
    }[sort]()[chosen]
    ranked = chosen[np.argsort(-key if order == "desc" else key, kind="stable")]
    shown = ranked[offset : offset + limit].tolist()
    rows = [
        schemas.LatentRow(
            index=i,
            density=float(index.density[i]),
            max=short(index.max_activation[i]),
            top_token=_token(session, int(index.top_token[i])) if index.top_token[i] >= 0 else None,
            raised=raised,
        )
        for i, raised in zip(shown, session.raised(shown), strict=True)
    ]
    return schemas.LatentPage(total=len(ranked), rows=rows)


def detail(
    session: Session,
    latent: int,
    *,
    groups: Literal["quantiles", "intervals"] = "quantiles",
    variant: Literal["raw", "centred"] = "raw",
) -> schemas.LatentDetail:
    """GET /api/latents/{latent}.

    Raises:
        DataError: no such latent.
    """
    index = session.index
    at, values = index.firings(latent)
    dead = not len(at)
    histogram = index.histogram(latent)
    found = (
        index.quantiles(latent, GROUPS, PER_GROUP)
        if groups == "quantiles"
        else index.intervals(latent, GROUPS, PER_GROUP)
    )
    others = similar(session.dictionary.W_dec, latent)
    where = np.searchsorted(session.alive, latent)
    after = where + int(where < len(session.alive) and session.alive[where] == latent)
    return schemas.LatentDetail(
        index=latent,
        density=float(index.density[latent]),
        n_firing=len(at),
        max=short(index.max_activation[latent]),
        mean=None if dead else short(index.mean_activation(latent)),
        dead=dead,
        reason=f"It fired on none of the {index.n_tokens:,} tokens of the index." if dead else None,
        activation_histogram=_histogram(histogram),
        logits=logits(session, latent, variant),
        groups=[] if dead else [_top_group(session, latent), *(_group(session, latent, g) for g in found)],
        similar=[
            schemas.SimilarLatent(index=int(i), cosine=short(c), density=float(index.density[i]))
            for i, c in zip(others.latents, others.cosines, strict=True)
        ],
        neighbours=schemas.Neighbours(
            prev=int(session.alive[where - 1]) if where > 0 else None,
            next=int(session.alive[after]) if after < len(session.alive) else None,
        ),
        code=code.latent(session, latent, groups, variant),
    )


def logits(session: Session, latent: int, variant: Literal["raw", "centred"]) -> schemas.Logits:
    """The logit lists of a latent."""
    weights = logit_weights(session.model, session.dictionary, latent, variant=variant)

    def listed(ids: np.ndarray, values: np.ndarray) -> list[schemas.LogitToken]:
        texts = session.index.vocabulary
        return [schemas.LogitToken(id=int(i), text=texts[i], value=short(v)) for i, v in zip(ids, values, strict=True)]

    return schemas.Logits(
        raised=listed(weights.raised, weights.raised_values),
        lowered=listed(weights.lowered, weights.lowered_values),
        histogram=_histogram(weights.histogram),
        variant=variant,
        reason=weights.reason,
    )


def example_body(example: Example) -> schemas.ExampleBody:
    """An example as it is sent."""
    columns = zip(example.ids, example.tokens, example.positions, example.activations, strict=True)
    return schemas.ExampleBody(
        doc=example.doc,
        start=example.start,
        focus=example.focus,
        tokens=[schemas.ExampleToken(id=i, text=t, position=p, value=short(v)) for i, t, p, v in columns],
    )


def short(value: float | np.floating) -> float:
    """A number with six significant digits: more is noise in float32 and weight on the wire."""
    return float(f"{float(value):.6g}")


def require_latent(session: Session, latent: int) -> None:
    """Raise DataError where the latent does not exist."""
    n = session.dictionary.n_latents
    if not 0 <= latent < n:
        raise DataError(f"latent {latent} does not exist; the dictionary has {n} latents (0 to {n - 1})")


def _top_group(session: Session, latent: int) -> schemas.Group:
    """The strongest places, one a document; where documents are few, further rows fill up. Equal texts are shown
    once.
    """
    index = session.index
    first = index.top(latent, 2 * TOP)
    rest = index.top(latent, 20 * TOP, per_document=False)
    shown: list[Example] = []
    rows: set[int] = set()
    seen: set[str] = set()
    for at in [*first.at.tolist(), *rest.at.tolist()]:
        if len(shown) == TOP:
            break
        if int(index.row[at]) in rows:
            continue
        example = index.example(latent, at, before=BEFORE, after=AFTER)
        rows.add(example.row)
        if example.text not in seen:
            seen.add(example.text)
            shown.append(example)
    shown.sort(key=lambda example: -example.value)
    return schemas.Group(
        name="top",
        low=short(shown[-1].value),
        high=short(shown[0].value),
        share=len(shown) / int(index.n_firing[latent]),
        examples=[example_body(example) for example in shown],
    )


def _group(session: Session, latent: int, group) -> schemas.Group:
    return schemas.Group(
        name=group.name,
        low=short(group.low),
        high=short(group.high),
        share=group.share,
        examples=[
            example_body(session.index.example(latent, at, before=BEFORE, after=AFTER)) for at in group.at.tolist()
        ],
    )


def _histogram(histogram: Histogram) -> schemas.Histogram | None:
    if histogram.reason is not None:
        return None
    return schemas.Histogram(edges=[short(e) for e in histogram.edges], counts=histogram.counts.tolist())


def _token(session: Session, token_id: int) -> schemas.TokenText:
    return schemas.TokenText(id=token_id, text=session.index.vocabulary[token_id])


def _text(value: object) -> str | None:
    return None if value is None else str(value)
