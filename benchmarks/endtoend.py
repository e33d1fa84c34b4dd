"""A whole run at full size: a random checkpoint from its folder to a package, in an empty cache.

    python benchmarks/endtoend.py phi-3.5-mini [--work FOLDER] [--recipe FILE] [--tokens 2048]
    [--set KEY=VALUE ...] [--variant KEY=VALUE ...] [--no-bare]

First the recipe with the checkpoint in place of its source, then the same with the variant's
values in the same cache, then the bare ONNX Runtime builder on the same checkpoint. Toolchains are
installed and the checkpoint (``checkpoint.py``) is made before; neither is part of any time. Gates
are left out: the weights are random. Weights are not learned unless ``--set`` says so. Read the
ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import checkpoint
import fullsize

from phipipe.evaluate import speed
from phipipe.settings import Settings

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "phi35-cpu-int4.yaml"
USUAL = ("weights=none", "evaluate.gates={}", "evaluate.text={builtin: stories}")
VARIANT = ("quantize={block_size: 128}",)


def run(recipe: Path, work: Path, name: str, sets: Sequence[str]) -> dict[str, Any]:
    """The profile of one ``phipipe run``, with the ``seconds`` that the command took, and
    ``peak_anon_bytes`` of all its processes at once, looked at ten times a second.

    Raises:
        SystemExit: it failed.
    """
    changes = [part for one in (*sets, f"name={name}") for part in ("--set", one)]
    command = [sys.executable, "-m", "phipipe", "run", str(recipe), *changes]
    own = dict(os.environ) | {"PHIPIPE_CACHE": str(work / "cache"), "PHIPIPE_CONFIG": "off"}
    start = time.perf_counter()
    process, peak = subprocess.Popen([*command, "--out", str(work / "packages")], env=own), 0
    while process.poll() is None:
        peak = max(peak, fullsize.memory(process.pid)[0])
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{name} ended with exit code {process.returncode}")
    show = [sys.executable, "-m", "phipipe", "runs", "show", "latest", "--profile", "--json"]
    told = subprocess.run(show, env=own, capture_output=True, encoding="utf-8", check=True).stdout
    return {**json.loads(told), "seconds": seconds, "peak_anon_bytes": peak}


def table(title: str, found: dict[str, Any]) -> None:
    """Print the steps of one run, and the whole of it."""
    print(
        f"\n{title}\n\n| step | wall s | CPU s | read GiB | written GiB | anonymous GiB | tokens |"
        "\n|---|---:|---:|---:|---:|---:|---:|"
    )
    for step in found["steps"]:
        if step["state"] == "done":
            tokens = (step["scored_tokens"] or 0) + (step["generated_tokens"] or 0)
            cells = [
                *(_number(step[key]) for key in ("seconds", "cpu_seconds")),
                *(_gib(step[key]) for key in ("read_bytes", "written_bytes", "peak_anon_bytes")),
            ]
            print(f"| {step['name']} | {' | '.join(cells)} | {tokens or ''} |")
    cells = [_number(found["seconds"]), _number(found["cpu_seconds"])]
    cells += [_gib(found[key]) for key in ("read_bytes", "written_bytes", "peak_anon_bytes")]
    print(f"| **whole run** | {' | '.join(cells)} | |")
    print(f"\ncritical path: {', '.join(found['critical_path'] or ())}", flush=True)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _gib(value: float | None) -> str:
    return "" if value is None else f"{value / 2**30:.2f}"


def main() -> None:
    """Print a table for each run, and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(checkpoint.SHAPES))
    parser.add_argument("--work", type=Path, help="where the checkpoint is kept")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--layers", type=int, help="for a trial: so many layers")
    parser.add_argument("--tokens", default="2048", help="to evaluate; or auto")
    parser.add_argument("--set", dest="sets", nargs="+", default=[])
    parser.add_argument("--variant", nargs="+", default=list(VARIANT))
    parser.add_argument("--no-bare", action="store_true", help="leave the bare builder out")
    chosen = parser.parse_args()
    host = speed.host()
    print(f"{host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB, {host['system']}")
    with tempfile.TemporaryDirectory() as temporary:
        work = (chosen.work or Path(temporary)).resolve()
        source = work / chosen.name
        if not source.exists():
            fewer = {"num_hidden_layers": chosen.layers} if chosen.layers else {}
            checkpoint.write(source, checkpoint.config(chosen.name) | fewer)
        for name in ("cache", "packages"):
            shutil.rmtree(work / name, ignore_errors=True)
        sets = [*USUAL, f"source={{path: {json.dumps(source.as_posix())}}}"]
        sets += [f"evaluate.tokens={chosen.tokens}", *chosen.sets]
        first = run(chosen.recipe, work, "first", sets)
        table("First run", first)
        second = run(chosen.recipe, work, "second", [*sets, *chosen.variant])
        table(f"Second variant ({', '.join(chosen.variant)})", second)
        print(f"\nsecond / first: {second['seconds'] / first['seconds']:.2f}")
        if not chosen.no_bare:
            scratch = Path(tempfile.mkdtemp(dir=work))
            builder = fullsize.upstream(source, scratch, Settings.read(), "onnxruntime")
            alone = fullsize.bare(builder, scratch)
            shutil.rmtree(scratch)
            print(
                f"bare ONNX Runtime builder: {alone.seconds:.0f} s, "
                f"{alone.peak_anon_bytes / 2**30:.1f} GiB anonymous; "
                f"first run / builder: {first['seconds'] / alone.seconds:.2f}"
            )


if __name__ == "__main__":
    main()
