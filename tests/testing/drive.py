"""Programs that run inside toolchains, and what they find out.

A test file's driver makes artifacts with one backend and leaves facts as JSON; the tests beside it
ask for one fact each. ``drive`` starts it from the parent's side, ``answer`` writes the facts from
the driver's, ``section`` reads them. Standard library and phipipe's errors alone: toolchains have
no pytest.
"""

from __future__ import annotations

import json
import os
import subprocess
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from phipipe.errors import PhipipeError
from testing.places import ROOT, TESTS

PATHS = os.pathsep.join((str(ROOT), str(TESTS)))  # where a toolchain finds phipipe and this package


def drive(python: Path, *words: Path | str, **variables: str) -> str:
    """What a program prints that ends well; ``variables`` are laid on the environment."""
    environment = os.environ | {"PYTHONPATH": PATHS, "HF_HUB_OFFLINE": "1"} | variables
    done = subprocess.run(
        [python, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def facts_of(python: Path, driver: Path, folder: Path, *words: str) -> dict[str, Any]:
    """What ``driver FOLDER WORDS…`` leaves in ``facts.json``."""
    drive(python, driver, folder, *words)
    return read(folder / "facts.json")


def read(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return facts


def section(facts: Mapping[str, Any], name: str) -> dict[str, Any]:
    """One check's facts; its failure is the test's."""
    facts_of_check: dict[str, Any] = facts[name]
    assert "error" not in facts_of_check, facts_of_check["error"]
    return facts_of_check


def answer(path: Path, checks: Mapping[str, Callable[[], object]]) -> None:
    """Write what each check returns; one that raises leaves its traceback, and the others still
    run."""
    facts: dict[str, object] = {}
    for name, check in checks.items():
        try:
            facts[name] = check()
        except Exception:  # noqa: BLE001 (the test that asks for this job shows it; the others still run)
            facts[name] = {"error": traceback.format_exc()}
    path.write_text(json.dumps(facts, indent=2), "utf-8")


def message(call: Callable[[], object]) -> list[str]:
    """[class, message, hint] of the failure."""
    try:
        call()
    except PhipipeError as error:
        return [type(error).__name__, error.message, error.hint or ""]
    return ["nothing raised", "", ""]
