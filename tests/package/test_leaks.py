"""Paths in files are found around the words that every path has."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from phipipe.package import leaks

OWN = (Path("/builds/of ours/here"), Path("/builds/ours"))
HOMES = [place.replace(rb"[\\/]+", b"/").replace(rb"[A-Za-z]", b"C") for place in leaks.COMMON]
PIECES = (
    *(home + rest for home in HOMES for rest in (b"", b"/", b"/me/x y", b"\\\\you")),
    *(b"https://a.org", b"/builds/of ours/here/out", b"\\builds//ours", b"ours", b"Users"),
    *(b"\n", b'"', b"\0", b".", b"w", b"/", b" " + b"x" * 5000 + b" "),
)


@given(st.lists(st.sampled_from(PIECES), max_size=30))
def test_what_is_searched_around_words_has_all_that_the_whole_has(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    pattern = leaks._pattern(OWN)
    whole = [(match.start(), match[0][: leaks.REACH]) for match in pattern.finditer(data)]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "graph.bin").write_bytes(data)
        found = leaks.find(Path(folder), OWN)
    lines = [data.count(b"\n", 0, start) + 1 for start, _ in whole]
    assert [leak.line for leak in found] == lines
    for leak, (_, text) in zip(found, whole, strict=True):
        assert leak.path[: leaks.REACH // 2] == text.decode("utf-8", "replace")[: leaks.REACH // 2]
