"""Builds of small models that see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from phipipe.execution.results import Outcome
from phipipe.package import manifest
from phipipe.package.package import verify
from phipipe.planning.plan import Plan
from testing import plans

RECIPE = """
name: seeing
source: {path: SOURCE}
device: cpu-x86_64
backend: onnxruntime
precision: fp32
evaluate: {text: {builtin: stories}, tokens: 512, window: 256}
measure: {prompt_tokens: 16, new_tokens: 4, repetitions: 1}
"""


def planned(source: Path, *sets: str) -> Plan:
    """The plan of a small build of ``source``; the recipe is written beside it."""
    path = source.parent / "recipe.yaml"
    path.write_text(RECIPE.replace("SOURCE", source.as_posix()), "utf-8")
    return plans.planned(*sets, path=path)


def seen(done: Outcome) -> Any:
    assert done.error is None
    assert done.package is not None
    assert verify(done.package) == []
    return json.loads((done.package / manifest.NAME).read_text("utf-8"))["fidelity"]["vision"]
