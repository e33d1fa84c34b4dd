"""Which tests a run takes, and what the commands of CI are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import yaml
from testing import tiers

from phipipe.errors import ToolchainError
from phipipe.settings import Settings
from phipipe.toolchains import environments

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
EXAMPLE = """
import pytest

@pytest.fixture
def converted(python_of):
    pass

def test_quick(): pass
def test_built(converted): pass
@pytest.mark.always
def test_quickstart(toolchains): pass
@pytest.mark.full
def test_costly(): pass
@pytest.mark.nightly
def test_release(converted): pass
"""
ALL, FULL = {"integration", "full", "nightly"}, {"integration", "full"}


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        ("tests", set()),
        ("tests -m not+integration", set()),
        ("tests -m integration", {"integration"}),
        ("tests -m integration+or+full", FULL),
        ("tests -m crash", set()),
        ("tests -m nightly", {"nightly"}),
        ("tests --full", FULL),
        ("tests --nightly", ALL),
        ("tests/test_store.py", FULL),
        ("tests/test_store.py -m not+integration", set()),
        ("tests/test_store.py::test_a", ALL),
        ("tests/test_store.py::test_a[x.py] -m crash", ALL),
    ],
)
def test_a_run_takes_the_tiers_that_it_asks_for(words: str, asked: set[str]) -> None:
    names, _, expression = words.partition(" -m ")
    args = [word for word in names.split() if not word.startswith("--")]
    option = SimpleNamespace(
        full="--full" in words, nightly="--nightly" in words, markexpr=expression.replace("+", " ")
    )
    assert tiers.asked(cast(pytest.Config, SimpleNamespace(option=option, args=args))) == asked


@pytest.fixture(scope="module")
def some(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tests below the conftest of ours."""
    folder = tmp_path_factory.mktemp("some")
    (folder / "test_some.py").write_text(EXAMPLE, "utf-8")
    return folder


@pytest.mark.parametrize(
    ("words", "taken"),
    [
        ([], ["test_quick", "test_quickstart"]),
        (["-m", "integration"], ["test_built", "test_quickstart"]),
    ],
    ids=("default", "integration"),
)
def test_what_uses_a_toolchain_through_a_fixture_is_of_the_tier_integration(
    some: Path, words: list[str], taken: list[str]
) -> None:
    options = ["-c", str(ROOT / "pyproject.toml"), "-p", "no:cacheprovider", "-p", "conftest"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--collect-only", "-q", *words, str(some)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.findall(r"::(\w+)", done.stdout) == taken, done.stdout + done.stderr


def test_without_the_fixture_no_toolchain_is_there_and_none_is_installed() -> None:
    """So a test without the mark cannot use a real one."""
    settings = Settings.read()
    assert not [name for name in environments.names() if environments.installed(name, settings)]
    with pytest.raises(ToolchainError, match="could not be installed"):
        environments.ensure("torch", settings, print)


def test_the_workflow_runs_the_readmes_two_commands_on_three_systems() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    commands = re.findall(r"^python3 -m venv .*$", readme, re.MULTILINE)
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8"))
    (job,) = workflow["jobs"].values()
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert [run.replace("${{ matrix.bin }}", "bin") for run in runs] == commands
    assert len(commands) == 2
    rows = {row["os"].split("-")[0]: row["bin"] for row in job["strategy"]["matrix"]["include"]}
    assert rows == {"ubuntu": "bin", "macos": "bin", "windows": "Scripts"}
    assert {step["uses"].split("@")[0] for step in job["steps"] if "uses" in step} == {
        "actions/checkout",
        "actions/setup-python",
    }


def test_every_part_of_ci_has_a_budget_and_all_take_45_minutes() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    budgets = {name: int(minutes) for name, minutes in re.findall(r"^(\w+) +(\d+)$", script, re.M)}
    assert re.findall(r"^ *part (\w+) ", script, re.M) == list(budgets)
    assert sum(budgets.values()) - budgets["nightly"] <= 45
