"""There is one door to packages: whoever opens one asks who made it."""

from __future__ import annotations

import re
from pathlib import Path

import phipipe

ROOT = Path(phipipe.__file__).parent
INSIDE = ("package", "signing")  # the door itself, and those behind it


def test_nobody_opens_a_package_without_asking_who_signed_it() -> None:
    others = [
        path
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] not in INSIDE
        and re.search(r"\bpackages?\.open_\(|import open_\b", path.read_text("utf-8"))
    ]
    assert others == []


def test_one_module_imports_the_library_for_signatures() -> None:
    heavy = re.compile(r"^\s*(from|import) (model_signing|sigstore)\b", re.MULTILINE)
    found = [path.name for path in ROOT.rglob("*.py") if heavy.search(path.read_text("utf-8"))]
    assert found == ["library.py"]
