"""Where a page comes from: the day, and the phipipe that made it."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path

from phipipe import __version__

ROOT = Path(__file__).parents[2]
GIT_SECONDS = 10


def words() -> str:
    """``29 November 2026, phipipe 0.1.0 (commit 1a2b3c4)``; a commit is named where it is known."""
    now = datetime.now(UTC)
    known = commit()
    return f"{now.day} {now:%B %Y}, phipipe {__version__}{f' (commit {known})' if known else ''}"


@cache
def commit() -> str:
    """The commit of this phipipe: as pip recorded it, or of the checkout it runs from; else ""."""
    try:
        files = metadata.files("phipipe") or ()
        recorded = [file.read_binary() for file in files if file.name == "direct_url.json"]
        told = json.loads(recorded[0]) if recorded else {}
    except (metadata.PackageNotFoundError, OSError, ValueError):
        told = {}
    info = told.get("vcs_info") if isinstance(told, dict) else None
    version = info.get("commit_id") if isinstance(info, dict) else None
    return str(version)[:9] if version else _checked_out()


def _checked_out() -> str:
    if not (ROOT / ".git").exists():
        return ""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=9"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
