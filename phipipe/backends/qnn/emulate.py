"""Emulation: a text on its way through the compiled stages, one graph of one stage at a time.

A stage reads all positions before the next one starts: all that it needs of earlier positions are
its own caches. So the emulator holds one graph at a time, and a stage is emulated while others are
still compiled. The values are those of all stages in turn for each position.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

from phipipe import hardware, progress
from phipipe.backends import emulated
from phipipe.backends.emulated import Decoded
from phipipe.backends.qnn import htp
from phipipe.backends.qnn.session import Caches, Values, apply, cpu
from phipipe.backends.qnn.stages import EMBEDDING, LENGTHS, facts_of, name_of, stages
from phipipe.errors import StepFailed
from phipipe.steps import Inputs, Params

Floats = npt.NDArray[np.float32]
Border = dict[str, Floats]
"""By length ("prompt", "token"): what passes from one stage to the next, [runs, tokens of each,
width]; of the head the logits."""


def emulate(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: ``params["stage"]``, compiled in ``inputs["compiled"]``, reads a prompt at once and
    ``params["decoded"]`` tokens after it one by one.

    The first stage reads the first tokens of ``inputs["baseline"]`` through the embedding of
    ``inputs["rest"]``, the others what the stage before them left in ``inputs["before"]``. Each
    leaves a ``Border``, in prompt.npy and token.npy; the head leaves ``Decoded``.

    Raises:
        StepFailed: the text's windows are too short, or a graph cannot be loaded.
    """
    folder, stage = inputs["compiled"], params["stage"]
    if htp.emulated():
        hardware.settle(1)  # one of its ten threads computes, and the others spin
    if "before" in inputs:
        border = {kind: np.load(inputs["before"] / f"{kind}.npy") for kind in LENGTHS}
    else:
        prompt = facts_of(folder)["prompt_length"]
        tokens = _first_tokens(inputs["baseline"], prompt, params["decoded"])
        border = _embedded(inputs["rest"], tokens, prompt)
    made = through(folder, stage, border)
    if stages(facts_of(folder))[stage]:
        for kind, values in made.items():
            np.save(out / f"{kind}.npy", values, allow_pickle=False)
        return
    logits = np.concatenate([values.reshape(-1, values.shape[-1]) for values in made.values()])
    ran = "Qualcomm's HTP emulator" if htp.emulated() else "this machine"
    emulated.write(out, Decoded(logits=logits, pipeline=ran))


def through(folder: Path, stage: str, border: Border) -> Border:
    """What the compiled ``stage`` in ``folder`` makes of ``border``; its graph for prompts is
    closed before that for single tokens is opened.

    Raises:
        StepFailed: a graph cannot be loaded.
    """
    facts = facts_of(folder)
    caches = Caches(facts, stages(facts)[stage])
    total, done = sum(map(len, border.values())), 0
    made: Border = {}
    for kind in LENGTHS:
        session = htp.session(folder / name_of(stage, kind), facts["soc"], {}, {})
        rows = []
        for value in border[kind]:
            progress.report(done, total, "graph runs")
            rows.append(_run(session, caches, value))
            done += 1
        made[kind] = np.stack(rows)
        del session
    progress.report(done, total, "graph runs")
    return made


def _run(session: onnxruntime.InferenceSession, caches: Caches, value: Floats) -> Floats:
    """What ``session`` makes of ``value`` [tokens, width] after what is in ``caches``, which then
    hold these tokens, too."""
    values = caches.feeds(len(value), len(value))
    (read,) = {entry.name for entry in session.get_inputs()} - set(values)
    values[read] = value[None]
    (made,) = (o.name for o in session.get_outputs() if not o.name.startswith("present_"))
    apply(session, values)
    caches.take(values)
    passed: Floats = values[made][0]
    return passed


def _first_tokens(baseline: Path, prompt: int, decoded: int) -> npt.NDArray[np.int32]:
    """The evaluation text's first tokens, as many as are emulated."""
    tokens: npt.NDArray[np.int32] = np.load(baseline / "tokens.npy", allow_pickle=False)[0]
    if len(tokens) < prompt + decoded:
        raise StepFailed(
            f"`evaluate.window` is too short to decode {decoded} tokens after a prompt of {prompt}"
        )
    return tokens[: prompt + decoded]


def _embedded(folder: Path, tokens: npt.NDArray[np.int32], prompt: int) -> Border:
    """``tokens`` as vectors: the first ``prompt`` together, the others alone."""
    session = cpu(folder / EMBEDDING)
    values: Values = {"input_ids": tokens[None].astype(np.int32)}
    apply(session, values)
    vectors = values["inputs_embeds"][0]
    return {"prompt": vectors[None, :prompt], "token": vectors[prompt:, None]}
