"""`phipipe push` and `phipipe pull` for people and for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from testing import shared_store
from testing.kitchen import Kitchen
from testing.shell import Run

from phipipe.hub import failures
from phipipe.package import package as packages


@pytest.fixture
def address(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(failures, "PACE", failures.Pace(attempts=2, first_s=0.01))
    monkeypatch.chdir(tmp_path)
    return shared_store.bucket(server, tmp_path, monkeypatch)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Kitchen(tmp_path / "kitchen").cook()


def test_a_push_and_a_pull_say_what_they_did(run: Run, address: str, package: Path) -> None:
    digest = packages.read_manifest(package).digest
    count = sum(path.is_file() for path in package.rglob("*"))
    code, out, _ = run("push", str(package), address, "--dry-run")
    assert (code, f"would send {count} files, " in out, "model.onnx.data" in out) == (0, True, True)
    code, out, _ = run("push", str(package), address)
    assert code == 0
    assert f"address  {address}\ndigest   {digest}\npull     phipipe pull {address}\n" in out
    code, out, _ = run("push", str(package), address)
    assert (code, f"{address} has this package already: nothing was sent" in out) == (0, True)
    code, out, _ = run("pull", address)
    assert code == 0
    assert out.startswith("pulled   packages/quickstart, ")
    assert f"digest   {digest}" in out
    code, out, _ = run("pull", address)
    assert (code, "is this package already: nothing was fetched" in out) == (0, True)
    assert run("verify", "packages/quickstart")[0] == 0


def test_a_signature_that_came_later_is_fetched_alone(
    run: Run, address: str, package: Path, tmp_path: Path
) -> None:
    run("push", str(package), address)
    assert run("pull", address)[0] == 0
    (package / "model.sig").write_text("signed")
    assert run("push", str(package), address)[0] == 0
    code, out, _ = run("pull", address)
    assert (code, "is this package already; fetched model.sig\n" in out) == (0, True), out
    assert (tmp_path / "packages/quickstart/model.sig").read_text() == "signed"
    code, out, _ = run("pull", address, "--json")
    assert (json.loads(out)["renewed"], json.loads(out)["size_bytes"]) == ([], 0)
    (tmp_path / "packages/quickstart/model.sig").unlink()
    code, out, _ = run("pull", address, "--json")
    assert (json.loads(out)["renewed"], json.loads(out)["size_bytes"]) == (["model.sig"], 6)


@pytest.mark.parametrize(
    ("where", "whose"),
    [("oci://127.0.0.1:1/phi:1", "registry"), ("s3://nobody/phi", "bucket")],
)
@pytest.mark.parametrize("option", ["--private", "--public"])
def test_who_may_see_it_is_said_of_the_hub_alone(
    run: Run, address: str, package: Path, where: str, whose: str, option: str
) -> None:
    code, out, err = run("push", str(package), where, option)
    assert (code, out) == (2, "")
    assert f"visibility is the {whose}'s own" in err
    assert f"leave out {option}" in err


def test_private_and_public_exclude_each_other(run: Run, address: str, package: Path) -> None:
    code, _, err = run("push", str(package), "hf://me/phi", "--private", "--public")
    assert (code, "exclude each other" in err) == (2, True)


def test_programs_get_it_as_data(run: Run, address: str, package: Path) -> None:
    digest = packages.read_manifest(package).digest
    code, out, _ = run("push", str(package), address, "--json")
    told = json.loads(out)
    assert (code, told["state"], told["digest"], told["visibility"]) == (0, "pushed", digest, None)
    assert told["size_bytes"] == sum(one["size_bytes"] for one in told["files"])
    code, out, _ = run("pull", address, "--out", "here", "--json")
    told = json.loads(out)
    assert (code, told["package"], told["digest"], told["attached"]) == (
        0,
        "here",
        digest,
        ["provenance.json"],
    )
    code, out, _ = run("pull", "nowhere", "--json")
    assert (code, json.loads(out)["error"]["kind"]) == (2, "RecipeError")


def test_a_package_that_was_changed_is_not_pushed(run: Run, address: str, package: Path) -> None:
    (package / "tokenizer.json").write_text("{}")
    code, _, err = run("push", str(package), address)
    assert (code, "is not as it was packaged" in err) == (8, True)
