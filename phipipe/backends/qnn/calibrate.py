"""Calibration: the ranges that values of the float graphs take while they read a text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from phipipe import progress
from phipipe.backends.qnn.calibration import Extent, Reading
from phipipe.backends.qnn.stages import stages
from phipipe.steps import Inputs, Params

RANGES = "ranges.json"
Seen = Mapping[str, Mapping[str, Extent]]
"""By length ("prompt", "token") and value: the lowest and the highest that was seen."""


def calibrate(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: what the graphs of ``inputs["model"]`` compute while they read
    ``inputs["calibration"]``'s tokens, as ``ranges.json``.

    No bits are in it: all precisions and maps of one model rest on the same ranges. One stage is in
    memory at a time.

    Raises:
        StepFailed: the text is too short.
    """
    tokens = np.load(inputs["calibration"] / "tokens.npy", allow_pickle=False)
    reading = Reading(inputs["model"], tokens)
    every = progress.each(list(stages(reading.facts)), "parts")
    seen = {stage: reading.through(stage) for stage in every}
    (out / RANGES).write_text(json.dumps(seen, sort_keys=True) + "\n", "utf-8")


def ranges_of(folder: Path, stage: str) -> Seen:
    """What ``calibrate`` left in ``folder`` of ``stage``; numbers are what they were, bit for
    bit."""
    found = json.loads((folder / RANGES).read_text("utf-8"))[stage]
    return {
        kind: {name: (low, high) for name, (low, high) in values.items()}
        for kind, values in found.items()
    }
