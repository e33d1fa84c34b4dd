"""Apps that people already have: which open a package, and a package in their layout."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from phipipe.api.workplace import Note, UserPath, package_path, path_of, texts, warned
from phipipe.errors import RecipeError, StoreError
from phipipe.files.user_paths import Kind
from phipipe.output.apps import App as App
from phipipe.output.apps import Export as Export
from phipipe.package import export, layouts, ready
from phipipe.package.export import Exported, Source
from phipipe.package.layout import Facts, Layout, Use
from phipipe.signing import opening


def apps(package: UserPath | None = None) -> list[App]:
    """The apps that packages can be made ready for; of the ``package`` in this folder, which of
    them open it and how.

    Raises:
        SourceError: it is no package, was changed, holds what phipipe never packages, or must not
            be trusted.
    """
    return listed(package, warned)


def listed(package: UserPath | None, note: Note) -> list[App]:
    """As ``apps``; ``note`` hears what the user's trust file only warns of."""
    facts = None if package is None else _source(package_path(package), note).facts
    return [_app(name, layouts.load(name), facts) for name in layouts.names()]


def _app(name: str, layout: Layout, facts: Facts | None) -> App:
    why = None if facts is None else layout.objection(facts)
    fits = None if facts is None else why is None
    use = ready.use_of(layout, facts) if facts and fits else Use()
    return App(
        app=name,
        title=layout.title,
        about=layout.about,
        opens=dict(layout.backends),
        adds=list(layout.inside),
        installs=layout.home is not None or layout.create is not None,
        fits=fits,
        why=why,
        words=use.words,
        commands=list(use.commands),
        then=use.then,
    )


def exported(
    package: Path,
    names: Sequence[str] | str,
    to: UserPath | None,
    *,
    install: bool = False,
    force: bool = False,
    note: Note = warned,
) -> list[Export]:
    """The package in the layout of each app; as ``Package.export``. ``note`` hears what the user's
    trust file only warns of."""
    chosen = texts((names,) if isinstance(names, str) else names, "apps")
    if not chosen:
        raise RecipeError("no app is named", hint=f"apps: {', '.join(layouts.names())}")
    if to is None and not install:
        raise RecipeError(
            "there is nowhere to export to", hint="give a folder (--to), or install it (--install)"
        )
    target = None if to is None else path_of(to, Kind.NEW_FOLDER, "the export", StoreError)
    source = _source(package, note)
    export.check(source, chosen, installs=install)
    made = []
    for name in dict.fromkeys(chosen):
        if target is not None:
            place = target if len(set(chosen)) == 1 else target / name
            made.append(_document(export.write(source, name, place, force=force)))
        if install:
            made.append(_document(export.install(source, name, force=force)))
    return made


def _document(one: Exported) -> Export:
    return Export(
        app=one.app,
        title=one.title,
        folder=one.folder,
        files=list(one.files),
        written=one.written,
        installed=one.installed,
        words=one.use.words,
        commands=list(one.use.commands),
        then=one.use.then,
    )


def _source(folder: Path, note: Note) -> Source:
    return Source.of(folder, opening.open_(folder, note))
