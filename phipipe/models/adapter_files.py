"""Which files of a folder are a LoRA adapter, as PEFT saves one.

A folder may hold a tokenizer beside it, a whole model, a second adapter, states of a training: what
is taken is named here, and everything else stays outside.
"""

from __future__ import annotations

from pathlib import Path

from phipipe.errors import SourceError
from phipipe.files import json_files, user_paths
from phipipe.models import vetting, weight_files, weights
from phipipe.models.weight_files import ADAPTER
from phipipe.models.weights import Tensor

WEIGHTS = "adapter_model.safetensors"
TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt"),
)
TEMPLATES = ("chat_template.jinja", "chat_template.json")
VOCABULARIES = ("tokenizer.json", "tokenizer.model", "vocab.json")


def is_adapter(folder: Path) -> bool:
    """Whether ``folder`` holds an adapter and no model beside it."""
    whole = weight_files.WHOLE, weight_files.INDEX
    return (folder / ADAPTER).is_file() and not any((folder / name).is_file() for name in whole)


def files(folder: Path) -> list[str]:
    """Names of the files of the adapter in ``folder`` that a toolchain may see, sorted: settings,
    weights, a tokenizer that came with them, licences.

    Raises:
        SourceError: there is no adapter, or more than one; a file of it is none.
    """
    _refuse_others(folder)
    vetting.refuse_no_files(folder, (ADAPTER, WEIGHTS, *TOKENIZER, *TEMPLATES))
    names = {ADAPTER, WEIGHTS, *tokenizer_files(folder)}
    licences = (p.name for pattern in ("LICENSE*", "NOTICE*") for p in folder.glob(pattern))
    found = sorted(name for name in (*names, *licences) if (folder / name).is_file())
    vetting.refuse_pointers(folder, found)
    return found


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the tokenizer's files that count: all of them where a vocabulary is there, else the
    chat template alone, which says nothing of tokens."""
    names = TOKENIZER + TEMPLATES if has_tokenizer(folder) else TEMPLATES
    return [name for name in names if (folder / name).is_file()]


def has_tokenizer(folder: Path) -> bool:
    """Whether a vocabulary lies in ``folder``."""
    return any((folder / name).is_file() for name in VOCABULARIES)


def tensors(folder: Path, size: int | None = None) -> dict[str, Tensor]:
    """The adapter's tensors by name; ``size`` is the whole size in bytes of a file of which
    ``folder`` has the header alone.

    Raises:
        SourceError: the header is corrupt, or there is no tensor.
    """
    found = {tensor.name: tensor for tensor in weights.tensors(folder / WEIGHTS, size)}
    if not any(tensor.elements for tensor in found.values()):
        raise SourceError(
            f"`{folder / WEIGHTS}` holds no weights: the adapter changes nothing",
            hint="save the adapter again; with DeepSpeed or FSDP, gather the weights first",
        )
    return found


def _refuse_others(folder: Path) -> None:
    """Refuse what is no adapter, and say what it is."""
    if not folder.is_dir():
        raise SourceError(
            f"no adapter at `{folder}`: {user_paths.missing(folder)}",
            hint="check `source.adapter`",
        )
    if not (folder / ADAPTER).is_file():
        raise _no_adapter(folder)
    if (folder / WEIGHTS).is_file():
        return
    parts = sorted(p.name for p in folder.glob("adapter_model*") if p.is_file())
    if any(name.endswith(".bin") for name in parts):
        raise SourceError(
            f"`{folder}` holds its adapter as a pickle only (`{json_files.shown(parts[0])}`), and "
            f"loading it can run code",
            hint="save the adapter again with safetensors (`save_pretrained` does)",
        )
    found = f"; there is `{json_files.shown(parts[0])}`" if parts else ""
    raise SourceError(
        f"`{folder}` has no weights of an adapter (`{WEIGHTS}`){found}",
        hint="save the adapter again with peft, in one file",
    )


def _no_adapter(folder: Path) -> SourceError:
    inner = sorted(p.parent.name for p in folder.glob(f"*/{ADAPTER}") if p.is_file())[:3]
    if len(inner) > 1:
        named = " and ".join(f"`{json_files.shown(name)}`" for name in inner[:2])
        return SourceError(
            f"`{folder}` holds several adapters ({named}); one is merged",
            hint=f"give one of them, such as `{folder / inner[0]}`",
        )
    if inner:
        return SourceError(
            f"`{folder}` is no adapter: it has no `{ADAPTER}`; its folder "
            f"`{json_files.shown(inner[0])}` has one",
            hint=f"give `{folder / inner[0]}`",
        )
    if (folder / "config.json").is_file():
        return SourceError(
            f"`{folder}` is a whole model, no adapter (it has no `{ADAPTER}`)",
            hint="give it as `source: {path: …}`; nothing has to be merged",
        )
    return SourceError(
        f"`{folder}` is no adapter: it has no `{ADAPTER}`",
        hint="give the folder that peft's `save_pretrained` wrote",
    )
