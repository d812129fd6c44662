"""Packing: documents cut into padded batches of tokens, with the place in the corpus that each row came from.

A row is the mark of a document's beginning (BOS, where the tokenizer has one) and up to `context - 1` tokens of one
document. Rows never cross documents, so no token attends to another text; the last row of a document may be short and
is padded on the right.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from hooke.base.errors import ConfigError, DataError
from hooke.base.seeds import numpy_generator
from hooke.data.corpora import Corpus, Document
from hooke.model.model import Model
from hooke.model.tokens import Tokens

_GROUP_CHARACTERS, _GROUP_DOCUMENTS = 1 << 16, 256  # documents are tokenised in groups: one call for many


class Cursor(NamedTuple):
    """A place between two batches from which packing can go on: it gives the same batches as if it had not stopped.

    `documents` were packed whole, then `rows` of the next one, and `tokens` kept tokens came before.
    """

    documents: int = 0
    rows: int = 0
    tokens: int = 0


START = Cursor()


class Packed(NamedTuple):
    """One batch of rows.

    `doc` is each row's document as a number in corpus order, `doc_ids` the same as the corpus names it, `start` the
    index in the document's tokens (BOS not counted) of the row's first token of text. `cursor` is where this batch
    begins.
    """

    tokens: Tokens
    doc: Int[Tensor, " batch"]
    doc_ids: list[str]
    start: Int[Tensor, " batch"]
    cursor: Cursor


class _Marks(NamedTuple):
    bos: int | None
    pad: int
    special: tuple[int, ...]


class _Row(NamedTuple):
    ids: np.ndarray
    doc: int
    doc_id: str
    start: int
    number: int  # which row of its document


def pack(
    corpus: Corpus,
    model: Model,
    *,
    context: int = 128,
    batch: int = 16,
    n_tokens: int | None = None,
    start: Cursor = START,
) -> Iterator[Packed]:
    """Batches of `batch` rows, as wide as their longest row, at most `context` wide.

    Memory is bounded by one group of documents, not by the corpus. The one mask of a batch is `packed.tokens.keep`.

    Args:
        corpus: where the text comes from.
        model: whose tokenizer cuts it.
        context: tokens in a full row, BOS included.
        batch: rows in a batch; only the last batch may have fewer.
        n_tokens: stop after the row that reaches this many kept tokens; `None` goes on to the end of the corpus.
        start: where to go on, from an earlier batch's `cursor`. Documents before it are read but not tokenised.

    Raises:
        ConfigError: where `context` or `batch` is too small.
        DataError: where the corpus holds no text.
    """
    marks = _marks(model)
    text_width = _text_width(marks, context, batch)
    if n_tokens is not None and n_tokens < 1:
        raise ConfigError(f"n_tokens={n_tokens} asks for nothing; use a positive number, or None for the whole corpus")
    rows = itertools.islice(_rows(corpus, model, text_width, start.documents), start.rows, None)
    done = start.tokens
    while group := list(itertools.islice(rows, batch)):
        cursor = Cursor(group[0].doc, group[0].number, done)
        packed = _assemble(group, marks, cursor)
        kept = packed.tokens.keep.sum(dim=1)
        total = done + int(kept.sum())
        if n_tokens is None or total < n_tokens:
            done = total
            yield packed
            continue
        enough = int((done + kept.cumsum(0) < n_tokens).sum()) + 1
        yield packed if enough == len(group) else _assemble(group[:enough], marks, cursor)
        return
    if start == START and done == 0:
        raise _no_text(corpus)


def pack_mixed(
    corpus: Corpus, model: Model, *, context: int = 128, batch: int = 16, buffer: int = 4096, seed: int = 0
) -> Iterator[Packed]:
    """As `pack`, with the rows in a mixed order: each buffer of rows is shuffled before it is cut into batches.

    For scores: a sample that is smaller than the corpus then comes from many documents instead of the first few.
    Memory is bounded by the buffer. These batches have no place to go on from; their cursor is the start.

    Raises:
        ConfigError, DataError: as `pack`.
    """
    marks = _marks(model)
    rows = _rows(corpus, model, _text_width(marks, context, batch), 0)
    draw, empty = numpy_generator(seed, "pack-mixed"), True
    while held := list(itertools.islice(rows, buffer)):
        order = draw.permutation(len(held))
        for start in range(0, len(held), batch):
            yield _assemble([held[i] for i in order[start : start + batch]], marks, START)
        empty = False
    if empty:
        raise _no_text(corpus)


def tokenise(texts: list[str], model: Model) -> list[list[int]]:
    """Token ids of whole texts, no special tokens added and none cut off."""
    return model.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]


def _text_width(marks: _Marks, context: int, batch: int) -> int:
    width = context - (marks.bos is not None)
    if width < 1 or batch < 1:
        raise ConfigError(f"context={context} and batch={batch} leave no room for text; use at least 2 and 1")
    return width


def _no_text(corpus: Corpus) -> DataError:
    return DataError(f"corpus {corpus.name!r} is empty: it has no token of text; check its path, pattern or split")


def _rows(corpus: Corpus, model: Model, width: int, skip_documents: int) -> Iterator[_Row]:
    numbered = itertools.islice(enumerate(corpus), skip_documents, None)
    for group in _groups(numbered):
        token_lists = tokenise([document.text for _, document in group], model)
        for (index, document), ids in zip(group, token_lists, strict=True):
            array = np.asarray(ids, dtype=np.int64)
            for number, start in enumerate(range(0, len(array), width)):
                yield _Row(array[start : start + width], index, document.id, start, number)


def _groups(documents: Iterable[tuple[int, Document]]) -> Iterator[list[tuple[int, Document]]]:
    group: list[tuple[int, Document]] = []
    characters = 0
    for index, document in documents:
        group.append((index, document))
        characters += len(document.text)
        if characters >= _GROUP_CHARACTERS or len(group) >= _GROUP_DOCUMENTS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def _marks(model: Model) -> _Marks:
    tokenizer = model.tokenizer
    pad = tokenizer.pad_token_id
    return _Marks(tokenizer.bos_token_id, 0 if pad is None else pad, tuple(model.special_ids))


def _assemble(rows: list[_Row], marks: _Marks, cursor: Cursor) -> Packed:
    lead = int(marks.bos is not None)
    width = lead + max(len(row.ids) for row in rows)
    ids = np.full((len(rows), width), marks.pad, dtype=np.int64)
    mask = np.zeros((len(rows), width), dtype=bool)
    for i, row in enumerate(rows):
        ids[i, :lead] = marks.bos if lead else 0
        ids[i, lead : lead + len(row.ids)] = row.ids
        mask[i, : lead + len(row.ids)] = True
    tokens = Tokens.from_ids(torch.from_numpy(ids), mask=torch.from_numpy(mask), special_ids=marks.special)
    doc = torch.tensor([row.doc for row in rows])
    start = torch.tensor([row.start for row in rows])
    return Packed(tokens, doc, [row.doc_id for row in rows], start, cursor)
