"""What must stay a number, and what must be refused, at the edges of training and of the files."""

from __future__ import annotations

import math

import pytest
import torch

from hooke.base.errors import ConfigError, DataError, FormatError
from hooke.dictionaries import BatchTopK, Dictionary, MultiTopK, Objective, TopK, TrainConfig, train


def rows(n, seed=0):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("last", [rows(1), torch.ones(5, 8), torch.zeros(3, 8)])
@pytest.mark.parametrize("ends_early", [True, False])
def test_a_batch_without_variance_leaves_numbers(last, ends_early):
    made = Dictionary(8, 16, activation=TopK(k=2))
    batches = [rows(64, i) for i in range(4)] + [last]
    n_tokens = 10_000 if ends_early else 64 * 4 + len(last)
    result = train(made, batches, objective=Objective(), config=TrainConfig(n_tokens, sample_tokens=64, log_every=2))
    assert result.ended_early == ends_early
    assert all(bool(torch.isfinite(p).all()) for p in made.parameters())
    assert math.isfinite(result.metrics["loss"]) and result.metrics["loss"] < 100
    assert result.metrics["tokens"] == 64 * 4 + len(last)


def test_weights_that_are_not_numbers_are_neither_written_nor_read(tmp_path):
    made = Dictionary(8, 16, activation=TopK(k=2))
    made.save(tmp_path / "good")
    with torch.no_grad():
        made.W_dec[3, 1] = math.nan
    with pytest.raises(DataError, match="W_dec"):
        made.save(tmp_path / "bad")
    assert not (tmp_path / "bad").exists()
    import json

    from safetensors.torch import load_file, save_file

    from hooke.base.files import sha256_file

    cfg = json.loads((tmp_path / "good" / "cfg.json").read_text())
    weights = tmp_path / "good" / cfg["weights"]["file"]
    tensors = load_file(weights)
    tensors["W_dec"][0, 0] = math.nan
    save_file(tensors, weights)
    cfg["weights"]["sha256"] = sha256_file(weights)
    (tmp_path / "good" / "cfg.json").write_text(json.dumps(cfg))
    with pytest.raises(FormatError, match="W_dec"):
        Dictionary.load(tmp_path / "good")


def test_going_on_from_rows_of_another_norm_keeps_the_function():
    made = Dictionary(8, 16, activation=TopK(k=2), seed=1)
    x = rows(256)
    with torch.no_grad():
        made.b_dec.fill_(0.1)
        made.W_dec.mul_(2.0)
        made.encoder.div_(2.0)
    before = made.reconstruct(x).detach().clone()
    still = TrainConfig(256, learning_rate=1e-12, sample_tokens=256)
    train(made, [x], objective=Objective(), config=still)
    torch.testing.assert_close(made.reconstruct(x), before, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(made.W_dec.norm(dim=1), torch.ones(16))
    with torch.no_grad():
        made.W_dec[0].mul_(3.0)
    with pytest.raises(ConfigError, match="would change which are active"):
        train(made, [x], objective=Objective(), config=still)


def test_a_fraction_of_a_latent_a_row():
    made = Dictionary(8, 16, activation=BatchTopK(k=0.25))
    made.train()
    assert int(made.encode(rows(3)).l0().sum()) == 0  # floor(3 * 0.25) = 0
    assert int(made.encode(rows(8)).l0().sum()) == 2
    with pytest.raises(ConfigError, match="at least 1"):
        MultiTopK(factor=0.1)
