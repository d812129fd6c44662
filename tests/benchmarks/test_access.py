"""The access benchmark's own sides: the floors are exact, the rows say what was measured and what was not."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from hooke.cli.bench import _load, benchmarks

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from access_parts import bench, floor, floor_parts, peers, plain, shapes, timing  # noqa: E402

EXACT = 1e-6  # float64 but for Llama's norms, which work in float32
WIDE = {"initializer_range": 0.4, "vocab_size": 60, "bos_token_id": None, "eos_token_id": None}
TINY = {
    "gpt2": shapes.Shape("tiny GPT-2", {"model_type": "gpt2", "n_layer": 4, "n_embd": 16, "n_head": 4, **WIDE}, (2, 6)),
    "llama": shapes.Shape(
        "tiny Llama",
        {
            "model_type": "llama",
            "num_hidden_layers": 4,
            "hidden_size": 16,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 24,
            "max_position_embeddings": 128,
            **WIDE,
        },
        (2, 6),
    ),
}


@pytest.fixture(scope="module", params=list(TINY))
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A tiny model in float64, its inputs, and what patches put in."""
    folder = shapes.write(TINY[request.param], tmp_path_factory.mktemp(request.param))
    hf, inputs = shapes.open_hf(folder).double(), shapes.read(folder)
    return hf, inputs, *plain.record(hf, inputs.corrupted)


@pytest.mark.parametrize("name", ["residual_wavefront", "residual_suffix", "residual_packed"])
def test_residual_floors_equal_one_patch_a_forward(tiny, name: str) -> None:
    hf, inputs, values, _ = tiny
    truth = plain.residual_loop(hf, inputs.clean, values, inputs.answer, inputs.wrong)
    found = getattr(floor, name)(floor_parts.parts_of(hf), inputs.clean, values, inputs.answer, inputs.wrong)
    assert truth.std() > 0.01  # the patches do something, each of them
    assert len(truth.unique()) == truth.numel()
    torch.testing.assert_close(found, truth, atol=EXACT, rtol=0)


def test_head_floor_equals_one_patch_a_forward(tiny) -> None:
    hf, inputs, _, z = tiny
    truth = plain.head_loop(hf, inputs.clean, z, inputs.answer, inputs.wrong)
    found = floor.head_wavefront(floor_parts.parts_of(hf), inputs.clean, z, inputs.answer, inputs.wrong)
    assert truth.std() > 0.01
    assert len(truth.unique()) == truth.numel()
    torch.testing.assert_close(found, truth, atol=EXACT, rtol=0)


def test_patching_in_the_clean_values_changes_nothing(tiny) -> None:
    hf, inputs, *_ = tiny
    values, z = plain.record(hf, inputs.clean)
    last = plain.forward(hf, inputs.clean[None])[0, -1]
    baseline = last[inputs.answer] - last[inputs.wrong]
    parts, metric = floor_parts.parts_of(hf), (inputs.answer, inputs.wrong)
    for found in (
        floor.residual_packed(parts, inputs.clean, values, *metric),
        floor.head_wavefront(parts, inputs.clean, z, *metric),
    ):
        torch.testing.assert_close(found, baseline.expand_as(found), atol=EXACT, rtol=0)


def test_attribution_by_hand_is_the_derivative(tiny) -> None:
    """Moving one head's z a little towards the corrupted run changes the metric by that share of its attribution."""
    hf, inputs, *_ = tiny
    ids, other = inputs.batch[:1], inputs.corrupted_batch[:1]
    effects = plain.attribution(hf, ids, other, inputs.answer, inputs.wrong)
    here, there = plain.record(hf, ids[0])[1], plain.record(hf, other[0])[1]
    step = 3e-3  # Llama's norms work in float32, whatever the weights are
    moved = plain.head_loop(hf, ids[0], here + step * (there - here), inputs.answer, inputs.wrong)
    back = plain.head_loop(hf, ids[0], here - step * (there - here), inputs.answer, inputs.wrong)
    torch.testing.assert_close((moved - back) / (2 * step), effects[:, 0], atol=2e-3, rtol=0)


def test_rows_of_both_shapes_without_peers(tmp_path: Path) -> None:
    """The command's own entry point, as `hooke bench` loads it; what was not measured says so."""
    found = benchmarks()
    assert "access" in found
    assert not [name for name in found if name.startswith("access_")]
    access = _load(found["access"])
    said: list[str] = []
    options = bench.Options(None, threads=1, turns=1, peer_turns=1, say=said.append)
    rows = access.main(list(TINY.values()), options=options, models=tmp_path)
    assert len(said) == 10
    assert len({row["name"] for row in rows}) == len(rows) == 38
    for row in rows:
        assert {"name", "ours", "against", "ratio", "spread", "turns", "target", "holds", "versions"} <= set(row)
        if "not measured" in row["name"]:
            assert "left out" in row["reason"]
            assert row["holds"] is None
            assert all(math.isnan(row[key]) for key in ("ours", "against", "ratio"))
        else:
            assert row["ratio"] > 0 < row["ours"]
            assert (row["holds"] is None) == math.isnan(row["target"])
    assert sum("not measured" in row["name"] for row in rows) == 18


def test_sides_take_turns_and_ratios_are_within_a_turn() -> None:
    order: list[str] = []
    times = {"a": iter([9.0, 1.0, 2.0, 6.0]), "b": iter([9.0, 2.0, 2.0, 3.0])}

    def side(name: str):
        return lambda: (order.append(name), next(times[name]))[1]

    turns = timing.take_turns({"a": side("a"), "b": side("b")}, 3)
    assert "".join(order) == "abbaabba"  # one turn to warm up
    row = turns.row("x", "a", "b", at_most=1.0)
    assert (row["ours"], row["against"], row["ratio"]) == (2000.0, 2000.0, 1.0)  # of 1/2, 2/2, 6/3
    assert row["spread"] == [0.75, 1.5]
    assert row["holds"] is True
    assert turns.row("x", "a", "b", at_least=1.1)["holds"] is False
    assert turns.row("x", "b", "a", at_most=0.5)["ratio"] == 1.0
    assert turns.row("x", "a", "b")["holds"] is None


def test_sides_that_disagree_are_refused() -> None:
    truth = torch.zeros(2, 2)
    bench.agree("same", truth + 1e-6, truth, 1e-5)
    for wrong in (truth + 1e-4, truth[0], None, truth / 0):
        with pytest.raises(AssertionError, match="away from what it should equal"):
            bench.agree("x", wrong, truth, 1e-5)


def test_a_peer_that_cannot_start_says_why(tmp_path: Path) -> None:
    """Here no peer is installed: the process answers with the reason, and is gone afterwards."""
    folder = shapes.write(TINY["gpt2"], tmp_path)
    log = tmp_path / "log"
    with pytest.raises(peers.PeerError, match="ModuleNotFoundError"):
        peers.Peer("nnsight", Path(sys.executable), folder, threads=1, clock="perf_counter", log=log)


def test_an_environment_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(peers.PeerError, match="belongs to somebody else"):
        peers.environment(tmp_path, lambda _: None)
