"""Folders in the cache where a plan can look at small files that nothing else holds: those of a
merged model, those that a GGUF stands for."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def kept(place: Path, name: str, write: Callable[[Path], None]) -> Path:
    """The folder in ``place`` with the files that ``write`` makes, found by their content; its last
    part is ``name``.

    Raises:
        StoreError: the cache cannot be written.
    """
    from phipipe.store import refusals  # toolchains, which import this module too, lack its needs

    with refusals.guard(place):
        place.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=place))
        try:
            return _moved(aside, place, name, write)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _moved(aside: Path, place: Path, name: str, write: Callable[[Path], None]) -> Path:
    made = aside / name
    made.mkdir()
    write(made)
    digest = hashlib.sha256()
    for path in sorted(made.iterdir()):
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    folder = place / digest.hexdigest()[:32]
    if not (folder / name).is_dir():
        folder.mkdir(exist_ok=True)
        made.replace(folder / name)
    return folder / name
