"""Fixtures that several files use; ``conftest.py`` loads them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from phipipe import cli
from phipipe.toolchains import environments
from testing.doc_page import Reader
from testing.drive import drive
from testing.shell import Run
from testing.tiny_toolchain import Tiny


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run one command line in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def command(*words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["phipipe", *map(str, words)])
        with pytest.raises(SystemExit) as ending:
            cli.main()
        out, err = capsys.readouterr()
        return int(ending.value.code or 0), out, err

    return command


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tiny]:
    """A toolchain whose one package takes until ``go_on`` to build, installed from no network."""
    made = Tiny(tmp_path / "tiny")
    monkeypatch.setattr(environments, "LOCKS", made.locks)
    for name, value in made.variables.items():
        monkeypatch.setenv(name, value)
    yield made
    made.go_on()
    for process in made.processes():
        process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of an S3 server, which ends with the module."""
    from moto.server import ThreadedMotoServer

    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory, python_of: Callable[[str], Path]) -> Path:
    """What ``vision_checkpoints`` leaves."""
    folder = tmp_path_factory.mktemp("seeing")
    drive(python_of("torch"), "-m", "testing.vision_checkpoints", folder)
    return folder


@pytest.fixture(scope="module")
def readers_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What readers of all pages share."""
    return tmp_path_factory.mktemp("readers")


@pytest.fixture
def reader(tmp_path: Path, toolchains: Path, readers_cache: Path) -> Reader:
    """Somebody who follows a page of the documentation."""
    return Reader(tmp_path, toolchains, readers_cache)
