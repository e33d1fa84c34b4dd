"""Which tensors an adapter changes, and those that it brings whole: embeddings, heads, norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.models.adapter_names import Named, Rows
from phipipe.models.adapter_settings import AdapterSettings, short_names
from phipipe.models.layouts import EMBEDDING, HEAD, Shape, Sizes
from phipipe.models.weights import Tensor

_OTHER = "take the base that the adapter was trained on"


@dataclass(frozen=True, kw_only=True)
class Low:
    """A change of low rank: ``scale`` · up · down, added to the ``rows`` of a matrix.

    ``of`` are the rows of ``up`` that do so; ``lengths`` names DoRA's row lengths; a ``table``'s
    matrices are transposed.
    """

    rows: Rows
    of: Rows
    down: str
    up: str
    scale: float
    lengths: str | None = None
    table: bool = False


@dataclass(frozen=True, kw_only=True)
class Change:
    """What becomes of one tensor: it starts as the base's tensor ``start``, or as the adapter's
    ``saved``, and ``lows`` are added."""

    start: str
    saved: str | None = None
    lows: tuple[Low, ...] = ()


def resized(
    folder: Path,
    named: Named,
    tensors: Mapping[str, Tensor],
    sizes: Sizes,
    settings: AdapterSettings,
) -> Sizes:
    """``sizes`` with the vocabulary and the tie of the head that the adapter leaves.

    Raises:
        SourceError: its tables do not fit the base, or each other.
    """
    tables = {name: tensors[named.saved[name]] for name in (EMBEDDING, HEAD) if name in named.saved}
    for name, tensor in tables.items():
        if len(tensor.shape) != 2 or tensor.shape[1] != sizes.hidden:
            raise misfit(folder, name, tensor, (sizes.vocab, sizes.hidden))
    rows = {tensor.shape[0] for tensor in tables.values()} or {sizes.vocab}
    if len(rows) > 1 or (rows != {sizes.vocab} and not sizes.tied and len(tables) == 1):
        counts = ", ".join(f"`{name}` has {tensor.shape[0]}" for name, tensor in tables.items())
        raise SourceError(
            f"the adapter in `{folder}` gives embedding and head different numbers of tokens: "
            f"{counts}, the base has {sizes.vocab}",
            hint="save the adapter again with `save_embedding_layers=True`",
        )
    return replace(sizes, vocab=rows.pop(), tied=_stays_tied(named, sizes, settings))


def _stays_tied(named: Named, sizes: Sizes, settings: AdapterSettings) -> bool:
    """Whether embedding and head are still one tensor.

    A module that was trained as a whole is a copy, and a change of low rank is added where its
    module is called: the other one of the two keeps the base's tensor. What was saved beside the
    adapter (a table that was made longer) is the one that both share.
    """
    if not sizes.tied or settings.tied:
        return sizes.tied
    modules = [name.removesuffix(".weight") for name in (EMBEDDING, HEAD)]
    if any(module in named.low for module in modules):
        return False
    return not any(is_trained(module, settings) for module in modules)


def is_trained(module: str, settings: AdapterSettings) -> bool:
    """Whether ``module`` was trained as a whole, apart from the base."""
    return any(module == name or module.endswith(f".{name}") for name in settings.saved)


def saved_whole(
    folder: Path,
    named: Named,
    tensors: Mapping[str, Tensor],
    shapes: Mapping[str, Shape],
    before: Mapping[str, Shape],
) -> dict[str, Change]:
    """The tensors that the adapter brings whole; ``shapes`` come out, ``before`` are the base's.

    Raises:
        SourceError: one is no part of the model, or has another shape.
    """
    changes = {}
    for name, tensor in named.saved.items():
        shape = shapes.get(EMBEDDING if name == HEAD and HEAD not in shapes else name)
        if shape is None:
            raise foreign(folder, [name])
        if tensors[tensor].shape != shape:
            raise misfit(folder, name, tensors[tensor], shape)
        changes[name] = Change(start=name, saved=tensor)
    if HEAD in changes and HEAD not in shapes:  # tied: both are one
        head = changes.pop(HEAD)
        changes.setdefault(EMBEDDING, replace(head, start=EMBEDDING))
    lost = [name for name, shape in shapes.items() if name not in changes and name in before]
    for name in lost:
        if shapes[name] != before[name]:
            raise SourceError(
                f"the adapter in `{folder}` changes the number of tokens, and has no "
                f"`{name}` of the new length",
                hint="save the adapter again with `save_embedding_layers=True`",
            )
    return changes


def untie(named: Named, settings: AdapterSettings, changes: dict[str, Change]) -> None:
    """Give embedding and head tensors of their own, which start as the one that was both."""
    shared = named.saved.get(EMBEDDING)
    if is_trained(EMBEDDING.removesuffix(".weight"), settings):
        shared = None  # a copy: the head never saw it
    changes.setdefault(HEAD, Change(start=EMBEDDING, saved=shared))


def foreign(folder: Path, modules: list[str]) -> SourceError:
    """The error of an adapter that changes what the base does not have."""
    verb = "is" if len(modules) == 1 else "are"
    return SourceError(
        f"the adapter in `{folder}` is of another base, not of this one: {short_names(modules)} "
        f"{verb} missing here",
        hint=_OTHER,
    )


def misfit(folder: Path, name: str, tensor: Tensor, shape: Shape) -> SourceError:
    """The error of a tensor whose shape should be ``shape``."""
    stored, wanted = (" × ".join(map(str, one)) for one in (tensor.shape, shape))
    return SourceError(
        f"the adapter in `{folder}` does not fit its base and its settings: {short_names([name])} "
        f"is {stored}, and should be {wanted}",
        hint=_OTHER,
    )
