"""A build's whole chain: the backend's own steps, with what prepares, checks, scores and ships
around them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel

from phipipe import backends
from phipipe.algorithms import distilled
from phipipe.backends import fixups
from phipipe.backends.base import Job
from phipipe.hub import prompts, take
from phipipe.hub.take import Original
from phipipe.models import first_layers, linears
from phipipe.planning import (
    calibration,
    generation_steps,
    learned,
    run_steps,
    sampled,
    scoring,
    shipping,
    vision_steps,
)
from phipipe.planning import machine as machines
from phipipe.planning.plan import Plan
from phipipe.planning.targets import placed
from phipipe.steps import Json, Step, material


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """The backend's steps by what becomes of their outputs; often all are one."""

    artifact: Step  # ships
    evaluated: Step  # is scored: the artifact, or a twin that another unit can run
    emulated: Step | None  # what it computed as its unit would; None: it is run by the check

    @property
    def twin(self) -> Step | None:
        """What is scored in the artifact's place."""
        return None if self.evaluated is self.artifact else self.evaluated


def whole_chain(
    plan: Plan, original: Original, built: Sequence[Step], job: Job[BaseModel]
) -> list[Step]:
    """All steps of the build, in an order that works; ``built`` are the backend's.

    Raises:
        SourceError, TargetError: a text is missing or unfit.
    """
    recipe, backend = plan.build.recipe, backends.load(plan.build.recipe.backend)
    built = [material(step) for step in built]
    outputs = _Outputs(
        artifact=built[-1],
        evaluated=next((step for step in built if step.twin), built[-1]),
        emulated=next((step for step in built if step.tried), None),
    )
    ground = [*_ground(plan, original), *_calibration(plan, built)]
    converted, checks = _checked(plan, built, job)
    seen = vision_steps.scoring_steps(plan.seeing, outputs.artifact, recipe) if plan.seeing else []
    shipped = shipping.Shipped(artifact=outputs.artifact, twin=outputs.twin, checks=checks)
    evaluation = _evaluation(plan, outputs, checks)
    context = plan.fit.context if plan.fit else plan.checkpoint.context_length
    answers = generation_steps.build_steps(recipe, evaluation, context)
    counted = run_steps.tokens(recipe, plan.checkpoint)
    run = run_steps.steps(evaluation, plan.knob, counted, recipe)
    machine = machines.machine(plan.device, evaluation.params.get("api", "cpu"), plan.on_target)
    return [
        *ground,
        *converted,
        *([_emulation(plan, outputs, job, checks)] if plan.api in backend.emulated else ()),
        *(replace(step, after=checks) for step in seen),
        evaluation,
        *(replace(step, machine=machine) for step in run),
        *answers,
        _measurement(plan, outputs, checks),
        shipping.reference_step(recipe),
        shipping.gates_step(plan, seen, answers),
        shipping.package_step(plan, original, shipped, job),
    ]


def config_patch(patches: Mapping[str, Mapping[str, Json]]) -> dict[str, Json]:
    """Keys of ``config.json`` and what the fix-ups set them to."""
    return {key: value for fix in patches.values() for key, value in fix["patch"].items()}


def _ground(plan: Plan, original: Original) -> list[Step]:
    """Original, text and baseline: what every score rests on."""
    recipe = plan.build.recipe
    with placed(plan.build, "evaluate", "text", "file"):
        text = take.text_step(recipe.evaluate.text, plan.build.folder)
    (*steps, baseline) = scoring.ground_steps(recipe, original, text)
    scores = recipe.evaluate.most_tokens * plan.checkpoint.vocab_size * 4
    baseline = replace(baseline, output_bytes=scores, keep="material")
    changed = scoring.change_steps(recipe, original, baseline)
    return [*steps, baseline, *_questions(plan), *changed]


def _calibration(plan: Plan, built: Sequence[Step]) -> list[Step]:
    """The tokens that the backend's steps ``built`` learn from, as far as they do."""
    needs = {need for step in built for need in step.needs.values()}
    context = plan.checkpoint.context_length
    return [
        *(calibration.calibration_steps(plan.build, context) if "calibration" in needs else ()),
        *([calibration.held_out_step(plan.build.recipe)] if distilled.HELD_OUT in needs else ()),
    ]


def _questions(plan: Plan) -> list[Step]:
    """Prompts, and the original's answers to them; none where nothing is asked."""
    recipe = plan.build.recipe
    if recipe.evaluate.generate is None:
        return []
    with placed(plan.build, "evaluate", "generate", "prompts", "file"):
        path = prompts.path_of(recipe.evaluate.generate.prompts, plan.build.folder)
    return generation_steps.original_steps(recipe, path, plan.checkpoint)


def _checked(
    plan: Plan, built: Sequence[Step], job: Job[BaseModel]
) -> tuple[list[Step], tuple[str, ...]]:
    """The backend's steps, each after the checks that have to pass first; and those checks."""
    recipe, toolchain = plan.build.recipe, backends.load(plan.build.recipe.backend).toolchain
    steps = _proof(plan, job) if plan.checkpoint.large else []
    checks = tuple(step.name for step in steps[-1:])
    for step in built:
        steps.append(replace(step, after=checks))
        if step.unquantized and not plan.checkpoint.large:
            steps += scoring.parity_steps(step, recipe, toolchain, plan.checkpoint)
            checks = (*checks, steps[-1].name)
    return steps, checks


def _proof(plan: Plan, job: Job[BaseModel]) -> list[Step]:
    """Compare the unquantized conversion of the model's first layers with the baseline's."""
    recipe = plan.build.recipe
    backend, small = backends.load(recipe.backend), first_layers.of(plan.checkpoint)
    patch = config_patch(fixups.needed(recipe, small))
    there = linears.shapes(small)
    widths = {name: width for name, width in job.widths.items() if name in there}
    built = learned.steps(replace(job, checkpoint=small, patch=patch, widths=widths))
    if not any(step.unquantized for step in built):
        return []
    return scoring.slice_steps(plan.checkpoint, built, recipe, backend.toolchain)


def _evaluation(plan: Plan, outputs: _Outputs, checks: tuple[str, ...]) -> Step:
    """Score what stands for the artifact; the size is that of the artifact, which ships."""
    recipe, evaluated = plan.build.recipe, outputs.evaluated
    backend = backends.load(recipe.backend)
    toolchain, api = machines.scored_with(plan.device, plan.api, backend)
    opened = scoring.Opened(
        toolchain=toolchain,
        api=api,
        memory_bytes=scoring.opened_bytes(evaluated, recipe, plan.checkpoint),
    )
    step = scoring.compare_step(
        "evaluate",
        evaluated.name,
        recipe,
        opened,
        parameters=plan.whole.parameters,
        until=sampled.until(recipe, plan.knob),
    )
    shipped = {"shipped": outputs.artifact.name} if outputs.twin else {}
    machine = machines.machine(plan.device, api, plan.on_target) if step.measurement else ()
    return replace(step, needs={**step.needs, **shipped}, after=checks, machine=machine)


def _measurement(plan: Plan, outputs: _Outputs, checks: tuple[str, ...]) -> Step:
    """Time the artifact where its unit is, else what stands for it."""
    backend = backends.load(plan.build.recipe.backend)
    there = machines.measured_there(plan.device, plan.api, backend)
    toolchain, api = machines.opened_with(backend, plan.api, there)
    opened = scoring.Opened(
        toolchain=toolchain,
        api=api,
        memory_bytes=scoring.served_bytes(outputs.evaluated, plan.checkpoint),
    )
    timed = outputs.artifact if there else outputs.evaluated
    step = scoring.measure_step(timed.name, plan.build.recipe, opened)
    machine = machines.machine(plan.device, api, plan.on_target)
    return replace(step, after=checks, machine=machine)


def _emulation(plan: Plan, outputs: _Outputs, job: Job[BaseModel], checks: tuple[str, ...]) -> Step:
    """Check the artifact as its unit would run it: by what the backend's steps let it compute, or
    by running it."""
    name = plan.build.recipe.backend
    backend, tried = backends.load(name), outputs.emulated
    run = 4 * plan.checkpoint.parameters
    read = {"artifact": outputs.artifact.name} if tried is None else {"decoded": tried.name}
    return Step(
        name="emulate",
        runs=backend.emulated[plan.api],
        version=1 if tried is None else 2,
        needs={**read, "baseline": "baseline"},
        after=checks,
        params={
            **job.options.model_dump(mode="json"),
            "precision": plan.build.recipe.precision,
            "backend": name,
            **({} if tried is None else {"decoded": tried.params["decoded"]}),
        },
        toolchain=backend.toolchain,
        memory_bytes=scoring.RUNTIME_BYTES + (run if tried is None else 4 * tried.output_bytes),
    )
