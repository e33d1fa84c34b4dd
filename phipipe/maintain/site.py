"""The site of the documentation: built without a warning, and complete in itself.

    python -m phipipe.maintain.site FOLDER      (needs the extra `docs`)

A page that loads a script, a font, a picture or a style from elsewhere is an error: whoever reads
the documentation tells nobody, and reads it offline, too. Links that a person clicks are free.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SILENT = {"NO_MKDOCS_2_WARNING": "1", "DISABLE_MKDOCS_2_WARNING": "true"}
LOADED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed)\b[^>]*?\bsrc=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon|modulepreload))"
    r"[^>]*?\bhref=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|@import\s+[\"']?((?:https?:)?//[^\"'\s;]+)"
    r"|url\([\"']?((?:https?:)?//[^\"')]+)",
    re.IGNORECASE,
)


def build(folder: Path) -> int:
    """Build the site into ``folder``; MkDocs's exit code, which a warning makes 1."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--clean"]
    done = subprocess.run(
        [*command, "--site-dir", str(folder.absolute())],
        cwd=ROOT,
        env={**os.environ, **SILENT},
        stderr=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if not line.startswith("INFO")]
    if done.returncode:
        print("\n".join(lines))
    return done.returncode


def loaded(folder: Path) -> Iterator[str]:
    """What pages and styles in ``folder`` would load from elsewhere: "PAGE: ADDRESS"."""
    for path in sorted([*folder.rglob("*.html"), *folder.rglob("*.css")]):
        for found in LOADED.finditer(path.read_text("utf-8")):
            address = next(group for group in found.groups() if group)
            yield f"{path.relative_to(folder).as_posix()}: {address}"


def main() -> int:
    """Build and check; exit code 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description="Build the documentation's site, and check it.")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    folder = parser.parse_args().folder
    if code := build(folder):
        return code
    outside = list(loaded(folder))
    for line in outside:
        print(f"loaded from elsewhere: {line}")
    return int(bool(outside))


if __name__ == "__main__":
    sys.exit(main())
