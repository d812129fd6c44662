from __future__ import annotations

import numpy as np
import pytest

from hooke.features.interest import interest, interpretable


@pytest.fixture
def planted(write):
    """Latent 0 fires on one token type, 1 on random tokens, 2 too rarely, 3 in one document, 4 everywhere, 5 never."""
    rng = np.random.default_rng(0)
    n = 20_000
    token_id = rng.integers(0, 50, n)
    dense = np.zeros((n, 6), dtype=np.float32)
    dense[token_id == 7, 0] = 2
    dense[rng.permutation(n)[:400], 1] = 2
    dense[[5, 6], 2] = 9
    dense[:100, 3] = 5
    dense[:, 4] = 1
    return write(dense, row_length=100, token_id=token_id, vocabulary=[f"t{i}" for i in range(50)])


def test_the_planted_detector_comes_first(planted):
    interests, concentrations = interest(planted)
    assert interests.argmax() == 0 and concentrations[0] == 1.0
    assert interests[0] > 3 * interests[1] > 0
    assert interests[2] == interests[3] == interests[5] == 0 and interests[4] < interests[1]
    assert np.isnan(concentrations[5])


def test_the_formula(planted):
    interests, concentrations = interest(planted)
    distance = np.log10(planted.density[0]) + 2.5
    assert interests[0] == pytest.approx(concentrations[0] * np.exp(-(distance**2) / 2))


def test_ranking_skips_what_does_not_qualify(planted):
    found = interpretable(planted, n=5)
    assert found[0].latent == 0 and {2, 3, 5}.isdisjoint(i.latent for i in found)
    strongest = [planted.top_token[i.latent] for i in found]
    assert len(set(strongest)) == len(strongest)
