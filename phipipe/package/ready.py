"""What makes a package ready for apps: the small files that they want, and what to do with each."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from phipipe.errors import StepFailed
from phipipe.package import layouts
from phipipe.package.description import Description
from phipipe.package.layout import Facts, Layout, Use, facts_of
from phipipe.package.markdown import Safe, block
from phipipe.store import keys


class Ready(NamedTuple):
    """An app that opens the package's folder, and what to do there. ``words`` and ``then`` are
    Markdown: ours, with names that can be nothing else."""

    title: str
    words: str
    program: Safe | None
    then: str


def uses(package: Description, folder: Path, apps: Collection[str]) -> list[Ready]:
    """Make the files that ``apps`` want of the package in ``folder``, which is not sealed yet; all
    apps that open it.

    Raises:
        StepFailed: one of ``apps`` cannot open it.
    """
    facts = facts_in(package, folder)
    for name in apps:
        layout = layouts.load(name)
        if objection := layout.objection(facts):
            raise StepFailed(objection, hint=f"take `{name}` out of `package.for`")
        for path, content in layout.makes(facts).items():
            if path in layout.inside:
                (folder / path).write_bytes(content)
    return list(_ready(facts))


def facts_in(package: Description, folder: Path) -> Facts:
    """What layouts know of ``package`` in ``folder``."""
    sizes = {path: status.st_size for path, status in keys.walk(folder).items()}
    return facts_of(package, folder, sizes)


def _ready(facts: Facts) -> Iterator[Ready]:
    for layout in layouts.fitting(facts).values():
        use = use_of(layout, facts)
        program = block("\n".join(use.commands), use.language) if use.commands else None
        yield Ready(layout.title, use.words, program, use.then)


def use_of(layout: Layout, facts: Facts) -> Use:
    """What to do in the package's own folder, which may hold the files that are made for the
    app."""
    has_files = layout.inside and all((facts.folder / one).is_file() for one in layout.inside)
    return layout.after(facts) if has_files and layout.after else layout.use(facts)
