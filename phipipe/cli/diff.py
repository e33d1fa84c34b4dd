"""The command that compares two recipes, packages or runs: diff."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from phipipe.cli import answers
from phipipe.cli.groups import command
from phipipe.cli.messages import echo
from phipipe.cli.options import AS_JSON
from phipipe.cli.workplace import store_of_user

if TYPE_CHECKING:
    from phipipe.output.diff import Difference, Figure, Pair

SHOWN = 40  # differences of one build


@command("phipipe diff packages/quickstart-int4 packages/quickstart-int8")
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="[AFTER]", required=False)
@AS_JSON
def diff(before: str, after: str | None, as_json: bool) -> None:
    """Show what changed between two recipes, two packages or two runs.

    First come the figures, with their standard errors: a change is called one only beyond twice the
    error. Then come the inputs: recipe values, source, options, versions of tools. A run is named
    by its ID (`phipipe runs ls`) or `latest`, a package by its folder. OUT/NAME of a batch is the
    version accepted last; alone, its last two versions are compared.
    """
    from phipipe.diff import sides

    found = sides.compare(before, after, store_of_user().store)
    answers.give(found) if as_json else echo(_words(found))


def _words(found: Difference) -> str:
    lines = [f"before  {found.before}", f"after   {found.after}"]
    changed = [pair for pair in found.pairs if pair.inputs or pair.figures or pair.notes]
    for pair in changed:
        name = pair.before if pair.before == pair.after else f"{pair.before} → {pair.after}"
        lines += ["", name, *(f"  {line}" for line in _pair(pair))]
    if equal := len(found.pairs) - len(changed):
        same = "nothing differs" if not changed else f"{equal} more without a difference"
        lines += ["", same]
    lines += [f"only before: {name}" for name in found.only_before]
    lines += [f"only after: {name}" for name in found.only_after]
    return "\n".join(lines)


def _pair(pair: Pair) -> list[str]:
    from phipipe.cli import tables

    rows = [_figure(figure) for figure in pair.figures]
    lines = tables.table(rows).splitlines() if rows else []
    lines += [f"note: {note}" for note in pair.notes]
    lines += [f"{change.what}: {change.words}" for change in pair.inputs[:SHOWN]]
    if len(pair.inputs) > SHOWN:
        lines.append(f"and {len(pair.inputs) - SHOWN} more: --json has all")
    return lines if pair.inputs else [*lines, "inputs: nothing differs"]


def _figure(figure: Figure) -> dict[str, str]:
    from phipipe.metrics import METRICS
    from phipipe.package import figures

    metric = METRICS[figure.metric]
    sides = [
        " ".join(figures.shown(metric, value, error)) if value is not None else "–"
        for value, error in (
            (figure.before, figure.before_stderr),
            (figure.after, figure.after_stderr),
        )
    ]
    limit = figures.number((figure.limit or 0.0) * metric.factor, 2)
    words = {
        "same": "equal" if figure.before == figure.after else f"no change beyond ± {limit}",
        "unlike": "not taken alike",
        "added": "measured after only",
        "removed": "measured before only",
    }
    verdict = words.get(figure.verdict, figure.verdict)
    if figure.limit is None and figure.verdict in ("better", "worse") and metric.kind == "speed":
        verdict += "; its spread is not known"
    return {"figure": figure.metric, "before": sides[0], "after": sides[1], "change": verdict}
