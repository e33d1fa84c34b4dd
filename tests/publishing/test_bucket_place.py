"""Packages in a bucket: the manifest last, and no moment at which a pull meets two packages."""

from __future__ import annotations

from pathlib import Path

import obstore
import pytest
from testing import shared_store
from testing.kitchen import Kitchen

import phipipe
from phipipe.errors import SourceError
from phipipe.hub import failures
from phipipe.package import package as packages
from phipipe.publishing import bucket as places
from phipipe.store.bucket import Bucket


@pytest.fixture
def address(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(failures, "PACE", failures.Pace(attempts=3, first_s=0.01))
    return shared_store.bucket(server, tmp_path, monkeypatch)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Kitchen(tmp_path / "kitchen").cook()


def another(tmp_path: Path) -> Path:
    """One that shares files with ``package``, has others of the same name, and lacks some."""
    kitchen = Kitchen(tmp_path / "another")
    (kitchen.artifact / "merges.txt").write_bytes(b"a b\n")
    (kitchen.artifact / "special_tokens_map.json").write_bytes(b"{}")
    (kitchen.artifact / "model.onnx.data").write_bytes(b"\x06\x00\xff" * 20_000)
    (kitchen.artifact / "chat_template.jinja").write_bytes(
        (kitchen.source / "chat_template.jinja").read_bytes()
    )
    return kitchen.cook()


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def objects(address: str) -> dict[str, bytes]:
    bucket = Bucket(address)
    return {name: bucket.get(name) or b"" for name in bucket.names()}


def test_a_package_goes_there_and_back(address: str, package: Path, tmp_path: Path) -> None:
    (package / "model.sig").write_text("signed")
    dry = phipipe.push(package, address, dry_run=True)
    assert (dry.state, objects(address)) == ("dry-run", {})
    done = phipipe.push(package, address)
    assert (done.state, len(done.sent)) == ("pushed", len(content(package)))
    assert objects(address) == content(package)
    again = phipipe.push(package, address)
    assert (again.state, again.sent) == ("same", ())
    assert phipipe.pull(address, tmp_path / "here").attached == ("provenance.json", "model.sig")
    assert content(tmp_path / "here") == content(package)


def test_another_package_takes_the_whole_place(address: str, package: Path, tmp_path: Path) -> None:
    (package / "model.sig").write_text("signed")
    phipipe.push(package, address)
    new = another(tmp_path)
    with pytest.raises(SourceError, match="holds another package"):
        phipipe.push(new, address)
    assert objects(address) == content(package)
    done = phipipe.push(new, address, force=True)
    assert done.replaced == packages.read_manifest(package).digest
    assert objects(address) == content(new)


def test_at_no_moment_of_a_replacement_a_pull_meets_two_packages(
    address: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every single write, a pull gives the old package or the new one, whole."""
    (package / "model.sig").write_text("of the old one")
    new = another(tmp_path)
    (new / "model.sig").write_text("of the new one")
    phipipe.push(package, address)
    wholes = {packages.read_manifest(one).digest: content(one) for one in (package, new)}
    seen: list[str] = []

    def looked(name: str) -> None:
        out = tmp_path / f"{name}-{len(seen)}"
        digest = phipipe.pull(address, out).digest
        assert content(out) == wholes[digest]
        seen.append(digest)

    for name in ("upload", "copy", "delete"):
        real = getattr(Bucket, name)

        def changed(self: Bucket, *given: object, real=real, name: str = name) -> None:  # type: ignore[no-untyped-def]
            real(self, *given)
            looked(name)

        monkeypatch.setattr(Bucket, name, changed)
    phipipe.push(new, address, force=True)
    old_digest, new_digest = wholes
    switch = seen.index(new_digest)
    assert switch > 0
    assert set(seen[:switch]) == {old_digest}
    assert set(seen[switch:]) == {new_digest}


@pytest.mark.parametrize("writes", [1, 4, 6, 9, 12])
def test_a_replacement_that_broke_anywhere_is_completed(
    address: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    phipipe.push(package, address)
    new, left = another(tmp_path), writes
    for name in ("upload", "copy", "delete"):
        real = getattr(Bucket, name)

        def breaks(self: Bucket, *given: object, real=real) -> None:  # type: ignore[no-untyped-def]
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            real(self, *given)

        monkeypatch.setattr(Bucket, name, breaks)
    with pytest.raises(KeyboardInterrupt):
        phipipe.push(new, address, force=True)
    monkeypatch.undo()
    shared_env(monkeypatch, address)
    assert phipipe.pull(address, tmp_path / "between").state == "pulled"
    phipipe.push(new, address, force=True)
    assert objects(address) == content(new)


def shared_env(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """What ``monkeypatch.undo`` took back, too."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


ENVIRONMENT: dict[str, str] = {}


@pytest.fixture(autouse=True)
def remembered(address: str) -> None:
    import os

    ENVIRONMENT.update({k: v for k, v in os.environ.items() if k.startswith("AWS_")})


def test_yesterdays_half_is_completed_and_not_sent_again(
    address: str, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = Bucket.upload, 3

    def breaks(self: Bucket, *given: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        real(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(Bucket, "upload", breaks)
    with pytest.raises(KeyboardInterrupt):
        phipipe.push(package, address)
    monkeypatch.setattr(Bucket, "upload", real)
    assert "manifest.json" not in objects(address)
    done = phipipe.push(package, address)
    assert len(done.sent) == len(content(package)) - 3
    assert objects(address) == content(package)


def test_objects_of_others_are_not_overwritten(address: str, package: Path) -> None:
    Bucket(address).put("README.md", b"mine")
    with pytest.raises(SourceError, match="1 file that belong"):
        phipipe.push(package, address)
    assert objects(address) == {"README.md": b"mine"}
    phipipe.push(package, address, force=True)
    assert objects(address) == content(package)


def test_an_object_that_was_changed_is_told_and_mended(
    address: str, package: Path, tmp_path: Path
) -> None:
    phipipe.push(package, address)
    Bucket(address).put("tokenizer.json", b"other", replace=True)
    with pytest.raises(SourceError, match="contradicts its manifest"):
        phipipe.pull(address, tmp_path / "x" / "p")
    there = Bucket(address)
    data = (package / "tokenizer.json").read_bytes().replace(b"2", b"3")
    given = {places.HASH: packages.read_manifest(package).files[0].sha256}
    obstore.put(there._there, "tokenizer.json", data, attributes=given)  # type: ignore[arg-type]
    with pytest.raises(SourceError):
        phipipe.pull(address, tmp_path / "x" / "p")
    assert not (tmp_path / "x").exists() or list((tmp_path / "x").iterdir()) == []
    done = phipipe.push(package, address)
    assert [item.path for item in done.sent] == ["tokenizer.json"]
    assert phipipe.pull(address, tmp_path / "p").state == "pulled"


def test_a_copy_by_other_tools_can_be_pulled(address: str, package: Path, tmp_path: Path) -> None:
    """They keep no hash beside an object; the manifest has it."""
    for name, data in content(package).items():
        Bucket(address).put(name, data)
    phipipe.pull(address, tmp_path / "p")
    assert content(tmp_path / "p") == content(package)


def test_a_bucket_that_is_not_there_is_named(address: str, package: Path) -> None:
    with pytest.raises(SourceError, match="no such bucket"):
        phipipe.push(package, "s3://nobody-has-this/phi")
    with pytest.raises(SourceError, match="no such bucket"):
        phipipe.pull("s3://nobody-has-this/phi")
