"""From a model to a dictionary: settings are checked first, a killed run goes on, a finished one is opened."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import hooke
from hooke.base.errors import ConfigError, SiteError
from hooke.base.progress import RecordingSink
from hooke.data import corpora
from hooke.dictionaries import BatchTopK, Dictionary, TopK, TrainConfig, train_dictionary
from hooke.runs import RunFolder

TEXTS = corpora.texts([f"def f{i}(x):\n    return x + {i}\n" * 8 for i in range(12)], "tiny")


@pytest.fixture(scope="module")
def model():
    return hooke.load("hooke/stdlib")


def make(model, **options) -> Dictionary:
    settings = {
        "reads": "resid_post.0",
        "activation": BatchTopK(4),
        "n_latents": 512,
        "corpus": TEXTS,
        "n_tokens": 1536,
        "batch_size": 128,
        "pool_rows": 512,
        "context": 64,
        "config": TrainConfig(1, log_every=2, sample_tokens=256),
    }
    return train_dictionary(model, **(settings | options))


class Killed(Exception):
    pass


class KilledAt(RecordingSink):
    def metrics(self, values, step) -> None:
        super().metrics(values, step)
        if step == 8:
            raise Killed


def test_run_folder_resume_and_result(model, tmp_path):
    expected = make(model)
    with pytest.raises(Killed):
        make(model, run=tmp_path / "run", sink=KilledAt())
    assert RunFolder.open(tmp_path / "run").info.status == "failed"
    resumed = make(model, run=tmp_path / "run")
    for name, tensor in expected.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    folder = RunFolder.open(tmp_path / "run")
    assert folder.info.status == "finished"
    assert folder.verify() >= 1
    assert [row.step for row in folder.metrics().rows] == [2, 4, 6, 8, 10, 12]  # each once, in spite of the kill
    opened = make(model, run=tmp_path / "run")
    assert torch.equal(opened.W_dec, resumed.W_dec)
    assert torch.equal(Dictionary.load(folder.file("dictionary")).W_dec, resumed.W_dec)
    with pytest.raises(ConfigError, match="other settings"):
        make(model, run=tmp_path / "run", seed=1)
    with pytest.raises(ConfigError, match="already holds a run"):
        make(model, run=tmp_path / "run", resume=False)


def test_transcoder_and_heads(model):
    made = make(model, reads="mlp_in.1", writes="mlp_out.1", activation=TopK(4), n_tokens=256)
    assert (str(made.reads), str(made.writes), made.subtract_b_dec) == ("mlp_in.1", "mlp_out.1", False)
    heads = make(model, reads="z.1", activation=TopK(4), n_tokens=256)
    assert heads.d_in == model.n_heads * model.d_head


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reads": "resid_post.99"}, SiteError, "99"),
        ({"activation": TopK(513)}, ConfigError, "only 512"),
        ({"pool_rows": 5}, ConfigError, "must hold a batch"),
        ({"n_tokens": 0}, ConfigError, "n_tokens"),
    ],
)
def test_bad_settings_before_the_work(model, options, error, words):
    with pytest.raises(error, match=words):
        make(model, **options)


def test_config_tokens_are_replaced(model):
    sink = RecordingSink()
    make(model, n_tokens=300, sink=sink)
    assert sink.of("progress")[-1][2] == 300
    assert dataclasses.replace(TrainConfig(1), n_tokens=5).n_tokens == 5
