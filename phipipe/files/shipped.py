"""The folders that come with phipipe: recipes to start from, and the docs."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from phipipe.errors import StoreError

Kind = Literal["recipes", "docs"]
PACKAGE = Path(__file__).parents[1]


def folder(kind: Kind) -> Path:
    """Where the shipped ``kind`` lies: inside an installed phipipe, or at the top of a checkout.

    Raises:
        StoreError: this phipipe came without it.
    """
    for place in (PACKAGE / "shipped" / kind, PACKAGE.parent / kind):
        if place.is_dir():
            return place
    raise StoreError(
        f"this phipipe has no folder `{kind}`; it was installed without its files",
        hint="install phipipe again, from its wheel or its archive",
    )
