"""What a bill of materials in a package may be: CycloneDX 1.6 of the kind that ``bill`` writes.

Nothing of phipipe's reads one, but other tools do: it is bounded, and it neither names files of
others nor addresses to fetch anything from, nor carries content of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from phipipe.files import json_files
from phipipe.files.json_files import shown
from phipipe.package import bill
from phipipe.package.bounds import unfit

MAX_BYTES = 8 * 2**20  # the longest that phipipe has made has 0.1
TOP = frozenset(
    {
        "$schema",
        "bomFormat",
        "components",
        "formulation",
        "metadata",
        "serialNumber",
        "specVersion",
        "version",
    }
)
# Keys by which CycloneDX names addresses, carries content, or says how to run something.
REFUSED = frozenset(
    {
        "attachment",
        "content",
        "evidence",
        "externalReferences",
        "services",
        "signature",
        "text",
        "url",
        "workflows",
    }
)
HASH_KEYS = {"alg", "content"}  # of a hash, the one thing that has `content` here


def problems(path: Path) -> Iterator[str]:
    """Phrases, to follow the file's name, on what the bill of materials in ``path`` is or has that
    phipipe never writes.

    Raises:
        SourceError: it is no JSON object within bounds.
    """
    content = json_files.read_object(path, MAX_BYTES)
    for where, reason in unfit(content):
        yield f"is not as phipipe writes it: `{shown(where)}` {reason}"
        return
    if (content.get("bomFormat"), content.get("specVersion")) != (bill.FORMAT, bill.VERSION):
        yield f"is no bill of materials by {bill.FORMAT} {bill.VERSION}"
    if odd := sorted(set(content) - TOP):
        yield f"has a part that phipipe never writes (`{shown(odd[0])}`)"
    for where, inner in _mappings(content):
        if odd := sorted(_refused(inner)):
            yield f"has `{odd[0]}` in `{shown(where)}`, which phipipe never writes"


def _mappings(content: Mapping[str, object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Every mapping in ``content`` with its dotted path; ``unfit`` has bounded how deep they go."""
    waiting: list[tuple[str, object]] = [("", content)]
    while waiting:
        where, value = waiting.pop()
        if isinstance(value, Mapping):
            yield where, value
            waiting += [(f"{where}.{key}".lstrip("."), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(where, inner) for inner in value]


def _refused(inner: Mapping[str, object]) -> set[str]:
    keys = set(inner)
    allowed = {"content"} if keys == HASH_KEYS and isinstance(inner["content"], str) else set()
    return keys & REFUSED - allowed
