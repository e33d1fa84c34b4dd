"""What ``phipipe init --source`` names, as a recipe says it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phipipe.errors import RecipeError
from phipipe.files import user_paths
from phipipe.hub import client
from phipipe.hub.client import Repository
from phipipe.hub.failures import Unreachable
from phipipe.recipe.recipe import COMMIT, REPO, wikitext
from phipipe.steps import Json


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source as a recipe says it; of a hub where ``hub``, at a commit unless ``pinned`` is
    false."""

    keys: Mapping[str, str]
    hub: bool = False
    pinned: bool = True
    note: str | None = None


def of_text(text: str, folder: Path) -> Source:
    """What ``text`` names, as a recipe in ``folder`` says it."""
    if text.startswith("builtin:"):
        return Source(keys={"builtin": text.removeprefix("builtin:")})
    name, _, revision = text.partition("@")
    if "@" in text and not revision and re.fullmatch(REPO[1:-1], name):
        raise RecipeError(f"`{text}` names no revision", hint=f"--source {name}, or {name}@BRANCH")
    is_path = text.startswith((".", "~")) or _is_folder(text)
    if is_path or not re.fullmatch(REPO[1:-1], name):
        odd = user_paths.problem(user_paths.inside(Path(), text), user_paths.Kind.FOLDER, text)
        missing = f"`{text}` {odd}" if odd else f"there is no folder `{text}` yet"
        if _is_folder(text):
            missing = f"`{text}` is no checkpoint yet: it has no `config.json`"
        note = missing if text and (not _is_folder(text) or lacks_checkpoint(text)) else None
        return Source(keys={"path": seen_from(folder, text)}, note=note)
    return _of_hub(name, revision)


def _of_hub(name: str, revision: str) -> Source:
    if re.fullmatch(COMMIT[1:-1], revision):
        return Source(keys={"repo": name, "revision": revision}, hub=True)
    revision = revision or "main"
    try:
        commit = client.commit_of(Repository("model", name, revision))
    except Unreachable as error:
        note = (
            f"the commit of `{name}` is not known, so that the recipe is not pinned yet: "
            f"{error.message}"
        )
        return Source(keys={"repo": name, "revision": revision}, hub=True, pinned=False, note=note)
    return Source(keys={"repo": name, "revision": commit}, hub=True)


def text_of(text: str | None, folder: Path, source: Source) -> dict[str, Json]:
    """The evaluation text that ``text`` names, as a recipe in ``folder`` says it; None: the usual
    one for ``source``.

    Raises:
        RecipeError: it is a file that is not there.
    """
    usual = text or ("wikitext" if source.hub else "stories")
    if usual == "wikitext":
        return {"dataset": wikitext("test")}
    if usual == "stories":
        return {"builtin": "stories"}
    path = user_paths.inside(Path(), usual)
    odd = user_paths.problem(path, user_paths.Kind.FILE, usual)
    if odd or not path.is_file():
        raise RecipeError(
            f"--text: `{user_paths.shown(usual)}` {odd or 'does not exist'}",
            hint="give a text file, `wikitext` or `stories`",
        )
    return {"file": seen_from(folder, usual)}


def _is_folder(text: str) -> bool:
    try:
        return Path(text).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):  # too long; a NUL; nobody's home
        return False


def lacks_checkpoint(text: str) -> bool:
    """Whether ``text`` is a folder that no model's files lie in."""
    return _is_folder(text) and not (Path(text).expanduser() / "config.json").is_file()


def seen_from(folder: Path, text: str) -> str:
    """The path ``text``, which counts from the working folder, as one that counts from
    ``folder``."""
    path = Path(text)
    if not text or path.is_absolute() or text.startswith("~"):
        return text
    whole = Path.cwd() / path
    inner = whole.name not in ("", "..")  # what is itself a link stays one
    whole = user_paths.resolved(whole.parent) / whole.name if inner else user_paths.resolved(whole)
    try:
        relative = Path(os.path.relpath(whole, folder)).as_posix()
    except ValueError:  # on another drive
        return str(whole)
    return str(whole) if relative.startswith("~") else relative  # which would be somebody's home
