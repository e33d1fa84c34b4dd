"""Runs in the litert toolchain: ``python map_driver.py FOLDER`` leaves FOLDER/facts.json about maps
and learned codes. FOLDER holds what the torch toolchain made (see test_litert_maps.py)."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from ai_edge_quantizer import qtyping, quantizer, recipe_manager
from testing import hand_lattice, oracle, small_tflite
from testing.drive import answer, message

from phipipe.algorithms import lattice
from phipipe.algorithms.lattice import Lattice, Matrix
from phipipe.backends import litert as backend
from phipipe.backends import widths
from phipipe.backends.base import Job
from phipipe.backends.litert import exact, matrices, stored
from phipipe.backends.litert.convert import convert
from phipipe.backends.litert.layout import MODEL
from phipipe.backends.litert.mapped import MIN_MAX, config_of, mapped
from phipipe.backends.litert.quantize import quantize
from phipipe.backends.widths import Width
from phipipe.models import checkpoints

MIXED: dict[str, Any] = {
    "layers.0.*.down_proj": {"bits": 16},
    "layers.*.down_proj": {"bits": 4, "group_size": 64},
    "layers.1.*": {"bits": 8},
    "layers.2.*": {"bits": 4, "group_size": -1},
    "embed_tokens": {"bits": 4, "group_size": 32},
    "lm_head": {"bits": 8},
}
LENGTHS = {"prefill_length": 8, "context_length": 128}


def job(
    source: Path, learned: Mapping[str, tuple[int, int]] | None = None, **options: Any
) -> Job[backend.Options]:
    """As the planner would make it; ``learned``: the widths of the matrices in a lattice."""
    known = checkpoints.read(source)
    weights = SimpleNamespace(learn="round" if learned else None, group_size=32)
    recipe: Any = SimpleNamespace(precision="int4", backend="litert", weights=weights)
    chosen = backend.Options.model_validate({**options, **LENGTHS, "format": "tflite"})
    named: dict[str, Any] = dict(widths.resolve(chosen.map, known))
    for name, (bits, size) in (learned or {}).items():
        named[name] = Width.model_validate({"bits": bits, "group_size": size})
    return Job(recipe, chosen, known, widths=named)


def converted(root: Path, name: str) -> Path:
    out = root / f"{name}-float"
    if not out.is_dir():
        out.mkdir()
        convert({"source": root / name}, out, {**LENGTHS, "config_patch": {}})
    return out


def build(root: Path, name: str, source: str, given: Job[backend.Options]) -> Path:
    step = backend.steps(given)[-1]
    out = root / name
    out.mkdir()
    known = {"convert": converted(root, source), "source": root / source}
    known["weights"] = root / f"{source}-lattice"
    quantize({name: known[place] for name, place in step.needs.items()}, out, step.params)
    return out


def divergence(root: Path, checkpoint: Path, folder: Path) -> float:
    vocabulary = checkpoints.read(checkpoint).vocab_size
    ids = [one % vocabulary for one in json.loads((root / "ids.json").read_text())[:96]]
    runtime = backend.open(folder)
    found = runtime.logits(ids)
    runtime.close()
    return oracle.kld(oracle.logits(checkpoint, ids), found)


def held(folder: Path, source: Path, name: str) -> dict[str, list[Any]]:
    """Matrix → kind, weights that share a scale, and what reads it, of the signature ``decode``."""
    names = matrices.in_buffers(source / MODEL, folder.parent / name, folded=True)
    tensors = {one.name: names[one.buffer] for one in stored.read(source / MODEL)}
    found: dict[str, list[Any]] = {}
    for one in stored.read(folder / MODEL):
        if one.name.startswith("decode"):
            found[tensors[one.name]] = [one.kind, one.group, one.reader]
    return found


def mixed(root: Path) -> dict[str, Any]:
    given = job(root / "source", map=MIXED)
    out = build(root, "mixed", "source", given)
    kinds = held(out, converted(root, "source"), "source")
    return {
        "count": len(kinds),
        "kinds": {name: kinds[name] for name in SHOWN},
        "kld": divergence(root, root / "source", out),
        "planned": backend.steps(given)[-1].output_bytes,
        "built": (out / MODEL).stat().st_size,
    }


SHOWN = ("embed_tokens", "lm_head", "layers.0.mlp.down_proj", "layers.0.mlp.gate_up_proj")
SHOWN += ("layers.1.mlp.down_proj", "layers.1.self_attn.o_proj", "layers.2.self_attn.qkv_proj")


def others(root: Path) -> dict[str, Any]:
    """A tied head; weights that are turned to floats before use; norms folded into matrices."""
    facts: dict[str, Any] = {}
    down: dict[str, Any] = {"layers.*.down_proj": {"bits": 8}}
    cases: dict[str, tuple[str, dict[str, Any]]] = {
        "tied": ("tied", {"map": {"lm_head": {"bits": 8}}}),
        "floats": ("source", {"map": {**down, "lm_head": {"bits": 16}}, "scheme": "weight_only"}),
        "folded": ("Phi-2/source", {"map": {**down, "layers.0.self_attn.*": {"bits": 8}}}),
    }
    for name, (source, options) in cases.items():
        (root / "other").mkdir(exist_ok=True)
        out = build(root, f"other/{name}", source, job(root / source, **options))
        facts[name] = {"kld": divergence(root, root / source, out)}
        names = matrices.in_buffers(converted(root, source) / MODEL, root / source, folded=True)
        told = {one.name: names[one.buffer] for one in stored.read(converted(root, source) / MODEL)}
        kinds = {(told[w.name], w.kind, w.reader) for w in stored.read(out / MODEL)}
        facts[name]["kinds"] = sorted(one for one in kinds if one[1] != "INT4")
    return facts


def learned(root: Path) -> dict[str, Any]:
    """The whole model in codes that no rounding would find, 4 bits in groups and 8 by row."""
    facts = {}
    for name in ("source", "tied"):
        made = hand_lattice.make(
            root / name, root / f"{name}-lattice", root / f"{name}-dense", 32, positive=True
        )
        out = build(root, f"{name}-learned", name, job(root / name, made))
        file, whole = converted(root, name) / MODEL, Lattice(root / f"{name}-lattice")
        names = matrices.in_buffers(file, root / name, folded=False)
        tensors = {one.name: names[one.buffer] for one in stored.read(file)}
        facts[name] = {
            "exact": sorted(
                {
                    tensors[weight.name]
                    for weight, found in exact.decoded(out / MODEL)
                    if found.scales is not None
                    and np.array_equal(found.dense(), whole[tensors[weight.name]].dense())
                }
            ),
            "names": sorted(whole.names),
            "kld": divergence(root, root / f"{name}-dense", out),
        }
    return facts


def any_shapes(root: Path) -> dict[str, Any]:
    """Of 30 random models of two matrices: those whose file decodes to exactly code · scale, and
    whose lookup and product compute it."""
    random, found = np.random.default_rng(11), {"stored": 0, "looked up": 0, "computed": 0}
    for number in range(30):
        one, other = _random(random), _random(random)
        path = _stored(root / f"any-{number}", {"embed_tokens": one, "lm_head": other})
        dense = {2: one.dense(), 3: other.dense()}
        files = [m.dense() for _, m in exact.decoded(path) if m.scales is not None]
        found["stored"] += all(map(np.array_equal, files, dense.values())) and len(files) == 2
        seen, product = small_tflite.computed(path)
        found["looked up"] += np.array_equal(seen, dense[2])
        # rounded on the fly, 1 is 255 steps of 1/255
        found["computed"] += bool(np.abs(product - dense[3]).max() <= 2e-7 * np.abs(dense[3]).max())
    return found


def _random(random: Any) -> Matrix:
    """Codes of all values, the lowest among them, in scales over many magnitudes."""
    bits, rows = int(random.choice([4, 8])), int(random.integers(2, 70))
    columns = 128 * int(random.integers(1, 5))
    size = int(random.choice([32, 64, 128])) if bits == 4 else columns
    low, high = lattice.limits(bits)
    codes = random.integers(low, high + 1, (rows, columns), np.int8)
    codes[0, 0] = low
    wide = np.exp(random.uniform(np.log(1e-3), np.log(1.0), (rows, columns // size)))
    scales = lattice.to_scales(wide.astype(np.float32))
    return Matrix(bits=bits, codes=codes, scales=scales)


def _stored(folder: Path, given: Mapping[str, Matrix]) -> Path:
    """The quantized model of a lookup and a product that holds the two matrices ``given``."""
    (folder / "weights").mkdir(parents=True)
    for part, (name, matrix) in enumerate(given.items()):
        lattice.write(folder / "weights", part, {name: matrix})
    lattice.finish(folder / "weights", {})
    nothing = [np.zeros(matrix.codes.shape, np.float32) for matrix in given.values()]
    small_tflite.write(folder / "float.tflite", *nothing)
    names = dict(zip((small_tflite.LOOKUP, small_tflite.PRODUCT), given, strict=True))
    asked = {name: (m.bits, m.group_size if m.bits == 4 else -1) for name, m in given.items()}
    _rounded(folder, names, asked, Lattice(folder / "weights"))
    return folder / MODEL


def _rounded(folder: Path, names: Any, asked: Any, learned: Lattice | None = None) -> None:
    rules = recipe_manager.RecipeManager()
    usual = config_of(4, 32, "dynamic")
    rules.add_quantization_config(".*", qtyping.TFLOperationName.ALL_SUPPORTED, usual, MIN_MAX)
    with mapped(names, asked, "dynamic", learned):
        rounding = quantizer.Quantizer(
            str(folder / "float.tflite"), rules.get_quantization_recipe()
        )
        rounding.quantize().export_model(str(folder / MODEL))


def zeros(root: Path) -> dict[str, Any]:
    """A product with groups of zeros, and one with groups of values that float16 has no scale
    for: XNNPACK refuses a scale of 0."""
    random, facts = np.random.default_rng(2), {}
    weight = random.normal(0, 0.02, (8, 128)).astype(np.float32)
    for name, factor in {"nothing": 0.0, "little": 1e-9}.items():
        weight[3, 32:64] = factor * random.normal(size=32)
        folder = root / f"zeros-{name}"
        folder.mkdir()
        small_tflite.write(folder / "float.tflite", weight, weight)
        _rounded(folder, {}, {})
        seen, product = small_tflite.computed(folder / MODEL)
        facts[name] = [float(np.abs(one - weight).max()) for one in (seen, product)]
    return facts


def failures(root: Path) -> dict[str, list[str]]:
    """What is said of a file that holds something else than was learned or asked for."""
    file, out = converted(root, "source") / MODEL, root / "source-learned" / MODEL
    names = matrices.in_buffers(file, root / "source", folded=False)
    before, whole = stored.read(file), Lattice(root / "source-lattice")
    tensors = {one.name: names[one.buffer] for one in before}
    one = whole["lm_head"]
    codes, scales, turned = one.codes.copy(), one.scales.copy(), -one.scales
    codes[-1, -1] ^= 1
    scales[-1, -1] *= 2

    def other(name: str, codes: Any, scales: Any, key: str = "lm_head") -> Lattice:
        folder = root / f"wrong-{name}"
        folder.mkdir()
        lattice.write(folder, 0, {key: Matrix(bits=8, codes=codes, scales=scales)})
        lattice.finish(folder, {})
        return Lattice(folder)

    def check(learned: Lattice) -> list[str]:
        return message(lambda: exact.check(out, learned, tensors))

    def verify(**asked: Any) -> list[str]:
        params = {"bits": 4, "group_size": 32, "scheme": "dynamic", "widths": asked["widths"]}
        return message(lambda: stored.verify(before, stored.read(out), params, names))

    right = dict.fromkeys(("lm_head", "embed_tokens"), (8, -1))
    down = "layers.1.mlp.down_proj"

    def store(learned: Lattice, widths: Any = right) -> list[str]:
        folder = root / "refused"
        folder.mkdir(exist_ok=True)
        inputs = {"model": file.parent, "source": root / "source", "weights": learned._folder}
        params = {"bits": 4, "group_size": 32, "scheme": "dynamic", "widths": widths}
        return message(lambda: quantize(inputs, folder, params))

    return {
        "codes": check(other("codes", codes, one.scales)),
        "scales": check(other("scales", one.codes, scales)),
        "lost": check(other("lost", one.codes, one.scales, "layers.9.mlp.down_proj")),
        "fine": verify(widths=right),
        "bits": verify(widths={**right, down: (8, -1)}),
        "group": verify(widths={**right, down: (4, 64)}),
        "missing": verify(widths={**right, "layers.9.mlp.down_proj": (4, 32)}),
        "sign": store(other("sign", one.codes, turned), {"lm_head": (8, -1)}),
        "shape": store(other("shape", codes[1:], scales[1:]), {"lm_head": (8, -1)}),
        "width": store(other("width", codes, scales), {"lm_head": (4, 32)}),
        "original": message(partial(matrices.in_buffers, file, root / "tied", folded=True)),
    }


def main(root: Path) -> None:
    checks = (mixed, others, learned, any_shapes, zeros, failures)
    answer(root / "facts.json", {check.__name__: partial(check, root) for check in checks})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
