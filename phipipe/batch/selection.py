"""Which builds a batch is made of: recipes found in folders, read, and chosen by name, tag, device
or change.

What a recipe that cannot be read would have been is unknown, so it counts as chosen: a batch that
leaves it out in silence would look better than it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import BaseModel

from phipipe.batch.git_changes import Changes
from phipipe.batch.undisturbed import undisturbed
from phipipe.errors import PhipipeError, RecipeError
from phipipe.files.user_paths import inside, resolved
from phipipe.planning.plan import Plan
from phipipe.recipe import loading
from phipipe.recipe.build import Build
from phipipe.suggestions import shorten
from phipipe.words import counted

PATTERN = "*.yaml"
MAX_GLOB = 200  # characters; long ones take long to match
LISTED = 8  # names that a message repeats


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to choose; of each kind one must match, a kind without words matches everything. Words
    are globs."""

    names: Sequence[str] = ()  # of builds, or of whole recipes
    tags: Sequence[str] = ()
    devices: Sequence[str] = ()
    backends: Sequence[str] = ()
    changed_since: str | None = None  # a git commit

    def takes(self, build: Build) -> bool:
        recipe = build.recipe
        return (
            _matches(self.names, (build.name, recipe.name))
            and _matches(self.tags, recipe.tags)
            and _matches(self.devices, (recipe.device,))
            and _matches(self.backends, (recipe.backend,))
        )

    def globs(self) -> list[str]:
        return [*self.names, *self.tags, *self.devices, *self.backends]

    def words(self) -> str:
        """As on the command line."""
        kinds = (
            ("name", self.names),
            ("tag", self.tags),
            ("device", self.devices),
            ("backend", self.backends),
        )
        chosen = [f"--{option} {word}" for option, words in kinds for word in words]
        return " ".join(
            [*chosen, *([f"--changed-since {self.changed_since}"] if self.changed_since else [])]
        )


def _matches(patterns: Sequence[str], words: Iterable[str]) -> bool:
    return not patterns or any(fnmatchcase(word, pattern) for word in words for pattern in patterns)


@dataclass(kw_only=True)
class Item:
    """One build of a batch; or a recipe that cannot be read, whose ``build`` is None and whose name
    is its file's.

    ``error`` says why it cannot be built, as far as is known before anything runs.
    """

    name: str
    path: Path
    build: Build | None = None
    plan: Plan | None = None
    error: PhipipeError | None = None


def files(paths: Sequence[Path]) -> list[Path]:
    """Recipe files: those named, and of folders every ``*.yaml``, sorted; each once."""
    recipes = [
        inner
        for path in paths
        for inner in (sorted(path.glob(PATTERN)) if path.is_dir() else [path])
    ]
    once: dict[Path, Path] = {}
    for path in recipes:
        once.setdefault(resolved(path), path)
    return list(once.values())


@undisturbed()
def select(
    paths: Sequence[Path],
    wanted: Wanted,
    options: Mapping[str, type[BaseModel]],
    sets: Sequence[str] = (),
) -> list[Item]:
    """The builds that ``paths`` (recipe files, folders of them) hold and that are ``wanted``.

    Args:
        options: backend name → the model of its ``quantize:`` section.
        sets: ``dotted.key=value`` overrides of every recipe.

    Raises:
        RecipeError: nothing is chosen; two builds have one name; git cannot answer.
    """
    if long := [word for word in wanted.globs() if len(word) > MAX_GLOB]:
        raise RecipeError(
            f"`{shorten(long[0])}` is no name to choose by: it has {len(long[0])} characters"
        )
    recipes = files(paths)
    known: loading.Known = {}
    every = [item for path in recipes for item in _read(path, options, sets, known)]
    devices = {
        _inside(i.build, i.build.recipe.device)
        for i in every
        if i.build and _is_file(i.build.recipe.device)
    }
    named = {resolved(path) for path in paths}
    every = [
        i for i in every if i.build or resolved(i.path) in named or resolved(i.path) not in devices
    ]
    _refuse_twins(every)
    chosen = [item for item in every if item.build is None or wanted.takes(item.build)]
    if wanted.changed_since is not None:
        chosen = _changed(chosen, Changes(wanted.changed_since))
    if not chosen:
        raise _nothing(paths, recipes, every, wanted)
    return chosen


def _read(
    path: Path,
    options: Mapping[str, type[BaseModel]],
    sets: Sequence[str],
    known: loading.Known,
) -> list[Item]:
    try:
        return [
            Item(name=build.name, path=path, build=build)
            for build in loading.load(path, options=options, sets=sets, known=known)
        ]
    except PhipipeError as error:
        return [Item(name=path.stem, path=path, error=error)]


def _is_file(device: str) -> bool:
    return device.endswith((".yaml", ".yml"))


def _inside(build: Build, path: str) -> Path:
    return inside(build.folder, path)


def _refuse_twins(items: Sequence[Item]) -> None:
    """Two recipes, or builds of two, must not share a folder of the output."""
    seen: dict[tuple[str, str], Path] = {}
    for item in items:
        for kind, name in (
            (("recipes", item.build.recipe.name), ("builds", item.build.name)) if item.build else ()
        ):
            first = seen.setdefault((kind, name), item.path)
            if first != item.path:
                raise RecipeError(
                    f"two {kind} are called `{name}`: in `{first}` and in `{item.path}`",
                    hint="change `name:` in one of them: it names the folder of its packages",
                )


def _changed(items: Sequence[Item], changes: Changes) -> list[Item]:
    for folder in dict.fromkeys(item.path.parent for item in items):
        changes.check(folder)
    return [item for item in items if any(changes.has(path) for path in _inputs(item))]


def _inputs(item: Item) -> list[Path]:
    """The recipe's own file, and local files and folders that it names."""
    if item.build is None:
        return [item.path]
    recipe = item.build.recipe
    learned = recipe.calibrate.text.file if recipe.calibrate.text else None
    asked = recipe.evaluate.generate.prompts.file if recipe.evaluate.generate else None
    named = [
        *recipe.source.paths.values(),
        recipe.evaluate.text.file,
        learned,
        asked,
        recipe.device if _is_file(recipe.device) else None,
    ]
    return [item.path, *(_inside(item.build, path) for path in named if path)]


def _nothing(
    paths: Sequence[Path], recipes: Sequence[Path], every: Sequence[Item], wanted: Wanted
) -> RecipeError:
    places = ", ".join(f"`{path}`" for path in paths)
    if not recipes:
        return RecipeError(
            f"no recipes in {places}: no file there ends in .yaml",
            hint="name recipes, or their folder",
        )
    there = f"{counted(len(every), 'build')} of {counted(len(recipes), 'recipe')} in {places}"
    message = f"nothing is chosen by {wanted.words()} from {there}"
    kinds = {
        "names": {item.name for item in every},
        "tags": {tag for item in every if item.build for tag in item.build.recipe.tags},
        "devices": {item.build.recipe.device for item in every if item.build},
        "backends": {item.build.recipe.backend for item in every if item.build},
    }
    asked = [kind for kind in kinds if getattr(wanted, kind)]
    return RecipeError(
        message, hint="; ".join(f"{kind} there: {_listed(kinds[kind])}" for kind in asked) or None
    )


def _listed(words: Iterable[str]) -> str:
    ordered = sorted(words)
    more = f" and {len(ordered) - LISTED} more" if len(ordered) > LISTED else ""
    return ", ".join(ordered[:LISTED]) + more if ordered else "none"
