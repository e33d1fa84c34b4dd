"""The folder of a store: made, tried, and labelled for people and backup programs."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from phipipe.store import files

FOLDERS = ("objects", "actions", "locks", "tmp", "quarantine", "pins")
TAG = (
    "Signature: 8a477f597d28d172789f06886806bc55\n# A phipipe cache: everything here can be "
    "made again.\n"
)
ABOUT = (
    "This folder is phipipe's cache. Do not edit it; `phipipe cache ls|verify|gc` looks after it.\n"
    "Deleting it is safe while no phipipe runs: everything in it is made again when it is needed.\n"
)


def prepare(root: Path) -> None:
    """Make ``root`` a store's folder, if it is none yet.

    Raises:
        OSError: it cannot be made or written.
    """
    for name in FOLDERS:
        (root / name).mkdir(parents=True, exist_ok=True)
        if not os.access(root / name, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root / name))
    for name, text in (("CACHEDIR.TAG", TAG), ("README.txt", ABOUT)):
        path = root / name
        # absent, or its writer was killed
        if not files.is_plain(path) or files.size_of(path) != len(text):
            files.remove(path)
            path.write_bytes(text.encode())
