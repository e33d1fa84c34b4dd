"""The steps of qnn for all stages of a model, called one after another inside its toolchain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phipipe.backends.qnn.calibrate import calibrate
from phipipe.backends.qnn.chain import of_stage
from phipipe.backends.qnn.compile import compile
from phipipe.backends.qnn.emulate import emulate
from phipipe.backends.qnn.join import join
from phipipe.backends.qnn.quantize import quantize
from phipipe.backends.qnn.session import Caches, Session
from phipipe.backends.qnn.stages import facts_of, stages
from phipipe.steps import Params

Floats = npt.NDArray[np.float32]


def decode(session: Session, tokens: Sequence[int], prompt: int) -> Floats:
    """Logits of ``tokens``, the first ``prompt`` of them in chunks, the others one by one, each
    through all stages."""
    caches, step = Caches(session.facts, range(session.facts["layers"])), session.facts
    length = step["prompt_length"]
    chunks = [tokens[i : min(i + length, prompt)] for i in range(0, prompt, length)]
    runs = [*chunks, *([token] for token in tokens[prompt:])]
    return np.concatenate([session.run(caches, run) for run in runs])


def calibrated(model: Path, calibration: Path, out: Path) -> Path:
    """The ranges of the float graphs ``model``."""
    out.mkdir(parents=True)
    calibrate({"model": model, "calibration": calibration}, out, {})
    return out


def quantized(model: Path, ranges: Path, out: Path, params: Params) -> dict[str, Path]:
    """A folder below ``out`` for each stage of ``model`` in fixed point."""
    inputs = {"model": model, "ranges": ranges}
    made = _below(out, model)
    for stage, layers in stages(facts_of(model)).items():
        widths = of_stage(params.get("widths", {}), layers)
        quantize(inputs, made[stage], {**params, "stage": stage, "widths": widths})
    return made


def compiled(fixed: Mapping[str, Path], out: Path, params: Params) -> dict[str, Path]:
    """A folder below ``out`` for each stage of ``fixed``, compiled."""
    made = _below(out, fixed["head"])
    for stage, folder in made.items():
        compile({"model": fixed[stage]}, folder, {**params, "stage": stage})
    return made


def emulated(model: Path, apart: Mapping[str, Path], tokens: Path, out: Path, decoded: int) -> Path:
    """What the last of the stages ``apart`` leaves after reading the first of ``tokens``."""
    inputs, folders = {"rest": model, "baseline": tokens}, _below(out, model)
    for stage, folder in folders.items():
        asked = {"stage": stage, "decoded": decoded}
        emulate({**inputs, "compiled": apart[stage]}, folder, asked)
        inputs = {"before": folder}
    return folders["head"]


def joined(model: Path, parts: Mapping[str, Path], out: Path) -> Path:
    """One folder of all stages ``parts`` of the float graphs ``model``."""
    out.mkdir(parents=True)
    join({"rest": model, **parts}, out, {})
    return out


def _below(out: Path, like: Path) -> dict[str, Path]:
    folders = {stage: out / stage for stage in stages(facts_of(like))}
    for folder in folders.values():
        folder.mkdir(parents=True)
    return folders
