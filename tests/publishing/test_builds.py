"""Recipes that say where their packages are published: `run`, `batch`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testing import light_builds, recipes, shared_store
from testing.light_builds import FIGURES, TROUBLE
from testing.shell import Run

import phipipe
from phipipe.hub import failures
from phipipe.package import package as packages
from phipipe.planning import preparation
from phipipe.publishing import builds
from phipipe.store.bucket import Bucket

TWO = "matrix:\n- {name: a}\n- {name: b}\n"


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    light_builds.CALLS.clear()
    FIGURES.clear()
    TROUBLE.clear()
    light_builds.install(monkeypatch)
    monkeypatch.setattr(failures, "PACE", failures.Pace(attempts=2, first_s=0.01))
    # what light builds package, no runtime reads: the gate for strangers' packages refuses it
    monkeypatch.setattr(packages, "open_", packages.read_manifest)
    monkeypatch.setattr(packages, "verify", lambda folder: [])
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return shared_store.bucket(server, tmp_path, monkeypatch)


def digest_at(address: str) -> str | None:
    raw = Bucket(address).get("manifest.json")
    return None if raw is None else str(json.loads(raw)["digest"])


def test_a_run_publishes_what_it_packaged(run: Run, bucket: str, tmp_path: Path) -> None:
    recipes.write(tmp_path, "two", f"publish: ['{bucket}/{{name}}']\n{TWO}")
    code, _, err = run("run", "two.yaml", "--no-publish")
    assert (code, digest_at(f"{bucket}/two-a")) == (0, None), err
    code, _, err = run("run", "two.yaml")
    assert code == 0, err
    for name in ("two-a", "two-b"):
        assert f"{name}: {bucket}/{name} has the package now" in err
        wanted = packages.read_manifest(tmp_path / "packages" / name).digest
        assert digest_at(f"{bucket}/{name}") == wanted
    code, _, err = run("run", "two.yaml")
    assert (code, f"{bucket}/two-a has this package already" in err) == (0, True)


def test_where_it_is_published_changes_no_package(bucket: str, tmp_path: Path) -> None:
    plain = recipes.write(tmp_path / "plain", "one")
    told = recipes.write(tmp_path / "told", "one", f"publish: ['{bucket}/one']\n")
    first = phipipe.run(plain, out="a").package
    second = phipipe.run(told, out="b").package
    assert first is not None
    assert second is not None
    assert first.manifest["digest"] == second.manifest["digest"]
    assert preparation.prepare is light_builds.prepare


def test_the_package_is_kept_where_it_cannot_be_published(
    run: Run, bucket: str, tmp_path: Path
) -> None:
    recipes.write(tmp_path, "one", f"publish: ['s3://nobody-has-this/x', '{bucket}/one']\n")
    code, _, err = run("run", "one.yaml")
    assert code == 8
    assert "one is built and at `packages/one`, but not published" in err
    assert "no such bucket" in err
    assert packages.read_manifest(tmp_path / "packages" / "one").digest == digest_at(
        f"{bucket}/one"
    )


def test_a_run_does_not_replace_what_is_there(run: Run, bucket: str, tmp_path: Path) -> None:
    recipes.write(tmp_path, "one", f"publish: ['{bucket}/one']\n")
    assert run("run", "one.yaml")[0] == 0
    before = digest_at(f"{bucket}/one")
    FIGURES["one"] = {"kld_mean": 0.01}
    code, _, err = run("run", "one.yaml")
    assert (code, "holds another package" in err) == (8, True)
    assert digest_at(f"{bucket}/one") == before


def test_a_batch_publishes_what_it_accepts_in_place_of_its_own(
    run: Run, bucket: str, tmp_path: Path
) -> None:
    recipes.write(
        tmp_path / "r",
        "one",
        f"publish: ['{bucket}/one']\n",
        evaluate="{tolerance: {kld_mean: 0.01}}",
    )
    assert run("batch", "r")[0] == 0
    first = digest_at(f"{bucket}/one")
    FIGURES["one"] = {"kld_mean": 0.01}
    assert run("batch", "r")[0] == 0
    second = digest_at(f"{bucket}/one")
    assert None not in (first, second)
    assert first != second
    FIGURES["one"] = {"kld_mean": 0.5}
    assert run("batch", "r")[0] == 7
    assert digest_at(f"{bucket}/one") == second
    FIGURES["one"] = {"kld_mean": 0.009}
    assert run("batch", "r", "--no-publish")[0] == 0
    assert digest_at(f"{bucket}/one") == second


def test_addresses_are_checked_where_they_stand(run: Run, tmp_path: Path) -> None:
    recipes.write(tmp_path, "wrong", "publish: ['hf://me/{name}', 'ftp://me/phi']\n")
    code, _, err = run("validate", "wrong.yaml")
    assert code == 2
    assert "wrong.yaml:5:29" in err
    assert "no address that packages are published at" in err
    recipes.write(tmp_path, "two", f"publish: ['hf://me/phi']\n{TWO}")
    code, _, err = run("plan", "two.yaml")
    assert code == 2
    assert "`hf://me/phi` is the address of 2 builds" in err


def test_a_token_that_is_missing_is_told_before_anything_is_built(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builds.writing, "token", lambda: None)
    recipes.write(tmp_path, "one", "publish: ['hf://me/phi']\n")
    code, _, err = run("run", "one.yaml")
    assert (code, light_builds.CALLS) == (8, [])
    assert "needs a token that may write" in err
