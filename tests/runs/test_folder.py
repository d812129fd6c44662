from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from pydantic import BaseModel

from hooke.base.errors import ConfigError, DataError, FormatError
from hooke.base.progress import Sink
from hooke.runs import RunFolder, RunSink, lines
from hooke.runs.record import check_name

CONFIG = {"k": 32, "sites": ["resid_post.2"]}


def create(path, **changes):
    return RunFolder.create(path, **{"command": "train", "config": CONFIG, **changes})


def temporary_files(path):
    return [child.name for child in path.rglob(".tmp-*")]


def test_a_run_from_start_to_end(tmp_path):
    run = create(tmp_path / "a" / "first")
    assert run.info.status == "running" and run.info.environment["versions"]["torch"]
    run.log({"loss": 2.0, "dead": math.nan}, step=0)
    run.log({"loss": 1.0}, step=10)
    with run.artefact("scores.json", "scores") as path:
        path.write_text("{}")
    run.finish({"fvu": 0.25, "auc": math.nan})

    read = RunFolder.open(tmp_path / "a" / "first")
    assert read.info == run.info and read.info.status == "finished" and read.info.finished >= read.info.created
    assert read.info.results == {"fvu": 0.25, "auc": "NaN"} and read.info.config == CONFIG
    assert read.metrics().series("loss") == ([0, 10], [2.0, 1.0])
    assert math.isnan(read.metrics().rows[0].values["dead"])
    assert read.verify() == 1 and read.file("scores.json").read_text() == "{}"
    assert not temporary_files(tmp_path)


def test_a_config_may_be_a_model_or_a_dict_and_is_frozen(tmp_path):
    class Settings(BaseModel):
        k: int = 32
        rate: float = 0.1

    settings = {"inner": [1]}
    run = create(tmp_path / "a", config=settings)
    settings["inner"].append(2)
    assert run.info.config == {"inner": [1]}
    assert create(tmp_path / "b", config=Settings()).info.config == {"k": 32, "rate": 0.1}
    with pytest.raises(ConfigError, match="config cannot be written as JSON: a object cannot"):
        create(tmp_path / "c", config={"f": object()})
    assert not (tmp_path / "c").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    create(tmp_path / "run")
    with pytest.raises(ConfigError, match="already holds a run; choose another"):
        create(tmp_path / "run")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("precious")
    for resume in (False, True):
        with pytest.raises(ConfigError, match="is not empty and holds no run"):
            create(tmp_path / "other", resume=resume)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        create(tmp_path / "file")


def test_resume_needs_the_same_command_and_config(tmp_path):
    path = tmp_path / "run"
    first = create(path, resume=True)  # nothing there yet: starts
    first.fail("out of memory")
    with pytest.raises(ConfigError, match=r"other settings \(k\)"):
        create(path, config={**CONFIG, "k": 64}, resume=True)
    with pytest.raises(ConfigError, match=r"other settings \(new\)"):
        create(path, config={**CONFIG, "new": None}, resume=True)
    with pytest.raises(ConfigError, match="a run of 'train', not of 'eval'"):
        create(path, command="eval", resume=True)
    again = create(path, resume=True)
    assert again.info.id == first.info.id and again.info.status == "running" and again.info.error is None
    assert len(again.info.resumed) == 1
    again.finish({})
    assert create(path, resume=True).info.status == "finished"


def test_resume_mends_a_torn_line_and_removes_leftovers(tmp_path):
    run = create(tmp_path / "run")
    run.log({"loss": 1.0}, 1)
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 2, "ti')
    (run.path / ".tmp-abc-weights").write_text("half")
    (run.path / "inner").mkdir()
    (run.path / "inner" / ".tmp-abc").mkdir()
    assert [row.step for row in RunFolder.open(run.path).metrics().rows] == [1]
    again = create(run.path, resume=True)
    again.log({"loss": 0.5}, 2)
    assert again.metrics().series("loss") == ([1, 2], [1.0, 0.5])
    assert not temporary_files(tmp_path) and again.verify() == 0


def test_metrics_by_cursor_give_each_row_once(tmp_path):
    run = create(tmp_path / "run")
    cursor, seen = 0, []
    for step in range(5):
        run.log({"loss": float(step)}, step)
        batch = run.metrics(since=cursor)
        seen += [row.step for row in batch.rows]
        assert batch.cursor > cursor and batch.rewound_to is None
        cursor = batch.cursor
    assert seen == [0, 1, 2, 3, 4] and run.metrics(since=cursor).rows == []
    with pytest.raises(FormatError, match="no line that starts at byte 3"):
        run.metrics(since=3)
    with pytest.raises(FormatError, match="no line that starts"):
        run.metrics(since=cursor + 100)


def test_rewind_leaves_the_numbers_of_an_uninterrupted_run(tmp_path):
    run, whole = create(tmp_path / "run"), create(tmp_path / "whole")
    for step in range(6):
        whole.log({"loss": 1 / (step + 1)}, step)
    for step in range(5):
        run.log({"loss": 1 / (step + 1)}, step)
    cursor = run.metrics().cursor
    again = create(run.path, resume=True)  # the checkpoint was made before step 3
    again.rewind(3)
    for step in range(3, 6):
        again.log({"loss": 1 / (step + 1)}, step)
    assert again.metrics().series("loss") == whole.metrics().series("loss")
    later = again.metrics(since=cursor)
    assert later.rewound_to == 3 and [row.step for row in later.rows] == [3, 4, 5]
    size = (run.path / "metrics.jsonl").stat().st_size
    again.rewind(6)  # nothing to take back: nothing written
    assert (run.path / "metrics.jsonl").stat().st_size == size


@pytest.mark.parametrize("step", [-1, 2**53])
def test_impossible_steps_are_refused(tmp_path, step):
    run = create(tmp_path / "run")
    with pytest.raises(DataError, match="expected an integer from 0"):
        run.log({"loss": 1.0}, step)
    assert run.metrics().rows == []


def test_lines_from_many_threads_are_whole(tmp_path):
    run = create(tmp_path / "run")

    def work(i):
        for step in range(50):
            run.log({f"loss{i}": float(step)}, step)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    metrics = run.metrics()
    assert len(metrics.rows) == 200
    assert all(metrics.series(f"loss{i}")[0] == list(range(50)) for i in range(4))


def test_a_full_disk_leaves_only_whole_lines(tmp_path, monkeypatch):
    run = create(tmp_path / "run")
    run.log({"loss": 1.0}, 1)
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[: len(data) // 2]))
    with pytest.raises(DataError, match="the disk is full"):
        run.log({"loss": 0.5}, 2)
    monkeypatch.undo()
    run.log({"loss": 0.5}, 2)
    assert run.metrics().series("loss") == ([1, 2], [1.0, 0.5])


@pytest.mark.parametrize(
    "text", [b"", b"a\n", b"a\nb", b"torn", b"a\n" + b"x" * 200_000, b"x" * 70_000 + b"\n" + b"y" * 70_000]
)
def test_mend_keeps_exactly_the_whole_lines(tmp_path, text):
    path = tmp_path / "lines"
    path.write_bytes(text)
    lines.mend(path)
    assert path.read_bytes() == text[: text.rfind(b"\n") + 1]


def test_an_artefact_is_recorded_only_when_whole(tmp_path):
    run = create(tmp_path / "run")
    with pytest.raises(RuntimeError), run.artefact("a/b.bin", "weights") as path:
        path.write_bytes(b"half")
        raise RuntimeError("stop")
    assert run.info.artefacts == [] and not temporary_files(tmp_path) and not (run.path / "a" / "b.bin").exists()
    with run.artefact("a/b.bin", "weights") as path:
        path.write_bytes(b"one")
    with run.artefact("a/b.bin", "weights") as path:
        path.write_bytes(b"second")
    (artefact,) = RunFolder.open(run.path).info.artefacts
    assert (artefact.name, artefact.kind, artefact.bytes, artefact.files) == ("a/b.bin", "weights", 6, None)


def test_a_folder_artefact_is_checked_file_by_file(tmp_path):
    run = create(tmp_path / "run")
    with run.artefact("dictionary", "dictionary") as path:
        (path / "deep").mkdir(parents=True)
        (path / "cfg.json").write_text("{}")
        (path / "deep" / "w.bin").write_bytes(b"12345")
    artefact = run.info.artefact("dictionary")
    assert artefact.bytes == 7 and list(artefact.files) == ["cfg.json", "deep/w.bin"]
    assert run.verify() == 1
    (run.path / "dictionary" / "deep" / "w.bin").write_bytes(b"12346")
    with pytest.raises(FormatError, match=r"dictionary was altered: deep/w\.bin"):
        run.verify()


def test_verify_names_every_problem(tmp_path):
    run = create(tmp_path / "run")
    for name in ("a", "b", "c"):
        with run.artefact(name, "text") as path:
            path.write_text("text")
    (run.path / "a").unlink()
    (run.path / "b").write_text("tex")
    with pytest.raises(FormatError, match=r"a is missing; b is truncated: 3 of 4 bytes"):
        RunFolder.open(run.path).verify()


def test_links_do_not_lead_out_of_the_folder(tmp_path):
    run = create(tmp_path / "run")
    (tmp_path / "outside").mkdir()
    (run.path / "link").symlink_to(tmp_path / "outside")
    with (
        pytest.raises(ConfigError, match="outside the run folder, through a link"),
        run.artefact("link/x", "text") as path,
    ):
        path.write_text("x")
    with run.artefact("a", "text") as path:
        path.write_text("x")
    (run.path / "a").unlink()
    (tmp_path / "outside" / "a").write_text("x")
    (run.path / "a").symlink_to(tmp_path / "outside" / "a")
    with pytest.raises(FormatError, match="a lies outside the run folder"):
        run.verify()


@pytest.mark.parametrize(
    "name", ["", "/a", "../a", "a/../b", "a//b", "a\\b", "c:a", "run.json", "a\n", ".tmp-a", "x" * 201, "./a"]
)
def test_unsafe_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError):
        check_name(name)
    run = create(tmp_path / "run")
    with pytest.raises(ConfigError, match="artefact name"), run.artefact(name, "text") as path:
        path.write_text("x")


def test_file_names_the_nearest_artefact(tmp_path):
    run = create(tmp_path / "run")
    with run.artefact("scores.json", "scores") as path:
        path.write_text("{}")
    with pytest.raises(DataError, match=r"no artefact 'score\.json'; did you mean 'scores\.json'"):
        run.file("score.json")


def test_the_block_records_the_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), create(tmp_path / "run") as run:
        1 / 0  # noqa: B018
    info = RunFolder.open(run.path).info
    assert info.status == "failed" and (info.error.type, info.error.message) == (
        "ZeroDivisionError",
        "division by zero",
    )


def test_fields_of_later_versions_are_kept(tmp_path):
    run = create(tmp_path / "run")
    record = json.loads((run.path / "run.json").read_text())
    record["colour"] = "blue"
    (run.path / "run.json").write_text(json.dumps(record))
    RunFolder.open(run.path).finish({})
    assert json.loads((run.path / "run.json").read_text())["colour"] == "blue"


def test_results_that_cannot_be_written_leave_the_run_running(tmp_path):
    run = create(tmp_path / "run")
    with pytest.raises(DataError, match="results cannot be written"):
        run.finish({"x": object()})
    assert RunFolder.open(run.path).info.status == "running"


def test_the_sink_writes_everything_into_the_folder(tmp_path):
    run = create(tmp_path / "run")
    sink = RunSink(run)
    assert isinstance(sink, Sink)
    sink.metrics({"loss": 1.0}, 3)
    sink.progress("train", 1, 2)
    sink.message("half way é")
    (run.path / "w.bin").write_bytes(b"1")
    sink.artefact(run.path / "w.bin", "weights")
    (tmp_path / "elsewhere").write_text("x")
    sink.artefact(tmp_path / "elsewhere", "figure")
    assert run.metrics().rows[0].step == 3 and run.info.artefact("w.bin").bytes == 1
    assert run.messages()[0] == "half way é" and run.messages()[1].startswith("made figure: ")
    with pytest.raises(ConfigError, match="not inside the run folder"):
        run.record(tmp_path / "elsewhere", "figure")
    with pytest.raises(DataError, match="does not exist"):
        run.record(run.path / "none", "figure")


KILLED = """
import sys
from hooke.runs import RunFolder
run = RunFolder.create(sys.argv[1], command="train", config={"k": 1}, resume=True)
start = len(run.metrics().rows)
print("ready", flush=True)
for step in range(start, 10**9):
    run.log({"loss": step * 0.5}, step)
    with run.artefact("state.bin", "state") as path:
        path.write_bytes(step.to_bytes(8, "little") * 1000)
"""


def test_kill_9_at_any_moment_leaves_a_whole_run(tmp_path):
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path / "run")], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        run = RunFolder.open(tmp_path / "run")
        steps, losses = run.metrics().series("loss")
        assert steps == list(range(len(steps))) and losses == [step * 0.5 for step in steps] and steps
        state = (run.path / "state.bin").read_bytes()
        assert len(state) == 8000 and state == state[:8] * 1000
    resumed = RunFolder.create(tmp_path / "run", command="train", config={"k": 1}, resume=True)
    resumed.record(resumed.path / "state.bin", "state")  # it may be one step ahead of its record
    assert resumed.verify() == 1 and len(resumed.info.resumed) == 2 and not temporary_files(Path(resumed.path))
