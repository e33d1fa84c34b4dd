"""What 4 bits cost a really trained model: each tool's default beside weights learned here.

    python benchmarks/quality.py [--work FOLDER] [--only llamacpp mlx] [--tokens 8192]

The model is that of ``real.py`` (SmolLM2-135M-Instruct as a Llama). Texts are made of what comes
with Python: the help of its language in English, and its own modules as code; learning and
evaluation take different parts, and `tune` chooses by what follows in the first. Printed is one row
a build: size, bits for a weight, mean KL divergence from the original with its standard error, the
share of equal first choices, the ratio of perplexities, whether it knows the capital of France, how
much time of a core the steps that make the file took, and how much memory beyond mapped files the
largest had.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from pydoc_data import topics

import real

import phipipe
from phipipe.api.results import Result
from phipipe.evaluate.answer_reports import Answers
from phipipe.execution.results import Outcome

LEARNED = "weights: {learn: gptq}"
# backend, or its unit: device, the tool's own builds (the first is its default), and learned ones.
# Hidden size 576: groups of 64 divide it, 128 and K-quants do not. "same" has the default's bits
# throughout.
BUILDS: Mapping[str, tuple[str, Mapping[str, str], str]] = {
    "onnxruntime": (
        "cpu-x86_64",
        {"default": "{}", "mixed": "{mixed: layers}"},
        f"{LEARNED}, quantize: {{map: {{lm_head: {{bits: 4}}}}}}",
    ),
    "openvino": (
        "intel-cpu",
        {"default": "{group_size: 64}"},
        "weights: {learn: gptq, group_size: 64}",
    ),
    "intel-npu": (
        "intel-npu",
        {
            "default": "{group_size: -1}",
            "estimated": "{group_size: -1, scale_estimation: true}",
        },
        "weights: {learn: gptq, group_size: -1}",
    ),
    "llamacpp": (
        "cpu-x86_64",
        {
            "q4_0": "{type: Q4_0}",
            "q4_0-imatrix": "{type: Q4_0, imatrix: true}",
            "iq4_nl-imatrix": "{type: IQ4_NL, imatrix: true}",
        },
        LEARNED,
    ),
    "mlx": (
        "apple-silicon",
        {"default": "{group_size: 64}"},
        "weights: {learn: gptq, group_size: 64}",
    ),
    "torch": (
        "cpu-x86_64",
        {"default": "{group_size: 64}"},
        "weights: {learn: gptq, group_size: 64}",
    ),
}
BACKENDS = {"intel-npu": "openvino"}  # where a row is not called after its backend
TUNED = (1.0, 0.9)  # of the default's size
LEARNING = ("argparse", "textwrap", "configparser", "tempfile", "csv", "queue")
EVALUATION = ("heapq", "shlex", "string", "bisect", "fnmatch", "sched", "shutil")
MAKING = ("outline", "convert", "quantize", "weights", "imatrix", "gptq", "calibration")
QUESTION, ANSWER = "What is the capital of France?", "Paris"
COLUMNS = (
    "MiB",
    "bits/weight",
    "mean KLD",
    "same first choice",
    "perplexity",
    "answer",
    "CPU s",
    "GiB",
)


def texts(work: Path) -> None:
    """Leave ``learning.txt`` and ``evaluation.txt`` in ``work``: half prose, half code, nothing in
    both; and ``question.jsonl``, a prompt."""
    library = Path(os.__file__).parent
    names = sorted(topics.topics)
    for file, modules, chosen in (
        ("learning.txt", LEARNING, names[::2]),
        ("evaluation.txt", EVALUATION, names[1::2]),
    ):
        pieces = []
        for i, module in enumerate(modules):
            pieces += [topics.topics[name] for name in chosen[i * 4 : i * 4 + 4]]
            pieces.append((library / f"{module}.py").read_text("utf-8")[:12_000])
        (work / file).write_text("\n\n".join(pieces), "utf-8")
    asked = {"messages": [{"role": "user", "content": QUESTION}]}
    (work / "question.jsonl").write_text(json.dumps(asked) + "\n", "utf-8")


def recipe(work: Path, backend: str, tokens: int) -> Path:
    """All builds of one backend."""
    device, builds, same = BUILDS[backend]
    rows = [f"  - {{name: {name}, quantize: {options}}}" for name, options in builds.items()]
    rows += [f"  - {{name: same, {same}}}"]
    rows += [f"  - {{name: learned, {LEARNED}}}"] if backend not in BACKENDS else []
    path = work / f"quality-{backend}.yaml"
    path.write_text(
        f"""name: quality-{backend}
source: {{path: llama}}
device: {device}
backend: {BACKENDS.get(backend, backend)}
precision: int4
calibrate: {{text: {{file: learning.txt}}, tokens: 16384}}
evaluate:
  text: {{file: evaluation.txt}}
  tokens: {tokens}
  window: 512
  accept: [tokenizer]
  generate: {{prompts: {{file: question.jsonl}}, new_tokens: 32}}
measure: {{prompt_tokens: 16, new_tokens: 4, repetitions: 1}}
matrix:
"""
        + "\n".join(rows)
        + "\n",
        "utf-8",
    )
    return path


def row(backend: str, result: Result) -> str:
    """A row of the table."""
    name = result.name.removeprefix(f"quality-{backend}-")
    if not result.ok:
        print(f"{result.name}: {result.error}", file=sys.stderr)
        return f"| {backend} | {name} | failed |{' |' * (len(COLUMNS) - 1)}"
    made = [step for step in result.steps if step.name in MAKING]
    took = sum(step.cpu_seconds or 0 for step in made)
    peak_gib = max((step.peak_anon_bytes or 0 for step in made), default=0) / 2**30
    return f"{_figures(backend, name, result.outcome)} {took:.0f} | {peak_gib:.1f} |"


def _figures(backend: str, name: str, outcome: Outcome) -> str:
    """The row of a build up to what it took."""
    evaluation, answers = outcome.fidelity, outcome.load("answers", Answers)
    assert evaluation is not None  # it ran to the end
    assert answers is not None
    figures, error = evaluation.metrics, evaluation.stderr["kld_mean"]
    return (
        f"| {backend} | {name} | {figures['size_gib'] * 1024:.0f} | "
        f"{figures['bits_per_weight']:.2f} | {figures['kld_mean']:.4f} ± {error:.4f} | "
        f"{100 * figures['top1']:.1f} % | {figures['ppl_ratio']:.3f} | "
        f"{ANSWER if ANSWER in answers.replies[0].text else answers.replies[0].text!r} |"
    )


def tuned_rows(backend: str, path: Path, default: Result) -> Iterator[str]:
    """The default, and learned weights, with widths chosen at the default's size, and at less."""
    own = next(iter(BUILDS[backend][1]))
    size_bytes = default.figures["size_gib"] * 2**30
    for build, share in ((own, TUNED[0]), *(("learned", share) for share in TUNED)):
        files = 4 if build == own else 2  # each file of learned weights learns anew
        size = f"{int(share * size_bytes)}B"
        (tuned,) = phipipe.tune(path, size=size, builds=files, only=build).builds
        name, best = f"{build}, tuned at {100 * share:.0f} %", tuned.best
        told = f"predicted {best.predicted_kld or 0:.4f}, chosen by {best.kld:.4f}"
        yield f"{_figures(backend, name, tuned.final)} | | {told}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "phipipe-real")
    parser.add_argument("--only", nargs="+", choices=BUILDS, default=list(BUILDS))
    parser.add_argument("--tokens", type=int, default=8192)
    given = parser.parse_args(arguments)
    given.work.mkdir(exist_ok=True)
    real.checkpoints(given.work)
    texts(given.work)
    print(f"| backend | build | {' | '.join(COLUMNS)} |")
    print(f"|---|---|{'---:|' * len(COLUMNS)}")
    failed = False
    for backend in given.only:
        path = recipe(given.work, backend, given.tokens)
        results = phipipe.run(path, out=given.work / "quality")
        for result in results:
            print(row(backend, result), flush=True)
            failed |= not result.ok
        for line in tuned_rows(backend, path, results[0]) if backend not in BACKENDS else ():
            print(line, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
