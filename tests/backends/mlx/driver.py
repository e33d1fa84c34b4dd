"""Runs in the mlx toolchain: ``python driver.py FOLDER`` leaves FOLDER/facts.json.

One process for all checks of test_mlx.py. FOLDER holds what the torch toolchain made before (see
the test's fixture).
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
from testing import oracle
from testing.drive import answer, message

from phipipe.backends import mlx as backend
from phipipe.backends.base import Job
from phipipe.backends.mlx import session
from phipipe.backends.mlx.convert import convert, stored
from phipipe.backends.mlx.options import BITS, GROUPS
from phipipe.backends.mlx.quantize import check, quantize
from phipipe.backends.mlx.sizes import MIXED
from phipipe.evaluate.sanity import PARITY_TEXT
from phipipe.hub.take import BUILTIN_MODELS
from phipipe.models import checkpoints, linears

TINY = BUILTIN_MODELS["tiny-phi3"]
PLAIN = SimpleNamespace(learn=None)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "int4": ("int4", {}),
    "int4-32": ("int4", {"group_size": 32}),
    "int4-128": ("int4", {"group_size": 128}),
    "3-bit": ("int4", {"bits": 3}),
    "6-bit": ("int4", {"bits": 6}),
    "int8": ("int8", {}),
    "mxfp4": ("int4", {"mode": "mxfp4"}),
    "nvfp4": ("int4", {"mode": "nvfp4"}),
    "mxfp8": ("int8", {"mode": "mxfp8"}),
    **{name: ("int4", {"mixed": name}) for name in MIXED},
}


def clean(folder: Path) -> Path:
    """The source's files without what the repository adds (the hub step leaves the same out)."""
    folder.mkdir(parents=True)
    for name in checkpoints.files(TINY):
        shutil.copyfile(TINY / name, folder / name)
    return folder


def steps(precision: str, **options: Any) -> list[Any]:
    recipe: Any = SimpleNamespace(precision=precision, weights=PLAIN)
    return backend.steps(
        Job(recipe, backend.Options.model_validate(options), checkpoints.read(TINY), {})
    )


def build(root: Path, name: str, precision: str, source: Path, **options: Any) -> Path:
    """As the planner would: the steps' own parameters."""
    planned = steps(precision, **options)
    model = root / name / "convert"
    model.mkdir(parents=True)
    convert({"source": source}, model, planned[0].params)
    if len(planned) == 1:
        return model
    out = root / name / "quantize"
    out.mkdir()
    quantize({"model": model}, out, planned[1].params)
    return out


def bare(root: Path, name: str, precision: str, source: Path, **options: Any) -> Path:
    """mlx-lm's own command for the same artifact."""
    out = root / f"{name}.bare"
    mode = options.get("mode", "affine")
    chosen: dict[str, Any] = {}
    if not precision.startswith("fp"):
        chosen = {
            "quantize": True,
            "q_mode": mode,
            "q_group_size": options.get("group_size") or GROUPS[mode],
        }
        chosen["q_bits"] = (
            BITS.get(mode) or options.get("bits") or (8 if precision == "int8" else 4)
        )
    if "mixed" in options:
        chosen["quant_predicate"] = options["mixed"]
    if precision == "fp32":
        chosen["dtype"] = "float32"
    importlib.import_module("mlx_lm.convert").convert(str(source), str(out), **chosen)
    return out


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    weights = stored(folder)
    return {
        n: (str(v.dtype), tuple(v.shape), bytes(memoryview(v.view(mx.uint8))))
        for n, v in weights.items()
    }


def quantization(folder: Path) -> Any:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    return config.get("quantization"), config.get("quantization_config")


def measured(folder: Path, expected: Any, ids: list[int]) -> dict[str, Any]:
    runtime = backend.open(folder)
    logits = runtime.logits(ids)
    facts = {
        "kld": oracle.kld(expected, logits),
        "causal": float(np.abs(runtime.logits(ids[:9]) - logits[:9]).max()),
        "again": bool(np.array_equal(logits, runtime.logits(ids))),
        "dtype": str(logits.dtype),
        "generated": list(runtime.generate(ids[:20], 8)),
    }
    chain = list(ids[:20])
    for _ in facts["generated"]:
        chain.append(int(runtime.logits(chain)[-1].argmax()))
    facts["chain"] = chain[20:]
    runtime.close()
    return facts


def equality(root: Path) -> dict[str, Any]:
    source, facts = root / "source", {}
    for name, (precision, options) in {"fp16": ("fp16", {}), "fp32": ("fp32", {}), **CASES}.items():
        ours = build(root, name, precision, source, **options)
        theirs = bare(root, name, precision, source, **options)
        facts[name] = [tensors(ours) == tensors(theirs), quantization(ours) == quantization(theirs)]
    return facts


def direct(root: Path) -> dict[str, Any]:
    """A large model is quantized straight from the checkpoint: the same files, with one step
    less."""
    large, facts = replace(checkpoints.read(TINY), parameters=2 * 10**9), {}
    for name in ("int4", "int8", "mxfp4", "mixed_3_6"):
        precision, options = CASES[name]
        recipe: Any = SimpleNamespace(precision=precision, weights=PLAIN)
        (step,) = backend.steps(Job(recipe, backend.Options.model_validate(options), large, {}))
        out = made(root / f"direct-{name}")
        quantize({"source": root / "source"}, out, step.params)
        two = root / name / "quantize"
        facts[name] = {p.name: p.read_bytes() for p in out.iterdir()} == {
            p.name: p.read_bytes() for p in two.iterdir()
        }
    return facts


def chosen(root: Path) -> dict[str, list[int]]:
    """Depths of models for which a preset gives a matrix another width than mlx-lm's own choice."""
    recipe: Any = SimpleNamespace(precision="int4", weights=PLAIN)
    build_choice = importlib.import_module("mlx_lm.convert").mixed_quant_predicate_builder
    known = checkpoints.read(TINY)
    facts: dict[str, list[int]] = {preset: [] for preset in MIXED}
    for preset, differ in facts.items():
        for layers in range(1, 65):
            shape = replace(known, layers=layers)
            (*_, step) = backend.steps(Job(recipe, backend.Options(mixed=preset), shape))
            paths = {
                name: name if name == "lm_head" else f"model.{name}"
                for name in linears.shapes(shape)
            }
            modules = [(path, None) for path in paths.values()]
            model = SimpleNamespace(named_modules=lambda m=modules: m, layers=range(layers))
            choice = build_choice(preset, model, 64)
            theirs = {name: choice(path, None) for name, path in paths.items()}
            if step.params["widths"] != {
                name: [one["bits"], one["group_size"]] for name, one in theirs.items()
            }:
                differ.append(layers)
    return facts


def fidelity(root: Path) -> dict[str, Any]:
    ids, expected = json.loads((root / "ids.json").read_text()), np.load(root / "source.npy")
    return {
        name: measured(
            root / name / ("convert" if name.startswith("fp") else "quantize"), expected, ids
        )
        for name in ("fp32", "fp16", *CASES)
    }


def variants(root: Path) -> dict[str, Any]:
    """Tied embeddings; LongRoPE with the fix-up's patch, and without."""
    ids, facts = json.loads((root / "ids.json").read_text()), {}
    scaling = json.loads((root / "longrope" / "config.json").read_text())["rope_scaling"]
    patch = {"rope_scaling": {**scaling, "long_factor": scaling["short_factor"]}}
    for name, source, changed in (
        ("tied", "tied", {}),
        ("longrope", "longrope", patch),
        ("raw", "longrope", {}),
    ):
        out = root / f"variant-{name}"
        out.mkdir()
        convert({"source": root / source}, out, {"dtype": "float32", "config_patch": changed})
        facts[name] = measured(out, np.load(root / f"{source}.npy"), ids)["kld"]
    return facts


def products(root: Path) -> dict[str, float]:
    """Scoring with numpy's products, which large models get on CPUs: the largest difference in any
    logit."""
    ids, whole = json.loads((root / "ids.json").read_text()), session.BLAS_BYTES
    folders = [root / name / "quantize" for name in CASES] + [
        root / "fp16" / "convert",
        root / "variant-tied",
    ]
    facts = {}
    for folder in folders:
        ours = []
        for session.BLAS_BYTES in (0, whole):
            runtime = backend.open(folder)
            ours.append(runtime.logits(ids[:100]))
            runtime.close()
        facts[folder.parent.name + folder.name] = float(np.abs(ours[0] - ours[1]).max())
    return facts


def failures(root: Path) -> dict[str, Any]:
    weights = stored(root / "int4" / "quantize")
    inner = {
        "model.layers.0.mlp.down_proj": weights["model.layers.0.mlp.down_proj.weight"].shape[-1] * 8
    }
    name = next(iter(inner))
    lost = {n: v for n, v in weights.items() if not n.endswith("scales")}
    return {
        "fine": message(lambda: check(weights, inner, {name: (4, 64)})),
        "bits": message(lambda: check(weights, inner, {name: (8, 64)})),
        "group": message(lambda: check(weights, inner, {name: (4, 32)})),
        "lost": message(lambda: check(lost, inner, {name: (4, 64)})),
        "quantized": message(
            lambda: convert(
                {"source": root / "int4" / "quantize"},
                made(root / "twice"),
                {"dtype": "float32", "config_patch": {}},
            )
        ),
    }


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def reproducible(root: Path) -> dict[str, Any]:
    again = build(root / "elsewhere", "again", "int4", clean(root / "elsewhere" / "renamed"))
    files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in again.iterdir()}
    first = {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in (root / "int4" / "quantize").iterdir()
    }
    named = [p.name for p in again.iterdir() if str(root).encode() in p.read_bytes()]
    kept = ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    return {
        "same": files == first,
        "named": named,
        "kept": [n for n in kept if (again / n).read_bytes() == (TINY / n).read_bytes()],
    }


def tokenizer(root: Path) -> dict[str, Any]:
    from tokenizers import Tokenizer

    ours = backend.tokenizer(root / "int4" / "quantize")
    theirs = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    return {
        "ids": [ours.encode(PARITY_TEXT), theirs.encode(PARITY_TEXT, add_special_tokens=False).ids],
        "text": ours.decode(ours.encode("the fox")),
        "chat": ours.render([{"role": "user", "content": "hi"}]),
    }


def sizes(root: Path) -> dict[str, Any]:
    """The size that is planned, and that of the files."""
    facts = {}
    for name, (precision, options) in CASES.items():
        out = root / name / "quantize"
        built = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        facts[name] = [steps(precision, **options)[-1].output_bytes, built]
    return facts


def main(root: Path) -> None:
    checks = (
        equality, direct, chosen, fidelity, variants, products, failures, reproducible, tokenizer,
        sizes,
    )  # fmt: skip
    answer(root / "facts.json", {check.__name__: partial(check, root) for check in checks})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
