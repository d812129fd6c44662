"""Build a latent index: stream a corpus through the model and the dictionary, in memory that does not grow with the
corpus.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from hooke.base.errors import ConfigError, DataError, ShapeError
from hooke.base.files import atomic_path, free_space_or_raise
from hooke.base.progress import SILENT, Sink
from hooke.data.corpora import Corpus
from hooke.data.packing import Packed, pack
from hooke.dictionaries.dictionary import Dictionary
from hooke.features.identity import identity_of, site_read
from hooke.features.index import LatentIndex
from hooke.features.writer import IndexWriter, TokenBlock
from hooke.model.model import Model

_BATCH = 16
_BYTES_PER_ENTRY = 16 + 12  # both faces, and the runs of the sort, which are there until it is over
_BYTES_PER_TOKEN = 24


class _Encoded(NamedTuple):
    tokens: TokenBlock
    new_documents: list[str]
    ids: np.ndarray
    values: np.ndarray


def build_index(
    model: Model,
    dictionary: Dictionary,
    corpus: Corpus,
    path: str | Path,
    *,
    n_tokens: int,
    context: int = 128,
    memory_mb: int = 128,
    sink: Sink = SILENT,
) -> LatentIndex:
    """Index where every latent fires in a corpus.

    The corpus is packed in rows of one document each, the site that the dictionary reads is captured, and the kept
    tokens (the one mask: no BOS, EOS, padding) are encoded. The folder appears when it is whole, or not at all.

    Args:
        model: whose activations the dictionary reads.
        dictionary: gives sparse codes.
        corpus: where the text comes from.
        path: the folder to make; must not exist.
        n_tokens: stop after the packed row that reaches this many kept tokens, or at the end of the corpus.
        context: tokens in a full packed row, BOS included.
        memory_mb: budget of the sort's buffers, in megabytes (10^6 bytes); the answer does not depend on it.
        sink: hears the progress.

    Raises:
        ConfigError: the path is taken, or the dictionary names no site.
        ShapeError: the dictionary does not fit the site's width.
        SiteError: the model has no such site.
        DataError: activations that are not finite, an empty corpus, or a disk without the room for it.
    """
    path = Path(path)
    if path.exists():
        raise ConfigError(f"{path} exists already; remove it or choose another folder for the index")
    site = model.site(site_read(dictionary))
    whole = site.head is None  # a site of all heads is read as one flat vector
    width = math.prod(model.layout.feature_shape(site.name, model.d_vocab)) if whole else model.width(site)
    if width != dictionary.d_in:
        raise ShapeError(f"the dictionary takes {dictionary.d_in} values; {site} of {model.name} has {width}")
    with atomic_path(path) as folder:
        folder.mkdir()
        writer = IndexWriter(folder, n_latents=dictionary.n_latents, memory_bytes=memory_mb * 1_000_000)
        try:
            for block in _encoded(
                model, dictionary, pack(corpus, model, context=context, batch=_BATCH, n_tokens=n_tokens)
            ):
                if writer.n_tokens == 0:
                    _check_space(path, block, n_tokens)
                writer.add_documents(block.new_documents)
                writer.add(block.tokens, block.ids, block.values)
                sink.progress("index", min(writer.n_tokens, n_tokens), n_tokens, "tokens")
            if writer.n_tokens == 0:
                raise DataError(f"corpus {corpus.name!r} gave no tokens to index")
            about = {
                "model": dict(model.identity),
                "dictionary": identity_of(dictionary),
                "corpus": corpus.name,
                "context": context,
            }
            writer.finish([model.text.piece(i) for i in range(model.d_vocab)], about)
        finally:
            writer.close()
    sink.artefact(path, "latent-index")
    return LatentIndex.open(path, model)


def _encoded(model: Model, dictionary: Dictionary, batches: Iterator[Packed]) -> Iterator[_Encoded]:
    """Blocks of kept tokens with their codes; documents and rows are numbered as they come."""
    site = site_read(dictionary)
    n_documents, n_rows, last_doc = 0, 0, -1
    for packed in batches:
        run = model.run(packed.tokens, capture=[site], until=site)
        keep = run.keep
        with torch.no_grad():
            codes = dictionary.encode(run[site].flatten(2)[keep].float())
        row, pos = (part.cpu().numpy() for part in keep.nonzero(as_tuple=True))
        row = np.unique(row, return_inverse=True)[1]  # rows without a kept token do not count
        used = np.unique(keep.nonzero()[:, 0].cpu().numpy())
        changes = np.diff(packed.doc.numpy()[used], prepend=last_doc) != 0
        numbers = n_documents - 1 + np.cumsum(changes)
        block = TokenBlock(
            token_id=run.tokens.ids[keep].cpu().numpy(),
            doc=numbers[row],
            pos=pos,
            row=n_rows + row,
            start=packed.start.numpy()[used][row],
        )
        names = [packed.doc_ids[i] for i in used[changes]]
        yield _Encoded(block, names, codes.indices.cpu().numpy(), codes.values.cpu().numpy())
        n_documents += len(names)
        n_rows += len(used)
        last_doc = int(packed.doc[used[-1]]) if len(used) else last_doc


def _check_space(path: Path, block: _Encoded, n_tokens: int) -> None:
    """Estimate the whole from the first block."""
    n = max(len(block.tokens.token_id), 1)
    active = np.count_nonzero((block.values != 0) & (block.ids >= 0)) / n
    free_space_or_raise(path, int(n_tokens * (active * _BYTES_PER_ENTRY + _BYTES_PER_TOKEN)))
