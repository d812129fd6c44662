"""Activations: the rule by which pre-activations become sparse codes, one file each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from hooke.base.errors import ConfigError, nearest
from hooke.dictionaries.activations.batchtopk import BatchTopK
from hooke.dictionaries.activations.topk import TopK

Activation = TopK | BatchTopK
ACTIVATIONS: dict[str, type[TopK] | type[BatchTopK]] = {"topk": TopK, "batchtopk": BatchTopK}

__all__ = ["ACTIVATIONS", "Activation", "BatchTopK", "TopK", "from_settings", "settings"]


def settings(activation: Activation) -> dict[str, Any]:
    """The activation as plain values, for files."""
    return {"name": activation.name} | dataclasses.asdict(activation)


def from_settings(values: Mapping[str, Any]) -> Activation:
    """The activation that `settings` described.

    Raises:
        ConfigError: for an unknown name or setting.
    """
    rest = dict(values)
    name = rest.pop("name", None)
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"activation {name!r} is not known{nearest(str(name), ACTIVATIONS)}; known: {', '.join(ACTIVATIONS)}"
        )
    try:
        return ACTIVATIONS[name](**rest)
    except TypeError as error:
        raise ConfigError(f"activation {name!r}: {error}") from None
