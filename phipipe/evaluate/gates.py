"""Steps that stop a build: nothing unfit is packaged, and nothing is built on what is wrong."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.backends import emulated
from phipipe.errors import GateFailed, StepFailed
from phipipe.evaluate import reports, run_reports
from phipipe.evaluate.answer_reports import Answers
from phipipe.evaluate.reference import score
from phipipe.evaluate.reports import (
    Metrics,
    Misread,
    Parity,
    Rounding,
    Sanity,
    Speed,
    Verdict,
    Vision,
)
from phipipe.evaluate.run_reports import AsRun
from phipipe.models.tokenizer_difference import Difference
from phipipe.steps import Inputs, Params

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

TOKENIZER = "tokenizer"  # the word in a recipe's `accept`
# Arithmetic in fp32 in another order gives less than a tenth of this (mean KL divergence, nats).
PARITY_KLD_MEAN = 1e-6
# Runtimes round at other places than ``rounding`` does. Measured as shares of it: GGUF of a trained
# model of 135 million parameters 0.97 (BF16) and 0.99 (F16), of the embedded one 1.03 and 0.99.
ROUNDING_MARGIN = 4
DECODED = 32  # tokens decoded one by one; of fewer, one may stand out
# The embedded model on Qualcomm's emulator: 2.4e-4 at 8 bits, 1.2e-3 at 4. A cache that goes wrong
# is nats off.
DECODE_KLD = 1.0
DECODE_KLD_MEAN: Mapping[str, float] = {"int8": 0.01, "int4": 0.1}


def check_parity(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): an unquantized conversion must agree with the baseline, or nothing is built on
    it.

    ``inputs``: metrics; rounding, of a conversion to 16 bits. ``params``: layers, where only the
    model's first ones were compared; accept, differences that the recipe accepts.

    Raises:
        StepFailed: it does not, or its tokenizer gives other ids for some text.
    """
    report = reports.read(Metrics, inputs["metrics"])
    _check_tokenizer(report.sanity, params)
    measured, limit = report.metrics["kld_mean"], _parity_limit(inputs)
    if not measured <= limit:
        raise StepFailed(
            f"the conversion itself changed the model: mean KL divergence {measured:.2e} from "
            f"the original before any "
            f"quantization, where at most {limit:.1e} is rounding",
            hint="the converter or the checkpoint (position encoding, say) is at fault, not the "
            "recipe",
        )
    part = {"layers": params["layers"]} if "layers" in params else {}
    parity = Parity(kld_mean=measured, limit=limit, **part)
    reports.write(out, parity)


def _parity_limit(inputs: Inputs) -> float:
    """The highest mean KL divergence, in nats, that rounding alone explains."""
    if "rounding" not in inputs:
        return PARITY_KLD_MEAN
    rounded = reports.read(Rounding, inputs["rounding"]).kld_mean
    return PARITY_KLD_MEAN + ROUNDING_MARGIN * rounded


def _check_tokenizer(sanity: Sanity, params: Params) -> None:
    if sanity.tokenizer_equal is not False or TOKENIZER in params.get("accept", ()):
        return
    found = sanity.tokenizer_difference
    where = "" if found is None else f": it reads {misread_words(found)}"
    raise StepFailed(
        f"the packaged tokenizer gives other token ids than the original's{where}",
        hint="`evaluate: {accept: [tokenizer]}` ships it all the same, and says so on card and "
        "board",
    )


def misread_words(found: Misread) -> str:
    """What the packaged tokenizer makes of a text, for people."""
    as_difference = Difference(
        kind="chat" if found.kind == "chat" else "text",
        text=found.text,
        expected=tuple(found.expected),
        got=tuple(found.got),
    )
    return as_difference.words


def check_gates(inputs: Inputs, out: Path, params: Params) -> None:
    """Step (light): the recipe's gates. Nothing is packaged unless every one is passed.

    ``inputs``: metrics, speed; vision of a model that sees; answers where some were asked for;
    run where ``kld_run`` was scored apart. ``params``: gates {metric: {min, max}}; knob (of
    ``Plan``) where a gate names ``kld_run``; accept, differences that the recipe accepts. A metric
    that was not measured fails.

    Raises:
        GateFailed: names every gate that failed, its limit and the value.
        StepFailed: the packaged tokenizer gives other ids for some text.
    """
    scored = reports.read(Metrics, inputs["metrics"])
    _check_tokenizer(scored.sanity, params)
    run = reports.read(AsRun, inputs["run"]) if "run" in inputs else None
    metrics = dict(run_reports.joined(scored, params.get("knob"), run).metrics)
    metrics |= reports.read(Speed, inputs["speed"]).metrics
    if "vision" in inputs:
        metrics |= reports.read(Vision, inputs["vision"]).metrics
    if "answers" in inputs:
        metrics |= reports.read(Answers, inputs["answers"]).metrics
    verdicts = [
        verdict(name, metrics.get(name), limits) for name, limits in sorted(params["gates"].items())
    ]
    if failures := [words(one) for one in verdicts if not one.passed]:
        raise GateFailed(
            "gate failed: " + "; ".join(failures),
            hint="nothing was packaged; change `evaluate.gates`, or quantize less: more bits, "
            "smaller groups",
        )
    reports.write_verdicts(out, verdicts)


def verdict(metric: str, value: float | None, limits: Mapping[str, float]) -> Verdict:
    """Whether ``value`` of ``metric`` lies within ``limits`` (min, max); None never does."""
    passed = value is not None and (
        limits.get("min", -math.inf) <= value <= limits.get("max", math.inf)
    )
    return Verdict.model_validate({"metric": metric, "value": value, **limits, "passed": passed})


def words(failure: Verdict) -> str:
    """What fails, and what was wanted."""
    limits = {name: getattr(failure, name) for name in ("min", "max")}
    wanted = " and ".join(f"{name} {v:g}" for name, v in limits.items() if v is not None)
    shown = "was not measured" if failure.value is None else f"is {failure.value:.4g}"
    return f"`{failure.metric}` {shown}, the recipe wants {wanted}"


def check_decode(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: an artifact that reads a prompt at once and then token by token predicts as the
    original does.

    ``inputs``: decoded, what the artifact computed (``backends.emulated``); baseline. ``params``:
    precision, prompt_length, and decoded, how many one by one. Writes ``emulation.json``.

    Raises:
        StepFailed: mean KL divergence of the positions decoded one by one is above
            ``DECODE_KLD_MEAN``, or of very few positions above ``DECODE_KLD``.
    """
    prompt, decoded = int(params["prompt_length"]), int(params["decoded"])
    tokens, logp = _first_tokens(inputs["baseline"], prompt, decoded)
    found = emulated.read(inputs["decoded"])
    divergence = score(logp, found.logits, tokens)["kld"]
    mean = float(divergence[prompt:].mean())
    report = {
        "pipeline": found.pipeline,
        "prompt_tokens": prompt,
        "tokens": decoded,
        "prompt_kld_mean": float(divergence[:prompt].mean()),
        "decode_kld_mean": mean,
    }
    reports.write_in_order(out / reports.EMULATION, report)
    limit = DECODE_KLD_MEAN[params["precision"]] if decoded >= DECODED else DECODE_KLD
    if not mean <= limit:
        raise StepFailed(f"decoding token by token, mean KL divergence is {mean:.2e}")


def _first_tokens(
    baseline: Path, prompt: int, decoded: int
) -> tuple[npt.NDArray[np.int32], Floats]:
    """The evaluation text's first tokens, and the original's log-probabilities of them."""
    import numpy as np

    tokens = np.load(baseline / "tokens.npy", allow_pickle=False)[0][: prompt + decoded]
    logprobs = np.load(baseline / "logprobs.npy", mmap_mode="r", allow_pickle=False)
    return tokens, logprobs[0][: len(tokens)]
