"""How ONNX Runtime GenAI runs static graphs: its ``decoder-pipeline``, one graph for prompts, one
for single tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from phipipe.backends.qnn.session import EMBEDDING, name_of, stages


def config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """ONNX Runtime GenAI's ``decoder-pipeline``: embedding on the CPU, decoder and head per phase
    on the NPU.

    Caches slide: the runtime drops the oldest positions and appends what a graph made. Keys are
    those of GenAI 0.18.
    """
    npu = {}
    if soc := facts["soc"]:
        settings = {
            "backend_type": "htp",
            "htp_performance_mode": "burst",
            "soc_model": str(soc["model"]),
        }
        settings |= {
            "enable_htp_shared_memory_allocator": "1"
        }  # GenAI slides the caches only where these lie there
        npu = {"session_options": {"provider_options": [{"qnn": settings}]}}
    pipeline: list[dict[str, Any]] = [
        {
            "embedding": {
                "filename": EMBEDDING,
                "inputs": ["input_ids"],
                "outputs": ["inputs_embeds"],
            }
        }
    ]
    for name, layers in stages(facts).items():
        reads, makes = _border(layers, facts["layers"])
        for kind, other in (("prompt", "token_gen"), ("token", "prompt")):
            stage = {
                "filename": name_of(name, kind),
                "inputs": reads,
                "outputs": makes,
                f"run_on_{other}": False,
            }
            pipeline.append(
                {f"{name}_{kind}": stage | npu | ({} if layers else {"is_lm_head": True})}
            )
    decoder = {
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
        "pipeline": pipeline,
    }
    model = {
        "type": "decoder-pipeline",
        "bos_token_id": facts["begin"],
        "eos_token_id": facts["ends"],
    }
    model |= {"pad_token_id": facts["pad"] if facts["pad"] is not None else facts["ends"][0]}
    model |= {
        "vocab_size": facts["vocabulary"],
        "context_length": facts["context_length"],
        "decoder": decoder,
    }
    search = {
        "max_length": facts["context_length"],
        "do_sample": False,
        "past_present_share_buffer": False,
    }
    return {"model": model, "search": search}


def _border(layers: range, count: int) -> tuple[list[str], list[str]]:
    """What a graph of ``layers`` (none: the LM head) of ``count`` reads and makes."""
    if not layers:
        return ["hidden_states"], ["logits"]
    caches = [f"{kind}_{i}" for i in layers for kind in ("key", "value")]
    first = f"hidden_states_{layers.start}" if layers.start else "inputs_embeds"
    last = f"hidden_states_{layers.stop}" if layers.stop < count else "hidden_states"
    reads = [first, "position_ids", "attention_mask", *(f"past_{name}" for name in caches)]
    return reads, [last, *(f"present_{name}" for name in caches)]
