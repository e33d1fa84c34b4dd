"""Shared fixtures. No test sees the user's own cache; toolchains are installed once a session.

With ``-n`` files run side by side, each as a whole, since its fixtures build what all its tests
look at; those that take minutes come first, so that none is left to run alone at the end.
"""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from testing.clock import SHARING

from phipipe import hardware, hub, toolchain
from phipipe.settings import Settings
from phipipe.toolchain import Installed

if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # a script's `&`, or nohup: children would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # or every driver compiles torch anew
if SHARING > 1:  # threads that spin would starve each other
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, hardware.cores() // SHARING)))
pytest_plugins = ["testing.fixtures"]
SLOW = (
    "targets",
    "family",
    "runtimes",
    "openvino",
    "litert",
    "vision_openvino",
    "vision_phi4",
    "qnn",
    "olive",
)
WORKER_GIB = 6  # what a test's processes may take at once


def pytest_xdist_auto_num_workers() -> int:
    """As many as there are cores and memory for, if nobody says: ``-n auto``."""
    return max(1, min(hardware.cores(), hardware.memory_bytes() // (WORKER_GIB * 2**30)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # xdist would start with the files that have most tests
    return LoadFileScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {f"test_{name}": place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(scope="session")
def toolchains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that every test's toolchains lie in (their content is immutable, so one serves
    all).

    PHIPIPE_TEST_TOOLCHAINS names one to keep between sessions: compiling llama.cpp takes minutes.
    """
    if kept := os.environ.get("PHIPIPE_TEST_TOOLCHAINS"):
        return Path(kept).absolute()
    if "PYTEST_XDIST_WORKER" in os.environ:  # one folder for all workers
        return tmp_path_factory.getbasetemp().parent / "toolchains"
    return tmp_path_factory.mktemp("toolchains")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, toolchains: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for every test, never the user's."""
    monkeypatch.setenv("PHIPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PHIPIPE_TOOLCHAINS", str(toolchains))
    monkeypatch.delenv("PHIPIPE_TOOLCHAIN", raising=False)
    return tmp_path / "cache"


def _install(name: str, toolchains: Path) -> Installed:
    settings = Settings.read(
        {**os.environ, "PHIPIPE_CACHE": str(toolchains), "PHIPIPE_TOOLCHAINS": str(toolchains)}
    )
    return toolchain.ensure(name, settings, print)


@pytest.fixture(scope="session")
def ort_python(toolchains: Path) -> Path:
    """Python of the real onnxruntime toolchain."""
    return _install("onnxruntime", toolchains).python


@pytest.fixture(scope="session")
def torch_python(toolchains: Path) -> Path:
    """Python of the real torch toolchain."""
    return _install("torch", toolchains).python


@pytest.fixture(scope="session")
def mlx_python(toolchains: Path) -> Path:
    """Python of the real mlx toolchain."""
    return _install("mlx", toolchains).python


@pytest.fixture(scope="session")
def openvino_python(toolchains: Path) -> Path:
    """Python of the real openvino toolchain."""
    return _install("openvino", toolchains).python


@pytest.fixture(scope="session")
def litert_python(toolchains: Path) -> Path:
    """Python of the real litert toolchain."""
    return _install("litert", toolchains).python


@pytest.fixture(scope="session")
def llamacpp_python(toolchains: Path) -> Path:
    """Python of the real llamacpp toolchain."""
    return _install("llamacpp", toolchains).python


@pytest.fixture(scope="session")
def qnn_python(toolchains: Path) -> Path:
    """Python of the real qnn toolchain."""
    return _install("qnn", toolchains).python


@pytest.fixture(scope="session")
def olive_python(toolchains: Path) -> Path:
    """Python of the real olive toolchain."""
    return _install("olive", toolchains).python


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the embedded model that a test may spoil."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(hub.BUILTIN_MODELS["tiny-phi3"], folder)
    return folder
