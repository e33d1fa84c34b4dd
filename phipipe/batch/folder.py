"""The folder of a batch: packages by name and version, and which of them was accepted last.

``OUT/NAME/VERSION/`` are packages, VERSION the beginning of the package's digest: what is there is
never written again. ``OUT/NAME/latest`` is a file with one line, the version that was accepted
last.
"""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from phipipe.package import manifest
from phipipe.store import claims, files

LATEST = "latest"
LOCK = ".batch.lock"
DIGITS = 16  # of a digest, in a version
VERSION = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
LEFT = re.compile(r"(\.[\w-]+\.)[0-9a-f]{32}")  # how ``claims.claim`` names what is being written


def latest(home: Path) -> str | None:
    """The version that was accepted last, or None: there is none, or the file says something
    else."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        text = (home / LATEST).read_text("utf-8", errors="replace").strip()
        return text if VERSION.fullmatch(text) else None
    return None


def point(home: Path, version: str) -> None:
    """Make ``latest`` name ``version``: readers see the old line or the new one, also after a power
    loss."""
    with claims.claim(home, f".{LATEST}.") as aside:
        files.write(aside / LATEST, f"{version}\n".encode())
        (aside / LATEST).replace(home / LATEST)
        files.flush_folder(home)


def versions(home: Path) -> list[Path]:
    """Packages of a build, the one that a batch made or found last first."""
    packages = [
        path
        for path in home.iterdir()
        if VERSION.fullmatch(path.name) and (path / manifest.NAME).is_file()
    ]
    return sorted(packages, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)


def surplus(home: Path, keep: int) -> list[Path]:
    """Packages beyond the ``keep`` newest; the one that ``latest`` names is never among them."""
    accepted = latest(home)
    others = [path for path in versions(home) if path.name != accepted]
    return others[max(0, keep - (1 if accepted else 0)) :]


def sweep(home: Path) -> None:
    """Remove what batches that were killed have left half done."""
    matches = [LEFT.fullmatch(path.name) for path in home.iterdir()] if home.is_dir() else []
    for prefix in {match.group(1) for match in matches if match}:
        claims.sweep(home, prefix)


def remove(folder: Path) -> None:
    """Rename first: nobody shall take half a package for a whole one."""
    with claims.claim(folder.parent, f".{folder.name}.") as aside:
        folder.rename(aside / "old")
