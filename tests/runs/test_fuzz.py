"""Whatever bytes are in a run folder, reading gives a valid result or a FormatError, never another exception."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hooke.base.errors import FormatError
from hooke.runs import MetricRow, RunFolder, RunIndex, RunInfo

WHOLE = Path(__file__).parent / "malformed" / "whole"

nasty = [b"[" * 2000, b"9" * 5000, b"1e999", b"NaN", b'"\\ud800"', b"\n", b"\x00", b"null", b"-1", b"{}", b"\xff", b'"']

edits = st.lists(
    st.one_of(
        st.tuples(st.just("set"), st.floats(0, 1), st.binary(min_size=1, max_size=3)),
        st.tuples(st.just("insert"), st.floats(0, 1), st.binary(min_size=1, max_size=8) | st.sampled_from(nasty)),
        st.tuples(st.just("cut"), st.floats(0, 1), st.integers(1, 60)),
    ),
    min_size=1,
    max_size=4,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["NaN", "../x", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def mutate(text: bytes, changes: list) -> bytes:
    for kind, where, what in changes:
        at = int(where * len(text))
        if kind == "set":
            text = text[:at] + what + text[at + len(what) :]
        elif kind == "insert":
            text = text[:at] + what + text[at:]
        else:
            text = text[:at] + text[at + what :]
    return text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("fuzz") / "runs" / "run"
    shutil.copytree(WHOLE, path)
    return path


def read_all(folder: Path) -> bool:
    """Read in every way; true when the record was valid."""
    index = RunIndex(folder.parent)
    index.refresh()
    (indexed,) = index.list()
    try:
        run = RunFolder.open(folder)
    except FormatError:
        assert indexed.status == "unreadable" and indexed.problem
        return False
    assert isinstance(run.info, RunInfo) and indexed.status == run.info.status
    with contextlib.suppress(FormatError):
        run.verify()
    with contextlib.suppress(FormatError):
        assert all(isinstance(row, MetricRow) for row in run.metrics().rows)
    return True


@settings(max_examples=100)
@given(edits)
def test_bytes_of_the_record(folder, changes):
    (folder / "run.json").write_bytes(mutate((WHOLE / "run.json").read_bytes(), changes))
    read_all(folder)


@settings(max_examples=100)
@given(edits)
def test_bytes_of_the_metrics(folder, changes):
    shutil.copyfile(WHOLE / "run.json", folder / "run.json")
    (folder / "metrics.jsonl").write_bytes(mutate((WHOLE / "metrics.jsonl").read_bytes(), changes))
    assert read_all(folder)
    shutil.copyfile(WHOLE / "metrics.jsonl", folder / "metrics.jsonl")


@settings(max_examples=100)
@given(st.data())
def test_valid_json_with_other_values(folder, data):
    record = json.loads((WHOLE / "run.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        place = record
        if data.draw(st.booleans()) and isinstance(record.get("artefacts"), list) and record["artefacts"]:
            place = record["artefacts"][0] if isinstance(record["artefacts"][0], dict) else record
        place[data.draw(st.sampled_from([*place, "new"]))] = data.draw(json_values)
    (folder / "run.json").write_text(json.dumps(record))
    read_all(folder)


def test_the_fuzz_starts_from_a_valid_folder(folder):
    for name in ("run.json", "metrics.jsonl"):
        shutil.copyfile(WHOLE / name, folder / name)
    assert read_all(folder)
    assert RunFolder.open(folder).verify() == 2
