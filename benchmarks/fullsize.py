"""A family member at its real size through phipipe's int4 steps and through the bare upstream
tools, one by one.

    python benchmarks/fullsize.py phi-3.5-mini [--work FOLDER] [--only onnxruntime llamacpp]
    [--no-bare]

The checkpoint is random (``checkpoint.py``) and not part of any time; neither are evaluation and
toolchains. Memory is the peak of the whole process tree: anonymous (what a machine must have) and
resident (with mapped files, which the system drops when memory is short). Upstream's results are
removed at once. At last phipipe makes all files in one run. Read the ratios, not the seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import board
import checkpoint
import psutil

from phipipe import backends
from phipipe.cli.listeners import Silent
from phipipe.evaluate import speed
from phipipe.execution import dispatch
from phipipe.execution.manner import Manner
from phipipe.execution.results import Outcome
from phipipe.execution.watch import memory_of
from phipipe.planning import preparation
from phipipe.planning.plan import Plan
from phipipe.processes import children
from phipipe.recipe import loading
from phipipe.settings import Settings
from phipipe.store.store import Store
from phipipe.toolchains import environments

RECIPES: Mapping[str, str] = {
    "onnxruntime": "device: cpu-x86_64\nquantize: {block_size: 32}",
    "openvino": "device: intel-cpu\nquantize: {symmetric: true, group_size: 128}",
    "llamacpp": "device: cpu-x86_64\nquantize: {type: Q4_K_M}",
    "mlx": "device: mac-16gb\nquantize: {group_size: 64}",
}
MAKING = ("outline", "convert", "quantize")


@dataclass
class Cost:
    """What one way of making one file took. Sizes in bytes."""

    seconds: float = 0.0
    peak_anon_bytes: int = 0
    peak_rss_bytes: int = 0
    disk_bytes: int = 0  # written, intermediate files included

    def add(self, other: Cost) -> None:
        """Another command of the same way: one after the other, its files beside the first's."""
        self.seconds += other.seconds
        self.disk_bytes += other.disk_bytes
        self.peak_anon_bytes = max(self.peak_anon_bytes, other.peak_anon_bytes)
        self.peak_rss_bytes = max(self.peak_rss_bytes, other.peak_rss_bytes)


def size_of(folder: Path) -> int:
    """Bytes of all files in ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def plan_of(source: Path, backend: str) -> Plan:
    """The plan of a whole build of the checkpoint in ``source``."""
    text = (
        f"name: {backend}\nsource: {{path: {source.as_posix()}}}\nbackend: {backend}\n"
        f"precision: int4\n{RECIPES[backend]}\nevaluate: {{text: {{builtin: stories}}}}\n"
    )
    path = source.parent / f"{backend}.yaml"
    path.write_text(text, "utf-8")
    (build,) = loading.load(path, options=backends.OptionsOf())
    return preparation.prepare(build)


def made(
    plans: Sequence[Plan], store: Store, settings: Settings, jobs: int | None
) -> tuple[float, Sequence[Outcome]]:
    """Seconds that the steps take from the stored checkpoint to the files of ``plans``."""
    seconds, ends = 0.0, list[Outcome]()
    # The first alone: storing the checkpoint is not converting it.
    for wanted in (("source",), ("source", *MAKING)):
        parts = [
            replace(p, steps=tuple(replace(s, after=()) for s in p.steps if s.name in wanted))
            for p in plans
        ]
        start = time.perf_counter()
        ends = dispatch.attempt(parts, store, settings, Silent(), Manner(jobs=jobs))
        seconds = time.perf_counter() - start
        for one in ends:
            if one.error:
                raise SystemExit(one.error.message)
    return seconds, ends


def ours(source: Path, store: Store, settings: Settings, backend: str) -> Cost:
    """phipipe's steps from the stored checkpoint to the int4 file."""
    cost = Cost()
    cost.seconds, (outcome,) = made([plan_of(source, backend)], store, settings, 1)
    for result in outcome.results.values():
        if result.step.name in MAKING and not result.cached:
            anon, rss = (int(result.usage[f"peak_{kind}_bytes"]) for kind in ("anon", "rss"))
            cost.add(Cost(0.0, anon, rss, result.stored.size_bytes))
            print(
                f"  {result.step.name}: {result.usage['seconds']:.0f} s, {anon / 2**30:.2f} GiB "
                f"anonymous",
                flush=True,
            )
    return cost


def upstream(
    source: Path, work: Path, settings: Settings, backend: str
) -> Sequence[Sequence[str | Path]]:
    """The bare tools' commands for the same file, written to ``work``."""
    python = environments.ensure(backend, settings, print).python
    if backend == "onnxruntime":
        build = (python, "-m", "onnxruntime_genai.models.builder", "-m", source, "-i", source)
        build += ("-e", "cpu", "-c", work / "builder-cache")
        return [(*build, "-p", "int4", "-o", work / "onnx")]
    if backend == "openvino":
        export = (python, "-m", "optimum.commands.optimum_cli", "export", "openvino")
        export += ("--model", source, "--task", "text-generation-with-past")
        rounding = ("--weight-format", "int4", "--sym", "--group-size", "128", "--ratio", "1.0")
        return [(*export, *rounding, work / "ov")]
    if backend == "mlx":
        convert = (python, "-m", "mlx_lm", "convert", "--hf-path", source)
        convert += ("--mlx-path", work / "mlx")
        return [(*convert, "-q", "--q-bits", "4", "--q-group-size", "64")]
    converter = (
        environments.ensure("torch", settings, print).python,
        board.converter(work),
        source,
    )
    return [
        (*converter, "--outtype", "bf16", "--outfile", work / "bf16.gguf"),
        (python, "-c", board.QUANTIZE, work / "bf16.gguf", work / "q.gguf", "Q4_K_M"),
    ]


def bare(commands: Sequence[Sequence[str | Path]], work: Path) -> Cost:
    """Run ``commands`` and look at their memory ten times a second."""
    total = Cost()
    quiet = dict(os.environ) | {"HF_HUB_OFFLINE": "1", "NNCF_CI": "1"}
    for command in commands:
        log, start = work / "log.txt", time.perf_counter()
        with log.open("w", encoding="utf-8") as stream:
            process = subprocess.Popen(
                [str(w) for w in command], env=quiet, stdout=stream, stderr=stream
            )
            cost = Cost()
            while process.poll() is None:
                cost.add(Cost(0.0, *memory(process.pid)))
                time.sleep(0.1)
        cost.seconds = time.perf_counter() - start
        if process.returncode:
            raise SystemExit(
                f"{' '.join(map(str, command))} "
                f"failed:\n{log.read_text('utf-8', 'replace')[-3000:]}"
            )
        total.add(cost)
    total.disk_bytes = size_of(work)
    return total


def memory(pid: int) -> tuple[int, int]:
    """(anonymous, resident) bytes of the process and its children."""
    anon = rss = 0
    for member in children.tree(pid):
        try:
            resident, private = memory_of(member)
        except (psutil.Error, OSError):  # it has just ended
            continue
        anon, rss = anon + private, rss + resident
    return anon, rss


def main() -> None:
    """Print one line per backend: ours, upstream's, the ratios; and the sum."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(checkpoint.SHAPES))
    parser.add_argument(
        "--work", type=Path, help="where the checkpoint is kept; a temporary folder without it"
    )
    parser.add_argument("--only", nargs="+", choices=sorted(RECIPES), default=list(RECIPES))
    parser.add_argument("--no-bare", action="store_true", help="leave upstream's tools out")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = chosen.work or Path(temporary)
        source, settings = work / chosen.name, Settings.read()
        if not source.exists():
            checkpoint.write(source, checkpoint.config(chosen.name))
        store = Store(work / "cache")
        for backend in chosen.only:
            environments.ensure(backend, settings, print)
        host = speed.host()
        print(
            f"{host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB, "
            f"{host['system']}\n"
        )
        rows = {}
        for backend in chosen.only:
            print(f"{backend}, phipipe", flush=True)
            pair = [ours(source, store, settings, backend)]
            if not chosen.no_bare:
                scratch = Path(tempfile.mkdtemp(dir=work))
                print(f"{backend}, upstream", flush=True)
                pair.append(bare(upstream(source, scratch, settings, backend), scratch))
                shutil.rmtree(scratch)
            rows[backend] = pair
            (work / "fullsize.json").write_text(
                json.dumps({n: [asdict(c) for c in p] for n, p in rows.items()}, indent=2), "utf-8"
            )
        together_s = None
        if len(rows) > 1:
            print("all in one run, phipipe", flush=True)
            plans = [plan_of(source, backend) for backend in rows]
            together_s, _ = made(plans, Store(work / "cache-of-all"), settings, None)
        table(rows, together_s)


def table(rows: Mapping[str, Sequence[Cost]], together_s: float | None) -> None:
    """Time, anonymous and resident peak, disk: ours / upstream's (ratio); the sums, and what all of
    ours took in one run."""
    print(
        "\n| runtime | time | peak memory, anonymous | resident | written "
        "|\n|---|---:|---:|---:|---:|"
    )
    for name, costs in rows.items():
        cells = [
            _cell([cost.seconds for cost in costs], "s", 0),
            *(_cell([getattr(c, kind) / 2**30 for c in costs], "GiB", 1)
              for kind in ("peak_anon_bytes", "peak_rss_bytes", "disk_bytes")),
        ]  # fmt: skip
        print(f"| {name} | " + " | ".join(cells) + " |")
    sums = [
        sum(costs[i].seconds for costs in rows.values())
        for i in range(min(map(len, rows.values())))
    ]
    print(f"| one after another | {_cell(sums, 's', 0)} | | | |")
    if together_s is not None:
        print(f"| in one run | {_cell([together_s, *sums[1:]], 's', 0)} | | | |")


def _cell(values: Sequence[float], unit: str, digits: int) -> str:
    text = " / ".join(f"{value:.{digits}f}" for value in values) + f" {unit}"
    return text + (f" ({values[0] / values[1]:.2f} ×)" if len(values) > 1 and values[1] else "")


if __name__ == "__main__":
    main()
