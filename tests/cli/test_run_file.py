"""`hooke run`: a saved experiment replays; `hooke models show`: what is inside a model."""

from __future__ import annotations

import json

import pytest

import hooke
from hooke.base.errors import DataError
from hooke.cli.main import main
from hooke.cli.models import spans
from hooke.model.aliases import module_path
from hooke.model.edits import Ablate, Scale
from hooke.model.experiment import Experiment
from hooke.model.metrics import LogitDifference, single_tokens
from hooke.model.sites import Site
from hooke.runs.folder import RunFolder

PROMPTS = ["def area(self):\n    return", "import os\nimport sys\nfor", "class A:\n    def"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = hooke.load("hooke/stdlib")
    path = tmp_path_factory.mktemp("run") / "experiment.json"
    sets = {"no MLP 1": [Ablate("mlp_out.1")], "half of z.0.1": [Scale("z.0.1", 0.5, positions="last")]}
    made = Experiment("hooke/stdlib", PROMPTS, sets, LogitDifference(5, [6, 7, 8])).kept(model)
    made.save(path)
    return path, made


def test_an_experiment_replays(saved, tmp_path, capsys):
    path, made = saved
    assert main(["run", str(path), "--run", str(tmp_path / "out"), "--json"]) == 0
    shown = capsys.readouterr()
    results = json.loads(shown.out)
    assert results["values"]["no MLP 1"] == pytest.approx(made.expected.values[0].tolist())
    assert results["baseline"] == pytest.approx(made.expected.baseline.tolist())
    assert results["difference"] < 1e-6
    assert results["notes"] == []
    lines = [line.split() for line in shown.err.splitlines()]
    assert ["no", "edits"] in [line[:2] for line in lines]
    assert "the numbers are those kept in" in shown.err.replace("\n", " ")
    folder = RunFolder.open(tmp_path / "out")
    assert folder.info.status == "finished"
    assert folder.verify() == 1
    assert json.loads(folder.file("outcome.json").read_text())["values"] == results["values"]


def test_numbers_that_differ_are_exit_code_1(saved, tmp_path, capsys):
    path, made = saved
    other = Experiment(made.model, list(PROMPTS[::-1]), made.edit_sets, made.metric, made.expected)
    other.save(tmp_path / "e.json")
    assert main(["run", str(tmp_path / "e.json"), "--run", str(tmp_path / "out")]) == 1
    assert "the numbers differ from those kept in" in capsys.readouterr().out.replace("\n", " ")


def test_a_broken_file_is_one_line(saved, tmp_path, capsys):
    path, _ = saved
    (tmp_path / "e.json").write_text(path.read_text()[:-40])
    assert main(["run", str(tmp_path / "e.json")]) == 2
    assert main(["run", str(tmp_path / "none.json")]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert "e.json is not valid JSON" in said[0]
    assert "none.json cannot be read: it does not exist" in said[1]


def test_models_show_says_what_is_there_and_what_is_not(capsys):
    assert main(["models", "show", "hooke/stdlib", "--json"]) == 0
    shown = capsys.readouterr()
    results = json.loads(shown.out)
    model = hooke.load("hooke/stdlib")
    assert results["parameters"] == sum(p.numel() for p in model.hf.parameters())
    assert results["dtype"] == "float32"
    sites = {entry["site"]: entry for entry in results["sites"]}
    assert sites.keys() == {info.site.name for info in model.sites()}
    assert sites["z"]["shape"] == [None, None, model.n_heads, model.d_head]
    assert sites["z"]["layers"] == list(range(model.n_layers))
    assert sites["logits"]["layers"] is None
    for entry in results["sites"]:  # the other names are names of the same site
        first = f"{entry['site']}.0" if entry["layers"] is not None else entry["site"]
        if entry["transformer_lens"] is not None:
            assert str(Site.parse(entry["transformer_lens"])) == first
        if entry["module"] is not None and "worked out" not in entry["module"]:
            assert module_path(model.layout, entry["module"]) == first
    assert not sites.keys() & results["absent"].keys()
    assert all(reason in " ".join(shown.err.split()) for reason in results["absent"].values())
    assert f"d_head={model.d_head}" in shown.err


def test_layers_as_people_write_them():
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"
    assert spans([3]) == "3"


def test_answers_of_a_word_that_is_more_than_one_token_are_refused():
    with pytest.raises(DataError, match="an answer must be exactly one"):
        single_tokens(hooke.load("hooke/stdlib"), "supercalifragilistic")
