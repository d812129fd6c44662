"""Find latents by a token that they fire on, and passages by a piece of text."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import regex as bounded  # as `re`, and it stops within a row when its time is over

from hooke.base.errors import ConfigError
from hooke.features.examples import Example
from hooke.features.index import LatentIndex

_CHUNK = 65_536  # occurrences of a token that are gathered at a time
_MAX_PATTERN = 200
_BROKEN = "\ufffd"


class TokenHit(NamedTuple):
    """A latent and how it answers to one token.

    `mean` and `max` are over all occurrences of the token, `share` is the part of them on which the latent fires.
    """

    latent: int
    mean: float
    max: float
    share: float


class TextHit(NamedTuple):
    """A passage: tokens `begin` to `end` of the index hold the match."""

    row: int
    begin: int
    end: int
    text: str


class TextHits(NamedTuple):
    """Passages in corpus order; `complete` is False where the search stopped early."""

    hits: list[TextHit]
    complete: bool


def latents_by_token(
    index: LatentIndex,
    token_id: int,
    *,
    n: int = 20,
    by: str = "mean",
    max_density: float = 1.0,
) -> tuple[int, list[TokenHit]]:
    """How often a token occurs in the index, and the latents that answer to it most.

    Args:
        index: where to look.
        token_id: vocabulary id; `index.tokens_by_text` finds it.
        n: how many latents.
        by: what ranks them: "mean", "max" or "share".
        max_density: leave out latents that fire on a larger share of all tokens.

    Raises:
        ConfigError: an unknown ranking.
    """
    if by not in ("mean", "max", "share"):
        raise ConfigError(f"by={by!r} is not known; choose 'mean', 'max' or 'share'")
    places = np.flatnonzero(index.token_id == token_id)
    total = np.zeros(index.n_latents)
    largest = np.zeros(index.n_latents, dtype=np.float32)
    firing = np.zeros(index.n_latents, dtype=np.int64)
    for begin in range(0, len(places), _CHUNK):
        entries = _entries_of(index, places[begin : begin + _CHUNK])
        ids, values = index.ids[entries], index.values[entries]
        total += np.bincount(ids, weights=values, minlength=index.n_latents)
        firing += np.bincount(ids, minlength=index.n_latents)
        np.maximum.at(largest, ids, values)
    if not len(places):
        return 0, []
    mean, share = total / len(places), firing / len(places)
    key = np.where(
        (firing > 0) & (index.density <= max_density), {"mean": mean, "max": largest, "share": share}[by], -np.inf
    )
    best = np.argsort(-key, kind="stable")[:n]
    best = best[key[best] > -np.inf]
    return len(places), [TokenHit(int(i), float(mean[i]), float(largest[i]), float(share[i])) for i in best]


def find_text(
    index: LatentIndex, query: str, *, n: int = 20, regex: bool = False, seconds: float = 5.0, per_document: bool = True
) -> TextHits:
    """Passages of the corpus that contain a text, the first match of each packed row; a match never spans two rows and
    is never empty, so `$` finds nothing.

    Args:
        index: where to look.
        query: plain text, taken literally; or a regular expression.
        n: stop after this many.
        regex: read the query as a regular expression. Patterns that can take exponential time are refused, see below.
        seconds: stop after this long, within a row too; `complete` says so.
        per_document: at most one passage a document.

    Raises:
        ConfigError: an empty query, or a pattern that is wrong, longer than 200 characters, or could run away: a
            repeated group, a back-reference, or more than two open-ended repeats.
    """
    match = _matcher(query, regex)
    deadline = time.monotonic() + seconds
    hits: list[TextHit] = []
    last_document = -1
    for row, first, strings in _rows_of_text(index):
        left = deadline - time.monotonic()
        document = int(index.doc[first])
        if left > 0 and per_document and document == last_document:
            continue
        try:
            span = match("".join(strings), left)
        except TimeoutError:
            return TextHits(hits, complete=False)
        if span is None:
            continue
        if len(hits) == n:
            return TextHits(hits, complete=False)
        ends = np.cumsum([len(text) for text in strings])
        begin = int(np.searchsorted(ends, span[0], side="right"))
        while begin > 0 and not strings[begin - 1]:  # the first bytes of a character that spans tokens
            begin -= 1
        end = int(np.searchsorted(ends, span[1], side="left")) + 1
        hits.append(TextHit(row, first + begin, first + min(end, len(strings)), "".join(strings[begin:end])))
        last_document = document
    return TextHits(hits, complete=True)


def strongest_in(
    index: LatentIndex, begin: int, end: int, *, n: int = 5, max_density: float = 0.1
) -> list[tuple[int, float]]:
    """The latents with the largest activation on tokens `begin` to `end`, dense ones left out, as (latent,
    activation).
    """
    span = slice(int(index.indptr[begin]), int(index.indptr[end]))
    ids, values = np.asarray(index.ids[span]), np.asarray(index.values[span])
    sparse = index.density[ids] <= max_density
    ids, values = ids[sparse], values[sparse]
    order = np.argsort(-values, kind="stable")
    _, first = np.unique(ids[order], return_index=True)
    best = order[np.sort(first)[:n]]
    return [(int(ids[i]), float(values[i])) for i in best]


def passage(index: LatentIndex, hit: TextHit, latent: int, *, before: int = 16, after: int = 16) -> Example:
    """The text around a hit, focused where the latent is strongest inside it."""
    focus = hit.begin + int(index.activations(latent, hit.begin, hit.end).argmax())
    return index.example(latent, focus, before=before, after=after)


def _entries_of(index: LatentIndex, places: np.ndarray) -> np.ndarray:
    """Numbers of all token-major entries of some tokens, in order."""
    begins = index.indptr[places]
    counts = index.indptr[places + 1] - begins
    shift = np.repeat(begins - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts)
    return np.arange(counts.sum()) + shift


def _rows_of_text(index: LatentIndex) -> Iterator[tuple[int, int, list[str]]]:
    """Each packed row with its first token and the display texts of its tokens."""
    vocabulary = index.vocabulary
    for row in range(len(index.row_ptr) - 1):
        first, last = int(index.row_ptr[row]), int(index.row_ptr[row + 1])
        ids = index.token_id[first:last].tolist()
        strings = [vocabulary[i] for i in ids]
        if index.model is not None and any(_BROKEN in text for text in strings):
            strings = index.strings(ids)  # characters that span several tokens
        yield row, first, strings


def _matcher(query: str, regex: bool) -> Callable[[str, float], tuple[int, int] | None]:
    """Finds the first match in a text, given the seconds left; raises TimeoutError where they are not enough."""
    if not query or len(query) > _MAX_PATTERN:
        raise ConfigError(f"a query has 1 to {_MAX_PATTERN} characters; this one has {len(query)}")
    if not regex:

        def literal(text: str, left: float) -> tuple[int, int] | None:
            if left <= 0:
                raise TimeoutError
            begin = text.find(query)
            return None if begin < 0 else (begin, begin + len(query))

        return literal
    bare = re.sub(r"\[\^?\]?(?:\\.|[^\]\\])*\]", "x", re.sub(r"\\[^0-9]", "x", query))  # escapes and sets are harmless
    if re.search(r"\)\s*[*+{?]", bare) or re.search(r"\\[0-9]|\(\?P=", bare) or len(re.findall(r"[*+]|\{", bare)) > 2:
        raise ConfigError(
            f"pattern {query!r} could run for ever; use no repeated group, no back-reference, at most two of * + {{}}"
        )
    try:
        pattern = bounded.compile(query, bounded.VERSION0)
    except bounded.error as error:
        raise ConfigError(
            f"pattern {query!r} is not a regular expression: {error}; write \\ before special characters"
        ) from error

    def search(text: str, left: float) -> tuple[int, int] | None:
        if left <= 0:
            raise TimeoutError
        found = pattern.finditer(text, timeout=left, concurrent=True)  # other threads go on: this may take seconds
        return next((match.span() for match in found if match.end() > match.start()), None)

    return search
