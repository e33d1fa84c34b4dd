"""Plans in words and as documents: what they cost, what machines do them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from phipipe import words
from phipipe.api.show import advice_json, heading, hint_lines, source_words, warning_lines
from phipipe.errors import PhipipeError
from phipipe.execution import disk, outlook
from phipipe.execution.outlook import Cost, Outlook
from phipipe.execution.results import Forecast
from phipipe.output import documents
from phipipe.output import planned as output
from phipipe.output.batch import Foreseen, ForeseenBuild, batch_error_of
from phipipe.planning import sampled, usual
from phipipe.steps import Step
from phipipe.words import counted

if TYPE_CHECKING:
    from phipipe.batch.selection import Item
    from phipipe.cluster.places import Workers
    from phipipe.planning.plan import Plan

MACHINES = 3  # names of machines that one line of a table has
NAMED = 3  # steps that a sentence names

Table = Callable[[Sequence[Mapping[str, str]]], str]
"""What makes text of rows, each with the same names."""


def describe(one: Outlook, table: Table, workers: Workers | None = None) -> str:
    """A build's steps: cached or not, why, what they need and how long they take.

    ``table`` makes text of rows.
    """
    planned = one.plan
    lines = [heading(planned)]
    lines += [f"  {line}" for line in warning_lines(planned)]
    lines += [f"  fix-up {name}: {fix['reason']}" for name, fix in planned.fixups.items()]
    lines += [f"  {line}" for line in table(rows(one, workers)).splitlines()]
    if planned.matrices:
        lines += [f"  {line}" for line in table(matrix_rows(planned)).splitlines()]
        lines.append(f"  {matrices_words(planned)}")
    if planned.fit is not None:
        memory_gib = planned.fit.memory_gib
        room = f", of {memory_gib:g} GiB" if memory_gib else ""
        lines.append(f"  on the device about {planned.fit.words()}{room}")
    of = counted(len(one.forecast), "step")
    lines.append(f"  {one.cost.steps} of {of} will run{cost_words(one.cost)}")
    foreseen = (*usual.lines(planned), *sampled.lines(planned), *hint_lines([planned]))
    lines += [f"  {line}" for line in foreseen]
    return "\n".join(lines)


def rows(one: Outlook, workers: Workers | None) -> list[dict[str, str]]:
    """A line for each step; the last column is as long as it is."""
    made = []
    for item in one.forecast:
        step, estimate = item.step, one.estimates.get(item.step.name)
        row = {
            "step": step.name,
            "state": f"cached {str(item.key)[:12]}" if item.cached else "will run",
            "disk": size(disk.written_bytes(step, one.keep_all)),
            "memory": size(step.memory_bytes),
            "time": words.duration(estimate.seconds) if estimate else "-",
        }
        if workers is not None:
            row["where"] = "-" if item.cached else _where(step, workers)
        made.append({**row, "why": item.why})
    return made


def matrix_rows(planned: Plan) -> list[dict[str, str]]:
    """A line for each kind of matrices and each width that a map, or learned weights, have for
    it."""
    return [
        {
            "matrices": one.name,
            "count": str(one.count),
            "stored as": one.width,
            "size": words.human(one.size_bytes),
        }
        for one in planned.matrices
    ]


def matrices_words(planned: Plan) -> str:
    """What they take together, and the whole artifact."""
    assert planned.fit is not None  # matrices are of an artifact
    named, whole = words.human(_matrices_bytes(planned)), words.human(planned.fit.weight_bytes)
    return f"these take {named} of the artifact's {whole}"


def _matrices_bytes(planned: Plan) -> int:
    return sum(one.size_bytes for one in planned.matrices)


def _where(step: Step, workers: Workers) -> str:
    names = workers.place(step).machines
    more = f" and {len(names) - MACHINES} more" if len(names) > MACHINES else ""
    return ", ".join(names[:MACHINES]) + more if names else "NOWHERE"


def size(size_bytes: int) -> str:
    """A size in a table's cell."""
    return words.size(size_bytes) if size_bytes else "-"


def cost_words(cost: Cost) -> str:
    """What steps write and take, after how many there are."""
    if not cost.steps:
        return ""
    room = cost.disk
    peak = f"; peak about {words.size(room.peak)} of disk"
    peak += f", {words.size(cost.memory_bytes)} of memory" if cost.memory_bytes else ""
    kept = f"{words.size(room.kept)} of it stay in the cache"
    kept += f", {words.size(room.delivered)} in the package's folder" if room.delivered else ""
    return f", writing about {words.size(room.written)}{peak}\n  {kept}\n  {time_words(cost)}"


def time_words(cost: Cost) -> str:
    """How long steps take, one after another, what tells so, and of which nothing does."""
    if not cost.steps:
        return "nothing is left to do"
    if cost.seconds is None:
        return "how long that takes, no earlier run tells"
    names = [f"`{name}`" for name in cost.unknown[:NAMED]]
    more = len(cost.unknown) - len(names)
    unknown = ", ".join([*names, *([f"{more} more"] if more > 0 else [])])
    about = words.duration(cost.seconds)
    told = [f"from {counted(cost.earlier, 'earlier result')}"] if cost.earlier else []
    if cost.assumed:
        told.append(f"for {counted(cost.assumed, 'step')} from times measured on two cores")
    source = " and ".join(told)
    if unknown:
        return f"at least {about}, {source}; no earlier run tells of {unknown}"
    return f"about {about}, {source}"


def plan_json(
    one: Outlook, refusal: PhipipeError | None, workers: Workers | None = None
) -> output.Planned:
    """A plan for machines; ``refusal``: why `run` would refuse."""
    planned = one.plan
    recipe, fit = planned.build.recipe, planned.fit
    return output.Planned(
        name=planned.build.name,
        device=planned.device.name,
        unit=planned.api,
        backend=recipe.backend,
        precision=recipe.precision,
        source=source_words(planned),
        on_target=planned.on_target,
        memory_bytes=planned.memory_bytes,
        fit=None if fit is None else output.Fit(**fit.as_json()),
        matrices=[output.Matrices(**asdict(group)) for group in planned.matrices],
        matrices_bytes=_matrices_bytes(planned),
        warnings=advice_json(planned),
        fixups={
            name: output.Fixup(rule=fix["rule"], reason=fix["reason"], patch=fix["patch"])
            for name, fix in planned.fixups.items()
        },
        steps=[_step(item, one, workers) for item in one.forecast],
        seconds=_rounded(one.cost.seconds),
        written_bytes=one.cost.disk.written,
        peak_disk_bytes=one.cost.disk.peak,
        kept_bytes=one.cost.disk.kept,
        delivered_bytes=one.cost.disk.delivered,
        refusal=None if refusal is None else documents.error_of(refusal),
    )


def _step(item: Forecast, one: Outlook, workers: Workers | None) -> output.PlannedStep:
    step, estimate = item.step, one.estimates.get(item.step.name)
    asked = workers is not None and not item.cached
    return output.PlannedStep(
        name=step.name,
        runs=step.runs,
        toolchain=step.toolchain,
        key=item.key,
        cached=item.cached,
        why=item.why,
        output_bytes=step.output_bytes,
        written_bytes=disk.written_bytes(step, one.keep_all),
        memory_bytes=step.memory_bytes,
        seconds=_rounded(estimate.seconds if estimate else None),
        earlier=estimate.earlier if estimate else 0,
        machines=list(workers.place(step).machines) if workers and asked else None,
    )


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 1)


def foreseen_json(
    items: Sequence[Item], outlooks: Sequence[Outlook], warnings: Sequence[str]
) -> Foreseen:
    """What a batch would do, for machines."""
    by_plan = {id(one.plan): one for one in outlooks}
    cost = outlook.total(outlooks)
    return Foreseen(
        dry_run=True,
        builds=[_build(item, by_plan.get(id(item.plan)) if item.plan else None) for item in items],
        steps_to_run=cost.steps,
        output_bytes=cost.disk.written,
        peak_disk_bytes=cost.disk.peak,
        memory_bytes=cost.memory_bytes,
        seconds=_rounded(cost.seconds),
        unknown=list(cost.unknown),
        warnings=list(warnings),
    )


def _build(item: Item, one: Outlook | None) -> ForeseenBuild:
    recipe = item.build.recipe if item.build else None
    cost = one.cost if one else None
    return ForeseenBuild(
        name=item.name,
        recipe=item.path.as_posix(),
        device=recipe.device if recipe else None,
        backend=recipe.backend if recipe else None,
        precision=recipe.precision if recipe else None,
        cached=bool(cost and not cost.steps),
        steps=len(one.forecast) if one else 0,
        steps_to_run=cost.steps if cost else 0,
        output_bytes=cost.disk.written if cost else 0,
        memory_bytes=cost.memory_bytes if cost else 0,
        seconds=_rounded(cost.seconds) if cost else None,
        unknown=list(cost.unknown) if cost else [],
        error=batch_error_of(item.error) if item.error else None,
    )
