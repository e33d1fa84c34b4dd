"""What the names of an adapter's tensors mean: which module of the base each of them changes.

PEFT writes ``base_model.model.MODULE.lora_A.weight``. What was saved as a whole
(``modules_to_save``, embeddings that were made longer) stands there as
``base_model.model.MODULE.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.models.adapter_settings import short_names
from phipipe.models.layouts import Shape, Sizes

PREFIX = "base_model.model."
_LOW = re.compile(r"(?P<module>.+)\.lora_(?P<which>[AB])(\.(?P<name>[\w-]+))?\.weight")
_TABLE = re.compile(r"(?P<module>.+)\.lora_embedding_(?P<which>[AB])(\.(?P<name>[\w-]+))?")
_LENGTHS = re.compile(r"(?P<module>.+)\.lora_magnitude_vector(\.(?P<name>[\w-]+?))??(\.weight)?")
_SAVED = re.compile(
    r"(?P<module>.+?)(\.base_layer|\.modules_to_save(\.(?P<name>[\w-]+))?)?\.(?P<kind>weight|bias)"
)
Rows = tuple[int, int]


@dataclass
class Matrices:
    """The adapter's tensors of one module, by their names in its file."""

    down: str | None = None
    up: str | None = None
    lengths: str | None = None  # of DoRA
    table: bool = False  # of an embedding


@dataclass(frozen=True, kw_only=True)
class Named:
    """An adapter's tensors by what they do: ``low``: module → matrices; ``saved``: tensor of the
    model → tensor that takes its place."""

    low: Mapping[str, Matrices]
    saved: Mapping[str, str]
    names: frozenset[str] = field(default_factory=frozenset)


def sorted_out(folder: Path, tensors: Iterable[str]) -> Named:
    """What the adapter's ``tensors`` do.

    Raises:
        SourceError: one has a name that means nothing here; two adapters are mixed; a matrix is
            without its other one.
    """
    low: dict[str, Matrices] = {}
    saved: dict[str, str] = {}
    names: set[str] = set()
    for tensor in tensors:
        inner = tensor.removeprefix(PREFIX)
        matrix = _LOW.fullmatch(inner) or _TABLE.fullmatch(inner)
        lengths = None if matrix else _LENGTHS.fullmatch(inner)
        other = None if matrix or lengths else _SAVED.fullmatch(inner)
        match = matrix or lengths or other
        if match is None or ".lora_" in match["module"] or inner == tensor:
            raise SourceError(
                f"`{folder}` is no LoRA adapter as peft saves it: it has the tensor "
                f"{short_names([tensor])}",
                hint="save the adapter again with peft (`save_pretrained`)",
            )
        names |= {match["name"]} - {None}
        if other:
            saved[f"{other['module']}.{other['kind']}"] = tensor
            continue
        of = low.setdefault(match["module"], Matrices())
        if lengths:
            of.lengths = tensor
        else:
            of.table = matrix is not None and matrix.re is _TABLE
            setattr(of, "down" if match["which"] == "A" else "up", tensor)
    _check(folder, low, names)
    return Named(low=low, saved=saved, names=frozenset(names))


def _check(folder: Path, low: Mapping[str, Matrices], names: set[str]) -> None:
    if len(names) > 1:
        raise SourceError(
            f"`{folder}` holds several adapters in one file ({short_names(sorted(names))}); one "
            f"is merged",
            hint="save one of them alone (`save_pretrained(…, selected_adapters=[NAME])`)",
        )
    for module, of in low.items():
        if of.down is None or of.up is None:
            there, gone = ("lora_A", "lora_B") if of.down else ("lora_B", "lora_A")
            if of.down is None and of.up is None:
                there = "lora_magnitude_vector"
            raise SourceError(
                f"the adapter in `{folder}` is incomplete: {short_names([module])} has `{there}`, "
                f"but no `{gone}`",
                hint="copy or download the adapter again",
            )


def places(module: str, shapes: Mapping[str, Shape], sizes: Sizes) -> list[tuple[str, Rows, Rows]]:
    """Where the rows of ``module`` lie in the model: (tensor, its rows, the module's rows);
    nothing where the model has no such module.

    Queries, keys and values, or gate and up, may lie in one tensor here and in several there: the
    rows of a matrix do not depend on each other, so an adapter of the one layout fits the other.
    """
    whole = f"{module}.weight"
    if whole in shapes:
        if len(shapes[whole]) != 2:
            return []
        rows = (0, shapes[whole][0])
        return [(whole, rows, rows)]
    stem, _, last = module.rpartition(".")
    for joined, parts in _joined(sizes).items():
        if last in parts and len(shapes.get(f"{stem}.{joined}.weight", ())) == 2:
            start, stop = parts[last]
            return [(f"{stem}.{joined}.weight", (start, stop), (0, stop - start))]
        if last == joined and all(f"{stem}.{part}.weight" in shapes for part in parts):
            return [
                (f"{stem}.{part}.weight", (0, stop - start), (start, stop))
                for part, (start, stop) in parts.items()
            ]
    return []


def _joined(sizes: Sizes) -> dict[str, dict[str, Rows]]:
    """Tensors that some layouts have in one: name → its parts and their rows, in order."""
    keys = sizes.queries + sizes.keys
    return {
        "qkv_proj": {
            "q_proj": (0, sizes.queries),
            "k_proj": (sizes.queries, keys),
            "v_proj": (keys, keys + sizes.keys),
        },
        "gate_up_proj": {"gate_proj": (0, sizes.inner), "up_proj": (sizes.inner, 2 * sizes.inner)},
    }
