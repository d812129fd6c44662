"""A training that was killed, however often and wherever, ends with the same weights bit for bit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hooke.base.errors import ConfigError, FormatError
from hooke.base.files import read_tensors
from hooke.base.progress import RecordingSink
from hooke.calibration import recipe_p
from hooke.dictionaries import BatchTopK, Checkpoints, Dictionary, Objective, TopK, TrainConfig, train
from hooke.dictionaries.checkpoints import read_checkpoint

BATCH = 64
PLANTED = recipe_p()


class PlainStream:
    """Batches without `state_dict`: they have to be read again up to the place."""

    def __iter__(self):
        return iter(PLANTED.batches(BATCH))


def run(folder: Path | None, *, steps=60, every=7, batches=None, sink=None, activation=None, **config):
    dictionary = Dictionary(32, 64, activation=activation or BatchTopK(2))
    result = train(
        dictionary,
        batches or PLANTED.batches(BATCH),
        objective=Objective("fvu"),
        config=TrainConfig(steps * BATCH, sample_tokens=BATCH, dead_after_tokens=320, log_every=5, **config),
        checkpoints=None if folder is None else Checkpoints(folder, every=every),
        sink=sink or RecordingSink(),
    )
    return dictionary, result


def same(a: Dictionary, b: Dictionary) -> bool:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in pairs)


class Stop(Exception):
    pass


class StopAt(RecordingSink):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def metrics(self, values, step) -> None:
        super().metrics(values, step)
        if step == self.step:
            raise Stop


@pytest.mark.parametrize("activation", [BatchTopK(2), TopK(2)], ids=["batchtopk", "topk"])
@pytest.mark.parametrize("make", [lambda: PLANTED.batches(BATCH), PlainStream], ids=["seeks", "rereads"])
def test_resume_in_one_process(tmp_path, activation, make):
    expected, whole = run(None, activation=activation)
    seen: dict[int, dict] = {}
    for stop in (5, 25, 40):
        sink = StopAt(stop)
        with pytest.raises(Stop):
            run(tmp_path, activation=activation, batches=make(), sink=sink)
        seen |= {step: values for values, step in sink.of("metrics")}
    sink = RecordingSink()
    dictionary, result = run(tmp_path, activation=activation, batches=make(), sink=sink)
    assert same(dictionary, expected)
    assert result.resumed_at == 35
    assert result.metrics == whole.metrics
    assert sink.of("metrics")[0] == (seen[40], 40)  # even the window of the report that the kill cut
    again, finished = run(tmp_path, activation=activation)
    assert same(again, expected)
    assert (finished.resumed_at, finished.metrics) == (60, whole.metrics)


CHILD = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_resume import run
dictionary, result = run(Path(sys.argv[1]), steps=120, every=3)
dictionary.save(Path(sys.argv[1]) / "final")
"""


def start(folder: Path) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(folder), str(Path(__file__).parent)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def kill_at(process: subprocess.Popen, folder: Path, step: int) -> None:
    """SIGKILL once the checkpoint of a step is there (or a moment later: also in the middle of writing one)."""
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if any(int(path.stem[5:]) >= step for path in folder.glob("step-*.safetensors")):
            time.sleep(random.random() * 0.01)
            break
        time.sleep(0.002)
    process.kill()
    process.communicate()


@pytest.mark.parametrize("n_kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_minus_nine(tmp_path, n_kills):
    expected, _ = run(None, steps=120)
    random.seed(0)
    steps = sorted(random.sample(range(3, 117), n_kills))
    for step in steps:
        kill_at(start(tmp_path), tmp_path, step)
    assert not (tmp_path / "final").exists()  # it was killed, not late
    process = start(tmp_path)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors.decode()
    assert same(Dictionary.load(tmp_path / "final"), expected)
    assert len(list(tmp_path.glob("step-*"))) == 2  # older ones were dropped


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    run(tmp_path, steps=20)
    with pytest.raises(ConfigError, match="config: saved"):
        run(tmp_path, steps=20, learning_rate=0.1)
    with pytest.raises(ConfigError, match="activation: saved"):
        run(tmp_path, steps=20, activation=TopK(3))
    with pytest.raises(ConfigError, match="already has checkpoints"):
        Checkpoints(tmp_path, resume=False).newest()


def test_a_damaged_checkpoint_is_named(tmp_path):
    run(tmp_path, steps=20)
    newest = Checkpoints(tmp_path).newest()
    assert newest is not None
    newest.write_bytes(newest.read_bytes()[:-9])
    with pytest.raises(FormatError, match=newest.name):
        run(tmp_path, steps=20)


def test_checkpoints_hold_what_they_were_given(tmp_path):
    state = {
        "a": torch.arange(3),
        "b": {"c": torch.tensor(2.5, dtype=torch.float64)},
        "d": [1, "x", None],
        "e": float("nan"),
    }
    back = read_checkpoint(Checkpoints(tmp_path).write(7, state))
    assert torch.equal(back["a"], state["a"])
    assert back["b"]["c"].shape == () and back["b"]["c"].dtype == torch.float64
    assert back["d"] == [1, "x", None]
    tensors, metadata = read_tensors(tmp_path / "step-0000000007.safetensors")
    assert metadata["format"] == "hooke.checkpoint.1"
    assert set(tensors) >= {"/a", "/b/c"}
    with pytest.raises(ConfigError, match="at least 1"):
        Checkpoints(tmp_path, every=0)
