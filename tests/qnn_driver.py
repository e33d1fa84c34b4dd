"""Runs in the qnn toolchain: ``python qnn_driver.py FOLDER`` leaves FOLDER/facts.json.

One process for all checks of test_qnn.py. FOLDER holds checkpoints and what transformers makes of them (see there).
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from phipipe import qnn_graph, static_session
from phipipe.backends import qnn as backend
from phipipe.errors import PhipipeError
from phipipe.evaluate import PARITY_TEXT

LENGTHS = {"prompt_length": 64, "context_length": 256}
VARIANTS = ("source", "tied", "longrope")


def made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def message(call: Callable[[], object]) -> list[str]:
    try:
        call()
    except PhipipeError as error:
        return [type(error).__name__, error.message]
    return ["nothing raised", ""]


def log_softmax(logits: Any) -> Any:
    wide = np.asarray(logits, np.float64)
    wide = wide - wide.max(-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(-1, keepdims=True))


def kld(expected: Any, actual: Any) -> float:
    p, q = log_softmax(expected), log_softmax(actual)
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def convert(root: Path) -> dict[str, Any]:
    """Chunks of a prompt, then single tokens, against transformers; for tied, partly rotated and LongRoPE models."""
    ids, facts = json.loads((root / "ids.json").read_text()), {}
    for name in VARIANTS:
        out = made(root / "float" / name)
        backend.convert({"source": root / name}, out, {"config_patch": {}, **LENGTHS})
        session, expected = static_session.Session(out), np.load(root / f"{name}.npy")
        facts[name] = {
            "decoded": kld(expected[:150], session.decode(ids[:150], 100)),
            "chunks": kld(expected[:200], session.logits(ids[:200])),
        }
        answer = list(session.generate(ids[:40], 6))
        chain = list(ids[:40])
        for _ in answer:
            chain.append(int(session.logits(chain)[-1].argmax()))
        facts[name]["chain"] = answer == chain[40:]
        session.close()
    return facts


def quantize(root: Path) -> dict[str, Any]:
    ids, expected = json.loads((root / "ids.json").read_text()), np.load(root / "source.npy")
    calibration = made(root / "calibration")
    np.save(calibration / "tokens.npy", np.asarray(json.loads((root / "calibration.json").read_text()), np.int32))
    facts: dict[str, Any] = {}
    for name, bits, kept in (
        ("int8", 8, []),
        ("int4", 4, ["down_proj", "lm_head"]),
        ("again", 4, ["down_proj", "lm_head"]),
    ):
        out = made(root / name)
        inputs = {"model": root / "float" / "source", "calibration": calibration}
        backend.quantize(inputs, out, {"bits": bits, "keep_8bit": kept})
        session = static_session.Session(out)
        facts[name] = {"kld": kld(expected[:120], session.decode(ids[:120], 64)), "caches": session.facts["caches"]}
        session.close()
    model = onnx.load(str(root / "int4" / "decoder_token.onnx"))
    stored = {t.name.removesuffix("_quantized"): t.data_type for t in model.graph.initializer}
    facts["down"] = stored["model.layers.1.mlp.down_proj.weight"] == TensorProto.INT8
    facts["gate"] = stored["model.layers.1.mlp.gate_proj.weight"] == TensorProto.INT4
    same = [(root / "int4" / p.name).read_bytes() == p.read_bytes() for p in (root / "again").iterdir()]
    facts["reproducible"] = all(same) and len(same) > 5
    bits8 = backend._bits(root / "float" / "source" / "head_prompt.onnx", {"bits": 4, "keep_8bit": []})
    facts["wrong_bits"] = message(lambda: qnn_graph.verify(root / "int8" / "head_prompt.onnx", bits8, {}))
    facts["float"] = message(lambda: qnn_graph.verify(root / "float" / "source" / "head_prompt.onnx", bits8, {}))
    ranges = {f"{kind}_{i}": (0.5, 7) for i in range(5) for kind in ("key", "value")}
    facts["range"] = message(lambda: qnn_graph.verify(root / "int8" / "decoder_prompt.onnx", {}, ranges))
    short = made(root / "short")
    np.save(short / "tokens.npy", np.zeros((2, 70), np.int32))
    wrong = {"model": root / "float" / "source", "calibration": short}
    facts["short"] = message(lambda: backend.quantize(wrong, made(root / "unused"), {"bits": 8, "keep_8bit": []}))
    return facts


def compile(root: Path) -> dict[str, Any]:
    ids, expected = json.loads((root / "ids.json").read_text()), np.load(root / "source.npy")
    facts: dict[str, Any] = {}
    for name, soc, shared in (("apart", "x-elite", False), ("shared", "x-elite", True), ("other", "8-elite", True)):
        out = made(root / "compiled" / name)
        backend.compile({"model": root / "int4"}, out, {"soc": dict(backend.SOCS[soc]), "shared": shared})
        graphs = [onnx.load(str(p), load_external_data=False).graph for p in out.glob("*_*.onnx")]
        binaries = {p.name: p.stat().st_size for p in out.glob("*.bin")}
        facts[name] = {"nodes": [n.op_type for graph in graphs for n in graph.node], "binaries": binaries}
        facts[name]["config"] = json.loads((out / "genai_config.json").read_text())
    session = static_session.Session(root / "compiled" / "apart")
    facts["kld"] = kld(expected[:80], session.decode(ids[:80], 64))
    session.close()
    facts["shared on the emulator"] = message(lambda: backend.open(root / "compiled" / "shared"))
    tokenizer = backend.tokenizer(root / "compiled" / "shared")
    facts["ids"] = [tokenizer.encode(PARITY_TEXT), json.loads((root / "parity.json").read_text())]
    broken = onnx.load(str(root / "int4" / "head_prompt.onnx"))
    node = onnx.helper.make_node("NonZero", ["hidden_states"], ["where"], name="data_dependent")
    broken.graph.node.append(node)
    broken.graph.output.append(onnx.helper.make_tensor_value_info("where", TensorProto.INT64, [3, None]))
    folder = made(root / "broken")
    for path in (root / "int4").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    onnx.save(broken, str(folder / "head_prompt.onnx"))
    apart = {"soc": dict(backend.SOCS["x-elite"]), "shared": False}
    facts["broken"] = message(lambda: backend.compile({"model": folder}, made(root / "unused2"), apart))
    return facts


def main(root: Path) -> None:
    facts: dict[str, Any] = {}
    for check in (convert, quantize, compile):
        try:
            facts[check.__name__] = check(root)
        except Exception:  # noqa: BLE001 (the test that asks for it shows it; the others still run)
            facts[check.__name__] = {"error": traceback.format_exc()}
    (root / "facts.json").write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
