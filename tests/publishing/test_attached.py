"""What lies beside a manifest, fetched for a package that is there already."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testing import registry_server, shared_store
from testing.kitchen import Kitchen

import phipipe
from phipipe.errors import SourceError
from phipipe.hub import exchange, failures, transfer
from phipipe.package import package as packages
from phipipe.publishing import bucket as buckets
from phipipe.store.bucket import Bucket


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(failures, "PACE", failures.Pace(attempts=3, first_s=0.01))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Kitchen(tmp_path / "kitchen").cook()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    return shared_store.bucket(server, tmp_path, monkeypatch)


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def goes_through(address: str, package: Path, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signature comes, changes, is lost here, and is the same."""
    phipipe.push(package, address)
    phipipe.pull(address, here)
    for text in ("signed", "signed anew"):
        (package / "model.sig").write_text(text)
        phipipe.push(package, address)
        done = phipipe.pull(address, here)
        assert (done.state, done.renewed, done.fetched_bytes) == ("same", ("model.sig",), len(text))
        assert content(here) == content(package)
    (here / "model.sig").unlink()
    (here / "provenance.json").unlink()
    done = phipipe.pull(address, here)
    assert done.renewed == ("provenance.json", "model.sig")
    assert content(here) == content(package)

    def asked(*given: object, **named: object) -> None:
        raise AssertionError(f"fetched {given}")

    monkeypatch.setattr(buckets.BucketPlace, "fetch", asked)
    monkeypatch.setattr(transfer, "fetch_all", asked)
    assert phipipe.pull(address, here).renewed == ()
    assert [path.name for path in here.parent.iterdir()] == [here.name]


def test_it_is_brought_up_to_date_from_a_registry(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exchange.http()
    with registry_server.running(tmp_path / "registry") as host:
        goes_through(f"oci://{host}/team/phi:v1", package, tmp_path / "a" / "phi", monkeypatch)


def test_it_is_brought_up_to_date_from_a_bucket(
    bucket: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    goes_through(bucket, package, tmp_path / "a" / "phi", monkeypatch)


def test_a_signature_of_ones_own_stays(bucket: str, package: Path, tmp_path: Path) -> None:
    phipipe.push(package, bucket)
    phipipe.pull(bucket, tmp_path / "phi")
    (tmp_path / "phi" / "model.sig").write_text("mine")
    assert phipipe.pull(bucket, tmp_path / "phi").renewed == ()
    assert (tmp_path / "phi" / "model.sig").read_text() == "mine"


def test_a_copy_by_other_tools_is_compared_by_its_bytes(
    bucket: str, package: Path, tmp_path: Path
) -> None:
    """They keep no hash beside an object, by which it would be known beforehand."""
    (package / "model.sig").write_text("signed")
    for name, data in content(package).items():
        Bucket(bucket).put(name, data)
    phipipe.pull(bucket, tmp_path / "phi")
    assert phipipe.pull(bucket, tmp_path / "phi").renewed == ()
    Bucket(bucket).put("model.sig", b"sealed", replace=True)
    assert phipipe.pull(bucket, tmp_path / "phi").renewed == ("model.sig",)
    assert (tmp_path / "phi" / "model.sig").read_text() == "sealed"


def test_a_provenance_of_another_package_changes_nothing_here(
    bucket: str, package: Path, tmp_path: Path
) -> None:
    phipipe.push(package, bucket)
    phipipe.pull(bucket, tmp_path / "a" / "phi")
    said = json.loads((package / "provenance.json").read_text())
    said["subject"][0]["digest"]["sha256"] = "0" * 64
    Bucket(bucket).put("provenance.json", json.dumps(said).encode(), replace=True)
    with pytest.raises(SourceError, match="is about another package"):
        phipipe.pull(bucket, tmp_path / "a" / "phi")
    assert content(tmp_path / "a" / "phi") == content(package)
    assert packages.verify(tmp_path / "a" / "phi") == []
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["phi"]
