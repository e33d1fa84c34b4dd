"""How a model and a text enter the store: from the package itself, a folder of the user's, or a hub
(``repository``).

Only the files that a toolchain may see are taken (``checkpoints.ALLOWED``): a checkpoint of the
user's where it lies (``store.lent``), all else by copy. The source itself is never changed, and
what was copied must hash to what was read when the key was made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.resources import files as package_files
from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.errors import SourceError
from phipipe.files import user_paths
from phipipe.hub import gguf_repository, repository
from phipipe.hub.client import Repository
from phipipe.models import (
    adapter_files,
    adapter_view,
    adapters,
    checkpoints,
    finite,
    gguf_checkpoints,
    gguf_files,
    gguf_finite,
    weight_files,
)
from phipipe.models import texts as text_files
from phipipe.models.checkpoint import Checkpoint
from phipipe.settings import Settings
from phipipe.steps import Json, Outside, Step
from phipipe.store import notes

if TYPE_CHECKING:
    from phipipe.recipe.recipe import Text
    from phipipe.recipe.source import Source

ASSETS = Path(str(package_files("phipipe"))) / "assets"
STORED = "stored"  # the step that brings weights which another one widens
WIDEN_BYTES = 24  # that a weight takes while it is widened
BUILTIN_MODELS = {"tiny-phi3": ASSETS / "tiny-phi3"}
BUILTIN_TEXTS = {
    "stories": ASSETS / "stories"
}  # each a folder with ``evaluation.txt`` and ``calibration.txt``


@dataclass(frozen=True)
class Original:
    """A recipe's source: its shape, the step that leaves it in the store, and its licence if its
    hub names one.

    ``step`` is called ``source``, and all other steps read what it leaves. Where that is made of
    other files (weights that were widened, an adapter that was merged), ``before`` has the steps
    that take those, in order, and ``notes`` what the manifest says of them beside the rest of
    its ``source``.
    """

    checkpoint: Checkpoint
    step: Step
    licence: str | None = None
    before: tuple[Step, ...] = ()
    notes: Mapping[str, Json] = field(default_factory=dict)


def original(source: Source, base: Path) -> Original:
    """What ``source`` names; a relative path counts from the recipe's folder ``base``.

    Raises:
        SourceError: see ``checkpoints.read``; or the hub does not give it.
        StoreError: what the hub says cannot be kept in the cache.
    """
    if source.adapter is not None:
        return _adapted(source, original(source.origin, base), base)
    if source.repo is not None:
        return of_hub(repository.model_of(source), source.file)
    folder = (
        BUILTIN_MODELS[source.builtin]
        if source.builtin is not None
        else user_paths.inside(base, str(source.path))
    )
    found = of_folder(folder)
    if source.builtin is None and folder.is_dir():
        check_weights(folder)
    return found


def of_hub(repo: Repository, file: str | None) -> Original:
    """What ``repo`` holds, or its GGUF ``file``, and the steps that bring it into the store.

    Raises:
        SourceError, StoreError: as ``original``.
    """
    if file is None:
        checkpoint, listing = repository.checkpoint_of(repo)
        return of_step(checkpoint, repository.source_step(repo, listing), listing.licence)
    checkpoint, listing = gguf_repository.checkpoint_of(repo, file)
    step = repository.source_step(repo, listing)
    return _remade(checkpoint, step, "models/unpack_gguf", listing.licence)


def _adapted(source: Source, base: Original, folder: Path) -> Original:
    """``base`` with the adapter of ``source`` merged into it; a relative path counts from
    ``folder``."""
    adapter = source.adapter
    assert adapter is not None
    licence = base.licence
    if adapter.repo is not None:
        repo = repository.model_of(adapter)
        place, listing = repository.adapter_of(repo)
        step = repository.source_step(repo, listing, "adapter")
        sizes = {file.name: file.size for file in listing.files}
        with repository.named(repo, place):
            merged = adapters.merged(base.checkpoint, place, sizes[adapter_files.WEIGHTS])
        licence = listing.licence or licence
    else:
        place = user_paths.inside(folder, str(adapter.path))
        merged = adapters.merged(base.checkpoint, place)
        finite.check_file(place / adapter_files.WEIGHTS, "adapter")
        outside = {"files": Outside(place, tuple(adapter_files.files(place)))}
        step = Step(name="adapter", runs="hub/take", version=1, outside=outside, copies=True)
    checkpoint = adapter_view.of(merged.checkpoint, place, Settings.read().cache)
    known = [str(base.checkpoint.config.get("_name_or_path")), base.checkpoint.folder.name]
    odd = adapters.note_other_base(merged.settings, [source.origin.title, *known])
    checkpoint = replace(checkpoint, remarks=(*checkpoint.remarks, *odd))
    return Original(
        checkpoint,
        _merge_step(checkpoint),
        licence,
        before=(*base.before, replace(base.step, name="base"), step),
        notes={**base.notes, "adapter_rank": merged.settings.rank},
    )


def _merge_step(checkpoint: Checkpoint) -> Step:
    return Step(
        name="source",
        runs="models/merge_adapter",
        version=1,
        needs={"base": "base", "adapter": "adapter"},
        toolchain="torch",
        keep="material",
        output_bytes=checkpoint.weight_bytes,
        memory_bytes=2**30 + 4 * checkpoint.vocab_size * checkpoint.hidden_size,
    )


def check_weights(folder: Path) -> None:
    """Look once at every weight of the checkpoint in ``folder``, a user's, which may be a GGUF.

    Raises:
        SourceError: one is NaN or infinite.
    """
    cache, single = Settings.read().cache, gguf_files.is_one(folder)
    place = folder.parent if single else folder
    files = (folder.name,) if single else weight_files.choose(folder).files
    if not notes.is_known(place, files, cache, "finite"):
        (gguf_finite.check if single else finite.check)(folder)
        notes.remember(place, files, cache, "finite")


def of_folder(folder: Path) -> Original:
    """What the checkpoint in ``folder`` is, which may be a GGUF, and the steps that bring it into
    the store.

    Raises:
        SourceError: see ``checkpoints.read`` and ``gguf_checkpoints.read``.
    """
    if gguf_files.is_one(folder):
        checkpoint = gguf_checkpoints.read(folder)
        check_weights(folder)
        checkpoint = gguf_checkpoints.with_files(checkpoint, Settings.read().cache)
        return _remade(checkpoint, _source_step(folder), "models/unpack_gguf")
    checkpoint = checkpoints.read(folder)
    return of_step(checkpoint, _source_step(folder, checkpoint.weight_bytes))


def outside(path: Path) -> Outside:
    """The files of the checkpoint at ``path``: of a folder, or the GGUF itself."""
    if gguf_files.is_one(path):
        return Outside(path.parent, (path.name,))
    return Outside(path, tuple(checkpoints.files(path)))


def of_step(checkpoint: Checkpoint, step: Step, licence: str | None = None) -> Original:
    """The original that ``step`` brings as it is; what is quantized is widened after that."""
    if checkpoint.quantized is None:
        return Original(checkpoint, step, licence)
    return _remade(checkpoint, step, "models/widen", licence)


def _remade(checkpoint: Checkpoint, step: Step, runs: str, licence: str | None = None) -> Original:
    """The original that the step ``runs`` makes of the files that ``step`` brings."""
    source = Step(
        name="source",
        runs=runs,
        version=1,
        needs={STORED: STORED},
        toolchain="torch",
        keep="material",
        output_bytes=checkpoint.weight_bytes,
        memory_bytes=2**30 + WIDEN_BYTES * _largest(checkpoint),
    )
    notes = {"widened_from": checkpoint.quantized} if checkpoint.quantized else {}
    return Original(checkpoint, source, licence, (replace(step, name=STORED),), notes)


def _largest(checkpoint: Checkpoint) -> int:
    """How many weights the largest matrix of a layer has, at most."""
    inner = 2 * checkpoint.intermediate_size
    return checkpoint.hidden_size * max(inner, 3 * checkpoint.heads * checkpoint.head_size)


def _source_step(path: Path, weight_bytes: int = 0) -> Step:
    """The step that takes the checkpoint at ``path``: our own by copy, which is small."""
    borrows = Settings.read().borrows_sources and path not in BUILTIN_MODELS.values()
    size_bytes = weight_bytes or path.stat().st_size
    return Step(
        name="source",
        runs="hub/take",
        version=1,
        outside={"files": outside(path)},
        copies=True,
        borrows=borrows,
        keep="material",
        output_bytes=size_bytes,
        taken_bytes=size_bytes if borrows else 0,
    )


def text_step(text: Text, base: Path, purpose: str = "evaluation") -> Step:
    """The step that takes the text for ``purpose`` ("evaluation" or "calibration") into the store.

    Raises:
        SourceError: the file is missing, a folder, (nearly) empty or not UTF-8; or the hub does not
            give it.
    """
    name = "text" if purpose == "evaluation" else f"{purpose}-text"
    if text.dataset is not None:
        return repository.text_step(text.dataset, name)
    path = _text_path(text, base, purpose)
    outside = {"files": Outside(path.parent, (path.name,))}
    return Step(name=name, runs="hub/take", version=1, outside=outside, copies=True)


def _text_path(text: Text, base: Path, purpose: str) -> Path:
    if text.dataset is not None:
        return repository.text_of(text.dataset)
    if text.builtin is not None:
        return BUILTIN_TEXTS[text.builtin] / f"{purpose}.txt"
    path = user_paths.inside(base, str(text.file))
    where = "evaluate.text.file" if purpose == "evaluation" else "calibrate.text.file"
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise SourceError(f"{purpose} text `{path}` {kind}", hint=f"check `{where}`")
    text_files.check(path, f"{purpose} text `{path}`")
    return path


def same_text(evaluation: Text, calibration: Text, base: Path) -> bool:
    """Whether one of the two texts contains the other, but for white space: then quantization saw
    the exam.

    Tables are compared as files: what reads them is in a toolchain.

    Raises:
        SourceError: see ``text_step``.
    """
    texts = ((evaluation, "evaluation"), (calibration, "calibration"))
    paths = [_text_path(text, base, purpose) for text, purpose in texts]
    if any(map(text_files.is_table, paths)):
        return paths[0].read_bytes() == paths[1].read_bytes()
    words = [" ".join(path.read_text("utf-8").split()) for path in paths]
    return words[0] in words[1] or words[1] in words[0]
