"""The colours of a board's page, light and dark: one for each runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from phipipe import backends
from phipipe.board.entry import Entry

# Light → dark. The series are told apart in all common kinds of colour blindness, and contrast with
# the page by at least 3 to 1 in either theme (tests compute both).
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
OTHER = len(SERIES) - 1
MOST_FAMILIES = 6  # of a legend: more are not told apart at a glance


def of_backend(name: str) -> int:
    """The place in ``SERIES`` of a backend's colour; each backend keeps its own everywhere."""
    place = backends.load(name).colour if name in backends.names() else None
    return OTHER if place is None else place


def families(entries: Iterable[Entry]) -> dict[str, int]:
    """Backend → its place in ``SERIES``, for one page. Where there are too many backends for a
    legend, those with the fewest builds share the colour of the others."""
    counted = Counter(entry.backend for entry in entries)
    places = {name: of_backend(name) for name in sorted(counted)}
    if len(set(places.values())) <= MOST_FAMILIES:
        return places
    known = sorted((n for n in places if places[n] != OTHER), key=lambda n: (-counted[n], n))
    kept = frozenset(known[: MOST_FAMILIES - 1])
    return {name: place if name in kept else OTHER for name, place in places.items()}


def legend(places: dict[str, int]) -> list[tuple[int, str]]:
    """A legend's entries: each colour and the runtimes that have it."""
    own = [(place, name) for name, place in places.items() if place != OTHER]
    others = [name for name, place in places.items() if place == OTHER]
    shared = others[0] if len(others) == 1 else "other runtimes"
    return own + ([(OTHER, shared)] if others else [])
