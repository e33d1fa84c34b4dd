"""What a callback hears, and the displays that come with phipipe."""

from __future__ import annotations

import io
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe import Event, Progress, StepFailed
from phipipe.api import progress_display
from phipipe.api.events import Telling


def test_an_event_is_a_line_for_people() -> None:
    assert str(Event(kind="started", step="convert", text="runs: first time")) == (
        "convert  runs: first time"
    )
    assert str(Event(kind="progress", step="evaluate", done=2, total=8, unit="windows")) == (
        "evaluate  2 of 8 windows"
    )
    assert str(Event(kind="note", text="no board")) == "no board"


@given(st.integers(-5, 20), st.integers(-5, 10))
def test_a_share_lies_between_nothing_and_all_or_is_unknown(done: int, total: int) -> None:
    share = Event(kind="progress", step="s", done=done, total=total).share
    assert share is None if total <= 0 else share is not None and 0 <= share <= 1


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Event(kind="note", text="x").text = "y"  # type: ignore[misc]


def test_without_a_callback_nothing_happens() -> None:
    telling = Telling(None)
    telling.note("x")
    telling.failed("s", StepFailed("no"))


def test_what_a_callback_raises_in_another_thread_waits_for_the_runs_own() -> None:
    def fail(event: Event) -> None:
        raise ValueError(event.text)

    telling = Telling(fail)
    thread = threading.Thread(target=telling.note, args=("from elsewhere",))
    thread.start()
    thread.join()
    with pytest.raises(ValueError, match="from elsewhere"):
        telling.started("convert", "first time")


def test_installations_are_told_with_their_toolchain() -> None:
    heard: list[Event] = []
    telling = Telling(heard.append)
    telling.installing("torch")
    telling.installed("torch", 2.5, None)
    telling.installed("torch", 1.0, StepFailed("no network"))
    assert [(event.kind, event.toolchain) for event in heard] == [
        ("installing", "torch"),
        ("installed", "torch"),
        ("installed", "torch"),
    ]
    assert heard[1].seconds == 2.5
    assert "could not be installed" in str(heard[2])


def test_lines_go_where_they_are_asked_to_and_a_step_is_not_repeated() -> None:
    stream = io.StringIO()
    show = Progress(stream)
    show(Event(kind="started", step="evaluate", text="runs: first time"))
    for done in range(1, 100):
        show(Event(kind="progress", step="evaluate", done=done, total=100, unit="windows"))
    show(Event(kind="finished", step="evaluate", text="done \x1b[31m"))
    assert stream.getvalue() == "evaluate  runs: first time\nevaluate  done \\x1b[31m\n"


class Handle:
    """Keeps the pages that IPython would show."""

    def __init__(self) -> None:
        self.pages: list[str] = []

    def display(self, shown: Progress) -> None:
        self.update(shown)

    def update(self, shown: Progress) -> None:
        self.pages.append(shown._repr_html_())


def test_a_notebook_has_one_table_with_a_row_for_each_step() -> None:
    handle = Handle()
    show = Progress(notebook=True)
    show._handle = handle
    show(Event(kind="started", step="evaluate", text="runs: <first>"))
    show(Event(kind="started", step="convert", text="runs: first time"))
    show(Event(kind="progress", step="evaluate", done=2, total=8, unit="windows"))
    show(Event(kind="finished", step="convert", text="done"))
    assert handle.pages[-1].count("<tr>") == 3
    assert "25 %" in handle.pages[-1]
    assert "runs: &lt;first&gt;" in handle.pages[0]


def test_outside_of_a_notebook_lines_are_written() -> None:
    assert not progress_display.in_notebook()
