"""The toy transformer: small, with switches, trained from scratch in the studies and built by hand in the checks.

It is an ordinary `transformers` model, so folders, caches, masks, attention kernels and training tools work on it as on
any other. `toy(...)` makes one that can be looked into at once, with integers for a vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from hooke.base.errors import ConfigError, nearest
from hooke.model.toy.config import ToyConfig

if TYPE_CHECKING:
    from hooke.model.model import Model


def integer_tokenizer(vocab_size: int, *, bos: int | None = None) -> PreTrainedTokenizerFast:
    """Text "3 17 4" as ids 3, 17, 4. The id `bos` reads "<bos>" and starts every text; other words get the id
    `vocab_size`, which a model refuses.
    """
    words = {f"▁{i}": i for i in range(vocab_size) if i != bos} | {"<unknown>": vocab_size}
    core = Tokenizer(models.WordLevel(words | ({} if bos is None else {"<bos>": bos}), unk_token="<unknown>"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = {} if bos is None else {"bos_token": "<bos>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unknown>", **special)


def toy(*, seed: int = 0, bos: int | None = None, attention: str = "sdpa", **switches: object) -> Model:
    """A toy transformer with random weights, the same for the same seed, ready to be looked into.

    Args:
        bos: token id that starts every text, if any.
        attention: kernel, "sdpa" or "eager".
        switches: fields of `ToyConfig`.

    Raises:
        ConfigError: for a switch that does not exist, or sizes that do not fit together.

    Example:
        >>> model = toy(d_model=16, n_heads=2, attention_only=True, norm="none")
        >>> model.run("3 1 3", capture=["z.1"])["z.1"].shape
        torch.Size([1, 3, 2, 8])
    """
    from hooke.model.model import Model  # it imports the families, and they this file's neighbours

    known = [field.name for field in dataclasses.fields(ToyConfig)]
    for name in switches:
        if name not in known:
            raise ConfigError(f"a toy has no switch {name!r}{nearest(name, known)}")
    with torch.random.fork_rng(devices=[]):  # layers draw as they are made; the caller's numbers are not touched
        hf = AutoModelForCausalLM.from_config(ToyConfig(**switches), attn_implementation=attention)
    hf.draw(seed)
    return Model(hf, integer_tokenizer(hf.config.vocab_size, bos=bos), "toy")
