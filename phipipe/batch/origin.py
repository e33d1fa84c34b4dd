"""Where a fresh machine installs phipipe from: what the user says, or where this one came from.

Never a bare name by itself: whoever owns that name in a public index would run there.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Mapping

from phipipe.errors import RecipeError
from phipipe.steps import Json

EXAMPLE = "--install 'phipipe @ git+https://HOST/OWNER/phipipe@TAG'"
NAMED = re.compile(r"phipipe\s*(?:\[([a-z, ]*)\])?\s*(.*)", re.S)
URL = re.compile(r"(git\+)?(https|ssh|file)://")


def requirement(given: str | None, extras: frozenset[str] = frozenset()) -> str:
    """The one word for `pip install` that brings phipipe with ``extras``.

    Args:
        given: the user's own: `phipipe @ URL`, a URL, a path, or a name with a version of an index
            that the user vouches for. None: the commit that this phipipe was installed from.

    Raises:
        RecipeError: it is none of these, or nothing is given and nobody knows where this phipipe
            came from.
    """
    text = (own() if given is None else given).strip()
    if not text or not text.isprintable() or text.startswith("-"):
        raise RecipeError(f"`{text}` is nothing that pip installs phipipe from", hint=EXAMPLE)
    if URL.match(text):
        text = f"phipipe @ {text}"
    if not extras:
        return text
    named = NAMED.fullmatch(text)
    if named is None:  # a path
        return f"{text}[{','.join(sorted(extras))}]"
    have = {extra.strip() for extra in (named[1] or "").split(",") if extra.strip()}
    rest = f" {named[2]}" if named[2].startswith("@") else named[2]
    return f"phipipe[{','.join(sorted(have | extras))}]{rest}"


def own() -> str:
    """The commit that this phipipe was installed from.

    Raises:
        RecipeError: it came from elsewhere.
    """
    try:
        read = importlib.metadata.distribution("phipipe").read_text
        told: Mapping[str, Json] = json.loads(read("direct_url.json") or "{}")
        return f"phipipe @ git+{told['url']}@{told['vcs_info']['commit_id']}"
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        raise RecipeError(
            "a machine of GitHub's is fresh: say where it installs phipipe from", hint=EXAMPLE
        ) from None
