"""Dictionaries on disk: `cfg.json` and `weights.safetensors`, checksummed, with a probe that is run again on load."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hooke.base.errors import ConfigError, DataError, FormatError, SiteError
from hooke.base.files import atomic_path, read_json, read_tensors, sha256_file, write_json, write_tensors
from hooke.base.seeds import torch_generator
from hooke.base.shapes import require_finite
from hooke.dictionaries.activations import from_settings, settings
from hooke.dictionaries.dictionary import Dictionary

FORMAT, VERSION = "hooke.dictionary", 1
_WEIGHTS = "weights.safetensors"
_PROBE_ROWS = 16
_TOLERANCE = 1e-3


def write_dictionary(dictionary: Dictionary, folder: str | PathLike[str], metadata: Mapping[str, Any]) -> None:
    """See `Dictionary.save`."""
    tensors = {
        "W_enc": dictionary.W_enc,  # [d_in, latent] in the file, as the field has it
        "b_enc": dictionary.b_enc,
        "W_dec": dictionary.W_dec,
        "b_dec": dictionary.b_dec,
    }
    _require_finite(dictionary)
    probe = _probe_input(dictionary)
    ready = not (dictionary.activation.has_threshold and math.isnan(float(dictionary.threshold)))
    if ready:
        tensors |= {"probe.x": probe, "probe.x_hat": _outputs(dictionary, probe)}
    with atomic_path(folder) as temporary:
        temporary.mkdir()
        write_tensors(temporary / _WEIGHTS, tensors, {"format": FORMAT})
        cfg = {
            "format": FORMAT,
            "version": VERSION,
            "activation": settings(dictionary.activation),
            "threshold": float(dictionary.threshold) if dictionary.activation.has_threshold and ready else None,
            "d_in": dictionary.d_in,
            "n_latents": dictionary.n_latents,
            "d_out": dictionary.d_out,
            "reads": None if dictionary.reads is None else str(dictionary.reads),
            "writes": None if dictionary.writes is None else str(dictionary.writes),
            "subtract_b_dec": dictionary.subtract_b_dec,
            "dtype": str(dictionary.encoder.dtype).removeprefix("torch."),
            "weights": {"file": _WEIGHTS, "sha256": sha256_file(temporary / _WEIGHTS)},
            "metadata": dict(metadata),
        }
        write_json(temporary / "cfg.json", cfg)


def read_dictionary(folder: str | PathLike[str], *, device: str | torch.device = "cpu") -> Dictionary:
    """See `Dictionary.load`."""
    path = Path(folder) / "cfg.json"
    cfg = read_json(path)
    if not isinstance(cfg, dict) or cfg.get("format") != FORMAT:
        raise FormatError(f"{path} is not a {FORMAT} file; expected a folder that Dictionary.save wrote")
    if cfg.get("version") != VERSION:
        raise FormatError(f"{path} has version {cfg.get('version')!r}; this hooke reads version {VERSION}")
    try:
        weights, sha256 = cfg["weights"]["file"], cfg["weights"]["sha256"]
        tensors, _ = read_tensors(Path(folder) / Path(weights).name, sha256=sha256)
        dictionary = _built(cfg, tensors)
    except (KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} lacks a field or holds one of another kind ({error}); restore it") from error
    except (ConfigError, DataError, SiteError) as error:
        raise FormatError(f"{path}: {error}") from error
    _verify(dictionary, tensors, Path(folder))
    return dictionary.to(device)


def _built(cfg: dict[str, Any], tensors: dict[str, Tensor]) -> Dictionary:
    activation = from_settings(cfg["activation"])
    dictionary = Dictionary(
        cfg["d_in"],
        cfg["n_latents"],
        activation=activation,
        reads=cfg["reads"],
        writes=cfg["writes"],
        d_out=cfg["d_out"],
        subtract_b_dec=cfg["subtract_b_dec"],
    )
    dtype = getattr(torch, cfg["dtype"])
    for name, parameter in (("b_enc", dictionary.b_enc), ("W_dec", dictionary.W_dec), ("b_dec", dictionary.b_dec)):
        _require(tensors[name], parameter.shape, name)
        parameter.data = tensors[name].to(dtype)
    _require(tensors["W_enc"], dictionary.W_enc.shape, "W_enc")
    dictionary.encoder.data = tensors["W_enc"].T.contiguous().to(dtype)
    _require_finite(dictionary)
    if activation.has_threshold and cfg["threshold"] is None and "probe.x" in tensors:
        raise FormatError(f"a {activation.name} dictionary needs a threshold, and cfg.json has none; restore it")
    if cfg["threshold"] is not None:
        dictionary.threshold.fill_(cfg["threshold"])
    return dictionary


def _require_finite(dictionary: Dictionary) -> None:
    for name, weights in dictionary.named_parameters():
        require_finite(weights.detach(), f"dictionary weight {name}")


def _require(tensor: Tensor, shape: torch.Size, name: str) -> None:
    if tensor.shape != shape:
        raise FormatError(f"{name} has shape {list(tensor.shape)}; cfg.json says {list(shape)}")


def _probe_input(dictionary: Dictionary) -> Tensor:
    """Rows around `b_dec` (or 0) that are large enough to activate latents: sums of a few encoder directions."""
    generator = torch_generator(0, "dictionary", "probe")
    chosen = torch.randint(dictionary.n_latents, (_PROBE_ROWS, 4), generator=generator)
    rows = dictionary.encoder.detach().float().cpu()[chosen]
    size = 1.0 if math.isnan(float(dictionary.threshold)) else max(1.0, 2 * abs(float(dictionary.threshold)))
    x = size * (rows * (0.5 + torch.rand(_PROBE_ROWS, 4, 1, generator=generator))).sum(1)
    return x + dictionary.b_dec.detach().float().cpu() if dictionary.subtract_b_dec else x


@torch.no_grad()
def _outputs(dictionary: Dictionary, x: Tensor) -> Tensor:
    was_training = dictionary.training
    dictionary.eval()
    try:
        return dictionary.reconstruct(x.to(dictionary.encoder.device)).float().cpu()
    finally:
        dictionary.train(was_training)


def _verify(dictionary: Dictionary, tensors: dict[str, Tensor], folder: Path) -> None:
    if "probe.x" in tensors:
        expected = tensors["probe.x_hat"]
        found = _outputs(dictionary, tensors["probe.x"])
        error = (found - expected).norm(dim=1) / expected.norm(dim=1).clamp_min(1e-30)
        # a latent within rounding of the threshold may flip on another machine; a wrong layout breaks every row
        n_wrong = int((~(error <= _TOLERANCE)).sum())  # NaN is wrong too
        if n_wrong > 1:
            raise FormatError(
                f"{folder}: {n_wrong} of {len(error)} stored probe outputs differ (worst relative error "
                f"{float(error.max()):.2g}); weights and settings do not belong together"
            )
    n_zero = int((dictionary.W_dec.detach().norm(dim=1) == 0).sum())
    if n_zero:
        warnings.warn(f"{folder}: {n_zero} decoder rows have norm 0; those latents write nothing", stacklevel=4)
