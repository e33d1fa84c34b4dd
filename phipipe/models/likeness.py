"""Which known architectures come closest to one that is not known: by the names of its tensors, and
by its own name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from phipipe.models.layouts import LAYOUTS, Sizes

MOST = 2
_LAYER = re.compile(r".*\.(?:layers|h|blocks?)\.\d{1,6}\.(.+)")
# Any sizes: names follow from the kind of a layer, not from its widths.
_SIZES = Sizes(vocab=1, hidden=1, inner=1, layers=1, heads=1, kv_heads=1, head=1, experts=1)
_NAME_COUNTS, _NEAR = 0.25, 0.8  # beside the tensors' names, which count 1; from this on


def closest(architecture: str, model_type: str, tensors: Iterable[str]) -> tuple[str, ...]:
    """Up to ``MOST`` names in ``LAYOUTS``, the nearest first; of those with equal tensors, the one
    of the nearest name. Nothing where not even half of a layer is alike, and for an
    architecture that is known."""
    if architecture in LAYOUTS:
        return ()
    own = {match[1] for match in map(_LAYER.fullmatch, tensors) if match}
    scores = {name: _overlap(own, name) for name in LAYOUTS}
    alike = {name: score for name, score in scores.items() if score >= 0.5}

    def rank(name: str) -> float:
        words = f"{architecture} {model_type}".lower()
        other = f"{name} {LAYOUTS[name].model_type}".lower()
        near = difflib.SequenceMatcher(None, words, other).ratio()
        return alike[name] + (_NAME_COUNTS * near if near >= _NEAR else 0)

    return tuple(sorted(alike, key=rank, reverse=True)[:MOST])


def _overlap(own: set[str], name: str) -> float:
    """Of the tensors' names in a layer that either has, the share that both have."""
    known = {tensor for tensor, _ in LAYOUTS[name].layer(_SIZES)}
    return len(own & known) / len(own | known)
