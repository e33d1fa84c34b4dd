"""Which windows of a text are scored where the recipe asks for as many as it takes
(``evaluate.tokens: auto``), and what of them a report keeps, so that builds compare.

Windows are known by their place in the text: window ``i`` is the same tokens in every build of one
text. Builds that stopped at different ones are compared over those that both have.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterable, Sequence

from phipipe.evaluate.reports import Metrics, Sampling

SEED = "phipipe: windows of the evaluation text"  # a constant, so that all builds share one order
REASONS = {
    "decided": "every gate decided and the error of the KL divergence below 5 %",
    "cap": "the most that `auto` scores",
    "text": "the text ended",
    "asked": "as many as the recipe asks for",
}
# Per window: the names are those of ``reference.score``, but for the square of ``dp``.
FIGURES = ("kld", "top1", "nll", "nll_baseline", "dp_square")
# Metrics that are no means over positions, and not known of some windows alone.
MOST_NATS = 300.0  # of a mean: its exponential, and a ratio of two, are still numbers
WHOLE = frozenset({"kld_median", "kld_p99", "kld_max"})
MEANS = frozenset({"kld_mean", "kld_run", "top1", "ppl", "ppl_ratio", "dp_rms"})


def order(count: int) -> list[int]:
    """The windows ``0 … count - 1``, shuffled by the constant ``SEED``: sorted by a hash of their
    place. So it needs no library's generator, which may change, and fewer windows come in the same
    order as among more of them."""
    return sorted(range(count), key=lambda i: hashlib.sha256(f"{SEED} {i}".encode()).digest())


def words(sampling: Sampling) -> str:
    """How much was scored, and why no more."""
    reason = REASONS.get(sampling.reason, sampling.reason)
    if sampling.tokens < sampling.cap:
        return f"{sampling.tokens:,} of at most {sampling.cap:,} tokens scored: {reason}"
    return f"{sampling.tokens:,} tokens scored: {reason}"


def original(sampling: Sampling) -> tuple[float, float] | None:
    """The original's perplexity over the windows scored, and its standard error between them; None
    where all were asked for, so that the baseline says it."""
    if sampling.reason == "asked":
        return None
    costs = [float(cost) for cost in sampling.figures["nll_baseline"]]
    perplexity = math.exp(statistics.fmean(costs))
    return perplexity, perplexity * _error(costs) if len(costs) > 1 else 0.0


def problem(one: Sampling) -> str | None:
    """What in it cannot be, in words; its file may come from a stranger."""
    if len(set(one.windows)) < len(one.windows):
        return "a window was scored twice"
    lengths = [len(one.figures.get(name, ())) for name in FIGURES]
    if any(length != len(one.windows) for length in lengths):
        return "not every window has all figures"
    costs = (*one.figures["nll"], *one.figures["nll_baseline"])
    return None if all(cost <= MOST_NATS for cost in costs) else "a perplexity is no number"


def shared(every: Iterable[Sampling | None]) -> tuple[int, ...] | None:
    """The windows that all of them scored, by their place in the text; None where one says nothing
    of its windows, or where all have the same."""
    sets = [None if one is None else frozenset(one.windows) for one in every]
    known = [one for one in sets if one is not None]
    if len(known) < len(sets) or len(set(known)) <= 1:
        return None
    return tuple(sorted(frozenset.intersection(*known)))


def over(sampling: Sampling, windows: Sequence[int]) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics that are means over positions, as ``windows`` alone give them, and standard errors
    between these windows (none of a single one).

    Raises:
        KeyError: one of ``windows`` was not scored.
    """
    place = {window: i for i, window in enumerate(sampling.windows)}
    rows = {
        name: [float(sampling.figures[name][place[window]]) for window in windows]
        for name in FIGURES
    }
    change = [a - b for a, b in zip(rows["nll"], rows["nll_baseline"], strict=True)]
    kld, top1, nll = (statistics.fmean(rows[name]) for name in ("kld", "top1", "nll"))
    ratio = math.exp(statistics.fmean(change))
    metrics = {
        "kld_mean": kld,
        "top1": top1,
        "ppl": math.exp(nll),
        "ppl_ratio": ratio,
        "dp_rms": math.sqrt(statistics.fmean(rows["dp_square"])),
    }
    if len(windows) < 2:
        return metrics, {}
    errors = {
        "kld_mean": _error(rows["kld"]),
        "top1": _error(rows["top1"]),
        "ppl": math.exp(nll) * _error(rows["nll"]),
        "ppl_ratio": ratio * _error(change),
    }
    return metrics, errors


def _error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))


def alike(before: Metrics, after: Metrics) -> tuple[Metrics, Metrics] | None:
    """Both over the windows that both have, without the metrics that are not known of these alone;
    None where nothing of fidelity compares. As they are where both scored the same."""
    samplings = before.sampling, after.sampling
    if samplings == (None, None):
        return before, after
    if before.sampling is None or after.sampling is None:
        return None
    windows = shared(samplings)
    if windows is None:
        return before, after
    return (_only(before, windows), _only(after, windows)) if windows else None


def _only(metrics: Metrics, windows: Sequence[int]) -> Metrics:
    assert metrics.sampling is not None
    figures, errors = over(metrics.sampling, windows)
    kept = {name: value for name, value in metrics.metrics.items() if name not in WHOLE}
    if metrics.run is not None and not metrics.run.how:  # both divergences are one
        figures = {**figures, "kld_run": figures["kld_mean"]}
    return metrics.model_copy(
        update={"metrics": {**kept, **figures}, "stderr": {**metrics.stderr, **errors}}
    )
