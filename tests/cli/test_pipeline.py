"""The commands on the built-in model, small: each leaves what the next one needs, and its numbers as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import socket
from pathlib import Path

import pytest

from hooke.cli.main import main
from hooke.runs.folder import RunFolder

N_LATENTS = 64


def run(*argv: str) -> tuple[dict, str]:
    """The JSON object of a command and what it said to people."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main([*argv, "--json"]) == 0, err.getvalue()
    assert out.getvalue().count("\n") == 1
    return json.loads(out.getvalue()), err.getvalue()


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, str]:
    folder = tmp_path_factory.mktemp("demo") / "run"
    sizes = f"--n-tokens 10000 --n-latents {N_LATENTS} --k 8 --score-tokens 1000 --index-tokens 2500".split()
    return (folder, *run("demo", "--no-serve", "--run", str(folder), *sizes))


def test_demo_has_its_numbers_and_controls(demo: tuple[Path, dict, str]) -> None:
    _, numbers, _ = demo
    assert {"l0", "fvu", "loss_recovered", "dead_share", "seconds", "peak_memory_gb", "run"} <= numbers.keys()
    assert {"random.fvu", "pca.fvu", "mean.fvu", "random.loss_recovered"} <= numbers.keys()
    assert numbers["site"] == "resid_post.2"
    assert 0 < numbers["fvu"] < 1.5
    assert 0.1 < numbers["peak_memory_gb"] < 3


def test_demo_shows_scores_latents_and_where_to_go(demo: tuple[Path, dict, str]) -> None:
    folder, numbers, said = demo
    assert "loss_recovered" in said
    assert [latent for latent in numbers["latents"] if f"latent {latent} " not in said] == []
    assert said.splitlines()[-2:] == [f"made  {folder}", f"next  hooke serve {folder} --open"]


def test_demo_leaves_a_finished_run_that_verifies(demo: tuple[Path, dict, str]) -> None:
    folder, numbers, _ = demo
    record = RunFolder.open(folder)
    assert record.info.status == "finished"
    assert record.info.results["fvu"] == numbers["fvu"]
    assert {artefact.name for artefact in record.info.artefacts} == {"dictionary", "index", "scores.json"}
    assert record.verify() == 3


def test_the_same_seed_gives_the_same_numbers(demo: tuple[Path, dict, str], tmp_path: Path) -> None:
    options = dict(RunFolder.open(demo[0]).info.config)
    words = [f"--{name.replace('_', '-')}={options[name]}" for name in ("n_tokens", "n_latents", "k")]
    words += [f"--score-tokens={options['score_tokens']}", f"--index-tokens={options['index_tokens']}"]
    again, _ = run("demo", "--no-serve", "--run", str(tmp_path / "again"), *words)
    changing = {"seconds", "peak_memory_gb", "run"}
    assert {k: v for k, v in again.items() if k not in changing} == {
        k: v for k, v in demo[1].items() if k not in changing
    }


def test_eval_and_features_take_the_run_folder(demo: tuple[Path, dict, str], tmp_path: Path) -> None:
    folder, numbers, _ = demo
    scores, said = run("eval", str(folder), "--n-tokens=1000", f"--run={tmp_path / 'eval'}")
    assert scores["fvu"] == pytest.approx(numbers["fvu"], rel=1e-6)
    assert {"pca.fvu", "random.loss_recovered", "kl_score"} <= scores.keys()
    assert "stdlib-heldout" in said
    saved = json.loads((tmp_path / "eval" / "scores.json").read_text())
    assert saved["scores"]["fvu"]["n"] == saved["n_tokens"]
    corpus = tmp_path / "texts.jsonl"
    corpus.write_text("\n".join(json.dumps({"text": f"def f{i}(self):\n    return {i}\n" * 8}) for i in range(20)))
    found, _ = run("features", str(folder), f"--corpus={corpus}", "--n-tokens=2000", f"--run={tmp_path / 'features'}")
    assert found["n_latents"] == N_LATENTS
    assert 1000 < found["n_tokens"] <= 2200
    assert (tmp_path / "features" / "index" / "manifest.json").is_file()


def test_train_makes_a_run_that_is_taken_up_again(tmp_path: Path) -> None:
    words = f"train --n-tokens 6000 --n-latents 32 --k 4 --batch-size 512 --run {tmp_path / 'run'}".split()
    first, said = run(*words)
    assert first["tokens"] >= 6000
    assert f"next  hooke eval {tmp_path / 'run'}" in said
    assert "made  " in said
    again, said = run(*words)
    assert again["fvu"] == first["fvu"] and again["run"] == first["run"]
    assert f"{tmp_path / 'run'} was finished already: nothing was trained; to train again, give another --run" in said
    assert f"next  hooke eval {tmp_path / 'run'}" in said and "made  " not in said


def test_generate_plain_and_steered(demo: tuple[Path, dict, str], tmp_path: Path) -> None:
    plain, _ = run("generate", "import ", "--max-new-tokens=8", f"--run={tmp_path / 'plain'}")
    words = ["--max-new-tokens=8", f"--dictionary={demo[0]}", "--latent=3"]
    still, _ = run("generate", "import ", *words, "--scale=0", f"--run={tmp_path / 'still'}")
    moved, said = run("generate", "import ", *words, "--scale=200", f"--run={tmp_path / 'moved'}")
    assert plain["plain"] == still["plain"] == still["steered"] == moved["plain"]
    assert moved["steered"] != moved["plain"]
    assert "--- steered" in said


def test_models_show_has_what_was_measured() -> None:
    shown, _ = run("models", "show", "hooke/stdlib")
    assert (shown["family"], shown["n_layers"]) == ("llama", 6)
    assert 0 < shown["bits_per_byte"] < shown["xz_bits_per_byte"] < 8


def refusal(capsys: pytest.CaptureFixture, *argv: str) -> str:
    assert main(list(argv)) == 2
    return capsys.readouterr().err


def test_refusals_are_said_before_the_work(
    demo: tuple[Path, dict, str], capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "of only 16" in refusal(capsys, "train", "--k=32", "--n-latents=16")
    assert "resid_pots" in refusal(capsys, "train", "--reads=resid_pots.2")
    assert "neither a file nor a folder" in refusal(capsys, "train", "--corpus=nowhere.txt")
    assert "whole number" in refusal(capsys, "train", "--activation=topk", "--k=2.5")
    assert "holds no dictionary" in refusal(capsys, "eval", str(tmp_path))
    assert "does not exist" in refusal(capsys, "generate", "x", f"--dictionary={demo[0]}", "--latent=9999")
    assert "no benchmark 'hravest'; did you mean 'harvest'" in refusal(capsys, "bench", "hravest")
    assert "holds a run with other settings" in refusal(capsys, "demo", "--no-serve", f"--run={demo[0]}")


def test_a_taken_port_is_said_at_once(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refusal(capsys, "demo", f"--port={port}", f"--run={tmp_path / 'run'}")
    assert f"port {port} is in use" in said
    assert not (tmp_path / "run").exists()


def test_an_altered_index_is_not_served(demo: tuple[Path, dict, str], capsys, tmp_path, monkeypatch) -> None:
    pytest.importorskip("fastapi")
    from hooke.web import server

    served = []
    monkeypatch.setattr(server, "serve", lambda shown, **_: served.append(shown))
    folder = tmp_path / "run"
    shutil.copytree(demo[0], folder)
    for _ in range(2):
        assert main(["serve", str(folder), "--port=0"]) == 0
    file = folder / "index" / "values.npy"
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(bytes(data))
    os.utime(file, ns=(1, 1))
    capsys.readouterr()
    assert "values.npy was altered" in refusal(capsys, "serve", str(folder), "--port=0")
    assert len(served) == 2


def test_a_demo_that_was_stopped_goes_on_and_ends_the_same(tmp_path, monkeypatch, capsys):
    """Ctrl-C after the training; the same command again finishes, with the numbers of one that was never stopped."""
    import hooke.features.build as build

    sizes = ["--n-tokens=10000", "--n-latents=64", "--k=4", "--score-tokens=1000", "--index-tokens=1000", "--no-serve"]
    real = build.build_index

    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "build_index", stopped)
    assert main(["demo", *sizes, f"--run={tmp_path / 'a'}"]) == 130
    monkeypatch.setattr(build, "build_index", real)
    capsys.readouterr()
    results = []
    for folder in ("a", "b", "a"):  # resumed, never stopped, and once more on what is finished
        assert main(["demo", *sizes, "--json", f"--run={tmp_path / folder}"]) == 0
        results.append(json.loads(capsys.readouterr().out.splitlines()[-1]))
    for name in ("fvu", "loss_recovered", "l0", "dead_share", "latents"):
        assert results[0][name] == results[1][name] == results[2][name]
