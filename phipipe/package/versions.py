"""The folder of all versions of a build, as a batch leaves it, and the one that it accepted
last."""

from __future__ import annotations

from pathlib import Path

from phipipe.files import json_files
from phipipe.package import manifest

LATEST = "latest"  # a file with one line: the version
MAX_BYTES = 4096


def accepted(package: Path) -> Path:
    """The package that was accepted last, where ``package`` is such a folder; else ``package``."""
    latest = package / LATEST
    if not latest.is_file() or (package / manifest.NAME).exists():
        return package
    version = json_files.read_bytes(latest, MAX_BYTES).decode("utf-8", "replace").strip()
    return package / version if version.isprintable() and Path(version).name == version else package
