"""What ``phipipe init --source`` names, as a recipe says it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from phipipe.errors import PhipipeError, RecipeError, SourceError
from phipipe.files import user_paths
from phipipe.hub import client, gguf_repository, repository, take
from phipipe.hub.client import Repository
from phipipe.hub.failures import Unreachable
from phipipe.models import adapter_files, adapter_settings, checkpoints, family, gguf_files
from phipipe.models.checkpoint import Checkpoint
from phipipe.recipe import source as recipes
from phipipe.recipe.recipe import wikitext
from phipipe.recipe.source import COMMIT, REPO
from phipipe.steps import Json


@dataclass(frozen=True, kw_only=True)
class Source:
    """A source as a recipe says it; of a hub where ``hub``, at a commit unless ``pinned`` is
    false."""

    keys: Mapping[str, Json]
    hub: bool = False
    pinned: bool = True
    note: str | None = None
    asked: bool = False  # the hub has just said its commit

    @property
    def model(self) -> Mapping[str, Json]:
        """The keys of the model itself: of an adapter, those of its base."""
        base: Mapping[str, Json] = self.keys.get("base", self.keys)
        return base

    @property
    def filled(self) -> Mapping[str, Json]:
        """``keys`` with some commit where there is none yet."""
        return _filled(self.keys)


def _filled(keys: Mapping[str, Json]) -> dict[str, Json]:
    inner = {k: _filled(v) if isinstance(v, Mapping) else v for k, v in keys.items()}
    unpinned = "repo" in keys and not re.fullmatch(COMMIT[1:-1], str(keys.get("revision")))
    return inner | ({"revision": "0" * 40} if unpinned else {})


def of_text(text: str, folder: Path) -> Source:
    """What ``text`` names, as a recipe in ``folder`` says it."""
    if text.startswith("builtin:"):
        return Source(keys={"builtin": text.removeprefix("builtin:")})
    named = of_hub(text)
    if named and text.endswith("@"):
        name = text.removesuffix("@")
        raise RecipeError(f"`{text}` names no revision", hint=f"--source {name}, or {name}@BRANCH")
    if is_checkpoint(text):
        return _of_folder(text, folder)
    if text.startswith((".", "~")) or is_file(text) or named is None:
        odd = user_paths.problem(user_paths.inside(Path(), text), user_paths.Kind.FOLDER, text)
        missing = f"`{text}` {odd}" if odd else f"there is no folder `{text}` yet"
        return Source(keys={"path": seen_from(folder, text)}, note=missing if text else None)
    found = _of_hub(named.repo, named.revision)
    return _with_file(found, named.file) if named.file else _of_what_it_holds(found, folder)


class Named(NamedTuple):
    """What ``OWNER/NAME[/FILE.gguf][@REVISION]`` names; what is not said is empty."""

    repo: str
    file: str
    revision: str


def of_hub(text: str) -> Named | None:
    """What ``text`` names on a hub; None if it is no name of anything there."""
    name, _, revision = text.partition("@")
    owner, *rest = name.split("/", 2)
    repo, file = f"{owner}/{rest[0] if rest else ''}", "".join(rest[1:])
    if not re.fullmatch(REPO[1:-1], repo) or (len(rest) > 1 and not recipes.is_gguf(file)):
        return None
    return Named(repo, file, revision)


def _with_file(found: Source, file: str) -> Source:
    return replace(found, keys={**found.keys, "file": file})


def _of_folder(text: str, folder: Path) -> Source:
    """The checkpoint in the folder ``text``; the note says why it is none that can be built."""
    keys = {"path": seen_from(folder, text)}
    place = Path(text).expanduser()
    if adapter_files.is_adapter(place):
        return _of_adapter(Source(keys=keys), place, adapter_settings.base_of(place), folder)
    try:
        take.of_folder(Path(text).expanduser())
    except SourceError as error:
        return Source(keys=keys, note=f"this model cannot be built yet: {error.message}")
    return Source(keys=keys)


def _of_adapter(adapter: Source, place: Path, base: str | None, folder: Path) -> Source:
    """``adapter``, whose files are in ``place``, with the ``base`` that it names.

    Raises:
        RecipeError: it names none, or one that cannot be found.
    """
    named = "{" + ", ".join(f"{key}: {value}" for key, value in adapter.keys.items()) + "}"
    example = f"source: {{base: {{repo: …, revision: …}}, adapter: {user_paths.shown(named)}}}"
    if base is None:
        raise RecipeError(
            "this is a LoRA adapter that does not say which model it was trained on",
            hint=f"write `{example}` in a recipe by hand",
        )
    near = [Path(base).expanduser(), place / base]
    below = next((str(one) for one in near if (one / "config.json").is_file()), None)
    if below is None and not re.fullmatch(REPO[1:-1], base):
        raise RecipeError(
            f"this is a LoRA adapter of `{user_paths.shown(base)}`, which is not here and no "
            f"repository of the hub",
            hint=f"write `{example}` in a recipe by hand, with the folder of its base",
        )
    known = _of_folder(below, folder) if below else _of_hub(base, "")
    notes = [note for note in (known.note, adapter.note) if note]
    return Source(
        keys={"base": dict(known.keys), "adapter": dict(adapter.keys)},
        hub=known.hub,
        pinned=known.pinned and adapter.pinned,
        note="; ".join(notes) or None,
        asked=known.asked,
    )


def _of_what_it_holds(found: Source, folder: Path) -> Source:
    """``found`` on a hub; where that is an adapter, it with its base; where it is a GGUF, its
    name.

    Raises:
        RecipeError: there are several GGUF files, and none was named; or see ``_of_adapter``.
    """
    repo = Repository("model", found.keys["repo"], found.keys["revision"])
    if not found.pinned or not (found.asked or repository.is_known(repo)):
        return found
    if files := gguf_repository.ggufs_alone(repo):
        if len(files) == 1 and recipes.is_gguf(files[0]):
            return _with_file(found, files[0])
        raise RecipeError(
            f"`{repo.name}` holds several GGUF files: {client.shown(files)}",
            hint=f"name the one to build from: `phipipe init {repo.name}/FILE.gguf`",
        )
    if not repository.is_adapter(repo):
        return found
    place, _ = repository.adapter_of(repo)
    return _of_adapter(found, place, adapter_settings.base_of(place), folder)


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
    return Source(keys={"repo": name, "revision": commit}, hub=True, asked=True)


def shape_of(source: Source, folder: Path) -> Checkpoint | None:
    """The shape of the model that ``source`` names, where it can be known: one of the family by its
    name alone. A hub is asked only where it has just answered."""
    repo = str(source.model.get("repo", "")).casefold()
    for member in family.MEMBERS:
        if repo in (name.casefold() for name in member.repos):
            known = checkpoints.of_config(member.config, member.tokenizer)
            return replace(known, normal_form=member.normal_form)
    if source.hub and not source.asked:
        return None
    with contextlib.suppress(PhipipeError, ValidationError):  # the plan says why it is unfit
        return take.original(recipes.Source.model_validate(source.keys), folder).checkpoint
    return None


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


def is_checkpoint(text: str) -> bool:
    """Whether a checkpoint may be there: a folder, or a GGUF."""
    try:
        path = Path(text).expanduser()
        return path.is_dir() or gguf_files.is_one(path)
    except (OSError, ValueError, RuntimeError):  # too long; a NUL; nobody's home
        return False


def is_file(text: str) -> bool:
    """Whether a file is there."""
    try:
        return Path(text).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


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
