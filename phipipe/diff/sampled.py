"""Two sides that scored different windows of one text."""

from __future__ import annotations

from phipipe.evaluate import sampling
from phipipe.evaluate.reports import Metrics


def notes(before: Metrics, after: Metrics, window: int) -> list[str]:
    """What has to be known of their figures, whose windows have so many tokens."""
    windows = sampling.shared((before.sampling, after.sampling))
    if not windows:
        return []
    told = (before.sampling, after.sampling)
    scored = " and ".join(f"{one.tokens:,}" for one in told if one)
    return [
        f"fidelity is compared over the {len(windows) * window:,} tokens that both scored, of "
        f"{scored}"
    ]
