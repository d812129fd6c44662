"""AuxK in closed form, and settings out of range."""

from __future__ import annotations

import pytest
import torch

from hooke.base.errors import ConfigError
from hooke.dictionaries import AuxK, Dictionary, MultiTopK, Objective, TopK
from hooke.dictionaries.objectives import auxiliary_loss


def exact_dictionary() -> Dictionary:
    """Latent i reads and writes coordinate i, so dead latents rebuild any positive residual of the input."""
    dictionary = Dictionary(4, 4, activation=TopK(1)).requires_grad_(False)
    dictionary.encoder.copy_(torch.eye(4))
    dictionary.W_dec.copy_(torch.eye(4))
    return dictionary


def test_zero_when_the_residual_is_rebuilt_and_one_for_its_mean():
    dictionary, x = exact_dictionary(), torch.rand(10, 4)
    loss, unrevivable = auxiliary_loss(dictionary, x, x, torch.arange(4), 4)
    assert (float(loss), float(unrevivable)) == (0.0, 0.0)
    residual = x - x.mean(0)  # its mean is 0, which is what silent latents write
    loss, unrevivable = auxiliary_loss(dictionary, -x, residual, torch.arange(4), 4)
    assert float(loss) == pytest.approx(1.0, abs=1e-6)
    assert float(unrevivable) == 4.0  # all pre-activations negative: reported, since no gradient reaches them


def test_only_the_k_largest_dead_latents_are_used():
    dictionary, x = exact_dictionary(), torch.tensor([[4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0]])
    loss, _ = auxiliary_loss(dictionary, x, x, torch.arange(4), 2)
    kept = torch.tensor([[4.0, 3.0, 0, 0], [0, 0, 3.0, 4.0]])
    assert float(loss) == pytest.approx(float((x - kept).square().sum() / (x - x.mean(0)).square().sum()))


def test_constant_residual_gives_zero_not_nan():
    loss, _ = auxiliary_loss(exact_dictionary(), torch.rand(5, 4), torch.ones(5, 4), torch.arange(4), 4)
    assert float(loss) == 0.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: AuxK(coefficient=-1.0),
        lambda: AuxK(k=0),
        lambda: MultiTopK(factor=0.0),
        lambda: MultiTopK(coefficient=-0.1),
    ],
)
def test_settings_out_of_range(make):
    with pytest.raises(ConfigError):
        make()


def test_unknown_reconstruction():
    with pytest.raises(Exception, match="reconstruction"):
        Objective("l7")
