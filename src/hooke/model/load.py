"""Open a model: the built-in one, a Hugging Face name or folder, or a pair that is already in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from hooke.base.errors import ModelError, nearest
from hooke.model.families import FAMILIES
from hooke.model.model import Model, check_pair

BUILTIN = ("hooke/stdlib",)


def load(
    source: str | Path | tuple,  # (PreTrainedModel, PreTrainedTokenizerBase); checked with a message of its own
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    attention: str = "sdpa",
) -> Model:
    """Open a language model.

    Args:
        source: "hooke/stdlib" (built in), a Hugging Face name, a local folder, or `(hf_model, tokenizer)`.
        dtype: precision of the weights; not used for a pair.
        device: where to put them; not used for a pair.
        attention: attention kernel, "sdpa" or "eager"; not used for a pair.

    Raises:
        ModelError: where the model cannot be found or opened, or its architecture has no map of sites.
    """
    if isinstance(source, tuple):
        if len(source) != 2:
            raise ModelError(f"expected (hf_model, tokenizer), got a tuple of {len(source)}")
        check_pair(*source)
        return Model(*source, name=source[0].config._name_or_path or "unnamed")
    name, place = str(source), _place(str(source))
    try:
        config = AutoConfig.from_pretrained(place)
        if config.model_type not in FAMILIES:
            known = ", ".join(sorted(FAMILIES))
            raise ModelError(f"{name} is a {config.model_type!r} model, which has no map of sites yet; known: {known}")
        with _quiet():
            hf = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, attn_implementation=attention)
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"cannot open model {name!r}: {reason}; expected {BUILTIN[0]!r}, a Hugging Face name that is reachable, "
            f"or a local folder with config.json, weights and tokenizer{nearest(name, BUILTIN)}"
        ) from error
    return Model(hf.to(device), tokenizer, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers: what people see is up to the front end."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def builtin_folder(name: str) -> Path:
    """Folder of a shipped model.

    Raises:
        ModelError: for a name that is not shipped.
    """
    if name not in BUILTIN:
        raise ModelError(f"{name!r} is not built in{nearest(name, BUILTIN)}; built in: {', '.join(BUILTIN)}")
    return Path(str(resources.files("hooke.model.builtin"))) / name.removeprefix("hooke/")


def _place(name: str) -> str:
    if name.startswith("hooke/"):
        return str(builtin_folder(name))
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise ModelError(f"{name} is a folder without config.json; expected a Hugging Face model folder")
    return name
