"""Whether recipes could run on this machine, as `phipipe doctor RECIPE` asks, and if not, what to
do."""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from phipipe import backends
from phipipe.cli.doctor import COMPILER, INDEX, Check, compiled
from phipipe.errors import PhipipeError
from phipipe.execution import preflight
from phipipe.package.card import MAIN_TOOLS
from phipipe.planning import preparation
from phipipe.planning.plan import Plan
from phipipe.recipe import loading
from phipipe.recipe.build import Build
from phipipe.settings import Settings
from phipipe.store.store import Store
from phipipe.toolchains import environments, uv_settings


def recipes(paths: Iterable[Path], settings: Settings, machine: Sequence[Check]) -> Iterator[Check]:
    """Whether every build of the recipes could run here; ``machine`` is what is known of it."""
    for path in paths:
        try:
            builds = loading.load(path, options=backends.OptionsOf())
        except PhipipeError as error:
            yield _refusal(path, path.stem, error.message, error.hint)
            continue
        for build in builds:
            yield from _build(path, build, settings, machine)


def _build(
    path: Path, build: Build, settings: Settings, machine: Sequence[Check]
) -> Iterator[Check]:
    try:
        plan = preparation.prepare(build)
        store = Store(settings.cache, notify=lambda line: None)
        refusal = preflight.refusal([plan], store, settings, None) if settings.preflight else None
    except PhipipeError as error:
        yield _refusal(path, build.name, error.message, error.hint)
        return
    if refusal:
        yield _refusal(path, build.name, refusal.message, refusal.hint)
    missing = [name for name in plan.toolchains if environments.installed(name, settings) is None]
    blocked = [
        *_blocked(path, plan, missing, machine),
        *(_lacking(path, plan) if settings.use_current else ()),
    ]
    yield from blocked
    if refusal is None and not blocked:
        later = f"; first use installs the toolchain `{'`, `'.join(missing)}`" if missing else ""
        yield Check(
            name="recipe",
            ok=True,
            message=f"can run here{later}",
            recipe=str(path),
            build=build.name,
        )


def _blocked(
    path: Path, plan: Plan, missing: Sequence[str], machine: Sequence[Check]
) -> Iterator[Check]:
    """Missing toolchains that could not be installed now."""
    broken = {check.name: check for check in machine if check.ok is False}
    for name in missing:
        for trouble in (INDEX, *((COMPILER,) if name in compiled() else ())):
            if trouble in broken:
                message = (
                    f"needs the toolchain `{name}`, which cannot be installed: {trouble}: "
                    f"{broken[trouble].message}"
                )
                yield _refusal(path, plan.build.name, message, broken[trouble].hint)


def _lacking(path: Path, plan: Plan) -> Iterator[Check]:
    """With PHIPIPE_TOOLCHAIN=current, toolchains whose main packages the running Python does not
    have."""
    for name in plan.toolchains:
        lock = (environments.LOCKS / f"{name}.txt").read_text("utf-8")
        pinned = re.findall(r"(?m)^([a-z0-9._-]+)==[^;\n]*$", lock)
        main = {package for package in pinned if MAIN_TOOLS.fullmatch(package)}
        lost = sorted(p for p in main - {*uv_settings.EXCLUDED} if not _is_here(p))
        if lost:
            message = f"this Python lacks {', '.join(f'`{package}`' for package in lost)}"
            hint = f"pip install 'phipipe[{name}]', or unset PHIPIPE_TOOLCHAIN"
            yield _refusal(path, plan.build.name, message, hint)


def _is_here(package: str) -> bool:
    try:
        return bool(importlib.metadata.version(package))
    except importlib.metadata.PackageNotFoundError:
        return False


def _refusal(path: Path, build: str, message: str, hint: str | None) -> Check:
    return Check(name="recipe", ok=False, message=message, hint=hint, recipe=str(path), build=build)


def fit_to_run(checks: Iterable[Check]) -> bool:
    """Whether every recipe that was asked about could run."""
    return not any(check.ok is False for check in checks if check.recipe is not None)
