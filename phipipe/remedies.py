"""What in a recipe would bring a build closer to the original: a table, one row a backend.

A wider precision spends more bits on every weight. ``FINER`` options stay at int4: they keep the
layers that suffer most at 8 bits, or learn from a text. Each goes with the words by which a build's
scheme says that it has it already.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from phipipe import backends
from phipipe.steps import Json

WIDTHS = ("int4", "int8", "fp16", "fp32")


@dataclass(frozen=True, kw_only=True)
class Finer:
    """Options of ``quantize``, how a scheme tells of them, and what rules them out: units, or a
    word of the scheme."""

    options: Mapping[str, Json]
    told: str
    not_on: frozenset[str] = frozenset()
    unless: str = "\0"


FINER: Mapping[str, tuple[Finer, ...]] = {
    "llamacpp": (
        Finer(options={"imatrix": True}, told="importance matrix"),
        Finer(options={"type": "Q6_K"}, told="Q6_K"),
    ),
    "litert": (Finer(options={"group_size": 32}, told="groups of 32", unless="weight only"),),
    "mlx": (
        Finer(options={"mixed": "mixed_4_6"}, told="mixed_4_6"),
        Finer(options={"bits": 6}, told="6-bit"),
    ),
    "onnxruntime": (Finer(options={"mixed": "layers"}, told="sensitive layers at 8 bits"),),
    "openvino": (
        Finer(options={"awq": True, "scale_estimation": True}, told="scale estimation"),
        Finer(options={"ratio": 0.8}, told="of the weights", not_on=frozenset({"intel-npu"})),
    ),
    "qnn": (Finer(options={"keep_8bit": ["lm_head", "down_proj", "o_proj"]}, told="o_proj"),),
    "torch": (Finer(options={"algorithm": "signround", "group_size": 32}, told="groups of 32"),),
}


def wider(backend: str, api: str, precision: str, taken: Collection[str]) -> str:
    """The next wider precision that the backend has for the unit, as a recipe says it, if it is not
    among ``taken``."""
    able = _able(backend, api)
    beyond = WIDTHS[WIDTHS.index(precision) + 1 :] if precision in WIDTHS else ()
    found = next((p for p in beyond if p in able and p not in taken), None)
    return f"`precision: {found}`" if found else ""


def finer(backend: str, api: str, precision: str, scheme: str) -> str:
    """The first change of ``quantize`` that an int4 build with this ``scheme`` does not have
    yet."""
    rows = FINER.get(backend, ()) if precision == "int4" else ()
    open_to = (
        row
        for row in rows
        if api not in row.not_on and row.told not in scheme and row.unless not in scheme
    )
    row = next(open_to, None)
    return f"`quantize: {_flow(row.options)}`" if row else ""


def _able(backend: str, api: str) -> frozenset[str]:
    """Precisions; a board may come from a phipipe that knows other backends."""
    if backend not in backends.names():
        return frozenset()
    return frozenset(backends.load(backend).PRECISIONS.get(api, {}))


def _flow(options: Mapping[str, Json]) -> str:
    """As YAML in one line."""
    said = (
        f"{name}: {v if isinstance(v, str) else json.dumps(v).replace(chr(34), '')}"
        for name, v in options.items()
    )
    return f"{{{', '.join(said)}}}"
