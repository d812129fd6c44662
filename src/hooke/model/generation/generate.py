"""Generation under edits, with a KV cache and explicit seeds: all at once, or step by step."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hooke.base.errors import ConfigError, nearest
from hooke.base.seeds import torch_generator
from hooke.model.generation.cached import CachedRun, check_length
from hooke.model.generation.growing import GrowingText
from hooke.model.generation.sampling import Sampling
from hooke.model.plan import Edits
from hooke.model.tokens import Tokens

if TYPE_CHECKING:
    from hooke.model.model import Inputs, Model


@dataclass(frozen=True)
class Settings(Sampling):
    """How to generate; see `Sampling` for temperature, top_k, top_p and min_p.

    Args:
        max_new_tokens: most tokens of a continuation.
        samples_per_prompt: continuations of each prompt, one after the other in the result. The prompt runs once.
        seed: a row's draws depend on it, on the number of the prompt, and on the number of the sample.
        seeds: instead, one seed for each row of the result; the same seed draws the same numbers in any row.
        stop: end a row once its text contains one of these; the text ends before it.
        stop_ids: end a row at one of these tokens.
        stop_at_end: end a row at the tokenizer's end token, and at those which the model's generation config names
            beside it.
        logprobs: return the log-probability of every generated token.

    Raises:
        ConfigError: for a setting out of range.
    """

    max_new_tokens: int = 40
    samples_per_prompt: int = 1
    seed: int = 0
    seeds: Sequence[int] | None = None
    stop: str | Sequence[str] = ()
    stop_ids: Sequence[int] = ()
    stop_at_end: bool = True
    logprobs: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_new_tokens < 1 or self.samples_per_prompt < 1:
            raise ConfigError(
                f"max_new_tokens {self.max_new_tokens}, samples_per_prompt {self.samples_per_prompt}: "
                "expected at least 1"
            )
        if "" in self.stop_strings:
            raise ConfigError("an empty stop string would end every row before it starts")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as several."""
        return ((self.stop,) if self.stop else ()) if isinstance(self.stop, str) else tuple(self.stop)

    @classmethod
    def of(cls, options: dict[str, object]) -> Settings:
        """From keyword arguments.

        Raises:
            ConfigError: for a name that is not a setting, with the nearest that is.
        """
        known = [setting.name for setting in dataclasses.fields(cls)]
        for name in options:
            if name not in known:
                raise ConfigError(
                    f"{name!r} is no setting of generation{nearest(name, known)}; known: {', '.join(known)}"
                )
        return cls(**options)  # type: ignore[arg-type]  # checked by name; wrong types show where they are used

    def generators(self, n_prompts: int) -> list[torch.Generator]:
        """One for each row of the result."""
        n = self.samples_per_prompt
        if self.seeds is None:
            return [
                torch_generator(self.seed, "generate", row, sample) for row in range(n_prompts) for sample in range(n)
            ]
        if len(self.seeds) != n_prompts * n:
            raise ConfigError(f"{len(self.seeds)} seeds; expected one for each of {n_prompts} prompts x {n} samples")
        return [torch_generator(seed, "generate") for seed in self.seeds]


@dataclass(frozen=True, eq=False)
class Step:
    """One new token of every row.

    Args:
        index: 0 for the first new token.
        ids: the new tokens; the padding id where a row has ended before.
        live: whether the row was still going on.
        pieces: what has become readable of each row's text. A character that is spread over several tokens comes with
            its last one; what may be the beginning of a stop string is held back. Joined over all steps, `texts`.
        logprobs: log-probability of each token, where asked for; NaN where a row has ended before.
    """

    index: int
    ids: Int[Tensor, " batch"]
    live: Bool[Tensor, " batch"]
    pieces: list[str]
    logprobs: Float[Tensor, " batch"] | None = None


@dataclass(frozen=True, eq=False)
class Generation:
    """Continuations of a batch of prompts.

    Args:
        prompts: the prompt of each continuation, padded on the left.
        ids: generated ids `[batch, new]`; after a row's end the padding id.
        mask: true at generated tokens, false after a row's end. The token that ended it counts.
        texts: each continuation as text, without the end token or stop string.
        logprobs: log-probability of each token given all before it, in nats, under the edited model at temperature 1
            whatever it was drawn with; NaN after a row's end. None where not asked for.
    """

    prompts: Tokens
    ids: Int[Tensor, "batch new"]
    mask: Bool[Tensor, "batch new"]
    texts: list[str]
    logprobs: Float[Tensor, "batch new"] | None = None


def generate(
    model: Model,
    prompts: Inputs,
    *,
    edits: Edits = (),
    on_token: Callable[[int, Tensor], None] | None = None,
    **options: object,
) -> Generation:
    """Continue prompts under edits: equal, token by token, to running the whole text again under the same edits.

    A row's sample depends on its own prompt, its seed and its place in the batch, not on the other rows.

    Args:
        edits: one list for all prompts, or one list for each. Positions are those of the prompt; see
            `hooke.model.edits` for what happens to generated tokens.
        on_token: called with (step, new ids `[batch]`) after every step.
        options: see `Settings`.

    Raises:
        ConfigError: for settings out of range or a continuation beyond the model's context.
        ModelError: for a model that reads in both directions.
        SiteError, ShapeError, DataError: for edits that do not fit, before the model runs.
    """
    settings = Settings.of(options)
    rows = _Rows(model, prompts, edits, settings)
    steps = []
    for step in rows.steps(reading=bool(settings.stop_strings)):
        steps.append(step)
        if on_token is not None:
            on_token(step.index, step.ids)
    joined = {
        name: torch.stack([getattr(step, name) for step in steps], dim=1)
        for name in ("ids", "live", *(["logprobs"] if settings.logprobs else []))
    }
    ids, mask = joined["ids"], joined["live"]
    texts = [text.text for text in rows.texts] if settings.stop_strings else _read(rows, ids, mask)
    return Generation(rows.prompts, ids, mask, texts, joined.get("logprobs"))


def stream(model: Model, prompts: Inputs, *, edits: Edits = (), **options: object) -> Iterator[Step]:
    """Generate step by step; arguments and errors are those of `generate`, and come before the first step.

    Between two steps the model is as it was: other runs do not see the edits. Leaving the loop ends the work.

    Example:
        for step in model.stream("import ", edits=[steer]):
            print(step.pieces[0], end="")
    """
    return _Rows(model, prompts, edits, Settings.of(options)).steps(reading=True)


@dataclass
class _Rows:
    """The rows of one generation, and how far each has come."""

    model: Model
    inputs: Inputs
    edits: Edits
    settings: Settings
    texts: list[GrowingText] = field(default_factory=list)

    def __post_init__(self) -> None:
        tokens = self.model.as_tokens(self.inputs)
        check_length(self.model, tokens, self.settings.max_new_tokens)
        self.draws = self.settings.generators(len(tokens))
        self.run = CachedRun(self.model, tokens, self.edits)
        self.prompts = self.run.prompts
        self.ends = torch.tensor(_ends(self.model, self.settings), dtype=torch.long, device=self.model.device)

    def steps(self, *, reading: bool) -> Iterator[Step]:
        """Token after token until every row has ended."""
        run, logits = self._begin()
        self.prompts = run.prompts
        pad = self.model.tokenizer.pad_token_id or 0
        stop, last = self.settings.stop_strings, self.settings.max_new_tokens - 1
        self.texts = [GrowingText(self.model.text, stop) for _ in range(len(run.prompts))] if reading else []
        live = torch.ones(len(run.prompts), dtype=torch.bool, device=logits.device)
        with run:
            for index in range(last + 1):
                ids = torch.where(live, self.settings.choose(logits, self.draws), pad)
                at_end = live & torch.isin(ids, self.ends) if len(self.ends) else torch.zeros_like(live)
                logprobs = _logprobs(logits, ids, live) if self.settings.logprobs else None
                pieces, stopped = self._grow(ids, live, at_end, last=index == last) if reading else ([], None)
                yield Step(index, ids, live, pieces, logprobs)
                if len(self.ends) or stopped is not None:
                    live = live & ~at_end if stopped is None else live & ~at_end & ~stopped
                    if not bool(live.any()):
                        return
                if index < last:
                    logits = run.extend(ids[:, None])[:, -1]

    def _begin(self) -> tuple[CachedRun, Tensor]:
        with self.run as run:
            logits = run.start()
        n = self.settings.samples_per_prompt
        if n == 1:
            return run, logits
        index = torch.arange(len(logits), device=logits.device).repeat_interleave(n)
        return run.rows(index), logits[index]

    def _grow(self, ids: Tensor, live: Tensor, at_end: Tensor, *, last: bool) -> tuple[list[str], Tensor]:
        """What becomes readable of each row, and which rows have met a stop string."""
        pieces = []
        for text, token_id, going, ending in zip(self.texts, ids.tolist(), live.tolist(), at_end.tolist(), strict=True):
            piece = text.add(token_id) if going and not ending else ""
            pieces.append(piece + text.end() if going and (ending or last) else piece)
        stopped = torch.tensor([text.stopped for text in self.texts], device=ids.device)
        return pieces, stopped


def _ends(model: Model, settings: Settings) -> list[int]:
    """Tokens at which a row ends."""
    ends = {int(token_id) for token_id in settings.stop_ids}
    own = model.tokenizer.eos_token_id
    if settings.stop_at_end and own is not None:
        named = getattr(getattr(model.hf, "generation_config", None), "eos_token_id", None)
        named = named if isinstance(named, list) else [named]
        # A generation config that does not know the tokenizer's end token was made for another tokenizer.
        ends |= {own, *named} if own in named else {own}
    return sorted(ends)


def _read(rows: _Rows, ids: Tensor, mask: Tensor) -> list[str]:
    """Texts of whole continuations."""
    shown = (mask & ~torch.isin(ids, rows.ends)).cpu()
    return ["".join(rows.model.text.pieces(row[keep].tolist())) for row, keep in zip(ids.cpu(), shown, strict=True)]


def _logprobs(logits: Tensor, ids: Tensor, live: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    chosen = wide.gather(-1, ids[:, None])[:, 0] - wide.logsumexp(dim=-1)
    return torch.where(live, chosen, math.nan)
