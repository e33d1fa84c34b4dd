"""The files of ``recipes/board.yaml``, made by phipipe and by the upstream command lines one after
another.

    python benchmarks/board.py [--jobs N]

Evaluation is left out on both sides; ours includes conversion parity nowhere either. Toolchains are
installed before any clock starts, phipipe starts from an empty cache. Read the ratio, not the
seconds.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from phipipe import backends
from phipipe.cli.listeners import Silent
from phipipe.evaluate import speed
from phipipe.execution import dispatch
from phipipe.execution.manner import Manner
from phipipe.planning import preparation
from phipipe.planning.plan import Plan
from phipipe.recipe import loading
from phipipe.settings import Settings
from phipipe.store.store import Store
from phipipe.toolchains import environments

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "phipipe" / "assets" / "tiny-phi3"
RECIPE = ROOT / "recipes" / "board.yaml"
MAKING = ("source", "outline", "convert", "quantize")
CAST = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
source, target, dtype = sys.argv[1:]
AutoModelForCausalLM.from_pretrained(source, dtype=dtype).save_pretrained(target)
AutoTokenizer.from_pretrained(source).save_pretrained(target)
"""
QUANTIZE = """
import sys
import llama_cpp
source, target, kind = sys.argv[1:]
params = llama_cpp.llama_model_quantize_default_params()
params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
assert llama_cpp.llama_model_quantize(source.encode(), target.encode(), params) == 0
"""
Command = Sequence[str | Path]
Commands = Mapping[str, Sequence[Command]]


def plans(extra: str = "") -> list[Plan]:
    """The recipe's builds, reduced to the steps that make the artifact."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "board.yaml"
        path.write_text(RECIPE.read_text("utf-8") + extra, "utf-8")
        whole = [
            preparation.prepare(build) for build in loading.load(path, options=backends.OptionsOf())
        ]
    return [
        replace(p, steps=tuple(replace(s, after=()) for s in p.steps if s.name in MAKING))
        for p in whole
    ]


def ours(
    store: Store, settings: Settings, jobs: int | None, extra: str = ""
) -> tuple[float, dict[str, float], int]:
    """(wall seconds, step seconds by backend, steps that ran)."""
    builds, start = plans(extra), time.perf_counter()
    outcomes = dispatch.attempt(builds, store, settings, Silent(), Manner(jobs=jobs))
    wall = time.perf_counter() - start
    seconds: dict[str, float] = defaultdict(float)
    seen = set()
    for outcome in outcomes:
        if outcome.error:
            raise SystemExit(f"{outcome.plan.build.name}: {outcome.error.message}")
        for result in outcome.results.values():
            if not result.cached and result.key not in seen and result.step.toolchain:
                seen.add(result.key)
                seconds[outcome.plan.build.recipe.backend] += result.usage.get("seconds", 0.0)
    return wall, seconds, len(seen)


def upstream(settings: Settings, work: Path) -> Commands:
    """Backend → its own tools' commands for the same files."""
    python = {name: environments.ensure(name, settings, print).python for name in backends.names()}
    return {
        "torch": _torch(python["torch"], work),
        "onnxruntime": _onnxruntime(python["onnxruntime"], work),
        "llamacpp": _llamacpp(python["torch"], python["llamacpp"], work),
        "openvino": _openvino(python["openvino"], work),
        "mlx": _mlx(python["mlx"], work),
    }


def _torch(python: Path, work: Path) -> list[Command]:
    rounding = (python, *["-m", "auto_round", "--iters", "0", "--disable_opt_rtn"])
    rounding += ("--format", "auto_round", "--model", MODEL)
    return [
        (python, "-c", CAST, MODEL, work / "fp32", "float32"),
        (python, "-c", CAST, MODEL, work / "fp16", "float16"),
        (*rounding, "--bits", "8", "--group_size", "128", "--output_dir", work / "ar8"),
        (*rounding, "--bits", "4", "--group_size", "32", "--output_dir", work / "ar4"),
    ]


def _onnxruntime(python: Path, work: Path) -> list[Command]:
    builder = (python, "-m", "onnxruntime_genai.models.builder", "-m", MODEL, "-i", MODEL)
    builder += ("-e", "cpu", "-c", work / "builder-cache")
    return [
        (*builder, "-p", precision, "-o", work / f"onnx-{precision}")
        for precision in ("fp32", "int8", "int4")
    ]


def _llamacpp(torch: Path, python: Path, work: Path) -> list[Command]:
    to_gguf = (torch, converter(work), MODEL)
    quantizer = (python, "-c", QUANTIZE, work / "bf16.gguf")
    return [
        *(
            (*to_gguf, "--outtype", kind, "--outfile", work / f"{kind}.gguf")
            for kind in ("f32", "f16", "bf16")
        ),
        *((*quantizer, work / f"{kind}.gguf", kind) for kind in ("Q8_0", "Q4_K_M")),
    ]


def _openvino(python: Path, work: Path) -> list[Command]:
    exporter = (python, "-m", "optimum.commands.optimum_cli", "export", "openvino")
    exporter += ("--model", MODEL, "--task", "text-generation-with-past", "--weight-format")
    int4 = (*exporter, "int4", "--group-size", "128", "--ratio", "1.0", work / "ov-int4")
    return [*((*exporter, kind, work / f"ov-{kind}") for kind in ("fp32", "fp16", "int8")), int4]


def _mlx(python: Path, work: Path) -> list[Command]:
    convert = (python, "-m", "mlx_lm", "convert", "--hf-path", MODEL, "--mlx-path")
    return [
        (*convert, work / "mlx32", "--dtype", "float32"),
        (*convert, work / "mlx16"),
        (*convert, work / "mlx8", "-q", "--q-bits", "8", "--q-group-size", "64"),
        (*convert, work / "mlx4", "-q", "--q-bits", "4", "--q-group-size", "64"),
    ]


def converter(work: Path) -> Path:
    """llama.cpp's own script, from the source archive of the llama-cpp-python in the lock."""
    lines = (environments.LOCKS / "llamacpp.txt").read_text("utf-8").splitlines()
    package = next(line for line in lines if line.startswith("llama-cpp-python=="))
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        ":all:",
    ]
    subprocess.run([*command, "--dest", str(work), package], check=True)
    (archive,) = work.glob("llama_cpp_python-*.tar.gz")
    subprocess.run(["tar", "-xzf", str(archive), "-C", str(work)], check=True)
    return next(work.glob("*/vendor/llama.cpp/convert_hf_to_gguf.py"))


def run(command: Command) -> float:
    """Wall seconds of ``command``; a failure ends the benchmark."""
    quiet = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "NNCF_CI": "1"}
    start = time.perf_counter()
    done = subprocess.run(
        [str(word) for word in command],
        env=quiet,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr[-3000:]}")
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings, work = Settings.read(), Path(folder)
        commands = upstream(settings, work)
        store = Store(work / "cache")
        wall, steps, count = ours(store, settings, args.jobs)
        more = "  - {backend: llamacpp, precision: int4, name: more, quantize: {type: Q5_K_M}}\n"
        again, _, added = ours(store, settings, args.jobs, more)
        theirs = {name: sum(map(run, list_)) for name, list_ in commands.items()}
    host = speed.host()
    machine = (
        f"{host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB, {host['system']}"
    )
    print(f"\n{machine}, Python {platform.python_version()}\n")
    print("| runtime | phipipe's steps | upstream's commands |\n|---|---:|---:|")
    for name, seconds in theirs.items():
        print(f"| {name} | {steps[name]:.1f} s | {len(commands[name])} commands, {seconds:.1f} s |")
    total = sum(theirs.values())
    print(f"| all, wall time | {wall:.1f} s | {total:.1f} s |")
    print(f"\n{wall / total:.2f} × (goal ≤ 0.5); {count} steps ran")
    print(f"one more variant on the finished board: {added} step, {again:.1f} s")


if __name__ == "__main__":
    main()
