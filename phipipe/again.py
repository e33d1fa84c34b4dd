"""What can be done with a finished package: evaluate it again, measure it on its device, talk to
it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from phipipe import (
    backends,
    board,
    chat_process,
    device,
    hardware,
    hub,
    json_files,
    layerwise,
    models,
    outside,
    package,
    reference,
    remote,
    scoring,
    toolchain,
    venue,
    vision,
)
from phipipe.backends.base import Outside, Step, absent
from phipipe.board import Entry
from phipipe.device import Device
from phipipe.errors import RecipeError, SourceError, TargetError
from phipipe.hub import Original
from phipipe.hub_client import Repository
from phipipe.plan import Plan
from phipipe.recipe import Build, Recipe, Text, recorded
from phipipe.results import Outcome
from phipipe.settings import Settings
from phipipe.store import Store


def plan(
    folder: Path, store: Store, *, text: Path | None, tokens: int | None, source: Path | None
) -> Plan:
    """The steps that evaluate the package in ``folder``: source, text, baseline, evaluate, measure.

    Raises:
        SourceError: it is no package, was changed, or its original checkpoint cannot be had.
        StoreError: what the hub says of the original cannot be kept in the cache.
    """
    manifest = package.open_(folder)
    recipe = _recipe(manifest, text, tokens)
    original = _original(manifest, store, source)
    seeing = original.checkpoint if vision.sees(original.checkpoint) else None
    checkpoint = vision.language(seeing) if seeing else original.checkpoint
    backend = backends.load(recipe.backend)
    text_step = hub.text_step(recipe.evaluate.text, Path.cwd())
    memory = layerwise.memory_bytes(checkpoint, recipe.evaluate.tokens, recipe.evaluate.window)
    source_step = vision.cut_step(seeing) if seeing else original.step
    steps = scoring.fidelity_steps(recipe, source_step, text_step, memory)
    steps = [replace(original.step, name="original"), *steps] if seeing else steps
    artifact = Outside(folder, tuple(sorted(entry["path"] for entry in manifest["files"])))
    parameters, opened = (
        original.checkpoint.parameters,
        4 * checkpoint.parameters + scoring.RUNTIME_BYTES,
    )
    shipped = Step(name="artifact", runs="", version=1, toolchain=backend.TOOLCHAIN)
    for step in (
        *(vision.scoring_steps(seeing, shipped, recipe) if seeing else ()),
        scoring.compare_step("evaluate", "artifact", recipe, backend.TOOLCHAIN, parameters, opened),
        scoring.measure_step("artifact", recipe, backend.TOOLCHAIN, opened),
    ):
        needs = {name: need for name, need in step.needs.items() if need != "artifact"}
        steps.append(
            replace(
                step, needs=needs, outside={"artifact": artifact} if needs != step.needs else {}
            )
        )
    build = Build(name=str(manifest["name"]), recipe=recipe, folder=Path.cwd(), options=None)
    target = device.load(recipe.device, Path.cwd())
    api = _api_of(target, manifest)
    return Plan(
        build=build,
        device=target,
        api=api,
        on_target=venue.on_target(target, api, backend),
        source=checkpoint,
        steps=tuple(steps),
    )


def on_device(folder: Path) -> Plan:
    """The steps that measure the package in ``folder`` on this machine, which is the device:
    evaluate, measure.

    Fidelity is scored against the reference data in the package: neither the original nor the
    network is needed.

    Raises:
        SourceError: it is no package, was changed, or has no reference data.
        TargetError: this machine cannot be the device, or no toolchain runs the package's unit.
    """
    manifest = package.open_(folder)
    recipe, api = _recipe(manifest, None, None), str(manifest["api"])
    backend, target = backends.load(recipe.backend), _device(manifest)
    if api not in backend.ON_DEVICE:
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
    names = [str(entry["path"]) for entry in manifest["files"]]
    kept = [name.partition("/")[2] for name in names if name.startswith(f"{reference.FOLDER}/")]
    shipped = {
        "artifact": Outside(folder, tuple(sorted(names))),
        "baseline": Outside(folder / reference.FOLDER, tuple(sorted(kept))),
    }
    toolchain, parameters = backend.ON_DEVICE[api], int(manifest["source"]["parameters"])
    opened = 4 * parameters + scoring.RUNTIME_BYTES
    steps = [scoring.measure_step("artifact", recipe, toolchain, opened, api)]
    if api not in backend.TOKENS_ONLY:
        steps.insert(
            0,
            scoring.compare_step(
                "evaluate", "artifact", recipe, toolchain, parameters, opened, api
            ),
        )
    return Plan(
        build=Build(name=str(manifest["name"]), recipe=recipe, folder=Path.cwd(), options=None),
        device=target,
        api=api,
        on_target="true",
        steps=tuple(replace(step, needs={}, outside=shipped) for step in steps),
    )


def report(folder: Path, outcome: Outcome) -> Entry:
    """What was measured on the device, as an entry of a board that takes the place of the build's
    own."""
    return board.measured(
        package.read_manifest(folder),
        outcome.load("evaluate", "metrics.json"),
        outcome.load("measure", "speed.json"),
    )


def _device(manifest: dict[str, Any]) -> Device:
    """The package's device as the manifest describes it: a file of the user's does not travel."""
    told, precision = manifest["device"], manifest["precision"]
    units = [{"api": manifest["api"], "precisions": [precision]}]
    try:
        return Device.model_validate({**told, "units": units})
    except ValidationError as error:
        raise SourceError(
            f"the package's device is not one that this phipipe reads: {_first(error)}"
        ) from None


def _api_of(target: Device, manifest: dict[str, Any]) -> str:
    """The unit that the package was made for, which ``target`` still has."""
    api = str(manifest["api"])
    if api not in {unit.api for unit in target.units}:
        raise SourceError(
            f"the package was made for the unit `{api}`, which `{target.name}` does not have",
            hint="build it again for a unit of the device's",
        )
    return api


def _first(error: ValidationError) -> str:
    """The first thing that is wrong, where, and in what way."""
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return (
        f"`{json_files.shown(where)}`: "
        f"{json_files.shown(first['msg'].removeprefix('Value error, '))}"
    )


def _recipe(manifest: dict[str, Any], text: Path | None, tokens: int | None) -> Recipe:
    try:
        recipe = recorded(manifest["recipe"])
    except ValidationError as error:
        raise SourceError(
            f"the package's recipe is not one that this phipipe reads: {_first(error)}",
            hint="build it again",
        ) from None
    changed: dict[str, Any] = {}
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


def _original(manifest: dict[str, Any], store: Store, given: Path | None) -> Original:
    """The package's original: ``given``, or phipipe's own, or the cache's, or from its hub
    again."""
    source = manifest["source"]
    repo = (
        Repository("model", str(source["repo"]), str(source["revision"]))
        if source["kind"] == "hub"
        else None
    )
    if (
        repo and given is None and remote.is_known(repo)
    ):  # the cache has it as it came, or brings it: no copy is made
        return _from_hub(manifest, repo)
    folder = given or _at_hand(manifest, store)
    if folder is not None:
        checkpoint = models.read(folder)
        if not _is_original(manifest, folder, store):
            raise SourceError(f"`{folder}` is not the checkpoint that this package was made from")
        return Original(checkpoint, hub.source_step(folder))
    if repo:
        return _from_hub(manifest, repo)
    raise SourceError(
        f"the original checkpoint of this package (`{source['name']}`) is not in the cache any "
        f"more",
        hint="give its folder: --source DIR",
    )


def _at_hand(manifest: dict[str, Any], store: Store) -> Path | None:
    source = manifest["source"]
    if source["kind"] == "builtin":
        if source["name"] not in hub.BUILTIN_MODELS:
            raise SourceError(
                f"phipipe has no model `{source['name']}` of its own, which the package names "
                f"as its source"
            )
        return hub.BUILTIN_MODELS[source["name"]]
    stored = store.root / "objects" / str(source["digest"])
    return stored if stored.is_dir() and _is_original(manifest, stored, store) else None


def _is_original(manifest: dict[str, Any], folder: Path, store: Store) -> bool:
    files = tuple(models.files(folder))
    return bool(outside.digest(Outside(folder, files), store.root) == manifest["source"]["digest"])


def _from_hub(manifest: dict[str, Any], repo: Repository) -> Original:
    """The original as ``run`` had it: the same commit, the same published hashes."""
    try:
        checkpoint, found = remote.checkpoint_of(repo)
        step = remote.source_step(repo, found)
        made = manifest["steps"]
        if step.params != made.get("original", made["source"])["params"]:
            raise SourceError(
                f"`{repo}` is published with other files than those this package was made from"
            )
    except SourceError as error:
        here = "if you have the original, give its folder: --source DIR"
        raise SourceError(
            error.message, hint=f"{error.hint}; {here}" if error.hint else here
        ) from None
    return Original(checkpoint, step, found.licence)


def chat(
    folder: Path,
    settings: Settings,
    note: Callable[[str], None],
    *,
    prompt: str | None,
    system: str | None,
    tokens: int,
) -> int:
    """Talk to the package in ``folder`` inside its backend's toolchain, on our own stdin and
    stdout.

    Returns:
        The chat's exit code.

    Raises:
        SourceError: it is no package, was changed, holds what phipipe never packages, or its
            template or tokenizer takes more than it may.
        ToolchainError: its toolchain cannot be installed, or is damaged.
        StepFailed: its runtime refuses it.
        StepKilled: its process was ended: memory, signal.
    """
    manifest = package.open_(folder)
    backend = str(manifest["backend"])
    name = backends.load(backend).TOOLCHAIN
    installed = toolchain.ensure(name, settings, note)
    request: dict[str, Any] = {
        "folder": str(folder.absolute()),
        "backend": backend,
        "toolchain": name,
    }
    request |= {"prompt": prompt, "system": system, "tokens": tokens}
    return chat_process.hold(installed.python, request, settings)
