from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest

from hooke.base.errors import ConfigError, DataError
from hooke.runs import RunFolder, RunIndex, index
from hooke.runs.index import INDEX_NAME, Refreshed


@pytest.fixture
def root(tmp_path):
    for i, name in enumerate(["a", "b", "deep/c"]):
        run = RunFolder.create(tmp_path / name, command="train" if i else "eval", config={"i": i})
        run.log({"loss": 1.0}, i * 10)
    run.finish({"fvu": 0.25, "auc": float("nan")})
    return tmp_path


def rows(root):
    return [dataclasses.astuple(run) for run in RunIndex(root).list()]


def test_it_finds_runs_at_any_depth_newest_first(root):
    index = RunIndex(root)
    assert index.refresh() == Refreshed(updated=3, removed=0)
    assert [run.path for run in index.list()] == ["deep/c", "b", "a"]
    assert [run.path for run in index.list(command="train", limit=1)] == ["deep/c"]
    assert [run.path for run in index.list(status="running")] == ["b", "a"]
    run = index.list(status="finished")[0]
    assert run.results == {"fvu": 0.25, "auc": "NaN"} and run.config == {"i": 2} and run.last_step == 20


def test_refresh_reads_only_what_changed(root, monkeypatch):
    runs = RunIndex(root)
    runs.refresh()
    read = []
    real = index._read
    monkeypatch.setattr(index, "_read", lambda path, folder: read.append(path) or real(path, folder))
    assert runs.refresh() == Refreshed(0, 0) and read == []
    RunFolder.open(root / "b").log({"loss": 0.5}, 99)
    shutil.rmtree(root / "a")
    RunFolder.create(root / "d", command="eval", config={})
    assert runs.refresh() == Refreshed(updated=2, removed=1) and sorted(read) == ["b", "d"]
    assert runs.get("b").last_step == 99


def test_rebuild_gives_the_same_rows_as_refreshes(root):
    runs = RunIndex(root)
    for step in range(3):
        RunFolder.open(root / "a").log({"loss": 0.1}, 50 + step)
        runs.refresh()
    with RunFolder.open(root / "b").artefact("x", "text") as path:
        path.write_text("12345")
    (root / "deep" / "c" / "run.json").write_text("{")
    runs.refresh()
    refreshed = rows(root)
    assert runs.rebuild() == Refreshed(3, 0)
    assert rows(root) == refreshed and {row[3] for row in refreshed} == {"running", "unreadable"}


@pytest.mark.parametrize("damage", ["delete", "garbage", "truncate", "empty", "other table"])
def test_a_lost_or_damaged_index_loses_nothing(root, damage):
    RunIndex(root).refresh()
    before = rows(root)
    file = root / INDEX_NAME
    for suffix in ("-wal", "-shm"):
        (root / f"{INDEX_NAME}{suffix}").unlink(missing_ok=True)
    if damage == "delete":
        file.unlink()
    elif damage == "other table":
        import sqlite3

        file.unlink()
        database = sqlite3.connect(file)
        database.execute("CREATE TABLE runs (path, old)")
        database.close()
    else:
        data = file.read_bytes()
        file.write_bytes({"garbage": b"\x13" * 9000, "truncate": data[: len(data) // 2], "empty": b""}[damage])
    assert rows(root) == before  # listing alone makes it again
    assert RunIndex(root).refresh().removed == 0 and rows(root) == before


def test_get_by_id_by_start_of_id_and_by_path(root):
    runs = RunIndex(root)
    runs.refresh()
    run = runs.get("deep/c")
    assert runs.get(run.id) == run and runs.get(run.id[:-1]) == run
    with pytest.raises(DataError, match=r"means several runs: a, b, deep/c; give more"):
        runs.get(run.id[:4])
    with pytest.raises(DataError, match=r"no run 'deep/d' .*did you mean 'deep/c'"):
        runs.get("deep/d")
    with pytest.raises(DataError, match="no run '%'"):
        runs.get("%")  # no wildcard
    shutil.copytree(root / "a", root / "copy")
    runs.refresh()
    with pytest.raises(DataError, match="means several runs: a, copy"):
        runs.get(RunFolder.open(root / "a").info.id)


def test_folders_inside_a_run_and_hidden_folders_are_not_runs(root):
    for name in ("a/inner", ".tmp-x", ".hidden"):
        shutil.copytree(root / "b", root / name)
    runs = RunIndex(root)
    runs.refresh()
    assert len(runs.list()) == 3


def test_a_root_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match="is not a folder"):
        RunIndex(tmp_path / "none")


def test_a_last_step_after_a_rewind(root):
    run = RunFolder.open(root / "a")
    for step in (10, 20, 30):
        run.log({"loss": 0.0}, step)
    run.rewind(20)
    runs = RunIndex(root)
    runs.refresh()
    assert runs.get("a").last_step == 10 == run.metrics().rows[-1].step


REFRESHING = """
import json, sys
from hooke.runs import RunIndex
index = RunIndex(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for i in range(40):
    (index.rebuild if i % 10 == 0 else index.refresh)()
    assert len(index.list()) >= 3
print(json.dumps([run.path for run in index.list()]))
"""


def test_two_processes_may_refresh_at_once(root):
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", REFRESHING, str(root)]
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    RunFolder.create(root / "new", command="eval", config={})
    for process in processes:
        out, error = process.communicate(timeout=100)
        assert process.returncode == 0, error
        assert set(json.loads(out)) >= {"a", "b", "deep/c"}
    RunIndex(root).refresh()
    refreshed = rows(root)
    RunIndex(root).rebuild()
    assert rows(root) == refreshed and len(refreshed) == 4
