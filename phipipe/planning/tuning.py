"""What can be chosen for the matrices of a build, what each choice takes, and the steps that say
what it costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from pydantic import BaseModel

from phipipe import backends
from phipipe.algorithms import distilled, sensitivity
from phipipe.backends.base import Job
from phipipe.backends.widths import Stored, Stores, Width, to_params
from phipipe.models import linears
from phipipe.planning import calibration, learnable, learned, sampled
from phipipe.planning.plan import Plan
from phipipe.recipe.build import Build, problem_at
from phipipe.recipe.recipe import Recipe
from phipipe.steps import Step

SELECTION = "selection"  # the step that takes
# What a file may take beside its weights, rounded up from builds of two models (5 layers and 2,304
# tokens; 30 and 49,152) with all backends. Most have OpenVINO's files, whose graph is XML: 0.09 MB
# for each layer, and 153 and 84 bytes for each token of the vocabulary.
LAYER_BYTES, TOKEN_BYTES = 2**17, 160
SELECTION_TOKENS = 4096  # of the calibration text, behind what is learned from


@dataclass(frozen=True, kw_only=True)
class Group:
    """Matrices that are stored alike: a matrix of a layer, or those that other checkpoints join.

    ``widths``: label → how they may be stored; ``size_bytes``: label → what the artifact takes
    more with it than with the first.
    """

    matrices: tuple[str, ...]
    widths: Mapping[str, Stored]
    size_bytes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Scope:
    """All that can be chosen: group (name as in maps) → its choices; ``base_bytes``: what the
    artifact takes with the first of each; ``beside_bytes``: what it may take at most beside that:
    its graph, and files of the tokenizer."""

    groups: Mapping[str, Group]
    base_bytes: int
    beside_bytes: int

    @property
    def smallest_bytes(self) -> int:
        """What the artifact takes at least."""
        return self.base_bytes + sum(min(g.size_bytes.values()) for g in self.groups.values())


def scope(build: Build, job: Job[BaseModel]) -> Scope:
    """What can be chosen for the matrices of ``job``.

    Raises:
        TargetError: nothing can.
    """
    stores = backends.load(job.recipe.backend).stores
    if stores is None or backends.load(job.recipe.backend).codec is None:
        able = ", ".join(f"`{name}`" for name in backends.names() if _tunes(name))
        message = f"`{job.recipe.backend}` stores all layers alike: there is nothing to choose"
        raise problem_at(build, ("backend",), message, f"these can: {able}")
    if job.recipe.precision != "int4":
        message = f"widths are chosen for int4 builds, and `precision` is {job.recipe.precision}"
        raise problem_at(build, ("precision",), message, "set `precision: int4`")
    shapes = linears.shapes(job.checkpoint)
    if not shapes:
        message = f"the matrices of `{job.checkpoint.architecture}` have no names to choose by"
        raise problem_at(build, ("source",), message)
    found = {}
    for name, matrices in _grouped(shapes).items():
        columns = shapes[matrices[0]][1]
        widths = list(_possible(job, stores, matrices, columns))
        if widths:
            found[name] = (matrices, widths)
    return _sized(job, found)


def _tunes(name: str) -> bool:
    face = backends.load(name)
    return face.stores is not None and face.codec is not None


def _grouped(names: Mapping[str, object]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = {}
    for name in names:
        whole = linears.joined(name) or name
        groups[whole] = (*groups.get(whole, ()), name)
    return groups


def _possible(
    job: Job[BaseModel], stores: Stores, matrices: Sequence[str], columns: int
) -> Iterator[Stored]:
    """The widths that the runtime stores and the unit runs."""
    every: Sequence[Stored] = stores.choices()
    if job.learns:
        sizes = {
            (bits, stores.learned_group(bits, size)): None
            for bits in learned.LEARNED_BITS
            for size in learnable.GROUPS
        }
        every = [Width.model_validate({"bits": b, "group_size": size}) for b, size in sizes]
    for stored in every:
        if not any(
            stores.wrong(name, stored, columns) or learned.unit_wants(job, name, stored)
            for name in matrices
        ):
            yield stored


def _sized(
    job: Job[BaseModel], found: Mapping[str, tuple[tuple[str, ...], Sequence[Stored]]]
) -> Scope:
    base = {name: widths[0] for matrices, widths in found.values() for name in matrices}
    job = replace(job, widths={**job.widths, **base})
    groups = {}
    for name, (matrices, widths) in found.items():
        first, *more = (_bits(job, matrices, stored) for stored in widths)
        sizes = [0, *(round((bits - first) / 8) for bits in more)]
        groups[name] = Group(
            matrices=matrices,
            widths={str(stored): stored for stored in widths},
            size_bytes=dict(zip(map(str, widths), sizes, strict=True)),
        )
    base_bytes = learned.steps(job)[-1].output_bytes
    return Scope(groups=groups, base_bytes=base_bytes, beside_bytes=_beside(job))


def _beside(job: Job[BaseModel]) -> int:
    """At most so many bytes of the artifact are no weights."""
    checkpoint, face = job.checkpoint, backends.load(job.recipe.backend)
    found = LAYER_BYTES * checkpoint.layers + TOKEN_BYTES * checkpoint.vocab_size
    if face.tables:  # two in fp32, of half a head; with LongRoPE those of the short context, too
        short = checkpoint.original_context_length if checkpoint.longrope else 0
        found += 4 * checkpoint.head_size * (checkpoint.context_length + short)
    return found


def _bits(job: Job[BaseModel], matrices: Sequence[str], stored: Stored) -> float:
    """What ``matrices`` take with the width ``stored``, as the artifact's estimate counts them."""
    weight_bits = backends.load(job.recipe.backend).weight_bits
    assert weight_bits is not None  # of every backend that stores widths
    job = learned.smoothed(job)
    shapes = linears.shapes(job.checkpoint)
    return sum(
        rows * columns * weight_bits(job, name, stored, columns)
        for name, (rows, columns) in ((name, shapes[name]) for name in matrices)
    )


def sensing(plan: Plan, job: Job[BaseModel], scope: Scope) -> Plan:
    """The steps that say what each choice of ``scope`` costs.

    Raises:
        TargetError, SourceError: there is no calibration text, or it is the evaluation text.
    """
    recipe, face = job.recipe, backends.load(job.recipe.backend)
    choices = {
        name: to_params(group.widths) for group in scope.groups.values() for name in group.matrices
    }
    params = job.codec_params
    if job.learns:
        params = {"learn": recipe.weights.learn, "group_size": recipe.weights.group_size}
        params |= {"positive": True} if face.stores and face.stores.positive else {}
    sensitive = sensitivity.sensitivity_step(job.checkpoint, recipe.calibrate.window)
    steps = (
        *needed(plan.steps, "source"),
        *calibration.calibration_steps(plan.build, plan.checkpoint.context_length),
        _selection_step(recipe),
        replace(sensitive, after=(SELECTION,)),  # a text too short is told before
        sensitivity.errors_step(
            "torch" if job.learns else face.toolchain,
            "" if job.learns else recipe.backend,
            params,
            choices,
        ),
    )
    return replace(plan, steps=tuple(replace(step, recipe=recipe.name) for step in steps))


def _selection_step(recipe: Recipe) -> Step:
    """The tokens that files are chosen by, as ``trial`` takes them from the calibration text."""
    tokens, first = _selected_tokens(recipe), _learned_tokens(recipe)
    return calibration.tokens_step(SELECTION, tokens, recipe.evaluate.window, first)


def _selected_tokens(recipe: Recipe) -> int:
    window = recipe.evaluate.window
    return SELECTION_TOKENS // window * window or window


def trial(plan: Plan) -> Plan:
    """The steps of ``plan`` that build its artifact, and score it on a text of the choice's own:
    what follows in the calibration text on the part that is learned from."""
    recipe = plan.build.recipe
    (text, *_) = calibration.calibration_steps(plan.build, plan.checkpoint.context_length)
    tokens = _selected_tokens(recipe)
    steps = []
    for step in needed(plan.steps, "evaluate"):
        if step.name == "text":
            step = replace(text, name="text", recipe=step.recipe)
        elif step.name == "baseline":
            params = {**step.params, "tokens": tokens, "first": _learned_tokens(recipe)}
            step = replace(step, params={k: params[k] for k in params if k != "at_most"})
        elif step.name == "evaluate":
            step = sampled.whole(step)  # files of one choice compare on the same windows
        steps.append(step)
    return replace(plan, steps=tuple(steps), warnings=())  # told with what comes before


def _learned_tokens(recipe: Recipe) -> int:
    """How many of the calibration text's tokens decide something of a file."""
    calibrate = recipe.calibrate
    held_out = distilled.held_out_tokens(calibrate.window) if recipe.weights.distil else 0
    return calibrate.tokens + held_out


def needed(steps: Sequence[Step], *names: str) -> list[Step]:
    """Of ``steps`` those that ``names`` are made of, themselves included, in order; without the
    checks that they would come after."""
    wanted = set(names)
    for step in reversed(steps):
        if step.name in wanted:
            wanted |= set(step.needs.values())
    return [replace(step, after=()) for step in steps if step.name in wanted]
