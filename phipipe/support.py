"""The table of devices × backends × precisions, made from device files and backend modules.

    python -m phipipe.support --write README.md | --check README.md

Devices with the same units are one row. A cell holds the bits that can be built: 4, 8 (integers), 16, 32 (floats).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from phipipe import backends, device
from phipipe.device import Device

BEGIN, END = "<!-- support: begin (python -m phipipe.support --write README.md) -->", "<!-- support: end -->"
BITS = {"int4": "4", "int8": "8", "fp16": "16", "fp32": "32"}


def markdown() -> str:
    """The table, without its markers."""
    names = backends.names()
    lines = ["| devices | unit | " + " | ".join(f"`{name}`" for name in names) + " |"]
    lines.append("|---|---|" + "---|" * len(names))
    for members in _groups():
        for i, unit in enumerate(members[0].units):
            first = ", ".join(f"`{d.name}`" for d in members) if i == 0 else ""
            cells = [" ".join(BITS[p] for p in BITS if p in backends.able(name, members[0], unit)) for name in names]
            lines.append(f"| {first} | {unit.api} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _groups() -> list[list[Device]]:
    """Devices that differ in memory or words only, in order of their names."""
    found: dict[tuple[object, ...], list[Device]] = {}
    for name in device.names():
        target = device.load(name)
        kind = (target.systems, tuple((unit.api, unit.precisions) for unit in target.units))
        found.setdefault(kind, []).append(target)
    return [sorted(members, key=lambda d: (d.memory_gib or 0, d.name)) for members in found.values()]


def placed(text: str) -> str:
    """``text`` with the table of today between its markers.

    Raises:
        ValueError: the markers are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"no place for the table: {BEGIN} … {END}")
    return f"{before}{BEGIN}\n{markdown()}\n{END}{after}"


def main() -> int:
    """Write the table into a file, or say whether it is up to date (exit code 1 if not)."""
    parser = argparse.ArgumentParser(description="Devices, backends, precisions.")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--write", type=Path, metavar="FILE")
    action.add_argument("--check", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    path = arguments.write or arguments.check
    old = path.read_text("utf-8")
    new = placed(old)
    if arguments.write:
        path.write_text(new, "utf-8")
    elif old != new:
        print(f"{path} is out of date: python -m phipipe.support --write {path}")
    return int(arguments.check is not None and old != new)


if __name__ == "__main__":
    sys.exit(main())
