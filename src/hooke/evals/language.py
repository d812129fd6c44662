"""How good a language model is as a language model: bits per byte beside a compressor's, learning in context."""

from __future__ import annotations

import lzma
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hooke.base.errors import ConfigError, DataError
from hooke.base.progress import SILENT, Sink
from hooke.base.statistics import Estimate, bootstrap
from hooke.data.corpora import Corpus
from hooke.model.model import Model


def bits_per_byte(
    model: Model, corpus: Corpus, *, context: int = 512, stride: int = 256, batch: int = 8, sink: Sink = SILENT
) -> float:
    """Bits that the model needs per byte of UTF-8 text, every token of every document predicted once.

    Documents are scored one by one, each behind BOS, in overlapping windows: every token but a document's first ones
    has at least `context - stride` tokens before it.

    Raises:
        DataError: where the corpus has no text.
        ConfigError: where the tokenizer has no BOS, so that a document's first token cannot be predicted.
    """
    if model.tokenizer.bos_token_id is None:
        raise ConfigError(f"{model.name} has no BOS token: the first token of a document could not be scored")
    nats, n_bytes = 0.0, 0
    for done, document in enumerate(corpus, start=1):
        ids = model.tokenizer(document.text, add_special_tokens=False)["input_ids"]
        n_bytes += len(document.text.encode())
        for windows, n_new in _windows(model, ids, context, stride, batch):
            losses = token_losses(model, windows)
            fresh = torch.arange(losses.shape[1])[None] >= losses.shape[1] - n_new[:, None]
            nats += float(losses.double()[fresh].sum())
        sink.progress("held-out bits per byte", done, None, "documents")
    if n_bytes == 0:
        raise DataError(f"corpus {corpus.name!r} has no text to score")
    return nats / math.log(2) / n_bytes


def xz_bits_per_byte(corpus: Corpus) -> float:
    """Bits per byte that `xz -9e` needs for the documents joined: the control for `bits_per_byte`.

    Raises:
        DataError: where the corpus has no text.
    """
    raw = "".join(document.text for document in corpus).encode()
    if not raw:
        raise DataError(f"corpus {corpus.name!r} has no text to compress")
    return 8 * len(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME)) / len(raw)


def token_losses(model: Model, windows: Int[Tensor, "batch pos"]) -> Float[Tensor, "batch target"]:
    """Cross-entropy in nats of every token but the first of each row, given those before it."""
    with torch.no_grad():
        logits = model.run(windows).logits[:, :-1].float()
    flat = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten(), reduction="none")
    return flat.view(len(windows), -1).cpu()


def in_context_gain(
    model: Model,
    corpus: Corpus,
    *,
    early: tuple[int, int] = (20, 50),
    late: tuple[int, int] = (200, 255),
    n_windows: int = 200,
    seed: int = 0,
) -> Estimate:
    """Mean loss at early positions minus mean loss at late ones, in nats, with a bootstrap interval over windows.

    Positions count from the document mark (0) and both ends are included. Windows are cut one behind the other from
    documents that are long enough.
    """
    rows: list[list[int]] = []
    width = late[1]
    for document in corpus:
        ids = model.tokenizer(document.text, add_special_tokens=False)["input_ids"]
        rows += [ids[start : start + width] for start in range(0, len(ids) - width + 1, width)]
    order = np.random.default_rng(seed).permutation(len(rows))[:n_windows]
    gains = []
    for chunk in np.array_split(order, max(1, len(order) // 8)) if len(order) else []:
        losses = token_losses(model, model.batch([_behind_bos(model, rows[i]) for i in chunk]).ids)
        # losses[:, p - 1] is the loss of the token at position p
        at = [losses[:, low - 1 : high].mean(dim=1) for low, high in (early, late)]
        gains += (at[0] - at[1]).tolist()
    return bootstrap(np.array(gains, dtype=np.float64), seed=seed)


def _behind_bos(model: Model, ids: list[int]) -> list[int]:
    bos = model.tokenizer.bos_token_id
    return list(ids) if bos is None else [bos, *ids]


def _windows(
    model: Model, ids: list[int], context: int, stride: int, batch: int
) -> Iterator[tuple[Int[Tensor, "batch pos"], Int[Tensor, " batch"]]]:
    """Batches of equally long windows and, for each, how many of its last tokens are new."""
    room = context - 1  # one place is for BOS
    spans = [
        (max(0, end - room), end, start)
        for start in range(0, len(ids), stride)
        for end in [min(start + stride, len(ids))]
    ]
    by_length: dict[int, list[tuple[int, int, int]]] = {}
    for span in spans:
        by_length.setdefault(span[1] - span[0], []).append(span)
    for group in by_length.values():
        for i in range(0, len(group), batch):
            part = group[i : i + batch]
            rows = [_behind_bos(model, ids[low:high]) for low, high, _ in part]
            yield model.batch(rows).ids, torch.tensor([high - start for _, high, start in part])
