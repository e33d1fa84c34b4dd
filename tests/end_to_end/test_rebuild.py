"""The same package wherever, whenever and by whomever it is built: bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from testing import hostile_packages
from testing.elsewhere import varied
from testing.places import QUICKSTART
from testing.shell import Shell


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, toolchains: Path) -> Shell:
    return Shell(tmp_path_factory.mktemp("here"), toolchains)


@pytest.fixture(scope="module")
def built(shell: Shell) -> Path:
    """The quickstart, built as it comes."""
    (build,) = shell.run()
    return shell.folder / str(build["package"])


def again(shell: Shell, folder: Path, *words: str | Path) -> Any:
    """A command with its own cache, as different as can be."""
    home = folder / "home"
    home.mkdir(parents=True)
    before, environment = varied(home)
    environment |= {"PHIPIPE_CACHE": str(folder / "another cache")}
    environment |= {"PHIPIPE_TOOLCHAINS": shell._env["PHIPIPE_TOOLCHAINS"]}
    code = "import os, sys, runpy; os.umask(0o077); sys.argv[0] = 'phipipe'; "
    code += "runpy.run_module('phipipe', run_name='__main__', alter_sys=True)"
    done = subprocess.run(
        [*before, sys.executable, "-c", code, *map(str, words)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return json.loads(done.stdout)


def test_it_is_the_same_bit_for_bit_on_a_machine_as_different_as_can_be(
    shell: Shell, built: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "some where else"
    found = again(shell, folder, "rebuild", built, "--out", folder / "out", "--json")
    assert (found["differences"], found["equal"]) == ([], True)
    assert found["taken_over"] == ["measure"]
    new = Path(found["rebuilt"])
    assert tree(new) == tree(built)
    assert not any((folder / "another cache" / "tmp").iterdir())


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_only_a_build_of_its_own_measures_differs_and_nothing_else(
    shell: Shell, built: Path, tmp_path: Path
) -> None:
    """Two runs that know nothing of each other: speed differs, and what says it."""
    folder = tmp_path / "another"
    (build,) = again(shell, folder, "run", QUICKSTART, "--out", folder / "out", "--json")
    first, second = tree(built), tree(Path(build["package"]))
    differ = {name for name in first.keys() | second.keys() if first.get(name) != second.get(name)}
    assert differ <= {"README.md", "SHA256SUMS", "manifest.json", "provenance.json"}
    old, new = (json.loads(of["manifest.json"]) for of in (first, second))
    told = {key for key in old if old[key] != new[key]} - {"digest", "files"}
    assert told <= {"speed", "steps"}
    steps = {name for name in old["steps"] if old["steps"][name] != new["steps"][name]}
    assert steps <= {"measure", "gates"}


def test_another_file_is_named_with_exit_code_5(shell: Shell, built: Path, tmp_path: Path) -> None:
    """A package whose recipe does not give what is in it."""
    odd = shutil.copytree(built, tmp_path / "odd")
    template = odd / "chat_template.jinja"
    template.write_bytes(template.read_bytes() + b"{# more #}")
    hostile_packages.sealed(odd)
    done = shell("rebuild", odd, "--check", expect=5)
    assert "chat_template.jinja: has other content" in done.stdout
