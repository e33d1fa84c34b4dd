"""What YAML's parser says went wrong, in plain words and at the place where a person would look."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from phipipe.recipe.places import BREAK, Problem
from phipipe.suggestions import shorten

_OPENING = (yaml.FlowMappingStartToken, yaml.FlowSequenceStartToken)
_CLOSING = (yaml.FlowMappingEndToken, yaml.FlowSequenceEndToken)


@dataclass(frozen=True)
class _Failure:
    """Where the parser gave up and its words; lines and columns count from 1.

    ``lines`` are those of ``text``, up to ``line`` at least: the scanner counts one beyond the
    last.
    ``start`` is the parser's mark of what it was reading then.
    """

    text: str
    lines: list[str]
    line: int
    column: int
    words: str
    start: Any
    context: str | None

    @property
    def here(self) -> str:
        return self.lines[self.line - 1]

    @property
    def above(self) -> int:
        """The last line before that says something; 0 where there is none."""
        for number in range(self.line - 1, 0, -1):
            text = self.lines[number - 1].strip()
            if text and text[0] != "#":
                return number
        return 0

    @property
    def about_escapes(self) -> bool:
        return "escape" in self.words


def explain(error: yaml.MarkedYAMLError, text: str) -> Problem:
    """What ``error``, which the parser raised for ``text``, means to a person."""
    mark = error.problem_mark or error.context_mark
    line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    lines = re.split(BREAK, text)
    lines += [""] * (line - len(lines))
    words = str(error.problem or error.context or "not YAML")
    failure = _Failure(text, lines, line, column, words, error.context_mark, error.context)
    for look in _LOOKS:
        if problem := look(failure):
            return problem
    return Problem(line, column, words)


def _left_open(failure: _Failure) -> Problem | None:
    """A quote or bracket opened above the line where the parser gave up: it is what is wrong."""
    if failure.about_escapes:
        return None
    quote, bracket = _opened_before(failure)
    line = failure.line
    if quote and quote.start_mark.line < quote.end_mark.line and quote.end_mark.line + 1 >= line:
        return _never_closed(quote.start_mark)
    if bracket and bracket.start_mark.line + 1 < line:
        sign = "{" if isinstance(bracket, yaml.FlowMappingStartToken) else "["
        message = f"a `{sign}` that is never closed, or a `,` missing after it"
        return Problem(bracket.start_mark.line + 1, bracket.start_mark.column + 1, message)
    return None


def _opened_before(failure: _Failure) -> tuple[Any, Any]:
    """Tokens before the failure: the last text in quotes, the innermost bracket that is open."""
    brackets, quote = [], None
    for token in _tokens_before(failure):
        if isinstance(token, _OPENING):
            brackets.append(token)
        elif isinstance(token, _CLOSING) and brackets:
            brackets.pop()
        elif isinstance(token, yaml.ScalarToken) and not token.plain and token.style in ("'", '"'):
            quote = token
    return quote, brackets[-1] if brackets else None


def _tokens_before(failure: _Failure) -> Iterator[Any]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        for token in yaml.scan(failure.text, Loader=loader):
            place = token.start_mark.line + 1, token.start_mark.column + 1
            if place >= (failure.line, failure.column):
                return
            yield token
    except yaml.YAMLError:
        pass  # the error that is being explained; what came before it counts


def _unclosed_quote(failure: _Failure) -> Problem | None:
    scanning = failure.context == "while scanning a quoted scalar"
    if not scanning or not failure.start or failure.about_escapes:
        return None
    return _never_closed(failure.start)


def _never_closed(mark: Any) -> Problem:
    return Problem(mark.line + 1, mark.column + 1, "a quote that is never closed")


def _tab(failure: _Failure) -> Problem | None:
    here = failure.here
    if "\t" not in here[: _indent(here)] and "'\\t'" not in failure.words:
        return None
    column = here.find("\t") + 1 or failure.column
    return Problem(failure.line, column, "a tab; YAML wants spaces for indentation")


def _key_without_colon(failure: _Failure) -> Problem | None:
    line = _line_without_colon(failure)
    if not line:
        return None
    text = failure.lines[line - 1]
    key = text.strip()
    return Problem(line, text.find(key) + 1, f"a key without a colon: `{shorten(key)}`")


def _line_without_colon(failure: _Failure) -> int:
    """The line of a key that lacks its colon, and so may have swallowed the next key; else 0."""
    if failure.start and "could not find expected ':'" in failure.words:
        return int(failure.start.line) + 1
    above = failure.above
    if not above or "mapping values are not allowed" not in failure.words:
        return 0
    text = failure.lines[above - 1].lstrip().removeprefix("- ")
    return 0 if re.search(r":(\s|$)", text) or text.startswith("-") else above


def _early_end(failure: _Failure) -> Problem | None:
    rest = [failure.here[failure.column - 1 :], *failure.lines[failure.line :]]
    if "".join(rest).strip():
        return None
    last = failure.line if failure.here.strip() else failure.above or 1
    message = "the file ends here, and a quote or bracket is not closed"
    return Problem(last, len(failure.lines[last - 1]) or 1, message)


def _indentation(failure: _Failure) -> Problem | None:
    words = failure.words
    if "mapping values are not allowed" not in words and "expected" not in words:
        return None
    line, column, above = failure.line, failure.column, failure.above
    indent = _indent(failure.lines[above - 1]) if above else 0
    if indent % 2 > _indent(failure.here) % 2:  # an odd number of spaces is the likelier slip
        line, above, column = above, line, indent + 1
    both = f"here or on line {above}" if above else "here"
    message = f"wrong indentation, or a missing quote, comma or colon, {both} (YAML: {words})"
    return Problem(line, column, message)


def _unquoted_sign(failure: _Failure) -> Problem | None:
    if "cannot start any token" not in failure.words:
        return None
    sign = failure.here[failure.column - 1 : failure.column]
    message = f"{sign} cannot begin a value; put the text in quotes"
    return Problem(failure.line, failure.column, message)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


# The likelier causes first: the first that fits is told.
_LOOKS: tuple[Callable[[_Failure], Problem | None], ...] = (
    _left_open,
    _unclosed_quote,
    _tab,
    _key_without_colon,
    _early_end,
    _indentation,
    _unquoted_sign,
)
