"""Recipe × device × backend → a plan: what is possible, in what order, with which parameters.

``prepare`` reads the checkpoint's config and headers, which may be on a hub; the rest touches
neither disk nor network. Every "cannot" is said here, before a byte is converted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel

from phipipe import backends, hardware
from phipipe.backends import fixups, model_rules, rules
from phipipe.backends.base import Job
from phipipe.errors import ToolchainError
from phipipe.hub.take import Original
from phipipe.models.checkpoint import Checkpoint
from phipipe.planning import (
    apps,
    chain,
    check,
    generation_steps,
    learned,
    machine,
    matrices,
    run_steps,
    sampled,
    targets,
    tokenizers,
    usual,
    vision_steps,
)
from phipipe.planning.plan import Plan
from phipipe.planning.targets import Target, placed
from phipipe.recipe.build import Build, problem_at
from phipipe.recipe.source import Source
from phipipe.settings import Settings
from phipipe.steps import Advice, Json, Step
from phipipe.toolchains import environments
from phipipe.vision import kinds

Advised = tuple[Job[BaseModel], dict[str, dict[str, Json]], list[Advice]]


def prepare(
    build: Build,
    read: Callable[[Source, Path], Original] = tokenizers.original,
    *,
    elsewhere: bool = False,
) -> Plan:
    """Read what the recipe's source is, and plan. Many builds of few sources share what one
    ``read`` has found. ``elsewhere``: its steps may run on other machines, whose toolchains count.

    Raises:
        SourceError: the checkpoint or the text is missing or unfit.
        TargetError: no such device or backend, or the combination is impossible; says what would
            work.
        ToolchainError: PHIPIPE_COMPUTE asks for a GPU that this machine has not.
    """
    recipe = build.recipe
    target = targets.of(build)
    with placed(build, "source", "path"):
        original = read(recipe.source, build.folder)
    build = sampled.settled(build, original.checkpoint)
    settled = usual.settled(build, original.checkpoint, outlined)
    if settled is not build:
        build, target = settled, targets.of(settled)
    options = check.with_context(recipe, target.options, original.checkpoint)
    plan = _plan(build, target._replace(options=options), original)
    if not elsewhere:
        _check_toolchains(plan)
        _check_compute()
    return plan


def job_of(build: Build, whole: Checkpoint) -> Job[BaseModel]:
    """What the backend of ``build`` is asked to make of a model of the shape ``whole``.

    Raises:
        TargetError: as ``prepare``.
    """
    target = targets.of(build)
    options = check.with_context(build.recipe, target.options, whole)
    return _outline(build, target._replace(options=options), whole)[2]


def outlined(build: Build, whole: Checkpoint) -> Plan:
    """The plan of ``build`` without its steps, for a model of the shape ``whole``: what rules and
    the device's memory say. Neither texts nor a hub are asked.

    Raises:
        TargetError: as ``prepare``.
    """
    target = targets.of(build)
    options = check.with_context(build.recipe, target.options, whole)
    return _outline(build, target._replace(options=options), whole)[0]


def _plan(build: Build, target: Target, original: Original) -> Plan:
    """The plan, whichever machines there are for its steps."""
    plan, built, job = _outline(build, target, original.checkpoint)
    steps = chain.whole_chain(plan, original, built, job)
    return replace(plan, steps=tuple(replace(step, recipe=build.recipe.name) for step in steps))


def _outline(
    build: Build, target: Target, whole: Checkpoint
) -> tuple[Plan, list[Step], Job[BaseModel]]:
    """The plan without its steps; the backend's steps, and what it is asked to build."""
    recipe = build.recipe
    device, unit, _ = target
    backend = backends.load(recipe.backend)
    job, patches, advice = _advised(build, target, whole)
    job = learned.with_widths(build, job)
    seeing = whole if kinds.sees(whole) else None
    check.check_eyes(build, seeing, unit)
    check.check_window(build, "evaluate", job.checkpoint.context_length)
    apps.check(build, unit, job.options, sees=seeing is not None)
    built = learned.steps(job)
    built += [vision_steps.vision_step(seeing, built[-1], recipe)] if seeing else []
    fitting = check.check_fit(build, device, job, built[-1].output_bytes)
    generation_steps.check(build, fitting.context)
    run_steps.check(build, unit.api)
    plan = Plan(
        build=build,
        device=device,
        api=unit.api,
        on_target=machine.on_target(device, unit.api, backend),
        source=job.checkpoint,
        seeing=seeing,
        steps=(),
        warnings=(*_remarks(whole), *(a for a in advice if a.level == "warning")),
        fixups=patches,
        fit=fitting,
        knob=run_steps.knob(recipe, device, unit.api),
        matrices=matrices.of(job),
    )
    return plan, built, job


def _advised(build: Build, target: Target, whole: Checkpoint) -> Advised:
    """What is asked of the backend: to build the language model of ``whole``, which may be all of
    it; the fix-ups it needs; and what the rules say of both.

    Raises:
        TargetError: a rule forbids the build.
    """
    recipe, options = build.recipe, target.options
    general = rules.check(Job(recipe, options, whole), model_rules.RULES)
    targets.refuse(build, general)
    checkpoint = kinds.language(whole) if kinds.sees(whole) else whole
    patches = fixups.needed(recipe, checkpoint)
    job = Job(recipe, options, checkpoint, chain.config_patch(patches), target.unit)
    of_all = general if checkpoint is whole else rules.check(job, model_rules.RULES)
    advice = [*of_all, *rules.check(job, backends.load(recipe.backend).rules)]
    advice += [one for one in general if one not in advice]
    targets.refuse(build, advice)
    return job, patches, advice


def _remarks(checkpoint: Checkpoint) -> list[Advice]:
    """What is odd in the checkpoint's folder."""
    return [
        Advice(level="warning", rule=remark.rule, message=remark.message, hint=remark.hint)
        for remark in checkpoint.remarks
    ]


def _check_compute() -> None:
    asked = Settings.read().compute
    missing = hardware.lacks({"mps": "metal"}.get(asked, asked))
    if missing:
        raise ToolchainError(
            f"PHIPIPE_COMPUTE is `{asked}`, and this machine has no {missing}",
            hint="unset it: steps then compute on what is there",
        )


def _check_toolchains(plan: Plan) -> None:
    """Refuse a build whose toolchains do not exist for this machine."""
    for name in plan.toolchains:
        if place := environments.foreign(name):
            message = f"toolchain `{name}`, which this build needs, exists for {place} only"
            hint = "build there; the package runs on its device all the same"
            raise problem_at(plan.build, ("backend",), message, hint, ("device",))
