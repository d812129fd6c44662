"""Metrics: what a run did, as one number per example.

A metric is data, as an edit is: it can be stored beside the edits and planned with. It reads the logits at its
`positions`, and of these only the tokens that `vocab` names, so that a sweep need not compute the others. Several
positions are averaged. Everything is differentiable, in float32 or better.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hooke.base.errors import DataError, ShapeError
from hooke.model.edits import Positions
from hooke.model.plan import columns_of
from hooke.model.run import Run
from hooke.model.tokens import Tokens

if TYPE_CHECKING:
    from hooke.model.model import Model

# One id for all examples, one per example, or several per example [batch, n]; -1 fills rows with fewer.
Ids = int | Sequence[int] | Tensor
NO_TOKEN = -1


class Metric(ABC):
    """One number per example of a run.

    `metric(run)` is all that most code needs. An engine that computes logits only where they are read calls `check`
    once, then `score` on the logits at `positions` of the tokens that `vocab` names.
    """

    positions: Positions

    def __call__(self, run: Run) -> Float[Tensor, " batch"]:
        """The metric of each row of a run.

        Raises:
            DataError: for a run without logits, or one whose rows the metric does not fit.
        """
        if run.logits is None:
            raise DataError(f"{self.label} reads logits, and the run stopped before them; leave out `until`")
        batch, vocab = len(run.tokens), run.logits.shape[-1]
        self.check(run.tokens, vocab)
        columns = columns_of(run.tokens, self.positions, self.label).to(run.logits.device)
        rows = torch.arange(batch, device=columns.device)
        logits = run.logits[rows[:, None], columns]
        ids = self.vocab(batch)
        if ids is not None:
            ids = ids.to(logits.device)[:, None].expand(-1, columns.shape[1], -1)
            logits = logits.gather(-1, ids)
        return self.score(logits, rows)

    def check(self, tokens: Tokens, vocab: int) -> None:
        """Check against a batch and the size of the vocabulary, before anything runs.

        Raises:
            DataError: for another number of examples, a token id outside the vocabulary, a position beyond a row.
            ConfigError: for an unknown word as position.
        """
        n_positions = columns_of(tokens, self.positions, self.label).shape[1]
        for name, tensor in self.tensors().items():
            if tensor.ndim and len(tensor) != len(tokens):
                raise DataError(f"{self.label}: {name} is for {len(tensor)} examples; the batch has {len(tokens)}")
            if not tensor.is_floating_point() and bool(((tensor < NO_TOKEN) | (tensor >= vocab)).any()):
                wrong = int(tensor[(tensor < NO_TOKEN) | (tensor >= vocab)].flatten()[0])
                raise DataError(f"{self.label}: {name} has token id {wrong}; the vocabulary is 0 to {vocab - 1}")
        self._check(n_positions, vocab)

    def vocab(self, batch: int) -> Int[Tensor, "batch n"] | None:
        """The token ids that it reads in each of `batch` examples; None stands for all."""
        return None

    def score(self, logits: Float[Tensor, "entry position n"], rows: Int[Tensor, " entry"]) -> Float[Tensor, " entry"]:
        """The metric of some entries.

        Args:
            logits: at `positions`, of the tokens that `vocab` names for the entry's example, in that order; the whole
                vocabulary where it names none.
            rows: the example that each entry belongs to.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        values = self._score(logits, rows)
        undefined = int(torch.isnan(values.detach()).sum())
        if undefined:
            warnings.warn(
                f"{self.label} is undefined (NaN) for {undefined} of {len(values)} entries: "
                "the logits are not finite there, or no token is given",
                stacklevel=2,
            )
        return values

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that it carries, by field name."""

    @property
    def label(self) -> str:
        """Name for messages."""
        return type(self).__name__

    @abstractmethod
    def _score(self, logits: Tensor, rows: Tensor) -> Tensor: ...

    def _check(self, n_positions: int, vocab: int) -> None:  # noqa: B027 - most kinds check nothing more
        """What a kind of metric checks besides."""


class _OfTokens(Metric):
    """A metric of one set of tokens per example."""

    token: Ids

    def tensors(self) -> dict[str, Tensor]:
        return {"token": _ids(self.token, self.label)}

    def _mine(self, rows: Tensor) -> Int[Tensor, "entry 1 n"]:
        return _rows(self.token, rows, self.label)[:, None]


@dataclass(frozen=True, eq=False)
class Logit(_OfTokens):
    """The logit of a token; of several, the mean.

    Args:
        token: ids as `Ids`.
    """

    token: Ids
    positions: Positions = "last"

    def vocab(self, batch: int) -> Int[Tensor, "batch n"] | None:
        return _rows(self.token, torch.arange(batch), self.label).clamp(min=0)

    def _score(self, logits: Tensor, rows: Tensor) -> Tensor:
        return _mean(logits, self._mine(rows) != NO_TOKEN).mean(-1)


@dataclass(frozen=True, eq=False)
class LogitDifference(Metric):
    """Logit of the answer less logit of the wrong answer; where there are several, less the mean of those.

    Args:
        answers: ids as `Ids`.
        wrongs: ids as `Ids`.
    """

    answers: Ids
    wrongs: Ids
    positions: Positions = "last"

    def tensors(self) -> dict[str, Tensor]:
        return {"answers": _ids(self.answers, self.label), "wrongs": _ids(self.wrongs, self.label)}

    def vocab(self, batch: int) -> Int[Tensor, "batch n"] | None:
        return torch.cat(self._both(torch.arange(batch)), dim=-1).clamp(min=0)

    def _both(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return _rows(self.answers, rows, self.label), _rows(self.wrongs, rows, self.label)

    def _score(self, logits: Tensor, rows: Tensor) -> Tensor:
        answers, wrongs = (ids[:, None] != NO_TOKEN for ids in self._both(rows))
        right, wrong = logits.split((answers.shape[-1], wrongs.shape[-1]), dim=-1)
        return (_mean(right, answers) - _mean(wrong, wrongs)).mean(-1)


@dataclass(frozen=True, eq=False)
class LogProbability(_OfTokens):
    """Log-probability of a token, in nats; of several, of their joint probability.

    Args:
        token: ids as `Ids`.
    """

    token: Ids
    positions: Positions = "last"

    def _score(self, logits: Tensor, rows: Tensor) -> Tensor:
        return self._log_probability(logits, rows).mean(-1)

    def _log_probability(self, logits: Tensor, rows: Tensor) -> Float[Tensor, "entry position"]:
        ids = self._mine(rows).expand(-1, logits.shape[1], -1)
        picked = logits.log_softmax(-1).gather(-1, ids.clamp(min=0))
        joint = picked.masked_fill(ids == NO_TOKEN, -torch.inf).logsumexp(-1)
        return joint.masked_fill((ids == NO_TOKEN).all(-1), torch.nan)


@dataclass(frozen=True, eq=False)
class Probability(LogProbability):
    """Probability of a token; of several, their sum."""

    def _score(self, logits: Tensor, rows: Tensor) -> Tensor:
        return self._log_probability(logits, rows).exp().mean(-1)


@dataclass(frozen=True, eq=False)
class NLL(Metric):
    """Mean negative log-likelihood of given next tokens, in nats per token: the cross-entropy.

    Args:
        targets: the token that comes next at each position, `[batch]` or `[batch, position]`; -1 leaves one out.
    """

    targets: Ids
    positions: Positions = "last"

    @classmethod
    def of_text(cls, tokens: Tokens) -> NLL:
        """The loss on a text's own tokens: every next token that is kept by the one mask. For rows of one length.

        Raises:
            DataError: for rows of unequal length, or of one token.
        """
        width = int(tokens.lengths[0])
        if bool((tokens.lengths != width).any()) or width < 2:
            raise DataError(
                f"NLL.of_text needs rows of one length, of 2 tokens or more; these have {tokens.lengths.tolist()}"
            )
        columns = tokens.columns(range(width))
        ids, keep = tokens.ids.gather(1, columns), tokens.keep.gather(1, columns)
        return cls(ids.masked_fill(~keep, NO_TOKEN)[:, 1:], tuple(range(width - 1)))

    def tensors(self) -> dict[str, Tensor]:
        return {"targets": _ids(self.targets, self.label)}

    def _check(self, n_positions: int, vocab: int) -> None:
        targets = _ids(self.targets, self.label)
        if targets.ndim == 2 and targets.shape[1] != n_positions:
            raise ShapeError(f"{self.label}: {targets.shape[1]} targets a row for {n_positions} positions")

    def _score(self, logits: Tensor, rows: Tensor) -> Tensor:
        targets = _rows(self.targets, rows, self.label).expand(-1, logits.shape[1])
        picked = logits.log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0]
        return -_mean(picked, targets != NO_TOKEN)


@dataclass(frozen=True, eq=False)
class KL(Metric):
    """KL(reference || run) between next-token distributions, in nats.

    Args:
        reference: logits `[batch, vocab]` or `[batch, position, vocab]`; see `from_run`.
    """

    reference: Tensor
    positions: Positions = "last"

    @classmethod
    def from_run(cls, run: Run, positions: Positions = "last") -> KL:
        """Against the logits of a run on the same examples.

        Raises:
            DataError: for a run without logits.
        """
        if run.logits is None:
            raise DataError("KL needs a reference with logits, and that run stopped before them; leave out `until`")
        columns = columns_of(run.tokens, positions, "KL").to(run.logits.device)
        rows = torch.arange(len(columns), device=columns.device)
        return cls(run.logits[rows[:, None], columns].detach(), positions)

    def tensors(self) -> dict[str, Tensor]:
        return {"reference": self.reference}

    def _check(self, n_positions: int, vocab: int) -> None:
        if self._reference().shape[1:] != (n_positions, vocab):
            raise ShapeError(
                f"{self.label}: the reference has shape {tuple(self.reference.shape)}; expected [batch, {n_positions} "
                f"positions, {vocab} tokens]"
            )

    def _reference(self) -> Tensor:
        return self.reference[:, None] if self.reference.ndim == 2 else self.reference

    def _score(self, logits: Tensor, rows: Tensor) -> Tensor:
        mine, theirs = logits.log_softmax(-1), self._reference().to(logits)[rows].log_softmax(-1)
        impossible = theirs == -torch.inf  # 0 log 0 = 0
        gap = theirs.masked_fill(impossible, 0) - mine.masked_fill(impossible, 0)
        return (theirs.exp() * gap).sum(-1).mean(-1)


METRICS: dict[str, type[Metric]] = {
    kind.__name__: kind for kind in (Logit, LogitDifference, Probability, LogProbability, NLL, KL)
}


def single_tokens(model: Model, texts: str | Sequence[str]) -> Int[Tensor, " batch"]:
    """The ids of texts that are one token each, such as answers; mind the space in " Paris".

    Raises:
        DataError: names the text that is more than one token, and its tokens.
    """
    found = []
    for text in [texts] if isinstance(texts, str) else texts:
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            parts = " ".join(repr(piece) for piece in model.token_strings(ids))
            raise DataError(f"{text!r} is {len(ids)} tokens ({parts}); an answer must be exactly one")
        found.append(ids[0])
    return torch.tensor(found)


def _ids(ids: Ids, label: str) -> Tensor:
    tensor = torch.as_tensor(ids)
    if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.ndim > 2 or not tensor.numel():
        raise DataError(
            f"{label}: token ids have dtype {tensor.dtype} and shape {tuple(tensor.shape)}; expected whole numbers, "
            "one for all, [batch], or [batch, n]"
        )
    return tensor.long()


def _rows(ids: Ids, rows: Tensor, label: str) -> Int[Tensor, "entry n"]:
    """The ids of the examples that entries belong to."""
    tensor = _ids(ids, label).to(rows.device)
    if tensor.ndim == 0:
        return tensor.expand(len(rows), 1)
    return tensor[rows] if tensor.ndim == 2 else tensor[rows, None]


def _mean(values: Tensor, given: Tensor) -> Tensor:
    """Mean over the last dimension of what is given; NaN where nothing is."""
    given = given.expand(values.shape)
    count = given.sum(-1).to(values.dtype)
    return values.masked_fill(~given, 0).sum(-1) / count.masked_fill(count == 0, torch.nan)
