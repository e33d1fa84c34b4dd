"""How much a dtype's own rounding moves a model: the yardstick of conversions that store it.

How sensitive a model is decides what rounding may cost: mean KL divergence of BF16 is 7e-7 nats on
the embedded model, and 1e-4 on a trained one of 135 million parameters. So it is measured on the
very model, in PyTorch.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import torch

from phipipe import progress
from phipipe.errors import StepFailed
from phipipe.evaluate import reference, reports
from phipipe.evaluate.reports import Rounding
from phipipe.models.layerwise import Layerwise
from phipipe.steps import Inputs, Params

TOKENS = 1024  # of the baseline's; its windows differ by a third from one another


def measure(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: score the source with its weights and activations rounded to ``params["dtype"]``.

    ``inputs``: source, baseline. Writes ``rounding.json``.

    Raises:
        StepFailed: the dtype cannot hold the weights.
    """
    tokens = np.load(inputs["baseline"] / "tokens.npy")
    windows = tokens[: max(1, TOKENS // tokens.shape[1])]
    scores = reference.scores_of(inputs["baseline"])
    model = Layerwise(inputs["source"], rounded=getattr(torch, params["dtype"]))
    rows = [
        scores(i, np.ascontiguousarray(logits), windows[i])["kld"]
        for i, logits in enumerate(islice(model.logits(windows.tolist()), len(windows)))
    ]
    progress.scored(int(windows.size))
    kld_mean = float(np.mean(rows, dtype=np.float64))
    if not np.isfinite(kld_mean):
        raise StepFailed(
            f"{params['dtype']} cannot hold this model: some of its weights are too large for it",
            hint="choose `precision: fp32`, or a backend that stores bfloat16",
        )
    reports.write(out, Rounding(dtype=params["dtype"], kld_mean=kld_mean))
