"""Bodies of the two searches: latents by token, passages by text."""

from __future__ import annotations

from hooke.base.errors import ConfigError, DataError
from hooke.features.search import find_text, latents_by_token, passage, strongest_in
from hooke.web import schemas
from hooke.web.latents import example_body, short
from hooke.web.session import Session


def by_token(session: Session, text: str, *, by: str = "mean", n: int = 50) -> schemas.TokenSearch:
    """GET /api/search/token. Of several ids with this text the most frequent one in the index is taken.

    Raises:
        DataError: no token reads so.
    """
    index = session.index
    ids = index.tokens_by_text(text)
    if not ids:
        pieces = session.model.token_strings(session.model.tokens(text, bos=False).ids[0]) if text else []
        split = f"; the tokenizer cuts it into {pieces}" if len(pieces) > 1 else ""
        raise DataError(f"no token reads {text!r}{split}")
    found = [(*latents_by_token(index, token_id, n=n, by=by), token_id) for token_id in ids[:8]]
    occurrences, hits, token_id = max(found, key=lambda entry: entry[0])
    return schemas.TokenSearch(
        token=schemas.TokenText(id=token_id, text=index.vocabulary[token_id]),
        n_occurrences=occurrences,
        hits=[
            schemas.TokenHit(
                index=hit.latent,
                mean=short(hit.mean),
                max=short(hit.max),
                share=hit.share,
                density=float(index.density[hit.latent]),
            )
            for hit in hits
        ],
    )


def by_text(session: Session, query: str, *, regex: bool = False, n: int = 20) -> schemas.TextSearch:
    """GET /api/search/text: each passage carries the activations of the latent that is strongest in the match.

    Raises:
        DataError: an empty, too long, wrong or runaway query.
    """
    try:
        found = find_text(session.index, query, n=n, regex=regex)
    except ConfigError as error:  # a wrong query is a wrong request, not a state of the server
        raise DataError(str(error)) from error
    hits = []
    for hit in found.hits:
        latents = strongest_in(session.index, hit.begin, hit.end)
        example = passage(session.index, hit, latents[0][0] if latents else 0)
        values = [schemas.LatentValue(latent=i, value=short(v)) for i, v in latents]
        hits.append(schemas.TextHit(example=example_body(example), latents=values))
    return schemas.TextSearch(query=query, hits=hits, complete=found.complete)
