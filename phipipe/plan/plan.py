"""Recipe × device × backend → steps. Decides what is possible, in what order, with which
parameters.

``prepare`` reads the checkpoint's config and headers, which may be on a hub; the rest touches
neither disk nor network. Every "cannot" is said here, before a byte is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from phipipe import backends, metrics
from phipipe.backends import fixups, model_rules, rules
from phipipe.backends.base import Job
from phipipe.evaluate import reference
from phipipe.hub import take
from phipipe.hub.take import Original
from phipipe.models import first_layers, fit, layerwise_memory
from phipipe.models.checkpoints import Checkpoint
from phipipe.models.fit import Fit
from phipipe.plan import machine as venue
from phipipe.plan import scoring, targets, vision_steps
from phipipe.plan.targets import placed
from phipipe.recipe.build import Build, problem_at
from phipipe.recipe.device import Device, Unit
from phipipe.recipe.recipe import Recipe, Source, Text, wikitext
from phipipe.steps import Advice, Json, Step
from phipipe.toolchains import environments
from phipipe.vision import kinds

FEW = 2  # tokens that are emulated where emulation takes minutes for each


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that ``executor.run`` needs for one build; steps stand in an order that works."""

    build: Build
    device: Device
    api: str
    on_target: str  # "true": measured on such a device; "emulated"; "false"
    steps: tuple[Step, ...]
    source: Checkpoint | None = None  # None where a package is measured without its original
    seeing: Checkpoint | None = (
        None  # the original with its eyes, where ``source`` is its language model
    )
    warnings: tuple[Advice, ...] = ()
    fixups: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    fit: Fit | None = None  # what it takes on the device; None where nothing is built

    @property
    def checkpoint(self) -> Checkpoint:
        """The original's shape, which is known wherever something is built."""
        assert self.source is not None
        return self.source

    @property
    def whole(self) -> Checkpoint:
        """The original's shape with all its parts."""
        return self.seeing or self.checkpoint

    @property
    def toolchains(self) -> tuple[str, ...]:
        """Names of the toolchains that its steps run in, in order of first use."""
        return tuple(dict.fromkeys(s.toolchain for s in self.steps if s.toolchain))

    @property
    def memory_bytes(self) -> int:
        return max(step.memory_bytes for step in self.steps)


def prepare(
    build: Build,
    read: Callable[[Source, Path], Original] = take.original,
    *,
    elsewhere: bool = False,
) -> Plan:
    """Read what the recipe's source is, and plan. Many builds of few sources share what one
    ``read`` has found. ``elsewhere``: its steps may run on other machines, whose toolchains count.

    Raises:
        SourceError: the checkpoint or the text is missing or unfit.
        TargetError: no such device or backend, or the combination is impossible; says what would
            work.
    """
    recipe = build.recipe
    backend = backends.load(recipe.backend)
    target, unit, options = targets.of(build)
    with placed(build, "source", "path"):
        original = read(recipe.source, build.folder)
    options = _with_context(recipe, options, original.checkpoint)
    general = rules.check(Job(recipe, options, original.checkpoint), model_rules.RULES)
    targets.refuse(build, general)
    seeing = original.checkpoint if kinds.sees(original.checkpoint) else None
    checkpoint = kinds.language(seeing) if seeing else original.checkpoint
    patches = fixups.needed(recipe, checkpoint)
    job = Job(recipe, options, checkpoint, _patch(patches), unit)
    advice = [*rules.check(job, model_rules.RULES), *rules.check(job, backend.rules)]
    advice += [found for found in general if found not in advice]
    targets.refuse(build, advice)
    _check_vision(build, seeing, unit)
    made = backend.steps(job)
    made += [vision_steps.vision_step(seeing, made[-1], recipe)] if seeing else []
    needed = _fit(build, target, job, made[-1].output_bytes)
    plan = Plan(
        build=build,
        device=target,
        api=unit.api,
        on_target=venue.on_target(target, unit.api, backend),
        source=checkpoint,
        seeing=seeing,
        steps=(),
        warnings=(*_remarks(original.checkpoint), *(a for a in advice if a.level == "warning")),
        fixups=patches,
        fit=needed,
    )
    whole = replace(
        plan,
        steps=tuple(
            replace(step, recipe=recipe.name) for step in _chain(plan, original, made, job)
        ),
    )
    for name in () if elsewhere else whole.toolchains:
        if place := environments.foreign(name):
            message = f"toolchain `{name}`, which this build needs, exists for {place} only"
            hint = "build there; the package runs on its device all the same"
            raise problem_at(build, ("backend",), message, hint, ("device",))
    return whole


def _remarks(checkpoint: Checkpoint) -> list[Advice]:
    """What is odd in the checkpoint's folder."""
    return [
        Advice(level="warning", rule=found.rule, message=found.message, hint=found.hint)
        for found in checkpoint.remarks
    ]


def _check_vision(build: Build, seeing: Checkpoint | None, unit: Unit) -> None:
    """Refuse a unit that eyes are not built for, and gates on pictures where there are none."""
    if seeing and unit.api not in kinds.APIS:
        message = (
            f"models that see are built for {', '.join(sorted(kinds.APIS))}, not yet for "
            f"`{unit.api}`"
        )
        raise problem_at(
            build, ("device",), message, "choose a CPU device, or the text model it was built on"
        )
    for name in build.recipe.evaluate.gates:
        if not seeing and name in metrics.names("pictures"):
            message = f"`{name}` is measured on models that see, and this is none"
            raise problem_at(build, ("evaluate", "gates", name), message, "take the gate out")


def _patch(fixups: Mapping[str, Mapping[str, Json]]) -> dict[str, Json]:
    """Keys of ``config.json`` and what the fix-ups set them to."""
    return {key: value for fix in fixups.values() for key, value in fix["patch"].items()}


def _with_context(recipe: Recipe, options: BaseModel, checkpoint: Checkpoint) -> BaseModel:
    """``options`` with the recipe's context as the length of a cache that is fixed and was left
    open."""
    if (
        recipe.context is None
        or "context_length" not in type(options).model_fields.keys() - options.model_fields_set
    ):
        return options
    return options.model_copy(
        update={"context_length": min(recipe.context, checkpoint.context_length)}
    )


def _fit(build: Build, target: Device, job: Job[BaseModel], weight_bytes: int) -> Fit:
    """What the build takes on the device.

    Raises:
        TargetError: more than the device has, or more context than the artifact's cache.
    """
    recipe, checkpoint, backend = job.recipe, job.checkpoint, backends.load(job.recipe.backend)
    fixed = backend.context_length(job)
    asked = min(recipe.context or fixed or fit.CONTEXT, checkpoint.context_length)
    if fixed is not None and asked > fixed:
        message = (
            f"`context: {asked}` is beyond the {fixed} tokens that `quantize` gives the "
            f"artifact's cache"
        )
        raise problem_at(
            build, ("context",), message, f"lengthen it in `quantize`, or set `context: {fixed}`"
        )
    needed = fit.reckon(
        checkpoint, weight_bytes, fixed or asked, backend.cache_bytes[job.api], target.memory_gib
    )
    if not needed.fits:
        at = ("context",) if recipe.context and needed.longest else ("device",)
        message = (
            f"{target.title} has {target.memory_gib:g} GiB for a model, and this one "
            f"needs {needed.words()}"
        )
        raise problem_at(build, at, message, _smaller(job, target, needed))
    return needed


def _smaller(job: Job[BaseModel], target: Device, needed: Fit) -> str:
    """What would fit: a shorter context, else fewer bits, else another model."""
    if needed.longest >= 256:
        return f"`context: {needed.longest // 256 * 256}` fits"
    asked, backend = job.recipe, backends.load(job.recipe.backend)
    served = backends.able(asked.backend, target, job.unit) if job.unit else []
    able = [p for p in ("int8", "int4") if p in served]
    for precision in able[able.index(asked.precision) + 1 :] if asked.precision in able else able:
        recipe = asked.model_copy(update={"precision": precision})
        smaller_job = Job(recipe, backend.options(), job.checkpoint, unit=job.unit)
        (*_, artifact) = backend.steps(smaller_job)
        smaller = replace(needed, weight_bytes=artifact.output_bytes)
        if smaller.longest >= 256:
            return (
                f"`precision: {precision}` fits with `context: "
                f"{min(smaller.longest // 256 * 256, needed.context)}`"
            )
    return "choose a smaller model, or a device with more memory (`phipipe devices`)"


def _chain(plan: Plan, original: Original, made: list[Step], job: Job[BaseModel]) -> list[Step]:
    recipe, backend = plan.build.recipe, backends.load(plan.build.recipe.backend)
    with placed(plan.build, "evaluate", "text", "file"):
        text = take.text_step(recipe.evaluate.text, plan.build.folder)
    memory = layerwise_memory.memory_bytes(
        plan.checkpoint, recipe.evaluate.tokens, recipe.evaluate.window
    )
    source = vision_steps.cut_step(plan.seeing) if plan.seeing else original.step
    steps = scoring.fidelity_steps(recipe, source, text, memory_bytes=memory)
    steps = [replace(original.step, name="original"), *steps] if plan.seeing else steps
    baseline = steps[-1]
    scores = recipe.evaluate.tokens * plan.checkpoint.vocab_size * 4
    steps[-1] = replace(baseline, output_bytes=scores)
    if any("calibration" in step.needs.values() for step in made):
        steps += _calibration_steps(plan.build)
    checks: tuple[str, ...] = ()
    if plan.checkpoint.large:
        proof = _proof(plan, job)
        steps += proof
        checks = tuple(step.name for step in proof[-1:])
    for step in made:
        steps.append(replace(step, after=checks))
        if step.unquantized and not plan.checkpoint.large:
            steps += scoring.parity_steps(step, recipe, backend.toolchain, plan.checkpoint)
            checks = (*checks, steps[-1].name)
    artifact = made[-1]
    evaluated = next((step for step in made if step.twin), artifact)
    if plan.api in backend.emulated:
        tried = next((step for step in made if step.tried), artifact)
        steps.append(_emulation(plan, tried, tried is evaluated, job.options, checks))
    there = venue.measured_there(plan.device, plan.api, backend)
    timed = artifact if there else evaluated
    environment, api = venue.opened_with(backend, plan.api, there)
    served = scoring.served_bytes(evaluated, plan.checkpoint)
    measure = scoring.measure_step(timed.name, recipe, environment, served, api)
    gates = {
        name: gate.model_dump(exclude_none=True) for name, gate in recipe.evaluate.gates.items()
    }
    seen = vision_steps.scoring_steps(plan.seeing, artifact, recipe) if plan.seeing else []
    return [
        *steps,
        *(replace(step, after=checks) for step in seen),
        _evaluation(plan, evaluated, artifact, checks),
        replace(measure, after=checks, machine=venue.machine(plan.device, api, plan.on_target)),
        _reference_step(recipe),
        Step(
            name="gates",
            runs="evaluate/check_gates",
            version=1,
            needs={
                "metrics": "evaluate",
                "speed": "measure",
                **({"vision": seen[-1].name} if seen else {}),
            },
            params={"gates": gates},
        ),
        _package_step(
            plan, original, artifact, None if evaluated is artifact else evaluated, job, checks
        ),
    ]


def _reference_step(recipe: Recipe) -> Step:
    return Step(
        name="reference",
        runs="evaluate/keep_reference",
        version=1,
        needs={"baseline": "baseline"},
        params={"top": reference.TOP, "tokens": reference.TOKENS},
        toolchain="torch",
        output_bytes=8 * reference.TOP * min(reference.TOKENS, recipe.evaluate.tokens),
    )


def _proof(plan: Plan, job: Job[BaseModel]) -> list[Step]:
    """Compare the unquantized conversion of the model's first layers with the baseline's."""
    recipe = plan.build.recipe
    backend, small = backends.load(recipe.backend), first_layers.of(plan.checkpoint)
    patch = _patch(fixups.needed(recipe, small))
    made = backend.steps(replace(job, checkpoint=small, patch=patch))
    if not any(step.unquantized for step in made):
        return []
    return scoring.slice_steps(plan.checkpoint, made, recipe, backend.toolchain)


def _evaluation(plan: Plan, evaluated: Step, artifact: Step, checks: tuple[str, ...]) -> Step:
    """Score ``evaluated``; the size is that of ``artifact``, which ships."""
    backend = backends.load(plan.build.recipe.backend)
    there = plan.api not in backend.emulated and venue.measured_there(
        plan.device, plan.api, backend
    )
    environment, api = venue.opened_with(backend, plan.api, there)
    recipe, parameters = plan.build.recipe, plan.whole.parameters
    opened = scoring.opened_bytes(evaluated, recipe, plan.checkpoint)
    step = scoring.compare_step(
        "evaluate", evaluated.name, recipe, environment, parameters, opened, api
    )
    shipped = {} if evaluated is artifact else {"shipped": artifact.name}
    machine = venue.machine(plan.device, api, plan.on_target) if step.measurement else ()
    return replace(step, needs={**step.needs, **shipped}, after=checks, machine=machine)


def _emulation(
    plan: Plan, artifact: Step, whole: bool, options: BaseModel, checks: tuple[str, ...]
) -> Step:
    """Run the artifact as its unit would, on this machine; unless ``whole``, for very few
    tokens."""
    backend_name = plan.build.recipe.backend
    backend = backends.load(backend_name)
    return Step(
        name="emulate",
        runs=backend.emulated[plan.api],
        version=1,
        needs={"artifact": artifact.name, "baseline": "baseline"},
        after=checks,
        params={
            **options.model_dump(mode="json"),
            "precision": plan.build.recipe.precision,
            "backend": backend_name,
            **({} if whole else {"decoded": FEW}),
        },
        toolchain=backend.toolchain,
        memory_bytes=4 * plan.checkpoint.parameters + scoring.RUNTIME_BYTES,
    )


def _calibration_steps(build: Build) -> list[Step]:
    """The text that data-aware quantization learns from, and its tokens.

    Raises:
        TargetError: the recipe names none, or the text it is evaluated on.
    """
    recipe = build.recipe
    text = recipe.calibrate.text or _usual_calibration(recipe)
    if text is None:
        message = (
            "these `quantize` options learn from a calibration text, and the recipe names none"
        )
        raise problem_at(
            build,
            ("calibrate",),
            message,
            "add `calibrate: {text: {file: PATH}}`, not the text evaluated on",
        )
    with placed(build, "calibrate", "text", "file"):
        same = take.same_text(recipe.evaluate.text, text, build.folder)
    if same:
        message = (
            "the calibration text is the evaluation text: the figures would flatter what "
            "was fitted to it"
        )
        raise problem_at(
            build, ("calibrate", "text"), message, "give another text in `calibrate.text`"
        )
    return [
        take.text_step(text, build.folder, "calibration"),
        Step(
            name="calibration",
            runs="evaluate/calibration",
            version=1,
            needs={"source": "source", "text": "calibration-text"},
            params={"tokens": recipe.calibrate.tokens, "window": recipe.calibrate.window},
            toolchain="torch",
        ),
    ]


def _usual_calibration(recipe: Recipe) -> Text | None:
    """What quantization learns from where the recipe does not say: never what the recipe is
    evaluated on by default."""
    if recipe.source.builtin:
        return Text(builtin="stories")
    return Text.model_validate({"dataset": wikitext("train")}) if recipe.source.repo else None


def _package_step(
    plan: Plan,
    original: Original,
    artifact: Step,
    twin: Step | None,
    job: Job[BaseModel],
    checks: tuple[str, ...],
) -> Step:
    recipe, backend = plan.build.recipe, backends.load(plan.build.recipe.backend)
    params: dict[str, Any] = {
        "name": plan.build.name,
        "recipe": _neutral(recipe)
        | {
            "name": plan.build.name,
            "quantize": job.options.model_dump(mode="json", exclude_none=True),
        },
        "device": {
            "name": plan.device.name,
            "title": plan.device.title,
            "sources": list(plan.device.sources),
        }
        | ({"architecture": plan.device.architecture} if plan.device.architecture else {}),
        "backend": recipe.backend,
        "backend_title": backend.title,
        "api": plan.api,
        "scheme": backend.scheme(job),
        "on_target": plan.on_target,
        "source": _source(plan, original),
        "fixups": {name: dict(fix) for name, fix in plan.fixups.items()},
        "warnings": [a.sentence for a in plan.warnings],
    }
    if twin is not None:
        params["twin"] = twin.name
    needs = {
        "artifact": artifact.name,
        "source": "source",
        "baseline": "baseline",
        "reference": "reference",
        "metrics": "evaluate",
        "speed": "measure",
        "gates": "gates",
        **({"parity": checks[0]} if checks else {}),
        **({"emulation": "emulate"} if plan.api in backend.emulated else {}),
        **({"original": "original", "vision": "vision-evaluate"} if plan.seeing else {}),
    }
    return Step(
        name="package",
        runs="package/assemble",
        version=2,
        needs=needs,
        params=params,
        provenance=True,
        output_bytes=artifact.output_bytes + _reference_step(recipe).output_bytes,
    )


def _neutral(recipe: Recipe) -> dict[str, Any]:
    """The recipe without what changes no result: this machine's folders, tags, what a batch
    tolerates."""
    made = recipe.model_dump(
        mode="json", exclude_none=True, exclude={"tags": True, "evaluate": {"tolerance"}}
    )
    learned = made.get("calibrate", {}).get("text", {})
    for inner, key in (
        (made["source"], "path"),
        (made["evaluate"]["text"], "file"),
        (learned, "file"),
    ):
        if key in inner:
            inner[key] = Path(inner[key]).name
    return made


def _source(plan: Plan, original: Original) -> dict[str, Any]:
    source, checkpoint = plan.build.recipe.source, plan.whole
    named: dict[str, Any]
    if source.repo is not None:
        named = {"kind": "hub", "repo": source.repo, "revision": source.revision}
        named |= {"license": original.licence} if original.licence else {}
    elif source.builtin is not None:
        named = {"kind": "builtin", "name": source.builtin}
    else:
        named = {"kind": "path", "name": checkpoint.folder.name}
    return named | {
        "architecture": checkpoint.architecture,
        "parameters": checkpoint.parameters,
        "context_length": checkpoint.context_length,
    }
