"""Exact changes of form: the same function of `x`, written with other weights."""

from __future__ import annotations

import torch

from hooke.base.errors import ConfigError
from hooke.dictionaries.dictionary import Dictionary


@torch.no_grad()
def fold_input_scale_(dictionary: Dictionary, scale: float, output_scale: float | None = None) -> Dictionary:
    """Turn a dictionary trained on `x / scale` into one for `x`, in place: codes and outputs are `scale` times as
    large.

    Codes are in units of the output. With equal scales only biases and threshold change; if what is written has a
    scale of its own, encoder and threshold absorb the ratio.

    Args:
        scale: positive.
        output_scale: the scale of what is written; `scale` when `None`.

    Raises:
        ConfigError: for a scale that is not positive, or unequal scales where `b_dec` is subtracted from the input.
    """
    output_scale = scale if output_scale is None else output_scale
    if not (0 < scale < float("inf") and 0 < output_scale < float("inf")):
        raise ConfigError(f"scales are {scale} and {output_scale}; expected positive numbers")
    if dictionary.subtract_b_dec and scale != output_scale:
        raise ConfigError("a dictionary that subtracts b_dec from its input has one scale for input and output")
    if scale != output_scale:
        dictionary.encoder.mul_(output_scale / scale)
    dictionary.b_enc.mul_(output_scale)
    dictionary.b_dec.mul_(output_scale)
    dictionary.threshold.mul_(output_scale)
    return dictionary


@torch.no_grad()
def fold_pre_bias_(dictionary: Dictionary) -> Dictionary:
    """Move the subtraction of `b_dec` into the encoder bias, in place: `b_enc - b_dec @ W_enc`."""
    if dictionary.subtract_b_dec:
        dictionary.b_enc.sub_(dictionary.b_dec @ dictionary.W_enc)
        dictionary.subtract_b_dec = False
    return dictionary


@torch.no_grad()
def fold_decoder_norm_(dictionary: Dictionary) -> Dictionary:
    """Give every decoder row norm 1, in place, its norm going to the encoder row and bias.

    Raises:
        ConfigError: a row has norm 0, or the selection compares latents of different norms, so that it would change.
    """
    norm = dictionary.W_dec.norm(dim=1)
    if bool((norm == 0).any()):
        raise ConfigError(f"{int((norm == 0).sum())} decoder rows have norm 0 and cannot be given norm 1")
    spread = float(norm.max() / norm.min())
    if spread > 1 + 1e-4:
        raise ConfigError(
            f"{dictionary.activation.name} compares latents with one another; folding decoder norms that differ by a "
            f"factor of {spread:.3g} would change which are active"
        )
    dictionary.W_dec.div_(norm[:, None])
    dictionary.encoder.mul_(norm[:, None])
    dictionary.b_enc.mul_(norm)
    dictionary.threshold.mul_(float(norm.double().mean()))
    return dictionary
