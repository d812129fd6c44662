"""Each folder under malformed/ is damaged in one way; expected.json says which error it must give (null: none)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hooke.base.errors import FormatError
from hooke.runs import RunFolder, RunIndex

MALFORMED = Path(__file__).parent / "malformed"
EXPECTED = json.loads((MALFORMED / "expected.json").read_text())


def use(folder: Path, how: str) -> None:
    run = RunFolder.open(folder)
    if how == "metrics":
        run.metrics()
    elif how == "verify":
        run.verify()


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_a_damaged_folder_gives_its_error(name):
    how, says = EXPECTED[name]["how"], EXPECTED[name]["says"]
    if says is None:
        use(MALFORMED / name, how)
        return
    with pytest.raises(FormatError) as caught:
        use(MALFORMED / name, how)
    assert says in str(caught.value)
    assert len(str(caught.value)) < 400, "an error is to be read by a person"
    if how == "metrics":
        with pytest.raises(FormatError):
            RunFolder.open(MALFORMED / name).verify()


def test_every_folder_is_expected_and_the_other_way_round():
    assert {path.name for path in MALFORMED.iterdir() if path.is_dir()} == EXPECTED.keys()


def test_the_index_lists_damaged_folders_with_the_reason(tmp_path):
    shutil.copytree(MALFORMED, tmp_path / "runs")
    index = RunIndex(tmp_path / "runs")
    index.refresh()
    rows = {run.path: run for run in index.list()}
    assert rows.keys() == EXPECTED.keys() - {"missing-record"}  # without a record it is just a folder
    for name, run in rows.items():
        damaged = EXPECTED[name]["how"] == "open"
        assert (run.status == "unreadable") == damaged == (run.problem is not None)
        if damaged:
            assert EXPECTED[name]["says"] in run.problem


def test_a_damaged_record_is_not_resumed_over(tmp_path):
    shutil.copytree(MALFORMED / "truncated-record", tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_bytes()
    with pytest.raises(FormatError):
        RunFolder.create(tmp_path / "run", command="train", config={}, resume=True)
    assert (tmp_path / "run" / "run.json").read_bytes() == before
