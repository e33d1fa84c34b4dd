"""What can be done with a finished package: evaluate it again, talk to it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from phipipe import backends, device, hub, models, package, toolchain
from phipipe import plan as planner
from phipipe.backends.base import Outside
from phipipe.errors import SourceError
from phipipe.plan import Plan
from phipipe.process import child_environment, python_command
from phipipe.recipe import Build, Recipe, Text
from phipipe.settings import Settings
from phipipe.store import Store


def plan(folder: Path, store: Store, *, text: Path | None, tokens: int | None, source: Path | None) -> Plan:
    """The steps that evaluate the package in ``folder``: source, text, baseline, evaluate, measure.

    Raises:
        SourceError: it is no package, was changed, or its original checkpoint is not at hand.
    """
    manifest = package.read_manifest(folder)
    if findings := package.verify(folder):
        raise SourceError(f"`{folder}` is not as it was packaged: {findings[0]}", hint=f"phipipe verify {folder}")
    recipe = _recipe(manifest, text, tokens)
    checkpoint = models.read(_source(manifest, store, source))
    _same_source(manifest, checkpoint.folder, store)
    backend = backends.load(recipe.backend)
    steps = planner.fidelity_steps(
        recipe, hub.source_step(checkpoint.folder), hub.text_step(recipe.evaluate.text, Path.cwd())
    )
    artifact = Outside(folder, tuple(sorted(entry["path"] for entry in manifest["files"])))
    for step in (
        planner.compare_step("evaluate", "artifact", recipe, backend.TOOLCHAIN, checkpoint.parameters),
        planner.measure_step("artifact", recipe, backend.TOOLCHAIN, checkpoint.parameters),
    ):
        steps.append(replace(step, needs={"baseline": "baseline"}, outside={"artifact": artifact}))
    build = Build(name=str(manifest["name"]), recipe=recipe, folder=Path.cwd(), options=None)
    target = device.load(recipe.device, Path.cwd())
    unit = next(u for u in target.units if u.api == manifest["api"])
    return Plan(
        build=build,
        device=target,
        api=unit.api,
        on_target=planner.on_target(target, unit, backend),
        checkpoint=checkpoint,
        steps=tuple(steps),
    )


def _recipe(manifest: dict[str, Any], text: Path | None, tokens: int | None) -> Recipe:
    recipe = Recipe.model_validate(manifest["recipe"])
    changed: dict[str, Any] = {}
    if text is not None:
        changed["text"] = Text(file=str(text))
    if tokens is not None:
        changed["tokens"] = tokens
    return recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update=changed)})


def _source(manifest: dict[str, Any], store: Store, given: Path | None) -> Path:
    if given is not None:
        return given
    source = manifest["source"]
    if source["kind"] == "builtin":
        return hub.BUILTIN_MODELS[source["name"]]
    stored = store.root / "objects" / str(manifest["steps"]["source"]["digest"])
    if stored.is_dir():
        return stored
    raise SourceError(
        f"the original checkpoint of this package (`{source['name']}`) is not in the cache any more",
        hint="give its folder: --source DIR",
    )


def _same_source(manifest: dict[str, Any], folder: Path, store: Store) -> None:
    from phipipe import outside

    found = outside.digest(Outside(folder, tuple(models.files(folder))), store.root)
    if found != manifest["steps"]["source"]["digest"]:
        raise SourceError(f"`{folder}` is not the checkpoint that this package was made from")


def chat(
    folder: Path,
    settings: Settings,
    note: Callable[[str], None],
    *,
    prompt: str | None,
    system: str | None,
    tokens: int,
) -> int:
    """Talk to the package in ``folder`` inside its backend's toolchain, on our own stdin and stdout.

    Returns:
        The chat's exit code.

    Raises:
        SourceError: it is no package.
        ToolchainError: its toolchain cannot be installed.
    """
    manifest = package.read_manifest(folder)
    backend = str(manifest["backend"])
    installed = toolchain.ensure(backends.load(backend).TOOLCHAIN, settings, note)
    call = "import sys; from phipipe.chat import main; from pathlib import Path; "
    call += f"sys.exit(main(Path({str(folder)!r}), {backend!r}, {prompt!r}, {tokens!r}, {system!r}))"
    process = subprocess.Popen(python_command(installed.python, call), env=child_environment(offline=True))
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:  # the chat itself decides what Ctrl-C means
            continue
