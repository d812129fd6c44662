"""Harvest: the activations of a corpus at chosen sites, batch by batch, in bounded memory.

One pass over the text serves many sites, the model stops after the last of them, and only positions of the one mask
(no BOS, EOS, padding) are kept. What comes out is checked: a NaN, or a value that the chosen dtype cannot hold, stops
the work and says where it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, SiteError
from hooke.base.progress import SILENT, Sink
from hooke.data.corpora import Corpus
from hooke.data.packing import START, Cursor, Packed, pack
from hooke.model.model import Model
from hooke.model.plan import resolve
from hooke.model.sites import MAP_SITES, Site

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, eq=False)
class Activations:
    """Rows of activations, one per kept token, in the order of the text.

    `rows` holds one matrix per site (heads side by side), `token_id` the token at each row, `doc` its document as a
    number in corpus order, `pos` its index among the document's tokens (BOS not counted). `cursor` is where the batch
    began that these rows come from.
    """

    rows: dict[Site, Float[Tensor, "row d"]]
    token_id: Int[Tensor, " row"]
    doc: Int[Tensor, " row"]
    pos: Int[Tensor, " row"]
    cursor: Cursor = START

    def __len__(self) -> int:
        return len(self.token_id)


@dataclass(frozen=True)
class HarvestSettings:
    """What decides the rows of a harvest, their order and their bits, beside the model and the corpus."""

    sites: tuple[Site, ...]
    n_tokens: int | None
    context: int
    batch: int
    dtype: torch.dtype


class Harvest(Iterator[Activations]):
    """An iterator of `Activations` that can start again at any batch; made by `harvest`."""

    def __init__(
        self, model: Model, corpus: Corpus, settings: HarvestSettings, start: Cursor = START, sink: Sink = SILENT
    ) -> None:
        self.model, self.corpus, self.settings, self.sink = model, corpus, settings, sink
        self._stream = self._run(start)

    @property
    def widths(self) -> dict[Site, int]:
        """Width of a row at each site."""
        return {site: _width(self.model, site) for site in self.settings.sites}

    @property
    def n_tokens(self) -> int | None:
        """How many rows were asked for; None for the whole corpus."""
        return self.settings.n_tokens

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""
        return self.settings.dtype

    def at(self, cursor: Cursor) -> Harvest:
        """A new harvest of the same rows that begins with the batch at `cursor`."""
        return Harvest(self.model, self.corpus, self.settings, cursor, self.sink)

    def describe(self) -> dict[str, Any]:
        """Everything that decides the rows, as JSON values."""
        settings = self.settings
        return {
            "model": dict(self.model.identity),
            "corpus": self.corpus.name,
            "sites": [{"site": str(site), "width": width} for site, width in self.widths.items()],
            "dtype": str(settings.dtype).removeprefix("torch."),
            "n_tokens": settings.n_tokens,
            "context": settings.context,
            "batch": settings.batch,
        }

    def __next__(self) -> Activations:
        return next(self._stream)

    def _run(self, start: Cursor) -> Iterator[Activations]:
        done, total = start.tokens, self.settings.n_tokens
        settings = self.settings
        batches = pack(
            self.corpus, self.model, context=settings.context, batch=settings.batch, n_tokens=total, start=start
        )
        for packed in batches:
            activations = self._one(packed, limit=None if total is None else total - done)
            done += len(activations)
            self.sink.progress("harvest", done, total, "tokens")
            yield activations
        if total is not None and done < total:
            self.sink.message(
                f"corpus {self.corpus.name!r} ended after {done} of the {total} tokens asked for; "
                "use corpus.repeated() to go round again"
            )

    def _one(self, packed: Packed, limit: int | None) -> Activations:
        sites = self.settings.sites
        last = max(sites, key=lambda site: site.order)
        run = self.model.run(packed.tokens, capture=list(sites), until=last)
        kept = packed.tokens.keep.flatten().nonzero().flatten()[:limit]
        row, column = kept // packed.tokens.shape[1], kept % packed.tokens.shape[1]
        lead = int(self.model.tokenizer.bos_token_id is not None)  # the leading BOS is no token of the document
        activations = Activations(
            rows={site: _rows(run[site], kept, self.settings.dtype) for site in sites},
            token_id=packed.tokens.ids.flatten()[kept],
            doc=packed.doc[row],
            pos=packed.start[row] + column - lead,
            cursor=packed.cursor,
        )
        for site, rows in activations.rows.items():
            if not _all_finite(rows):
                raise _not_finite(
                    site, rows, run[site].flatten(0, 1)[kept.to(run[site].device)].flatten(1), activations, packed
                )
        return activations


def harvest(
    model: Model,
    corpus: Corpus,
    sites: str | Site | Sequence[str | Site],
    *,
    n_tokens: int | None = None,
    context: int = 128,
    batch: int = 16,
    dtype: torch.dtype = torch.float32,
    sink: Sink = SILENT,
) -> Harvest:
    """The activations of a corpus at one or more sites, one row per kept token.

    Args:
        model: the model to look into.
        corpus: the text.
        sites: where to look; `resid_post.2`, several of them, or patterns such as `resid_post.*`.
        n_tokens: exactly this many rows, where the corpus is long enough; `None` goes through it once.
        context: tokens in a full row of the model's input, BOS included.
        batch: rows in a forward pass.
        dtype: float32, float16 or bfloat16.
        sink: hears progress, and a message where the corpus ended early.

    Returns:
        an iterator of `Activations`, on the CPU; `.at(cursor)` starts again at an earlier batch.

    Raises:
        SiteError: for a site that the model does not have, or that has no row per token (attention maps).
        ConfigError: for another dtype.
        DataError: while iterating: an empty corpus, a NaN or infinite activation, a value beyond the range of the
            dtype; names the document and the position.
    """
    if dtype not in DTYPES.values():
        raise ConfigError(f"dtype {dtype} cannot be harvested; choose one of {', '.join(DTYPES)}")
    asked = [sites] if isinstance(sites, str | Site) else list(sites)
    found = tuple(dict.fromkeys(site for entry in asked for site in _expand(model, entry)))
    if not found:
        raise SiteError("no site was named; pass for example sites='resid_post.2'")
    settings = HarvestSettings(found, n_tokens, context, batch, dtype)
    return Harvest(model, corpus, settings, sink=sink)


def _expand(model: Model, asked: str | Site) -> list[Site]:
    sites = resolve(model.layout, asked)
    maps = [site for site in sites if site.name in MAP_SITES]
    if maps:
        raise SiteError(f"site '{maps[0]}' has numbers for pairs of positions, not a row per token; use z or attn_out")
    return sites


def _width(model: Model, site: Site) -> int:
    """Width of a row: all heads side by side, unless the site names one head."""
    (shape,) = [info.shape[2:] for info in model.sites() if info.site == site.without_head]
    return math.prod(size for size in shape[0 if site.head is None else -1 :] if size is not None)


def _rows(captured: Tensor, kept: Tensor, dtype: torch.dtype) -> Float[Tensor, "row d"]:
    flat = captured.flatten(0, 1).flatten(1)
    return flat.index_select(0, kept.to(flat.device)).to(device="cpu", dtype=dtype)


def _all_finite(rows: Tensor) -> bool:
    """One cheap sum settles almost every case; only a sum that overflowed by itself needs a look at each value."""
    return math.isfinite(float(rows.sum(dtype=torch.float32))) or bool(torch.isfinite(rows).all())


def _not_finite(site: Site, rows: Tensor, before: Tensor, activations: Activations, packed: Packed) -> DataError:
    first = int((~torch.isfinite(rows)).any(dim=1).nonzero()[0])
    names: Mapping[int, str] = dict(zip(packed.doc.tolist(), packed.doc_ids, strict=True))
    where = f"document {names[int(activations.doc[first])]!r}, token {int(activations.pos[first])}"
    if bool(torch.isfinite(before).all()):
        top = float(before.abs().max())
        name = str(rows.dtype).removeprefix("torch.")
        return DataError(
            f"site '{site}' reaches {top:.3g} at {where}, beyond what {name} can hold; harvest as bfloat16 or float32"
        )
    return DataError(
        f"site '{site}' is NaN or infinite at {where}; look at this text and at the model's dtype "
        "(half precision overflows first)"
    )
