"""The recipe that ``phipipe init`` writes: small, commented, for the device's first unit; it
validates and plans."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from phipipe import backends, failures
from phipipe.errors import PhipipeError, RecipeError
from phipipe.files import new_files, user_paths
from phipipe.output.recipes import Started
from phipipe.planning import starter_choice, starter_source, starter_text, targets
from phipipe.planning.starter_source import Source
from phipipe.recipe import device as devices
from phipipe.recipe import loading
from phipipe.recipe.build import Build
from phipipe.recipe.complaints import complaints
from phipipe.recipe.document import parse
from phipipe.recipe.recipe import Recipe
from phipipe.steps import Json
from phipipe.store import free_space

PRINTABLE = re.compile("[^\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]*")
# Kept by Windows: no folder can have such a name.
KEPT = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def write(
    path: Path,
    *,
    device: str,
    precision: str | None,
    backend: str | None,
    source: str,
    text: str | None = None,
) -> tuple[Started, tuple[str, ...]]:
    """Write a starter recipe to ``path``, and its folder where there is none; never over a file.

    Args:
        device: a device, or a device file, relative to the working folder.
        precision: None: what the device's own recipe has, or the smallest that fits.
        backend: None: what the device's own recipe has, or one that fits its first unit.
        source: ``builtin:NAME``, a folder, a GGUF, or ``OWNER/NAME[/FILE.gguf][@REVISION]`` of the
            hub, which is asked.
        text: the evaluation text: a file, "wikitext" or "stories"; None: what suits the source.

    Returns:
        What was written, with the commands that come next; what to know.

    Raises:
        RecipeError: the file is there or cannot be written, or no recipe takes such a value.
        TargetError: there is no such device, or nothing is built for it that way.
        SourceError: the hub knows no such repository or revision.
    """
    _refuse(path, device, source)
    folder = user_paths.resolved(path.parent)
    target = devices.load(device, Path())
    wanted = starter_source.of_text(source, folder)
    model = starter_source.shape_of(wanted, folder)
    head = {"name": _name(path), "device": _shown(device, folder), "title": target.title}
    exam = starter_source.text_of(text, folder, wanted)
    text_of = partial(starter_text.compose, path, head, source=wanted, exam=exam)
    fitting = starter_choice.fitting(target, precision, backend, model)
    choices = [starter_choice.suited(one, model) for one in fitting]
    chosen = starter_choice.best(choices, model, lambda one: _checked(text_of(one), path, wanted))
    unit = _written(path, text_of(chosen), wanted)
    return _started(path, head, unit, chosen.keys, wanted), (wanted.note,) if wanted.note else ()


def _started(
    path: Path, head: Mapping[str, str], unit: str, chosen: Mapping[str, Json], source: Source
) -> Started:
    return Started(
        recipe=str(path),
        name=head["name"],
        device=head["device"],
        unit=unit,
        backend=chosen["backend"],
        precision=chosen["precision"],
        pinned=source.pinned,
        next=_next(path, source),
    )


def _next(path: Path, source: Source) -> list[str]:
    """The commands that come next."""
    verbs = ("plan", "run") if source.pinned else ("pin", "plan", "run")
    return [f"phipipe {verb} {starter_text.word(path)}" for verb in verbs]


def _shown(device: str, folder: Path) -> str:
    """``device`` as a recipe in ``folder`` names it."""
    return device if device in devices.names() else starter_source.seen_from(folder, device)


def _written(path: Path, text: str, source: Source) -> str:
    """The unit that the recipe ``text`` is for, which is at ``path`` then.

    Raises:
        RecipeError, TargetError: it is no recipe that can be built, or cannot be written.
    """
    with _folder(path.parent):
        unit = targets.of(_checked(text, path, source)).unit.api
        _create(path, text)
    return unit


def _refuse(path: Path, device: str, source: str) -> None:
    if not all(PRINTABLE.fullmatch(text) for text in (str(path), device, source)):
        raise RecipeError(
            "a name with characters that no recipe can hold", hint="use letters, digits, `-`, `_`"
        )
    if os.path.lexists(path):
        raise RecipeError(f"`{path}` is there already", hint="choose another name")
    if odd := user_paths.problem(path, user_paths.Kind.NEW_FILE):
        raise RecipeError(
            f"cannot write `{user_paths.shown(path)}`: it {odd}", hint="choose another name"
        )


def _name(path: Path) -> str:
    """The recipe's own, after its file; one that a package's folder can have everywhere."""
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower())[:80].strip("-._") or "recipe"
    return f"{name[:73]}-recipe" if KEPT.fullmatch(name) else name


def _checked(text: str, path: Path, source: Source) -> Build:
    """The build that ``text`` describes.

    Raises:
        RecipeError, TargetError: it is no recipe that can be built.
    """
    stand_in = (
        text
        if source.pinned
        else text.replace(starter_text.flow(source.keys), starter_text.flow(source.filled))
    )
    document = parse(stand_in, str(path))
    try:
        Recipe.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(map(str, where))}: {message}"
            for where, message, _ in complaints(error, Recipe)
        ]
        raise RecipeError("\n".join(wrong)) from None
    builds, problem = loading.of_document(
        document, user_paths.resolved(path.parent), options=backends.OptionsOf()
    )
    errors: Sequence[PhipipeError] = [*([problem] if problem else []), *targets.problems(builds)]
    if errors:
        whole = failures.as_one(errors)  # of a file that nobody has seen: its places help nobody
        words = [problem.message for problem in whole.problems] or [whole.message]
        raise type(whole)("; ".join(words), hint=whole.hint)
    return builds[0]


@contextlib.contextmanager
def _folder(folder: Path) -> Iterator[None]:
    """``folder``, made if it is not there; and gone again if nothing comes into it."""
    missing = [one for one in (folder, *folder.parents) if not os.path.lexists(one)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise RecipeError(
            f"cannot write into `{folder}`: {getattr(error, 'strerror', error)}"
        ) from None
    try:
        yield
    except BaseException:
        for one in missing:
            with contextlib.suppress(OSError):
                one.rmdir()
        raise


def _create(path: Path, text: str) -> None:
    try:
        new_files.create(path, text)
    except FileExistsError:
        raise RecipeError(f"`{path}` is there already", hint="choose another name") from None
    except OSError as error:
        if error.errno in free_space.FULL:
            raise free_space.error(
                [free_space.Folder(path.parent, "make room there, or choose another folder")],
                reason=str(error.strerror),
            ) from None
        raise RecipeError(
            f"cannot write `{path}`: {error.strerror}", hint="choose another folder"
        ) from None
    except ValueError as error:
        raise RecipeError(f"cannot write `{path}`: {error}", hint="choose another name") from None
