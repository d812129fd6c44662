"""What an index remembers of the dictionary that made it, so that another one is refused."""

from __future__ import annotations

import hashlib
from typing import Any

from hooke.base.errors import ConfigError
from hooke.dictionaries.dictionary import Dictionary
from hooke.model.sites import Site


def identity_of(dictionary: Dictionary) -> dict[str, Any]:
    """Sites, sizes and a SHA-256 over all parameters and buffers of a dictionary, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(dictionary.state_dict().items()):
        plain = tensor.detach().double().cpu().contiguous()
        digest.update(f"{name} {tuple(plain.shape)}".encode())
        digest.update(plain.numpy().tobytes())
    return {
        "reads": str(dictionary.reads) if dictionary.reads else None,
        "writes": str(dictionary.writes) if dictionary.writes else None,
        "activation": str(dictionary.activation),
        "d_in": dictionary.d_in,
        "n_latents": dictionary.n_latents,
        "weights_sha256": digest.hexdigest(),
    }


def site_read(dictionary: Dictionary) -> Site:
    """The site that the dictionary reads.

    Raises:
        ConfigError: it does not say.
    """
    if dictionary.reads is None:
        raise ConfigError("the dictionary does not say which site it reads; set .reads, such as 'resid_post.2'")
    return dictionary.reads
