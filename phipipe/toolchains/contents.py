"""What is in an environment: its interpreter, its packages, and files that have gone."""

from __future__ import annotations

import contextlib
import csv
import importlib.metadata
import os
import platform
import sys
from pathlib import Path


def python_of(path: Path) -> Path:
    """The interpreter of the environment ``path``."""
    if platform.system() == "Windows":
        return path / "Scripts" / "python.exe"
    return path / "bin" / "python"


def site_of(path: Path) -> Path:
    """Where the environment ``path`` has its packages."""
    if platform.system() == "Windows":
        return path / "Lib" / "site-packages"
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return path / "lib" / python / "site-packages"


def list_packages(path: Path) -> dict[str, str]:
    """Name → version from the names of the ``*.dist-info`` folders alone.

    Raises:
        OSError: there is no such environment.
    """
    packages = {}
    for entry in os.scandir(site_of(path)):
        if entry.name.endswith(".dist-info"):
            name, _, version = entry.name.removesuffix(".dist-info").partition("-")
            packages[name.lower().replace("_", "-")] = version
    return dict(sorted(packages.items()))


def list_own_packages() -> dict[str, str]:
    """Name → version of the running interpreter's packages."""
    packages = {}
    for distribution in importlib.metadata.distributions():
        with contextlib.suppress(KeyError, TypeError):
            name = str(distribution.metadata["Name"]).lower().replace("_", "-")
            packages[name] = distribution.version
    return dict(sorted(packages.items()))


def find_missing(path: Path) -> str | None:
    """The first file that some package's RECORD names and that is not there with its size; None if
    all are."""
    site = site_of(path)
    for record in sorted(folder / "RECORD" for folder in site.glob("*.dist-info")):
        missing = _find_missing_of(record, site)
        if missing is not None:
            return missing
    return None


def _find_missing_of(record: Path, site: Path) -> str | None:
    if not record.is_file():
        return f"{record.parent.name}/RECORD"
    with record.open(encoding="utf-8", newline="") as stream:
        for name, _, size, *_ in csv.reader(stream):
            if not _is_there(f"{site}/{name}", size) and not name.endswith(
                (".pyc", "__pycache__/")
            ):
                return name
    return None


def _is_there(path: str, size: str) -> bool:
    """``size`` is in bytes, or empty where nothing is said of it."""
    try:
        actual = os.stat(path).st_size  # noqa: PTH116 (20,000 files: Path is slow)
    except OSError:
        return False
    return not size or actual == int(size)
