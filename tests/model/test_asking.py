"""What people ask for: positions, names and inputs that look right and are not, and names that should work."""

from __future__ import annotations

import dataclasses
import inspect

import pytest
import torch
from conftest_model import TEXTS, random_model

from hooke.base.errors import ConfigError, DataError, FormatError, ModelError
from hooke.model.edits import Ablate, Add, Mask, Place, Scale, Set, Splice, expand_each
from hooke.model.experiment import Experiment
from hooke.model.load import load
from hooke.model.metrics import Logit, Probability
from hooke.model.sites import Site
from hooke.model.tokens import Tokens

TEXT = "hello"
D = 32


@pytest.fixture
def model():
    return random_model("llama-gqa")


@pytest.fixture
def never_runs(model):
    """The model, which must not have run by the end of the test."""
    ran = []
    handle = model.hf.register_forward_pre_hook(lambda module, args: ran.append(1))
    yield model
    handle.remove()
    assert not ran


AT = [
    ("kept", "'kept' is not known; use 'last' or ints"),
    ("lst", "'lst' is not known; did you mean 'last'"),
    ("each", "expand_each"),
    (torch.tensor([0, 1]), r"a torch.int64 tensor of shape \(2,\); expected an int, ints"),
]


@pytest.mark.parametrize(("at", "says"), AT, ids=lambda value: str(value)[:10])
def test_what_cannot_be_kept_of_a_capture_is_refused(never_runs, at, says):
    with pytest.raises(ConfigError, match=says):
        never_runs.run(TEXT, capture="resid_post.1", at=at)
    with pytest.raises(ConfigError, match=says):
        never_runs.plan_sweep(TEXT, [Scale("resid_post.1", 2.0)], Logit(5, positions=at))


@pytest.mark.parametrize("positions", [True, [True, False], (0, True)], ids=str)
def test_a_mask_as_a_list_does_not_pass_for_positions(never_runs, positions):
    never_runs.tokens(TEXT).columns([1])  # what is remembered of 1 is no answer for True
    with pytest.raises(DataError, match=r"Scale at resid_post.1: position True is of type bool; .* Bool tensor"):
        never_runs.run(TEXT, edits=[Scale("resid_post.1", 0.0, positions=positions)])
    with pytest.raises(DataError, match="capture: position True"):
        never_runs.run(TEXT, capture="resid_post.1", at=positions)


def test_remembered_positions_do_not_answer_for_a_bool(model):
    tokens = model.tokens(TEXT)
    tokens.columns([1]), tokens.at([1])
    for ask in (tokens.columns, tokens.at):
        with pytest.raises(DataError, match="position True"):
            ask([True])


def test_a_position_beyond_a_row_names_the_edit(never_runs):
    with pytest.raises(DataError, match="Scale at resid_post.1: position 99 is beyond row 0, which has 6 tokens"):
        never_runs.run(TEXT, edits=[Scale("resid_post.1", 0.0, positions=99)])


@pytest.mark.parametrize("places", [torch.tensor([1]), torch.tensor([1, 2, 3]), torch.tensor([0.5, 1.0]), [1, 2]])
def test_named_positions_are_one_for_each_row(model, places):
    tokens = model.tokens(["hello", "abc"])
    tokens.names["subject"] = places  # past the annotations, as in a user's own script
    with pytest.raises(DataError, match=r"name 'subject' has positions .*; expected an Int tensor of shape \(2,\)"):
        tokens.named("subject")


def test_one_edit_is_a_list_of_one(model):
    edit = Ablate("z.1.2")
    expected = model.run(TEXTS, edits=[edit])
    assert torch.equal(model.run(TEXTS, edits=edit).logits, expected.logits)
    assert not torch.equal(model.run(TEXTS).logits, expected.logits)
    one, listed = (model.generate(TEXT, edits=edits, max_new_tokens=4).ids for edits in (edit, [edit]))
    assert torch.equal(one, listed)


def test_layers_of_a_transformer_lens_name_may_be_a_pattern(model):
    found = model.run(TEXT, capture="blocks.*.hook_resid_post")
    assert [str(site) for site in found.acts] == ["resid_post.0", "resid_post.1", "resid_post.2"]


def test_gradients_answer_to_the_names_they_were_asked_by(model):
    names = ["resid_post.-1", "model.layers.1.mlp.output", "blocks.0.attn.hook_z"]
    found = model.gradients(TEXT, Logit(5), names)
    for name, site in zip(names, ("resid_post.2", "mlp_out.1", "z.0"), strict=True):
        assert found[name] is found[site]
        assert found.run[name] is found.run[site]
    one = model.gradients(TEXT, Logit(5), names[0])
    assert torch.equal(one[names[0]], found[names[0]])


# Annotations would refuse the next three before the library does; a user's own script has none.


@pytest.mark.parametrize("ids", [torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool)])
def test_ids_are_whole_numbers(ids):
    unchecked = inspect.unwrap(Tokens.from_ids.__func__)
    with pytest.raises(DataError, match=r"token ids have dtype torch.\w+; expected whole numbers"):
        unchecked(Tokens, ids)


def test_an_edge_is_a_pair(never_runs):
    edit = Mask("scores.1", [(3, 1)])
    object.__setattr__(edit, "edges", ((3, 1, 0),))
    with pytest.raises(DataError, match=r"Mask at scores.1: edge \(3, 1, 0\) is no pair \(query, key\)"):
        edit.check(Place(Site("scores", 1), None, 4))


def test_a_dictionary_reconstructs(never_runs):
    edit = Splice.__new__(Splice)
    fields = {"site": "resid_post.1", "dictionary": object(), "error": "drop", "positions": None}
    for name, value in (fields | {"latents": {}, "by": "set", "folder": None}).items():
        object.__setattr__(edit, name, value)
    with pytest.raises(ConfigError, match="object is no dictionary: it has no reconstruct"):
        never_runs.run(TEXT, edits=[edit])


def test_an_experiment_takes_one_edit_as_a_set(model, tmp_path):
    one = Experiment(model.name, [TEXT], {"cut": Ablate("z.1.2")}, Logit(5))
    listed = Experiment(model.name, [TEXT], {"cut": [Ablate("z.1.2")]}, Logit(5))
    assert torch.equal(one.replay(model).values, listed.replay(model).values)
    one.save(tmp_path / "one.json")
    assert len(Experiment.load(tmp_path / "one.json").edit_sets["cut"]) == 1


def test_a_device_that_is_not_there_is_refused_with_its_name():
    with pytest.raises(ModelError, match="device 'meta2' cannot be used"):
        load("hooke/stdlib", device="meta2")


def test_a_misspelt_weight_names_the_nearest(model):
    with pytest.raises(AttributeError, match="no attribute 'W_QQ'; did you mean 'W_Q'"):
        _ = model.weights.W_QQ
    assert not hasattr(model.weights, "nothing_like_it")


def test_each_of_a_sweep_is_made_by_expand_each(model):
    tokens = model.tokens(TEXT)
    edit = Add("resid_post.0", torch.ones(D), positions="each")
    with pytest.raises(ConfigError, match=r"edit set 0: .*hooke.model.edits.expand_each\(edits, tokens\)"):
        model.plan_sweep(tokens, [edit], Logit(5))
    assert model.sweep(tokens, expand_each([edit], tokens), Logit(5)).values.shape == (tokens.shape[1], 1)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("positions", ["last", "subject"])
def test_what_was_kept_at_a_place_can_be_put_back_at_it(model, positions, side):
    names = {"subject": torch.tensor([1, -2, 3])}
    tokens = dataclasses.replace(model.tokens(TEXTS, padding_side=side), names=names)
    whole = model.run(tokens, capture="resid_post.1")
    kept = model.run(tokens, capture="resid_post.1", at=positions)["resid_post.1"]
    other = kept.flip(0) + 1.0  # a value of its own for every row
    column = tokens.columns([-1]) if positions == "last" else tokens.named("subject")
    by_hand = whole["resid_post.1"].clone()
    by_hand[torch.arange(len(tokens)), column[:, 0]] = other[:, 0]
    edit = Set("resid_post.1", other, positions=positions)
    expected = model.run(tokens, edits=[Set("resid_post.1", by_hand)])
    found = model.run(tokens, edits=[edit])
    torch.testing.assert_close(found.logits[tokens.mask], expected.logits[tokens.mask], rtol=0, atol=1e-6)
    assert (found.logits - whole.logits)[tokens.mask].abs().max() > 1e-3
    swept = model.sweep(tokens, [edit, edit], Logit(5, positions=positions))
    torch.testing.assert_close(swept.values[1], Logit(5, positions=positions)(found), rtol=0, atol=1e-5)


def test_a_sweep_goes_on_only_with_its_own_metric(model, tmp_path):
    file, sets = tmp_path / "sweep.safetensors", [Ablate("z.1")]
    tokens = dataclasses.replace(model.tokens(TEXT), names={"subject": torch.tensor([2])})
    elsewhere = dataclasses.replace(tokens, names={"subject": torch.tensor([4])})
    metric = Logit(5, positions="subject")
    done = model.sweep(tokens, sets, metric, resume=file)
    assert torch.equal(model.sweep(tokens, sets, metric, resume=file).values, done.values)
    for inputs, other in ((tokens, Probability(5, positions="subject")), (elsewhere, metric)):
        with pytest.raises(FormatError, match="belongs to another sweep"):
            model.sweep(inputs, sets, other, resume=file)
    with pytest.raises(ConfigError, match="a sweep with a function as metric cannot be resumed"):
        model.sweep(TEXT, sets, lambda run: run.logits[:, -1, 5], resume=tmp_path / "other.safetensors")


def test_a_metric_may_say_true_or_false(model):
    likeliest = int(model.run(TEXT).logits[0, -1].argmax())
    swept = model.sweep(TEXT, [Ablate("resid_post.2")], lambda run: run.logits[:, -1].argmax(-1) == likeliest)
    assert swept.baseline.tolist() == [1.0]
    assert swept.change.tolist() == [[-1.0]]
