"""Rotary scalings × backends, for the reference: what each face says it is proven to compute."""

from __future__ import annotations

from collections.abc import Mapping

from phipipe import backends
from phipipe.maintain.markdown import section, table
from phipipe.models import rotary

_ROWS: Mapping[str, tuple[str, ...]] = {  # words → the features that it takes
    "`longrope`, Phi": ("longrope",),
    "`longrope`, other models": (rotary.ELSEWHERE,),
    "`linear`": ("linear",),
    "`llama3`": ("llama3",),
    "`yarn`": ("yarn",),
    "`yarn` with `beta_fast`, `beta_slow`": ("yarn.beta_fast", "yarn.beta_slow"),
    "`yarn` with `mscale` and `mscale_all_dim`": ("yarn.mscale", "yarn.mscale_all_dim"),
    "`yarn` with `attention_factor`": ("yarn.attention_factor",),
    "`yarn` with `truncate: false`": ("yarn.truncate",),
    "`longrope` with `attention_factor`, or another `factor` than its lengths give": (
        "longrope.attention_factor",
        "longrope.factor",
    ),
    "`dynamic`": ("dynamic",),
}


def rotary_section() -> str:
    """Kinds of scaling against backends."""
    names = backends.names()
    rows = [
        [words, *("✓" if set(needed) <= backends.load(n).rotary else "–" for n in names)]
        for words, needed in _ROWS.items()
    ]
    return section(
        "Rotary scaling",
        "`rope_scaling` and `rope_parameters` are read alike, and so are `type` and `rope_type`. "
        "✓ means that the backend computes these positions as transformers does, within the "
        "original context and beyond it; tests compare the two. – means that `plan` refuses "
        "([M21](rules.md#m21), [M22](rules.md#m22), [M24](rules.md#m24)). Phi models have "
        "`longrope` or none.",
        table(["type", *(f"`{name}`" for name in names)], rows),
    )
