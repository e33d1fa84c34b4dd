"""What 4 bits cost a really trained model: each tool's default beside weights learned here.

    python benchmarks/quality.py [--work FOLDER] [--only llamacpp mlx] [--tokens 4096]

The model is that of ``real.py`` (SmolLM2-135M-Instruct as a Llama). Texts are made of what comes
with Python: the help of its language in English, and its own modules as code; learning and
evaluation take different parts. Printed is one row a build: size, bits for a weight, mean KL
divergence from the original with its standard error, the share of equal first choices, and how long
the steps of rounding and learning took.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from pydoc_data import topics

import real

import phipipe
from phipipe.api.results import Result

LEARNED = "weights: {learn: gptq}"
# backend: device, the tool's own builds. Hidden size 576: groups of 64 divide it, 128 and K-quants
# do not.
BUILDS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "onnxruntime": ("cpu-x86_64", {"default": "{}", "mixed": "{mixed: layers}"}),
    "openvino": ("intel-cpu", {"default": "{group_size: 64}"}),
    "llamacpp": (
        "cpu-x86_64",
        {
            "q4_0": "{type: Q4_0}",
            "q4_0-imatrix": "{type: Q4_0, imatrix: true}",
            "iq4_nl-imatrix": "{type: IQ4_NL, imatrix: true}",
        },
    ),
    "mlx": ("apple-silicon", {"default": "{group_size: 64}"}),
    "torch": ("cpu-x86_64", {"default": "{group_size: 64}"}),
}
LEARNING = ("argparse", "textwrap", "configparser", "tempfile", "csv", "queue")
EVALUATION = ("heapq", "shlex", "string", "bisect", "fnmatch", "sched", "shutil")
TIMED = ("quantize", "weights", "imatrix", "gptq", "calibration")


def texts(work: Path) -> None:
    """Leave ``learning.txt`` and ``evaluation.txt`` in ``work``: half prose, half code, nothing in
    both."""
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


def recipe(work: Path, backend: str, tokens: int) -> Path:
    """All builds of one backend."""
    device, builds = BUILDS[backend]
    rows = [f"  - {{name: {name}, quantize: {options}}}" for name, options in builds.items()]
    rows.append(f"  - {{name: learned, {LEARNED}}}")
    path = work / f"quality-{backend}.yaml"
    path.write_text(
        f"""name: quality-{backend}
source: {{path: llama}}
device: {device}
backend: {backend}
precision: int4
calibrate: {{text: {{file: learning.txt}}, tokens: 16384}}
evaluate: {{text: {{file: evaluation.txt}}, tokens: {tokens}, window: 512, accept: [tokenizer]}}
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
        return f"| {backend} | {name} | failed | | | | |"
    figures = result.figures
    error = figures.stderr.get("kld_mean", 0.0)
    took = sum(step.seconds or 0 for step in result.steps if step.name in TIMED)
    return (
        f"| {backend} | {name} | {figures['size_gib'] * 1024:.0f} | "
        f"{figures['bits_per_weight']:.2f} | {figures['kld_mean']:.4f} ± {error:.4f} | "
        f"{100 * figures['top1']:.1f} % | {took:.0f} |"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "phipipe-real")
    parser.add_argument("--only", nargs="+", choices=BUILDS, default=list(BUILDS))
    parser.add_argument("--tokens", type=int, default=4096)
    given = parser.parse_args(arguments)
    given.work.mkdir(exist_ok=True)
    real.checkpoints(given.work)
    texts(given.work)
    print("| backend | build | MiB | bits/weight | mean KLD | same first choice | seconds |")
    print(f"|---|---|{'---:|' * 5}")
    failed = False
    for backend in given.only:
        path = recipe(given.work, backend, given.tokens)
        for result in phipipe.run(path, out=given.work / "quality"):
            print(row(backend, result), flush=True)
            failed |= not result.ok
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
