"""Generation under edits, with a KV cache and explicit seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from hooke.base.errors import ConfigError
from hooke.base.seeds import torch_generator
from hooke.model.capture import applied
from hooke.model.plan import Edits, repadded
from hooke.model.tokens import Tokens

if TYPE_CHECKING:
    from hooke.model.model import Inputs, Model


@dataclass(frozen=True, eq=False)
class Generation:
    """Continuations of a batch of prompts.

    Args:
        prompts: the prompts, padded on the left.
        ids: generated ids `[batch, new]`; after a row's end the padding id.
        mask: true at generated tokens, false after a row's end. The end token itself counts.
        texts: each continuation as text, the end token left out.
    """

    prompts: Tokens
    ids: Int[Tensor, "batch new"]
    mask: Tensor
    texts: list[str]


def generate(
    model: Model,
    prompts: Inputs,
    *,
    edits: Edits = (),
    max_new_tokens: int = 40,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop_at_end: bool = True,
    on_token: Callable[[int, Tensor], None] | None = None,
) -> Generation:
    """Continue prompts under edits.

    A row's sample depends on its own prompt, the seed and its place in the batch, not on the other rows.

    Args:
        edits: positions are those of the prompt; see `hooke.model.edits` for what happens to generated tokens.
        temperature: 0 takes the most likely token.
        top_p: sample from the smallest set of tokens that holds this much probability.
        stop_at_end: end a row at the tokenizer's end token.
        on_token: called with (step, new ids `[batch]`) after every step, for streaming.

    Raises:
        ConfigError: for settings out of range or a continuation beyond the model's context.
        SiteError, ShapeError, DataError: for edits that do not fit, before the model runs.
    """
    if max_new_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
        raise ConfigError(
            f"max_new_tokens {max_new_tokens}, temperature {temperature}, top_p {top_p}: "
            "expected at least 1, at least 0, and more than 0 up to 1"
        )
    given = model.as_tokens(prompts)
    tokens = _left_padded(model, given)
    limit = getattr(model.hf.config, "max_position_embeddings", None)
    if limit is not None and int(tokens.lengths.max()) + max_new_tokens > limit:
        longest = int(tokens.lengths.max())
        raise ConfigError(f"{longest} prompt tokens + {max_new_tokens} new ones exceed the context of {limit} tokens")
    plan = model.plan(given, edits=edits)
    if tokens is not given:
        plan = repadded(plan, given, tokens)
    draws = [torch_generator(seed, "generate", row) for row in range(len(tokens))]
    end, pad = model.tokenizer.eos_token_id, model.tokenizer.pad_token_id or 0
    cache, ids, mask = DynamicCache(config=model.hf.config), [], tokens.mask
    alive = torch.ones(len(tokens), dtype=torch.bool, device=model.device)
    lives = []
    with torch.no_grad(), applied(model.hf, model.layout, plan, tokens) as progress:
        current, positions = tokens.ids, tokens.position_ids
        for step in range(max_new_tokens):
            options = {"attention_mask": mask.long(), "position_ids": positions} if tokens.is_padded else {}
            out = model.hf(input_ids=current, past_key_values=cache, use_cache=True, logits_to_keep=1, **options)
            progress.start, progress.width = progress.start + current.shape[1], 1
            chosen = _choose(out.logits[:, -1], temperature, top_p, draws)
            chosen = torch.where(alive, chosen, torch.full_like(chosen, pad))
            lives.append(alive)
            ids.append(chosen)
            if on_token is not None:
                on_token(step, chosen)
            if stop_at_end and end is not None:
                alive = alive & (chosen != end)
                if not bool(alive.any()):
                    break
            current, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    new, live = torch.stack(ids, dim=1), torch.stack(lives, dim=1)
    shown = live & (new != end) if stop_at_end and end is not None else live
    texts = [model.text.decode(row[keep].tolist()) for row, keep in zip(new, shown, strict=True)]
    return Generation(tokens, new, live, texts)


def _left_padded(model: Model, tokens: Tokens) -> Tokens:
    """The same rows with their padding on the left, so that all rows go on at the same column."""
    if not tokens.is_padded or bool(tokens.mask[:, -1].all()):
        return tokens
    rows = [row[mask].tolist() for row, mask in zip(tokens.ids, tokens.mask, strict=True)]
    return model.batch(rows, padding_side="left")


def _choose(
    logits: Float[Tensor, "batch vocab"], temperature: float, top_p: float, draws: Sequence[torch.Generator]
) -> Int[Tensor, " batch"]:
    if temperature == 0:
        return logits.argmax(dim=-1)
    probabilities = (logits.float() / temperature).softmax(dim=-1)
    if top_p < 1:
        ranked, order = probabilities.sort(dim=-1, descending=True)
        ranked = ranked * (ranked.cumsum(dim=-1) - ranked < top_p)
        probabilities = torch.zeros_like(ranked).scatter(-1, order, ranked)
    # One generator a row, so that a row's draw does not depend on who else is in the batch.
    rows = [torch.multinomial(row.cpu(), 1, generator=draw) for row, draw in zip(probabilities, draws, strict=True)]
    return torch.cat(rows).to(logits.device)
