"""Files that must not be there yet."""

from __future__ import annotations

from pathlib import Path


def create(path: Path, text: str) -> None:
    """Write ``text`` into the new file ``path``, whole or not at all.

    Raises:
        FileExistsError: it is there already.
        OSError: it cannot be written.
    """
    with path.open("x", encoding="utf-8", newline="\n") as stream:
        try:
            stream.write(text)
            stream.flush()
        except OSError:
            path.unlink(missing_ok=True)
            raise
