"""YAML as recipes need it: bounded, YAML 1.2's core schema, and every value's line and column.

PyYAML gives the events; limits are checked on them, before anything is built. Aliases, tags and several
documents are refused: a recipe reads top to bottom. ``no`` is text, ``012`` is twelve.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from phipipe.errors import RecipeError

MAX_BYTES = 2**20
MAX_DEPTH = 20
MAX_NODES = 20_000
MAX_DIGITS = 300  # of a number; longer ones are typing accidents, and slow to read

Where = tuple[str | int, ...]

# YAML 1.2.2, 10.3.2: the core schema's tag resolution.
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = r"[-+]?[0-9]+"
_BASED = r"0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
_SPECIAL = r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN"


class Problem(NamedTuple):
    """Something wrong at a place; line and column count from 1, 0 means no place in the file."""

    line: int
    column: int
    message: str


@dataclass
class Document:
    """A file's data and where each value stands: ``keys`` and ``values`` map paths to (line, column)."""

    name: str
    text: str
    data: Any = None
    keys: dict[Where, tuple[int, int]] = field(default_factory=dict)
    values: dict[Where, tuple[int, int]] = field(default_factory=dict)

    def place(self, where: Where, key: bool = False) -> tuple[int, int]:
        """Line and column of what ``where`` names, or of the nearest thing around it."""
        while where and where not in self.values:
            where = where[:-1]
            key = False
        found = (self.keys if key else self.values).get(where) or self.values.get(where)
        return found or (1, 1)

    def error(self, problems: Iterable[Problem], hint: str | None = None) -> RecipeError:
        """One error for all ``problems``: ``file:line:col: message``, the line, and a caret."""
        return RecipeError("\n".join(self._show(p) for p in sorted(set(problems))), hint=hint)

    def _show(self, problem: Problem) -> str:
        if not problem.line:
            return problem.message
        head = f"{self.name}:{problem.line}:{problem.column}: {problem.message}"
        lines = self.text.split("\n")
        line = lines[problem.line - 1].rstrip("\r") if problem.line <= len(lines) else ""
        start = max(0, problem.column - 80)
        shown = "".join(c if c.isprintable() else " " for c in line[start : start + 110])
        return f"{head}\n    {shown}\n    {' ' * (problem.column - 1 - start)}^" if shown.strip() else head


def read(path: Path, kind: str = "recipe") -> Document:
    """Read and parse the file ``path``.

    Raises:
        RecipeError: it is missing, no text, too large, or not the YAML described above.
    """
    if path.is_dir():
        raise RecipeError(f"`{path}` is a folder, not a {kind}", hint="name the .yaml file in it")
    try:
        size = path.stat().st_size
        raw = path.read_bytes() if size <= MAX_BYTES else b""
    except OSError as error:
        known = f"no {kind} at `{path}`" if isinstance(error, FileNotFoundError) else f"cannot read `{path}`"
        more = near(path.name, [p.name for p in path.parent.glob("*.yaml")]) if path.parent.is_dir() else ""
        raise RecipeError(f"{known}: {error.strerror}{more}") from None
    if size > MAX_BYTES:
        raise RecipeError(f"`{path}` has {size} bytes; a {kind} has at most {MAX_BYTES}")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"`{path}` is not a text file: byte {error.start} is not UTF-8") from None
    if "\0" in text:
        raise RecipeError(f"`{path}` is not a text file: it holds a NUL byte")
    return parse(text, str(path))


def parse(text: str, name: str) -> Document:
    """Parse ``text``.

    Raises:
        RecipeError: names every duplicate key, or the first thing that stops the parser.
    """
    import yaml

    document = Document(name, text)
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        builder = _Builder(document, iter(yaml.parse(text, Loader=loader)))
        document.data = builder.document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        raise document.error([Problem(line, column, _plainly(error, text, line))]) from None
    except yaml.YAMLError as error:
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1
        column = position - (text.rfind("\n", 0, position) + 1) + 1
        raise document.error([Problem(line, column, "a character that YAML does not allow here")]) from None
    if builder.problems:
        raise document.error(builder.problems)
    return document


def _plainly(error: Any, text: str, line: int) -> str:
    """What the parser's words mean to a person."""
    lines = text.split("\n")
    here = lines[line - 1] if line <= len(lines) else ""
    before = lines[line - 2] if line >= 2 else ""
    if "\t" in here[: len(here) - len(here.lstrip())] or "'\\t'" in str(error.problem):
        return "a tab; YAML wants spaces for indentation"
    words = str(error.problem or error.context or "not YAML")
    if "mapping values are not allowed" in words or "did not find expected key" in words:
        return f"wrong indentation, or a missing quote or colon near here (YAML: {words})"
    if "unexpected end of stream" in words or "expected ',' or" in words:
        return f"a quote or bracket that is not closed (YAML: {words})"
    if "could not find expected ':'" in words:
        return f"a key without a colon: `{(here.strip() or before.strip())[:40]}`"
    return words


class _Builder:
    """Builds data from events; everything unwelcome stops it at once, except duplicate keys, which it gathers."""

    def __init__(self, document: Document, events: Iterator[Any]) -> None:
        self._document, self._events, self._nodes = document, events, 0
        self.problems: list[Problem] = []

    def document(self) -> Any:
        import yaml

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

    def _stop(self, event: Any, message: str) -> None:
        mark = event.start_mark
        raise self._document.error([Problem(mark.line + 1, mark.column + 1, message)])

    def _build(self, event: Any, where: Where, depth: int) -> Any:
        import yaml

        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._stop(event, f"more than {MAX_NODES} values")
        if depth > MAX_DEPTH:
            self._stop(event, f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(event, yaml.AliasEvent):
            self._stop(event, "an alias (`*…`); recipes have none, write the value again")
        if event.anchor is not None:
            self._stop(event, "an anchor (`&…`); recipes have none")
        if event.tag is not None:
            self._stop(event, f"a tag (`{event.tag}`); recipes have none")
        self._document.values[where] = (event.start_mark.line + 1, event.start_mark.column + 1)
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            return self._sequence(where, depth)
        return self._mapping(where, depth)

    def _sequence(self, where: Where, depth: int) -> list[Any]:
        import yaml

        made: list[Any] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            made.append(self._build(event, (*where, len(made)), depth + 1))
        return made

    def _mapping(self, where: Where, depth: int) -> dict[str, Any]:
        import yaml

        made: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent) or event.anchor or event.tag:
                self._stop(event, "a key must be plain text")
            key, place = str(event.value), (event.start_mark.line + 1, event.start_mark.column + 1)
            if key in made:
                first = self._document.keys[(*where, key)][0]
                self.problems.append(Problem(*place, f"key `{key}` stands here again; first on line {first}"))
            self._document.keys.setdefault((*where, key), place)
            made[key] = self._build(next(self._events), (*where, key), depth + 1)
        return made

    def _scalar(self, event: Any) -> Any:
        if event.style not in (None, ""):
            return event.value
        try:
            return resolve(event.value)
        except OverflowError:
            self._stop(event, "a number with too many digits")


def resolve(text: str) -> Any:
    """A plain scalar's value by YAML 1.2's core schema.

    Raises:
        OverflowError: a number longer than ``MAX_DIGITS``.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if any(re.fullmatch(pattern, text) for pattern in (_INT, _BASED, _FLOAT, _SPECIAL)):
        return _number(text)
    return text


def _number(text: str) -> int | float:
    if len(text) > MAX_DIGITS:
        raise OverflowError
    if re.fullmatch(_INT, text):
        return int(text)
    if re.fullmatch(_BASED, text):
        return int(text, 0)
    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))


def near(word: str, known: Iterable[str]) -> str:
    """``; did you mean `x`?`` where one of ``known`` is close to ``word``, else nothing."""
    import difflib  # only where something is wrong

    found = difflib.get_close_matches(word, list(known), 1, 0.6)
    return f"; did you mean `{found[0]}`?" if found else ""
