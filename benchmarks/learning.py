"""What learning costs at full size: the steps `weights` (gptq) and `sensitivity` on the first
layers of a random model with a real shape.

    python benchmarks/learning.py [phi-3.5-mini] [--work FOLDER] [--layers 2] [--tokens 12288]

All layers cost the same: the difference between a model of one layer and one of ``--layers`` says
what a layer takes, and the sum what all would take. Memory is the peak of the larger model.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import checkpoint

from phipipe import backends
from phipipe.cli.listeners import Silent
from phipipe.evaluate import speed
from phipipe.execution import dispatch
from phipipe.execution.manner import Manner
from phipipe.planning import preparation
from phipipe.recipe import loading
from phipipe.settings import Settings
from phipipe.store.store import Store
from phipipe.toolchains import environments

RECIPE = """\
name: learning
source: {{path: "{source}"}}
device: cpu-x86_64
backend: onnxruntime
precision: int4
weights: {{learn: gptq}}
calibrate: {{text: {{builtin: stories}}, tokens: {tokens}}}
evaluate: {{text: {{file: other.txt}}}}
"""
MEASURED = ("weights", "sensitivity")
Usage = Mapping[str, float]


def usage_of(source: Path, tokens: int) -> dict[str, Usage]:
    """Step → what it took for the checkpoint in ``source``: seconds, peak_anon_bytes, …"""
    work, settings = source.parent, Settings.read()
    path = work / f"{source.name}.yaml"
    path.write_text(RECIPE.format(source=source.as_posix(), tokens=tokens), "utf-8")
    (work / "other.txt").write_text("Nothing is evaluated here. " * 400, "utf-8")
    (build,) = loading.load(path, options=backends.OptionsOf())
    plan = preparation.prepare(build)
    named = {step.name: step for step in plan.steps}
    learning = named["weights"]
    sensitivity = replace(
        learning, name="sensitivity", runs="algorithms/sensitivity", params={"tokens": 2048}
    )
    wanted = [learning]
    for step in wanted:
        wanted += [named[name] for name in step.needs.values() if named[name] not in wanted]
    steps = [step for step in plan.steps if step in wanted]
    plan = replace(plan, steps=tuple(replace(s, after=()) for s in [*steps, sensitivity]))
    (outcome,) = dispatch.attempt([plan], Store(work / "cache"), settings, Silent(), Manner(jobs=1))
    if outcome.error:
        raise SystemExit(outcome.error.message)
    return {r.step.name: r.usage for r in outcome.results.values() if r.step.name in MEASURED}


def main() -> None:
    """Print one line for each step."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "name", choices=sorted(checkpoint.SHAPES), nargs="?", default="phi-3.5-mini"
    )
    parser.add_argument("--work", type=Path, help="a temporary folder without it")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=12_288)
    chosen = parser.parse_args()
    environments.ensure("torch", Settings.read(), print)
    host, shape = speed.host(), checkpoint.config(chosen.name)
    print(f"{host['processor']}, {host['cores']} cores, {host['memory_gib']} GiB, {host['system']}")
    whole, few = int(shape["num_hidden_layers"]), (1, chosen.layers)
    with tempfile.TemporaryDirectory() as temporary:
        work, taken = chosen.work or Path(temporary), []
        for layers in few:
            source = work / f"{chosen.name}-{layers}"
            if not source.exists():
                checkpoint.write(source, {**shape, "num_hidden_layers": layers})
            taken.append(usage_of(source, chosen.tokens))
    for name in MEASURED:
        one, more = (usage[name]["seconds"] for usage in taken)
        layer = (more - one) / (few[1] - few[0])
        gib = taken[1][name]["peak_anon_bytes"] / 2**30
        minutes = (one + (whole - 1) * layer) / 60
        print(f"{name}: {layer:.1f} s a layer, {gib:.2f} GiB; all {whole} layers {minutes:.0f} min")


if __name__ == "__main__":
    main()
