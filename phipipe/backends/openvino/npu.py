"""The NPU's pipeline: on an NPU, and tried on a CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import openvino

from phipipe.backends.absent import absent
from phipipe.backends.openvino import tokenizer
from phipipe.backends.openvino.options import PIPELINE
from phipipe.backends.openvino.pipeline import Pipeline
from phipipe.backends.openvino.session import FAITHFUL, Session
from phipipe.errors import StepFailed
from phipipe.steps import Inputs, Params

NPU_PROMPT = "Tell me a short story about a fox."
NPU_TOKENS = 32
# Between two tokens that are almost equally likely, rounding decides; 0.01 was measured, a broken
# pipeline is nats off.
NPU_GAP_NATS = 0.2


def opened(artifact: Path) -> Pipeline:
    """The pipeline of ``artifact`` on this machine's NPU, with the lengths that it was built for.

    Raises:
        TargetError: OpenVINO sees none.
    """
    if "NPU" not in openvino.Core().available_devices:
        raise absent("Intel NPU", "OpenVINO")
    chosen = json.loads((artifact / "manifest.json").read_text("utf-8"))["recipe"]["quantize"]
    lengths = {
        "MAX_PROMPT_LEN": chosen["prompt_length"],
        "MIN_RESPONSE_LEN": chosen["response_length"],
    }
    return Pipeline(artifact, "NPU", lengths)


def verify_npu(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the NPU's own pipeline, run on this CPU, answers with the tokens that the graph finds
    likeliest.

    Its static shapes, its cutting of the graph and its handling of the cache are thus tried, not
    its arithmetic. ``inputs``: artifact. ``params``: prompt_length, response_length. Writes
    ``npu.json``.

    Raises:
        StepFailed: a token is not (almost) the likeliest after those before it, or the pipeline
            does not start.
    """
    artifact = inputs["artifact"]
    chosen = tokenizer(artifact)
    prompt = chosen.encode(chosen.render([{"role": "user", "content": NPU_PROMPT}]))
    if len(prompt) > params["prompt_length"]:
        raise StepFailed(
            f"`quantize.prompt_length: {params['prompt_length']}` is too short for a test prompt"
        )
    answer = _answer(artifact, prompt, params)
    gap = furthest(artifact, prompt, answer)
    report = {
        "pipeline": "NPUW on CPU",
        "prompt_tokens": len(prompt),
        "tokens": len(answer),
        "gap_nats": gap,
        "answer": chosen.decode(answer),
        **{name: params[name] for name in PIPELINE},
    }
    (out / "npu.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    if not answer or gap > NPU_GAP_NATS:
        raise StepFailed(
            f"the NPU's pipeline gives a token that is {gap:.2f} nats less likely than the "
            f"likeliest"
        )


def _answer(artifact: Path, prompt: Sequence[int], params: Params) -> list[int]:
    """What the NPU's pipeline says to ``prompt``."""
    settings = {
        "NPU_USE_NPUW": "YES",
        "NPUW_DEVICES": "CPU",
        "NPUW_ONLINE_PIPELINE": "NONE",
        "MAX_PROMPT_LEN": params["prompt_length"],
        "MIN_RESPONSE_LEN": params["response_length"],
        **FAITHFUL,  # left alone, one pipeline rounds activations to 8 bits and the other does not
    }
    limit = min(NPU_TOKENS, params["response_length"])
    try:
        return list(Pipeline(artifact, "NPU", settings).generate(prompt, limit))
    except RuntimeError as error:
        raise StepFailed(f"the NPU's pipeline does not run this model: {error}") from error


def furthest(folder: Path, prompt: Sequence[int], answer: Sequence[int]) -> float:
    """How much less likely than the likeliest, in nats, the worst token of a greedy ``answer`` is
    by fp32 logits."""
    runtime = Session(folder)
    rows = runtime.logits([*prompt, *answer])[len(prompt) - 1 : -1]
    runtime.close()
    return max(
        (float(row.max() - row[token]) for row, token in zip(rows, answer, strict=True)),
        default=0.0,
    )
