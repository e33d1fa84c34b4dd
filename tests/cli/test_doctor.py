"""What doctor asks: compiler, index, disk, shared store, and whether a recipe could run here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import socket
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from testing.places import QUICKSTART

from phipipe.cli import cli, doctor, recipe_checks
from phipipe.cli.doctor import Check
from phipipe.settings import Settings

posix = pytest.mark.skipif(sys.platform == "win32", reason="scripts with a #! line")


def tool(folder: Path, name: str, code: int) -> Path:
    """A command that ends with ``code``."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\nexit {code}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    return folder


@posix
def test_a_compiler_is_one_that_answers(
    tmp_path: Path, no_compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    none = doctor.compiler()
    assert (none.ok, "none was found" in none.message) == (False, True)
    assert "build-essential" in str(none.hint)
    tool(no_compiler, "c++", 1)
    assert doctor.compiler().ok is False
    good = tool(no_compiler, "g++", 0)
    assert doctor.compiler().ok is False, "the first in the path is what would be taken"
    monkeypatch.setenv("CXX", f"{good} -O2")
    assert doctor.compiler() == Check(name="C++ compiler", ok=True, message=str(good))
    monkeypatch.setenv("CXX", "nowhere++")
    assert "CXX is `nowhere++`" in doctor.compiler().message


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No index but the one that a test names."""
    for name in [name for name in os.environ if name.startswith(("UV_", "PIP_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/simple"


@pytest.mark.usefixtures("no_settings")
def test_an_index_is_asked_by_the_users_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("UV_OFFLINE", "1")  # a folder needs no network
    assert doctor.index().ok is False
    with zipfile.ZipFile(tmp_path / f"{doctor.PROBE}-1.0-py3-none-any.whl", "w") as wheel:
        folder = f"{doctor.PROBE}-1.0.dist-info"
        wheel.writestr(
            f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {doctor.PROBE}\nVersion: 1.0\n"
        )
        wheel.writestr(
            f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{folder}/RECORD", "")
    assert doctor.index() == Check(name="package index", ok=True, message="answers")


@pytest.mark.usefixtures("no_settings")
def test_an_index_that_is_not_there_is_a_finding(
    monkeypatch: pytest.MonkeyPatch, mute: str
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    assert doctor.index().ok is False
    monkeypatch.delenv("UV_OFFLINE")
    monkeypatch.setenv("UV_DEFAULT_INDEX", mute.replace("127.0.0.1", "somebody:secret@127.0.0.1"))
    found = doctor.index(limit_s=2.0)
    assert found.ok is False
    assert found.hint
    assert "secret" not in found.message


def test_a_shared_store_is_asked_with_a_limit_of_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mute: str
) -> None:
    settings = Settings(cache=tmp_path, toolchains=tmp_path)
    assert doctor.remote(settings).ok is None
    pytest.importorskip("obstore")
    assert doctor.remote(replace(settings, remote=(tmp_path / "shared").as_uri())).ok
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("AWS_ENDPOINT_URL", mute.removesuffix("/simple"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    found = doctor.remote(replace(settings, remote="s3://bucket/here"), limit_s=1.0)
    assert (found.ok, found.message) == (False, "gave no answer within 1 s")


def test_a_disk_says_its_room_and_what_makes_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(cache=tmp_path / "not" / "yet", toolchains=tmp_path)
    found = list(doctor.disks(settings))
    assert all(check.free_bytes is not None for check in found)
    assert sum(check.name.count("cache") for check in found) == 1
    monkeypatch.setattr(doctor, "ROOM", 2**60)
    assert all(check.ok is False and check.hint for check in doctor.disks(settings))


def test_a_folder_that_cannot_be_written_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setattr(
        os, "access", lambda path, mode: path != cache
    )  # as permissions look to who is not root
    bad = [
        check for check in doctor.disks(Settings(cache=cache, toolchains=tmp_path)) if not check.ok
    ]
    assert [check.name for check in bad] == ["cache"]
    assert "cannot be written" in bad[0].message
    assert "PHIPIPE_CACHE" in str(bad[0].hint)


def asked(tmp_path: Path, sets: str, *, broken: str = "") -> list[Check]:
    """What doctor says of a recipe of the embedded model with ``sets``, where nothing is
    installed."""
    path = tmp_path / "mine.yaml"
    path.write_text(f"name: mine\nsource: {{builtin: tiny-phi3}}\n{sets}", "utf-8")
    settings = Settings(cache=tmp_path / "cache", toolchains=tmp_path / "toolchains")
    told = [Check(name=broken, ok=False, message="no", hint="mend it")] if broken else []
    return list(recipe_checks.recipes([path], settings, told))


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        ("device: cpu-x86_64\nprecision: int3\n", "unknown value `int3`"),
        ("device: nosuch\nprecision: int4\n", "nosuch"),
        ("device: cpu-x86_64\nprecision: fp16\n", "cannot run fp16"),
        ("device: cpu-x86_64\nprecision: int4\ncontext: 1000000\n", ""),
    ],
)
def test_a_recipe_that_could_not_run_is_named_with_a_remedy(
    tmp_path: Path, sets: str, words: str
) -> None:
    found = asked(tmp_path, sets)
    assert recipe_checks.fit_to_run(found) == (not words)
    assert not words or (words in found[0].message and found[0].recipe)


def test_a_missing_toolchain_is_no_obstacle_where_it_can_be_installed(tmp_path: Path) -> None:
    sets = "device: cpu-x86_64\nprecision: int4\nbackend: llamacpp\n"
    (found,) = asked(tmp_path, sets)
    assert (found.ok, found.build) == (True, "mine")
    assert "first use installs the toolchain `torch`, `llamacpp`" in found.message
    (found,) = asked(tmp_path, sets, broken="C++ compiler")
    assert (found.ok, found.hint) == (False, "mend it")
    assert "`llamacpp`" in found.message
    assert len(asked(tmp_path, sets, broken="package index")) == 2
    assert recipe_checks.fit_to_run(
        asked(tmp_path, sets.replace("llamacpp", "torch"), broken="C++ compiler")
    )


def test_the_running_python_must_have_what_the_recipe_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "name: mine\nsource: {builtin: tiny-phi3}\ndevice: cpu-x86_64\nprecision: int4\n", "utf-8"
    )
    settings = Settings(
        cache=tmp_path / "cache", toolchains=tmp_path / "toolchains", use_current=True
    )

    def version(package: str) -> str:
        if package in absent:
            raise importlib.metadata.PackageNotFoundError(package)
        return "1.0"

    absent = {"onnxruntime-genai"}
    monkeypatch.setattr(importlib.metadata, "version", version)
    (found,) = recipe_checks.recipes([path], settings, [])
    assert (found.ok, found.message) == (False, "this Python lacks `onnxruntime-genai`")
    assert "phipipe[onnxruntime]" in str(found.hint)
    absent.clear()
    assert recipe_checks.fit_to_run(recipe_checks.recipes([path], settings, []))


def test_every_variant_is_asked_about(tmp_path: Path) -> None:
    sets = "device: cpu-x86_64\nmatrix:\n  - {precision: int4}\n  - {precision: fp16}\n"
    assert [check.ok for check in asked(tmp_path, sets)] == [True, False]


def test_the_command_ends_with_1_only_for_a_recipe_that_could_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("PHIPIPE_TOOLCHAINS", str(tmp_path / "none"))
    alone = CliRunner().invoke(cli, ["doctor", "--json"])
    assert alone.exit_code == 0
    rows = {check["name"]: check for check in json.loads(alone.stdout)["checks"]}
    assert rows["package index"]["ok"] is False
    asked = CliRunner().invoke(cli, ["doctor", str(QUICKSTART)])
    assert asked.exit_code == 1
    assert "NO  quickstart" in asked.stdout
    assert "try: " in asked.stdout.partition("NO  quickstart")[2]


def test_a_cache_that_cannot_be_written_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    (found,) = asked(tmp_path, "device: cpu-x86_64\nprecision: int4\n")
    assert (found.ok, found.build) == (False, "mine")
    assert found.hint
