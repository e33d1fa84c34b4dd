"""A package and keys for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from testing import signatures
from testing.kitchen import Kitchen


@pytest.fixture(scope="session")
def cooked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Kitchen(tmp_path_factory.mktemp("kitchen")).cook()


@pytest.fixture
def package(cooked: Path, tmp_path: Path) -> Path:
    return shutil.copytree(cooked, tmp_path / "package")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public one lies beside it."""
    return signatures.key(tmp_path / "keys")


@pytest.fixture
def pub(key: Path) -> Path:
    return key.with_suffix(".pub")
