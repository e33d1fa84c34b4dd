"""What a file says and where each value stands, so that every complaint has its line and column."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from phipipe.errors import Located, Place, RecipeError
from phipipe.steps import Json

MAX_PROBLEMS = 50  # that one message lists: nobody reads more, and each costs a search
BREAK = "\r\n|[\n\r\x85\u2028\u2029]"  # what YAML's scanner counts as the end of a line

Where = tuple[str | int, ...]


class Problem(NamedTuple):
    """Something wrong at a place; line and column count from 1, 0 means no place in the file."""

    line: int
    column: int
    message: str


@dataclass
class Document:
    """A file's data and where each value stands: ``keys`` and ``values`` map paths to (line,
    column)."""

    name: str
    text: str
    data: Json = None
    keys: dict[Where, tuple[int, int]] = field(default_factory=dict)
    values: dict[Where, tuple[int, int]] = field(default_factory=dict)

    def place(self, where: Where, key: bool = False) -> tuple[int, int]:
        """Line and column of what ``where`` names, or of the nearest thing around it."""
        while where and where not in self.values:
            where = where[:-1]
            key = False
        own = self.keys if key else self.values
        return own.get(where) or self.values.get(where) or (1, 1)

    def error(self, problems: Iterable[Problem], hint: str | None = None) -> RecipeError:
        """One error for all ``problems``: ``file:line:col: message``, the line, and a caret."""
        lines, distinct = re.split(BREAK, self.text), sorted(set(problems))
        shown = [self._show(problem, lines) for problem in distinct[:MAX_PROBLEMS]]
        shown += ["… and more of the kind"] if len(distinct) > MAX_PROBLEMS else []
        return RecipeError(
            "\n".join(shown), hint=hint, problems=[self._located(problem) for problem in distinct]
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
        if not shown.strip():
            return head
        return f"{head}\n    {shown}\n    {' ' * (problem.column - 1 - start)}^"
