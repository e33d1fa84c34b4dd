"""YAML as recipes need it: bounded, YAML 1.2's core schema, every value's line and column, plain
words.

PyYAML gives the events; limits are checked on them, before anything is built. Aliases, tags and
several documents are refused: a recipe reads top to bottom. ``no`` is text, ``012`` is twelve.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from phipipe.errors import Located, Place, RecipeError
from phipipe.files import user_paths

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

MAX_BYTES = 2**20
MAX_DEPTH = 20
MAX_NODES = 20_000
MAX_DIGITS = 300  # of a number; longer ones are typing accidents, and slow to read
MAX_PROBLEMS = (
    50  # that one message lists; nobody reads more, and each costs a search for a suggestion
)
MAX_GUESSES = 4  # names that one "did you mean" has
MAX_SHOWN = 60  # characters of a user's value that a message repeats
MAX_LISTED = 6  # more choices than this are not listed in a message that has a suggestion

Where = tuple[str | int, ...]

# YAML 1.2.2, 10.3.2: the core schema's tag resolution.
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = r"[-+]?[0-9]+"
_BASED = r"0o[0-7]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
_SPECIAL = r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN"
_BREAK = "\r\n|[\n\r\x85\u2028\u2029]"  # what YAML's scanner counts as the end of a line
# YAML's c-printable, turned round; escapes in quotes could otherwise carry NUL into paths, ESC to
# terminals.
_CONTROL = "[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")


class Problem(NamedTuple):
    """Something wrong at a place; line and column count from 1, 0 means no place in the file."""

    line: int
    column: int
    message: str


class At(ValueError):
    """Raised by a model's validator: a rule is broken, and ``key`` is the value inside of it to
    look at."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass
class Document:
    """A file's data and where each value stands: ``keys`` and ``values`` map paths to (line,
    column)."""

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
        lines, found = re.split(_BREAK, self.text), sorted(set(problems))
        shown = [self._show(problem, lines) for problem in found[:MAX_PROBLEMS]]
        shown += ["… and more of the kind"] if len(found) > MAX_PROBLEMS else []
        return RecipeError(
            "\n".join(shown), hint=hint, problems=[self._located(problem) for problem in found]
        )

    def _located(self, problem: Problem) -> Located:
        return Located(
            problem.message, Place(self.name, problem.line or None, problem.column or None)
        )

    def _show(self, problem: Problem, lines: list[str]) -> str:
        if not problem.line:
            return problem.message
        head = f"{self.name}:{problem.line}:{problem.column}: {problem.message}"
        line = lines[problem.line - 1] if problem.line <= len(lines) else ""
        start = max(0, problem.column - 80)
        shown = "".join(c if c.isprintable() else " " for c in line[start : start + 110])
        return (
            f"{head}\n    {shown}\n    {' ' * (problem.column - 1 - start)}^"
            if shown.strip()
            else head
        )


def read(path: Path, kind: str = "recipe") -> Document:
    """Read and parse the file ``path``.

    Raises:
        RecipeError: it is missing, no text, too large, or not the YAML described above.
    """
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
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        known = f"no {kind} at `{path}`" if missing else f"cannot read `{path}`"
        beside = path.parent.glob("*.yaml") if missing and path.parent.is_dir() else ()
        more = near(
            path.name, [p.name for p in beside if near(path.stem, [p.stem])]
        )  # not for `.yaml` alone
        raise RecipeError(f"{known}: {error.strerror}{more}") from None
    if len(raw) > MAX_BYTES:
        raise RecipeError(
            f"{path}:1:1: the file is too large: a {kind} has at most {MAX_BYTES} bytes"
        )
    return parse(_decoded(raw, path), str(path))


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
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        before = re.split(_BREAK, raw[: error.start].decode("utf-8"))
        place = f"{path}:{len(before)}:{len(before[-1]) + 1}"
        raise RecipeError(
            f"{place}: this is not a text file: byte 0x{raw[error.start]:02x} is not UTF-8"
        ) from None
    return text


def parse(text: str, name: str) -> Document:
    """Parse ``text``.

    Raises:
        RecipeError: names every duplicate key, or the first thing that stops the parser.
    """
    import yaml

    document = Document(name, text)
    if control := re.search(
        _CONTROL, text
    ):  # PyYAML's two readers refuse it too, each with another position
        before = re.split(_BREAK, text[: control.start()])
        message = f"this is not a text file: it holds the control character {control.group()!a}"
        raise document.error([Problem(len(before), len(before[-1]) + 1, message)])
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        builder = _Builder(document, iter(yaml.parse(text, Loader=loader)))
        document.data = builder.document()
    except yaml.MarkedYAMLError as error:
        raise document.error([_plainly(error, text)]) from None
    except yaml.YAMLError:
        raise document.error([Problem(1, 1, "this is not YAML")]) from None
    if builder.problems:
        raise document.error(builder.problems)
    return document


def _plainly(error: Any, text: str) -> Problem:
    """What the parser's words mean to a person, at the place where it went wrong."""
    mark, start = error.problem_mark or error.context_mark, error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    lines = re.split(_BREAK, text)
    words = str(error.problem or error.context or "not YAML")
    if "escape" not in words and (opened := _left_open(text, line, column)):
        return opened
    if error.context == "while scanning a quoted scalar" and start and "escape" not in words:
        return Problem(start.line + 1, start.column + 1, "a quote that is never closed")
    lines += [""] * (line - len(lines))  # the scanner counts a line beyond the last
    here, rest = lines[line - 1], [lines[line - 1][column - 1 :], *lines[line:]]
    above = next(
        (
            i
            for i in range(line - 1, 0, -1)
            if lines[i - 1].strip() and lines[i - 1].lstrip()[0] != "#"
        ),
        0,
    )
    if "\t" in here[: _indent(here)] or "'\\t'" in words:
        return Problem(
            line, here.find("\t") + 1 or column, "a tab; YAML wants spaces for indentation"
        )
    if (
        bare := start.line + 1
        if start and "could not find expected ':'" in words
        else _bare(lines, above, words)
    ):
        key = lines[bare - 1].strip()
        return Problem(
            bare, lines[bare - 1].find(key) + 1, f"a key without a colon: `{shorten(key)}`"
        )
    if not "".join(rest).strip():
        last = line if here.strip() else above or 1
        return Problem(
            last,
            len(lines[last - 1]) or 1,
            "the file ends here, and a quote or bracket is not closed",
        )
    if "mapping values are not allowed" in words or "expected" in words:
        if (
            above and _indent(lines[above - 1]) % 2 > _indent(here) % 2
        ):  # an odd number of spaces is the likelier slip
            line, above, column = above, line, _indent(lines[above - 1]) + 1
        both = f"here or on line {above}" if above else "here"
        message = f"wrong indentation, or a missing quote, comma or colon, {both} (YAML: {words})"
        return Problem(line, column, message)
    if "cannot start any token" in words:
        return Problem(
            line,
            column,
            f"{here[column - 1 : column]} cannot begin a value; put the text in quotes",
        )
    return Problem(line, column, words)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _left_open(text: str, line: int, column: int) -> Problem | None:
    """A quote or bracket opened above ``line``, where the parser gave up: it is what is wrong, not
    the end."""
    import yaml

    brackets, quote = [], None
    try:
        for token in yaml.scan(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if (token.start_mark.line + 1, token.start_mark.column + 1) >= (line, column):
                break
            if isinstance(token, yaml.FlowMappingStartToken | yaml.FlowSequenceStartToken):
                brackets.append(token)
            elif (
                isinstance(token, yaml.FlowMappingEndToken | yaml.FlowSequenceEndToken) and brackets
            ):
                brackets.pop()
            elif (
                isinstance(token, yaml.ScalarToken)
                and not token.plain
                and token.style in ("'", '"')
            ):
                quote = token
    except yaml.YAMLError:
        pass  # the error that is being explained; what came before it counts
    if quote and quote.start_mark.line < quote.end_mark.line and quote.end_mark.line + 1 >= line:
        return Problem(
            quote.start_mark.line + 1, quote.start_mark.column + 1, "a quote that is never closed"
        )
    if brackets and brackets[-1].start_mark.line + 1 < line:
        mark = brackets[-1].start_mark
        sign = "{" if isinstance(brackets[-1], yaml.FlowMappingStartToken) else "["
        return Problem(
            mark.line + 1,
            mark.column + 1,
            f"a `{sign}` that is never closed, or a `,` missing after it",
        )
    return None


def _bare(lines: list[str], above: int, words: str) -> int:
    """The line ``above`` if it has text that swallowed the next key, since its own colon is
    missing; else 0."""
    if not above or "mapping values are not allowed" not in words:
        return 0
    text = lines[above - 1].lstrip().removeprefix("- ")
    return 0 if re.search(r":(\s|$)", text) or text.startswith("-") else above


class _Builder:
    """Builds data from events; everything unwelcome stops it at once, except duplicate keys, which
    it gathers."""

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
            self._stop(event, f"a tag (`{shorten(event.tag)}`); recipes have none")
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
            self._printable(event)
            key, place = str(event.value), (event.start_mark.line + 1, event.start_mark.column + 1)
            if key in made:
                first = self._document.keys[(*where, key)][0]
                self.problems.append(
                    Problem(
                        *place, f"key `{shorten(key)}` stands here again; first on line {first}"
                    )
                )
            self._document.keys.setdefault((*where, key), place)
            made[key] = self._build(next(self._events), (*where, key), depth + 1)
        return made

    def _scalar(self, event: Any) -> Any:
        self._printable(event)
        if event.style not in (None, ""):
            return event.value
        try:
            return resolve(event.value)
        except OverflowError:
            self._stop(event, "a number with too many digits")

    def _printable(self, event: Any) -> None:
        if control := re.search(_CONTROL, event.value):
            self._stop(event, f"text with the control character {control.group()!a}")


def resolve(text: str) -> Any:
    """A plain scalar's value by YAML 1.2's core schema.

    Raises:
        OverflowError: a number longer than ``MAX_DIGITS``.
    """
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if text[0] in "+-.0123456789" and any(
        re.fullmatch(p, text) for p in (_INT, _BASED, _FLOAT, _SPECIAL)
    ):
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


def shorten(text: str) -> str:
    """``text`` on one line, at most ``MAX_SHOWN`` characters of it."""
    text = " ".join(text.split()) if "\n" in text else text
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def near(word: str, known: Iterable[str]) -> str:
    """``; did you mean `x`?`` where one of ``known`` is close to ``word``, or some begin with it;
    else nothing."""
    import difflib  # only where something is wrong

    known = list(known)
    longer = [name for name in known if len(word) > 1 and name.startswith(word)]
    found = (
        longer
        if 0 < len(longer) <= MAX_GUESSES
        else difflib.get_close_matches(word[:200], known, 1, 0.6)
    )
    *others, last = (f"`{name}`" for name in found or [""])
    return f"; did you mean {', '.join(others)}{' or ' if others else ''}{last}?" if found else ""


def complaints(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[Where, str, bool]]:
    """pydantic's errors in plain words: (place, message, whether the place is a key)."""
    for item in error.errors(include_url=False):
        kind, given = item["type"], item.get("input")
        where: Where = tuple(part for part in item["loc"] if part != "[key]")
        name = str(where[-1]) if where else ""
        if kind == "extra_forbidden":
            unknown = f"unknown key `{shorten(name)}`{near(name, _fields(model, where[:-1]))}"
            yield (
                where,
                gone(model, name) if len(where) == 1 and gone(model, name) else unknown,
                True,
            )
        elif kind == "missing":
            yield where, f"`{name}` is missing", False
        elif kind == "literal_error":
            is_key = "[key]" in item["loc"]
            yield (
                where,
                _choice("metric" if is_key else "value", given, item["ctx"]["expected"]),
                is_key,
            )
        elif kind == "value_error":
            cause = item["ctx"]["error"]
            yield (*where, cause.key) if isinstance(cause, At) else where, str(cause), False
        elif kind == "string_pattern_mismatch":
            yield where, _pattern(name, str(given), item["ctx"]["pattern"]), False
        else:
            yield where, _expected(kind, given, item.get("ctx", {}), str(item["msg"])), False


def gone(model: type[BaseModel], name: str) -> str:
    """What to say of a key that earlier versions knew (the model's ``GONE``: key → advice); else
    nothing."""
    advice = getattr(model, "GONE", {}).get(name)
    return f"`{name}` is no key any more: {advice}" if advice else ""


def _choice(word: str, given: Any, expected: str) -> str:
    known = [choice.strip("'") for choice in expected.replace(" or ", ", ").split(", ")]
    if given is None:
        return f"no {word} here; it is one of {', '.join(known)}"
    guess = near(str(given), known)
    choices = f", it is one of {', '.join(known)}" if len(known) <= MAX_LISTED or not guess else ""
    shown = f"`{shorten(given)}`" if isinstance(given, str) else show(given)
    return f"unknown {word} {shown}{choices}{guess}"


def _expected(kind: str, given: Any, limits: dict[str, Any], otherwise: str) -> str:
    wanted = {
        "string_type": "text",
        "int_type": "a whole number",
        "int_from_float": "a whole number",
        "float_type": "a number",
        "bool_type": "true or false",
        "model_type": "a mapping of keys",
        "model_attributes_type": "a mapping of keys",
        "dict_type": "a mapping of keys",
        "list_type": "a list",
        "tuple_type": "a list",
    }
    if kind in wanted:
        quoted = isinstance(given, str) and kind in ("int_type", "float_type", "bool_type")
        advice = (
            "; take the quotes away"
            if quoted and not isinstance(resolve(given), str) and given
            else ""
        )
        if kind == "string_type" and isinstance(given, bool | int | float):
            advice = "; put it in quotes"
        return f"expected {wanted[kind]}, got {show(given)}{advice}"
    words = {
        "finite_number": "must be a finite number",
        "greater_than": f"must be greater than {limits.get('gt')}, not {show(given)}",
        "greater_than_equal": f"must be at least {limits.get('ge')}, not {show(given)}",
        "less_than_equal": f"must be at most {limits.get('le')}, not {show(given)}",
        "string_too_short": "must not be empty",
        "too_short": "must not be empty",
    }
    return words.get(kind, otherwise)


def _pattern(name: str, given: str, pattern: str) -> str:
    shown = shorten(given)
    if name == "revision" and re.fullmatch("[0-9a-fA-F]{4,}", given):
        return (
            f"`{shown}` is no full commit; a recipe pins one by all its 40 hexadecimal "
            f"digits, in lower case"
        )
    if name == "revision":
        return (
            f"`{shown}` is no commit; a recipe pins one, never a branch or tag: write the "
            f"commit's 40 hex digits"
        )
    if name == "repo":
        return f"`{shown}` is no repository; it is written OWNER/NAME"
    if name == "name":
        return (
            f"`{shown}` will not do: lower-case letters, digits, `.`, `_`, `-`; a letter or "
            f"digit first; at most 80"
        )
    return f"`{shown}` does not match the pattern {pattern}"


def _fields(model: type[BaseModel], where: Where) -> list[str]:
    """Keys that are known where an unknown one was found."""
    current: Any = model
    for part in where:
        annotation = current.model_fields[part].annotation if part in current.model_fields else None
        inner = [annotation, *getattr(annotation, "__args__", ())]
        current = next((kind for kind in inner if hasattr(kind, "model_fields")), current)
    return list(current.model_fields)


def show(value: Any) -> str:
    """A user's value as a message repeats it."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    return f"text `{shorten(value)}`" if isinstance(value, str) else f"`{shorten(str(value))}`"
