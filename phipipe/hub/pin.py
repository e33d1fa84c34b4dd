"""Writes commits into a recipe file: what a branch is at now, and nothing else of the text is
touched."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from phipipe.errors import RecipeError
from phipipe.hub import client
from phipipe.hub.client import Repository
from phipipe.recipe.document import parse, read
from phipipe.recipe.places import Document, Where
from phipipe.recipe.scalars import is_text
from phipipe.recipe.source import COMMIT, REPO
from phipipe.steps import Json

# the keys whose mapping names a repository
KINDS: dict[str, Literal["model", "dataset"]] = {
    "source": "model",
    "base": "model",
    "adapter": "model",
    "dataset": "dataset",
}


@dataclass(frozen=True)
class Pinned:
    """What was written for one repository; ``revision`` is what stood there, "main" if nothing
    did."""

    repo: str
    revision: str
    commit: str


def pin(path: Path) -> list[Pinned]:
    """Resolve every branch, tag or missing revision in the recipe ``path`` and write the commits
    into it.

    Comments, order and spacing stay. What is pinned already is left alone.

    Raises:
        RecipeError: the file cannot be read or written, or is none that can be edited safely.
        SourceError: the hub does not know a repository or revision, or cannot be asked.
    """
    document = read(path)
    edits: list[tuple[int, int, str]] = []
    pinned: list[Pinned] = []
    wanted = deepcopy(document.data)
    scalars = _scalars(document.text)
    for where, kind, repository in _unpinned(document.data):
        start, end, revision = _slot(document, scalars, where, repository)
        commit = client.commit_of(Repository(kind, repository["repo"], revision or "main"))
        edits.append((start, end, _text(document, where, repository, commit)))
        _inner(wanted, where)["revision"] = commit
        pinned.append(Pinned(repository["repo"], revision or "main", commit))
    if edits:
        _rewrite(path, document, edits, wanted)
    return pinned


def names_any(path: Path) -> bool:
    """Whether the recipe ``path`` names a repository of a hub.

    Raises:
        RecipeError: the file cannot be read.
    """
    return any(_repositories(read(path).data))


def _unpinned(data: Json) -> Iterator[tuple[Where, Literal["model", "dataset"], dict[str, Json]]]:
    """(place, kind, mapping) of every repository in a recipe's data that is at no commit."""
    return (
        (where, kind, repository)
        for where, kind, repository in _repositories(data)
        if not re.fullmatch(COMMIT[1:-1], str(repository.get("revision")))
    )


def _repositories(
    data: Json, where: Where = ()
) -> Iterator[tuple[Where, Literal["model", "dataset"], dict[str, Json]]]:
    """(place, kind, mapping) of every repository in a recipe's data."""
    if isinstance(data, list):
        for i, inner in enumerate(data):
            yield from _repositories(inner, (*where, i))
    elif isinstance(data, dict):
        kind = KINDS.get(str(where[-1])) if where else None
        if kind and re.fullmatch(REPO[1:-1], str(data.get("repo"))):
            yield where, kind, data
            return
        for key, inner in data.items():
            yield from _repositories(inner, (*where, key))


def _scalars(text: str) -> dict[tuple[int, int], tuple[int, int]]:
    """(line, column) of every scalar → where it begins and ends in ``text``."""
    import yaml

    tokens = (
        token
        for token in yaml.scan(text, Loader=yaml.SafeLoader)
        if isinstance(token, yaml.ScalarToken)
    )
    return {
        (t.start_mark.line + 1, t.start_mark.column + 1): (t.start_mark.index, t.end_mark.index)
        for t in tokens
    }


def _slot(
    document: Document,
    scalars: dict[tuple[int, int], tuple[int, int]],
    where: Where,
    repository: dict[str, Json],
) -> tuple[int, int, str]:
    """Where the commit goes in the text, and the revision that stands there."""
    text = document.text
    if repository.get("revision") is not None:
        start, end = scalars[document.values[(*where, "revision")]]
        return start, end, text[start:end].strip("\"'")
    if "revision" in repository:  # a key without a value
        colon = text.index(":", scalars[document.keys[(*where, "revision")]][1]) + 1
        return colon, colon, ""
    end = scalars[document.values[(*where, "repo")]][1]
    if not _is_flow(document, scalars, where):
        end += len(re.split("[\r\n]", text[end:], maxsplit=1)[0])  # after the line's comment
    return end, end, ""


def _is_flow(
    document: Document, scalars: dict[tuple[int, int], tuple[int, int]], where: Where
) -> bool:
    """Whether the mapping stands in braces: then it does not begin with its first key."""
    return document.values[where] not in scalars


def _text(document: Document, where: Where, repository: dict[str, Json], commit: str) -> str:
    # 40 digits would be a number
    value = commit if is_text(commit) else f'"{commit}"'
    if repository.get("revision") is not None:
        return value
    if "revision" in repository:
        return f" {value}"
    if _is_flow(document, _scalars(document.text), where):
        return f", revision: {value}"
    line_end = "\r\n" if "\r\n" in document.text else "\n"
    return f"{line_end}{' ' * (document.keys[(*where, 'repo')][1] - 1)}revision: {value}"


def _inner(data: Json, where: Where) -> Json:
    for key in where:
        data = data[key]
    return data


def _rewrite(
    path: Path, document: Document, edits: list[tuple[int, int, str]], wanted: Json
) -> None:
    text = document.text
    for start, end, new in sorted(edits, reverse=True):
        text = text[:start] + new + text[end:]
    try:
        same = parse(text, str(path)).data == wanted
    except RecipeError:
        same = False
    if not same:
        raise RecipeError(
            f"cannot edit `{path}` without changing more",
            hint=f"write it by hand: {edits[0][2].strip()}",
        )
    target = path.resolve()
    aside = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        aside.write_bytes(text.encode())
        shutil.copymode(target, aside)
        aside.replace(target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise RecipeError(f"cannot write `{path}`: {error.strerror}") from None
