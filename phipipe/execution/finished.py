"""Plans for finished packages: evaluate one again, or measure it on its device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pydantic import ValidationError

from phipipe import backends, hardware
from phipipe.backends.absent import absent
from phipipe.backends.base import AnyBackend, Job
from phipipe.errors import RecipeError, SourceError, TargetError
from phipipe.evaluate import reference, reports
from phipipe.files import json_files
from phipipe.hub import prompts as hub_prompts
from phipipe.hub import take
from phipipe.hub.take import Original
from phipipe.models import fit
from phipipe.models.checkpoint import Checkpoint
from phipipe.package import original as package_original
from phipipe.package import package
from phipipe.package.manifest_schema import Manifest
from phipipe.planning import generation_steps, machine, run_steps, sampled, scoring, vision_steps
from phipipe.planning.plan import Plan
from phipipe.recipe import device
from phipipe.recipe.build import Build
from phipipe.recipe.device import Device
from phipipe.recipe.recipe import Generate, Prompts, Recipe, Text, recorded
from phipipe.signing import opening
from phipipe.steps import Outside, Step
from phipipe.store.store import Store
from phipipe.vision import kinds


def plan_evaluation(
    folder: Path,
    store: Store,
    note: Callable[[str], None],
    *,
    text: Path | None,
    tokens: int | None,
    source: Path | None,
    prompts: Path | None = None,
    kv: str | None = None,
) -> Plan:
    """The steps that evaluate the package in ``folder``, with ``kv`` also with such a cache.
    ``note`` hears what is doubtful about it.

    Raises:
        TargetError: its backend has no such cache.
        SourceError: it is no package, was changed, or its original checkpoint cannot be had.
        StoreError: what the hub says of the original cannot be kept in the cache.
    """
    manifest = opening.open_(folder, note)
    recipe = _asking(_recipe(manifest, text, tokens), prompts)
    run_steps.check_cache(recipe, manifest.api, kv)
    original = package_original.find(manifest, store, source)
    whole = original.checkpoint
    checkpoint = kinds.language(whole) if kinds.sees(whole) else whole
    target = device.load(recipe.device, Path.cwd())
    api, artifact = _api_of(target, manifest), _artifact(folder, manifest)
    return Plan(
        build=_build(manifest, recipe),
        device=target,
        api=api,
        on_target=machine.on_target(target, api, backends.load(recipe.backend)),
        source=checkpoint,
        steps=(
            *_ground(recipe, original),
            *_questions(recipe, checkpoint),
            *(_reading(s, artifact) for s in _scored(recipe, whole, checkpoint, api, kv)),
        ),
        knob=_knob(recipe, api, "cpu"),
    )


def _ground(recipe: Recipe, original: Original) -> list[Step]:
    """Source, text and baseline."""
    text_step = take.text_step(recipe.evaluate.text, Path.cwd())
    return scoring.ground_steps(recipe, original, text_step)


def _knob(recipe: Recipe, api: str, opened: str) -> str | None:
    """What ``Plan.knob`` is of a package for ``api`` that is scored on the unit ``opened``."""
    backend = backends.load(recipe.backend)
    return None if api in backend.tokens_only else backend.knob(recipe, opened)


def _scored(
    recipe: Recipe, whole: Checkpoint, language: Checkpoint, api: str, kv: str | None
) -> list[Step]:
    """The steps that evaluate and time the package's artifact for ``api``; ``language`` is the
    language model of ``whole``, or all of it."""
    toolchain = backends.load(recipe.backend).toolchain
    opened = scoring.Opened(
        toolchain=toolchain, memory_bytes=4 * language.parameters + scoring.RUNTIME_BYTES
    )
    shipped = Step(name="artifact", runs="", version=1, toolchain=toolchain)
    counted, knob = run_steps.tokens(recipe, language), _knob(recipe, api, "cpu")
    evaluation = scoring.compare_step(
        "evaluate",
        "artifact",
        recipe,
        opened,
        parameters=whole.parameters,
        until={} if kv else sampled.until(recipe, knob),  # both caches on the same positions
    )
    return [
        *(vision_steps.scoring_steps(whole, shipped, recipe) if kinds.sees(whole) else ()),
        evaluation,
        *run_steps.steps(evaluation, knob, counted, recipe),
        *([run_steps.cache_step(evaluation, kv, counted)] if kv else ()),
        *_answers(recipe, evaluation, language),
        scoring.measure_step("artifact", recipe, opened),
    ]


def _questions(recipe: Recipe, checkpoint: Checkpoint) -> list[Step]:
    """Prompts, and the original's answers to them; a file of the user's is looked for here."""
    if recipe.evaluate.generate is None:
        return []
    path = hub_prompts.path_of(recipe.evaluate.generate.prompts, Path.cwd())
    return generation_steps.original_steps(recipe, path, checkpoint)


def _answers(recipe: Recipe, evaluation: Step, checkpoint: Checkpoint) -> list[Step]:
    """The answers of the package's artifact, in the context that it was built for."""
    if recipe.evaluate.generate is None:
        return []
    backend = backends.load(recipe.backend)
    try:
        options = backend.options.model_validate(recipe.quantize)
    except ValidationError as error:
        raise _foreign(error) from None
    fixed = backend.context_length(Job(recipe, options, checkpoint))
    context = min(fixed or recipe.context or fit.CONTEXT, checkpoint.context_length)
    return generation_steps.build_steps(recipe, evaluation, context)


def _artifact(folder: Path, manifest: Manifest) -> Outside:
    return Outside(folder, tuple(sorted(entry.path for entry in manifest.files)))


def _kept(folder: Path, manifest: Manifest) -> Outside:
    """The reference data of the package in ``folder``."""
    paths = [entry.path.partition("/") for entry in manifest.files]
    kept = [inner for name, _, inner in paths if inner and name == reference.FOLDER]
    return Outside(folder / reference.FOLDER, tuple(sorted(kept)))


def _reading(step: Step, artifact: Outside) -> Step:
    """``step``, whose need of the step ``artifact`` the files of a finished package fill."""
    needs = {name: need for name, need in step.needs.items() if need != "artifact"}
    return replace(step, needs=needs, outside={"artifact": artifact} if needs != step.needs else {})


def _build(manifest: Manifest, recipe: Recipe) -> Build:
    return Build(name=manifest.name, recipe=recipe, folder=Path.cwd(), options=None)


def plan_measurement(folder: Path, note: Callable[[str], None]) -> Plan:
    """The steps that measure the package in ``folder`` on this machine, which is the device:
    evaluate, measure.

    Fidelity is scored against the reference data in the package: neither the original nor the
    network is needed.

    Raises:
        SourceError: it is no package, was changed, or has no reference data.
        TargetError: this machine cannot be the device, or no toolchain runs the package's unit.
    """
    manifest = opening.open_(folder, note)
    recipe, api = _recipe(manifest, None, None), manifest.api
    backend, target = backends.load(recipe.backend), _device(manifest)
    toolchain = _toolchain_here(folder, backend, recipe, target, api)
    shipped = {"artifact": _artifact(folder, manifest), "baseline": _kept(folder, manifest)}
    parameters, knob = manifest.source.parameters, _knob(recipe, api, api)
    opened = scoring.Opened(
        toolchain=toolchain, memory_bytes=4 * parameters + scoring.RUNTIME_BYTES, api=api
    )
    steps = [scoring.measure_step("artifact", recipe, opened)]
    if api not in backend.tokens_only:
        until = sampled.until(recipe, knob)
        compare = scoring.compare_step(
            "evaluate", "artifact", recipe, opened, parameters=parameters, until=until
        )
        run = run_steps.steps(compare, knob, recipe.evaluate.most_tokens, recipe)
        steps = [compare, *run, *steps]
    return Plan(
        build=_build(manifest, recipe),
        device=target,
        api=api,
        on_target="true",
        steps=tuple(replace(step, needs={}, outside=shipped) for step in steps),
        knob=knob,
    )


def _toolchain_here(
    folder: Path, backend: AnyBackend, recipe: Recipe, target: Device, api: str
) -> str:
    """The toolchain that measures the package in ``folder``; refuses a machine whose figures would
    not be the device's."""
    toolchain = backend.toolchain_on(api)
    if toolchain is None:
        raise TargetError(
            f"no toolchain of phipipe's runs `{recipe.backend}` packages on `{api}` yet",
            hint=f"the program in {folder / package.CARD} does, with what the device has; "
            f"`phipipe eval {folder}` evaluates the file here, on the CPU",
        )
    if target.architecture not in (None, hardware.architecture()):
        raise TargetError(
            f"this machine's processor is {hardware.architecture()}, and that of {target.title} is "
            f"{target.architecture}: figures taken here are not the device's",
            hint=f"run this on the device; `phipipe eval {folder}` evaluates the file here",
        )
    if missing := hardware.lacks(api):
        raise absent(missing, "phipipe")
    if not (folder / reference.FOLDER).is_dir():
        raise SourceError(
            f"`{folder}` has no reference data: an older phipipe made it", hint="build it again"
        )
    return toolchain


def _device(manifest: Manifest) -> Device:
    """The package's device as the manifest describes it: a file of the user's does not travel."""
    units = [{"api": manifest.api, "precisions": [manifest.precision]}]
    try:
        return Device.model_validate({**manifest.device.as_json(), "units": units})
    except ValidationError as error:
        raise SourceError(
            f"the package's device is not one that this phipipe reads: {_first(error)}"
        ) from None


def _api_of(target: Device, manifest: Manifest) -> str:
    """The unit that the package was made for, which ``target`` still has."""
    if manifest.api not in {unit.api for unit in target.units}:
        raise SourceError(
            f"the package was made for the unit `{manifest.api}`, which `{target.name}` does not "
            f"have",
            hint="build it again for a unit of the device's",
        )
    return manifest.api


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, where, and in what way."""
    reason = error.errors(include_url=False, include_input=False)[0]["msg"]
    words = json_files.shown(reason.removeprefix("Value error, "))
    return f"`{json_files.shown(reports.place(error))}`: {words}"


def _foreign(error: ValidationError) -> SourceError:
    return SourceError(
        f"the package's recipe is not one that this phipipe reads: {_first(error)}",
        hint="build it again",
    )


def _recipe(manifest: Manifest, text: Path | None, tokens: int | None) -> Recipe:
    try:
        recipe = recorded(manifest.recipe.as_json())
    except ValidationError as error:
        raise _foreign(error) from None
    changed: dict[str, Text | int] = {}
    if text is not None:
        changed["text"] = Text(file=str(text.absolute()))  # `~` in it is a name like any other
    if tokens is not None:
        if tokens < recipe.evaluate.window:
            raise RecipeError(
                f"--tokens {tokens} is less than one window of {recipe.evaluate.window} tokens, "
                f"by which this package "
                "is scored",
                hint=f"--tokens {recipe.evaluate.window} or more",
            )
        changed["tokens"] = tokens
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=changed)})


def _asking(recipe: Recipe, prompts: Path | None) -> Recipe:
    """``recipe`` with the prompts in that file for its own, which may be none."""
    if prompts is None:
        return recipe
    asked = recipe.evaluate.generate or Generate()
    update = {"prompts": Prompts(file=str(prompts.absolute())), "limit": None}
    changed = {"generate": asked.model_copy(update=update)}
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=changed)})
