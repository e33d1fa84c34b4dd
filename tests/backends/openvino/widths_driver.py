"""Runs in the openvino toolchain: ``python widths_driver.py FOLDER`` leaves FOLDER/facts.json about
maps and learned codes."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ["NNCF_CI"] = "1"

import numpy as np
import openvino
from testing import hand_lattice, oracle, variants
from testing.drive import answer, message

from phipipe.algorithms import lattice
from phipipe.algorithms.lattice import Lattice, Matrix
from phipipe.backends import openvino as backend
from phipipe.backends import widths
from phipipe.backends.base import Job
from phipipe.backends.openvino import npu as npu_steps
from phipipe.backends.openvino import stored
from phipipe.backends.openvino.convert import convert
from phipipe.backends.openvino.files import MODEL
from phipipe.backends.openvino.quantize import quantize
from phipipe.backends.openvino.session import FAITHFUL
from phipipe.backends.widths import Width
from phipipe.models import checkpoints
from phipipe.models.checkpoint import Checkpoint

TINY = variants.TINY
MIXED = {
    "layers.0.*.down_proj": {"bits": 16},
    "layers.*.down_proj": {"bits": 4, "group_size": 64},
    "embed_tokens": {"bits": 8, "group_size": 32},
    "lm_head": {"bits": 8},
    "layers.0.*.qkv_proj": {"bits": 16},
}


class Large(Checkpoint):
    large = True  # type: ignore[assignment]


def job(
    precision: str = "int4",
    learned: Mapping[str, tuple[int, int]] | None = None,
    checkpoint: Checkpoint | None = None,
    **options: Any,
) -> Job[backend.Options]:
    """As the planner would make it; ``learned``: the widths of the matrices in a lattice."""
    known = checkpoint or checkpoints.read(TINY)
    weights = SimpleNamespace(learn="round" if learned else None, group_size=32)
    recipe: Any = SimpleNamespace(
        precision=precision, calibrate=SimpleNamespace(tokens=4096), weights=weights
    )
    chosen = backend.Options.model_validate(options)
    named = widths.resolve(chosen.map, known)
    named |= {n: Width(bits=b, group_size=s) for n, (b, s) in (learned or {}).items()}  # type: ignore[arg-type]
    return Job(recipe, chosen, known, widths=named)


def build(root: Path, name: str, given: Job[backend.Options], **known: Path) -> Path:
    step = backend.steps(given)[-1]
    out = root / name
    out.mkdir()
    known = {"convert": root / "fp16", "weights": root / "lattice", **known}
    quantize({name: known[place] for name, place in step.needs.items()}, out, step.params)
    return out


def same(one: Path, other: Path) -> bool:
    return all(path.read_bytes() == (other / path.name).read_bytes() for path in one.iterdir())


def spelled(root: Path) -> dict[str, bool]:
    layers, whole = {"layers.*": {"bits": 4, "group_size": 128}}, {"*": {"bits": 8}}
    cases: dict[str, tuple[Job[backend.Options], Job[backend.Options]]] = {
        "symmetric": (job(symmetric=True), job(symmetric=True, map=layers)),
        "asymmetric": (job(), job(map={**layers, **whole})),
        "int8": (job("int8"), job("int8", map=whole)),
    }
    return {
        name: same(build(root, name, plain), build(root, f"{name}-map", mapped))
        for name, (plain, mapped) in cases.items()
    }


def mixed(root: Path) -> dict[str, Any]:
    given = job(symmetric=True, map=MIXED)
    out = build(root, "mixed", given)
    held = {one.matrix: [one.kind, one.group] for one in stored.weights(stored.read(out))}
    shown = ("layers.0.mlp.down_proj", "layers.1.mlp.down_proj", "layers.1.mlp.gate_up_proj")
    return {
        "kinds": {name: held[name] for name in (*shown, "lm_head", "embed_tokens")},
        "kld": divergence(root, TINY, out),
        "planned": backend.steps(given)[-1].output_bytes,
        "built": (out / MODEL).with_suffix(".bin").stat().st_size,
    }


def divergence(root: Path, checkpoint: Path, folder: Path) -> float:
    ids = [int(one) for one in np.load(root / "ids.npy")]
    runtime = backend.open(folder)
    found = runtime.logits(ids)
    runtime.close()
    return oracle.kld(oracle.logits(checkpoint, ids), found)


def compiled(root: Path) -> dict[str, int]:
    """The matrices that a compiled graph holds, by type."""
    graph = openvino.Core().compile_model(str(root / "mixed" / MODEL), "CPU", FAITHFUL)
    held = [
        node.get_output_element_type(0).get_type_name()
        for node in graph.get_runtime_model().get_ops()
        if node.get_rt_info()["layerType"].astype(str) == "Const"
        and np.prod(list(node.get_output_shape(0))) >= 65_536
    ]
    return dict(Counter(held))


def learned(root: Path) -> dict[str, float]:
    """How far the graph is from transformers on the values that the codes stand for."""
    floats = ("layers.0.mlp.down_proj",)
    made = hand_lattice.make(TINY, root / "lattice", root / "dense", 32, floats)
    left = {"map": {floats[0]: {"bits": 16}}}
    large: Any = Large(**vars(checkpoints.read(TINY)))
    out = {
        "learned": build(root, "learned", job(learned=made, **left)),
        "direct": build(root, "direct", job(learned=made, checkpoint=large, **left), source=TINY),
    }
    facts = {name: divergence(root, root / "dense", folder) for name, folder in out.items()}
    return facts | {"tied": tied(root)}


def tied(root: Path) -> float:
    from safetensors.torch import load_file, save_file

    source = root / "tied"
    source.mkdir()
    for name in checkpoints.files(TINY):
        (source / name).write_bytes((TINY / name).read_bytes())
    tensors = load_file(source / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text("utf-8"))
    (source / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    made = hand_lattice.make(source, root / "tied-lattice", root / "tied-dense", 32)
    given = job(learned=made, checkpoint=checkpoints.read(source))
    (root / "tied-fp16").mkdir()
    convert({"source": source}, root / "tied-fp16", {"precision": "fp16", "config_patch": {}})
    places = {"convert": root / "tied-fp16", "weights": root / "tied-lattice"}
    return divergence(root, root / "tied-dense", build(root, "tied-out", given, **places))


def npu(root: Path) -> dict[str, dict[str, float]]:
    """How far codes by row and in groups of 128 are from what they stand for, and what the NPU's
    pipeline makes of them: the worst gap to the likeliest."""
    facts = {}
    for name, size in (("rows", -1), ("wide", 128)):
        made = hand_lattice.make(TINY, root / name, root / f"{name}-dense", size)
        out = build(root, f"npu-{name}", job(learned=made), weights=root / name)
        report = root / f"{name}-report"
        report.mkdir()
        lengths = {"prompt_length": 1024, "response_length": 128}
        npu_steps.verify_npu({"artifact": out}, report, lengths)
        told = json.loads((report / "npu.json").read_text("utf-8"))
        kld = divergence(root, root / f"{name}-dense", out)
        facts[name] = {"kld": kld, "gap_nats": float(told["gap_nats"])}
    return facts


def failures(root: Path) -> dict[str, list[str]]:
    """What is said of a graph that holds something else than was learned or asked for."""
    graph, whole = stored.read(root / "learned"), Lattice(root / "lattice")
    one = next(iter(sorted(whole.names)))

    def other(name: str, matrix: Matrix, key: str = one) -> list[str]:
        folder = root / f"other-{name}"
        folder.mkdir()
        lattice.write(folder, 0, {key: matrix})
        return message(lambda: stored.verify_learned(graph, Lattice(folder)))

    codes, scales = whole[one].codes.copy(), whole[one].scales.copy()
    codes[-1, -1] ^= 1
    scales[-1, -1] *= 2
    bits = whole[one].bits
    held = stored.weights(graph)
    down = "layers.1.mlp.down_proj"
    wrong = partial(stored.verify_mapped, held, sign="i")
    return {
        "codes": other("codes", Matrix(bits=bits, codes=codes, scales=whole[one].scales)),
        "scales": other("scales", Matrix(bits=bits, codes=whole[one].codes, scales=scales)),
        "lost": other("lost", whole[one], "layers.9.mlp.down_proj"),
        "width": message(lambda: wrong(widths={down: (8, 32)})),
        "group": message(lambda: wrong(widths={down: (4, 64)})),
        "missing": message(lambda: wrong(widths={"layers.9.mlp.down_proj": (4, 32)})),
    }


def main(root: Path) -> None:
    (root / "fp16").mkdir(parents=True)
    np.save(root / "ids.npy", variants.tokens("evaluation.txt", 1, 256)[0])
    convert({"source": TINY}, root / "fp16", {"precision": "fp16", "config_patch": {}})
    checks = (spelled, mixed, compiled, learned, npu, failures)
    answer(root / "facts.json", {check.__name__: partial(check, root) for check in checks})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
