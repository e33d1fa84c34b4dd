"""Boards of made-up figures."""

from __future__ import annotations

from typing import Any

from phipipe.board import entry as board_entry
from phipipe.board.entry import Entry

HOST = {
    "cores": 2,
    "machine": "x86_64",
    "memory_gib": 24,
    "processor": "AMD EPYC",
    "system": "Linux",
}
MAC = {
    "cores": 8,
    "machine": "arm64",
    "memory_gib": 16,
    "processor": "Apple M2",
    "system": "Darwin",
}
CELLS: list[tuple[str, str, str, float, float]] = [
    ("onnxruntime", "fp32", "float32", 32.1, 0.0),
    ("onnxruntime", "fp16", "float16", 16.1, 3e-7),
    ("onnxruntime", "int8", "MatMulNBits, 8 bits, blocks of 32", 8.6, 4e-4),
    ("onnxruntime", "int8", "MatMulNBits, 8 bits, blocks of 128", 8.3, 7e-4),
    ("onnxruntime", "int4", "MatMulNBits, 4 bits, blocks of 32", 4.9, 0.022),
    ("onnxruntime", "int4", "MatMulNBits, 4 bits, blocks of 128", 4.5, 0.036),
    ("torch", "fp32", "float32", 32.0, 0.0),
    ("torch", "fp16", "float16", 16.0, 2e-7),
    ("torch", "int4", "AutoRound W4A16", 4.4, 0.025),
    ("llamacpp", "fp16", "GGUF F16", 16.0, 4e-7),
    ("llamacpp", "int8", "GGUF Q8_0", 8.5, 3.5e-4),
    ("llamacpp", "int4", "GGUF Q4_K_M", 4.9, 0.017),
    ("llamacpp", "int4", "GGUF Q4_0", 4.55, 0.041),
    ("openvino", "fp16", "FP16", 16.02, 5e-7),
    ("openvino", "int8", "INT8_ASYM, per channel", 8.1, 9e-4),
    ("openvino", "int4", "INT4_SYM, groups of 64", 4.3, 0.045),
    ("mlx", "fp16", "float16", 16.01, 4.5e-7),
    ("mlx", "int4", "affine, groups of 64", 4.5, 0.033),
]
PLACES: dict[str, dict[str, Any]] = {
    "mlx": {"device": "Apple silicon", "api": "metal", "on_target": "false", "host": MAC},
    "openvino": {"device": "Intel NPU", "api": "intel-npu", "on_target": "emulated"},
}


def entry(
    name: str = "one",
    bits: float = 4.5,
    kld: float = 0.02,
    size: float | None = None,
    **changed: Any,
) -> Entry:
    gib = bits / 2.2 if size is None else size
    metrics = {
        "kld_mean": kld,
        "top1": 0.97,
        "ppl": 5.4,
        "ppl_ratio": 1.01,
        "size_gib": gib,
        "bits_per_weight": bits,
    }
    metrics |= {
        "decode_tokens_per_s": 100 / bits,
        "prefill_tokens_per_s": 90.0,
        "ttft_s": 1.4,
        "peak_memory_gib": gib,
    }
    quantiles = [0.0, *(kld * q / 50 for q in range(1, 101))]
    usual: dict[str, Any] = {
        "backend": "onnxruntime",
        "precision": "int4",
        "scheme": "MatMulNBits, 4 bits, blocks of 32",
        "device": "CPU (x86-64)",
        "api": "cpu",
        "on_target": "true",
        "source": "phi-3-mini",
        "source_digest": "a" * 64,
        "parameters": 3_821_079_552,
        "text": "stories",
        "text_digest": "b" * 64,
        "tokens": 4096,
        "window": 512,
        "baseline_ppl": 5.3,
        "metrics": metrics,
        "stderr": {"kld_mean": kld / 30},
        "spread": {"decode_tokens_per_s": [90 / bits, 105 / bits]},
        "profile": {"by_position": [kld] * 32, "quantiles": quantiles},
        "sanity": {
            "tokenizer_equal": True,
            "chat_template_equal": True,
            "greedy_agreement": 0.8,
            "answers_ended": [True, False],
            "repetition": 0.1,
        },
        "host": HOST,
        "prompt_tokens": 128,
        "phipipe": "0.1.0",
        "tools": {"torch": "2.13.0"},
        "keys": {"source": "c" * 64},
    }
    return Entry(name=name, **(usual | changed))


def nineteen() -> list[Entry]:
    made = [
        entry(f"{b}-{p}-{i}", bits, kld, backend=b, precision=p, scheme=s, **PLACES.get(b, {}))
        for i, (b, p, s, bits, kld) in enumerate(CELLS)
    ]
    return [
        *made,
        board_entry.failed(
            "onnxruntime-gptq", "onnxruntime", "int4", "`quantize` was ended:\n\x1b[31mmemory"
        ),
    ]
