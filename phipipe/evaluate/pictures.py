"""What a model makes of pictures, beside what the original makes of them.

A picture stands in a question; scored is every position from the picture's last vector to the
question's end, by the same divergence as text, and then the greedy answers are compared. The
original reads the pictures through a preparation of our own, in PyTorch, the artifact through the
one that its runtime ships: differences of both count.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from phipipe import backends, progress
from phipipe.backends.base import Runtime
from phipipe.errors import StepFailed
from phipipe.evaluate import reports
from phipipe.evaluate.reference import log_softmax, score
from phipipe.evaluate.reports import Described, Picture, Sight, Vision
from phipipe.evaluate.sanity import common_prefix
from phipipe.models import tokenizer as transformers_tokenizer
from phipipe.sandbox.tokenizer import LimitedTokenizer
from phipipe.steps import Inputs, Params
from phipipe.vision import kinds
from phipipe.vision import pictures as vision_pictures

Floats = npt.NDArray[np.float32]

ANSWER_TOKENS = 24


class Seeing(Runtime, Protocol):
    """What ``Backend.open`` gives for an artifact with eyes, besides ``Runtime``."""

    def look(self, picture: Path, prompt: str) -> Floats:
        """Logits of every position of ``prompt``, in which ``vision_pictures.MARK`` stands for the
        picture, float32 [n, v]."""

    def describe(self, picture: Path, prompt: str, limit: int) -> Iterator[int]:
        """At most ``limit`` token ids of the answer, chosen greedily; ends after an end-of-text
        token."""


def baseline(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: what the original makes of the pictures.

    ``inputs``: original (the eyes), source (its language model). ``params``: crops, at most per
    picture; square (false) and kind, as ``vision_pictures.shown`` has them. Writes ``NAME.npy``,
    float32 log-probabilities [positions, vocabulary] for each picture, and ``vision.json``.
    """
    import torch

    from phipipe.models import greedy
    from phipipe.models.layerwise import Layerwise

    tokenizer = transformers_tokenizer.of_source(inputs["source"])
    kind = kinds.KINDS[params.get("kind", kinds.PHI3)]
    prompt = _prompt(tokenizer, kind.after_mark)
    before, after = (tokenizer.encode(part) for part in prompt.split(vision_pictures.MARK))
    network = importlib.import_module(kind.tower)
    tower, seen = network.load(inputs["original"]), []
    pictures = vision_pictures.shown(params)
    with torch.inference_mode():
        for picture in pictures:
            seen.append(network.see(tower, picture, int(params["crops"])))
            progress.report(len(seen), len(pictures), "pictures")
    del tower
    model = Layerwise(inputs["source"])
    seen = [vectors.to(model.unit) for vectors in seen]
    prompts = [torch.cat([model.embed(before), vectors, model.embed(after)]) for vectors in seen]
    answers = greedy.answer(model, prompts, ANSWER_TOKENS)
    progress.generated(sum(map(len, answers)))
    descriptions = []
    for picture, logits, vectors, answer in zip(
        pictures, model.logits(prompts), seen, answers, strict=True
    ):
        np.save(out / f"{picture.name}.npy", log_softmax(np.array(logits[-len(after) - 1 :])))
        text = tokenizer.decode(answer)
        descriptions.append(
            Picture(name=picture.name, vectors=len(vectors), answer=answer, text=text)
        )
    report = Sight(prompt=prompt, before=before, after=after, pictures=descriptions)
    reports.write_in_order(out / report.FILE, report.as_json())


def _prompt(tokenizer: LimitedTokenizer, after_mark: str) -> str:
    """The question in the chat template, the picture first, as these models were trained."""
    question = f"{vision_pictures.MARK}{after_mark}{vision_pictures.QUESTION}"
    if not tokenizer.facts["chat_template"]:
        return question
    return tokenizer.render([{"role": "user", "content": question}])


def compare(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: what an artifact makes of the pictures, against ``baseline``.

    ``inputs``: artifact, baseline, pictures. ``params``: backend. Writes ``vision.json``: metrics
    (image_kld_mean in nats, image_top1), positions, vectors per picture, and the answers.

    Raises:
        StepFailed: the runtime makes another number of vectors of a picture, or logits that are no
            numbers.
    """
    sight = reports.read(Sight, inputs["baseline"])
    backend = backends.load(params["backend"])
    runtime = cast("Seeing", backend.to_answer(inputs["artifact"]))
    tokenizer = backend.tokenizer(inputs["artifact"])
    scored: dict[str, dict[str, Floats]] = {}
    answers, agreed = [], []
    for i, picture in enumerate(sight.pictures):
        file = inputs["pictures"] / f"{picture.name}.png"
        scored[picture.name] = _scored(runtime, file, sight, picture, inputs["baseline"])
        answer = list(runtime.describe(file, sight.prompt, ANSWER_TOKENS))
        progress.generated(len(answer))
        agreed.append(common_prefix(answer, picture.answer) / len(picture.answer))
        text = tokenizer.decode(answer)
        answers.append(Described(picture=picture.name, text=text, original=picture.text))
        progress.report(i + 1, len(sight.pictures), "pictures")
    runtime.close()
    divergence = np.concatenate([row["kld"] for row in scored.values()]).astype(np.float64)
    top1 = np.concatenate([row["top1"] for row in scored.values()]).astype(np.float64)
    report = Vision(
        metrics={"image_kld_mean": float(divergence.mean()), "image_top1": float(top1.mean())},
        kld_by_picture={name: float(row["kld"].mean()) for name, row in scored.items()},
        positions=len(divergence),
        vectors={picture.name: picture.vectors for picture in sight.pictures},
        greedy_agreement=math.fsum(agreed) / len(agreed),
        question=vision_pictures.QUESTION,
        answers=answers,
    )
    reports.write_in_order(out / report.FILE, report.as_json())


def _scored(
    runtime: Seeing, file: Path, sight: Sight, picture: Picture, baseline: Path
) -> dict[str, Floats]:
    """``reference.score`` of the positions from the picture's last vector to the question's end."""
    logits, after = runtime.look(file, sight.prompt), sight.after
    expected = len(sight.before) + picture.vectors + len(after)
    if len(logits) != expected or not np.isfinite(logits).all():
        raise StepFailed(
            f"the runtime makes {len(logits)} positions of `{file.name}` and its question, "
            f"not {expected}"
        )
    return score(
        np.load(baseline / f"{picture.name}.npy"),
        np.array(logits[-len(after) - 1 :], np.float32),
        np.array([0, *after], np.int32),
    )
