"""What artifacts are scored against: the baseline's log-probabilities of every token, or of the
likeliest few.

All of them take 4 bytes × vocabulary for each position: too much to travel. A package carries the
``TOP`` likeliest of each position and the mass of the rest, by which it is measured on its device.
All other tokens count as one there, so the divergence is a lower bound of the full one (data
processing inequality; Cover & Thomas, 2.8).
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phipipe.errors import StepFailed
from phipipe.steps import Inputs, Params

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int32]
    Scores = Callable[
        [int, Floats, Ints], dict[str, Floats]
    ]  # window, its logits, its tokens → ``score``

TOP = 64
TOKENS = 16_384  # at most; with 64 log-probabilities and ids each, 8 MiB
FOLDER = "reference"
# A block of logits and what is made of it stay in a processor's second cache: passes over a window
# of 200,064 entries go to memory each time.
BLOCK_BYTES = 2**20


def keep(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: what of ``inputs["baseline"]`` travels with a package: its first windows, their
    likeliest tokens.

    ``params``: top, tokens (at most). Writes ``tokens.npy`` int32 [windows, window],
    ``baseline.json`` and ``top.npz``: ids int32 and logp float32 [windows, window - 1, top], rest
    (log mass of all others) and true (the next token's log-probability) float32 [windows, window -
    1], vocabulary.
    """
    import numpy as np

    baseline = inputs["baseline"]
    tokens = np.load(baseline / "tokens.npy", allow_pickle=False)
    tokens = tokens[: max(1, int(params["tokens"]) // tokens.shape[1])]
    logprobs = np.load(baseline / "logprobs.npy", mmap_mode="r", allow_pickle=False)
    rows = [
        _top(np.array(logprobs[i, :-1]), window[1:], int(params["top"]))
        for i, window in enumerate(tokens)
    ]
    np.save(out / "tokens.npy", tokens)
    stacked: dict[str, Any] = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    np.savez(out / "top.npz", vocabulary=np.int32(logprobs.shape[-1]), **stacked)
    shutil.copyfile(baseline / "baseline.json", out / "baseline.json")


def _top(logp: Floats, targets: Ints, count: int) -> dict[str, Any]:
    """The ``count`` likeliest of each row of ``logp`` [n, vocabulary], likeliest first; ``logp`` is
    overwritten."""
    import numpy as np

    rows = np.arange(len(logp))
    true = logp[rows, targets]
    count = min(count, logp.shape[1] - 1)
    ids = np.argpartition(-logp, count, axis=-1)[:, :count].astype(np.int32)
    # by falling probability, then by id: of equals, argmax names the first
    order = np.lexsort((ids, -np.take_along_axis(logp, ids, -1)))
    ids = np.take_along_axis(ids, order, -1)
    likeliest = np.take_along_axis(logp, ids, -1)
    return {"ids": ids, "logp": likeliest, "rest": _rest(logp, ids), "true": true}


def _rest(logp: Floats, ids: Ints) -> Floats:
    """Logarithm of the mass of all but ``ids`` in each row; ``logp`` is overwritten."""
    import numpy as np

    np.put_along_axis(logp, ids, -np.inf, -1)
    with np.errstate(divide="ignore"):  # a mass that underflows is no mass
        rest: Floats = np.log(np.exp(logp.astype(np.float64)).sum(-1)).astype(np.float32)
    return rest


def scores_of(folder: Path) -> Scores:
    """How to score a window's logits against what lies in ``folder``: a baseline, or what ``keep``
    kept of one."""
    import numpy as np

    if (folder / "logprobs.npy").is_file():
        logprobs = np.load(folder / "logprobs.npy", mmap_mode="r", allow_pickle=False)
        return lambda i, logits, window: score(logprobs[i], logits, window)
    with np.load(folder / "top.npz", allow_pickle=False) as archive:
        stored = dict(archive)
    return lambda i, logits, window: _score_top(stored, i, logits, window)


def score(logp: Floats, logits: Floats, tokens: Ints) -> dict[str, Floats]:
    """Per-position numbers of one window.

    Args:
        logp: the baseline's log-probabilities, float32 [n, vocabulary].
        logits: the artifact's logits, float32 [n, at least vocabulary]; overwritten.
        tokens: int32 [n].

    Returns:
        float32 [n - 1] each: kld, top1 (0 or 1), nll, nll_baseline, dp.

    Raises:
        StepFailed: the artifact's vocabulary is smaller than the source's.
    """
    import numpy as np

    vocabulary = logp.shape[1]
    _check_vocabulary(logits, vocabulary)
    parts = [
        _score_rows(logp[rows], logits[rows, :vocabulary], tokens[1:][rows])
        for rows in blocks(len(tokens) - 1, vocabulary)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _score_rows(p: Floats, logits: Floats, targets: Ints) -> dict[str, Floats]:
    """``score`` of positions that lie in the processor's cache together."""
    import numpy as np

    q = log_softmax(logits)
    rows = np.arange(len(targets))
    logp_true, logq_true = p[rows, targets], q[rows, targets]
    top1 = p.argmax(-1) == q.argmax(-1)
    np.subtract(p, q, out=q)
    q *= np.exp(p)
    return {
        # numpy sums pairwise: float32 keeps 1e-7 even over 200,000 entries; below zero is rounding
        # alone
        "kld": np.maximum(q.sum(-1), 0),
        "top1": top1.astype(np.float32),
        "nll": -logq_true,
        "nll_baseline": -logp_true,
        "dp": np.exp(logq_true) - np.exp(logp_true),
    }


def blocks(rows: int, vocabulary: int) -> Iterator[slice]:
    """Slices of so many rows of a vocabulary that fit into ``BLOCK_BYTES`` each, in order."""
    step = max(1, BLOCK_BYTES // (4 * vocabulary))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def log_softmax(logits: Floats) -> Floats:
    """Natural log-probabilities over the last axis; in place, float32 [..., n, vocabulary]."""
    import numpy as np

    for rows in blocks(*logits.shape[-2:]):
        block = logits[..., rows, :]
        block -= block.max(-1, keepdims=True)
        block -= np.log(np.exp(block).sum(-1, keepdims=True))
    return logits


def _score_top(stored: dict[str, Any], i: int, logits: Floats, tokens: Ints) -> dict[str, Floats]:
    """``score`` for window ``i`` of what ``keep`` stored."""
    import numpy as np

    vocabulary = int(stored["vocabulary"])
    _check_vocabulary(logits, vocabulary)
    ids, logp, rest = stored["ids"][i], stored["logp"][i], stored["rest"][i]
    q = log_softmax(logits[:-1, :vocabulary])
    logq_true, logp_true = q[np.arange(len(tokens) - 1), tokens[1:]], stored["true"][i]
    top1 = q.argmax(-1) == ids[:, 0]
    kld = (np.exp(logp) * (logp - np.take_along_axis(q, ids, -1))).sum(-1)
    other = _rest(q, ids)
    there = np.isfinite(rest)
    kld[there] += np.exp(rest[there]) * (rest[there] - other[there])
    return {
        "kld": np.maximum(kld, 0),
        "top1": top1.astype(np.float32),
        "nll": -logq_true,
        "nll_baseline": -logp_true,
        "dp": np.exp(logq_true) - np.exp(logp_true),
    }


def _check_vocabulary(logits: Floats, vocabulary: int) -> None:
    if logits.shape[1] < vocabulary:
        raise StepFailed(
            f"the artifact predicts {logits.shape[1]} tokens, the source model {vocabulary}"
        )
