"""Experiments: what is kept replays, and a difference is said."""

from __future__ import annotations

import json
import math

import pytest
import torch
from conftest_model import random_model

from hooke.base.errors import ConfigError, DataError, FormatError, SiteError
from hooke.model.edits import Ablate, Add, Call, Mask
from hooke.model.experiment import Experiment, Outcome
from hooke.model.metrics import KL, LogitDifference
from hooke.model.tokens import Tokens

SAME = ["abcdef", "ghijkl", "mnopqr"]
SETS = {
    "steered": [Add("resid_post.1", torch.ones(32), scale=0.5, positions="last")],
    "blind": [Mask("scores.1", [("last", 0)]), Ablate("mlp_out.2", positions=[0, -1])],
    "other row": [Ablate("z.1.2", "resample")],
}
METRIC = LogitDifference([5, 6, 7], 9)


@pytest.fixture(scope="module")
def kept() -> Experiment:
    return Experiment("unnamed", SAME, SETS, METRIC).kept(random_model("gpt2"))


def test_replay_equals_one_run_for_each_edit_set(kept):
    model = random_model("gpt2")
    outcome = kept.replay(model)
    by_hand = torch.stack([METRIC(model.run(SAME, edits=edits)) for edits in SETS.values()])
    torch.testing.assert_close(outcome.values, by_hand, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outcome.baseline, METRIC(model.run(SAME)), atol=1e-5, rtol=1e-5)
    assert outcome.notes == ()


def test_what_is_read_replays_bit_for_bit(kept, tmp_path):
    model = random_model("gpt2")
    kept.save(tmp_path / "e.json")
    read = Experiment.load(tmp_path / "e.json")
    outcome = read.replay(model)
    assert torch.equal(outcome.values, kept.expected.values)
    assert torch.equal(outcome.baseline, kept.expected.baseline)
    assert read.difference(outcome) == 0.0
    assert (read.model, read.inputs, list(read.edit_sets)) == ("unnamed", SAME, list(SETS))
    document = json.loads((tmp_path / "e.json").read_text())
    assert document["metric"] == {
        "type": "LogitDifference",
        "answers": [5, 6, 7],
        "wrongs": 9,
    }


def test_tokens_with_padding_and_names_are_kept(tmp_path):
    model = random_model("gpt2")
    plain = model.tokens(["ab", "cdefgh"], padding_side="left")
    tokens = Tokens(plain.ids, plain.mask, plain.keep, {"subject": torch.tensor([1, 2])})
    sets = {"one": [Ablate("resid_post.1", positions="subject")]}
    reference = model.run(tokens, edits=[Ablate("mlp_out.0")])
    made = Experiment("unnamed", tokens, sets, KL.from_run(reference)).kept(model)
    made.save(tmp_path / "e.json")
    read = Experiment.load(tmp_path / "e.json")
    assert isinstance(read.inputs, Tokens)
    assert read.inputs.names["subject"].tolist() == [1, 2]
    assert read.difference(read.replay(model)) == 0.0
    assert (made.expected.values > 0).all()


def test_another_model_is_noted_and_differs(kept):
    other = random_model("gpt2-scaled")
    outcome = kept.replay(other)
    assert "weights" in " ".join(outcome.notes)
    assert kept.difference(outcome) > 1e-3
    double = kept.replay(random_model("gpt2", torch.float64))
    assert "made in float32, run in float64" in double.notes
    assert kept.difference(double) < 1e-4


def test_differences_are_relative_and_nan_must_stay_nan():
    values, baseline = torch.tensor([[1.0, -4.0]]), torch.tensor([2.0, math.nan])
    made = Experiment("m", ["a"], SETS, METRIC, Outcome(values, baseline))
    assert made.difference(Outcome(values, baseline)) == 0.0
    assert made.difference(Outcome(values + 1, baseline)) == pytest.approx(0.25)
    assert made.difference(Outcome(values, torch.tensor([2.0, 2.0]))) == math.inf
    assert Experiment("m", ["a"], SETS, METRIC).difference(Outcome(values, baseline)) is None
    with pytest.raises(FormatError, match="the expected numbers have shapes"):
        made.difference(Outcome(torch.ones(3, 2), baseline))


def test_what_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="at least one edit set"):
        Experiment("m", ["a"], {}, METRIC)
    with pytest.raises(DataError, match="texts in a list"):
        Experiment("m", "abc", SETS, METRIC)
    with pytest.raises(ConfigError, match="'float33' is no precision"):
        Experiment("m", ["abc"], SETS, METRIC, dtype="float33")
    with pytest.raises(DataError, match="holds a function"):
        Experiment("m", ["a"], {"f": [Call("z.1", lambda x: x)]}, METRIC).save(tmp_path / "e.json")
    with pytest.raises(SiteError, match="layer 9"):
        Experiment("m", SAME, {"f": [Ablate("z.9")]}, METRIC).replay(random_model("gpt2"))
    (tmp_path / "e.json").write_text('{"format": "hooke.experiment", "version": 1, "model": "m"}')
    with pytest.raises(FormatError, match="e.json lacks a field"):
        Experiment.load(tmp_path / "e.json")
