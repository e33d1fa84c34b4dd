"""Fixtures that all tests share; tiers and workers. No test sees the user's own cache."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings
from testing import tiers
from testing.clock import SHARING
from xdist.scheduler import LoadScopeScheduling

from phipipe import hardware
from phipipe.hub import take
from phipipe.settings import Settings
from phipipe.toolchains import environments

# A script's `&`, or nohup, ignores Ctrl-C; our children would, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ["PHIPIPE_CONFIG"] = "off"  # no test reads the user's own settings
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every driver compiles torch anew
if SHARING > 1:  # threads that spin would starve each other
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, hardware.cores() // SHARING)))
# How busy the machine is says nothing about the code; and folders are fresh for a test, not for
# each of its examples.
CHECKS = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)
settings.register_profile("phipipe", deadline=None, suppress_health_check=CHECKS)
settings.load_profile("phipipe")
pytest_plugins = ["testing.fixtures"]

# Files that take minutes, the longest first: they start first, so that none runs alone at the end.
SLOW = (
    *("targets", "family", "runtimes", "litert", "openvino", "vision_phi4", "qnn", "olive"),
    *("vision", "cluster", "large", "quickstart"),
)
WORKER_GIB = 6  # what a test's processes may take at once
KEPT = "PHIPIPE_TEST_TOOLCHAINS"
# Two installers work beside the tests: compiling llama.cpp takes minutes of one core.
AHEAD = ("llamacpp",), ("onnxruntime", "torch", "openvino", "olive", "litert", "mlx", "qnn")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--full", action="store_true", help="run all tests but the nightly ones")
    group.addoption("--nightly", action="store_true", help="run all tests")


@pytest.hookimpl(tryfirst=True)  # before `-m` looks at the marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        tiers.derive(item)
    taken = [item for item in items if tiers.is_taken(item)]
    config.hook.pytest_deselected(items=[item for item in items if not tiers.is_taken(item)])
    place = {f"test_{name}": number for number, name in enumerate(SLOW)}
    items[:] = sorted(taken, key=lambda item: place.get(item.path.stem, len(SLOW)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """What a test has started does not outlive its failure: it would compute on."""
    start = time.time() - 0.5  # what psutil says of a start is coarse
    try:
        return (yield)
    except BaseException:
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.create_time() >= start:
                    process.kill()
        raise


# --- workers of `-n`


def pytest_xdist_auto_num_workers() -> int:
    """As many as there are cores and memory for, if nobody says: ``-n auto``."""
    return max(1, min(hardware.cores(), hardware.memory_bytes() // (WORKER_GIB * 2**30)))


class Schedule(LoadScopeScheduling):
    """With toolchains, files run as wholes, since a fixture builds what all tests of one look at.
    Else every function runs by itself."""

    def _split_scope(self, nodeid: str) -> str:
        return nodeid.partition("::" if "integration" in tiers.asked(self.config) else "[")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Schedule:
    config.option.loadscopereorder = False  # xdist would start with what has most tests
    return Schedule(config, log)


# --- toolchains


def pytest_configure(config: pytest.Config) -> None:
    """The session's own folder of toolchains, for all workers, unless the environment names one."""
    if KEPT not in os.environ:
        folder = tempfile.mkdtemp(prefix="phipipe-toolchains-")
        os.environ[KEPT] = folder
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))


def pytest_sessionstart(session: pytest.Session) -> None:
    """Install toolchains beside the tests, where all of them are asked for."""
    config = session.config
    is_worker = "PYTEST_XDIST_WORKER" in os.environ
    if is_worker or config.option.collectonly or not tiers.takes_all(config):
        return
    environment = {**os.environ, **places(Path(os.environ[KEPT]))}
    for names in AHEAD:
        command = [sys.executable, "-m", "phipipe", "toolchain", "install", *names]
        installer = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        config.add_cleanup(installer.wait)  # cleanups run from the last to the first
        config.add_cleanup(installer.terminate)


def places(folder: Path) -> dict[str, str]:
    """What makes phipipe keep its toolchains, and all else, in ``folder``."""
    return {"PHIPIPE_CACHE": str(folder), "PHIPIPE_TOOLCHAINS": str(folder)}


@pytest.fixture(scope="session")
def toolchains() -> Path:
    """The folder of the real toolchains. Their content is immutable, so one serves all tests.

    PHIPIPE_TEST_TOOLCHAINS names one to keep between sessions: compiling llama.cpp takes minutes.
    """
    return Path(os.environ[KEPT]).absolute()


@pytest.fixture(scope="session")
def python_of(toolchains: Path) -> Callable[[str], Path]:
    """The Python of a toolchain by its name, installed first if it has to be."""

    @cache
    def python(name: str) -> Path:
        here = Settings.read({**os.environ, **places(toolchains)})
        return environments.ensure(name, here, print).python

    return python


@pytest.fixture(autouse=True)
def own_cache(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """An empty cache for every test, never the user's; the real toolchains for those that ask."""
    monkeypatch.setenv("PHIPIPE_CACHE", str(tmp_path / "cache"))
    if "toolchains" in request.fixturenames:
        monkeypatch.setenv("PHIPIPE_TOOLCHAINS", os.environ[KEPT])
    else:  # none is there, and uv cannot install one by accident
        monkeypatch.setenv("PHIPIPE_TOOLCHAINS", str(tmp_path / "toolchains"))
        monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
        monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.delenv("PHIPIPE_TOOLCHAIN", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may spoil."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(take.BUILTIN_MODELS["tiny-phi3"], folder)
    return folder
