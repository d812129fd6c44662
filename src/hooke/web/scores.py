"""Scores for the overview, from what an evaluation wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hooke.web.schemas import Score

_KNOWN: dict[str, tuple[str, str | None]] = {  # name -> (label, which way is better)
    "l0": ("L0: latents active on a token", None),
    "density": ("Mean density", None),
    "dead_share": ("Dead latents", "lower"),
    "fvu": ("Fraction of variance unexplained", "lower"),
    "cosine": ("Cosine to the original", "higher"),
    "gamma": ("Gamma: shrinkage, 1 is none", None),
    "ce_clean": ("Loss of the model, nats", None),
    "ce_spliced": ("Loss with the reconstruction, nats", "lower"),
    "ce_zero": ("Loss with zeros, nats", None),
    "loss_recovered": ("Loss recovered", "higher"),
    "kl_score": ("KL score", "higher"),
}


def scores_of(evaluation: Mapping[str, Any]) -> list[Score]:
    """Scores in the order of the evaluation.

    Understood: `{"scores": [{"name", "value", "low", "high", "n", "reason", "controls", ...}]}`, or one entry a score,
    `{name: number or {"value", "low", ...}}`, with `"controls": {control: {name: number}}` beside them. NaN, also
    as the text "NaN", becomes null with a reason; entries that are no scores are left out.
    """
    listed = evaluation.get("scores")
    if isinstance(listed, list):
        entries = [(str(entry["name"]), entry) for entry in listed if isinstance(entry, Mapping) and "name" in entry]
    else:
        source = listed if isinstance(listed, Mapping) else evaluation
        entries = [(name, value) for name, value in source.items() if name != "controls"]
    controls = evaluation.get("controls")
    controls = controls if isinstance(controls, Mapping) else {}
    return [score for name, value in entries if (score := _score(name, value, controls)) is not None]


def _score(name: str, entry: Any, controls: Mapping[str, Any]) -> Score | None:
    facts: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"value": entry}
    if "value" not in facts or not _is_number(facts["value"]):
        return None
    label, better = _KNOWN.get(name, (name.replace("_", " "), None))
    own = facts.get("controls")
    beside = own if isinstance(own, Mapping) else _beside(name, controls)
    value = _number(facts["value"])
    reason = facts.get("reason") or (None if value is not None else "undefined here")
    return Score(
        name=name,
        label=str(facts.get("label") or label),
        value=value,
        low=_number(facts.get("low")),
        high=_number(facts.get("high")),
        n=int(facts.get("n") or 0),
        reason=reason,
        controls={str(key): _number(_value(number)) for key, number in beside.items()},
        better=facts.get("better") or better,
    )


def _beside(name: str, controls: Mapping[str, Any]) -> dict[str, Any]:
    return {key: scores[name] for key, scores in controls.items() if isinstance(scores, Mapping) and name in scores}


def _value(entry: Any) -> Any:
    return entry.get("value") if isinstance(entry, Mapping) else entry


def _is_number(value: Any) -> bool:
    return value is None or value in ("NaN", "Infinity", "-Infinity") or isinstance(value, int | float)


def _number(value: Any) -> float | None:
    if value is None or isinstance(value, bool) or not _is_number(value):
        return None
    return float(value) if math.isfinite(float(value)) else None
