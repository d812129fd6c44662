from __future__ import annotations

import numpy as np
import pytest
import torch

from hooke.base.errors import DataError
from hooke.features.similar import similar


def test_equals_brute_force_over_all_blocks():
    decoder = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))  # more than one block
    decoder[19_999] = 3 * decoder[5]
    found = similar(decoder, 5, n=6)
    unit = (decoder / decoder.norm(dim=1, keepdim=True)).numpy()
    cosines = unit @ unit[5]
    cosines[5] = -2
    assert found.latents[0] == 19_999 and found.cosines[0] == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(found.cosines, np.sort(cosines)[::-1][:6], atol=1e-6)


def test_cosines_are_signed():
    assert similar(torch.tensor([[1.0, 0], [-1, 0], [0, 1]]), 0).latents.tolist() == [2, 1]


def test_rows_without_a_direction_have_no_relatives():
    decoder = torch.tensor([[1.0, 0], [0, 0], [1, 1]])
    assert similar(decoder, 0).latents.tolist() == [2]
    assert len(similar(decoder, 1).latents) == 0


def test_no_such_latent():
    with pytest.raises(DataError):
        similar(torch.ones(3, 2), 3)
