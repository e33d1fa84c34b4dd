"""The steps that score: the baseline, an artifact against it, its speed, and a conversion's
parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

from phipipe.hub.take import Original
from phipipe.models import first_layers, layerwise_memory
from phipipe.models.checkpoint import Checkpoint
from phipipe.planning import sampled, vision_steps
from phipipe.recipe.recipe import Recipe
from phipipe.steps import Json, Params, Step
from phipipe.vision import kinds

# What an interpreter with torch or onnxruntime takes before it holds a weight, measured on Linux.
RUNTIME_BYTES = 2**29


def ground_steps(recipe: Recipe, original: Original, text: Step) -> list[Step]:
    """What every score of a build or a package rests on: source, text and the baseline's scores;
    of a model that sees, first the original that its language model is cut from."""
    whole = original.checkpoint
    seeing = kinds.sees(whole)
    language = kinds.language(whole) if seeing else whole
    evaluate = recipe.evaluate
    memory = layerwise_memory.memory_bytes(language, evaluate.most_tokens, evaluate.window)
    if not seeing:
        return [*original.before, *fidelity_steps(recipe, original.step, text, memory)]
    steps = fidelity_steps(recipe, vision_steps.cut_step(whole), text, memory)
    return [*original.before, replace(original.step, name="original"), *steps]


def fidelity_steps(recipe: Recipe, source: Step, text: Step, memory_bytes: int = 0) -> list[Step]:
    """The steps that every evaluation starts with: source, text, and the baseline's scores on
    it."""
    baseline = Step(
        name="baseline",
        runs="evaluate/baseline",
        version=3,
        needs={"source": "source", "text": "text"},
        params=sampled.baseline(recipe),
        layers="source",
        toolchain="torch",
        memory_bytes=memory_bytes,
    )
    return [source, text, baseline]


def change_steps(recipe: Recipe, original: Original, baseline: Step) -> list[Step]:
    """The steps that compare an original with the base that an adapter was merged into; none
    where there is no adapter. All adapters of one base share its baseline."""
    if recipe.source.adapter is None:
        return []
    needs = {"source": "base", "text": "text"}
    return [
        replace(baseline, name="base-baseline", needs=needs),
        Step(
            name="adapter-change",
            runs="evaluate/change_by_adapter",
            version=1,
            needs={"tuned": "baseline", "base": "base-baseline"},
            toolchain="torch",
            memory_bytes=4 * 8 * recipe.evaluate.window * original.checkpoint.vocab_size
            + RUNTIME_BYTES,
        ),
    ]


def opened_bytes(artifact: Step, recipe: Recipe, checkpoint: Checkpoint) -> int:
    """Memory for an evaluation of ``artifact``: its weights, and a window's logits with what is
    computed of them."""
    scores = 3 * 4 * recipe.evaluate.window * checkpoint.vocab_size
    return (artifact.loaded_bytes or 4 * checkpoint.parameters) + scores + RUNTIME_BYTES


def served_bytes(artifact: Step, checkpoint: Checkpoint) -> int:
    """Memory while ``artifact`` answers: runtimes that generate hold its files about once."""
    return (
        artifact.output_bytes if artifact.loaded_bytes else 4 * checkpoint.parameters
    ) + RUNTIME_BYTES


@dataclass(frozen=True, kw_only=True)
class Opened:
    """How an artifact is opened on this machine: in which toolchain, on which unit, and what that
    takes."""

    toolchain: str
    memory_bytes: int
    api: str = "cpu"


def compare_step(
    name: str,
    artifact: str,
    recipe: Recipe,
    opened: Opened,
    *,
    parameters: int,
    until: Params = MappingProxyType({}),
) -> Step:
    """Score the output of step ``artifact``, a model of so many ``parameters``, on the baseline's
    tokens: on all of them, or as ``until`` (of ``sampled``) says."""
    return Step(
        name=name,
        runs="evaluate/compare",
        version=5,
        needs={"artifact": artifact, "baseline": "baseline"},
        params={"backend": recipe.backend, "parameters": parameters, **_on(opened.api), **until},
        measurement=opened.api != "cpu",  # a GPU's figures are its own
        toolchain=opened.toolchain,
        output_bytes=12 * recipe.evaluate.most_tokens,
        memory_bytes=opened.memory_bytes,
    )


def measure_step(artifact: str, recipe: Recipe, opened: Opened) -> Step:
    """Time the output of step ``artifact``."""
    return Step(
        name="measure",
        runs="evaluate/measure",
        version=1,
        needs={"artifact": artifact, "baseline": "baseline"},
        params={"backend": recipe.backend, **recipe.measure.model_dump(), **_on(opened.api)},
        toolchain=opened.toolchain,
        measurement=True,
        memory_bytes=opened.memory_bytes,
    )


def _on(api: str) -> dict[str, str]:
    return {} if api == "cpu" else {"api": api}


def parity_steps(
    convert: Step, recipe: Recipe, toolchain: str, checkpoint: Checkpoint
) -> list[Step]:
    """Compare an unquantized conversion with the baseline, and stop where it differs by more than
    rounding; of a conversion to 16 bits, that is measured first."""
    rounded = [_rounding_step(convert, recipe, checkpoint)]
    if convert.unquantized == "float32":
        rounded = []
    opened = Opened(toolchain=toolchain, memory_bytes=opened_bytes(convert, recipe, checkpoint))
    return [
        *rounded,
        compare_step("parity", convert.name, recipe, opened, parameters=checkpoint.parameters),
        Step(
            name="check-parity",
            runs="evaluate/check_parity",
            version=3,
            needs={"metrics": "parity", **{step.name: step.name for step in rounded}},
            params=accepted(recipe),
        ),
    ]


def _rounding_step(convert: Step, recipe: Recipe, checkpoint: Checkpoint) -> Step:
    """Score the original rounded to the dtype that ``convert`` stores."""
    window = recipe.evaluate.window
    return Step(
        name="rounding",
        runs="evaluate/round",
        version=1,
        needs={"source": "source", "baseline": "baseline"},
        params={"dtype": convert.unquantized},
        toolchain="torch",
        memory_bytes=layerwise_memory.memory_bytes(checkpoint, window, window),
    )


def accepted(recipe: Recipe) -> dict[str, Json]:
    """Parameter of the steps that stop a build: differences that the recipe accepts."""
    return {"accept": list(recipe.evaluate.accept)} if recipe.evaluate.accept else {}


def slice_steps(
    checkpoint: Checkpoint, built: Sequence[Step], recipe: Recipe, toolchain: str
) -> list[Step]:
    """Parity of the first layers of a large ``checkpoint``; ``built`` are a backend's steps for
    these layers.

    Of them those are taken that the unquantized one needs. All get names of their own: the whole
    model goes through steps of the same names.
    """
    cut = first_layers.step(checkpoint)
    small = first_layers.of(checkpoint)
    convert = next(step for step in built if step.unquantized)
    earlier = {step.name: step for step in built}
    wanted = [convert.name]
    for name in wanted:
        wanted += [
            need for need in earlier[name].needs.values() if need in earlier and need not in wanted
        ]
    (*rounded, compare, check) = parity_steps(convert, recipe, toolchain, small)
    names = {"source": cut.name, "baseline": "slice-baseline"} | {
        name: f"slice-{name}" for name in (*wanted, *(step.name for step in rounded))
    }
    window = min(recipe.evaluate.most_tokens, recipe.evaluate.window)
    (*_, baseline) = fidelity_steps(
        recipe, cut, cut, layerwise_memory.memory_bytes(small, window, window)
    )
    kept = {key: value for key, value in baseline.params.items() if key != "at_most"}
    params = {**kept, "tokens": window, "answers": False}  # what a few layers answer means nothing
    chain = [replace(baseline, params=params, output_bytes=4 * window * small.vocab_size)]
    chain += [step for step in built if step.name in wanted]
    chain += rounded
    renamed = [
        replace(step, name=names.get(step.name, step.name), needs=_renamed(step, names))
        for step in chain
    ]
    check = replace(
        check, params={**check.params, "layers": small.layers}, needs=_renamed(check, names)
    )
    proof = [replace(step, keep="proof") for step in (cut, *renamed)]
    return [*proof, replace(compare, needs=_renamed(compare, names)), check]


def _renamed(step: Step, names: Mapping[str, str]) -> dict[str, str]:
    return {key: names.get(need, need) for key, need in step.needs.items()}
