"""What a model makes of pictures, beside what the original makes of them.

A picture stands in a question; scored is every position from the picture's last vector to the
question's end, by the same divergence as text, and then the greedy answers are compared. The
original reads the pictures through a preparation of our own, in PyTorch, the artifact through the
one that its runtime ships: differences of both count.
"""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from phipipe import backends, progress, transformers_tokenizer, vision
from phipipe.errors import StepFailed
from phipipe.limited_tokenizer import LimitedTokenizer
from phipipe.reference import log_softmax, score
from phipipe.steps import Inputs, Params

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

ANSWER_TOKENS = 24


class Seeing(Protocol):
    """What ``Backend.open`` gives for an artifact with eyes, besides ``Runtime``."""

    def look(self, picture: Path, prompt: str) -> Floats:
        """Logits of every position of ``prompt``, in which ``vision.MARK`` stands for the picture,
        float32 [n, v]."""

    def describe(self, picture: Path, prompt: str, limit: int) -> Iterator[int]:
        """At most ``limit`` token ids of the answer, chosen greedily; ends after an end-of-text
        token."""


def baseline(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: what the original makes of the pictures.

    ``inputs``: original (the eyes), source (its language model). ``params``: crops, at most per
    picture; square (false) and kind, as ``vision.pictures`` has them. Writes
    ``NAME.npy``, float32 log-probabilities [positions, vocabulary] for each picture, and
    ``vision.json``.
    """
    import numpy as np
    import torch

    from phipipe.layerwise import Layerwise

    tokenizer = transformers_tokenizer.of_source(inputs["source"])
    kind = vision.KINDS[params.get("kind", vision.PHI3)]
    prompt = _prompt(tokenizer, kind.after_mark)
    before, after = (tokenizer.encode(part) for part in prompt.split(vision.MARK))
    eyes = importlib.import_module(kind.tower)
    tower, seen = eyes.load(inputs["original"]), []
    pictures = vision.pictures(params)
    with torch.inference_mode():
        for picture in pictures:
            seen.append(eyes.see(tower, picture, int(params["crops"])))
            progress.report(len(seen), len(pictures), "pictures")
    del tower
    model = Layerwise(inputs["source"])
    prompts = [torch.cat([model.embed(before), vectors, model.embed(after)]) for vectors in seen]
    answers = model.generate(prompts, ANSWER_TOKENS)
    told: list[dict[str, Any]] = []
    for picture, logits, vectors, answer in zip(
        pictures, model.logits(prompts), seen, answers, strict=True
    ):
        np.save(out / f"{picture.name}.npy", log_softmax(np.array(logits[-len(after) - 1 :])))
        text = tokenizer.decode(answer)
        told.append({"name": picture.name, "vectors": len(vectors), "answer": answer, "text": text})
    report = {"prompt": prompt, "before": before, "after": after, "pictures": told}
    (out / "vision.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def _prompt(tokenizer: LimitedTokenizer, after_mark: str) -> str:
    """The question in the chat template, the picture first, as these models were trained."""
    said = f"{vision.MARK}{after_mark}{vision.QUESTION}"
    if not tokenizer.facts["chat_template"]:
        return said
    return tokenizer.render([{"role": "user", "content": said}])


def compare(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: what an artifact makes of the pictures, against ``baseline``.

    ``inputs``: artifact, baseline, pictures. ``params``: backend. Writes ``vision.json``: metrics
    (image_kld_mean in nats, image_top1), positions, vectors per picture, and the answers.

    Raises:
        StepFailed: the runtime makes another number of vectors of a picture, or logits that are no
            numbers.
    """
    import numpy as np

    told = json.loads((inputs["baseline"] / "vision.json").read_text("utf-8"))
    prompt, after = told["prompt"], told["after"]
    backend = backends.load(params["backend"])
    runtime: Any = backend.open(inputs["artifact"])
    tokenizer = backend.tokenizer(inputs["artifact"])
    parts, answers, agreed = [], [], []
    for i, picture in enumerate(told["pictures"]):
        file = inputs["pictures"] / f"{picture['name']}.png"
        logits = runtime.look(file, prompt)
        expected = len(told["before"]) + picture["vectors"] + len(after)
        if len(logits) != expected or not np.isfinite(logits).all():
            raise StepFailed(
                f"the runtime makes {len(logits)} positions of `{file.name}` and its question, "
                f"not {expected}"
            )
        row = score(
            np.load(inputs["baseline"] / f"{picture['name']}.npy"),
            np.array(logits[-len(after) - 1 :], np.float32),
            np.array([0, *after], np.int32),
        )
        parts.append(row)
        answer = list(runtime.describe(file, prompt, ANSWER_TOKENS))
        agreed.append(_agreement(answer, picture["answer"]))
        answers.append(
            {
                "picture": picture["name"],
                "text": tokenizer.decode(answer),
                "original": picture["text"],
            }
        )
        progress.report(i + 1, len(told["pictures"]), "pictures")
    runtime.close()
    divergence, top1 = (
        np.concatenate([row[name] for row in parts]).astype(np.float64) for name in ("kld", "top1")
    )
    report = {
        "metrics": {"image_kld_mean": float(divergence.mean()), "image_top1": float(top1.mean())},
        "kld_by_picture": {
            p["name"]: float(row["kld"].mean())
            for p, row in zip(told["pictures"], parts, strict=True)
        },
        "positions": len(divergence),
        "vectors": {p["name"]: p["vectors"] for p in told["pictures"]},
        "greedy_agreement": math.fsum(agreed) / len(agreed),
        "question": vision.QUESTION,
        "answers": answers,
    }
    (out / "vision.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def _agreement(found: Sequence[int], expected: Sequence[int]) -> float:
    """Share of the original's answer that comes out the same, from its start."""
    same = next(
        (i for i, (a, b) in enumerate(zip(found, expected, strict=False)) if a != b), len(found)
    )
    return min(same, len(expected)) / len(expected)
