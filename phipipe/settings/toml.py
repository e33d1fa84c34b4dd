"""One file of settings: TOML, read with care; every mistake with its line and column."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path

from phipipe.errors import RecipeError
from phipipe.settings.rows import BY_KEY, SECRET, SETTINGS, Kind, Setting, Value, checked
from phipipe.steps import Json
from phipipe.suggestions import near, shorten, show

MAX_BYTES = 2**16
LISTING = "`phipipe config show` lists all settings"


@dataclass(frozen=True, kw_only=True)
class Content:
    """The text of a file, and the table in it."""

    path: Path
    text: str
    table: dict[str, Json]


def read(path: Path) -> Content:
    """The content of ``path``.

    Raises:
        RecipeError: it cannot be read, or is no TOML.
    """
    try:
        with path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        hint = "check its permissions, or set PHIPIPE_CONFIG=off"
        raise RecipeError(f"cannot read `{path}`: {error.strerror}", hint=hint) from None
    if len(raw) > MAX_BYTES:
        raise RecipeError(f"{path}:1:1: the file is too large: settings take {MAX_BYTES} bytes")
    try:
        text = raw.decode("utf-8-sig")
        return Content(path=path, text=text, table=tomllib.loads(text))
    except UnicodeDecodeError:
        raise RecipeError(f"{path}:1:1: this is not a text file in UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise _no_toml(path, text, str(error)) from None


def _no_toml(path: Path, text: str, said: str) -> RecipeError:
    found = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", said)
    words = said[: found.start()] if found else said
    last = text.rstrip().split("\n")  # where the parser stops if it says no more
    line, column = (found and found.group(1)) or len(last), (found and found.group(2)) or 1
    return RecipeError(
        f"{path}:{line}:{column}: this is not TOML: {shorten(words)}",
        hint='a setting is written KEY = VALUE, text in quotes: cache = "/data/phipipe"',
    )


def values(content: Content) -> dict[str, Value]:
    """The settings of a file, by key.

    Raises:
        RecipeError: a key is unknown, or its value makes no sense; names line and column.
    """
    found: dict[str, Value] = {}
    for key, given in content.table.items():
        place = _place(content, key)
        setting = BY_KEY.get(key)
        if setting is None or not setting.in_files:
            raise _unknown(key, place)
        value = Value(
            text=_text(setting, given, place),
            name=f"{place}: `{key}`",
            origin=place.rpartition(":")[0],
            base=content.path.absolute().parent,
        )
        found[key] = replace(value, text=checked(setting, value))
    return found


def _unknown(key: str, place: str) -> RecipeError:
    if key in BY_KEY:
        return RecipeError(
            f"{place}: `{key}` is never taken from a file, since it decides which code is run",
            hint=f"set {BY_KEY[key].variable} in the environment",
        )
    if SECRET.search(key):
        return RecipeError(
            f"{place}: `{shorten(key)}` sounds like a secret, and files of settings hold none",
            hint="remove it there; give it as an environment variable (HF_TOKEN …)",
        )
    known = [setting.key for setting in SETTINGS if setting.in_files]
    guess = near(key.removeprefix("phipipe_").removeprefix("PHIPIPE_").lower(), known)
    return RecipeError(f"{place}: unknown setting `{shorten(key)}`{guess}", hint=LISTING)


def _text(setting: Setting, given: Json, place: str) -> str:
    """A value as an environment variable would have it."""
    if setting.key == "preflight" and isinstance(given, bool):
        return "on" if given else "off"
    if setting.kind is Kind.NUMBER:
        if isinstance(given, int | float) and not isinstance(given, bool):
            return str(given)
        quotes = "; take the quotes away" if isinstance(given, str) else ""
        message = f"{place}: `{setting.key}` is {show(given)}, not a number{quotes}"
        raise RecipeError(message, hint=LISTING)
    if not isinstance(given, str) or not given:
        shown = show(given) if given != "" else "empty"
        hint = f"it is {setting.kind.value} in quotes; or remove the line"
        raise RecipeError(f"{place}: `{setting.key}` is {shown}", hint=hint)
    return given


def _place(content: Content, key: str) -> str:
    """``path:line:column`` of ``key``."""
    pattern = rf"""^[ \t]*(?:\[+[ \t]*)?(["']?){re.escape(key)}\1[ \t]*[=.\]]"""
    found = re.search(pattern, content.text, re.M)
    if found is None:  # written with escapes
        return f"{content.path}:1:1"
    start = found.end() - len(found.group().lstrip())
    before = content.text[:start]
    return f"{content.path}:{before.count(chr(10)) + 1}:{start - before.rfind(chr(10))}"
