"""Files of settings: the project's ``phipipe.toml`` and the user's ``config.toml``.

The environment beats the project's file, and that beats the user's. A project may be a stranger's:
most settings count there only if the user has trusted the file as it is (``trust``).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from phipipe.errors import RecipeError
from phipipe.settings import toml
from phipipe.settings.rows import BY_KEY, SETTINGS, Value, checked

CONFIG, OFF = "PHIPIPE_CONFIG", "off"
PROJECT, USER, TRUSTED = "phipipe.toml", "config.toml", "trusted.json"
MAX_TRUSTED = 1000  # files; the oldest are forgotten


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of settings, which may not be there."""

    path: Path
    is_project: bool
    found: bool


def files(environ: Mapping[str, str] = os.environ) -> list[File]:
    """The files that count, the stronger one first. PHIPIPE_CONFIG names another for the user's, or
    says `off`.

    Raises:
        RecipeError: PHIPIPE_CONFIG names a file that is not there.
    """
    named = environ.get(CONFIG, "")
    if named == OFF:
        return []
    user = _user_file(environ)
    if named and not user.is_file():
        raise RecipeError(
            f"{CONFIG} is `{named}`, and no file is there",
            hint=f"give the path of a file of settings, or `{OFF}`",
        )
    project = _project_file()
    above = [File(path=project, is_project=True, found=True)] if project else []
    return [*above, File(path=user, is_project=False, found=user.is_file())]


def values(environ: Mapping[str, str] = os.environ) -> dict[str, Value]:
    """Settings that are set, by key; their texts make sense.

    Raises:
        RecipeError: one does not, or a file is wrong, or sets what asks for the user's trust.
    """
    found: dict[str, Value] = {}
    for setting in SETTINGS:
        if text := environ.get(setting.variable):
            value = Value(text=text, name=setting.variable, origin="environment")
            found[setting.key] = replace(value, text=checked(setting, value))
    for file in (file for file in files(environ) if file.found):
        content = toml.read(file.path)
        given = {k: v for k, v in toml.values(content).items() if k not in found}
        if file.is_project and any(BY_KEY[key].asks_trust for key in given):
            _ask_trust(content, given, environ)
        found |= given
    return found


def from_files(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What files say and the environment does not, as environment variables."""
    return {
        BY_KEY[key].variable: value.text
        for key, value in values(environ).items()
        if value.base is not None
    }


def given(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What the user has set of our own variables, in files too: none of them may hold a secret."""
    own = {name: value for name, value in environ.items() if name.startswith("PHIPIPE_") and value}
    return dict(sorted({**from_files(environ), **own}.items()))


def trust(path: Path, environ: Mapping[str, str] = os.environ) -> None:
    """Have the file ``path`` decide every setting, as long as it stays as it is.

    Raises:
        RecipeError: it is no file of settings that makes sense, or the trust cannot be noted.
    """
    content = toml.read(path)
    toml.values(content)
    notes, target = _trusted(environ), _user_file(environ).with_name(TRUSTED)
    notes.pop(str(path.resolve()), None)
    notes[str(path.resolve())] = _fingerprint(content)
    kept = dict(list(notes.items())[-MAX_TRUSTED:])
    aside = target.with_name(f".{TRUSTED}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside.write_text(json.dumps(kept, indent=1), "utf-8")
        aside.replace(target)
    except OSError as error:
        raise RecipeError(f"cannot write `{target}`: {error.strerror}") from None


def is_trusted(content: toml.Content, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the user trusts the file with this ``content``, which has not changed since."""
    return _trusted(environ).get(str(content.path.resolve())) == _fingerprint(content)


def _ask_trust(
    content: toml.Content, given: Mapping[str, Value], environ: Mapping[str, str]
) -> None:
    if is_trusted(content, environ):
        return
    key = next(key for key in given if BY_KEY[key].asks_trust)
    known = str(content.path.resolve()) in _trusted(environ)
    why = "the file has changed since you trusted it" if known else "you have not trusted this file"
    raise RecipeError(
        f"{given[key].name} needs your trust, since a project can be a stranger's; {why}",
        hint=f"read it, then `phipipe config trust`; or set {BY_KEY[key].variable} yourself",
    )


def _trusted(environ: Mapping[str, str]) -> dict[str, str]:
    """Path → fingerprint of what is trusted; nothing where the note is missing or damaged."""
    try:
        notes = json.loads(_user_file(environ).with_name(TRUSTED).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return {str(k): str(v) for k, v in notes.items()} if isinstance(notes, dict) else {}


def _fingerprint(content: toml.Content) -> str:
    return hashlib.sha256(content.text.encode()).hexdigest()


def _user_file(environ: Mapping[str, str]) -> Path:
    from platformdirs import user_config_path

    named = environ.get(CONFIG, "")
    if named and named != OFF:
        return Path(named).absolute()
    return user_config_path("phipipe", appauthor=False) / USER


def _project_file() -> Path | None:
    """The nearest one, in the current folder or above."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed
        return None
    paths = (folder / PROJECT for folder in (here, *here.parents))
    return next((path for path in paths if _is_file(path)), None)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a folder above that cannot be looked into
        return False
