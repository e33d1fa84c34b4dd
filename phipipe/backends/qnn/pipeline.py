"""How ONNX Runtime GenAI runs static graphs: its ``decoder-pipeline``, one graph for prompts, one
for single tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from phipipe.backends.qnn.stages import CONFIG, EMBEDDING, name_of, stages, write_facts
from phipipe.steps import Json


def describe(folder: Path, facts: Mapping[str, Json]) -> None:
    """Write ``static.json``, and the pipeline as ONNX Runtime GenAI reads it."""
    write_facts(folder, facts)
    (folder / CONFIG).write_text(json.dumps(config(facts), indent=2) + "\n", "utf-8")


def config(facts: Mapping[str, Json]) -> dict[str, Json]:
    """ONNX Runtime GenAI's ``decoder-pipeline``: embedding on the CPU, decoder and head per phase
    on the NPU.

    Caches slide: the runtime drops the oldest positions and appends what a graph made. Keys are
    those of GenAI 0.18.
    """
    ends = facts["ends"]
    model = {
        "type": "decoder-pipeline",
        "bos_token_id": facts["begin"],
        "eos_token_id": ends,
        "pad_token_id": facts["pad"] if facts["pad"] is not None else ends[0],
        "vocab_size": facts["vocabulary"],
        "context_length": facts["context_length"],
        "decoder": _decoder(facts),
    }
    search = {
        "max_length": facts["context_length"],
        "do_sample": False,
        "past_present_share_buffer": False,
    }
    return {"model": model, "search": search}


def _decoder(facts: Mapping[str, Json]) -> dict[str, Json]:
    return {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "head_size": facts["head_size"],
        "hidden_size": facts["hidden"],
        "num_attention_heads": facts["heads"],
        "num_hidden_layers": facts["layers"],
        "num_key_value_heads": facts["kv_heads"],
        "inputs": {
            "input_ids": "input_ids",
            "inputs_embeds": "inputs_embeds",
            "attention_mask": "attention_mask",
            "position_ids": "position_ids",
            "past_key_names": "past_key_%d",
            "past_value_names": "past_value_%d",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present_key_%d",
            "present_value_names": "present_value_%d",
        },
        "sliding_window": {
            "window_size": facts["prompt_length"],
            "pad_value": 0,
            "alignment": "left",
            "slide_key_value_cache": True,
            "slide_inputs": True,
        },
        "pipeline": _pipeline(facts),
    }


def _pipeline(facts: Mapping[str, Json]) -> list[dict[str, Json]]:
    """The embedding, then each stage's graphs for prompts and for single tokens."""
    embedding = {"filename": EMBEDDING, "inputs": ["input_ids"], "outputs": ["inputs_embeds"]}
    npu = _npu(facts["soc"]) if facts["soc"] else {}
    pipeline: list[dict[str, Json]] = [{"embedding": embedding}]
    for name, layers in stages(facts).items():
        reads, makes = _border(layers, facts["layers"])
        for kind, other in (("prompt", "token_gen"), ("token", "prompt")):
            stage = {
                "filename": name_of(name, kind),
                "inputs": reads,
                "outputs": makes,
                f"run_on_{other}": False,
            }
            last = {} if layers else {"is_lm_head": True}
            pipeline.append({f"{name}_{kind}": stage | npu | last})
    return pipeline


def _npu(soc: Mapping[str, int]) -> dict[str, Json]:
    settings = {
        "backend_type": "htp",
        "htp_performance_mode": "burst",
        "soc_model": str(soc["model"]),
        # GenAI slides the caches only where these lie there
        "enable_htp_shared_memory_allocator": "1",
    }
    return {"session_options": {"provider_options": [{"qnn": settings}]}}


def _border(layers: range, count: int) -> tuple[list[str], list[str]]:
    """What a graph of ``layers`` (none: the LM head) of ``count`` reads and makes."""
    if not layers:
        return ["hidden_states"], ["logits"]
    caches = [f"{kind}_{i}" for i in layers for kind in ("key", "value")]
    first = f"hidden_states_{layers.start}" if layers.start else "inputs_embeds"
    last = f"hidden_states_{layers.stop}" if layers.stop < count else "hidden_states"
    reads = [first, "position_ids", "attention_mask", *(f"past_{name}" for name in caches)]
    return reads, [last, *(f"present_{name}" for name in caches)]
