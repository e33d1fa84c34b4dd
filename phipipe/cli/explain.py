"""What stands behind a rule, a fix-up or an exit code: why, since when, where it is discussed, what
to do.

What a rule says and advises comes from its row in the tables of rules; the rest from
``assets/explanations.yaml``, one entry for each id. A new rule needs an entry there, and a test
says so.
"""

from __future__ import annotations

import re
import string
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field, TypeAdapter

from phipipe import __version__, backends
from phipipe.backends import fixups, model_rules
from phipipe.backends.rules import Fixup, Rule
from phipipe.errors import RecipeError
from phipipe.models import remarks
from phipipe.recipe import document
from phipipe.recipe.recipe import Model
from phipipe.suggestions import near, shorten

SINCE = f"phipipe {__version__}"  # of what no version of a tool brought
FILE = Path(__file__).parents[1] / "assets" / "explanations.yaml"


class Facts(Model):
    """Of a rule or a fix-up."""

    why: str = Field(min_length=1)
    since: str = Field(min_length=1)
    upstream: tuple[str, ...] = ()


class Exit(Model):
    """Of an exit code."""

    what: str = Field(min_length=1)
    why: str = Field(min_length=1)
    do: str = Field(min_length=1)


class Table(Model):
    """The file."""

    rules: dict[str, Facts]
    fixups: dict[str, Facts]
    exits: dict[str, Exit]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """``kind`` is "error" or "warning" (of a rule), "fix-up" or "exit code"; ``also`` are ids that
    lead here, too."""

    id: str
    kind: str
    what: str
    why: str
    do: str
    since: str | None = None
    upstream: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


@cache
def table() -> Table:
    """The facts of ``FILE``."""
    data = document.parse(FILE.read_text("utf-8"), FILE.name).data
    named = {**data, "exits": {str(code): row for code, row in data["exits"].items()}}
    return TypeAdapter(Table).validate_python(named)


def every_rule() -> Iterator[Rule]:
    """Rules of all tables; some ids stand in several."""
    yield from model_rules.RULES
    for face in map(backends.load, backends.names()):
        yield from face.rules


def every_fixup() -> Iterator[Fixup]:
    """Fix-ups of all tables."""
    yield from fixups.FIXUPS
    for face in map(backends.load, backends.names()):
        yield from face.fixups


@cache
def explanations() -> Mapping[str, Explanation]:
    """All of them by id: exit codes, rules, fix-ups."""
    known = table()
    rows = {
        code: Explanation(id=code, kind="exit code", **row.model_dump())
        for code, row in known.exits.items()
    }
    advised = {rule.id: rule for rule in every_rule()}
    rows |= {name: _of_rule(advised[name], known.rules[name]) for name in sorted(advised)}
    rows |= {name: _of_remark(name, kind) for name, kind in remarks.KINDS.items()}
    fixups = sorted(every_fixup(), key=lambda fix: fix.id)
    alone = {fix.id: tuple({fix.rule} - rows.keys() - {fix.id}) for fix in fixups}
    return rows | {fix.id: _of_fixup(fix, known.fixups[fix.id], alone[fix.id]) for fix in fixups}


def find(name: str) -> Explanation:
    """The explanation of ``name``: a rule's or fix-up's id in any case, or an exit code.

    Raises:
        RecipeError: there is none of that name.
    """
    known = dict(explanations())
    known |= {also: one for one in explanations().values() for also in one.also}
    wanted = name.strip().strip("[]").upper()
    if wanted in known:
        return known[wanted]
    same = [one for one in known if one[:1] == wanted[:1]]
    guess = near(wanted, known) or (f"; there are {', '.join(same)}" if same else "")
    raise RecipeError(
        f"nothing is called `{shorten(name)}`{guess}",
        hint="`phipipe explain` lists everything",
    )


def _of_rule(rule: Rule, facts: Facts) -> Explanation:
    wider = "; ".join(f"{name}: {backends.load(name).wider}" for name in backends.names())
    do = _general(rule.hint or "", {"wider": wider})
    return Explanation(
        id=rule.id, kind=rule.level, what=_general(rule.message), do=do, **facts.model_dump()
    )


def _of_remark(name: str, kind: remarks.Kind) -> Explanation:
    do = kind.hint or "nothing: it is said so that nobody wonders"
    return Explanation(
        id=name, kind="warning", what=_general(kind.message), why=kind.why, do=do, since=SINCE
    )


def _of_fixup(fix: Fixup, facts: Facts, also: tuple[str, ...]) -> Explanation:
    do = (
        "nothing: it is made in a staged copy and recorded in the package's manifest; the "
        "source is never changed"
    )
    return Explanation(
        id=fix.id, kind="fix-up", what=fix.reason, do=do, also=also, **facts.model_dump()
    )


def _general(text: str, words: Mapping[str, str] | None = None) -> str:
    """A rule's words where no build is at hand: ``{checkpoint.sliding_window}`` becomes
    SLIDING_WINDOW."""
    parts = []
    for before, name, _, _ in string.Formatter().parse(text):
        parts.append(before)
        if name:
            parts.append((words or {}).get(name, re.split(r"[.]", name)[-1].upper()))
    return "".join(parts)


def text(one: Explanation) -> str:
    """An explanation for people."""
    parts = {
        "what": one.what,
        "why": one.why,
        "since": one.since,
        "upstream": ", ".join(one.upstream),
        "do": one.do,
    }
    if one.also:
        parts["also"] = ", ".join(one.also)
    lines = [f"{one.id}  {one.kind}"]
    for head, words in parts.items():
        if words:
            start = f"  {head:10}"
            lines += textwrap.wrap(
                words,
                100,
                initial_indent=start,
                subsequent_indent=" " * len(start),
                break_long_words=False,
            )
    return "\n".join(lines)


def rows() -> list[dict[str, str]]:
    """All of them for people, a row each."""
    return [{"id": one.id, "kind": one.kind, "what": one.what} for one in explanations().values()]
