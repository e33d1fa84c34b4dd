"""One folder of all stages, as runtimes open it."""

from __future__ import annotations

from pathlib import Path

from phipipe import progress
from phipipe.backends.qnn.pipeline import describe
from phipipe.backends.qnn.stages import FACTS, data_of, facts_of, stages
from phipipe.models.staging import copy_beside
from phipipe.steps import Inputs, Params


def join(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): the stages, each from the input of its own name, beside what the float graphs
    in ``inputs["rest"]`` have before them: the embedding, the tokenizer's files, the licence."""
    rest = inputs["rest"]
    names = list(stages(facts_of(rest)))
    for name in progress.each(names, "parts"):
        copy_beside(inputs[name], out, leave=lambda file: file == FACTS)
    weights = {data_of(name) for name in names}
    copy_beside(rest, out, leave=lambda file: file in weights or (out / file).exists())
    describe(out, facts_of(inputs[names[0]]))
