"""A package in the layout of an app, in a folder of the user's or where the app finds it by itself.

Files are copied, by reflink where the file system shares blocks; never linked: what an app changes
in its own folder must not change the package.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from phipipe import backends
from phipipe.errors import StoreError, TargetError
from phipipe.evaluate import papers
from phipipe.package import gate, layouts, ready
from phipipe.package.layout import Facts, Layout, Use
from phipipe.package.manifest_schema import Manifest
from phipipe.store import exports, free_space, keys, refusals

HINT = "`phipipe apps` lists what each app opens"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What became of a package for an app: ``folder`` is None where the app took it into its own
    store; ``written`` is False where everything was there already."""

    app: str
    title: str
    folder: Path | None
    files: Sequence[str]
    written: bool
    installed: str | None
    use: Use


@dataclass(frozen=True)
class Source:
    """A verified package that is exported."""

    manifest: Manifest
    facts: Facts

    @classmethod
    def of(cls, folder: Path, manifest: Manifest) -> Source:
        """The package in ``folder``, whose files were just compared with its ``manifest``."""
        return cls(manifest, ready.facts_in(manifest, folder))

    def layout(self, app: str) -> Layout:
        """The layout of an app that opens it.

        Raises:
            TargetError: there is no such app, or it cannot open the package; says what builds one
                that it can.
        """
        layout = layouts.load(app)
        if objection := layout.objection(self.facts):
            raise TargetError(objection, hint=f"build it with {layout.remedy}; {HINT}")
        return layout


def check(source: Source, apps: Sequence[str], *, installs: bool) -> None:
    """Refuse what one of ``apps`` cannot have, before anything is written.

    Raises:
        TargetError: there is no such app, it cannot open the package, or it is not on this
            machine.
    """
    for app in apps:
        layout = source.layout(app)
        if installs and layout.home is None and layout.create is None:
            raise TargetError(
                f"{layout.title} has no place on this machine that phipipe could put a model at",
                hint="export with --to, and do what is printed then",
            )
        if installs and layout.home is not None:
            layout.home(source.facts)


def write(source: Source, app: str, target: Path, *, force: bool = False) -> Exported:
    """Write the layout for ``app`` into the folder ``target``: as a whole, or not at all.

    Raises:
        TargetError: the app cannot open the package, or not at that place.
        StoreError: ``target`` holds something else; with ``force`` an earlier export is replaced.
    """
    layout, facts = source.layout(app), source.facts
    if facts.folder.resolve() in (target.resolve(), *target.resolve().parents):
        raise StoreError(f"`{target}` is inside the package", hint="choose another --to")
    if reason := layout.misplaced(facts, target):
        raise TargetError(f"{layout.title} {reason}", hint="choose another --to")
    made = dict(layout.makes(facts))
    taken = {to: path for to, path in layout.takes(facts).items() if to not in made}
    exported = Exported(
        app=app,
        title=layout.title,
        folder=target,
        files=sorted((*taken, *made)),
        written=True,
        installed=None,
        use=(layout.after or layout.use)(facts),
    )
    with refusals.guard(target.parent, remedy=free_space.KEEP_OUT):
        if _is_there(target, _digests(source.manifest, taken, made), layout.leaves):
            return replace(exported, written=False)
        patterns = (*exported.files, *layout.leaves, *backends.load(facts.backend).files)
        _check_replaceable(target, patterns, force)
        exports.replace(target, lambda new: _fill(new, facts.folder, taken, made))
    return exported


def install(source: Source, app: str, *, force: bool = False) -> Exported:
    """Put the package where ``app`` finds it on this machine.

    Raises:
        TargetError: the app cannot open the package, has no such place, or is not installed.
        StoreError: something else is there, and ``force`` is not given.
        StepFailed: the app's own command fails.
    """
    layout, facts = source.layout(app), source.facts
    check(source, [app], installs=True)
    if layout.create is not None:
        said = layout.create(facts, force)
        return Exported(
            app=app,
            title=layout.title,
            folder=None,
            files=[],
            written=True,
            installed=said,
            use=Use(),
        )
    assert layout.home is not None  # `check` has seen to it
    exported = write(source, app, layout.home(facts), force=force)
    return replace(exported, installed=f"{layout.title}: `{exported.folder}`")


def _fill(new: Path, folder: Path, taken: Mapping[str, str], made: Mapping[str, bytes]) -> None:
    for to, path in taken.items():
        exports.copy_to(folder / path, new / to)
    for to, content in made.items():
        (new / to).parent.mkdir(parents=True, exist_ok=True)
        (new / to).write_bytes(content)


def _digests(
    manifest: Manifest, taken: Mapping[str, str], made: Mapping[str, bytes]
) -> Mapping[str, tuple[int, str]]:
    """Path in the layout → size and SHA-256."""
    listed = {file.path: (file.size, file.sha256) for file in manifest.files}
    own = {to: (len(data), hashlib.sha256(data).hexdigest()) for to, data in made.items()}
    return {to: listed[path] for to, path in taken.items()} | own


def _is_there(target: Path, wanted: Mapping[str, tuple[int, str]], leaves: Sequence[str]) -> bool:
    """Whether ``target`` holds just these files, and what the app ``leaves``; content is read where
    names and sizes fit."""
    if not target.is_dir() or target.is_symlink():
        return False
    try:
        found = keys.walk(target)
        sizes = {path: s.st_size for path, s in found.items() if not _is_like(path, leaves)}
    except StoreError:  # links, empty folders
        return False
    if sizes != {path: size for path, (size, _) in wanted.items()}:
        return False
    return all(keys.hash_file(target / path) == digest for path, (_, digest) in wanted.items())


def _check_replaceable(target: Path, patterns: Sequence[str], force: bool) -> None:
    """Refuse to write where anything is, or with ``force`` anything that no export wrote."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise StoreError(f"`{target}` is in the way: it is no folder", hint="choose another --to")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not force:
        raise StoreError(
            f"`{target}` holds something else",
            hint="choose another --to; --force replaces an earlier export",
        )
    if strange := next(_strange(target, patterns), None):
        raise StoreError(
            f"`{target}` holds `{strange}`, which no export wrote: it is not replaced",
            hint="move it away, or choose another --to",
        )


def _strange(target: Path, patterns: Sequence[str]) -> Iterator[str]:
    """What lies in ``target`` and is nothing that exports of such packages have."""
    known = (*patterns, *gate.COMMON, *papers.APPS, "Modelfile", "*.gguf")
    yield from (path for path in keys.walk(target) if not _is_like(path, known))


def _is_like(path: str, patterns: Sequence[str]) -> bool:
    """Whether the path, or the file's own name, fits one of the patterns."""
    names = (path, PurePosixPath(path).name)
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
