"""What the one word of ``phipipe init WORD`` means: a model to start from, or a recipe's file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from phipipe.errors import RecipeError
from phipipe.files import user_paths
from phipipe.models.weight_files import ADAPTER
from phipipe.planning.starter_source import is_checkpoint, is_file, of_hub
from phipipe.planning.starter_text import word

EMBEDDED = "builtin:tiny-phi3"
CONFIG = "config.json"
SUFFIXES = (".yaml", ".yml")
MEANT = (
    "OWNER/NAME[/FILE.gguf] of the hub, a folder with a checkpoint, a GGUF, or a recipe's file "
    "that ends in .yaml"
)


class Start(NamedTuple):
    """Where the recipe is written, and the model that it starts from."""

    path: Path
    source: str


def meant(text: str, source: str | None, parts: tuple[str | None, ...]) -> Start:
    """What ``text`` stands for: a recipe's file where it ends in .yaml or where ``source`` names
    the model, else the model itself. Its recipe is then called after the model and ``parts``, and
    lies in the working folder.

    Args:
        parts: device, precision and backend as far as the user named them.

    Raises:
        RecipeError: it is neither; or a recipe of that name is there already.
    """
    if source is not None or text.lower().endswith(SUFFIXES):
        return Start(Path(text), source or EMBEDDED)
    _refuse_other_files(text)
    if not names_model(text):
        shown = user_paths.shown(text)
        raise RecipeError(f"`{shown}` is no model that can be found", hint=f"give {MEANT}")
    _refuse_other_folders(text)
    path = Path(f"{_slug(text, parts)}.yaml")
    if path.exists():
        first = f"phipipe plan {word(path)} goes on with it"
        raise RecipeError(
            f"`{path}` is there already",
            hint=f"{first}; phipipe init OTHER.yaml --source {word(Path(text))} writes another",
        )
    return Start(path, text)


def _refuse_other_files(text: str) -> None:
    """Refuse a file that is no GGUF: a checkpoint is its folder.

    Raises:
        RecipeError: it is one.
    """
    if text.startswith("builtin:") or is_checkpoint(text) or not is_file(text):
        return
    path = Path(text)
    raise RecipeError(
        f"`{user_paths.shown(text)}` is a file, and a model is a folder or a GGUF",
        hint=f"phipipe init {word(path.parent)}",
    )


def _refuse_other_folders(text: str) -> None:
    """Refuse a folder that is no checkpoint, and name those in it that are.

    Raises:
        RecipeError: it has no configuration.
    """
    folder = Path(text).expanduser()
    if (
        text.startswith("builtin:")
        or not folder.is_dir()
        or any((folder / name).exists() for name in (CONFIG, ADAPTER))
    ):
        return
    inner = sorted(path.parent.name for path in folder.glob(f"*/{CONFIG}"))
    inner += sorted(path.name for path in folder.glob("*.gguf"))
    guess = f"; did you mean `{(Path(text) / inner[0]).as_posix()}`?" if inner else ""
    shown = user_paths.shown(text)
    raise RecipeError(
        f"`{shown}` holds no model: it has no `{CONFIG}`{guess}",
        hint="name the folder with `config.json`, tokenizer and safetensors files, or a GGUF",
    )


def names_model(text: str) -> bool:
    """Whether ``text`` names a folder or GGUF that is there, an embedded model, or a repository."""
    if text.startswith("builtin:") or is_checkpoint(text):
        return True
    return of_hub(text) is not None


def _slug(text: str, parts: tuple[str | None, ...]) -> str:
    """``phi-4-mini-instruct-intel-npu`` for ``microsoft/Phi-4-mini-instruct`` and its device."""
    model = text.removeprefix("builtin:")
    if not text.startswith("builtin:"):
        named = None if is_checkpoint(text) else of_hub(text)
        if named is None:
            model = user_paths.resolved(Path(text).expanduser()).name
        else:
            model = (named.file or named.repo).rpartition("/")[2]
        model = re.sub(r"(?i)\.gguf$", "", model)
    words = [
        model,
        *(Path(part).stem if part.endswith(SUFFIXES) else part for part in parts if part),
    ]
    slug = re.sub(r"[^a-z0-9._]+", "-", "-".join(words).lower().replace("_", "-"))
    return slug.strip("-._")[:80] or "recipe"
