"""What a LoRA adapter makes of its base: which tensors change, how, and the checkpoint that comes
out.

Read from headers and settings alone, the same for a plan and for the step that merges
(``models.merge``): whatever does not fit is said before a weight is read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models import (
    adapter_changes,
    adapter_files,
    adapter_names,
    adapter_settings,
    layouts,
    remarks,
    tokenizer_files,
)
from phipipe.models.adapter_changes import Change, Low, foreign, misfit
from phipipe.models.adapter_names import Matrices, Named, Rows
from phipipe.models.adapter_settings import AdapterSettings, short_names
from phipipe.models.checkpoint import Checkpoint
from phipipe.models.layout_check import FLOATS
from phipipe.models.layouts import Shape, Sizes
from phipipe.models.remarks import Remark
from phipipe.models.weights import Tensor

_OTHER = "take the base that the adapter was trained on"
_AGAIN = "copy or download the adapter again"


@dataclass(frozen=True, kw_only=True)
class Merged:
    """The model that an adapter makes of its base: ``changes`` by the names of tensors, all others
    are the base's."""

    checkpoint: Checkpoint
    changes: Mapping[str, Change]
    shapes: Mapping[str, Shape]
    settings: AdapterSettings


def merged(base: Checkpoint, folder: Path, size: int | None = None) -> Merged:
    """What the adapter in ``folder`` makes of ``base``; ``size``: see ``adapter_files.tensors``.

    Raises:
        SourceError: it is no adapter that can be merged, or belongs to another base.
    """
    adapter_files.files(folder)
    settings = adapter_settings.read(folder)
    tensors = adapter_files.tensors(folder, size)
    sizes = _sizes(base, folder)
    _refuse_odd(base, folder, tensors)
    named = adapter_names.sorted_out(folder, tensors)
    before = layouts.wanted(layouts.LAYOUTS[base.architecture], sizes)
    after = adapter_changes.resized(folder, named, tensors, sizes, settings)
    shapes = layouts.wanted(layouts.LAYOUTS[base.architecture], after)
    changes = adapter_changes.saved_whole(folder, named, tensors, shapes, before)
    if sizes.tied and not after.tied:
        adapter_changes.untie(named, settings, changes)
    _add_lows(folder, named, tensors, settings, (shapes, after), changes)
    _refuse_incomplete(folder, named, settings, shapes, after)
    _refuse_surplus(folder, named, settings)
    checkpoint = _described(base, folder, shapes, after)
    return Merged(checkpoint=checkpoint, changes=changes, shapes=shapes, settings=settings)


def _sizes(base: Checkpoint, folder: Path) -> Sizes:
    layout = layouts.LAYOUTS.get(base.architecture)
    if layout is None or layout.others:
        able = sorted(n for n, one in layouts.LAYOUTS.items() if not one.others)
        raise SourceError(
            f"the adapter in `{folder}` cannot be merged into a {base.architecture}: phipipe does "
            f"not know where its tensors belong",
            hint=f"adapters are merged into {', '.join(able)}; for others use peft's "
            f"`merge_and_unload`, and give the whole model",
        )
    return layouts.sizes_of(base)


def _refuse_odd(base: Checkpoint, folder: Path, tensors: Mapping[str, Tensor]) -> None:
    for tensor in tensors.values():
        if tensor.dtype not in FLOATS:
            raise SourceError(
                f"the adapter in `{folder}` stores {short_names([tensor.name])} as "
                f"{tensor.dtype}; weights are read from {', '.join(FLOATS)}",
                hint="save the adapter in 16 or 32 bits",
            )
    count = sum(tensor.elements for tensor in tensors.values() if ".lora_" in tensor.name)
    if count > base.parameters:
        raise SourceError(
            f"the adapter in `{folder}` has {count} numbers, its base "
            f"{base.parameters} parameters: it is of a larger model, or no adapter",
            hint=_OTHER,
        )


def _add_lows(
    folder: Path,
    named: Named,
    tensors: Mapping[str, Tensor],
    settings: AdapterSettings,
    after: tuple[Mapping[str, Shape], Sizes],
    changes: dict[str, Change],
) -> None:
    """Add the changes of low rank to ``changes``; ``after``: the shapes that come out, and what
    they follow from."""
    shapes, sizes = after
    found = {module: adapter_names.places(module, shapes, sizes) for module in named.low}
    if odd := [module for module, places in found.items() if not places]:
        raise foreign(folder, odd)
    for module, places in found.items():
        of = named.low[module]
        width = shapes[places[0][0]][1]
        rows = sum(stop - start for _, (start, stop), _ in places)
        _check_matrices(folder, module, of, tensors, settings.rank_of(module), (rows, width))
        _check_lengths(folder, module, of, settings)
        for name, its_rows, own_rows in places:
            low = Low(
                rows=its_rows,
                of=own_rows,
                down=str(of.down),
                up=str(of.up),
                scale=settings.scale_of(module),
                lengths=of.lengths,
                table=of.table,
            )
            change = changes.get(name, Change(start=name))
            if any(_overlap(low.rows, other.rows) for other in change.lows):
                what = f"changes {short_names([name])} twice"
                raise SourceError(f"the adapter in `{folder}` {what}", hint=_AGAIN)
            changes[name] = replace(change, lows=(*change.lows, low))


def _check_lengths(folder: Path, module: str, of: Matrices, settings: AdapterSettings) -> None:
    """Whether ``module`` has row lengths exactly where the settings say DoRA."""
    if settings.dora != (of.lengths is not None) or (of.table and settings.dora):
        raise SourceError(
            f"the adapter in `{folder}` {'has no' if settings.dora else 'has'} row lengths of "
            f"DoRA for {short_names([module])}, and its settings say "
            f"`use_dora: {str(settings.dora).lower()}`",
            hint=_AGAIN,
        )


def _overlap(one: Rows, other: Rows) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _check_matrices(
    folder: Path,
    module: str,
    of: Matrices,
    tensors: Mapping[str, Tensor],
    rank: int,
    shape: Shape,
) -> None:
    """Whether the two matrices make a change of ``module``, of that ``rank`` and ``shape``."""
    rows, width = (shape[1], shape[0]) if of.table else shape
    wanted: dict[str, Shape] = {str(of.down): (rank, width), str(of.up): (rows, rank)}
    if of.lengths:
        lengths = tensors[of.lengths].shape
        wanted[of.lengths] = (rows,) if len(lengths) == 1 else (rows, 1)
    for name, expected in wanted.items():
        if 0 in tensors[name].shape:
            raise SourceError(
                f"the adapter in `{folder}` has rank 0 for {short_names([module])}: "
                f"{short_names([name])} is empty",
                hint="give the adapter that was trained; with DeepSpeed, gather the weights first",
            )
        if tensors[name].shape != expected:
            raise misfit(folder, name, tensors[name], expected)


def _refuse_incomplete(
    folder: Path,
    named: Named,
    settings: AdapterSettings,
    shapes: Mapping[str, Shape],
    sizes: Sizes,
) -> None:
    """Refuse an adapter that lacks matrices of some layers: peft would leave those unchanged, and
    only log it."""
    inner = {m.split(".", 3)[3] for m in named.low if m.startswith("model.layers.")}
    layers = range(sizes.layers) if settings.layers is None else settings.layers
    expected = {
        f"model.layers.{layer}.{name}"
        for layer in layers
        for name in inner
        if settings.targets is not None and name.rpartition(".")[2] in settings.targets
    }
    lost = sorted(
        module
        for module in expected - named.low.keys()
        if adapter_names.places(module, shapes, sizes)
    )
    lost += [
        name
        for name in settings.saved
        if not any(
            adapter_changes.is_trained(saved.rpartition(".")[0], settings) for saved in named.saved
        )
        and any(adapter_changes.is_trained(known.rpartition(".")[0], settings) for known in shapes)
    ]
    if lost:
        raise SourceError(
            f"the adapter in `{folder}` is incomplete: its settings name {short_names(lost)}, and "
            f"its weights have nothing for that",
            hint=_AGAIN,
        )


def _refuse_surplus(folder: Path, named: Named, settings: AdapterSettings) -> None:
    """Refuse matrices of modules that the settings leave out: peft would leave those unchanged, so
    nobody knows which of the two was trained."""
    for module in sorted(named.low):
        if not adapter_settings.in_layers(settings, module):
            key, told = "layers_to_transform", json.dumps(settings.layers)
        elif not adapter_settings.is_target(settings, module):
            key, told = "target_modules", json.dumps(settings.targets)
        else:
            continue
        raise SourceError(
            f"the adapter in `{folder}` has a change of {short_names([module])}, which its "
            f"settings leave out (`{key}: {json_files.shown(told)}`)",
            hint="give the settings that were saved with these weights: peft would not load all",
        )


def _described(
    base: Checkpoint, folder: Path, shapes: Mapping[str, Shape], sizes: Sizes
) -> Checkpoint:
    """The checkpoint that comes out."""
    width = base.weight_bytes / base.parameters
    grown = (sizes.vocab - base.vocab_size) * base.hidden_size * (1 if sizes.tied else 2)
    grown += base.vocab_size * base.hidden_size if base.tied and not sizes.tied else 0
    found = list(base.remarks)
    if adapter_files.has_tokenizer(folder):
        found = [remark for remark in found if remark.rule not in ("W04",)]
        found += tokenizer_files.check(folder, sizes.vocab)
        found.append(remarks.of("W31", folder.name))
    config = {**base.config, "vocab_size": sizes.vocab, "tie_word_embeddings": sizes.tied}
    changed = sizes.vocab != base.vocab_size or sizes.tied != base.tied
    return replace(
        base,
        config=config if changed else base.config,
        vocab_size=sizes.vocab,
        tied=sizes.tied,
        parameters=base.parameters + grown,
        weight_bytes=base.weight_bytes + round(grown * width),
        remarks=tuple(found),
    )


def note_other_base(settings: AdapterSettings, names: list[str]) -> list[Remark]:
    """Whether the base that the adapter names is none of ``names``, by which its base is known."""
    if settings.base is None:
        return []
    last = _last(settings.base)
    if any(_last(name) == last for name in names):
        return []
    return [remarks.of("W30", json_files.shown(settings.base))]


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()
