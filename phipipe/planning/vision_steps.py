"""Steps of a plan for a model that sees, besides those of its language model."""

from __future__ import annotations

from collections.abc import Mapping

from phipipe import backends
from phipipe.models import layerwise_memory
from phipipe.models.checkpoint import Checkpoint
from phipipe.recipe.recipe import Recipe
from phipipe.steps import Json, Step
from phipipe.vision.kinds import KINDS, PHI3, language
from phipipe.vision.pictures import OF_KIND

# Of the matrices of what sees: few weights, and all else builds on them.
VISION_BITS: Mapping[str, int | None] = {"int4": 8, "int8": 8}


def _vision_parameters(original: Checkpoint) -> int:
    return round(
        KINDS[original.architecture].share * (original.parameters - language(original).parameters)
    )


def vision_step(original: Checkpoint, artifact: Step, recipe: Recipe) -> Step:
    """The step that makes an artifact which sees of ``artifact``, the language model's."""
    parameters = _vision_parameters(original)
    bits = VISION_BITS.get(recipe.precision)
    return Step(
        name="eyes",
        runs=backends.load(recipe.backend).vision[original.architecture],
        version=1,
        needs={"model": artifact.name, "original": "original"},
        params={"bits": bits},
        toolchain=artifact.toolchain,
        output_bytes=artifact.output_bytes + parameters * (bits or 32) // 8,
        memory_bytes=12 * parameters + 2**30,
    )


def scoring_steps(original: Checkpoint, artifact: Step, recipe: Recipe) -> list[Step]:
    """The steps that compare what ``artifact`` makes of pictures with what the original does."""
    face = backends.load(recipe.backend)
    crops, parameters = KINDS[original.architecture].crops, _vision_parameters(original)
    room = 4 * (parameters + 2**27 * crops // 16)  # and what passes through the eyes
    shown: dict[str, Json] = {"square": True} if original.architecture in face.square else {}
    shown |= {} if original.architecture == PHI3 else {"kind": original.architecture}
    tokens = 3000 * len(OF_KIND[original.architecture])
    return [
        Step(name="pictures", runs="vision/draw_pictures", version=1, params=shown),
        Step(
            name="vision-baseline",
            runs="evaluate/baseline_pictures",
            version=1,
            needs={"original": "original", "source": "source"},
            params={"crops": crops, **shown},
            toolchain="torch",
            memory_bytes=room + layerwise_memory.memory_bytes(language(original), tokens, 3000),
        ),
        Step(
            name="vision-evaluate",
            runs="evaluate/compare_pictures",
            version=1,
            needs={
                "artifact": artifact.name,
                "baseline": "vision-baseline",
                "pictures": "pictures",
            },
            params={"backend": recipe.backend},
            toolchain=artifact.toolchain,
            memory_bytes=room + artifact.output_bytes + 2**30,
        ),
    ]


def cut_step(checkpoint: Checkpoint) -> Step:
    """The step that leaves the language model of ``checkpoint``, under the name that all others
    know it by."""
    kind = KINDS[checkpoint.architecture]
    return Step(
        name="source",
        runs=kind.cut,
        version=1,
        needs={"original": "original"},
        toolchain=kind.cut_toolchain,
        output_bytes=language(checkpoint).weight_bytes,
        memory_bytes=2**30 if kind.cut_toolchain else 0,
    )
