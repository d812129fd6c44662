"""Sweeps at their edges: rows that join one by one, metrics that no row reaches, masks at padding, every toy."""

from __future__ import annotations

import pytest
import torch
from conftest_model import TEXTS, random_model

from hooke.model.edits import Add, Freeze, Scale, Set
from hooke.model.metrics import LogitDifference
from hooke.model.model import Model
from hooke.model.toy.make import toy

METRIC = LogitDifference(5, 8)


def check(model: Model, tokens, sets, metric=METRIC, **options) -> None:
    expected = torch.stack([metric(model.run(tokens, edits=edits)) for edits in sets])
    found = model.sweep(tokens, sets, metric, **options)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found.baseline, metric(model.run(tokens)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["gptj", "bloom", "falcon", "gpt_neo"])
def test_one_row_may_join_before_all_others(family):
    """The block sees one row while others are still to come: it is not the one row of position embeddings."""
    model = random_model(family, torch.float64)
    check(model, model.tokens(TEXTS[0]), [[Scale("z.0", 0.5)], [Scale("z.1", 0.2)], [Scale("resid_pre.2", 0.3)]])


@pytest.mark.parametrize("memory", [None, 1])
def test_rows_that_the_metric_does_not_reach(memory):
    model = random_model("llama-gqa", torch.float64)
    sets = [[Scale(f"{name}.2", 0.3, positions=[3])] for name in ("resid_pre", "z", "mlp_out")]
    metric = LogitDifference(5, 8, [0, 2])
    tokens = model.tokens(TEXTS)
    check(model, tokens, sets, metric, memory=memory)
    found = model.sweep(tokens, sets, metric, memory=memory)
    assert torch.equal(found.change, torch.zeros_like(found.change))


@pytest.mark.parametrize("causal", [True, False])
def test_a_mask_may_be_true_at_padding(causal):
    model = toy(causal=causal)
    model.hf.double()
    tokens = model.batch([[1, 2, 3, 4, 5, 6], [3, 4], [5, 6, 7]], padding_side="left")
    everywhere = torch.ones_like(tokens.mask)
    check(model, tokens, [[Scale(f"{name}.1", 3.0, positions=everywhere)] for name in ("resid_pre", "v", "mlp_out")])


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"attention_only": True, "norm": "none"},
        {"parallel": True, "positions": "rotary", "n_kv_heads": 2},
        {"positions": "shortformer", "d_head": 5, "norm": "rms"},
        {"positions": "sinusoidal", "causal": False, "gated": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("side", ["left", "right"])
def test_toys(switches, side):
    model = toy(n_layers=3, **switches)
    model.hf.double()
    tokens = model.batch([[1, 2, 3, 4, 5, 6], [3, 4], [5]], padding_side=side)
    names = [str(info.site) for info in model.sites() if info.site.layer is not None]
    sets = [[Scale(name, 1.5, positions=place)] for name in names for place in (None, 0, "last")]
    plan = model.plan_sweep(tokens, sets, METRIC)
    assert not plan.whole
    check(model, tokens, sets)


@pytest.mark.parametrize("edit", [Set, Add])
def test_values_follow_the_order_of_positions_that_name_the_whole_prompt(edit):
    model = random_model("gpt2", torch.float64)
    values = torch.randn(1, 3, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    one_each = [edit("resid_pre.1", values[0, i], positions=place) for i, place in enumerate((-1, 0, 1))]
    expected = model.run("ab", edits=one_each).logits  # three tokens with BOS
    assert torch.equal(model.run("ab", edits=[edit("resid_pre.1", values, positions=[-1, 0, 1])]).logits, expected)
    assert torch.equal(model.run("ab", edits=[edit("resid_pre.1", values[0], positions=[-1, 0, 1])]).logits, expected)


def test_what_is_frozen_is_of_the_whole_prompt_in_whatever_order_positions_are_named():
    model = random_model("gpt2", torch.float64)
    run = model.run("ab", capture="resid_pre.1")
    frozen = Freeze.from_run(run, positions=[2, 0, 1])
    changed = model.run("ab", edits=[Scale("resid_post.0", 3.0), frozen]).logits
    assert torch.equal(changed, run.logits)


def test_positions_in_no_order_carry_their_own_values():
    model = random_model("gpt2", torch.float64)
    tokens = model.tokens(TEXTS, padding_side="left")
    values = torch.randn(3, 4, model.d_model, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    places = [4, 0, -1, 1]  # no order in which going there and coming back is the same
    sets = [[edit("resid_pre.1", values, positions=places)] for edit in (Set, Add)]
    sets += [[Set("resid_pre.2", values[0], positions=places), Scale("z.0", 0.5)]]
    by_hand = [[Set("resid_pre.1", values[:, i : i + 1], positions=[p]) for i, p in enumerate(places)]]
    check(model, tokens, sets + by_hand)
    found = model.sweep(tokens, [sets[0], by_hand[0]], METRIC)
    torch.testing.assert_close(found.values[0], found.values[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", [None, 1])
@pytest.mark.parametrize("positions", [2, [0, 3, -1]])
def test_metrics_within_rows_of_one_length(positions, memory):
    """Without padding the kernels get no mask, and queries that are read must still not see later keys."""
    model = random_model("llama-gqa", torch.float64)
    sets = [[Scale(f"{name}.{n}", 0.3, positions=[1])] for name in ("resid_pre", "v", "z") for n in range(3)]
    check(model, model.tokens(["abcdef", "ghijkl"]), sets, LogitDifference(5, 8, positions), memory=memory)


@pytest.mark.parametrize("family", ["llama-gqa", "gptj", "bloom"])
def test_captures_around_a_sweep_see_nothing_of_it(family):
    model = random_model(family)
    alone = model.run("abcdef", capture=["resid_post.1", "pattern.1"])
    with model.capture("resid_post.1", "pattern.1") as acts:
        model.run("abcdef")
        model.sweep("abcdef", [[Scale("z.0", 0.0)], [Scale("scores.1", 0.5)]], METRIC)
    assert all(torch.equal(acts[site], alone.acts[site]) for site in alone.acts)
