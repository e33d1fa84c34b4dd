"""Packages of every backend that apps open, as far as anybody can tell without a runtime."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phipipe.package import manifest
from testing import hostile_packages, small_package

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{{ '<|assistant|>\\n' }}"
)
MODELFILE = b'FROM ./model.gguf\nTEMPLATE "{{ .Prompt }}"\nPARAMETER num_ctx 2048\n'
MORE: Mapping[str, Mapping[str, bytes]] = {
    "onnxruntime": {"chat_template.jinja": TEMPLATE.encode()},
    "qnn": {"chat_template.jinja": TEMPLATE.encode()},
    "openvino": {
        f"openvino_{kind}.{end}": hostile_packages.openvino() if end == "xml" else b"\0" * 64
        for kind in ("tokenizer", "detokenizer")
        for end in ("xml", "bin")
    },
    "mlx": {},
    "llamacpp": {"Modelfile": MODELFILE},
    "litert": {"model.litertlm": hostile_packages.tflite()},
}


def written(folder: Path, backend: str, **changed: Any) -> Path:
    """A package called "small"; ``changed`` replaces parts of its manifest."""
    base = small_package.written(folder / "base")
    made = hostile_packages.laid_out(base, folder / backend, backend)
    (made / "model.tflite").unlink(missing_ok=True)
    for name, data in MORE[backend].items():
        (made / name).write_bytes(data)

    def change(described: dict[str, Any]) -> None:
        for key, value in changed.items():
            old = described.get(key)
            described[key] = {**old, **value} if isinstance(old, dict) else value

    return hostile_packages.sealed(made, change)


def described(folder: Path) -> dict[str, Any]:
    """Its manifest."""
    whole: dict[str, Any] = json.loads((folder / manifest.NAME).read_text("utf-8"))
    return whole
