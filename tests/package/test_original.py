"""The original of a package that was made of a checkpoint in place: found where it lies, as long as
it is what it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testing.places import ROOT

from phipipe.hub import take
from phipipe.package import original
from phipipe.store import digests, keys, lent
from phipipe.store.store import Store

TINY = ROOT / "phipipe" / "assets" / "tiny-phi3"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copytree(TINY, tmp_path / "model"))


@pytest.fixture
def store(own_cache: Path) -> Store:
    return Store(own_cache)


def entered(model: Path, store: Store) -> str:
    """The digest of the checkpoint in ``model``, which the cache knows and has no copy of."""
    source = take.outside(model)
    found, key = digests.entries(source, store.root), keys.key_of({"of": "the source"})
    about = {"runs": "hub/take", "version": 1, "params": {}, "inputs": {}, "tools": {}}
    return store.lend(key, source.folder, found, about).digest


def manifest(digest: str, **steps: str) -> Any:
    made = {name: SimpleNamespace(digest=of) for name, of in steps.items()}
    return SimpleNamespace(source=SimpleNamespace(digest=digest, kind="path"), steps=made)


@pytest.mark.skipif(not lent.ABLE, reason="nothing is read in place there")
def test_an_original_is_found_where_it_lies(store: Store, model: Path) -> None:
    digest = entered(model, store)
    assert original._at_hand(manifest(digest), store) == model
    assert original._at_hand(manifest("0" * 64), store) is None
    assert original._at_hand(manifest("0" * 64, unmended=digest), store) == model


@pytest.mark.skipif(not lent.ABLE, reason="nothing is read in place there")
@pytest.mark.parametrize("change", ["other settings", "gone"])
def test_what_lies_there_now_is_not_taken_for_it(store: Store, model: Path, change: str) -> None:
    digest = entered(model, store)
    if change == "gone":
        shutil.rmtree(model)
    else:
        (model / "generation_config.json").write_text("{}")
    assert original._at_hand(manifest(digest), store) is None
