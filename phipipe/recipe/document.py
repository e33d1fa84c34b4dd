"""YAML as recipes need it: bounded, YAML 1.2's core schema, every value's line and column.

PyYAML gives the events; limits are checked on them, before anything is built. Aliases, tags and
several documents are refused: a recipe reads top to bottom. ``no`` is text, ``012`` is twelve.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import yaml

from phipipe.errors import RecipeError
from phipipe.files import shipped, user_paths
from phipipe.recipe import yaml_errors
from phipipe.recipe.places import BREAK, Document, Problem, Where
from phipipe.recipe.scalars import resolve
from phipipe.steps import Json
from phipipe.suggestions import near, shorten

MAX_BYTES = 2**20
MAX_DEPTH = 20
MAX_NODES = 20_000

# YAML's c-printable, turned round; escapes in quotes could otherwise carry NUL into paths, ESC to
# terminals.
_CONTROL = "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read(path: Path, kind: str = "recipe") -> Document:
    """Read and parse the file ``path``.

    Raises:
        RecipeError: it is missing, no text, too large, or not the YAML described above.
    """
    raw = _content(path, kind)
    if len(raw) > MAX_BYTES:
        raise RecipeError(
            f"{path}:1:1: the file is too large: a {kind} has at most {MAX_BYTES} bytes"
        )
    return parse(_decoded(raw, path), str(path))


def _content(path: Path, kind: str) -> bytes:
    """Up to one byte more than a file may have."""
    if odd := user_paths.oddity(path):
        raise RecipeError(
            f"cannot read `{user_paths.shown(path)}` as a {kind}: it {odd}", hint=f"name a {kind}"
        )
    try:
        if path.is_dir():
            raise RecipeError(
                f"`{path}` is a folder, not a {kind}", hint="name the .yaml file in it"
            )
        with path.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        known = f"no {kind} at `{path}`" if missing else f"cannot read `{path}`"
        guess = _guess(path) if missing else ""
        hint = _shipped(path) if missing and kind == "recipe" else None
        raise RecipeError(f"{known}: {error.strerror}{guess}", hint=hint) from None


def _shipped(path: Path) -> str:
    """The command that brings the shipped recipe of this name, or lists all of them."""
    name = path.name.removesuffix(".yaml")
    if not (shipped.folder("recipes") / f"{name}.yaml").is_file():
        return "give the path of a recipe; phipipe recipes ls lists those that come with phipipe"
    return f"phipipe recipes copy {name}, then phipipe run {name}.yaml"


def _guess(path: Path) -> str:
    """A file beside ``path`` that may have been meant; ``.yaml`` in common is not enough."""
    beside = path.parent.glob("*.yaml") if path.parent.is_dir() else ()
    return near(path.name, [other.name for other in beside if near(path.stem, [other.stem])])


def is_text(text: str) -> bool:
    """Whether ``text`` has only characters that a recipe may have."""
    return not re.search(_CONTROL, text)


def _decoded(raw: bytes, path: Path) -> str:
    """The text of a file, which is UTF-8 without a byte order mark."""
    if raw.startswith(_UTF16):
        raise RecipeError(
            f"{path}:1:1: this is not a text file in UTF-8, but in UTF-16; save it as UTF-8"
        )
    if raw.startswith(b"\xef\xbb\xbf"):
        raise RecipeError(
            f"{path}:1:1: the file begins with a byte order mark; save it as plain UTF-8, "
            f"without BOM"
        )
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = re.split(BREAK, raw[: error.start].decode("utf-8"))
        place = f"{path}:{len(before)}:{len(before[-1]) + 1}"
        raise RecipeError(
            f"{place}: this is not a text file: byte 0x{raw[error.start]:02x} is not UTF-8"
        ) from None


def parse(text: str, name: str) -> Document:
    """Parse ``text``.

    Raises:
        RecipeError: names every duplicate key, or the first thing that stops the parser.
    """
    document = Document(name, text)
    # PyYAML's two readers refuse it too, each with another position.
    if control := re.search(_CONTROL, text):
        before = re.split(BREAK, text[: control.start()])
        message = f"this is not a text file: it holds the control character {control.group()!a}"
        raise document.error([Problem(len(before), len(before[-1]) + 1, message)])
    try:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        builder = _Builder(document, iter(loader.get_event, None))
        document.data = builder.document()
    except yaml.MarkedYAMLError as error:
        raise document.error([yaml_errors.explain(error, text)]) from None
    except yaml.YAMLError:
        raise document.error([Problem(1, 1, "this is not YAML")]) from None
    if builder.problems:
        raise document.error(builder.problems)
    return document


class _Builder:
    """Builds data from events; everything unwelcome stops it at once, except duplicate keys, which
    it gathers."""

    def __init__(self, document: Document, events: Iterator[Json]) -> None:
        self._document, self._events, self._nodes = document, events, 0
        self.problems: list[Problem] = []

    def document(self) -> Json:
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                break
        else:
            raise self._document.error([Problem(1, 1, "the file is empty")])
        data = self._build(next(self._events), (), 0)
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._stop(event, "a second document; a recipe is one")
        return data

    def _stop(self, event: Json, message: str) -> NoReturn:
        raise self._document.error([Problem(*_place(event), message)])

    def _build(self, event: Json, where: Where, depth: int) -> Json:
        self._nodes += 1
        self._check(event, depth)
        self._document.values[where] = _place(event)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(where, depth)
        return self._mapping(where, depth)

    def _check(self, event: Json, depth: int) -> None:
        if self._nodes > MAX_NODES:
            self._stop(event, f"more than {MAX_NODES} values")
        if depth > MAX_DEPTH:
            self._stop(event, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            self._stop(event, "an alias (`*…`); these files have none, write the value again")
        if event.anchor is not None:
            self._stop(event, "an anchor (`&…`); these files have none")
        if event.tag is not None:
            self._stop(event, f"a tag (`{shorten(event.tag)}`); these files have none")

    def _sequence(self, where: Where, depth: int) -> list[Json]:
        items: list[Json] = []
        while (event := self._inner(yaml.SequenceEndEvent)) is not None:
            items.append(self._build(event, (*where, len(items)), depth + 1))
        return items

    def _inner(self, end: type[yaml.Event]) -> yaml.Event | None:
        """The next event; None where it is of the kind ``end``."""
        event = next(self._events)
        return None if isinstance(event, end) else event

    def _mapping(self, where: Where, depth: int) -> dict[str, Json]:
        mapping: dict[str, Json] = {}
        while (event := self._inner(yaml.MappingEndEvent)) is not None:
            if not isinstance(event, yaml.ScalarEvent) or event.anchor or event.tag:
                self._stop(event, "a key must be plain text")
            self._check_printable(event)
            key, place = str(event.value), _place(event)
            if key in mapping:
                first = self._document.keys[(*where, key)][0]
                message = f"key `{shorten(key)}` stands here again; first on line {first}"
                self.problems.append(Problem(*place, message))
            self._document.keys.setdefault((*where, key), place)
            mapping[key] = self._build(next(self._events), (*where, key), depth + 1)
        return mapping

    def _scalar(self, event: Json) -> Json:
        self._check_printable(event)
        if event.style not in (None, ""):
            return event.value
        try:
            return resolve(event.value)
        except OverflowError:
            self._stop(event, "a number with too many digits")

    def _check_printable(self, event: Json) -> None:
        """The text as a whole was looked at; an escape is all that can bring such a character."""
        if event.style != '"':
            return
        if control := re.search(_CONTROL, event.value):
            self._stop(event, f"text with the control character {control.group()!a}")


def _place(event: Json) -> tuple[int, int]:
    """Line and column of ``event``, from 1."""
    return event.start_mark.line + 1, event.start_mark.column + 1
