"""How far an adapter takes the original from its base: what the training changed, beside what a
build loses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from phipipe import progress
from phipipe.evaluate import reports
from phipipe.evaluate.reports import Baseline, Change
from phipipe.steps import Inputs, Params


def change_by_adapter(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: compare two baselines on the same tokens.

    ``inputs``: tuned and base, each left by ``evaluate.fidelity.baseline``. With P the base's
    distribution over its vocabulary and Q the tuned model's: the mean of sum_v P(v) (ln P(v) - ln
    Q(v)), and how often both have the same first choice. Writes ``change.json``; without figures
    where an adapter's tokenizer cuts the text otherwise.
    """
    tuned, base = (reports.read(Baseline, inputs[name]) for name in ("tuned", "base"))
    tokens, others = (np.load(inputs[name] / "tokens.npy") for name in ("tuned", "base"))
    if tokens.shape != others.shape or not bool((tokens == others).all()):
        reports.write(out, Change(base_ppl=base.ppl))
        return
    q, p = (np.load(inputs[name] / "logprobs.npy", mmap_mode="r") for name in ("tuned", "base"))
    width = min(p.shape[-1], q.shape[-1])
    kld, same = [], []
    for i in range(len(p)):
        row_p, row_q = (rows[i, tuned.skip : -1, :width].astype(np.float64) for rows in (p, q))
        kld.append(np.sum(np.exp(row_p) * (row_p - row_q), axis=-1))
        same.append(row_p.argmax(-1) == row_q.argmax(-1))
        progress.report(i + 1, len(p), "windows")
    figures = {"kld_mean": np.concatenate(kld), "top1": np.concatenate(same).astype(np.float64)}
    count = figures["top1"].size
    report = Change(
        metrics={name: float(values.mean()) for name, values in figures.items()},
        stderr={
            name: float(values.std(ddof=1)) / math.sqrt(count) for name, values in figures.items()
        },
        positions=count,
        base_ppl=base.ppl,
    )
    reports.write(out, report)
