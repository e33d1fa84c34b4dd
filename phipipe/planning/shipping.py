"""The steps at a build's end: reference data, gates, the package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from pydantic import BaseModel

from phipipe import backends
from phipipe.algorithms import distilled
from phipipe.backends.base import Job
from phipipe.evaluate import reference
from phipipe.hub.take import Original
from phipipe.package import layouts
from phipipe.planning import apps, generation_steps, learned, run_steps, scoring, spelled
from phipipe.planning.plan import Plan
from phipipe.recipe.build import Build
from phipipe.recipe.recipe import Recipe
from phipipe.recipe.source import Adapter, Source
from phipipe.steps import Json, Step


def reference_step(recipe: Recipe) -> Step:
    """What the baseline scored, as the package keeps it for its device to be measured against."""
    return Step(
        name="reference",
        runs="evaluate/keep_reference",
        version=1,
        needs={"baseline": "baseline"},
        params={"top": reference.TOP, "tokens": reference.TOKENS},
        toolchain="torch",
        output_bytes=8 * reference.TOP * min(reference.TOKENS, recipe.evaluate.most_tokens),
    )


def gates_step(plan: Plan, seen: Sequence[Step], answers: Sequence[Step]) -> Step:
    """Stop where a figure is beyond the recipe's gates. ``seen`` are the steps that score
    pictures, ``answers`` those that judge answers."""
    recipe = plan.build.recipe
    gates = {
        name: gate.model_dump(exclude_none=True) for name, gate in recipe.evaluate.gates.items()
    }
    needs = {"metrics": "evaluate", "speed": "measure"}
    run = "kld_run" in gates  # others' results stay what they were
    return Step(
        name="gates",
        runs="evaluate/check_gates",
        version=1,
        needs=needs
        | ({"vision": seen[-1].name} if seen else {})
        | ({"answers": answers[-1].name} if answers else {})
        | ({"run": run_steps.NAME} if run and plan.knob else {}),
        params={"gates": gates, **({"knob": plan.knob} if run else {}), **scoring.accepted(recipe)},
    )


@dataclass(frozen=True, kw_only=True)
class Shipped:
    """What a package is made of: names of steps."""

    artifact: Step
    twin: Step | None  # what was evaluated in the artifact's place
    checks: tuple[str, ...]  # the steps that proved the conversion


def package_step(plan: Plan, original: Original, shipped: Shipped, job: Job[BaseModel]) -> Step:
    """Put the artifact, its figures and its papers into one folder."""
    recipe, backend = plan.build.recipe, backends.load(plan.build.recipe.backend)
    needs = {
        "artifact": shipped.artifact.name,
        "source": "source",
        "baseline": "baseline",
        "reference": "reference",
        "metrics": "evaluate",
        "speed": "measure",
        "gates": "gates",
        **({"change": "adapter-change"} if recipe.source.adapter else {}),
        **({"run": run_steps.NAME} if plan.knob else {}),
        **({"parity": shipped.checks[0]} if shipped.checks else {}),
        **({"emulation": "emulate"} if plan.api in backend.emulated else {}),
        **(
            {"weights": distilled.NAME if recipe.weights.distil else "weights"}
            if job.learns
            else {}
        ),
        **({"original": "original", "vision": "vision-evaluate"} if plan.seeing else {}),
        **({"answers": generation_steps.ANSWERS} if recipe.evaluate.generate else {}),
    }
    twin = {} if shipped.twin is None else {"twin": shipped.twin.name}
    return Step(
        name="package",
        runs="package/assemble",
        version=3,
        needs=needs,
        params=_papers(plan, original, job) | twin,
        provenance=True,
        takes_over="artifact",
        output_bytes=shipped.artifact.output_bytes + reference_step(recipe).output_bytes,
        taken_bytes=shipped.artifact.output_bytes if os.name != "nt" else 0,
    )


def renamed(step: Step, build: Build) -> Step:
    """``step``, which puts a package together, for ``build``, which is alike but for its names."""
    recipe = {**step.params["recipe"], "name": build.name}
    papers = {**step.params, "name": build.name, "recipe": recipe}
    return replace(step, params=papers, recipe=build.recipe.name)


def _papers(plan: Plan, original: Original, job: Job[BaseModel]) -> dict[str, Json]:
    """What the manifest says of the build, as far as it is known before it starts."""
    recipe, device = plan.build.recipe, plan.device
    backend = backends.load(recipe.backend)
    quantize = spelled.options(job)
    named = {"name": device.name, "title": device.title, "sources": list(device.sources)}
    architecture = {"architecture": device.architecture} if device.architecture else {}
    return {
        "name": plan.build.name,
        "recipe": _neutral(recipe) | {"name": plan.build.name, "quantize": quantize},
        "device": named | architecture,
        "backend": recipe.backend,
        "backend_title": backend.title,
        "api": plan.api,
        "scheme": learned.scheme(job),
        **({"unchanged": learned.scheme(job, kept=False)} if recipe.weights.distil else {}),
        "on_target": plan.on_target,
        "knob": plan.knob,
        "source": _source(plan, original),
        "fixups": {name: dict(fix) for name, fix in plan.fixups.items()},
        "warnings": [a.sentence for a in plan.warnings],
        **_apps(recipe),
    }


def _apps(recipe: Recipe) -> dict[str, Json]:
    """The apps that files are made for, each with the version of what is made."""
    named = {name: layouts.load(name).version for name in apps.wanted(recipe)}
    return {"apps": named} if named else {}


def _neutral(recipe: Recipe) -> dict[str, Json]:
    """The recipe without what changes no result: this machine's folders, tags, what a batch
    tolerates, who signs, where it is published, what stays in the cache."""
    values = recipe.model_dump(
        mode="json",
        exclude_none=True,
        exclude={
            "tags": True,
            "publish": True,
            "cache": True,
            "evaluate": {"tolerance"},
            "package": {"sign"},
        },
    )
    if not recipe.package.apps:  # packages of before say nothing of it, and keep their keys
        del values["package"]
    learned = values.get("calibrate", {}).get("text", {})
    for inner, key in (
        (values["source"], "path"),
        (values["source"].get("base", {}), "path"),
        (values["source"].get("adapter", {}), "path"),
        (values["evaluate"]["text"], "file"),
        (values["evaluate"].get("generate", {}).get("prompts", {}), "file"),
        (learned, "file"),
    ):
        if key in inner:
            inner[key] = Path(inner[key]).name
    return values


def _named(part: Source | Adapter, name: str) -> dict[str, Json]:
    """A part of the source as the manifest names it; ``name`` is that of its folder."""
    if part.repo is not None:
        file = {"file": part.file} if isinstance(part, Source) and part.file else {}
        return {"kind": "hub", "repo": part.repo, "revision": part.revision, **file}
    if isinstance(part, Source) and part.builtin is not None:
        return {"kind": "builtin", "name": part.builtin}
    return {"kind": "path", "name": name}


def _source(plan: Plan, original: Original) -> dict[str, Json]:
    """Where the original came from, and its shape."""
    source, checkpoint = plan.build.recipe.source, plan.whole
    named = _named(source, checkpoint.folder.name)
    if source.adapter is not None:
        named = {
            "kind": "adapter",
            "name": source.title,
            "base": _named(source.origin, source.origin.title),
            "adapter": _named(source.adapter, PurePath(str(source.adapter.path)).name),
        }
    if original.licence and (source.origin.repo or named.get("adapter", {}).get("repo")):
        named["license"] = original.licence
    return {
        **named,
        **original.notes,
        "architecture": checkpoint.architecture,
        "parameters": checkpoint.parameters,
        "context_length": checkpoint.context_length,
    }
