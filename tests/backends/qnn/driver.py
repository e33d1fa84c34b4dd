"""Runs in the qnn toolchain: ``python driver.py FOLDER`` leaves FOLDER/facts.json.

One process for all checks of test_qnn.py. FOLDER holds checkpoints and what transformers makes of
them (see there).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from testing import oracle
from testing.drive import answer, message
from testing.static_graphs import calibrated, compiled, decode, emulated, joined, quantized

from phipipe.backends import qnn as backend
from phipipe.backends.emulated import read
from phipipe.backends.qnn import compile as compilation
from phipipe.backends.qnn import convert as conversion
from phipipe.backends.qnn import fixed_point, weights
from phipipe.backends.qnn import quantize as quantization
from phipipe.backends.qnn import session as static_session
from phipipe.backends.qnn.chain import SOCS
from phipipe.backends.qnn.verify import verify
from phipipe.evaluate.sanity import PARITY_TEXT

LENGTHS = {"prompt_length": 64, "context_length": 256}
VARIANTS = ("source", "tied", "longrope")
PARTS = (1, 2, 4)
MAPPED = {
    "bits": 4,
    "keep_8bit": ["lm_head"],
    "widths": {
        "layers.1.mlp.gate_up_proj": {"bits": 8, "group_size": None},
        "layers.0.self_attn.qkv_proj": {"bits": 8, "group_size": -1},
        "lm_head": {"bits": 4, "group_size": None},
    },
}
INT4 = {"bits": 4, "keep_8bit": ["down_proj", "lm_head"]}
APART = {"soc": dict(SOCS["x-elite"]), "shared": False}


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def convert(root: Path) -> dict[str, Any]:
    """Chunks of a prompt, then single tokens, against transformers; for tied, partly rotated and
    LongRoPE models."""
    ids, facts = json.loads((root / "ids.json").read_text()), {}
    for name in VARIANTS:
        out = made(root / "float" / name)
        conversion.convert(
            {"source": root / name}, out, {"config_patch": {}, "parts": 1, **LENGTHS}
        )
        session, expected = static_session.Session(out), np.load(root / f"{name}.npy")
        facts[name] = {
            "decoded": oracle.kld(expected[:150], decode(session, ids[:150], 100)),
            "chunks": oracle.kld(expected[:200], session.logits(ids[:200])),
        }
        answer = list(session.generate(ids[:40], 6))
        chain = list(ids[:40])
        for _ in answer:
            chain.append(int(session.logits(chain)[-1].argmax()))
        facts[name]["chain"] = answer == chain[40:]
        session.close()
    return facts


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def split(root: Path) -> dict[str, Any]:
    """The same model in several parts: float, fixed point, on the emulator."""
    ids, facts = json.loads((root / "ids.json").read_text())[:80], {}
    expected = np.load(root / "source.npy")
    whole = decode(static_session.Session(root / "float" / "source"), ids, 64)
    for parts in PARTS:
        out = {name: root / "split" / str(parts) / name for name in ("float", "fixed", "compiled")}
        conversion.convert(
            {"source": root / "source"},
            made(out["float"]),
            {"config_patch": {}, "parts": parts, **LENGTHS},
        )
        work, model = root / "split" / str(parts), out["float"]
        ranges = calibrated(model, root / "calibration", work / "ranges")
        fixed = quantized(model, ranges, work / "quantized", {"bits": 8, "keep_8bit": []})
        joined(model, fixed, out["fixed"])
        joined(model, compiled(fixed, work / "contexts", APART), out["compiled"])
        found = {
            name: decode(static_session.Session(folder), ids, 64) for name, folder in out.items()
        }
        graphs = [
            onnx.load(str(p), load_external_data=False).graph
            for p in out["compiled"].glob("*_*.onnx")
        ]
        config = json.loads((out["compiled"] / "genai_config.json").read_text())
        facts[str(parts)] = {
            "difference": float(np.abs(found["float"] - whole).max()),
            "fixed": oracle.kld(expected[:80], found["fixed"]),
            "compiled": oracle.kld(expected[:80], found["compiled"]),
            "nodes": [node.op_type for graph in graphs for node in graph.node],
            "pipeline": config["model"]["decoder"]["pipeline"],
            "float files": files(out["float"]),
            "compiled files": files(out["compiled"]),
        }
    return facts


def round_off(root: Path) -> dict[str, Any]:
    """Weights as they are stored against what they were."""
    folder, facts = root / "float" / "source", {}
    model = onnx.load(str(folder / "decoder_0_token.onnx"), load_external_data=False)
    (tensor,) = (
        t for t in model.graph.initializer if t.name == "model.layers.1.mlp.gate_proj.weight"
    )
    value = weights.value_of(tensor, folder)
    for width in (8, 4):
        scale = fixed_point.scale_of(value, width)
        stored = fixed_point.rounded(value, scale, width)
        found = {
            "steps off": float(np.abs(value / scale - stored).max()),
            "scales": list(scale.shape),
        }
        facts[str(width)] = found | {"range": [int(stored.min()), int(stored.max())]}
    odd = weights.pairs(np.array([[1, -1, 7], [-8, 0, 3], [2, 5, -3]], np.int8))
    return facts | {"outputs": value.shape[1], "pairs": odd.tolist()}


def quantize(root: Path) -> dict[str, Any]:
    ids, expected = json.loads((root / "ids.json").read_text()), np.load(root / "source.npy")
    calibration = made(root / "calibration")
    np.save(
        calibration / "tokens.npy",
        np.asarray(json.loads((root / "calibration.json").read_text()), np.int32),
    )
    facts: dict[str, Any] = {}
    source = root / "float" / "source"
    ranges = calibrated(source, calibration, root / "ranges")
    cases = {"int8": {"bits": 8, "keep_8bit": []}, "int4": INT4, "again": INT4, "map": MAPPED}
    for name, params in cases.items():
        if name == "again":
            ranges = calibrated(source, calibration, root / "ranges again")
        parts = quantized(source, ranges, root / "stages" / name, params)
        session = static_session.Session(joined(source, parts, root / name))
        facts[name] = {
            "kld": oracle.kld(expected[:120], decode(session, ids[:120], 64)),
            "caches": session.facts["caches"],
        }
        session.close()
    model = onnx.load(str(root / "int4" / "decoder_0_token.onnx"), load_external_data=False)
    stored = {t.name.removesuffix("_quantized"): t.data_type for t in model.graph.initializer}
    facts["down"] = stored["model.layers.1.mlp.down_proj.weight"] == TensorProto.INT8
    facts["gate"] = stored["model.layers.1.mlp.gate_proj.weight"] == TensorProto.INT4
    facts["eights"] = eights(root / "map")
    lost = {**MAPPED, "widths": {"layers.9.mlp.down_proj": {"bits": 8, "group_size": None}}}
    lost = {**MAPPED, "widths": {"layers.9.mlp.down_proj": {"bits": 8, "group_size": None}}}
    inputs = {"model": source, "ranges": ranges}
    facts["lost"] = message(
        lambda: quantization.quantize(inputs, made(root / "unused3"), {**lost, "stage": "head"})
    )
    facts["scales"] = message(lambda: verify(one_scale(root), {"lm_head.weight": 8}, {}))
    same = [
        (root / "int4" / p.name).read_bytes() == p.read_bytes() for p in (root / "again").iterdir()
    ]
    facts["reproducible"] = all(same) and len(same) > 5
    bits8 = quantization.bits_of(
        root / "float" / "source" / "head_prompt.onnx", {"bits": 4, "keep_8bit": []}
    )
    facts["wrong_bits"] = message(lambda: verify(root / "int8" / "head_prompt.onnx", bits8, {}))
    facts["float"] = message(
        lambda: verify(root / "float" / "source" / "head_prompt.onnx", bits8, {})
    )
    other = {f"{kind}_{i}": (0.5, 7) for i in range(5) for kind in ("key", "value")}
    facts["range"] = message(lambda: verify(root / "int8" / "decoder_0_prompt.onnx", {}, other))
    short = made(root / "short")
    np.save(short / "tokens.npy", np.zeros((2, 70), np.int32))
    facts["short"] = message(lambda: calibrated(source, short, root / "unused"))
    facts["apart"] = changed_stages(root)
    return facts


def changed_stages(root: Path) -> dict[str, list[str]]:
    """Of two parts and the head, the stages whose files differ where one matrix is wider."""
    work, source = root / "two", root / "two" / "float"
    parts = {"config_patch": {}, "parts": 2, **LENGTHS}
    conversion.convert({"source": root / "source"}, made(source), parts)
    ranges = calibrated(source, root / "calibration", work / "ranges")
    usual = quantized(source, ranges, work / "usual", INT4)
    found = {}
    for name in ("layers.0.mlp.gate_up_proj", "layers.4.mlp.gate_up_proj"):
        wider = {**INT4, "widths": {name: {"bits": 8, "group_size": None}}}
        other = quantized(source, ranges, work / name, wider)
        found[name] = [stage for stage in usual if content(usual[stage]) != content(other[stage])]
    return found


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def eights(folder: Path) -> list[str]:
    """Linears of the graphs at 8 bits."""
    found: set[str] = set()
    for path in folder.glob("*_*.onnx"):
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer:
            if tensor.name.endswith("weight_quantized") and tensor.data_type == TensorProto.INT8:
                found.add(tensor.name.removesuffix(".weight_quantized").removeprefix("model."))
    return sorted(found)


def one_scale(root: Path) -> Path:
    """The head at 8 bits with one scale for all outputs."""
    model = onnx.load(str(root / "int8" / "head_prompt.onnx"), load_external_data=False)
    (step,) = (t for t in model.graph.initializer if t.name == "lm_head.weight_step")
    step.CopyFrom(onnx.numpy_helper.from_array(np.array(0.01, np.float32), step.name))
    onnx.save(model, str(root / "one_scale.onnx"))
    return root / "one_scale.onnx"


def compile(root: Path) -> dict[str, Any]:
    ids, expected = json.loads((root / "ids.json").read_text()), np.load(root / "source.npy")
    facts: dict[str, Any] = {}
    source, fixed = root / "float" / "source", dict.fromkeys(("decoder_0", "head"), root / "int4")
    for name, soc, shared in (
        ("apart", "x-elite", False),
        ("shared", "x-elite", True),
        ("other", "8-elite", True),
    ):
        params = {"soc": dict(SOCS[soc]), "shared": shared}
        contexts = compiled(fixed, root / "contexts" / name, params)
        out = joined(source, contexts, root / "compiled" / name)
        graphs = [onnx.load(str(p), load_external_data=False).graph for p in out.glob("*_*.onnx")]
        binaries = {p.name: p.stat().st_size for p in out.glob("*.bin")}
        facts[name] = {
            "nodes": [n.op_type for graph in graphs for n in graph.node],
            "binaries": binaries,
        }
        facts[name]["config"] = json.loads((out / "genai_config.json").read_text())
    session = static_session.Session(root / "compiled" / "apart")
    whole = decode(session, ids[:80], 64)
    facts["kld"] = oracle.kld(expected[:80], whole)
    session.close()
    facts["emulated"] = emulation(root, whole)
    facts["anywhere"] = is_same_anywhere(root)
    mapped = compiled(dict.fromkeys(fixed, root / "map"), root / "contexts" / "map", APART)
    session = static_session.Session(joined(source, mapped, root / "compiled" / "map"))
    facts["map"] = oracle.kld(expected[:80], decode(session, ids[:80], 64))
    session.close()
    facts["shared on the emulator"] = message(lambda: backend.open(root / "compiled" / "shared"))
    tokenizer = backend.FACE.tokenizer(root / "compiled" / "shared")
    facts["ids"] = [tokenizer.encode(PARITY_TEXT), json.loads((root / "parity.json").read_text())]
    broken = onnx.load(str(root / "int4" / "head_prompt.onnx"), load_external_data=False)
    node = onnx.helper.make_node("NonZero", ["hidden_states"], ["where"], name="data_dependent")
    broken.graph.node.append(node)
    broken.graph.output.append(
        onnx.helper.make_tensor_value_info("where", TensorProto.INT64, [3, None])
    )
    folder = made(root / "broken")
    for path in (root / "int4").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    onnx.save(broken, str(folder / "head_prompt.onnx"))
    head = {**APART, "stage": "head"}
    facts["broken"] = message(
        lambda: compilation.compile({"model": folder}, made(root / "unused2"), head)
    )
    return facts


ALONE = """
import json, sys
from pathlib import Path
from phipipe.backends.qnn.compile import compile
compile({"model": Path(sys.argv[1])}, Path(sys.argv[2]), json.loads(sys.argv[3]))
"""


def is_same_anywhere(root: Path) -> bool:
    """Whether graphs that lie in two folders make the same contexts, each in a new process."""
    shutil.copytree(root / "int4", root / "elsewhere" / "int4")
    sources = (root / "int4", root / "elsewhere" / "int4")
    outs = [made(root / "anywhere" / name) for name in "ab"]
    for source, out in zip(sources, outs, strict=True):
        params = json.dumps({**APART, "stage": "decoder_0"})
        subprocess.run([sys.executable, "-c", ALONE, source, out, params], check=True)
    one, other = map(content, outs)
    return one == other and len(one) == 5


def emulation(root: Path, whole: np.ndarray) -> dict[str, Any]:
    """Stage by stage, against ``whole``: all stages in turn for each position."""
    ids, tokens = json.loads((root / "ids.json").read_text()), made(root / "tokens")
    np.save(tokens / "tokens.npy", np.asarray([ids[:100]], np.int32))
    source, names = root / "float" / "source", ("decoder_0", "head")
    apart = {name: root / "contexts" / "apart" / name for name in names}
    left = emulated(source, apart, tokens, root / "emulated", 16)
    np.save(tokens / "tokens.npy", np.asarray([ids[:70]], np.int32))
    return {
        "same": bool(np.array_equal(read(left).logits, whole)),
        "by": read(left).pipeline,
        "short": message(lambda: emulated(source, apart, tokens, root / "unused4", 16)),
    }


def main(root: Path) -> None:
    checks = (convert, quantize, compile, split, round_off)
    answer(root / "facts.json", {check.__name__: partial(check, root) for check in checks})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
