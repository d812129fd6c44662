"""One training step, and the whole state that decides all later steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from hooke.base.errors import DataError
from hooke.dictionaries.dictionary import Dictionary
from hooke.dictionaries.objectives import Losses, Objective, losses

_SUMS = ("loss", "error", "spread", "active", "auxiliary", "unrevivable", "rows", "steps")


def rate_at(step: int, n_steps: int, *, warmup_steps: int, decay_share: float) -> float:
    """The share of the learning rate at a step (from 0): linear warm-up, then flat, then linear decay to the end.

    Example:
        >>> [rate_at(s, 10, warmup_steps=2, decay_share=0.4) for s in (0, 1, 5, 6, 8, 9)]
        [0.5, 1.0, 1.0, 1.0, 0.5, 0.25]
    """
    rising = min(1.0, (step + 1) / warmup_steps) if warmup_steps > 0 else 1.0
    n_decay = round(n_steps * decay_share)
    falling = min(1.0, (n_steps - step) / n_decay) if n_decay > 0 else 1.0
    return rising * max(0.0, falling)


class Trainer:
    """A dictionary in training with its optimiser, counters and moving averages. Sees rows that are already scaled.

    Args:
        dictionary: changed in place.
        objective: the loss.
        adam: keyword arguments of Adam (`betas`, `eps`).
        clip: largest norm of the whole gradient; `None` for no limit.
        dead_after_tokens: a latent is dead when it has not fired for so many tokens.
    """

    def __init__(
        self,
        dictionary: Dictionary,
        objective: Objective,
        *,
        adam: dict[str, Any],
        clip: float | None,
        dead_after_tokens: int,
    ) -> None:
        self.dictionary, self.objective = dictionary, objective
        self.clip, self.dead_after_tokens = clip, dead_after_tokens
        self.parameters = dict(dictionary.named_parameters())
        self.adam = torch.optim.Adam(self.parameters.values(), lr=0.0, fused=True, **adam)
        device = dictionary.encoder.device
        self.since_fired = torch.zeros(dictionary.n_latents, dtype=torch.int64, device=device)
        self.sums = torch.zeros(len(_SUMS), dtype=torch.float64, device=device)
        self._workspace = dictionary.encoder.new_empty(0, 0)

    def step(self, x: Float[Tensor, "row d_in"], y: Float[Tensor, "row d_out"], learning_rate: float) -> None:
        """Forward, backward, decoder gradient made parallel-free, clip, Adam, unit decoder rows, counters."""
        dictionary = self.dictionary
        if self._workspace.shape[0] < x.shape[0]:
            self._workspace = dictionary.encoder.new_empty(x.shape[0], dictionary.n_latents)
        self.adam.zero_grad(set_to_none=True)
        found = losses(
            dictionary,
            x,
            y,
            self.objective,
            dead=self.dead.nonzero()[:, 0] if self.objective.aux_k is not None else None,
            workspace=self._workspace,
        )
        found.total.backward()
        remove_parallel_(dictionary)
        if self.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.clip)
        self.adam.param_groups[0]["lr"] = learning_rate
        self.adam.step()
        with torch.no_grad():
            normalize(dictionary.W_dec, dim=1, out=dictionary.W_dec)
            self._count(found, x.shape[0])

    @property
    def dead(self) -> Bool[Tensor, " latent"]:
        """Latents that have not fired for `dead_after_tokens` tokens."""
        return self.since_fired >= self.dead_after_tokens

    def report(self) -> dict[str, float]:
        """Means since the last report, and counters now; starts a new window.

        Raises:
            DataError: the loss became NaN or infinite.
        """
        sums = dict(zip(_SUMS, self.sums.tolist(), strict=True))
        self.sums.zero_()
        steps, rows = sums["steps"], sums["rows"]
        if not math.isfinite(sums["loss"]):
            raise DataError("the loss is NaN or infinite; lower the learning rate, or resume from the last checkpoint")
        values = {
            "loss": sums["loss"] / steps,
            "fvu": sums["error"] / sums["spread"] if sums["spread"] else math.nan,
            "l0": sums["active"] / rows,
            "dead_share": float(self.dead.double().mean()),
            "aux_loss": sums["auxiliary"] / steps,
            "unrevivable": sums["unrevivable"] / steps,
        }
        if self.dictionary.activation.has_threshold:
            values["threshold"] = float(self.dictionary.threshold)
        return values

    def state_dict(self) -> dict[str, Any]:
        """Everything that later steps depend on, as tensors."""
        adam = {
            name: dict(self.adam.state[parameter])
            for name, parameter in self.parameters.items()
            if parameter in self.adam.state
        }
        return {
            "dictionary": dict(self.dictionary.state_dict()),
            "adam": adam,
            "since_fired": self.since_fired,
            "sums": self.sums,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.dictionary.load_state_dict(state["dictionary"])
        names = list(self.parameters)
        inner = {names.index(name): values for name, values in state["adam"].items()}
        self.adam.load_state_dict({"state": inner, "param_groups": self.adam.state_dict()["param_groups"]})
        self.since_fired.copy_(state["since_fired"])
        self.sums.copy_(state["sums"])

    def _count(self, found: Losses, n_rows: int) -> None:
        fires = found.values > 0
        self.since_fired += n_rows
        self.since_fired[found.support.latent[fires]] = 0
        new = (found.total.detach(), found.error, found.spread, fires.sum(), found.auxiliary, found.unrevivable)
        self.sums += torch.stack([value.double() for value in new] + [self.sums.new_tensor(n) for n in (n_rows, 1)])
        if self.dictionary.activation.has_threshold:
            update_threshold_(self.dictionary, found.values, fires)


@torch.no_grad()
def remove_parallel_(dictionary: Dictionary) -> None:
    """Take from each decoder row's gradient its component along the row, which would only change the row's norm."""
    gradient, rows = dictionary.W_dec.grad, dictionary.W_dec
    if gradient is not None:  # rows have norm 1
        gradient.addcmul_(rows, (gradient * rows).sum(dim=1, keepdim=True), value=-1)


@torch.no_grad()
def update_threshold_(dictionary: Dictionary, values: Float[Tensor, " place"], fires: Bool[Tensor, " place"]) -> None:
    """Move the inference threshold towards the smallest value that this batch kept; the first batch sets it."""
    if not bool(fires.any()):
        return
    smallest = values[fires].min().double()
    threshold = dictionary.threshold
    if bool(threshold.isnan()):
        threshold.copy_(smallest)
    else:
        threshold.lerp_(smallest, dictionary.activation.threshold_rate)
