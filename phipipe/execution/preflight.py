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
from phipipe.execution.bench import Bench
from phipipe.execution.nodes import graph
from phipipe.execution.results import Result
from phipipe.planning import preparation
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.steps import Step
from phipipe.store import downloads, free_space, room
from phipipe.store.store import Store

OVERRIDE = "PHIPIPE_PREFLIGHT=off tries it all the same"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is for a run, in bytes: memory as a whole; free disk for the cache, and for
    packages."""

    memory_bytes: int
    cache_free_bytes: int
    out_free_bytes: int | None  # None: on the cache's disk


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
    return _too_little_memory(list(waiting.values()), here) or _too_little_disk(
        [step for _, step in waiting.values()], here, store.root, out
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
    here = machine(store, settings, out)
    nodes, _ = graph(plans)
    if not _too_little_disk([node.step for node in nodes.values()], here, store.root, out):
        return None
    bench = Bench(store, settings, lambda line: None)
    cached: dict[str, Result] = {}
    for identity, node in nodes.items():
        if all(needed in cached for needed in (*node.needs.values(), *node.before.values())):
            inputs = {name: cached[needed] for name, needed in node.needs.items()}
            before = {name: cached[earlier] for name, earlier in node.before.items()}
            if result := bench.peek(node.step, inputs, before):
                cached[identity] = result
    waiting = [node.step for identity, node in nodes.items() if identity not in cached]
    return _too_little_disk(waiting, here, store.root, out)


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


def _too_little_disk(
    steps: Sequence[Step], here: Machine, cache: Path, out: Path | None
) -> StoreError | None:
    needed = sum(max(0, step.output_bytes - _partial(step)) for step in steps)
    packages = sum(step.output_bytes for step in steps if step.name == "package") if out else 0
    if here.out_free_bytes is None:
        needed, packages = needed + packages, 0
    for amount, free, where in (
        (needed, here.cache_free_bytes, cache),
        (packages, here.out_free_bytes or 0, out),
    ):
        if amount > free:
            largest = max(steps, key=lambda step: step.output_bytes)
            remedy = room.hint(cache, amount) if where == cache else free_space.KEEP_OUT
            return StoreError(
                f"too little room on the disk of `{where}`: the run writes about "
                f"{words.size(amount)}, and {words.size(free)} are "
                f"free; step `{largest.name}` writes most, {words.size(largest.output_bytes)}",
                hint=f"{remedy}; {OVERRIDE}",
            )
    return None


def _partial(step: Step) -> int:
    """Bytes of the step's output that an earlier run left for it to go on with."""
    return 0 if step.folder is None else downloads.size_bytes(step.folder.parent)
