"""Builds whose steps take no time, in place of the planner's: ``install`` them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from phipipe.batch import accept
from phipipe.errors import GateFailed, StepFailed, TargetError
from phipipe.package import manifest
from phipipe.planning import preparation
from phipipe.planning.alike import Planner
from phipipe.planning.plan import Plan
from phipipe.recipe import device as devices
from phipipe.recipe.build import Build
from phipipe.steps import Step
from testing import small_package

STEPS = {name: f"{__name__}:{name}" for name in ("take", "evaluate", "measure", "gates", "package")}

CALLS: list[str] = []
FIGURES: dict[
    str, dict[str, float]
] = {}  # build → what will be measured of it; anything else as USUAL
TROUBLE: dict[str, str] = {}  # build → "refused", "failed", "gated"
USUAL = {"kld_mean": 0.02, "top1": 0.95, "size_gib": 2.0, "bits_per_weight": 4.5}
BASELINE = {"tokens": 4096, "window": 512, "skip": 0, "ppl": 5.3, "ppl_stderr": 0.1}
HOST = {"cores": 2, "machine": "x86_64", "memory_gib": 24, "processor": "some", "system": "Linux"}


def take(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    CALLS.append(f"take {params['what']}")
    (out / "content.txt").write_text(str(params["what"]))


def evaluate(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    CALLS.append(f"evaluate {params['name']}")
    if params.get("trouble") == "failed":
        raise StepFailed("the tool said \x1b[31mno\x1b[0m <&>", hint="try less")
    fidelity = {"metrics": params["figures"], "stderr": {"kld_mean": 1e-4}, "sanity": {}}
    (out / "metrics.json").write_text(json.dumps(fidelity))
    if "decode_tokens_per_s" in params["figures"]:
        raise AssertionError("speed is measured elsewhere")


def measure(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    speed = {"metrics": params["speed"], "spread": {}, "host": params["host"], "prompt_tokens": 128}
    (out / "speed.json").write_text(json.dumps(speed))


def gates(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    if params.get("trouble") == "gated":
        raise GateFailed("gate failed: `kld_mean` is 0.3, the recipe wants max 0.1")
    (out / "gates.json").write_text("[]")


def package(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    CALLS.append(f"package {params['name']}")
    (out / "model.onnx.data").write_bytes(b"x" * 100)
    metrics = json.loads((inputs["metrics"] / "metrics.json").read_text())
    profile = {"by_position": [0.01] * 32, "quantiles": [0.01] * 101}
    text = (inputs["text"] / "content.txt").read_text()
    told = {name: params[name] for name in ("name", "backend", "precision")}
    made = small_package.described()
    of_source = {
        "name": params["source"],
        "digest": hashlib.sha256(params["source"].encode()).hexdigest(),
    }
    of_text = hashlib.sha256(text.encode()).hexdigest()
    described = {
        **made,
        **told,
        "recipe": {name: told[name] for name in ("backend", "precision")},
        "source": {**made["source"], **of_source},
        "fidelity": {
            **metrics,
            "profile": profile,
            "baseline": {**BASELINE, "tokens": params["tokens"]},
        },
        "speed": json.loads((inputs["speed"] / "speed.json").read_text()),
        "steps": {
            name: {"key": name, "digest": of_text, "tools": {}}
            for name in ("text", "source", "gates")
        },
    }
    manifest.seal(out, described)


def _step(
    name: str, needs: Mapping[str, str] | None = None, function: str = "", /, **params: Any
) -> Step:
    runs = f"{__name__}/{function or name}"
    return Step(name=name, runs=runs, version=1, needs=dict(needs or {}), params=params)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every build planned by ``prepare``, or by what a test sets in its place."""
    monkeypatch.setattr(preparation, "prepare", prepare)
    # builds of one kind are none here: what a test says, it says of one by its name
    monkeypatch.setattr(Planner, "plan", lambda planner, build: preparation.prepare(build))


def prepare(build: Build, read: object = None, *, elsewhere: bool = False) -> Plan:
    """In place of ``preparation.prepare``: steps that take no time, by what the test says of this
    build."""
    recipe, name = build.recipe, build.name
    if TROUBLE.get(name) == "refused":
        raise TargetError("cannot be", hint="take another device")
    figures = USUAL | FIGURES.get(name, {})
    fidelity = {n: v for n, v in figures.items() if n not in accept.SPEEDS}
    speed = {n: v for n, v in figures.items() if n in accept.SPEEDS}
    trouble = {"trouble": TROUBLE.get(name)}
    source = str(recipe.source.builtin or recipe.source.path)
    told = {"backend": recipe.backend, "precision": recipe.precision, "source": source}
    host = {**HOST, "cores": int(figures.get("cores", 2))}
    steps = (
        _step("source", {}, "take", what=source),
        _step("text", {}, "take", what=recipe.evaluate.text.file or "stories"),
        _step(
            "evaluate", {"source": "source", "text": "text"}, name=name, figures=fidelity, **trouble
        ),
        _step("measure", {"source": "source"}, speed=speed, host=host),
        _step("gates", {"metrics": "evaluate"}, **trouble),
        _step(
            "package",
            {"metrics": "evaluate", "speed": "measure", "gates": "gates", "text": "text"},
            name=name,
            tokens=recipe.evaluate.most_tokens,
            **told,
        ),
    )
    return Plan(
        build=build, device=devices.load("cpu-x86_64"), api="cpu", on_target="true", steps=steps
    )
