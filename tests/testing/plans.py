"""Plans: the quickstart's, and graphs of steps that take no time."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from phipipe import backends
from phipipe.cli.listeners import Silent
from phipipe.errors import StepFailed
from phipipe.execution import dispatch, events, past_runs
from phipipe.execution.manner import Manner
from phipipe.planning import preparation
from phipipe.planning.plan import Plan
from phipipe.recipe import loading
from phipipe.settings import Settings
from phipipe.steps import Step
from phipipe.store.store import Store
from testing.places import QUICKSTART

CALLS: list[tuple[str, float, float]] = []
GUARD = threading.Lock()

STEPS = {"work": f"{__name__}:work"}


def planned(*sets: str, path: Path = QUICKSTART) -> Plan:
    """The plan of a recipe for one build, with ``sets`` laid on it."""
    (build,) = loading.load(path, sets=sets, options=backends.OptionsOf())
    return preparation.prepare(build)


def quantizing(plan: Plan) -> dict[str, Any]:
    """The params of its step `quantize`."""
    (step,) = [step for step in plan.steps if step.name == "quantize"]
    return dict(step.params)


def work(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """A light step: waits, fails or writes, as ``params`` say; notes when it ran."""
    start = time.monotonic()
    if params.get("fail"):
        raise StepFailed(f"{params['name']} cannot")
    if params.get("bug"):
        raise ZeroDivisionError
    time.sleep(params.get("seconds", 0.0))
    (out / "name.txt").write_text(params["name"])
    with GUARD:
        CALLS.append((params["name"], start, time.monotonic()))


def step(
    name: str,
    *needs: str,
    after: tuple[str, ...] = (),
    memory_bytes: int = 0,
    alone: bool = False,
    **params: Any,
) -> Step:
    return Step(
        name=name,
        runs=f"{__name__}/work",
        version=1,
        needs={n: n for n in needs},
        after=after,
        params={"name": name, **params},
        memory_bytes=memory_bytes,
        measurement=alone,
    )


def plan(name: str, *steps: Step, keep: str | None = None) -> Plan:
    """A plan of ``steps``; ``keep`` as a recipe's `cache:` has it."""
    package, cache = SimpleNamespace(sign=None), SimpleNamespace(keep=keep)
    recipe = SimpleNamespace(backend=name[0], package=package, cache=cache)
    build: Any = SimpleNamespace(name=name, recipe=recipe)
    made: Any = Plan(build=build, device=None, api="cpu", on_target="false", steps=steps)  # type: ignore[arg-type]
    return made  # type: ignore[no-any-return]


def recorded(cache: Path, *plans: Plan, stream: io.StringIO | None = None) -> list[dict[str, Any]]:
    """The events of a run of ``plans``, as they are kept."""
    store = Store(cache)
    named = [one.build.name for one in plans]
    with events.recorded(cache, "run", named, Silent(), stream) as recorder:
        own, one = Settings(cache=cache, toolchains=cache), Manner(jobs=1)
        for done in dispatch.attempt(plans, store, own, recorder, one):
            recorder.ended(done.plan.build.name, done.error, done.seconds, done.package)
    return [dict(event) for event in past_runs.find(cache, "latest").events]
