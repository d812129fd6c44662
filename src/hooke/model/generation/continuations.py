"""Log-probabilities of given continuations under edits: multiple choice, likelihood of an answer, perplexity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooke.base.errors import DataError
from hooke.model.generation.cached import CachedRun, check_length
from hooke.model.plan import Edits
from hooke.model.tokens import Tokens

if TYPE_CHECKING:
    from hooke.model.model import Inputs, Model

# One continuation: text, or token ids.
Continuation = str | Sequence[int] | Tensor
# One continuation for all prompts, or the continuations of one prompt.
Choices = Continuation | Sequence[Continuation]

_LOGIT_BYTES = 2**28  # what the logits of one pass may take


@dataclass(frozen=True, eq=False)
class Scores:
    """Log-probabilities of continuations, in nats; one row for each, the rows of one prompt next to each other.

    Args:
        prompts: the prompts.
        prompt: which prompt a row continues.
        ids: the continuations' tokens, padded on the right.
        mask: true at tokens.
        logprobs: of each token given the prompt and the tokens before it; NaN at padding.
    """

    prompts: Tokens
    prompt: Int[Tensor, " row"]
    ids: Int[Tensor, "row new"]
    mask: Bool[Tensor, "row new"]
    logprobs: Float[Tensor, "row new"]

    @property
    def counts(self) -> Int[Tensor, " row"]:
        """Tokens of each continuation."""
        return self.mask.sum(dim=1)

    @property
    def sums(self) -> Float[Tensor, " row"]:
        """Log-probability of each whole continuation."""
        return torch.where(self.mask, self.logprobs, 0.0).sum(dim=1)

    @property
    def means(self) -> Float[Tensor, " row"]:
        """Log-probability per token: does not favour short continuations."""
        return self.sums / self.counts

    def of(self, prompt: int) -> Int[Tensor, " row"]:
        """Rows of one prompt, in the order given."""
        return (self.prompt == prompt).nonzero()[:, 0]


def score(
    model: Model,
    prompts: Inputs,
    continuations: Sequence[Choices],
    *,
    edits: Edits = (),
    logit_bytes: int = _LOGIT_BYTES,
) -> Scores:
    """Log-probability of each token of given continuations. Every prompt runs once, whatever the number of its
    continuations, which then run together on copies of its KV cache.

    A text continuation is tokenised by itself, without special tokens, and its tokens are put behind the prompt's: the
    prompt's tokens stay what they are. Where a tokenizer would have joined letters across that boundary, the result is
    the probability of these tokens (`Scores.ids`), not of the joined ones. Begin the text with its space where there is
    one.

    Args:
        continuations: a list of continuations that every prompt is scored with, or one list of continuations for each
            prompt. A continuation is text or token ids.
        edits: as in `generate`: positions are those of the prompt, and what changes generated tokens changes the
            continuation.
        logit_bytes: memory for the logits of one pass; continuations that need more run in several.

    Raises:
        DataError: for an empty continuation, or lists that do not match the prompts.
        ConfigError: for a continuation beyond the model's context.
        SiteError, ShapeError: for edits that do not fit, before the model runs.
    """
    tokens = model.as_tokens(prompts)
    per_prompt = _by_prompt(continuations, len(tokens))
    rows = [
        _ids(model, given, prompt, place)
        for prompt, choices in enumerate(per_prompt)
        for place, given in enumerate(choices)
    ]
    prompt = torch.tensor([p for p, choices in enumerate(per_prompt) for _ in choices], device=model.device)
    padded = model.batch(rows)
    ids, mask = padded.ids, padded.mask
    lengths = tokens.lengths[prompt] + mask.sum(dim=1)
    check_length(model, tokens.rows([int(prompt[lengths.argmax()])]), int(mask[lengths.argmax()].sum()))
    run = CachedRun(model, tokens, edits)
    with run:
        first = run.start()
    found = [_logprobs(first[prompt], ids[:, 0])[:, None]]
    if ids.shape[1] > 1:
        size = max(1, logit_bytes // (4 * first.element_size() * first.shape[1] * (ids.shape[1] - 1)))
        parts = zip(prompt.split(size), ids.split(size), mask.split(size), strict=True)
        found.append(torch.cat([_later(run, *part) for part in parts]))
    logprobs = torch.cat(found, dim=1)
    return Scores(tokens, prompt, ids, mask, torch.where(mask, logprobs, math.nan))


def _later(run: CachedRun, prompt: Tensor, ids: Tensor, mask: Tensor) -> Float[Tensor, "row later"]:
    """Log-probabilities of all tokens but the first."""
    with run.rows(prompt) as own:
        logits = own.extend(ids[:, :-1], mask[:, 1:])  # the last token of a row is read, not run
    return _logprobs(logits, ids[:, 1:])


def _logprobs(logits: Float[Tensor, "*n vocab"], ids: Int[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    return wide.gather(-1, ids[..., None])[..., 0] - wide.logsumexp(dim=-1)


def _by_prompt(continuations: Sequence[Choices], n_prompts: int) -> list[list[Continuation]]:
    """The continuations of each prompt."""
    if isinstance(continuations, str) or not len(continuations):
        raise DataError("continuations are a list, of texts or of lists of token ids, with at least one entry")
    single = [_is_one(given) for given in continuations]
    if all(single):
        return [list(continuations) for _ in range(n_prompts)]
    if any(single) or len(continuations) != n_prompts:
        raise DataError(
            f"continuations are one list for all prompts, or one list for each of the {n_prompts} prompts; "
            f"got {len(continuations)} entries, {sum(single)} of them single continuations"
        )
    for prompt, choices in enumerate(continuations):
        if not len(choices):
            raise DataError(f"prompt {prompt} has no continuation; every prompt needs at least one")
    return [list(choices) for choices in continuations]


def _is_one(given: Choices) -> bool:
    return isinstance(given, str | Tensor) or (len(given) > 0 and all(isinstance(i, int) for i in given))


def _ids(model: Model, given: Continuation, prompt: int, place: int) -> list[int]:
    if isinstance(given, str):
        ids = model.tokenizer(given, add_special_tokens=False)["input_ids"]
    else:
        ids = [int(i) for i in given]
    if not ids:
        raise DataError(f"continuation {place} of prompt {prompt} is empty; its probability would be 1 by definition")
    outside = [i for i in ids if not 0 <= i < model.d_vocab]
    if outside:
        raise DataError(
            f"continuation {place} of prompt {prompt} has the id {outside[0]}; the model knows 0 to {model.d_vocab - 1}"
        )
    return ids
