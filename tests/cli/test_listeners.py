"""What a run says while it goes on: in lines, and on a terminal with bars."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from testing.plans import planned

from phipipe.cli import listeners
from phipipe.errors import StepFailed, ToolchainError
from phipipe.execution.results import Listener, Result
from phipipe.store.records import Stored

PLAN = planned()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def result(cached: bool, **more: object) -> Result:
    stored = Stored(key="ab" * 32, digest="cd" * 32, path=Path("x"), outputs=())
    return Result(step=PLAN.steps[0], key="ab" * 32, stored=stored, cached=cached, **more)  # type: ignore[arg-type]


def a_run(listener: Listener) -> None:
    listener.installing("mlx")
    listener.installed("mlx", 2.0, None)
    listener.installing("torch")
    listener.installed("torch", 3.0, ToolchainError("no room"))
    listener.finished("source", result(True, shared=True))
    listener.started("convert", "first time")
    listener.progress("convert", 1, 2, "layers")
    listener.finished("convert", result(False, usage={"seconds": 1.5}, machine="w1"))
    listener.started("quantize", "first time")
    listener.failed("quantize", StepFailed("the tensor is crooked"))
    listener.note("a note")


SAID = [
    "quickstart: tiny-phi3 → int4 for CPU (x86-64), onnxruntime",
    "toolchain `mlx` is ready (2.0 s)",
    "toolchain `torch` could not be installed (3.0 s)",
    "cached  abababababab  from the shared store",
    "done    abababababab  1.5 s, on w1",
    "failed",
    "a note",
]


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["file", "terminal"])
def test_the_same_is_said_in_lines_and_above_bars(
    stream: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with listeners.listener([PLAN], stream) as listener:
        a_run(listener)
    places = [stream.getvalue().find(words) for words in SAID]
    assert -1 not in places
    assert places == sorted(places)


def test_of_many_builds_only_what_is_done_is_said() -> None:
    stream = io.StringIO()
    with listeners.many([PLAN], stream) as listener:
        a_run(listener)
    assert "cached" not in stream.getvalue()
    assert "done    abababababab" in stream.getvalue()


@pytest.mark.parametrize("how", [listeners.listener, listeners.many])
def test_silence_is_silent(how: type) -> None:
    stream = Terminal()
    with how([PLAN], stream, silent=True) as listener:
        a_run(listener)
    assert stream.getvalue() == ""
