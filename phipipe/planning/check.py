"""Whether a model fits its target: its eyes, its context, its memory."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import BaseModel

from phipipe import backends, metrics
from phipipe.backends.base import Job
from phipipe.models import fit
from phipipe.models.checkpoint import Checkpoint
from phipipe.models.fit import Fit
from phipipe.recipe.build import Build, problem_at
from phipipe.recipe.device import Device, Unit
from phipipe.recipe.recipe import Precision, Recipe

INTEGERS: tuple[Precision, ...] = ("int8", "int4")
SHORTEST = 256  # tokens of context that are worth offering; offers are multiples of it


def check_eyes(build: Build, seeing: Checkpoint | None, unit: Unit) -> None:
    """Refuse a unit that eyes are not built for, and gates on pictures where there are none."""
    able = backends.load(build.recipe.backend).eyes_on
    if seeing and unit.api not in able:
        message = (
            f"`{build.recipe.backend}` builds models that see for {', '.join(sorted(able))}, not "
            f"yet for `{unit.api}`"
        )
        hint = "choose a CPU device, openvino on an Intel GPU, or the text model it was built on"
        raise problem_at(build, ("device",), message, hint)
    for name in build.recipe.evaluate.gates:
        if not seeing and name in metrics.names("pictures"):
            message = f"`{name}` is measured on models that see, and this is none"
            raise problem_at(build, ("evaluate", "gates", name), message, "take the gate out")


def check_window(build: Build, section: Literal["evaluate", "calibrate"], context: int) -> None:
    """Refuse windows of text that the model, which knows ``context`` tokens, cannot read.

    Raises:
        TargetError: says which would do.
    """
    window = getattr(build.recipe, section).window
    if window > context:
        message = (
            f"`{section}.window: {window}` is longer than the {context:,} tokens that this model "
            "can read"
        )
        hint = f"`--set {section}.window={context}`, or less"
        raise problem_at(build, (section, "window"), message, hint)


def with_context(recipe: Recipe, options: BaseModel, checkpoint: Checkpoint) -> BaseModel:
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


def check_fit(build: Build, device: Device, job: Job[BaseModel], weight_bytes: int) -> Fit:
    """What the build takes on the device, with an artifact of about ``weight_bytes``.

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
        checkpoint, weight_bytes, fixed or asked, backend.cache_bytes[job.api], device.memory_gib
    )
    if not needed.fits:
        at = ("context",) if recipe.context and needed.longest else ("device",)
        message = (
            f"{device.title} has {device.memory_gib:g} GiB for a model, and this one "
            f"needs {needed.words()}"
        )
        raise problem_at(build, at, message, _smaller(job, device, needed))
    return needed


def _smaller(job: Job[BaseModel], device: Device, needed: Fit) -> str:
    """What would fit: a shorter context, else fewer bits, else another model."""
    if needed.longest >= SHORTEST:
        return f"`context: {needed.longest // SHORTEST * SHORTEST}` fits"
    backend = backends.load(job.recipe.backend)
    for precision in _fewer_bits(job, device):
        recipe = job.recipe.model_copy(update={"precision": precision})
        (*_, artifact) = backend.steps(
            Job(recipe, backend.options(), job.checkpoint, unit=job.unit)
        )
        smaller = replace(needed, weight_bytes=artifact.output_bytes)
        if smaller.longest >= SHORTEST:
            context = min(smaller.longest // SHORTEST * SHORTEST, needed.context)
            return f"`precision: {precision}` fits with `context: {context}`"
    return "choose a smaller model, or a device with more memory (`phipipe devices`)"


def _fewer_bits(job: Job[BaseModel], device: Device) -> list[Precision]:
    """The integer precisions below the recipe's that its backend serves there."""
    recipe = job.recipe
    able = backends.able(recipe.backend, device, job.unit) if job.unit else []
    integers: list[Precision] = [p for p in INTEGERS if p in able]
    below = integers.index(recipe.precision) + 1 if recipe.precision in integers else 0
    return integers[below:]
