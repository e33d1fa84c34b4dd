"""A ready-made display of progress: a table in a notebook, plain lines anywhere else."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from typing import Protocol, TextIO

from phipipe.api import pages
from phipipe.api.events import Event
from phipipe.visible import visible

HEARTBEAT_S = 30.0  # between two lines about one step's progress
REFRESH_S = 0.2  # between two pictures of a table
HEAD = ("step", "", "")


class Handle(Protocol):
    """What shows a page, and shows another in its place."""

    def display(self, page: object) -> None: ...
    def update(self, page: object) -> None: ...


class Progress:
    """Shows how a run goes: ``phipipe.run(recipe, on_progress=phipipe.Progress())``.

    In a notebook it is a table that is kept up to date. Anywhere else it writes a line for each
    event into ``stream``.
    """

    def __init__(self, stream: TextIO | None = None, *, notebook: bool | None = None) -> None:
        """Make a display.

        Args:
            stream: where lines go; None: standard error.
            notebook: whether to show a table; None: find out.
        """
        self._stream = stream or sys.stderr
        self._notebook = in_notebook() if notebook is None else notebook
        self._rows: dict[str, tuple[str, str, str]] = {}
        self._handle: Handle | None = None
        self._shown_s = 0.0
        self._said_s: dict[str, float] = {}

    def __call__(self, event: Event) -> None:
        """Show ``event``."""
        if self._notebook:
            self._draw(event)
        elif event.kind != "progress" or self._is_due(event):
            self._said_s[event.step] = time.monotonic()
            self._stream.write(f"{visible(str(event))}\n")
            self._stream.flush()

    def _is_due(self, event: Event) -> bool:
        return time.monotonic() - self._said_s.get(event.step, 0.0) > HEARTBEAT_S

    def _draw(self, event: Event) -> None:
        name = event.step or event.toolchain or event.text
        share = "" if event.share is None else f"{100 * event.share:.0f} %"
        text = f"{event.done} of {event.total} {event.unit}" if event.kind == "progress" else ""
        self._rows[name] = (name, event.kind, text or (event.text if name != event.text else ""))
        if share:
            self._rows[name] = (name, share, text)
        now = time.monotonic()
        if event.kind == "progress" and now - self._shown_s < REFRESH_S:
            return
        self._shown_s = now
        self._show()

    def _show(self) -> None:
        if self._handle is None:
            self._handle = importlib.import_module("IPython.display").DisplayHandle()
            self._handle.display(self)
        else:
            self._handle.update(self)

    def __repr__(self) -> str:
        return "<Progress>"

    def _repr_html_(self) -> str:
        return pages.table(HEAD, self._rows.values())


def in_notebook() -> bool:
    """Whether this is a kernel of Jupyter's."""
    return "ipykernel" in sys.modules and importlib.util.find_spec("IPython") is not None
