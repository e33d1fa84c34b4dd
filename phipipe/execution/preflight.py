"""Whether this machine can do what is planned: memory of each step, disk for all of them, before
the first byte.

Estimates stand in the steps (``memory_bytes``, ``output_bytes``), next to where they were measured.
Memory is what a step must have for itself; files it maps are read again when the system needs their
room.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from phipipe import backends, hardware, words
from phipipe.errors import PhipipeError, StepKilled, StoreError
from phipipe.execution import disk
from phipipe.execution.bench import Bench
from phipipe.execution.disk import Use
from phipipe.execution.keeping import keeps_all
from phipipe.execution.nodes import graph
from phipipe.execution.results import Result
from phipipe.planning import preparation
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.steps import Step
from phipipe.store import free_space, room
from phipipe.store.store import Store

OVERRIDE = "PHIPIPE_PREFLIGHT=off tries it all the same"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is for a run, in bytes: memory as a whole; free disk for the cache, and for
    packages."""

    memory_bytes: int
    cache_free_bytes: int
    out_free_bytes: int | None  # None: on the cache's disk


@dataclass(frozen=True)
class Run:
    """Where a run writes."""

    here: Machine
    cache: Path
    out: Path | None


def machine(store: Store, settings: Settings, out: Path | None) -> Machine:
    """This machine, within the limits that ``settings`` set."""
    memory = hardware.memory_bytes()
    if settings.memory_limit_gib is not None:
        memory = min(memory, int(settings.memory_limit_gib * words.GIB))
    cache, packages = _existing(store.root), _existing(out or store.root)
    apart = cache.stat().st_dev != packages.stat().st_dev
    return Machine(
        memory_bytes=memory,
        cache_free_bytes=shutil.disk_usage(cache).free,
        out_free_bytes=shutil.disk_usage(packages).free if apart else None,
    )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def refusal(
    plans: Sequence[Plan], store: Store, settings: Settings, out: Path | None
) -> PhipipeError | None:
    """Why the steps of ``plans`` that are not cached cannot all be done here; None if nothing is
    known against it."""
    here = machine(store, settings, out)
    bench = Bench(store, settings, lambda line: None)
    nodes, names = graph(plans)
    waiting: dict[str, tuple[Plan, Step]] = {}
    for plan, own in zip(plans, names, strict=True):
        todo = {item.step.name for item in bench.foresee(plan) if not item.cached}
        waiting |= {own[name]: (plan, nodes[own[name]].step) for name in todo}
    run, keep_all = Run(here, store.root, out), _keep_all(plans, settings)
    return _too_little_memory(list(waiting.values()), here) or _too_little_disk(
        disk.uses_among(nodes, waiting, keep_all), run
    )


def too_large(plans: Sequence[Plan], store: Store, settings: Settings) -> dict[int, StepKilled]:
    """By its place in ``plans``, why one cannot be built here: a step that is not cached takes too
    much memory."""
    here, bench = machine(store, settings, None), Bench(store, settings, lambda line: None)
    refusals = {}
    for i, plan in enumerate(plans):
        if plan.memory_bytes <= here.memory_bytes:
            continue
        waiting = [(plan, item.step) for item in bench.foresee(plan) if not item.cached]
        if refusal := _too_little_memory(waiting, here):
            refusals[i] = refusal
    return refusals


def too_little_disk(
    plans: Sequence[Plan], store: Store, settings: Settings, out: Path
) -> StoreError | None:
    """Why there is no room for what ``plans`` still write. Where all of it fits, the cache is not
    asked."""
    run, keep_all = Run(machine(store, settings, out), store.root, out), _keep_all(plans, settings)
    nodes, _ = graph(plans)
    if not _too_little_disk(disk.uses_among(nodes, nodes, keep_all), run):
        return None
    bench = Bench(store, settings, lambda line: None)
    cached: dict[str, Result] = {}
    for identity, node in nodes.items():
        if all(needed in cached for needed in (*node.needs.values(), *node.before.values())):
            inputs = {name: cached[needed] for name, needed in node.needs.items()}
            before = {name: cached[earlier] for name, earlier in node.before.items()}
            if result := bench.peek(node.step, inputs, before):
                cached[identity] = result
    uses = disk.uses_among(nodes, nodes.keys() - cached.keys(), keep_all)
    return _too_little_disk(uses, run)


def _keep_all(plans: Sequence[Plan], settings: Settings) -> list[bool]:
    return [keeps_all(plan, settings) for plan in plans]


def _too_little_memory(waiting: Sequence[tuple[Plan, Step]], here: Machine) -> StepKilled | None:
    if not waiting:
        return None
    plan, step = max(waiting, key=lambda item: item[1].memory_bytes)
    if step.memory_bytes <= here.memory_bytes:
        return None
    message = (
        f"`{plan.build.name}` does not fit this machine: step `{step.name}` takes about "
        f"{words.size(step.memory_bytes)} of memory, and there are {words.size(here.memory_bytes)}"
    )
    others = [
        f"`backend: {name}` ({words.size(size)})"
        for name, size in _others(plan)
        if size <= here.memory_bytes
    ]
    fits = (
        f"what fits: {', '.join(others)}"
        if others
        else "a smaller model, or a machine with more memory"
    )
    return StepKilled(message, hint=f"{fits}; {OVERRIDE}")


def _others(plan: Plan) -> list[tuple[str, int]]:
    """Other backends for the same device and precision, with the memory that building with them
    takes at most."""
    others = []
    for name in backends.serving(plan.device, plan.build.recipe.precision):
        if name == plan.build.recipe.backend:
            continue
        recipe = plan.build.recipe.model_copy(
            update={"backend": name, "quantize": {}, "unit": None}
        )
        build = replace(plan.build, recipe=recipe, options=backends.load(name).options())
        try:
            others.append((name, preparation.prepare(build).memory_bytes))
        except PhipipeError:  # the model or the unit is not for this backend: it is no way out
            continue
    return sorted(others, key=lambda item: item[1])


def _too_little_disk(uses: Sequence[Use], run: Run) -> StoreError | None:
    room_needed = disk.foreseen(uses)
    free_out = run.here.out_free_bytes
    packages = room_needed.delivered if run.out else 0
    needed = room_needed.peak - room_needed.delivered + (packages if free_out is None else 0)
    for amount, free, where in (
        (needed, run.here.cache_free_bytes, run.cache),
        (0 if free_out is None else packages, free_out or 0, run.out),
    ):
        if amount > free:
            sizes = {use.step.name: use.written_bytes for use in uses}
            largest = max(sizes, key=lambda name: sizes[name])
            remedy = room.hint(run.cache, amount) if where == run.cache else free_space.KEEP_OUT
            return StoreError(
                f"too little room on the disk of `{where}`: the run needs about "
                f"{words.size(amount)} at once, and {words.size(free)} are "
                f"free; step `{largest}` writes most, {words.size(sizes[largest])}",
                hint=f"{remedy}{_less(uses, free)}; {OVERRIDE}",
            )
    return None


def _less(uses: Sequence[Use], free: int) -> str:
    """What a recipe says to need less room, where it would be enough."""
    less = disk.foreseen([replace(use, keep_all=False) for use in uses]).peak
    keep_all = any(use.keep_all for use in uses)
    return (
        "; `cache: {keep: artifacts}` in the recipe needs less" if keep_all and less <= free else ""
    )
