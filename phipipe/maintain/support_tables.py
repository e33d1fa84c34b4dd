"""Tables of devices × backends × precisions, and of family members × backends, for the reference.

Devices with the same units are one row. A cell holds the bits that can be built: 4, 8 (integers),
16, 32 (floats). Family members are judged by the rules that ``plan`` applies, with each backend's
default options.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache

from phipipe import backends
from phipipe.backends import fixups, model_rules, rules
from phipipe.backends.base import Job
from phipipe.maintain.markdown import table
from phipipe.models import checkpoints, family
from phipipe.models.checkpoint import Checkpoint
from phipipe.recipe import device
from phipipe.recipe.device import Device
from phipipe.recipe.recipe import Recipe
from phipipe.recipe.source import Source
from phipipe.steps import Advice, Json
from phipipe.vision import kinds

BITS = {"int4": "4", "int8": "8", "fp16": "16", "fp32": "32"}


def support() -> str:
    """Devices and their units against backends."""
    names = backends.names()
    rows = []
    for members in _groups():
        first = ", ".join(f"`{d.name}`" for d in members)
        for unit in members[0].units:
            cells = [
                " ".join(BITS[p] for p in BITS if p in backends.able(name, members[0], unit))
                for name in names
            ]
            rows.append([first, unit.api, *cells])
            first = ""
    return table(["devices", "unit", *(f"`{name}`" for name in names)], rows)


def _groups() -> list[list[Device]]:
    """Devices that differ in memory or words only, in order of their names."""
    groups: dict[tuple[object, ...], list[Device]] = {}
    for name in device.names():
        target = device.load(name)
        kind = (target.systems, tuple((unit.api, unit.precisions) for unit in target.units))
        groups.setdefault(kind, []).append(target)
    return [
        sorted(members, key=lambda d: (d.memory_gib or 0, d.name)) for members in groups.values()
    ]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What the rules say of a row of the family on one backend: id → words, for each kind of
    verdict."""

    row: str
    backend: str
    errors: Mapping[str, str]
    fixups: Mapping[str, str]
    limits: Mapping[str, str]

    @property
    def works(self) -> bool:
        return not self.errors

    def words(self) -> str:
        """ "✓", "✓ F1 M15", or what it is refused for: "– M03"."""
        return " ".join(
            ["✓", *self.fixups, *self.limits] if self.works else ["–", *list(self.errors)[:1]]
        )


@cache
def cells() -> tuple[Cell, ...]:
    """Every row of the family × every backend. What holds for one member of a row is said of the
    row."""
    rows = dict.fromkeys(member.row for member in family.MEMBERS)
    return tuple(_cell(row, name) for row in rows for name in backends.names())


def _cell(row: str, name: str) -> Cell:
    backend = backends.load(name)
    served = {precision for table in backend.precisions.values() for precision in table}
    precision = "fp32" if "fp32" in served else "int8"
    recipe = Recipe(
        name="table", source=Source(path="."), device="any", backend=name, precision=precision
    )
    advice = list[Advice]()
    patches: dict[str, dict[str, Json]] = {}
    for member in (member for member in family.MEMBERS if member.row == row):
        whole = checkpoints.of_config(member.config, member.tokenizer)
        checkpoint, more = _advised(recipe, whole, refused=_refuses(advice))
        advice += more
        patches |= fixups.needed(recipe, checkpoint)
    return Cell(
        row=row,
        backend=name,
        errors={a.rule: a.message for a in advice if a.level == "error"},
        fixups={name: str(fix["reason"]) for name, fix in sorted(patches.items())},
        limits={
            a.rule: a.message for a in advice if a.level == "warning" and a.rule.startswith("M")
        },
    )


def _refuses(advice: Iterable[Advice]) -> bool:
    return any(one.level == "error" for one in advice)


def _advised(
    recipe: Recipe, whole: Checkpoint, *, refused: bool
) -> tuple[Checkpoint, list[Advice]]:
    """What is built of ``whole``, and what the rules say; of a model that sees only its language
    model is, if nothing is ``refused`` so far."""
    backend = backends.load(recipe.backend)
    job = Job(recipe, backend.options(), whole)
    advice = rules.check(job, model_rules.RULES)
    if kinds.sees(whole) and not refused and not _refuses(advice):
        job = replace(job, checkpoint=kinds.language(whole))
        advice += rules.check(job, model_rules.RULES)
    advice += rules.check(job, backend.rules)
    return job.checkpoint, advice


def family_table(group: str) -> str:
    """Rows of a group of the family against backends."""
    names = backends.names()
    rows = []
    for row in dict.fromkeys(m.row for m in family.MEMBERS if m.group == group):
        words = [_linked(cell.words()) for cell in cells() if cell.row == row]
        rows.append([row, *words])
    return table(["models", *(f"`{name}`" for name in names)], rows)


def _linked(words: str) -> str:
    """Marks lead to their explanations."""
    return re.sub(r"\b[A-Z]\d\d?\b", lambda m: f"[{m[0]}](rules.md#{m[0].lower()})", words)


def family_legend(group: str) -> dict[str, str]:
    """Mark → its words, of all marks in the group's table."""
    legend: dict[str, str] = {}
    rows = {m.row for m in family.MEMBERS if m.group == group}
    for cell in (cell for cell in cells() if cell.row in rows):
        first = dict(list(cell.errors.items())[:1])
        shown = {**cell.fixups, **cell.limits} if cell.works else first
        legend |= {mark: words for mark, words in shown.items() if mark not in legend}
    return dict(sorted(legend.items()))
