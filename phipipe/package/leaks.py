"""Paths of the build machine in what ships: found before anybody else finds them.

Converters and tokenizers like to write down where they ran. Every file is searched as bytes, so
graphs count too; files larger than ``MAX_BYTES`` hold weights only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_BYTES = 64 * 2**20
SEP = rb"[\\/]+"
REST = rb"[^\s\"'`<>|\x00-\x1f\x7f]*"  # as much of the path as is worth showing
REACH = 1024  # bytes around what every path has: a longer one is shown up to there

# Places that belong to a user or a run on some system, with at least one name below them. Not
# inside a longer word, so that https://example.org/home/x is none.
COMMON = (
    rb"/home",
    rb"/Users",
    rb"/root",
    rb"/tmp",
    rb"/var/tmp",
    rb"/var/folders",
    rb"/private/var",
    rb"[A-Za-z]:[\\/]+Users",
)

# One of these (or the last part of a folder of ours) is in everything that the pattern finds, and
# found much sooner.
NEEDED = (b"/home", b"/Users", b"/root", b"/tmp", b"/var", b"Users")


@dataclass(frozen=True)
class Leak:
    """``path`` as it stands in line ``line`` of ``file`` (relative to the folder searched)."""

    file: str
    line: int
    path: str


def find(folder: Path, own: Sequence[Path], quoted: Iterable[bytes] = ()) -> list[Leak]:
    """Paths of users and of temporary folders in the files of ``folder``.

    Args:
        folder: what will ship.
        own: folders of this machine; never allowed.
        quoted: texts that are not ours: the source's own files, the model's answers. What they say
            of other machines is no leak of this build.
    """
    needed = [*NEEDED, *(_parts(path)[-1] for path in own if len(path.parts) > 2)]
    longest = max((len(bytes(path)) for path in own), default=0)
    hits = list(_hits(folder, _pattern(own), needed, 2 * longest + REACH))
    excused = [text for text in quoted if text] if any(not mine for _, mine in hits) else []
    return [
        leak
        for leak, mine in hits
        if mine or not any(leak.path.encode() in text for text in excused)
    ]


def _pattern(own: Sequence[Path]) -> re.Pattern[bytes]:
    mine = [SEP.join(map(re.escape, _parts(path))) for path in own if len(path.parts) > 2]
    common = rb"|".join(place + SEP + rb"[\w.-]" + REST for place in COMMON)
    if not mine:
        return re.compile(rb"(?<![\w.])(?:" + common + rb")")
    return re.compile(
        rb"(?<![\w.])(?:(?P<own>(?:"
        + rb"|".join(mine)
        + rb")(?!\w)"
        + REST
        + rb")|"
        + common
        + rb")"
    )


def _parts(path: Path) -> list[bytes]:
    """``/home/me`` → ``"", "home", "me"``: joined with SEP, it begins with one."""
    return [os.fsencode(part) for part in (path.anchor.strip("\\/"), *path.parts[1:])]


def _hits(
    folder: Path, pattern: re.Pattern[bytes], needed: Sequence[bytes], reach: int
) -> Iterator[tuple[Leak, bool]]:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.stat().st_size > MAX_BYTES:
            continue
        data, line, counted = path.read_bytes(), 1, 0
        for start, end in _spans(data, needed, reach):
            for match in pattern.finditer(data, start, end):
                line += data.count(b"\n", counted, match.start())
                counted = match.start()
                text = match[0].decode("utf-8", "replace")
                yield (
                    Leak(path.relative_to(folder).as_posix(), line, text),
                    "own" in pattern.groupindex and match["own"] is not None,
                )


def _spans(data: bytes, needed: Sequence[bytes], reach: int) -> Iterator[tuple[int, int]]:
    """Where in ``data`` one of the ``needed`` words is, with ``reach`` bytes before and behind; no
    two spans meet."""
    places = sorted({place for word in needed for place in _places(data, word)})
    start = end = 0
    for place in places:
        if place - reach > end:
            if end:
                yield start, end
            start = place - reach
        end = place + reach
    if end:
        yield start, end


def _places(data: bytes, word: bytes) -> Iterator[int]:
    place = data.find(word)
    while place >= 0:
        yield place
        place = data.find(word, place + 1)
