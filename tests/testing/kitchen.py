"""The package step and all that it is given."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from pathlib import Path
from typing import Any

from phipipe.errors import StepFailed
from phipipe.package import package
from testing import small_package

MIT = """MIT License

Copyright (c) 2026 the phipipe authors

Permission is hereby granted, free of charge, to any person obtaining a copy of this software, to
deal in it without restriction. THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND.
"""
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor "
    "%}<|assistant|>\n"
)
STORY = "Once there was a fox who lived in a den by the river. Every morning the fox"
TOOLS = {
    "numpy": "2.4.6",
    "onnxruntime": "1.32.0",
    "onnxruntime-genai": "0.18.0",
    "torch": "2.13.0",
}
ARTIFACT_FILES = {
    "model.onnx": b"\x08\x0a\x12\x80\x10"
    + bytes(range(256)) * 8,  # a graph's version, and a long name of its maker
    "model.onnx.data": b"\x07\x00\xff" * 20_000,
    "genai_config.json": b'{"model": {"context_length": 2048, "eos_token_id": 2}}\n',
    "tokenizer.json": b'{"model": {"vocab": {"/home/": 0, "/tmp": 1, "a": 2}}}\n',
    "tokenizer_config.json": b'{"model_max_length": 2048}\n',
    "chat_template.jinja": TEMPLATE.encode(),
}
METRICS: dict[str, Any] = {
    "metrics": {
        "kld_mean": 0.01234,
        "kld_median": 0.00412,
        "kld_p99": 0.1423,
        "kld_max": 1.302,
        "top1": 0.9312,
        "ppl": 5.432,
        "ppl_ratio": 1.0123,
        "dp_rms": 0.0234,
        "size_gib": 0.0034,
        "bits_per_weight": 5.013,
    },
    "stderr": {"kld_mean": 0.00041, "top1": 0.0041, "ppl": 0.123, "ppl_ratio": 0.0021},
    "positions": 4080,
    "profile": {"by_position": [2e-3, 1e-3], "quantiles": [0.0] * 100 + [0.2]},
    "sanity": {
        "tokenizer_equal": True,
        "chat_template_equal": True,
        "greedy_agreement": 0.4312,
        "answers_ended": [False, True],
        "repetition": 0.12,
    },
    "answers": [
        {
            "prompt": "Tell me a short story about a fox.",
            "text": STORY + " went out to find blackberries.",
        },
        {"prompt": "Where is the key?", "text": "The key is under the mat."},
    ],
}
BASELINE: dict[str, Any] = {
    "tokens": 4096,
    "window": 256,
    "skip": 0,
    "ppl": 5.366,
    "ppl_stderr": 0.119,
    "parity_ids": [1, 2, 3],
    "chats": [
        {
            "prompt": "Tell me a short story about a fox.",
            "rendered": "…",
            "ids": [1, 5],
            "answer": [7] * 96,
            "text": STORY + " barked at the moon.",
        },
        {
            "prompt": "Where is the key?",
            "rendered": "…",
            "ids": [1, 6],
            "answer": [7, 2],
            "text": "The key is under the mat.",
        },
    ],
}
SPEED: dict[str, Any] = {
    "metrics": {
        "load_s": 0.3123,
        "ttft_s": 0.01234,
        "prefill_tokens_per_s": 10372.8,
        "decode_tokens_per_s": 543.21,
        "peak_memory_gib": 0.2134,
    },
    "spread": {
        "ttft_s": [0.0119, 0.0131],
        "prefill_tokens_per_s": [9770.1, 10756.3],
        "decode_tokens_per_s": [500.2, 560.9],
    },
    "host": {
        "system": "Linux",
        "machine": "x86_64",
        "processor": "Example CPU @ 2.5 GHz",
        "cores": 2,
        "memory_gib": 24,
    },
    "prompt_tokens": 128,
    "new_tokens": 64,
}
GATES = [
    {"metric": "kld_mean", "value": 0.01234, "max": 0.05, "passed": True},
    {"metric": "top1", "value": 0.9312, "min": 0.85, "passed": True},
]


def digest_of(name: str) -> str:
    return hashlib.sha256(
        {"take": "source", "compare": "metrics"}.get(name, name).encode()
    ).hexdigest()


def step(runs: str, *needs: str, tools: bool = True, **params: Any) -> dict[str, Any]:
    name = runs.rpartition("/")[2]
    digest = digest_of(name)
    return {
        "key": digest[::-1],
        "runs": runs,
        "version": 1,
        "params": params,
        "inputs": {name: digest_of(name) for name in needs},
        "tools": TOOLS if tools else {},
        "digest": digest,
        "outputs": [{"path": "made", "size": 3, "sha256": digest, "mtime_ns": 1}],
    }


PARAMS: dict[str, Any] = {
    "name": "quickstart",
    "recipe": {
        "name": "quickstart",
        "source": {"builtin": "tiny-phi3"},
        "device": "cpu-x86_64",
        "backend": "onnxruntime",
        "precision": "int4",
        "quantize": {"block_size": 32, "symmetric": True, "algorithm": "default", "exclude": []},
        "evaluate": {
            "text": {"builtin": "stories"},
            "tokens": 4096,
            "window": 256,
            "gates": {"kld_mean": {"max": 0.05}, "top1": {"min": 0.85}},
        },
        "measure": {"prompt_tokens": 128, "new_tokens": 64, "repetitions": 5},
    },
    "device": {
        "name": "cpu-x86_64",
        "title": "PC with an x86-64 CPU",
        "sources": ["https://vendor.example/x86_64"],
    },
    "backend": "onnxruntime",
    "backend_title": "ONNX Runtime GenAI",
    "api": "cpu",
    "scheme": "MatMulNBits, 4 bits",
    "on_target": "true",
    "source": {
        "kind": "builtin",
        "name": "tiny-phi3",
        "architecture": "Phi3ForCausalLM",
        "parameters": 4_500_000,
        "context_length": 2048,
    },
    "fixups": {
        "F1": {
            "rule": "M08",
            "patch": {"layer_types": ["sliding_attention"]},
            "reason": "the window was lost",
        }
    },
    "warnings": [],
    "steps": {
        "source": step("hub/take", tools=False, files=["config.json"]),
        "text": step("hub/take", tools=False, files=["evaluation.txt"]),
        "convert": step("onnxruntime/convert", "source"),
        "quantize": step("onnxruntime/quantize", "convert", bits=4),
        "evaluate": step("evaluate/compare", "quantize"),
        "gates": step("evaluate/check_gates", "metrics", tools=False),
    },
}


class Unopened(StepFailed):
    """What was packaged, phipipe itself would not open."""


class Kitchen:
    """Inputs of the package step, structurally real, that a test may spoil before it cooks."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.params = copy.deepcopy(PARAMS)
        self.metrics, self.baseline, self.speed = map(copy.deepcopy, (METRICS, BASELINE, SPEED))
        names = (
            "artifact",
            "source",
            "metrics",
            "parity",
            "speed",
            "gates",
            "baseline",
            "reference",
        )
        self.inputs = {name: root / "in" / name for name in names}
        for folder in self.inputs.values():
            folder.mkdir(parents=True)
        for name, data in ARTIFACT_FILES.items():
            (self.artifact / name).write_bytes(data)
        (self.source / "LICENSE").write_text(MIT)
        (self.source / "chat_template.jinja").write_text(TEMPLATE)
        (self.source / "config.json").write_text('{"model_type": "phi3"}\n')
        self.json("parity", {"kld_mean": 3.1e-9, "limit": 1e-6})
        self.json("gates", GATES)

    @property
    def artifact(self) -> Path:
        return self.inputs["artifact"]

    @property
    def source(self) -> Path:
        return self.inputs["source"]

    def json(self, name: str, value: object) -> None:
        file = {
            "metrics": "metrics.json",
            "parity": "parity.json",
            "speed": "speed.json",
            "gates": "gates.json",
        }
        (self.inputs[name] / file.get(name, "baseline.json")).write_text(json.dumps(value), "utf-8")

    def cook(self, name: str = "out") -> Path:
        self.json("metrics", self.metrics)
        self.json("baseline", self.baseline)
        (self.inputs["reference"] / "tokens.npy").write_bytes(
            small_package.FILES["reference/tokens.npy"]
        )
        self.json("speed", self.speed)
        out = self.root / name
        out.mkdir()
        try:
            package.package(self.inputs, out, self.params)
        except StepFailed as refused:
            raise (
                Unopened if "no command of phipipe's would open" in refused.message else StepFailed
            )(refused.message, hint=refused.hint) from None
        return out

    def card(self) -> str:
        """The card; texts that no package may hold are in it all the same."""
        with contextlib.suppress(Unopened):
            self.cook()
        return (self.root / "out" / "README.md").read_text("utf-8")
