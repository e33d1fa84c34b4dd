"""The original's licence: its files go along, and none is invented."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from phipipe.errors import StepFailed
from phipipe.evaluate.papers import LICENCES
from phipipe.package.description import Licence
from phipipe.store.files import copy

# Phrases by which a licence's text is known, and the Hugging Face hub's names for them.
KNOWN = {
    "mit": ("permission is hereby granted, free of charge", "without warranty of any kind"),
    "apache-2.0": ("apache license", "version 2.0, january 2004"),
}
# The hub's names of licences that have an identifier in the SPDX list, by which tools know them.
SPDX: Mapping[str, str] = {
    "afl-3.0": "AFL-3.0",
    "agpl-3.0": "AGPL-3.0-only",
    "apache-2.0": "Apache-2.0",
    "artistic-2.0": "Artistic-2.0",
    "bsd-2-clause": "BSD-2-Clause",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-3-clause-clear": "BSD-3-Clause-Clear",
    "bsl-1.0": "BSL-1.0",
    "cc-by-2.0": "CC-BY-2.0",
    "cc-by-3.0": "CC-BY-3.0",
    "cc-by-4.0": "CC-BY-4.0",
    "cc-by-nc-2.0": "CC-BY-NC-2.0",
    "cc-by-nc-3.0": "CC-BY-NC-3.0",
    "cc-by-nc-4.0": "CC-BY-NC-4.0",
    "cc-by-nc-nd-3.0": "CC-BY-NC-ND-3.0",
    "cc-by-nc-nd-4.0": "CC-BY-NC-ND-4.0",
    "cc-by-nc-sa-4.0": "CC-BY-NC-SA-4.0",
    "cc-by-nd-4.0": "CC-BY-ND-4.0",
    "cc-by-sa-3.0": "CC-BY-SA-3.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0",
    "cc0-1.0": "CC0-1.0",
    "gpl-2.0": "GPL-2.0-only",
    "gpl-3.0": "GPL-3.0-only",
    "isc": "ISC",
    "lgpl-2.1": "LGPL-2.1-only",
    "lgpl-3.0": "LGPL-3.0-only",
    "mit": "MIT",
    "mpl-2.0": "MPL-2.0",
    "ms-pl": "MS-PL",
    "unlicense": "Unlicense",
    "wtfpl": "WTFPL",
    "zlib": "Zlib",
}


def take(source: Path, out: Path, stated: str | None) -> Licence:
    """Copy the licence files of ``source`` into ``out``. The licence's ``id`` is the hub's name of
    it: what is ``stated``, or what the text is known by.

    Raises:
        StepFailed: ``out`` has a file of such a name that is another.
    """
    licences = sorted(
        {path for pattern in LICENCES for path in source.glob(pattern) if path.is_file()}
    )
    for path in licences:
        target = out / path.name
        if not target.exists():
            copy(path, target)
        elif target.read_bytes() != path.read_bytes():
            raise StepFailed(f"the artifact's `{path.name}` is not the source's")
    texts = [path for path in licences if path.name.upper().startswith("LICENSE")]
    recognised = (
        _recognised(texts[0].read_text("utf-8", errors="replace")) if len(texts) == 1 else None
    )
    known = stated or recognised or ("other" if texts else None)
    return Licence(id=known, stated=stated is not None, files=[path.name for path in licences])


def _recognised(text: str) -> str | None:
    words = " ".join(text.casefold().split())
    return next(
        (name for name, phrases in KNOWN.items() if all(phrase in words for phrase in phrases)),
        None,
    )
