"""What a build does with the weights beside its backend: widths of single matrices, smoothing, and
the step that learns them for all runtimes alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod

from pydantic import BaseModel

from phipipe import backends
from phipipe.algorithms import distilled, learned, smooth
from phipipe.backends import widths
from phipipe.backends.base import Job
from phipipe.backends.widths import FLOAT_BITS, Stored, Stores, Width
from phipipe.models import linears
from phipipe.models.checkpoint import Checkpoint
from phipipe.planning import learnable
from phipipe.planning.learnable import GROUPS, LEARN
from phipipe.recipe.build import Build, problem_at
from phipipe.steps import Step

LEARNED_BITS = (4, 8)


def with_widths(build: Build, job: Job[BaseModel]) -> Job[BaseModel]:
    """``job`` with the width of each matrix that its map names, or of all where weights are
    learned.

    Raises:
        TargetError: the map does not fit the model, or the backend cannot store what it asks for.
    """
    chosen: Mapping[str, Stored] = getattr(job.options, "map", {})
    found = _resolved(build, chosen, job.checkpoint)
    named = tuple(found)
    if build.recipe.weights.learn is not None:
        _check_learnable(build, job)
        found = _for_learning(build, found, job)
    _check_stored(build, found, named, job.checkpoint)
    _check_unit(build, found, job)
    return replace(job, widths=found)


def steps(job: Job[BaseModel]) -> list[Step]:
    """From ``source`` to the artifact: the backend's own steps, with those before them that prepare
    the weights."""
    face = backends.load(job.recipe.backend)
    made = _with_learning(job, face.steps(smoothed(job)))
    if not smooth.asked(job.recipe):
        return made
    smoothing = smooth.step(job.checkpoint, job.recipe, by_rows=face.by_rows(job))
    return smooth.before(made, smoothing)


def smoothed(job: Job[BaseModel]) -> Job[BaseModel]:
    """``job`` as its backend does it: where the weights are smoothed, of that checkpoint, which is
    read as the original would be."""
    if not smooth.asked(job.recipe):
        return job
    return replace(job, checkpoint=smooth.of(job.checkpoint))


def scheme(job: Job[BaseModel], *, kept: bool = True) -> str:
    """How the weights are stored, in the backend's words, and what was learned of them; ``kept``:
    whether distilling, where it is asked for, brought scales that are better."""
    asked = job.recipe.weights
    learn = asked.learn and learned.done(asked.learn, _bits(job))
    told = backends.load(job.recipe.backend).scheme(job)
    told += learned.words(learn, distilled=kept if asked.distil else None)
    return f"{told}, {smooth.WORDS}" if smooth.asked(job.recipe) else told


def _bits(job: Job[BaseModel]) -> dict[str, int]:
    """Matrix → bits, of those that are learned."""
    wide = {name: one.bits for name, one in job.widths.items() if isinstance(one, Width)}
    return {name: bits for name, bits in wide.items() if bits != FLOAT_BITS}


def _with_learning(job: Job[BaseModel], built: Sequence[Step]) -> list[Step]:
    """With the steps that learn before the first that needs them."""
    steps = list(built)
    first = next((i for i, one in enumerate(steps) if "weights" in one.needs.values()), None)
    if first is not None:
        steps[first:first] = _learning(job, steps)
    return steps


def _learning(job: Job[BaseModel], steps: list[Step]) -> list[Step]:
    """The steps that learn; of ``steps``, those that read what comes before are changed."""
    recipe, stores = job.recipe.weights, backends.load(job.recipe.backend).stores
    calibrate, shapes = job.recipe.calibrate, linears.shapes(job.checkpoint)
    sizes = {
        name: (w.bits, shapes[name][1] if w.group_size == -1 else w.group_size or recipe.group_size)
        for name, w in job.widths.items()
        if isinstance(w, Width) and w.bits != FLOAT_BITS
    }
    is_positive = stores is not None and stores.positive
    made = [learned.step(recipe, sizes, job.checkpoint, calibrate.tokens, positive=is_positive)]
    if recipe.distil:
        scales = sum(prod(shapes[name]) // size for name, (_, size) in sizes.items())
        steps[:] = distilled.reads(steps, made[0])
        made.append(distilled.after(made[0], scales, job.checkpoint, calibrate))
    return made


def _resolved(
    build: Build, chosen: Mapping[str, Stored], checkpoint: Checkpoint
) -> dict[str, Stored]:
    if not chosen:
        return {}
    if not linears.shapes(checkpoint):
        message = f"the matrices of `{checkpoint.architecture}` have no names that a map can use"
        raise problem_at(build, ("quantize", "map"), message, "take `quantize.map` out")
    try:
        return widths.resolve(chosen, checkpoint)
    except widths.BadPattern as error:
        hint = "take the pattern out; where a variant inherits it, `none` takes it back"
        raise problem_at(build, ("quantize", "map", error.pattern), str(error), hint) from None


def _check_learnable(build: Build, job: Job[BaseModel]) -> None:
    if not linears.shapes(job.checkpoint):
        message = f"weights of `{job.checkpoint.architecture}` cannot be learned yet"
        raise problem_at(build, LEARN, message, "write `weights: none`")


def _for_learning(
    build: Build, found: Mapping[str, Stored], job: Job[BaseModel]
) -> dict[str, Stored]:
    """A width for every matrix: 4 bits in the layers, 8 for embedding and head, but for what the
    map says. (Rounding these two to 4 bits is a third of a small model's loss.)"""
    stores, size = backends.load(build.recipe.backend).stores, build.recipe.weights.group_size
    shapes = linears.shapes(job.checkpoint)
    assert stores is not None  # planning.learnable

    def width(bits: int, chosen: int | None = None) -> Width:
        group = stores.learned_group(bits, chosen or size)
        return Width.model_validate({"bits": bits, "group_size": group})

    usual = {name: width(4 if linears.layer_of(name) is not None else 8) for name in shapes}
    for name, stored in found.items():
        wrong = _unlearnable(stored, stores)
        if wrong or isinstance(stored, str):
            message = f"`{name}` is to have {stored}, and weights are learned {wrong}"
            raise problem_at(build, ("quantize", "map"), message, None, LEARN)
        is_float = stored.bits == FLOAT_BITS
        usual[name] = stored if is_float else width(stored.bits, stored.group_size)
    _check_columns(build, usual, job)
    _check_something(build, usual)
    if build.recipe.weights.learn == "signround":
        _check_heights(build, usual, shapes)
    return dict(usual)


def _check_columns(build: Build, found: Mapping[str, Width], job: Job[BaseModel]) -> None:
    shapes = linears.shapes(job.checkpoint)
    for name, width in found.items():
        size, columns = width.group_size or -1, shapes[name][1]
        if size > 0 and columns % size:
            message = (
                f"`{name}` has rows of {columns} weights, which groups of {size} do not divide"
            )
            hint = learnable.groups_hint(_groups(job))
            raise problem_at(build, ("weights", "group_size"), message, hint, LEARN)


def _check_something(build: Build, found: Mapping[str, Width]) -> None:
    """Refuse a map that leaves nothing of what is asked for: a build is called after it."""
    weights, at = build.recipe.weights, ("quantize", "map")
    whole = [name for name, width in found.items() if width.bits != FLOAT_BITS]
    if not whole:
        message = "weights are to be learned, and the map has all matrices in floats"
        raise problem_at(build, at, message, "write `weights: none`", LEARN)
    if weights.distil and all(linears.layer_of(name) is None for name in whole):
        message = "`distil` trains scales of the layers' matrices, and the map has all in floats"
        raise problem_at(build, at, message, "write `distil: none`", ("weights", "distil"))


def _groups(job: Job[BaseModel]) -> list[int]:
    """The groups that divide the rows of all matrices, and that the unit runs."""
    shapes = linears.shapes(job.checkpoint)
    return learnable.groups_of(job.recipe, job.unit, (row for _, row in shapes.values()))


def _check_heights(
    build: Build, found: Mapping[str, Stored], shapes: Mapping[str, tuple[int, int]]
) -> None:
    """auto-round leaves matrices as they are whose rows are no multiple of 32."""
    for name, stored in found.items():
        if linears.layer_of(name) is not None and _is_four(stored) and shapes[name][0] % 32:
            message = (
                f"`{name}` has {shapes[name][0]} rows, and auto-round learns matrices of multiples "
                "of 32 alone"
            )
            raise problem_at(build, LEARN, message, "set `weights.learn: gptq`")


def _unlearnable(stored: Stored, stores: Stores) -> str | None:
    """What weights can be learned at, where ``stored`` is something else."""
    if isinstance(stored, str) or stored.bits not in (*LEARNED_BITS, FLOAT_BITS):
        return "at 4 or 8 bits"
    if stores.learned_group(stored.bits, 0) < 0:
        return None if stored.group_size in (None, -1) else f"by row (-1) at {stored.bits} bits"
    able = [size for size in GROUPS if size > 0 or size in stores.groups.get(stored.bits, ())]
    if stored.bits != FLOAT_BITS and stored.group_size not in (None, *able):
        groups = ", ".join(str(size) for size in able if size > 0)
        return f"in groups of {groups}{', or by row (-1)' if -1 in able else ''}"
    return None


def _check_stored(
    build: Build, found: Mapping[str, Stored], named: Sequence[str], checkpoint: Checkpoint
) -> None:
    """Refuse what the backend cannot store of the matrices that the map has ``named``."""
    backend = backends.load(build.recipe.backend)
    shapes = linears.shapes(checkpoint) if named else {}
    for name in named:
        stores = backend.stores
        if stores and name in stores.fixed and build.recipe.weights.learn is not None:
            continue  # floats hold what was learned of it
        wrong = "no widths of single matrices" if stores is None else None
        if stores is not None:
            stored = found[name]
            if build.recipe.weights.learn is not None and isinstance(stored, Width):
                stored = Width(bits=stored.bits)  # its groups are held by smaller ones, too
            wrong = stores.wrong(name, stored, shapes[name][1])
        if wrong:
            raise problem_at(build, ("quantize", "map"), f"`{build.recipe.backend}` has {wrong}")


def _check_unit(build: Build, found: Mapping[str, Stored], job: Job[BaseModel]) -> None:
    """What the unit insists on for all matrices holds for single ones: group sizes, and 4 bits in
    all layers where it wants a ``ratio`` of 1."""
    recipe, unit = build.recipe, job.unit
    for name, stored in found.items():
        if wants := unit_wants(job, name, stored):
            where = unit.on if unit and unit.on else job.api
            at = ("weights", "group_size") if recipe.weights.learn else ("quantize", "map")
            message = (
                f"`{name}` is to have {stored}, and {where} runs {recipe.precision} only with "
            )
            hint = _unit_hint(job, name, stored)
            raise problem_at(build, at, message + wants, hint, LEARN, ("quantize", "map"))


def _unit_hint(job: Job[BaseModel], name: str, stored: Stored) -> str:
    """What to do where the unit of ``job`` cannot run matrix ``name`` as ``stored``."""
    if linears.layer_of(name) is not None and not _is_four(stored):
        return "let `quantize.map` name embedding and head alone; `map: none` takes all of it back"
    asked = job.recipe.weights
    if asked.learn is not None and getattr(stored, "group_size", None) == asked.group_size:
        return learnable.groups_hint(_groups(job))
    sizes = learnable.runs(job.unit, job.recipe.precision)
    return f"give it `group_size: {sizes[0]}` in `quantize.map`"


def unit_wants(job: Job[BaseModel], name: str, stored: Stored) -> str | None:
    """What the unit of ``job`` insists on, where it cannot run matrix ``name`` as ``stored``."""
    table = job.unit.constraints.get(job.recipe.precision, {}) if job.unit else {}
    sizes, all_four = table.get("group_size", []), table.get("ratio") == [1.0]
    size = None if isinstance(stored, str) else stored.group_size
    if size is not None and sizes and size not in sizes:
        return "groups of " + " or ".join(str(one) for one in sizes)
    if all_four and linears.layer_of(name) is not None and not _is_four(stored):
        return "4 bits in every layer"
    return None


def _is_four(stored: Stored) -> bool:
    return isinstance(stored, Width) and stored.bits == 4
