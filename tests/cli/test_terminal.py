"""The plain face of the sink: what is printed, when, and that nothing is said about short work."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from hooke.base.progress import Sink
from hooke.cli.render import example_text, number
from hooke.cli.terminal import PlainSink, RichSink, progress_line, terminal_sink, visible
from hooke.features.examples import Example


class Clock:
    """Seconds that pass only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def plain(clock: Clock) -> PlainSink:
    return PlainSink(io.StringIO(), clock=clock)


def lines(sink: PlainSink) -> list[str]:
    return sink.stream.getvalue().splitlines()


def test_work_under_two_seconds_is_silent(plain: PlainSink, clock: Clock) -> None:
    for done in range(11):
        plain.progress("quick", done, 10, "rows")
        clock.now += 0.15
    assert lines(plain) == []


def test_long_work_gives_a_first_line_then_one_every_five_seconds_and_the_last(plain: PlainSink, clock: Clock) -> None:
    for done in range(0, 121):
        plain.progress("slow", done, 120, "rows")
        clock.now += 0.125  # 15 s in all
    assert [line.split(" %")[0] for line in lines(plain)] == ["slow: 13", "slow: 47", "slow: 80", "slow: 100"]
    assert lines(plain)[-1] == "slow: 100 % (120 of 120 rows), 15.0 s"


def test_a_finished_job_is_not_reported_twice_and_may_start_again(plain: PlainSink, clock: Clock) -> None:
    for _ in range(2):
        plain.progress("job", 0, 2)
        clock.now += 3
        plain.progress("job", 1, 2)
        plain.progress("job", 2, 2)
        plain.progress("job", 2, 2)
    assert [line[:9] for line in lines(plain)] == ["job: 50 %", "job: 100 "] * 2


def test_numbers_ride_on_the_next_line_of_progress(plain: PlainSink, clock: Clock) -> None:
    plain.metrics({"loss": 0.123456}, step=7)
    assert lines(plain) == []
    plain.progress("train", 0, 10)
    clock.now += 3
    plain.progress("train", 1, 10)
    assert lines(plain)[0].endswith("| step 7  loss 0.1235")


def test_messages_are_printed_and_artefacts_are_not(plain: PlainSink, tmp_path: Path) -> None:
    plain.message("[bold]not markup[/bold]")
    plain.artefact(tmp_path, "dictionary")
    assert lines(plain) == ["[bold]not markup[/bold]"]


def test_unknown_total_counts_up() -> None:
    assert progress_line("read", 0, None, "rows", 1.0) == "read: 0 rows"
    assert progress_line("empty", 0, 0, "rows", 1.0) == "empty: 100 % (0 of 0 rows), 1.0 s"


def test_a_pipe_gets_lines_and_a_terminal_gets_bars() -> None:
    assert isinstance(terminal_sink(Console(file=io.StringIO())), PlainSink)
    sink = terminal_sink(Console(file=io.StringIO(), force_terminal=True))
    assert isinstance(sink, RichSink)
    assert isinstance(sink, Sink)


def test_bars_show_name_count_and_numbers_and_end_cleanly() -> None:
    out = io.StringIO()
    sink = RichSink(Console(file=out, force_terminal=True, width=120))
    sink.progress("train [x]", 1, 4, "tokens")
    sink.metrics({"fvu": 0.25}, step=1)
    sink.progress("train [x]", 2, 4, "tokens")
    sink.message("[bold]kept as it is[/bold]")
    sink.close()
    text = out.getvalue()
    assert "train [x]" in text
    assert "fvu 0.25" in text
    assert "[bold]kept as it is[/bold]" in text
    assert text.endswith("\x1b[?25h")  # the cursor is back
    sink.progress("again", 1, 1)  # a closed sink opens anew
    sink.close()


@given(st.text())
def test_visible_text_is_one_printable_line(text: str) -> None:
    assert visible(text).isprintable()


def test_tokens_cannot_control_the_terminal() -> None:
    example = Example(
        latent=0,
        doc="x",
        row=0,
        start=0,
        focus=1,
        tokens=["a\n", "\x1b[31m", "[red]"],
        ids=[1, 2, 3],
        positions=[1, 2, 3],
        activations=np.array([0.0, 2.0, 1.0]),
    )
    assert example_text(example, strongest=2.0, colour=False).plain == "a⏎«\\x1b[31m»«[red]»"
    shaded = example_text(example, strongest=2.0, colour=True)
    assert shaded.plain == "a⏎\\x1b[31m[red]"
    assert [str(span.style) for span in shaded.spans] == ["dim", "black on rgb(255,158,54)", "black on rgb(159,99,34)"]


def test_undefined_numbers_are_a_dash() -> None:
    assert number(float("nan")) == "-"
