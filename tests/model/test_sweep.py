"""Sweeps equal one edited forward pass for each edit set, whatever prefix was re-used."""

from __future__ import annotations

import pytest
import torch
from conftest_model import CONFIGS, TEXTS, random_model
from hypothesis import given, settings
from hypothesis import strategies as st

from hooke.base.errors import ConfigError, DataError, FormatError, SiteError
from hooke.base.progress import RecordingSink
from hooke.model.edits import Ablate, Add, Edit, Mask, Project, Scale, Set
from hooke.model.metrics import LogitDifference
from hooke.model.model import Model
from hooke.model.tokens import Tokens

METRIC = LogitDifference([5, 6, 7], [8, 9, 10])
PLAIN = [family for family in CONFIGS if family in ("gpt2", "llama-gqa", "gpt_neox", "qwen3")]


def one_by_one(model: Model, tokens, sets, metric) -> torch.Tensor:
    return torch.stack([metric(model.run(tokens, edits=edits)) for edits in sets])


def sets_of(model: Model, tokens: Tokens) -> list[list[Edit]]:
    """Edits at every kind of place of a middle and the last layer, single and together."""
    width = tokens.shape[1]
    seen = tokens.mask[:, None, None].to(model.dtype)  # what lies at padding is nobody's
    draw = torch.Generator().manual_seed(0)
    dtype, d = model.dtype, model.d_model

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=draw).to(dtype)

    sets: list[list[Edit]] = [[]]
    for n in range(1, model.n_layers):
        sets += [
            [Set(f"resid_pre.{n}", random(d), positions=[2])],
            [Set(f"resid_post.{n}", random(3, width, d))],
            [Ablate(f"z.{n}.1")],
            [Add(f"v.{n}.0", random(model.d_head), positions="last"), Scale("resid_pre.1", 1.1, positions=[1, 2])],
            [Scale("resid_pre.1", 0.5), Project("resid_post.0", random(d), positions=[3, -1])],
            [Scale(f"pattern.{n}.1", 0.5, positions=[3])],
            [Scale(f"scores.{n}", 0.5)],
            [Set(f"pattern.{n}", random(3, model.n_heads, width, width).softmax(-1).tril() * seen)],
            [Mask(f"scores.{n}.1", [(3, 1), (-1, 0)])],
        ]
        for info in model.sites():
            if info.site.layer == n and info.site.name not in ("scores", "pattern"):
                sets.append([Scale(info.site, 1.3, positions=[2, 3])])
    return [*sets, [Scale("embed", 1.2)], [Scale("logits", 0.5)]]


@pytest.mark.parametrize("side", ["left", "right"])
def test_every_site_equals_one_run_each(family, side):
    # A padding row that sees nothing is NaN in eager float64: transformers takes softmax in float32, where the mask's
    # lowest float64 is minus infinity.
    eager = random_model(family).hf.config._attn_implementation == "eager"
    model = random_model(family, torch.float32 if eager else torch.float64)
    tokens = model.tokens(TEXTS, padding_side=side)
    sets = sets_of(model, tokens)
    found = model.sweep(tokens, sets, METRIC)
    expected = one_by_one(model, tokens, sets, METRIC)
    torch.testing.assert_close(found.values, expected, rtol=0, atol=1e-5 if model.dtype == torch.float32 else 1e-12)
    torch.testing.assert_close(found.baseline, expected[0], rtol=0, atol=1e-5 if eager else 1e-12)
    assert (found.change.abs().amax(1) > 1e-6).sum() > len(sets) / 2  # the edits do something


@pytest.mark.parametrize("family", PLAIN)
def test_float32_to_1e_5(family):
    model = random_model(family)
    tokens = model.tokens(TEXTS)
    sets = sets_of(model, tokens)
    found = model.sweep(tokens, sets, METRIC)
    torch.testing.assert_close(found.values, one_by_one(model, tokens, sets, METRIC), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", PLAIN)
def test_any_function_of_a_run_is_a_metric(family):
    model = random_model(family, torch.float64)
    tokens = model.tokens(TEXTS, padding_side="left")
    sets = sets_of(model, tokens)

    def spread(run) -> torch.Tensor:
        return (run.logits.var(-1) * run.tokens.mask).sum(-1)

    found = model.sweep(tokens, sets, spread)
    torch.testing.assert_close(found.values, one_by_one(model, tokens, sets, spread), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("positions", ["last", 2, [0, 4, -1]])
def test_metrics_left_of_the_edit_read_the_clean_run(positions):
    model = random_model("llama-gqa", torch.float64)
    tokens = model.tokens(TEXTS)
    sets = [[Scale(f"resid_pre.{n}", 3.0, positions=[p])] for n in range(3) for p in range(5)]
    metric = LogitDifference([5, 6, 7], [8, 9, 10], positions)
    found = model.sweep(tokens, sets, metric)
    torch.testing.assert_close(found.values, one_by_one(model, tokens, sets, metric), rtol=0, atol=1e-12)
    if positions == 2:
        right = torch.tensor([p > 2 for _ in range(3) for p in range(5)])
        assert torch.equal(found.change[right], torch.zeros_like(found.change[right]))
        assert (found.change[~right].abs() > 1e-9).any()


places = st.one_of(st.none(), st.sampled_from(["last", "kept", "prompt"]), st.integers(-4, 3))
names = st.sampled_from(
    ["resid_pre", "q", "v", "z", "attn_out", "mlp_post", "mlp_out", "resid_post", "pattern", "mlp_in"]
)


@settings(max_examples=30, deadline=None)
@given(
    family=st.sampled_from(PLAIN),
    sets=st.lists(
        st.lists(st.tuples(names, st.integers(0, 2), st.floats(-2, 2, width=16), places), max_size=3),
        min_size=1,
        max_size=8,
    ),
    side=st.sampled_from(["left", "right"]),
    memory=st.sampled_from([None, 1, 200_000]),
)
def test_random_edit_sets(family, sets, side, memory):
    model = random_model(family, torch.float64)
    tokens = model.tokens(TEXTS, padding_side=side)
    built = [[Scale(f"{name}.{layer}", factor, positions=where) for name, layer, factor, where in own] for own in sets]
    found = model.sweep(tokens, built, METRIC, memory=memory)
    torch.testing.assert_close(found.values, one_by_one(model, tokens, built, METRIC), rtol=0, atol=1e-12)


def test_the_plan_says_what_it_costs():
    model = random_model("llama-gqa")
    tokens = model.tokens("0123456789abcde")  # 16 tokens with BOS
    sets = [[Scale(f"resid_pre.{n}", 0.0, positions=[p])] for n in range(3) for p in range(16)]
    plan = model.plan_sweep(tokens, sets, LogitDifference(5, 6))
    # Row (n, p) computes 16 - p tokens in 3 - n layers; the clean run 16 tokens in 3 layers.
    assert plan.token_layers == sum(range(1, 17)) * (3 + 2 + 1) + 16 * 3
    assert plan.token_layers_one_by_one == 16 * 3 * (1 + 48)
    assert "48 edit sets x 1 examples: 1 passes" in str(plan)
    assert "36.7%" in str(plan)


def test_the_packed_pass_computes_no_more_than_planned():
    """Counts the tokens that reach each block."""
    model = random_model("llama-gqa")
    tokens = model.tokens("0123456789abcde")
    sets = [[Scale(f"resid_pre.{n}", 0.0, positions=[p])] for n in range(3) for p in range(16)]
    plan = model.plan_sweep(tokens, sets, LogitDifference(5, 6))
    seen = 0

    def count(module, args, output) -> None:
        nonlocal seen
        seen += output.shape[0] * output.shape[1]

    handles = [model.hf.get_submodule(f"{model.layout.blocks}.{n}").register_forward_hook(count) for n in range(3)]
    list(plan.stream())
    for handle in handles:
        handle.remove()
    assert seen == plan.token_layers


def test_results_stream_in_order_and_chunks_do_not_matter():
    model = random_model("gpt2", torch.float64)
    sets = [[Scale(f"z.{n}.{h}", 0.0)] for n in range(3) for h in range(4)]
    whole = model.sweep(TEXTS, sets, METRIC)
    sink = RecordingSink()
    pieces = model.plan_sweep(TEXTS, sets, METRIC, memory=1)
    numbers = [chunk for chunk, _ in pieces.stream()]
    assert [n for chunk in numbers for n in chunk] == list(range(12))
    assert len(numbers) == 12
    torch.testing.assert_close(torch.cat([part for _, part in pieces.stream()]), whole.values, rtol=0, atol=1e-13)
    model.sweep(TEXTS, sets, METRIC, memory=1, sink=sink)
    assert [call.arguments[1] for call in sink.calls] == list(range(1, 13))


def test_a_stopped_sweep_goes_on_where_it_was(tmp_path, monkeypatch):
    model = random_model("gpt2", torch.float64)
    sets = [[Scale(f"z.{n}.{h}", 0.0)] for n in range(3) for h in range(4)]
    expected = model.sweep(TEXTS, sets, METRIC, memory=1).values
    file = tmp_path / "sweep.safetensors"

    class Stop(Exception):
        pass

    class Stopping(RecordingSink):
        def progress(self, name, done, total, unit="") -> None:
            super().progress(name, done, total, unit)
            if done == 5:
                raise Stop

    with pytest.raises(Stop):
        model.sweep(TEXTS, sets, METRIC, memory=1, resume=file, sink=Stopping())
    rest = RecordingSink()
    found = model.sweep(TEXTS, sets, METRIC, memory=1, resume=file, sink=rest)
    assert [call.arguments[1] for call in rest.calls] == list(range(6, 13))
    assert torch.equal(found.values, expected)
    for other in (sets[:-1], [*sets[:-1], [Scale("z.0.0", 0.5)]]):
        with pytest.raises(FormatError, match="belongs to another sweep"):
            model.sweep(TEXTS, other, METRIC, resume=file)
    with pytest.raises(FormatError, match="belongs to another sweep"):
        model.sweep(TEXTS, sets, LogitDifference([5, 6, 8], [8, 9, 10]), resume=file)


@pytest.mark.parametrize(
    ("sets", "error", "text"),
    [
        ([], ConfigError, "at least one edit set"),
        ([[], [Scale("resid_prr.0", 1.0)]], SiteError, "edit set 1.*resid_prr"),
        ([[Scale("z.0.9", 1.0)]], SiteError, "edit set 0.*head 9 is out of range"),
        ([[Scale("z.0", 1.0, positions=[99])]], DataError, "edit set 0.*position 99"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(sets, error, text):
    model = random_model("gpt2")
    ran = []
    handle = model.hf.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(error, match=text):
        model.sweep(TEXTS, sets, METRIC)
    handle.remove()
    assert not ran


def test_nothing_is_left_behind_and_outer_captures_see_nothing():
    model = random_model("llama-gqa")
    modules = list(model.hf.modules())

    def hooks() -> int:
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)

    def failing(run) -> torch.Tensor:
        raise RuntimeError("the metric failed")

    with pytest.raises(RuntimeError, match="the metric failed"):
        model.sweep(TEXTS, sets_of(model, model.tokens(TEXTS))[:30], failing)
    assert hooks() == 0
    alone = model.run(TEXTS, capture=["resid_post.1"])
    with model.capture("resid_post.1") as acts:
        model.run(TEXTS)
        model.sweep(TEXTS, [[Scale("z.0", 0.0)]], METRIC)
    assert torch.equal(acts[model.site("resid_post.1")], alone["resid_post.1"])


@pytest.mark.parametrize("family", ["gptj", "bloom", "falcon"])
def test_families_outside_the_registry_join_by_layer(family):
    model = random_model(family)
    plan = model.plan_sweep(TEXTS[0], [[Scale("z.2", 0.0)], [Scale("resid_pre.1", 0.0)]], LogitDifference(5, 6))
    n = len(model.tokens(TEXTS[0]).ids[0])
    assert f"by layer only: {family} models" in str(plan)
    assert plan.token_layers == n * (3 + 1 + 2)  # the clean run, then the layers from the edit on
