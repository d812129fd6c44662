"""What a sweep will do, checked and costed before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from hooke.base.errors import ConfigError
from hooke.model.edits import Edit
from hooke.model.memory import available_bytes
from hooke.model.metrics import Metric
from hooke.model.plan import PlacedEdit, place_edits
from hooke.model.run import Run
from hooke.model.sweep.rows import Row, Rows, why_not_packed
from hooke.model.sweep.tail import is_plain
from hooke.model.tokens import Tokens

if TYPE_CHECKING:
    from hooke.model.model import Inputs, Model

from hooke.model.sweep.worker import Worker

MetricFunction = Metric | Callable[[Run], Tensor]
_BUDGET = 2**30  # bytes of activations in one pass, where nothing else is said; larger passes are not faster on a CPU


@dataclass(frozen=True, eq=False)
class SweepPlan:
    """What a sweep will do. `str(plan)` says it for people; `stream` does it.

    Args:
        placed: the edits of every set, positions worked out.
        rows: the rows of every set that is computed as a change to the clean run.
        whole: the sets that are run whole, with the reason.
        chunks: consecutive sets that one pass takes together.
    """

    model: Model
    tokens: Tokens
    metric: MetricFunction
    placed: Sequence[Sequence[PlacedEdit]]
    rows: Mapping[int, Sequence[Row]]
    whole: Mapping[int, str]
    chunks: Sequence[range]

    @property
    def token_layers(self) -> int:
        """Cost: tokens times blocks that will be computed, the clean run included."""
        n_layers, n_tokens = self.model.n_layers, int(self.tokens.mask.sum())
        lengths = self.tokens.lengths.tolist()
        packed = sum(
            (row.width if self.model.layout.dispatches else lengths[row.example]) * (n_layers - row.layer)
            for rows in self.rows.values()
            for row in rows
        )
        return packed + n_tokens * n_layers * (1 + len(self.whole))

    @property
    def token_layers_one_by_one(self) -> int:
        """What one forward pass for each edit set and the clean run would cost."""
        return int(self.tokens.mask.sum()) * self.model.n_layers * (1 + len(self.placed))

    def __str__(self) -> str:
        share = self.token_layers / self.token_layers_one_by_one
        lines = [
            f"{len(self.placed)} edit sets x {len(self.tokens)} examples: {len(self.chunks)} passes after a clean run",
            f"{self.token_layers:,} token-layers, {share:.1%} of the {self.token_layers_one_by_one:,} of a pass each",
        ]
        if self.rows and not self.model.layout.dispatches:
            family = self.model.layout.family
            lines.append(f"by layer only: {family} models do their attention outside transformers' registry")
        reasons: dict[str, int] = {}
        for reason in self.whole.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        lines += [f"{n} of them run whole: {reason}" for reason, n in reasons.items()]
        return "\n".join(lines)

    def stream(self, *, first: int = 0) -> Iterator[tuple[range, Float[Tensor, "set batch"]]]:
        """Results in order: the numbers of the edit sets, and the metric under each of them. Sets before `first` are
        left out.
        """
        worker = Worker(self)
        for chunk in self.chunks:
            if chunk.stop > first:
                yield chunk, worker.values(chunk)


def plan_sweep(
    model: Model,
    inputs: Inputs,
    edit_sets: Sequence[Sequence[Edit] | Edit],
    metric: MetricFunction,
    *,
    memory: int | None = None,
) -> SweepPlan:
    """Check every edit set against the model and the inputs, and plan the work; nothing runs yet.

    Args:
        edit_sets: what is tried, each a list of edits (or one edit) applied to all examples.
        metric: one number per example; a `Metric` says which logits it reads, so that only these are computed.
        memory: most bytes of activations in one pass; None takes 1 GiB or half of what is free.

    Raises:
        SiteError, ShapeError, DataError, ConfigError: for an edit that does not fit, named by its set.
    """
    if not len(edit_sets):
        raise ConfigError("a sweep needs at least one edit set; got none")
    tokens = model.as_tokens(inputs)
    if isinstance(metric, Metric):
        metric.check(tokens, model.d_vocab)
    placed = [_placed(model, tokens, number, edits) for number, edits in enumerate(edit_sets)]
    general = _why_all_whole(model, tokens)
    rows, whole, working = {}, {}, Rows(model.layout, tokens)
    for number, edits in enumerate(placed):
        reason = general or why_not_packed(edits)
        if reason is None:
            rows[number] = working.of(number, edits)
        else:
            whole[number] = reason
    room = min(_BUDGET, available_bytes(model.device) // 2) if memory is None else memory
    return SweepPlan(model, tokens, metric, placed, rows, whole, _chunks(model, tokens, rows, len(placed), room))


def _placed(model: Model, tokens: Tokens, number: int, edits: Sequence[Edit] | Edit) -> list[PlacedEdit]:
    own = [edits] if isinstance(edits, Edit) else list(edits)
    if not all(isinstance(edit, Edit) for edit in own):
        raise ConfigError(
            f"edit set {number}: a set is one list of edits for all examples, without a list for each; sweep the "
            "examples apart, or restrict edits to some rows by a Bool [batch, pos] as positions"
        )
    try:
        return place_edits(model.layout, model.d_vocab, tokens, own)
    except (KeyError, ValueError) as error:
        raise type(error)(f"edit set {number}: {error}") from error


def _why_all_whole(model: Model, tokens: Tokens) -> str | None:
    layout = model.layout
    if getattr(tokens, "media", None):
        return "inputs with images"
    if "z" not in layout.inside or not layout.attention:
        return f"{layout.family}: the place of z is not known"
    if not is_plain(model.hf, layout):
        return f"{layout.family}: more than a norm and an unembedding lies between the last block and the logits"
    return None


def _chunks(model: Model, tokens: Tokens, rows: Mapping[int, Sequence[Row]], n_sets: int, room: int) -> Sequence[range]:
    """Consecutive sets that fit into the memory budget together, at least one at a time."""
    layout, size = model.layout, model.dtype.itemsize
    width = tokens.shape[1]
    per_token = (10 * layout.d_model + 3 * max(layout.d_mlp, layout.d_model)) * size
    attention = (2 * layout.n_heads + 2 * layout.n_kv_heads) * layout.d_head * width * size
    attention += layout.n_heads * width * width * size
    whole = len(tokens) * (width * (per_token + 2 * model.d_vocab * size) + attention)
    chunks, start, used = [], 0, 0
    for number in range(n_sets):
        own = (
            sum((row.width if layout.dispatches else width) * per_token + attention for row in rows[number])
            if number in rows
            else whole
        )
        if used + own > room and number > start:
            chunks.append(range(start, number))
            start, used = number, 0
        used += own
    return [*chunks, range(start, n_sets)]
