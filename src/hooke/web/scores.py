"""Scores for the overview, from what an evaluation wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hooke.base.errors import DataError
from hooke.base.jsonable import jsonable
from hooke.web.schemas import Score

_KNOWN: dict[str, tuple[str, str | None]] = {  # name -> (label, which way is better), in the order of the page
    "l0": ("L0: latents active on a token", None),
    "fvu": ("Fraction of variance unexplained", "lower"),
    "cosine": ("Cosine to the original", "higher"),
    "gamma": ("Gamma: shrinkage, 1 is none", None),
    "loss_recovered": ("Loss recovered, against zeros", "higher"),
    "loss_recovered_mean": ("Loss recovered, against the mean", "higher"),
    "kl_score": ("KL score, against zeros", "higher"),
    "kl": ("KL(clean || spliced), nats", "lower"),
    "ce_increase": ("Added loss, nats", "lower"),
    "ce": ("Loss with the reconstruction, nats", "lower"),
    "ce_clean": ("Loss of the model, nats", None),
    "ce_zero": ("Loss with zeros, nats", None),
    "ce_mean": ("Loss with the mean, nats", None),
    "dead_share": ("Dead latents", "lower"),
    "dense_share": ("Dense latents, on more than 10 %", "lower"),
    "nmse": ("Normalised squared error", "lower"),
    "mse": ("Squared error", "lower"),
    "norm_ratio": ("Norm of the reconstruction / original", None),
    "fve_centered": ("Variance explained, offsets ignored", "higher"),
}


def scores_of(evaluation: Any) -> list[Score]:
    """Scores, the known ones first and in a fixed order.

    Understood: a `hooke.evals` Evaluation or its JSON, which has estimates by name under "scores", and under "controls"
    the same by control; a list under "scores" with entries {"name", "value", "low", "high", "n", "reason", "controls",
    "label", "better"}, whose order is kept; or plain {name: number or estimate}. NaN, also as the text "NaN", becomes
    null with a reason; entries that are no scores are left out.

    Raises:
        DataError: nothing of the kind.
    """
    plain = jsonable(evaluation)
    if not isinstance(plain, dict):
        raise DataError(f"an evaluation is an object with scores, not {type(plain).__name__}")
    listed = plain.get("scores")
    if isinstance(listed, list):
        entries = [(str(entry["name"]), entry) for entry in listed if isinstance(entry, dict) and "name" in entry]
    else:
        source = listed if isinstance(listed, dict) else plain
        order = {name: place for place, name in enumerate(_KNOWN)}
        entries = sorted(source.items(), key=lambda entry: order.get(entry[0], len(order)))
    controls = plain.get("controls")
    controls = controls if isinstance(controls, dict) else {}
    return [score for name, value in entries if (score := _score(name, value, controls)) is not None]


def _score(name: str, entry: Any, controls: Mapping[str, Any]) -> Score | None:
    facts: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"value": entry}
    if name == "controls" or "value" not in facts or not _is_number(facts["value"]):
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
    if isinstance(value, bool):
        return False
    return value is None or value in ("NaN", "Infinity", "-Infinity") or isinstance(value, int | float)


def _number(value: Any) -> float | None:
    if value is None or not _is_number(value):
        return None
    return float(value) if math.isfinite(float(value)) else None
