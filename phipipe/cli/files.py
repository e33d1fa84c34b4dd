"""Files that the user named, to be written or compared as they are."""

from __future__ import annotations

from pathlib import Path

from phipipe.errors import RecipeError
from phipipe.files.user_paths import Kind, problem, shown

ANOTHER = "give another path"


def save(path: Path, text: str) -> None:
    """Write ``text``, as it is.

    Raises:
        RecipeError: the system does not let us.
        StoreError: there is no room.
    """
    if odd := problem(path, Kind.NEW_FILE):
        raise RecipeError(f"cannot write `{shown(path)}`: it {odd}", hint=ANOTHER)
    try:
        path.write_bytes(text.encode())
    except OSError as error:
        from phipipe.store import free_space

        if error.errno in free_space.FULL:
            full = [free_space.Folder(path.parent, free_space.KEEP_OUT)]
            raise free_space.error(
                full, reason=str(error.strerror), needed_bytes=len(text)
            ) from None
        raise RecipeError(f"cannot write `{path}`: {error.strerror}", hint=ANOTHER) from None


def content(path: Path, limit: int, kind: str, hint: str) -> bytes:
    """The first ``limit`` bytes of a ``kind`` of file; ``hint`` says how to get one.

    Raises:
        RecipeError: there is none, or the system does not let us.
    """
    if odd := problem(path, Kind.FILE):
        raise RecipeError(f"cannot read `{shown(path)}`: it {odd}", hint=ANOTHER)
    try:
        with path.open("rb") as stream:
            return stream.read(limit)
    except FileNotFoundError:
        raise RecipeError(f"there is no {kind} at `{path}`", hint=hint) from None
    except OSError as error:
        raise RecipeError(f"cannot read `{path}`: {error.strerror}", hint=hint) from None
