from __future__ import annotations

from pathlib import Path

from hooke.base.progress import SILENT, RecordingSink, SilentSink, Sink, TeeSink


def use(sink: Sink) -> None:
    sink.metrics({"loss": 1.0, "l0": 32}, 1)
    sink.progress("train", 1, None, "tokens")
    sink.message("half way")
    sink.artefact(Path("dictionary"), "dictionary")


def test_a_recording_sink_keeps_everything_in_order():
    sink = RecordingSink()
    use(sink)
    assert [call.method for call in sink.calls] == ["metrics", "progress", "message", "artefact"]
    assert sink.of("progress") == [("train", 1, None, "tokens")]
    assert sink.series("loss") == [(1, 1.0)]
    assert sink.series("none") == []


def test_recorded_metrics_do_not_change_later():
    sink, values = RecordingSink(), {"loss": 1.0}
    sink.metrics(values, 0)
    values["loss"] = 2.0
    assert sink.series("loss") == [(0, 1.0)]


def test_a_tee_passes_on_to_all():
    first, second = RecordingSink(), RecordingSink()
    use(TeeSink(first, SILENT, second))
    assert first.calls == second.calls and len(first.calls) == 4


def test_the_silent_sink_prints_nothing(capsys):
    use(SILENT)
    assert capsys.readouterr() == ("", "")


def test_all_are_sinks_and_other_things_are_not():
    assert all(isinstance(sink, Sink) for sink in (SilentSink(), RecordingSink(), TeeSink()))
    assert not isinstance([], Sink)
