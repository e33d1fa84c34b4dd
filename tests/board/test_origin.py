"""Where a page comes from: what pip recorded, or git; where neither knows, the version alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phipipe import __version__
from phipipe.board import origin


def asked(folder: Path) -> str:
    """What a fresh interpreter says that finds the packages of ``folder`` first."""
    code = "from phipipe.board import origin; print(origin.words())"
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=folder,
        capture_output=True,
        encoding="utf-8",
        check=True,
    )
    return done.stdout.strip()


def recorded(folder: Path, text: str) -> None:
    place = folder / "phipipe-9.dist-info"
    place.mkdir()
    (place / "METADATA").write_text("Name: phipipe\nVersion: 9\n", "utf-8")
    (place / "RECORD").write_text("phipipe-9.dist-info/direct_url.json,,\n", "utf-8")
    (place / "direct_url.json").write_text(text, "utf-8")


def test_a_commit_that_pip_recorded_is_named(tmp_path: Path) -> None:
    commit = "0123456789abcdef" * 2
    recorded(tmp_path, json.dumps({"vcs_info": {"vcs": "git", "commit_id": commit}}))
    assert asked(tmp_path).endswith(f", phipipe {__version__} (commit 012345678)")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"vcs_info": {}}', '{"vcs_info": 3}'])
def test_a_record_that_says_nothing_is_passed_over(tmp_path: Path, text: str) -> None:
    recorded(tmp_path, text)
    assert f", phipipe {__version__}" in asked(tmp_path)


def test_a_folder_without_git_names_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(origin, "ROOT", tmp_path)
    assert origin._checked_out() == ""
    (tmp_path / ".git").write_text("gitdir: nowhere\n", "utf-8")
    assert origin._checked_out() == ""
