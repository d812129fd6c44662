"""What a page is about: one model, one dictionary on it, their index, and what is known about the dictionary."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from hooke.base.errors import ConfigError
from hooke.dictionaries.dictionary import Dictionary
from hooke.features.identity import identity_of
from hooke.features.index import LatentIndex
from hooke.features.interest import interest
from hooke.features.logits import logit_directions, unreadable
from hooke.model.model import Model

_REMEMBERED = 16
_ROWS_AT_A_TIME = 16  # rows of logit weights in memory: a row is as long as the vocabulary
Made = TypeVar("Made")


@dataclass(frozen=True, eq=False)
class Session:
    """The state behind a page. Nothing in it changes while the page is open.

    Args:
        model: runs texts and steers.
        dictionary: whose latents are shown.
        index: where they fire; must have been built with this model and dictionary.
        evaluation: an `Evaluation` or its JSON; see `hooke.web.scores` for what else is understood.
        run_path: the run folder (a path, or its text) that all of it comes from, if any.
        dictionary_path: folder from which `Dictionary.load` gives this dictionary, for the code that panels show.
        token: secret that requests which run the model must carry; the served page knows it.

    Raises:
        ConfigError: the index belongs to another model or dictionary.
    """

    model: Model
    dictionary: Dictionary
    index: LatentIndex
    evaluation: Any = field(default_factory=dict)
    run_path: Path | str | None = None
    dictionary_path: Path | str | None = None
    token: str = field(default_factory=secrets.token_urlsafe)

    def __post_init__(self) -> None:
        if self.index.manifest["dictionary"] != identity_of(self.dictionary):
            raise ConfigError(f"{self.index.path} was built with another dictionary; build the index again")
        if self.index.manifest["model"] != dict(self.model.identity):
            raise ConfigError(
                f"{self.index.path} was built with another model than {self.model.name!r}; build it again"
            )

    @property
    def name(self) -> str:
        """Name of the dictionary, for titles."""
        return Path(self.run_path).name if self.run_path else str(self.dictionary.reads)

    @cached_property
    def alive(self) -> np.ndarray:
        """Indices of the latents that fire at all, ascending."""
        return np.flatnonzero(self.index.n_firing)

    @cached_property
    def interest(self) -> np.ndarray:
        """Interest of every latent; see `hooke.features.interest`."""
        return interest(self.index)[0]

    @cached_property
    def top_texts(self) -> np.ndarray:
        """Text of each latent's strongest token in lower case, for the filter of the table; empty for dead ones."""
        vocabulary = self.index.vocabulary
        return np.array([vocabulary[i].lower() if i >= 0 else "" for i in self.index.top_token.tolist()])

    def raised(self, latents: list[int], k: int = 3) -> list[list[str]]:
        """The tokens that each latent raises most, remembered from call to call; none where logits cannot be read."""
        if unreadable(self.model, self.dictionary) is not None:
            return [[] for _ in latents]
        missing = [i for i in latents if i not in self._raised]
        for begin in range(0, len(missing), _ROWS_AT_A_TIME):
            block = missing[begin : begin + _ROWS_AT_A_TIME]
            best = logit_directions(self.model, self.dictionary, block).topk(k, dim=-1).indices.tolist()
            self._raised.update(zip(block, best, strict=True))
        return [[self.index.vocabulary[i] for i in self._raised[latent]] for latent in latents]

    def remembered(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What `make` gave for this key, of the last few keys: the default continuation while a slider moves."""
        if key not in self._remembered:
            made = make()
            while len(self._remembered) >= _REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[key] = made
        return self._remembered[key]

    @cached_property
    def _remembered(self) -> dict[Hashable, Any]:
        return {}

    @cached_property
    def _raised(self) -> dict[int, list[int]]:
        return {}
