"""How a batch scales: planning many recipes of few sources, looking up what is cached, running what
is not.

    python benchmarks/batch.py [--recipes 10000] [--steps 2000]

Planning is the real thing, from YAML files to one graph; the steps that run do nothing but write a
small file. Nothing leaves a temporary folder.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil

from phipipe import backends
from phipipe.batch import batch, selection
from phipipe.batch.selection import Wanted
from phipipe.cli.listeners import Silent
from phipipe.execution import dispatch
from phipipe.execution.nodes import graph
from phipipe.hub import take
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.steps import Step
from phipipe.store.store import Store

SOURCES = 50
VARIANTS = [
    (b, p, n)
    for b in ("onnxruntime", "openvino", "llamacpp", "torch")
    for p in ("int4", "int8")
    for n in (0, 1)
]
LENGTH = 10  # steps of a build, one after another
STEPS = {"write": "batch:write"}


def write(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """A step that takes no time."""
    (out / "file.txt").write_text(str(params["n"]), "utf-8")


@contextlib.contextmanager
def timed(what: str, per: int, unit: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    took = time.perf_counter() - start
    resident = psutil.Process().memory_info().rss / 2**20
    print(
        f"{what:44} {took:7.2f} s  {1000 * took / per:6.2f} ms per {unit}  {resident:5.0f} MiB "
        f"resident",
        flush=True,
    )


def recipes(folder: Path, count: int) -> None:
    """``count`` recipe files of ``SOURCES`` checkpoints, which share one weight file's bytes."""
    embedded = take.BUILTIN_MODELS["tiny-phi3"]
    for i in range(SOURCES):
        model = folder / f"model-{i}"
        model.mkdir()
        for path in embedded.iterdir():
            if path.suffix == ".safetensors":
                os.link(
                    shutil.copyfile(path, folder / "weights") if i == 0 else folder / "weights",
                    model / path.name,
                )
            else:
                shutil.copyfile(path, model / path.name)
    for i in range(count):
        backend, precision, more = VARIANTS[i // SOURCES % len(VARIANTS)]
        (folder / f"r{i:06d}.yaml").write_text(
            f"name: r{i:06d}\nsource: {{path: ./model-{i % SOURCES}}}\ndevice: "
            f"cpu-x86_64\nbackend: {backend}\n"
            f"precision: {precision}\ntags: [bench]\nevaluate:\n  tokens: {4096 + 512 * more}\n"
            "  gates: {kld_mean: {max: 0.5}}\n",
            "utf-8",
        )


def planning(folder: Path, count: int) -> None:
    recipes(folder, count)
    environment = {
        "PHIPIPE_CACHE": str(folder / "cache"),
        "PHIPIPE_PREFLIGHT": "off",
    }  # nothing will be written
    store, settings = Store(folder / "cache"), Settings.read(environment)
    with timed(f"planning {count} recipes of {SOURCES} sources", count, "recipe"):
        items = selection.select([folder], Wanted(tags=["bench"]), backends.OptionsOf())
        batch.plan(items, store, settings, folder / "out")
        plans = [item.plan for item in items if item.plan]
        nodes, _ = graph(plans)
    steps = sum(len(plan.steps) for plan in plans)
    print(f"  {len(plans)} plans, {steps} steps, {len(nodes)} of them distinct")
    for item in items[:1]:
        if item.error:
            print(f"  first refusal: {item.error}")


def chains(count: int) -> list[Plan]:
    """Builds of ``LENGTH`` steps each, the first of which all share."""
    plans = []
    for build in range(count // LENGTH):
        steps = [Step(name="s0", runs="batch/write", version=1, params={"n": 0})]
        for i in range(1, LENGTH):
            step = Step(
                name=f"s{i}",
                runs="batch/write",
                version=1,
                needs={"x": f"s{i - 1}"},
                params={"n": f"{build} {i}"},
            )
            steps.append(step)
        recipe = SimpleNamespace(backend="none", cache=SimpleNamespace(keep=None))
        named: Any = SimpleNamespace(name=f"b{build}", recipe=recipe)
        no_device: Any = None
        plan: Any = Plan(
            build=named, device=no_device, api="cpu", on_target="false", steps=tuple(steps)
        )
        plans.append(plan)
    return plans


def running(folder: Path, count: int) -> None:
    settings = Settings.read({"PHIPIPE_CACHE": str(folder / "cache")})
    plans = chains(count)
    for what in ("running", "looking up"):
        with timed(f"{what} {count} steps of {len(plans)} builds", count, "step"):
            outcomes = dispatch.attempt(plans, Store(settings.cache), settings, Silent())
        assert all(outcome.error is None for outcome in outcomes)
        assert all(outcome.all_cached for outcome in outcomes) == (what == "looking up")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipes", type=int, default=10_000)
    parser.add_argument("--steps", type=int, default=2_000)
    asked = parser.parse_args()
    sys.modules["batch"] = sys.modules[__name__]  # where steps are looked for
    for part, size in ((running, asked.steps), (planning, asked.recipes)):
        if size:
            with tempfile.TemporaryDirectory(prefix="phipipe-bench-") as folder:
                part(Path(folder), size)


if __name__ == "__main__":
    main()
