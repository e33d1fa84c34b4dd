"""What a layout is: how a package has to lie before an app that people already have opens it.

Each module of ``package.layouts`` declares one as ``LAYOUT``; the folder's listing is the list of
apps. What it says of an app's files is read from that app's own code or documents, which its
docstring names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from phipipe.evaluate import papers
from phipipe.steps import Json

if TYPE_CHECKING:
    from phipipe.package.description import Description

PUBLISHER = "phipipe"  # where an app keeps models by their publishers
CONTEXT = 4096  # tokens, where the recipe names none: what apps take themselves


@dataclass(frozen=True, kw_only=True)
class Built:
    """What decides which apps can open a package, as far as it is known before it is built."""

    backend: str
    api: str  # of the unit that it is for
    options: Mapping[str, Json]  # the backend's own, of `quantize:`
    sees: bool = False


@dataclass(frozen=True, kw_only=True)
class Facts(Built):
    """What layouts know of a package that is there."""

    name: str
    context: int
    """Tokens of prompt and answer together that it is to be served with."""
    licences: Sequence[str]
    """Files of the package: the original's own names."""
    folder: Path
    files: Mapping[str, int]
    """What the runtime needs and the licences: path in the package → size in bytes."""

    def text(self, path: str) -> str:
        """The text of a file of the package; empty where there is none."""
        file = self.folder / path
        return file.read_text("utf-8", errors="replace") if file.is_file() else ""


@dataclass(frozen=True, kw_only=True)
class Use:
    """What to do in a folder: commands, and what to say before and after them (Markdown)."""

    words: str = ""
    then: str = ""
    commands: Sequence[str] = ()
    language: str = "sh"


def _fits(built: Built) -> str | None:
    """Every package of its backends does."""
    return None


def _placed(facts: Facts, folder: Path) -> str | None:
    """Every folder will do."""
    return None


def _makes(facts: Facts) -> Mapping[str, bytes]:
    """The package has all that the app wants."""
    return {}


def whole(facts: Facts) -> Mapping[str, str]:
    """All files of the package that a runtime needs, and the licences, under their own names."""
    return {path: path for path in facts.files}


def only(*patterns: str) -> Callable[[Facts], Mapping[str, str]]:
    """The files of such names and the licences, under their own names."""

    def takes(facts: Facts) -> Mapping[str, str]:
        wanted = (*patterns, *papers.LICENCES)
        return {p: p for p in facts.files if any(fnmatchcase(p, one) for one in wanted)}

    return takes


@dataclass(frozen=True, kw_only=True)
class Layout:
    """An app, and how a package has to lie for it."""

    title: str
    about: str
    """What it is and where it runs, in a sentence."""
    backends: Mapping[str, str]
    """Backend whose packages it opens → what else they must be, in words; "" is nothing."""
    use: Callable[[Facts], Use]
    """What to do in the package's own folder."""
    after: Callable[[Facts], Use] | None = None
    """What to do in an exported folder; None: the same."""
    refuses: Callable[[Built], str | None] = _fits
    """Why it cannot open such a package of its backends, as the end of a sentence that begins with
    the app's title."""
    unfit: Callable[[Facts], str | None] = _fits
    """The same, where only the package's files tell."""
    misplaced: Callable[[Facts, Path], str | None] = _placed
    """Why it cannot open an exported folder at this place."""
    takes: Callable[[Facts], Mapping[str, str]] = whole
    """Path in the exported folder → file of the package."""
    makes: Callable[[Facts], Mapping[str, bytes]] = _makes
    """Path in the exported folder → content of a file that is made for the app; in the package's
    own folder it has the same content."""
    home: Callable[[Facts], Path] | None = None
    """Where on this machine the app finds the package by itself, as an exported folder; raises
    ``TargetError`` where the app is not installed. None: nowhere."""
    create: Callable[[Facts, bool], str] | None = None
    """Instead: have the app take the package in, over another of its name if the second argument
    says so; returns in words what it has now."""
    inside: Sequence[str] = ()
    """Of these, what a package may hold itself (`package.for`)."""
    needs: Sequence[str] = ()
    """Files without which it opens nothing."""
    leaves: Sequence[str] = ()
    """Names, as patterns, of files that the app itself leaves in the folder."""
    version: int = 1
    """Counted up when ``makes`` makes another content."""

    def objection(self, built: Built) -> str | None:
        """Why the app cannot open such a package, as a sentence without its full stop; None: it
        can."""
        if built.backend not in self.backends:
            wanted = " or ".join(f"`{name}`" for name in self.backends)
            return f"{self.title} opens packages of {wanted}, and this is one of `{built.backend}`"
        reason = self.refuses(built)
        if reason is None and isinstance(built, Facts):
            missing = (one for one in self.needs if one not in built.files)
            lack = next(missing, None)
            reason = f"needs `{lack}`, which is not in the package" if lack else self.unfit(built)
        return None if reason is None else f"{self.title} {reason}"

    @property
    def remedy(self) -> str:
        """What builds a package that it opens."""
        return " or ".join(
            f"`backend: {name}`{f' ({need})' if need else ''}"
            for name, need in self.backends.items()
        )


def facts_of(package: Description, folder: Path, files: Mapping[str, int]) -> Facts:
    """What layouts know of ``package`` in ``folder``; ``files`` are all that lie there."""
    return Facts(
        backend=package.backend,
        api=package.api,
        options=package.recipe.quantize,
        sees=package.fidelity.vision is not None,
        name=package.name,
        context=_context(package),
        licences=[path for path in sorted(files) if _is_licence(path)],
        folder=folder,
        files=dict(_needed(files)),
    )


def _is_licence(path: str) -> bool:
    return "/" not in path and any(fnmatchcase(path, pattern) for pattern in papers.LICENCES)


def _needed(files: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """What a runtime needs, and licences: no paper, and nothing that was made for an app."""
    for path, size in sorted(files.items()):
        if _is_licence(path) or not papers.is_paper(PurePosixPath(path)):
            yield path, size


# step and parameter that say what context the files are for; llama.cpp's `convert` did until 2026
_TOLD_CONTEXT = (("outline", "context"), ("convert", "context"), ("bundle", "context_length"))


def _context(package: Description) -> int:
    """As its files have it: what a step was told, else what the recipe asks for."""
    told = (
        step.params.get(key) for name, key in _TOLD_CONTEXT if (step := package.steps.get(name))
    )
    extra = package.recipe.model_extra or {}
    lengths = [*told, package.recipe.quantize.get("context_length"), extra.get("context")]
    known = (length for length in lengths if type(length) is int and length > 0)
    return min(next(known, CONTEXT), package.source.context_length)
