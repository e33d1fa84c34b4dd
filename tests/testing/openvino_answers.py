"""Runs in the openvino toolchain: ``python -m testing.openvino_answers PACKAGE PICTURE…``
prints JSON.

By picture how much less likely than the likeliest, in nats, the worst token of the pipeline's
greedy answers is by the logits that the package's graphs give, one by one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from phipipe.backends import openvino as backend
from phipipe.vision import pictures as vision_pictures

QUESTIONS = ("What is it?", "Who?", vision_pictures.QUESTION)


def main(package: Path, pictures: list[Path]) -> None:
    runtime, tokenizer = backend.open(package), backend.tokenizer(package)
    found: dict[str, float] = {}
    for picture in pictures:
        gaps = []
        for question in QUESTIONS:
            prompt = f"<|user|>\n{vision_pictures.MARK}\n{question}<|end|>\n<|assistant|>\n"
            before, after = (tokenizer.encode(part) for part in prompt.split(vision_pictures.MARK))
            answer = list(runtime.describe(picture, prompt, 8))  # type: ignore[attr-defined]
            rows = runtime.seen(picture, before, [*after, *answer])[-len(answer) - 1 : -1]  # type: ignore[attr-defined]
            gaps += [float(row.max() - row[token]) for row, token in zip(rows, answer, strict=True)]
        found[picture.stem] = max(gaps)
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
