"""Random numbers: independent, named streams from one seed, the same in every process."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import torch

from hooke.base.errors import ConfigError


def _digest(seed: int, stream: tuple[int | str, ...]) -> bytes:
    """Hash the seed and the names of the stream; JSON keeps `1` and `"1"`, and `("a", "b")` and `("ab",)`, apart."""
    for part in (seed, *stream):
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise ConfigError(f"a seed is an integer and a stream is named by integers and strings, not {part!r}")
    return hashlib.sha256(json.dumps([seed, *stream]).encode()).digest()


def numpy_generator(seed: int, *stream: int | str) -> np.random.Generator:
    """A NumPy generator for one named stream of a seed.

    Streams with different names are independent, so adding a consumer of random numbers never changes the numbers of
    another one. The same seed and names give the same numbers in every process and on every machine.

    Example:
        >>> a = numpy_generator(0, "batches", 3).integers(1000, size=4)
        >>> b = numpy_generator(0, "batches", 3).integers(1000, size=4)
        >>> bool((a == b).all())
        True
    """
    words = np.frombuffer(_digest(seed, stream), dtype="<u4")
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([int(word) for word in words])))


def torch_generator(seed: int, *stream: int | str, device: str | torch.device = "cpu") -> torch.Generator:
    """A torch generator for one named stream of a seed, on `device`.

    The numbers are those of torch on that kind of device: CPU and CUDA differ from one another.

    Example:
        >>> import torch
        >>> a = torch.rand(3, generator=torch_generator(0, "init"))
        >>> bool((a == torch.rand(3, generator=torch_generator(0, "init"))).all())
        True
    """
    generator = torch.Generator(device=device)
    generator.manual_seed(int.from_bytes(_digest(seed, stream)[:8], "little") >> 1)  # torch takes 63 bits everywhere
    return generator
