"""Runs in the qnn toolchain: ``python qnn_neighbours_driver.py FOLDER float|fixed``.

FOLDER holds the checkpoints of ``testing.dense_checkpoints`` and what transformers makes of them.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from testing import oracle
from testing.dense_checkpoints import VARIANTS
from testing.drive import answer
from testing.static_graphs import calibrated, compiled, decode, joined, quantized

from phipipe.backends.qnn import convert as conversion
from phipipe.backends.qnn import session as static_session
from phipipe.backends.qnn.chain import SOCS

LENGTHS = {"prompt_length": 64, "context_length": 256}
INT8: dict[str, Any] = {"bits": 8, "keep_8bit": []}


def converted(root: Path, name: str) -> Path:
    out = root / "float" / name
    if not out.is_dir():
        out.mkdir(parents=True)
        params = {"config_patch": {}, "parts": 2, **LENGTHS}
        conversion.convert({"source": root / name}, out, params)
    return out


def in_float(root: Path, name: str) -> dict[str, Any]:
    """Chunks of a prompt, then single tokens, against transformers."""
    ids, expected = json.loads((root / "ids.json").read_text()), np.load(root / f"{name}.npy")
    session = static_session.Session(converted(root, name))
    found = {
        "decoded": oracle.kld(expected[:150], decode(session, ids[:150], 100)),
        "chunks": oracle.kld(expected[:200], session.logits(ids[:200])),
    }
    session.close()
    return found


def in_fixed_point(root: Path, name: str) -> dict[str, Any]:
    """8 bits on the CPU, then compiled and emulated."""
    ids, expected = json.loads((root / "ids.json").read_text())[:80], np.load(root / f"{name}.npy")
    calibration = root / "calibration"
    calibration.mkdir(exist_ok=True)
    words = json.loads((root / "ids.json").read_text())
    np.save(calibration / "tokens.npy", np.asarray([words[:80], words[80:160]], np.int32))
    source, work = converted(root, name), root / "work" / name
    parts = quantized(source, calibrated(source, calibration, work / "ranges"), work / "1", INT8)
    fixed = joined(source, parts, root / "fixed" / name)
    apart = {"soc": dict(SOCS["x-elite"]), "shared": False}
    contexts = joined(source, compiled(parts, work / "2", apart), root / "compiled" / name)
    graphs = [onnx.load(str(p), load_external_data=False).graph for p in contexts.glob("*_*.onnx")]
    return {
        "fixed": oracle.kld(expected[:80], decode(static_session.Session(fixed), ids, 64)),
        "emulated": oracle.kld(expected[:80], decode(static_session.Session(contexts), ids, 64)),
        "nodes": sorted({node.op_type for graph in graphs for node in graph.node}),
    }


if __name__ == "__main__":
    folder, asked = Path(sys.argv[1]), {"float": in_float, "fixed": in_fixed_point}[sys.argv[2]]
    chosen = sys.argv[3:] or VARIANTS
    answer(folder / "facts.json", {name: partial(asked, folder, name) for name in chosen})
