"""What phipipe itself costs, side by side with the tools it stands on; prints one Markdown table.

    python benchmarks/spine.py [--repetitions 3] [--no-olive]

Everything is measured in one go on one machine: read the ratios, not the seconds. Toolchains are
installed before any clock starts; every build starts from an empty cache of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import uv

from phipipe.evaluate import speed
from phipipe.settings import Settings
from phipipe.toolchains import environments, uv_settings

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "phipipe" / "assets" / "tiny-phi3"
RECIPE = ROOT / "recipes" / "quickstart.yaml"
NAMES = "from phipipe import Board, Package, Recipe, plan, run"
PHIPIPE = (sys.executable, "-m", "phipipe")
# olive-ai 0.13.0's ModelBuilder works with this onnxruntime-genai only, its evaluator with this
# pydantic.
OLIVE = (
    "olive-ai==0.13.0",
    "onnxruntime-genai==0.14.0",
    "pydantic==2.11.7",
    "onnxruntime",
    "requests",
    "transformers<5.6",
)

SHARE = """
import sys, time
from pathlib import Path
import numpy as np
from phipipe import backends
from phipipe.evaluate import fidelity, reference as kept
artifact, baseline = map(Path, sys.argv[1:])
tokens = np.load(baseline / "tokens.npy")
reference = np.load(baseline / "logprobs.npy", mmap_mode="r")
runtime = backends.load("onnxruntime").open(artifact)
runtime.logits(tokens[0].tolist())
spent = [0.0, 0.0]
for i, window in enumerate(tokens):
    start = time.perf_counter()
    logits = fidelity._finite(runtime.logits(window.tolist()), len(window))
    middle = time.perf_counter()
    kept.score(reference[i], logits, window)
    spent[0] += middle - start
    spent[1] += time.perf_counter() - middle
print(spent[0], spent[1])
"""

Row = tuple[str, str, str, str]  # what, phipipe, beside it, ratio


@dataclass(frozen=True)
class Cost:
    """One child process: wall and CPU seconds, peak resident MiB (VmHWM, sampled)."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    output: str


def run(
    command: Sequence[str | Path], env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Cost:
    """Run ``command`` to its end; a failure ends the benchmark."""
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as out:
        process = psutil.Popen(
            [str(c) for c in command],
            stdout=out,
            stderr=subprocess.PIPE,
            env=dict(env or os.environ),
            cwd=cwd,
        )
        peak, cpu = 0, 0.0
        while process.poll() is None:
            try:
                cpu, peak = _cpu_seconds(process), max(peak, _peak(process))
            except psutil.Error:
                break
            time.sleep(0.002)
        _, errors = process.communicate()
        wall = time.perf_counter() - start
        out.seek(0)
        if process.returncode:
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{errors.decode()[-3000:]}")
        return Cost(wall, cpu, peak / 2**20, out.read())


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def _peak(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status")
    if status.is_file():
        for line in status.read_text("ascii", "replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(process.memory_info().rss)


def cpu_of(command: Sequence[str], repetitions: int) -> float:
    """Lowest CPU seconds of ``command``; of all children, read before and after, since each has
    then ended."""
    best = float("inf")
    for _ in range(repetitions):
        before = _children_cpu()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=ROOT)
        best = min(best, _children_cpu() - before)
    return best


def _children_cpu() -> float:
    try:
        import resource
    except ImportError:  # Windows: coarser
        times = os.times()
        return times.children_user + times.children_system
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def median(costs: Sequence[Cost]) -> Cost:
    return sorted(costs, key=lambda cost: cost.wall_s)[len(costs) // 2]


def startup(repetitions: int) -> list[Row]:
    def cost(*command: str) -> float:
        return cpu_of((sys.executable, *command), repetitions * 3)

    base = cost("-c", "import pydantic")
    commands = (
        ("`phipipe --help`", ("-m", "phipipe", "--help"), 1.2),
        ("`phipipe validate`", ("-m", "phipipe", "validate", str(RECIPE)), 3),
        ("`import phipipe`", ("-c", "import phipipe"), 1.5),
        ("`from phipipe import Recipe, plan, run`", ("-c", NAMES), None),
    )
    rows = []
    for name, command, goal in commands:
        own = cost(*command)
        beside = f"`import pydantic` {base:.3f} s"
        ratio = f"{own / base:.1f} ×{f' (goal ≤ {goal:g})' if goal else ''}"
        rows.append((f"{name}, CPU time", f"{own:.3f} s", beside, ratio))
    return rows


def builds(repetitions: int, work: Path) -> tuple[list[Row], Cost]:
    """First runs against the bare builder, then cached ones, and what evaluation is made of; the
    cost of a cached run."""
    env = dict(os.environ) | {"PHIPIPE_CACHE": str(work / "cache")}
    for name in ("torch", "onnxruntime"):
        subprocess.run(
            (*PHIPIPE, "toolchain", "install", name), check=True, env=env, stdout=subprocess.DEVNULL
        )
    python = environments.ensure("onnxruntime", Settings.read(env), print).python
    steps: Mapping[str, Any] = {}
    first, bare = [], []
    for i in range(repetitions):
        for folder in ("objects", "actions"):
            shutil.rmtree(work / "cache" / folder, ignore_errors=True)
        command = (*PHIPIPE, "run", RECIPE, "--out", work / "out", "--json")
        steps = {s["name"]: s for s in json.loads(run(command, env).output)[0]["steps"]}
        first.append(steps["convert"]["seconds"] + steps["quantize"]["seconds"])
        bare.append(_bare(python, work, i))
    ours, theirs = statistics.median(first), statistics.median(bare)
    cached = median(
        [run((*PHIPIPE, "run", RECIPE, "--out", work / "out"), env) for _ in range(repetitions)]
    )
    built = (
        "first run: convert + quantize",
        f"{ours:.1f} s",
        f"bare ORT GenAI builder {theirs:.1f} s",
        f"{ours / theirs:.2f} × (goal ≤ 1.15)",
    )
    again = f"{cached.wall_s:.2f} s, {cached.peak_mib:.0f} MiB"
    return [
        built,
        ("second run, all cached", again, "goal ≤ 1 s, ≤ 150 MiB", ""),
        _evaluation(python, work / "cache" / "objects", steps, env),
    ], cached


def _bare(python: Path, work: Path, number: int) -> float:
    """Seconds that the builder takes on its own."""
    builder = (python, "-m", "onnxruntime_genai.models.builder", "-m", MODEL, "-i", MODEL)
    builder += ("-o", work / f"bare{number}", "-c", work / f"bare-cache{number}")
    return run((*builder, "-p", "int4", "-e", "cpu")).wall_s


def _evaluation(
    python: Path, objects: Path, steps: Mapping[str, Any], env: Mapping[str, str]
) -> Row:
    """How much of an evaluation is ours, how much the runtime's."""
    artifact, baseline = (objects / steps[name]["digest"] for name in ("quantize", "baseline"))
    command = (python, "-c", SHARE, artifact, baseline)
    share = run(command, {**env, "PYTHONPATH": str(ROOT)}).output.split()
    runtime_s, arithmetic_s = map(float, share)
    part = arithmetic_s / (runtime_s + arithmetic_s)
    return (
        "evaluation: metric arithmetic",
        f"{arithmetic_s:.2f} s",
        f"the runtime's own {runtime_s:.2f} s",
        f"{part:.0%} (goal ≤ 15 %)",
    )


def olive(repetitions: int, work: Path, cached: Cost) -> list[Row]:
    """The same build with Olive, repeated from Olive's own cache."""
    env = dict(os.environ) | uv_settings.from_pip(os.environ)
    venv = work / "olive"
    subprocess.run(
        (uv.find_uv_bin(), "venv", "-q", str(venv), "--python", sys.executable), check=True, env=env
    )
    python = venv / ("Scripts/python.exe" if platform.system() == "Windows" else "bin/python")
    subprocess.run(
        (uv.find_uv_bin(), "pip", "install", "-q", "--python", str(python), *OLIVE),
        check=True,
        env=env,
    )
    config = {
        "input_model": {"type": "HfModel", "model_path": str(MODEL), "task": "text-generation"},
        "passes": {"build": {"type": "ModelBuilder", "precision": "int4"}},
        "cache_dir": "cache",
        "output_dir": "out",
    }
    (work / "olive.json").write_text(json.dumps(config), "utf-8")
    quiet = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "OLIVE_DISABLE_TELEMETRY": "1"}
    costs = [
        run((python, "-m", "olive", "run", "--config", "olive.json"), quiet, work)
        for _ in range(repetitions + 1)
    ]
    again = median(costs[1:])
    ratio = again.wall_s / cached.wall_s
    return [
        (
            "second run, all cached",
            f"{cached.wall_s:.2f} s",
            f"`olive run` {again.wall_s:.1f} s",
            f"{ratio:.0f} × faster (goal ≥ 15)",
        )
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--no-olive", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = startup(args.repetitions)
        built, cached = builds(args.repetitions, Path(folder))
        rows += built
        if not args.no_olive:
            rows += olive(args.repetitions, Path(folder), cached)
    host = speed.host()
    machine = (
        f"{host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB, {host['system']}"
    )
    print(f"\n{machine}, Python {platform.python_version()}\n")
    print("| what | phipipe | beside it | ratio |\n|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
