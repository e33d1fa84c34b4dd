"""What the one word of ``phipipe init WORD`` means: a model to start from, or a recipe's file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from phipipe.errors import RecipeError
from phipipe.files import user_paths
from phipipe.models import gguf_files
from phipipe.models.weight_files import ADAPTER
from phipipe.planning.starter_text import word
from phipipe.recipe.source import REPO

EMBEDDED = "builtin:tiny-phi3"
CONFIG = "config.json"
SUFFIXES = (".yaml", ".yml")
MEANT = (
    "OWNER/NAME of the hub, a folder with a checkpoint, a GGUF, or a recipe's file that ends in "
    ".yaml"
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
    guess = f"; did you mean `{(Path(text) / inner[0]).as_posix()}`?" if inner else ""
    shown = user_paths.shown(text)
    raise RecipeError(
        f"`{shown}` holds no model: it has no `{CONFIG}`{guess}",
        hint="name the folder with `config.json`, tokenizer and safetensors files",
    )


def names_model(text: str) -> bool:
    """Whether ``text`` names a folder or a GGUF that is there, an embedded model, or a
    repository."""
    if text.startswith("builtin:"):
        return True
    try:
        path = Path(text).expanduser()
        if path.is_dir() or gguf_files.is_one(path):
            return True
    except (OSError, ValueError, RuntimeError):  # too long; a NUL; nobody's home
        return False
    return re.fullmatch(REPO[1:-1], text.partition("@")[0]) is not None


def _slug(text: str, parts: tuple[str | None, ...]) -> str:
    """``phi-4-mini-instruct-intel-npu`` for ``microsoft/Phi-4-mini-instruct`` and its device."""
    model = text.removeprefix("builtin:")
    if not text.startswith("builtin:"):
        is_folder = not re.fullmatch(REPO[1:-1], text.partition("@")[0]) or Path(text).exists()
        model = user_paths.resolved(Path(text).expanduser()).name if is_folder else model
        model = model.rpartition("/")[2] if is_folder else model.partition("@")[0].split("/")[1]
    words = [
        model,
        *(Path(part).stem if part.endswith(SUFFIXES) else part for part in parts if part),
    ]
    slug = re.sub(r"[^a-z0-9._]+", "-", "-".join(words).lower().replace("_", "-"))
    return slug.strip("-._")[:80] or "recipe"
