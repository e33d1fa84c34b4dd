"""What each way to store a matrix costs: the error of a backend's own rounding, weighed by how
sensitive the matrix is (``algorithms.fisher``)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phipipe import backends, progress
from phipipe.algorithms.sensitivity import ERRORS, ROWS, SENSITIVITY
from phipipe.backends.widths import Stored, from_params
from phipipe.errors import StepFailed
from phipipe.models import linears, matrices
from phipipe.steps import Inputs, Json, Params

Floats = npt.NDArray[np.float32]


def measure(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the predicted mean KL divergence, in nats, of each matrix in each of the ways that
    ``params["choices"]`` has for it (name → label → width), without those that it cannot have.

    ``inputs``: source, sensitivity. ``params``: backend, options (those with which it rounds).
    Writes ``errors.json``: name → label → loss.

    Raises:
        StepFailed: a loss is no number.
    """
    codec = _codec(params)
    with np.load(inputs["sensitivity"] / SENSITIVITY) as arrays:
        sensitivity = dict(arrays)
    stored = matrices.of(inputs["source"])
    losses: dict[str, dict[str, float]] = {}
    choices: Mapping[str, Mapping[str, Json]] = params["choices"]
    for name, labelled in progress.each(list(choices.items()), "matrices"):
        found = _Sensitive(sensitivity, name, tied=linears.HEAD not in stored)
        weight, rows = _sampled(stored[name])
        losses[name] = {}
        for label, width in from_params(labelled).items():
            try:
                held = codec(weight, width, found.squares)
            except StepFailed:  # these options cannot store such rows so
                continue
            losses[name][label] = loss = found.loss(weight, held, rows)
            if not np.isfinite(loss):
                raise StepFailed(f"the error of `{name}` at {width} is no number")
    (out / ERRORS).write_text(json.dumps(losses, indent=1) + "\n", "utf-8")


def _codec(params: Params) -> Callable[[Floats, Stored, Floats], Floats]:
    if not params["backend"]:
        from phipipe.algorithms import codecs

        return codecs.codec(params["options"])
    make = backends.load(params["backend"]).codec
    assert make is not None  # the plan has asked
    return make(params["options"])


def _sampled(stored: matrices.Stored) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Some rows of a matrix, evenly spread, and their numbers."""
    count = stored.shape[0]
    rows = np.unique(np.linspace(0, count - 1, min(count, ROWS)).astype(np.intp))
    return stored.rows(rows), rows


class _Sensitive:
    """How sensitive matrix ``name`` is; of one that is embedding and head at once, both together.

    ``squares`` float32 [columns]: the mean square of its inputs.
    """

    def __init__(self, arrays: Mapping[str, Floats], name: str, *, tied: bool) -> None:
        names = [name, linears.HEAD] if tied and name == linears.EMBEDDING else [name]
        self._parts = [(arrays[f"{one}.rows"], arrays[f"{one}.columns"]) for one in names]
        # nothing drives the rows of an embedding more than others
        squares = arrays[f"{names[-1]}.squares"]
        self.squares = np.zeros_like(squares) if names == [linears.EMBEDDING] else squares

    def loss(self, weight: Floats, held: Floats, rows: npt.NDArray[np.intp]) -> float:
        """½ · Σ F · (held − weight)² over the whole matrix, of which ``rows`` were looked at."""
        squared = np.square(held - weight, dtype=np.float64)
        total = 0.0
        for along_rows, along_columns in self._parts:
            drive = along_rows[rows].astype(np.float64)
            share = drive.sum()
            if share > 0:
                total += 0.5 * float(drive @ (squared @ along_columns)) / share
        return total
