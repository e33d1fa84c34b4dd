"""How prompts enter the store: those of the package itself, or a file of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from phipipe.errors import SourceError
from phipipe.files import user_paths
from phipipe.hub.take import ASSETS
from phipipe.models import prompts
from phipipe.steps import Outside, Step

if TYPE_CHECKING:
    from phipipe.recipe.recipe import Prompts

BUILTIN = {"chats": ASSETS / "chats" / "chats.jsonl"}


def path_of(named: Prompts, base: Path) -> Path:
    """The file of prompts; a relative path counts from the recipe's folder ``base``.

    Raises:
        SourceError: it is missing, or a folder.
    """
    if named.builtin is not None:
        return BUILTIN[named.builtin]
    path = user_paths.inside(base, str(named.file))
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "does not exist"
        hint = "check `evaluate.generate.prompts.file`; of a package: `--prompts FILE`"
        raise SourceError(f"the file of prompts `{user_paths.shown(path)}` {kind}", hint=hint)
    return path


def step(path: Path) -> Step:
    """The step that takes the prompts in ``path`` into the store.

    Raises:
        SourceError: it holds none, or something else; see ``models.prompts.read``.
    """
    prompts.read(path)
    outside = {"files": Outside(path.parent, (path.name,))}
    return Step(name="prompts", runs="hub/take", version=1, outside=outside, copies=True)
