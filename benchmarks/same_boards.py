"""Do two trees of phipipe give the same board? Every figure that is no time, to the last digit.

Build the same recipe with both trees, each with a cache of its own, then compare:

    python benchmarks/same_boards.py before/board.json after/board.json

Speeds, memory and whatever else a clock or the machine decides are left out, and so are keys, whose
format may change. It ends with code 1
and a line for each difference if there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

OF_THE_MACHINE = frozenset(
    {
        "load_s",
        "ttft_s",
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "peak_memory_gib",
        "spread",
        "created",
        "host",
        "package",
        "keys",
    }
)


def leaves(value: object, path: str = "") -> Iterator[tuple[str, object]]:
    """Every value that is no list or object, with its path; what the machine decides left out."""
    if isinstance(value, Mapping):
        for name in sorted(value.keys() - OF_THE_MACHINE):
            yield from leaves(value[name], f"{path}/{name}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from leaves(item, f"{path}/{number}")
    else:
        yield path, value


def read(board: Path) -> dict[str, object]:
    """The figures of a board by build and path."""
    entries = json.loads(board.read_text("utf-8"))["entries"]
    return {f"{entry['name']}{path}": value for entry in entries for path, value in leaves(entry)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    arguments = parser.parse_args()
    before, after = read(arguments.before), read(arguments.after)
    differing = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    for name in differing:
        print(f"{name}: {before.get(name)} → {after.get(name)}")
    print(f"{len(before)} figures before, {len(after)} after, {len(differing)} differ")
    return 1 if differing or not before else 0


if __name__ == "__main__":
    sys.exit(main())
