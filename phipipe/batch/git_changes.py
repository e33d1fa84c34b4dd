"""Which files changed since a commit, as git says: what it tracks and differs, and what it was not
told of yet."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

from phipipe.errors import RecipeError
from phipipe.files.user_paths import resolved


class Changes:
    """What changed since ``ref``, in every repository that is asked about.

    What git ignores counts as unchanged, and so does a model or text outside of any repository.
    """

    def __init__(self, ref: str) -> None:
        self._ref = ref
        self._top = cache(_top)
        self._touched = cache(self._find)

    def has(self, path: Path) -> bool:
        """Whether the file ``path``, or anything in the folder ``path``, changed; False outside of
        repositories.

        Raises:
            RecipeError: there is no git, or no such commit.
        """
        path = resolved(path)
        folder = path if path.is_dir() else path.parent
        top = self._top(folder) if folder.is_dir() else None
        return top is not None and path in self._touched(top)

    def check(self, folder: Path) -> None:
        """Raise a RecipeError where ``folder`` is in no repository that knows the commit."""
        top = self._top(resolved(folder))
        if top is None:
            words = (
                _run(resolved(folder), "rev-parse", "--show-toplevel")
                .stderr.decode(errors="replace")
                .strip()
            )
            raise RecipeError(
                f"--changed-since {self._ref}: git finds no repository that `{folder}` is in: "
                f"{words}",
                hint="leave the option out, or name recipes that git keeps",
            )
        self._touched(top)

    def _find(self, top: Path) -> frozenset[Path]:
        """Changed files of the repository, and the folders that they are in."""
        commit = (
            ""
            if self._ref.startswith("-")
            else _git(top, "rev-parse", "--verify", f"{self._ref}^{{commit}}")
        )
        if not commit:
            raise RecipeError(
                f"--changed-since {self._ref}: the repository `{top}` has no such commit",
                hint="name a branch, a tag or a commit; in CI, fetch enough history (depth 0)",
            )
        diff = _git(
            top, "diff", "--name-only", "--no-renames", "--no-ext-diff", "-z", commit.strip(), "--"
        )
        new = _git(top, "ls-files", "--others", "--exclude-standard", "-z")
        if diff is None or new is None:
            raise RecipeError(
                f"git cannot say what changed in `{top}` since {self._ref}",
                hint="try `git diff` there",
            )
        files = {top / name for name in (diff + new).split("\0") if name}
        return frozenset(files | {parent for path in files for parent in path.parents})


def _top(folder: Path) -> Path | None:
    """The root of the repository that ``folder`` is in."""
    root = _git(folder, "rev-parse", "--show-toplevel")
    return None if root is None else resolved(Path(root.rstrip("\r\n")))


def _git(folder: Path, *words: str) -> str | None:
    """What git answers, None where it refuses."""
    done = _run(folder, *words)
    return os.fsdecode(done.stdout) if done.returncode == 0 else None


def _run(folder: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, check=False)
    except (OSError, ValueError) as error:  # ValueError: a NUL character
        message = (
            f"--changed-since asks git, which cannot be run: "
            f"{getattr(error, 'strerror', None) or error}"
        )
        raise RecipeError(message, hint="install git") from None
