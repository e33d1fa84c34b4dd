"""What the manifest of a package says, in as few words as phipipe accepts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phipipe.package import manifest

DIGEST = "0" * 64


def array(kind: str, shape: tuple[int, ...], data: bytes) -> bytes:
    """A file of numpy's."""
    told = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}"
    return b"\x93NUMPY\x01\x00v\x00" + told.ljust(117).encode() + b"\n" + data


def described(
    *, backend: str = "onnxruntime", context_length: int = 2048, **changed: Any
) -> dict[str, Any]:
    """A manifest but for its files and digest; ``changed`` replaces parts of it."""
    step = {"key": DIGEST, "digest": DIGEST, "tools": {}}
    return {
        "type": manifest.TYPE,
        "format": manifest.FORMAT,
        "phipipe": "0",
        "name": "small",
        "backend": backend,
        "backend_title": backend,
        "precision": "int4",
        "scheme": "some",
        "api": "cpu",
        "on_target": "true",
        "device": {"title": "CPU"},
        "recipe": {"backend": backend, "precision": "int4"},
        "source": {
            "kind": "path",
            "name": "a-model",
            "architecture": "Phi3ForCausalLM",
            "parameters": 10**9,
            "context_length": context_length,
            "digest": DIGEST,
        },
        "chat_template": {"sha256": DIGEST},
        "fidelity": {
            "metrics": {"kld_mean": 0.01, "size_gib": 0.5, "bits_per_weight": 4.5},
            "stderr": {},
            "sanity": {},
            "baseline": {"tokens": 4096, "window": 512, "ppl": 5.0},
        },
        "speed": {"metrics": {}},
        "steps": {"text": step, "source": step},
        **changed,
    }


def written(folder: Path, **changed: Any) -> Path:
    """A package of an ONNX folder, whole as far as anybody can tell without a runtime; its source
    is phipipe's own."""
    folder.mkdir(parents=True)
    for name, data in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    step = {
        "key": DIGEST,
        "digest": DIGEST,
        "tools": {"numpy": "2"},
        "params": {"files": ["config.json"]},
    }
    whole = described(**changed)
    whole["recipe"] |= {
        "name": "small",
        "source": {"builtin": "tiny-phi3"},
        "device": "cpu-x86_64",
        "evaluate": {"text": {"builtin": "stories"}, "tokens": 4096, "window": 512},
    }
    whole["source"] |= {"kind": "builtin", "name": "tiny-phi3"}
    whole["device"] |= {"name": "cpu-x86_64", "sources": ["https://vendor.example"]}
    whole["steps"] = {"text": step, "source": step}
    whole["speed"] |= {
        "spread": {"ttft_s": [0.1, 0.2]},
        "host": {"system": "Linux", "cores": 2},
        "prompt_tokens": 128,
    }
    whole["speed"]["metrics"] = {"decode_tokens_per_s": 100.0}
    whole["fidelity"] |= {
        "stderr": {"kld_mean": 0.001},
        "profile": {"by_position": [0.1], "quantiles": [0.1, 0.2]},
        "sanity": {
            "tokenizer_equal": True,
            "answers_ended": [True],
            "repetition": 0.0,
            "greedy_agreement": None,
        },
        "parity": {"kld_mean": 1e-9},
        "generation": {
            "metrics": {"ended": 1.0, "loops": 0.5},
            "stderr": {"loops": 0.5},
            "asked": {"ended": 2, "loops": 2},
            "failed": {"loops": [2]},
            "original": {"ended": 2, "loops": 0, "empty": 0},
            "prompts": 2,
            "new_tokens": 32,
            "left_out": [{"line": 3, "why": "it is long"}],
            "without_tools": [],
        },
    }
    whole |= {
        "warnings": ["a word"],
        "gates": [{"metric": "top1", "passed": True}],
        "twin": None,
        "emulation": None,
    }
    whole |= {
        "fixups": {"F1": {"reason": "a word"}},
        "licence": {"id": "mit", "files": ["LICENSE"]},
    }
    manifest.seal(folder, whole)
    return folder


FILES = {
    "README.md": b"# A package\n",
    "LICENSE": b"MIT License\n",
    "recipe.yaml": b"name: small\n",
    "genai_config.json": json.dumps(
        {"model": {"type": "phi3", "context_length": 2048, "decoder": {"filename": "model.onnx"}}}
    ).encode(),
    "model.onnx": b"\x08\x0a",
    "model.onnx.data": b"\0" * 64,
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"{}",
    "reference/tokens.npy": array("<i4", (1, 2), b"\0" * 8),
}
