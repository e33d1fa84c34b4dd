"""Two recorded runs: which steps were done otherwise, why, and what their figures are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from phipipe import metrics
from phipipe.diff import sampled
from phipipe.diff.changes import paired
from phipipe.diff.measured import Measured, figures, measured
from phipipe.errors import StoreError
from phipipe.evaluate import reports, run_reports, sampling
from phipipe.evaluate.answer_reports import Answers
from phipipe.evaluate.reports import Metrics, R, Speed, Vision
from phipipe.evaluate.run_reports import AsRun
from phipipe.execution import why
from phipipe.execution.past_runs import Run
from phipipe.metrics import METRICS
from phipipe.output.diff import Change, Difference, Pair
from phipipe.steps import Json
from phipipe.store.store import Store

KEY = re.compile("[0-9a-f]{64}")
TOLD = ("version", "params", "tools", "host")  # of a step's record
Steps = Mapping[str, str]  # step's name → key of its result


@dataclass(frozen=True)
class Ended:
    """A build of a run: the results of its steps, and how it ended."""

    steps: Steps
    said: str


def compare(before: Run, after: Run, store: Store) -> Difference:
    """What two runs of ``store`` differ in, as far as their results are still there."""
    old, new = _builds(before), _builds(after)
    both = list(paired(old, new))
    return Difference(
        kind="runs",
        before=before.id,
        after=after.id,
        pairs=[_pair((a, old[a]), (b, new[b]), store) for a, b in both],
        only_before=[name for name in old if name not in {a for a, _ in both}],
        only_after=[name for name in new if name not in {b for _, b in both}],
    )


def _builds(run: Run) -> dict[str, Ended]:
    """By name; a step whose label has no build's name belongs to all of them."""
    steps: dict[str, dict[str, str]] = {name: {} for name in run.builds}
    said = dict.fromkeys(run.builds, "it did not end")
    for event in run.events:
        key = str(event.get("key"))
        if event["event"] == "step_finished" and KEY.fullmatch(key):
            owner, _, step = str(event["step"]).rpartition(": ")
            for name in [owner] if owner in steps else steps:
                steps[name][step] = key
        if event["event"] == "build_finished" and event["build"] in said:
            said[event["build"]] = "it was built" if event["ok"] else str(event.get("message"))
    return {name: Ended(own, said[name]) for name, own in steps.items()}


def _pair(before: tuple[str, Ended], after: tuple[str, Ended], store: Store) -> Pair:
    (old_name, old), (new_name, new) = before, after
    notes = []
    if old.said != new.said:
        notes.append(f"before: {old.said}; after: {new.said}")
    inputs, gone = [], 0
    for step in dict.fromkeys([*old.steps, *new.steps]):
        changed = _step(step, old.steps.get(step), new.steps.get(step), store)
        gone += changed is None
        inputs += changed or []
    if gone:
        notes.append(f"of {gone} changed steps a record is gone from the cache")
    alike = _alike(old.steps, new.steps, store)
    was, now = (_report("evaluate", Metrics, one.steps, store) for one in (old, new))
    if was and now:
        notes += sampled.notes(was, now, _window(new.steps, store))
        both = sampling.alike(was, now)
        alike -= set() if both else metrics.names("fidelity")
        was, now = both or (was, now)
    return Pair(
        before=old_name,
        after=new_name,
        inputs=inputs,
        figures=figures(_measured(was, old.steps, store), _measured(now, new.steps, store), alike),
        notes=notes,
    )


def _step(name: str, old: str | None, new: str | None, store: Store) -> list[Change] | None:
    """What a step's results differ in; None: a record is gone. Inputs that differ are no news: what
    made them is told."""
    if old == new:
        return []
    if old is None or new is None:
        words = "not done → done" if old is None else "done → not done"
        return [Change(what=f"{name}", before=old, after=new, words=words)]
    records = [_record(key, store) for key in (old, new)]
    if None in records:
        return None
    first, second = ({k: v for k, v in (r or {}).items() if k in TOLD} for r in records)
    for record in (first, second):
        record["params"] = {k: v for k, v in record["params"].items() if k != "steps"}
    return [
        Change(
            what=f"{name}: {path}",
            before=why.known(was),
            after=why.known(now),
            words=why.shown(was, now),
        )
        for path, was, now in why.leaves(first, second)
    ]


def _record(key: str, store: Store) -> dict[str, Json] | None:
    try:
        return store.record(key)
    except StoreError:
        return None


def _window(steps: Steps, store: Store) -> int:
    """Tokens of a window."""
    record = _record(steps["baseline"], store) if "baseline" in steps else None
    return int(record["params"]["window"]) if record else 0


def _measured(scored: Metrics | None, steps: Steps, store: Store) -> Measured:
    return measured(
        scored,
        _report("measure", Speed, steps, store),
        _report("vision-evaluate", Vision, steps, store),
        _report("answers", Answers, steps, store),
        _report(run_reports.STEP, AsRun, steps, store),
    )


def _report(step: str, kind: type[R], steps: Steps, store: Store) -> R | None:
    stored = store.peek(steps[step]) if step in steps else None
    try:
        return reports.read(kind, stored.path) if stored else None
    except (StoreError, OSError):
        return None


def _alike(old: Steps, new: Steps, store: Store) -> set[str]:
    """Metrics that both took alike: fidelity against the same baseline (as it runs: on the same
    machine, too), answers to the same questions, speed on the same machine."""
    same_baseline = old.get("baseline") is not None and old.get("baseline") == new.get("baseline")
    hosts = [
        (_record(steps["measure"], store) or {}).get("host") if "measure" in steps else None
        for steps in (old, new)
    ]
    same_host = hosts[0] is not None and hosts[0] == hosts[1]
    kinds = {"size", *(("fidelity", "pictures") if same_baseline else ())}
    asked = old.get("questions")
    kinds |= {"answers"} if asked is not None and asked == new.get("questions") else set()
    kinds |= {"speed"} if same_host else set()
    alike = {name for name, metric in METRICS.items() if metric.kind in kinds}
    return alike if same_host else alike - {"kld_run"}
