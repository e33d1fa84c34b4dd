"""The recipes that come with phipipe: found by name, described, and copied to start from."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from phipipe.errors import RecipeError
from phipipe.files import new_files, shipped, user_paths
from phipipe.recipe import device as devices
from phipipe.recipe import document
from phipipe.steps import Json
from phipipe.store import free_space
from phipipe.suggestions import near, shorten

SCHEMA = "recipe.schema.json"
SCHEMA_LINE = re.compile(r"^# yaml-language-server: \$schema=.*$", re.M)
SENTENCE = re.compile(r".*?\.(?=\s|$)")


@dataclass(frozen=True, kw_only=True)
class ShippedRecipe:
    """A recipe as its file has it; of a matrix, what all of its variants name."""

    name: str
    path: Path
    model: str
    devices: tuple[str, ...]
    backends: tuple[str, ...]
    precisions: tuple[str, ...]
    builds: int
    tags: tuple[str, ...]
    summary: str


def names() -> tuple[str, ...]:
    """Names of all shipped recipes, sorted."""
    return tuple(sorted(path.stem for path in shipped.folder("recipes").glob("*.yaml")))


def find(name: str) -> Path:
    """The file of the shipped recipe ``name``; ``name`` may end in ``.yaml``.

    Raises:
        RecipeError: there is no such recipe.
    """
    stem = name.removesuffix(".yaml")
    if stem not in names():
        raise RecipeError(
            f"there is no shipped recipe `{shorten(name)}`{near(stem, names())}",
            hint="phipipe recipes ls",
        )
    return shipped.folder("recipes") / f"{stem}.yaml"


def load(name: str) -> ShippedRecipe:
    """The shipped recipe ``name``, described.

    Raises:
        RecipeError: there is no such recipe.
    """
    path = find(name)
    data: Mapping[str, Json] = document.read(path).data
    variants = [{**data, **variant} for variant in data.get("matrix") or [{}]]

    def named(key: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys(str(one[key]) for one in variants if key in one))

    return ShippedRecipe(
        name=path.stem,
        path=path,
        model=_model(data["source"]),
        devices=named("device"),
        backends=named("backend"),
        precisions=named("precision"),
        builds=len(variants),
        tags=tuple(data.get("tags", ())),
        summary=_summary(path.read_text("utf-8")),
    )


def _model(source: Mapping[str, Json]) -> str:
    """The model's name in the hub, without its owner and its commit; or that of the embedded
    one."""
    return str(source.get("repo") or source.get("builtin")).rpartition("/")[2]


def _summary(text: str) -> str:
    """The first sentence of the comment at the top of a recipe."""
    words: list[str] = []
    for line in text.splitlines()[1:]:
        if not line.startswith("# ") or line.startswith("#   "):
            break
        words.append(line.removeprefix("# "))
    whole = " ".join(words)
    sentence = SENTENCE.match(whole)
    return sentence.group() if sentence else whole


def select(device: str | None = None, model: str | None = None) -> list[ShippedRecipe]:
    """Shipped recipes in the order of their names.

    Args:
        device: those that build for this device, and the one its device file starts from.
        model: those whose model has this in its name; case, hyphens and dots do not count.

    Raises:
        RecipeError: there is no such device.
    """
    recipes = [load(name) for name in names()]
    if device is not None:
        recipes = [one for one in recipes if one.name in _for_device(device, recipes)]
    if model is not None:
        recipes = [one for one in recipes if _letters(model) in _letters(one.model)]
    return recipes


def _for_device(device: str, recipes: Sequence[ShippedRecipe]) -> set[str]:
    if device not in devices.names():
        raise RecipeError(
            f"there is no device `{shorten(device)}`{near(device, devices.names())}",
            hint="phipipe devices",
        )
    start = devices.load(device).recipe
    return {one.name for one in recipes if device in one.devices or one.name == start}


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def copy(name: str, to: Path | None = None) -> Path:
    """Copy the shipped recipe ``name`` to ``to``, a new file or a folder; without it, into the
    working folder. What the copy says of its schema and of its own path is made right.

    Returns:
        The new file.

    Raises:
        RecipeError: there is no such recipe, or the file is there already or cannot be written.
        StoreError: there is no room.
    """
    source = find(name)
    target = Path(source.name) if to is None else to / source.name if to.is_dir() else to
    if odd := user_paths.problem(target, user_paths.Kind.NEW_FILE):
        raise RecipeError(
            f"cannot write `{user_paths.shown(target)}`: it {odd}", hint="choose another name"
        )
    text = SCHEMA_LINE.sub(
        lambda _: f"# yaml-language-server: $schema={schema_beside(target)}",
        source.read_text("utf-8"),
        count=1,
    ).replace(f"phipipe run recipes/{source.name}", f"phipipe run {target.as_posix()}")
    with _writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        new_files.create(target, text)
    return target


def schema_beside(target: Path) -> str:
    """Where an editor finds the schema of recipes, seen from the file ``target``: in `../schemas`
    where that folder has it, else beside the file."""
    own = f"../schemas/{SCHEMA}"
    return own if (target.parent / own).is_file() else SCHEMA


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[None]:
    """What the system says against a new file ``target``, as an error for the user."""
    try:
        yield
    except FileExistsError:
        if not os.path.lexists(target):
            reason = "a file is where a folder is needed"
            raise RecipeError(
                f"cannot write `{target}`: {reason}", hint="give another path"
            ) from None
        raise RecipeError(f"`{target}` is there already", hint="give another path") from None
    except OSError as error:
        if error.errno in free_space.FULL:
            place = free_space.Folder(target.parent, "make room there, or choose another folder")
            raise free_space.error([place], reason=str(error.strerror)) from None
        raise RecipeError(
            f"cannot write `{target}`: {error.strerror}", hint="choose another folder"
        ) from None
