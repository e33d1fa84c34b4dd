"""Names that are a file or a folder on every system: none that Windows keeps for devices, cuts
short or refuses."""

from __future__ import annotations

import unicodedata

MAX_BYTES = 255  # of one name, in UTF-8: what common file systems store
MAX_PATH = 1024  # characters of a relative path
MAX_DEPTH = 32  # names in it
_REFUSED = '\\/:*?"<>|'
_NUMBERS = "0123456789\u00b9\u00b2\u00b3"
_DEVICES = frozenset(
    {
        "con",
        "prn",
        "aux",
        "nul",
        "conin$",
        "conout$",
        "clock$",
        *(f"{k}{n}" for k in ("com", "lpt") for n in _NUMBERS),
    }
)


def unfit(name: str) -> str | None:
    """Why ``name`` can be no file or folder on some systems, or None."""
    if name in ("", ".", ".."):
        return "it is not a plain relative path"
    if not name.isprintable() or any(sign in name for sign in _REFUSED):
        return "it has characters that some systems do not allow"
    if name != name.strip() or name.endswith("."):
        return "some systems drop its trailing dots or spaces"
    if name.partition(".")[0].rstrip(" ").casefold() in _DEVICES:
        return "Windows keeps this name for a device"
    if len(name.encode("utf-8", "surrogatepass")) > MAX_BYTES:
        return f"a name of more than {MAX_BYTES} bytes"
    return None


def folder(name: str) -> str:
    """``name`` as it is.

    Raises:
        ValueError: some system can have no folder of this name.
    """
    if reason := unfit(name):
        raise ValueError(f"no folder can have this name everywhere: {reason}")
    return name


def unsafe(path: str) -> str | None:
    """Why ``path`` is no plain relative path on every system, or None."""
    if len(path) > MAX_PATH:
        return f"it is longer than {MAX_PATH} characters"
    parts = path.split("/")
    if len(parts) > MAX_DEPTH:
        return f"it is deeper than {MAX_DEPTH} folders"
    return next((reason for part in parts if (reason := unfit(part))), None)


def alike(path: str) -> str:
    """What two paths have in common that some system takes for one: case and composition of letters
    do not count."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
