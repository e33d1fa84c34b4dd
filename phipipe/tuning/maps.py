"""Widths of groups as a recipe's map: few patterns, exceptions first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from phipipe.backends.widths import Stored, Width
from phipipe.models import linears
from phipipe.steps import Json


def patterns(widths: Mapping[str, Stored]) -> dict[str, Json]:
    """The map that gives each group of ``widths`` its own: for each kind of matrix a pattern with
    the width that most of its layers have, after single names for the others. The first that
    matches decides."""
    kinds: dict[str, dict[str, Stored]] = {}
    for name, stored in widths.items():
        kinds.setdefault(linears.kind_of(name), {})[name] = stored
    single: dict[str, Json] = {}
    common: dict[str, Json] = {}
    for kind, named in kinds.items():
        usual = Counter(named.values()).most_common(1)[0][0]
        common[kind] = _plain(usual)
        single |= {name: _plain(stored) for name, stored in named.items() if stored != usual}
    return {**single, **common}


def _plain(stored: Stored) -> Json:
    if isinstance(stored, Width):
        return stored.model_dump(mode="json", exclude_none=True)
    return stored
