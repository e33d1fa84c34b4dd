"""The colours of a board's page, light and dark, and the signs that tell precisions apart."""

from __future__ import annotations

from phipipe import backends
from phipipe.board.entry import Entry

# Light → dark. The series are told apart in all common kinds of colour blindness, and contrast with
# the page by at least 3 to 1 in either theme (tests compute both); symbols and dashes tell the
# precision.
INK, MUTED, GRID, LINE, PAGE = "#1b1f24", "#57606a", "#d9dee4", "#8c959f", "#ffffff"
SERIES = {
    "#005599": "#5599ee",  # blue
    "#cc5511": "#ffbb00",  # orange
    "#448877": "#66ddaa",  # green
    "#991155": "#dd7799",  # pink
    "#8844dd": "#ccbbff",  # violet
    "#553300": "#eeff99",  # brown, and lime on the dark page
    "#330000": "#dd4433",  # maroon, and red on the dark page
    "#292929": "#727272",  # grey: backends that this phipipe does not know
}
DARK = {
    **SERIES,
    INK: "#e6edf3",
    MUTED: "#9da7b1",
    GRID: "#30363d",
    LINE: "#7d8590",
    PAGE: "#0d1117",
}
SYMBOLS = {"fp32": "diamond", "fp16": "square", "int8": "triangle-up", "int4": "circle"}
DASHES = {"fp32": "dot", "fp16": "dash", "int8": "dashdot", "int4": "solid"}
REPEATS = (
    "",
    "circle",
    "square",
    "diamond",
    "cross",
    "triangle-up",
)  # beside lines that colour and dash leave alike


def of_entry(entry: Entry) -> str:
    """Each backend keeps its own everywhere."""
    known = entry.backend in backends.names()
    place = backends.load(entry.backend).colour if known else None
    return tuple(SERIES)[-1 if place is None else place]
