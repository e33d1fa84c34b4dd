"""Which files of a folder are the model's weights, and whether they belong together.

Indexes are a stranger's JSON: names in it are looked at before anything is opened.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files
from phipipe.models.weights import AGAIN, Tensor, check_name, tensors

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt", "*.h5", "*.msgpack", "*.npz")
# The largest indexes of the field have 100,000 tensors and 9 MB.
MAX_INDEX_BYTES = 12 * 2**20
MERGING = (  # what to do with an adapter beside a model
    "to merge it, move it into a folder or repository of its own, and write "
    "`source: {base: {…}, adapter: {…}}` in the recipe; else take it away"
)
_ONE_SAVE = "take the index and all its files from one save"
_SHARD = re.compile(r"model-(\d{1,6})-of-(\d{1,6})\.safetensors")
_REPO = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}/[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
_FILE = re.compile(r"[^/\\:\x00-\x1f]{1,200}\.safetensors")
_OTHER_KINDS = (  # patterns, what they are, what to do
    (
        ("*.gguf",),
        "GGUF files, which are converted already",
        "run those with llama.cpp or Ollama as they are; or name one itself, `source: {path: "
        "FOLDER/NAME.gguf}`; best is the folder of the original, with its safetensors",
    ),
    (
        PICKLES,
        "pickles only, and loading those can run code",
        "save the model again with safetensors",
    ),
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Of the safetensors files and indexes in a folder, those that are the model, and the others.

    ``places``: tensor → file, as the index says; empty without one.
    """

    files: tuple[str, ...]
    ignored: tuple[str, ...] = ()
    places: Mapping[str, str] = field(default_factory=dict)


def choose(folder: Path) -> Choice:
    """Tell the model's files in ``folder`` from what lies beside them.

    Raises:
        SourceError: there is no model, none that is complete, or more than one.
    """
    present = sorted(p.name for p in folder.glob("*.safetensors") if p.is_file())
    _refuse_adapter(folder, present)
    indexes = {p.name for p in folder.glob("*.safetensors.index.json") if p.is_file()}
    if INDEX in indexes:
        places = _places(folder / INDEX)
        named = tuple(sorted(set(places.values())))
        _refuse_missing(folder, named, present)
        if WHOLE in present and WHOLE not in named:
            raise SourceError(
                f"`{folder}` holds two models: `{WHOLE}`, and `{named[0]}` with the others that "
                f"`{INDEX}` names; some tools would read the one, some the other",
                hint=f"delete `{WHOLE}`, or the index with its files: the one that is older",
            )
        return Choice(files=named, ignored=_rest(present, named, indexes - {INDEX}), places=places)
    if WHOLE in present:
        return Choice(files=(WHOLE,), ignored=_rest(present, (WHOLE,), indexes))
    raise _nameless(folder, present)


def shards(folder: Path) -> list[Path]:
    """The safetensors files that make up a checkpoint that a step wrote: those its index names, if
    it has one."""
    index = folder / INDEX
    if not index.is_file():
        return sorted(folder.glob("*.safetensors"))
    places = json.loads(index.read_text("utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(places.values()))]


def _rest(present: Iterable[str], chosen: Iterable[str], indexes: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted({*present, *indexes} - set(chosen)))


def _refuse_adapter(folder: Path, present: list[str]) -> None:
    """A LoRA adapter alone is no model; beside a model, nothing says whether it belongs in."""
    parts = sorted(p.name for p in folder.glob("adapter_model*") if p.is_file())
    parts += [ADAPTER] if (folder / ADAPTER).is_file() else []
    if not parts:
        return
    full = [name for name in present if name not in parts]
    if full:
        raise SourceError(
            f"`{folder}` holds a model (`{full[0]}`) and a LoRA adapter beside it (`{parts[0]}`): "
            "nothing says whether the adapter belongs to what is built",
            hint=MERGING,
        )
    path = folder / ADAPTER
    settings = json_files.read_object(path, 2**20) if path.is_file() else {}
    base = settings.get("base_model_name_or_path")
    of = f" of `{json_files.shown(base)}`" if isinstance(base, str) and base else ""
    named = isinstance(base, str) and _REPO.fullmatch(base)
    place = json_files.shown(base) if isinstance(base, str) and base else "FOLDER OF ITS MODEL"
    example = f"{{repo: {base}, revision: COMMIT}}" if named else f"{{path: {place}}}"
    raise SourceError(
        f"`{folder}` is a LoRA adapter{of} (`{parts[0]}`), not a model",
        hint=f"`source: {{base: {example}, adapter: {{path: {folder}}}}}` merges it",
    )


def _refuse_missing(folder: Path, named: Iterable[str], present: list[str]) -> None:
    for name in named:
        if name not in present:
            raise SourceError(
                f"`{folder}` is incomplete: its index names `{name}`, which is not there",
                hint=f"if `{WHOLE}` is the whole model, delete `{INDEX}`"
                if WHOLE in present
                else AGAIN,
            )


def _nameless(folder: Path, present: list[str]) -> SourceError:
    """Why a folder with neither an index nor `model.safetensors` holds no model."""
    shards = [name for name in present if _SHARD.fullmatch(name)]
    if shards:
        return SourceError(
            f"`{folder}` has a part of a model, `{json_files.shown(shards[0])}`, but not the "
            f"index that names all "
            f"parts, `{INDEX}`",
            hint="copy or download the index too",
        )
    if present:
        return SourceError(
            f"`{folder}` has no `{WHOLE}`, the name by which tools find a model's weights, but "
            f"`{json_files.shown(present[0])}`",
            hint="save the model again with transformers; or rename the file, if it is the "
            "whole model",
        )
    for patterns, what, hint in _OTHER_KINDS:
        files = sorted(p.name for pattern in patterns for p in folder.glob(pattern))
        if files:
            shown = json_files.shown(files[0])
            return SourceError(f"`{folder}` holds its weights as {what} (`{shown}`)", hint=hint)
    return SourceError(
        f"`{folder}` has no weights: no `*.safetensors` file", hint="give one that has them"
    )


def _places(path: Path) -> dict[str, str]:
    """Tensor → file, as the index in ``path`` has it."""
    places = json_files.read_object(path, MAX_INDEX_BYTES).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise SourceError(f"`{path}` has no `weight_map`, the table of tensors and their files")
    for name, file in places.items():
        check_name(path, name)
        if not isinstance(file, str) or not _FILE.fullmatch(file) or not file.isprintable():
            raise SourceError(
                f"`{path}` is malformed: the file of `{name}` is no name of a safetensors file",
                hint=_ONE_SAVE,
            )
    return places


def read(folder: Path, choice: Choice, sizes: Mapping[str, int] | None = None) -> dict[str, Tensor]:
    """The tensors of all files of ``choice`` by name. ``sizes``: see ``models.read``.

    Raises:
        SourceError: a header is corrupt, or the files disagree.
    """
    by_name: dict[str, Tensor] = {}
    for file in choice.files:
        for tensor in tensors(folder / file, (sizes or {}).get(file)):
            if tensor.name in by_name:
                other = by_name[tensor.name].file
                raise SourceError(
                    f"tensor `{tensor.name}` lies in `{folder / other}` and in `{file}`",
                    hint=_ONE_SAVE,
                )
            by_name[tensor.name] = tensor
    _check_places(folder, choice, by_name)
    if not any(tensor.elements for tensor in by_name.values()):
        raise SourceError(f"`{folder}` has no weights: its safetensors files hold no tensor")
    return by_name


def _check_places(folder: Path, choice: Choice, by_name: Mapping[str, Tensor]) -> None:
    """Whether every tensor lies where the index says."""
    for name, file in choice.places.items():
        tensor = by_name.get(name)
        if tensor is None or tensor.file != file:
            odd = "which does not have it"
            where = f"`{file}`, {odd}" if tensor is None else f"`{file}`; `{tensor.file}` has it"
            message = f"`{folder / INDEX}` says that `{name}` lies in {where}"
            raise SourceError(message, hint=_ONE_SAVE)
