"""Where things lie: the repository, its tests and its recipes."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
RECIPES = ROOT / "recipes"
QUICKSTART = RECIPES / "quickstart.yaml"
