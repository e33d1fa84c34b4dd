"""Runs in toolchains: ``python codec_driver.py FOLDER BACKEND TOOLCHAIN`` builds the embedded model
with ``quantize.map``, and leaves FOLDER/facts.json: how far the backend's codec is from the files.

Steps of other toolchains must have run before: their outputs lie in FOLDER.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["NNCF_CI"] = "1"

import numpy as np
from testing import decoded
from testing.drive import answer, message

from phipipe import backends
from phipipe.backends import widths
from phipipe.backends.base import AnyJob, Codec, Job
from phipipe.backends.widths import Width
from phipipe.hub.take import BUILTIN_MODELS
from phipipe.models import checkpoints, linears
from phipipe.steps import Step, resolve

TINY = BUILTIN_MODELS["tiny-phi3"]
CHECKPOINT = checkpoints.read(TINY)
SHAPES = linears.shapes(CHECKPOINT)


def every(bits: Sequence[int], *groups: int | None) -> list[Any]:
    return [{"bits": b, "group_size": size} for b in bits for size in groups]


FLOATS: dict[str, Any] = {"bits": 16}
BLOCKS = [*every((4, 8), 32, 16, 64, 128, 256, None), FLOATS]
# onnxruntime packs zero points of 4 bits in pairs, and its k_quant fails where one is left over
EVEN = [*every((4, 8), 32, 16, 64, 128, None), FLOATS]
ROWS = [*every((4, 8), -1, 32, 64, 128, 256, None), FLOATS]
PLAIN = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
PLAIN += ("IQ4_XS", "IQ3_S", "F32", "F16", "BF16")
WEIGHED = ("IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS")
TYPES = [*PLAIN, *every((4, 5, 8), None), FLOATS]
BY_ROW = every((8,), -1, None)
TFLITE = {"format": "tflite", "prefill_length": 8, "context_length": 64}
AFFINE = [*every((2, 3, 4, 5, 6, 8), 32, 64, 128), FLOATS]
# Options, what the matrices are stored in one after the other, and the unit's API.
CASES: Mapping[str, Mapping[str, tuple[dict[str, Any], list[Any], str]]] = {
    "onnxruntime": {
        "default": ({}, BLOCKS, "cpu"),
        "asymmetric": ({"symmetric": False, "block_size": 64}, BLOCKS, "cpu"),
        "rtn": ({"algorithm": "rtn"}, BLOCKS, "cpu"),
        "k_quant": ({"algorithm": "k_quant"}, EVEN, "cpu"),
        "fp16": ({}, BLOCKS, "cuda"),
    },
    "llamacpp": {
        "plain": ({}, TYPES, "cpu"),
        "imatrix": ({"imatrix": True}, [*WEIGHED, *TYPES], "cpu"),
    },
    "openvino": {
        "symmetric": ({"symmetric": True}, ROWS, "cpu"),
        "asymmetric": ({"group_size": 64}, ROWS, "cpu"),
    },
    "mlx": {
        "bfloat16": ({}, AFFINE, "metal"),
        "float16": ({"dtype": "float16", "group_size": 128}, AFFINE, "metal"),
        "nvfp4": ({"mode": "nvfp4"}, [*every((4, 6), None), FLOATS], "metal"),
    },
    "torch": {
        "symmetric": ({}, [*every((4, 8), 32, 64, 128, -1, None), FLOATS], "cpu"),
        "asymmetric": ({"symmetric": False}, [*every((4,), 32, 64, 128, -1, None), FLOATS], "cpu"),
    },
    "litert": {
        "dynamic": (TFLITE, [*every((4,), 32, 64, 128, 256, -1, None), *BY_ROW, FLOATS], "cpu"),
        "by row": ({**TFLITE, "group_size": -1}, [*every((4,), 64, None), *BY_ROW, FLOATS], "cpu"),
        "weight only": (
            {**TFLITE, "scheme": "weight_only"},
            [*every((4,), -1, None), *BY_ROW, FLOATS],
            "cpu",
        ),
    },
    "qnn": {
        "by row": ({"prompt_length": 32, "context_length": 64}, every((4, 8), -1, None), "hexagon")
    },
}
MATRICES = {
    "torch": [name for name in SHAPES if linears.layer_of(name) is not None],
    "qnn": [name for name in SHAPES if name != linears.EMBEDDING],
}


def job(backend: str, case: str) -> AnyJob:
    """As the planner would make it."""
    options, stored, api = CASES[backend][case]
    names = MATRICES.get(backend, list(SHAPES))
    chosen: dict[str, Any] = dict(zip(names, cycle(stored), strict=False))
    if case == "imatrix":  # the embedding has none
        chosen["embed_tokens"] = "Q4_0"
    if case in ("rtn", "k_quant"):  # onnxruntime has these of products alone
        del chosen["embed_tokens"]
    face = backends.load(backend)
    weights = SimpleNamespace(learn=None, group_size=32)
    calibrate = SimpleNamespace(tokens=1024, window=256)
    source = SimpleNamespace(adapter=None)
    recipe: Any = SimpleNamespace(
        precision="int4", backend=backend, weights=weights, calibrate=calibrate, context=512
    )
    recipe.source = SimpleNamespace(**vars(source), repo=None, builtin="tiny-phi3")
    asked = face.options.model_validate({**options, "map": chosen})
    unit: Any = SimpleNamespace(api=api, on=None)
    return Job(recipe, asked, CHECKPOINT, unit=unit, widths=widths.resolve(asked.map, CHECKPOINT))


def build(root: Path, backend: str, given: AnyJob, toolchain: str) -> Path | None:
    """The artifact; None if steps of another toolchain are still to come. All are done here that
    this toolchain can do."""
    outputs = {"source": TINY, "calibration": root / "calibration"}
    for step in backends.load(backend).steps(given):
        out = outputs[step.name] = root / place_of(step)
        if out.is_dir():
            continue
        if step.runs == "qnn/compile":  # contexts are compiled of what is decoded here
            stages = [path for name, path in outputs.items() if name.startswith("quantize-")]
            return together(stages)
        inputs = {name: outputs[need] for name, need in step.needs.items()}
        if step.toolchain == toolchain and all(path.is_dir() for path in inputs.values()):
            out.mkdir()
            resolve(step.runs)(inputs, out, step.params)
    return out if out.is_dir() else None


def together(folders: Sequence[Path]) -> Path:
    """One folder with the files of all."""
    whole = folders[0].with_name(f"{folders[0].name}-whole")
    for folder in folders:
        shutil.copytree(folder, whole, dirs_exist_ok=True)
    return whole


def place_of(step: Step) -> str:
    told = json.dumps([step.name, step.params], sort_keys=True)
    return f"{step.name}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def compared(root: Path, backend: str, toolchain: str, case: str) -> dict[str, Any]:
    """Matrix → how it is stored, the share of values that differ, and the largest difference, of
    some rows."""
    given = job(backend, case)
    artifact = build(root, backend, given, toolchain)
    if artifact is None:
        return {}
    face = backends.load(backend)
    assert face.codec
    codec, weights, facts = face.codec(given.codec_params), decoded.original(TINY), {}
    drives = importance(root, backend, case)
    for name, values in decoded.READERS[backend](artifact):
        stored = given.widths.get(name)
        if stored is None:
            continue
        rows = np.ascontiguousarray(weights[name][3::11])
        off = np.abs(codec(rows, stored, drives[name]) - values[3::11])
        facts[name] = [str(stored), float((off > 0).mean()), float(off.max())]
    lost = given.widths.keys() - facts.keys()
    assert not lost, lost
    return facts


def importance(root: Path, backend: str, case: str) -> dict[str, Any]:
    """Of each matrix's inputs: what the step learned, or anything."""
    random = np.random.default_rng(3)
    drives: dict[str, Any] = {
        name: random.uniform(0.1, 9, columns).astype(np.float32)
        for name, (_, columns) in SHAPES.items()
    }
    if backend == "llamacpp" and case == "imatrix":
        from phipipe.backends.llamacpp.names import tensor_of

        (folder,) = root.glob("imatrix-*")
        learned = np.load(folder / "imatrix.npz")
        drives = {n: learned[tensor_of(n)] for n in drives if tensor_of(n) in learned}
        drives["embed_tokens"] = np.zeros(256, np.float32)
    return drives


def any_shapes(backend: str) -> dict[str, Any]:
    """Of 40 random matrices, how many the codec takes row by row as all at once, into finite
    float32 near the original, whatever else is in memory before or after."""
    random, found = np.random.default_rng(5), {"rows": 0, "shape": 0, "near": 0}
    case = next(iter(CASES[backend]))
    face, given = backends.load(backend), job(backend, case)
    assert face.codec
    codec: Codec = face.codec(given.codec_params)
    choices = list(dict.fromkeys(given.widths.values()))
    for i in range(40):
        stored = choices[i % len(choices)]
        rows, columns = int(random.integers(1, 9)), 256 * int(random.integers(1, 4))
        weight = random.normal(0, 0.02, (rows, columns)).astype(np.float32)
        weight[:, : columns // 2] *= 2.0 ** random.integers(-6, 3)
        weight[0, :256] = 0  # a group of zeros
        before, drive = weight.copy(), random.uniform(0, 1, columns).astype(np.float32)
        whole = codec(weight, stored, drive)
        single = np.concatenate([codec(row[None], stored, drive) for row in weight])
        same = np.array_equal(weight, before) and np.array_equal(whole, single)
        found["rows"] += same
        found["shape"] += (whole.shape, whole.dtype) == (weight.shape, np.float32)
        found["near"] += bool(np.square(whole - weight).sum() <= 0.5 * np.square(weight).sum())
    return found


def refused(backend: str) -> dict[str, list[str]]:
    """What is said of rows that cannot be stored so."""
    face, facts = backends.load(backend), {}
    cases: dict[str, tuple[str, int, Any]] = {
        "llamacpp": [("weighed", "plain", 256, "IQ2_XS"), ("blocks", "plain", 288, "Q6_K")],
        "onnxruntime": [("pairs", "k_quant", 192, Width(bits=4, group_size=64))],
    }.get(backend, [])
    for name, case, columns, stored in cases:
        codec = face.codec(job(backend, case).codec_params)
        rows, nothing = np.ones((2, columns), np.float32), np.zeros(columns, np.float32)
        facts[name] = message(partial(codec, rows, stored, nothing))
    return facts


def main(root: Path, backend: str, toolchain: str) -> None:
    if toolchain == "torch":
        from testing.variants import tokens

        (root / "calibration").mkdir()
        np.save(root / "calibration" / "tokens.npy", tokens("calibration.txt", 8, 128))
    checks: dict[str, Any] = {
        case: partial(compared, root, backend, toolchain, case) for case in CASES[backend]
    }
    if backends.load(backend).toolchain == toolchain:
        checks["any"] = partial(any_shapes, backend)
        checks["refused"] = partial(refused, backend)
    answer(root / f"{toolchain}.json", checks)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
