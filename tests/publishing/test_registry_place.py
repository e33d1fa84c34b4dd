"""Packages in a real OCI registry, as CNCF ModelPack has it."""

from __future__ import annotations

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from testing import registry_server
from testing.kitchen import Kitchen

import phipipe
from phipipe.errors import SourceError
from phipipe.hub import failures
from phipipe.package import package as packages
from phipipe.publishing import credentials, modelpack, registry_http, sealed
from phipipe.recipe import addresses

# what of the model-spec's schema of configurations says more than kinds
CONFIG_KEYS = {"descriptor", "modelfs", "config"}


@pytest.fixture(autouse=True)
def pace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(failures, "PACE", failures.Pace(attempts=3, first_s=0.01))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))
    for name in (*credentials.VARIABLES, "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with registry_server.running(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture
def address(registry: str, tmp_path: Path) -> str:
    return f"oci://{registry}/team/{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}:v1"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Kitchen(tmp_path / "kitchen").cook()


def another(tmp_path: Path) -> Path:
    kitchen = Kitchen(tmp_path / "another")
    (kitchen.artifact / "merges.txt").write_bytes(b"a b\n")
    return kitchen.cook()


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def asked(address: str, path: str) -> Any:
    parsed = addresses.parse(address)
    assert isinstance(parsed, addresses.RegistryAddress)
    request = urllib.request.Request(
        f"http://{parsed.host}/v2/{parsed.repository}/{path}",
        headers={"Accept": f"{modelpack.MANIFEST}, {modelpack.INDEX}"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def test_a_package_goes_there_and_back(address: str, package: Path, tmp_path: Path) -> None:
    (package / "model.sig").write_text("signed")
    dry = phipipe.push(package, address, dry_run=True)
    assert (dry.state, len(dry.sent)) == ("dry-run", len(content(package)))
    with pytest.raises(SourceError, match="there is no package at"):
        phipipe.pull(address, tmp_path / "none")
    done = phipipe.push(package, address)
    assert (done.state, len(done.sent)) == ("pushed", len(content(package)))
    again = phipipe.push(package, address)
    assert (again.state, again.sent) == ("same", ())
    assert phipipe.pull(address, tmp_path / "p").attached == ("provenance.json", "model.sig")
    assert content(tmp_path / "p") == content(package)


def test_the_artifact_is_a_modelpack(address: str, package: Path) -> None:
    phipipe.push(package, address)
    found = asked(address, "manifests/v1")
    assert found["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert found["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    kinds = {one["annotations"]["org.cncf.model.filepath"]: one for one in found["layers"]}
    assert set(kinds) == set(content(package)) - {"provenance.json"}  # that refers to it
    short = {path: one["mediaType"].split("model.")[1] for path, one in kinds.items()}
    assert short["model.onnx"] == short["model.onnx.data"] == "weight.v1.raw"
    assert short["genai_config.json"] == short["tokenizer.json"] == "weight.config.v1.raw"
    assert short["README.md"] == short["LICENSE"] == short["manifest.json"] == "doc.v1.raw"
    assert short["reference/tokens.npy"] == "dataset.v1.raw"
    about = asked(address, f"blobs/{found['config']['digest']}")
    schema = {
        "type": "object",
        "required": ["descriptor", "config", "modelfs"],
        "properties": {"modelfs": {"required": ["type", "diffIds"]}},
    }
    jsonschema.validate(about, schema)
    assert set(about) == CONFIG_KEYS
    assert about["config"] == {
        "architecture": "transformer",
        "capabilities": {"inputTypes": ["text"], "outputTypes": ["text"]},
        "format": "onnx",
        "paramSize": "4.5M",
        "quantization": "MatMulNBits, 4 bits",
    }
    assert about["modelfs"]["diffIds"] == [one["digest"] for one in found["layers"]]
    assert about["descriptor"]["licenses"] == ["MIT"]


def test_another_client_pulls_the_same_files(
    address: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import oras.client

    phipipe.push(package, address)
    parsed = addresses.parse(address)
    assert isinstance(parsed, addresses.RegistryAddress)
    client = oras.client.OrasClient(hostname=parsed.host, insecure=True)
    client.pull(target=address.removeprefix("oci://"), outdir=str(tmp_path / "theirs"))
    (package / "provenance.json").unlink()  # that refers to it
    assert content(tmp_path / "theirs") == content(package)
    assert packages.verify(tmp_path / "theirs") == []


def test_the_same_package_has_the_same_digest_wherever_it_is(address: str, package: Path) -> None:
    phipipe.push(package, address)
    phipipe.push(package, address.replace(":v1", ":v2"))
    whole = sealed.read(package, print)
    made = modelpack.manifest(whole, modelpack.config(whole))
    for tag in ("v1", "v2"):
        assert asked(address, f"manifests/{made.digest}") == asked(address, f"manifests/{tag}")


def test_another_package_is_replaced_by_force_alone(
    address: str, package: Path, tmp_path: Path
) -> None:
    old = phipipe.push(package, address).digest
    new = another(tmp_path)
    with pytest.raises(SourceError, match=old):
        phipipe.push(new, address)
    assert phipipe.pull(address, tmp_path / "a").digest == old
    done = phipipe.push(new, address, force=True)
    assert (done.replaced, len(done.sent) < len(content(new))) == (old, True)
    phipipe.pull(address, tmp_path / "b")
    assert content(tmp_path / "b") == content(new)


def test_an_image_of_others_is_not_replaced(address: str, package: Path) -> None:
    parsed = addresses.parse(address)
    assert isinstance(parsed, addresses.RegistryAddress)
    from phipipe.publishing.registry_store import RegistryStore

    store = RegistryStore(parsed)
    store.upload_blob(modelpack.Blob(b"{}"), "nothing")
    config = modelpack.Blob(b"{}").descriptor("application/vnd.oci.image.config.v1+json")
    image = {"schemaVersion": 2, "mediaType": modelpack.MANIFEST, "config": config, "layers": []}
    store.put("v1", modelpack.Blob(json.dumps(image).encode()), modelpack.MANIFEST)
    with pytest.raises(SourceError, match="belongs to no package"):
        phipipe.push(package, address)
    assert asked(address, "manifests/v1") == image
    assert phipipe.push(package, address, force=True).state == "pushed"


def test_signatures_that_came_later_take_the_place_of_older_ones(
    address: str, package: Path, tmp_path: Path
) -> None:
    phipipe.push(package, address)
    before = asked(address, "manifests/v1")
    for number in range(3):
        (package / "model.sig").write_text(f"signed {number}")
        done = phipipe.push(package, address)
        assert [item.path for item in done.sent] == ["model.sig"]
        phipipe.pull(address, tmp_path / f"{number}")
        assert (tmp_path / f"{number}" / "model.sig").read_text() == f"signed {number}"
    assert asked(address, "manifests/v1") == before
    whole = sealed.read(package, print)
    made = modelpack.manifest(whole, modelpack.config(whole))
    digest = f"sha256-{hashlib.sha256(made.content).hexdigest()}"
    entries = asked(address, f"manifests/{digest}")["manifests"]
    assert len(entries) == 2  # how it was made, and the newest signature
    for entry in entries:
        attached = asked(address, f"manifests/{entry['digest']}")
        assert attached["subject"]["digest"] == digest.replace("-", ":")


def test_what_a_layer_says_of_its_path_is_not_believed(
    address: str, package: Path, tmp_path: Path
) -> None:
    phipipe.push(package, address)
    found = asked(address, "manifests/v1")
    for path, reason in (("../x", "no package has"), ("more.txt", "does not list")):
        row = {**found["layers"][0], "annotations": {modelpack.FILE: path}}
        spoiled = {**found, "layers": [*found["layers"], row]}
        from phipipe.publishing.registry_store import RegistryStore

        parsed = addresses.parse(address)
        assert isinstance(parsed, addresses.RegistryAddress)
        RegistryStore(parsed).put(
            "v1", modelpack.Blob(json.dumps(spoiled).encode()), modelpack.MANIFEST
        )
        with pytest.raises(SourceError, match=reason):
            phipipe.pull(address, tmp_path / "a" / "p")
    assert not (tmp_path / "a").exists() or not list((tmp_path / "a").iterdir())


def test_who_may_not_push_is_told_and_who_logged_in_may(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "registry"
    with registry_server.running(folder, login=registry_server.HTPASSWD) as host:
        address = f"oci://{host}/team/phi:v1"
        with pytest.raises(SourceError, match="does not know who asks") as caught:
            phipipe.push(package, address)
        assert f"docker login {host}" in str(caught.value.hint)
        wrong = registry_server.docker_config(tmp_path / "wrong", host, password="other-secret")
        monkeypatch.setenv("DOCKER_CONFIG", str(wrong))
        with pytest.raises(SourceError, match="does not know who asks") as caught:
            phipipe.push(package, address)
        assert "other-secret" not in f"{caught.value.message} {caught.value.hint}"
        known = registry_server.docker_config(tmp_path / "known", host)
        monkeypatch.setenv("DOCKER_CONFIG", str(known))
        assert phipipe.push(package, address).state == "pushed"
        monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nobody"))
        monkeypatch.setenv("OCI_USERNAME", registry_server.USER)
        monkeypatch.setenv("OCI_PASSWORD", registry_server.PASSWORD)
        with pytest.raises(SourceError, match="hold for one registry"):
            phipipe.pull(address, tmp_path / "p")
        monkeypatch.setenv("OCI_REGISTRY", "other.example")
        with pytest.raises(SourceError, match="does not know who asks"):
            phipipe.pull(address, tmp_path / "p")
        monkeypatch.setenv("OCI_REGISTRY", host)
        assert phipipe.pull(address, tmp_path / "p").state == "pulled"


def test_a_registry_that_takes_nothing_is_told(package: Path, tmp_path: Path) -> None:
    with (
        registry_server.running(tmp_path / "registry", read_only=True) as host,
        pytest.raises(SourceError, match="answers 405"),
    ):
        phipipe.push(package, f"oci://{host}/team/phi:v1")


def test_a_helper_keeps_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is docker's way to say which program is asked; the host comes on its stdin."""
    program = tmp_path / "bin" / "docker-credential-made-up"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nread host\necho "{\\"Username\\": \\"$host\\", \\"Secret\\": \\"s\\"}"\n'
    )
    program.chmod(0o755)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "config.json").write_text(
        json.dumps({"auths": {"a.example": {}}, "credsStore": "made-up"})
    )
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "config"))
    assert credentials.of("a.example") == "YS5leGFtcGxlOnM="  # a.example:s
    assert credentials.of("b.example") is None


@pytest.mark.parametrize("host", ["registry.example", "127.0.0.2", "localhost.example"])
def test_only_this_machine_is_asked_without_tls(host: str) -> None:
    parsed = addresses.parse(f"oci://{host}/phi:1")
    assert isinstance(parsed, addresses.RegistryAddress)
    assert registry_http.Registry(parsed, print).base == f"https://{host}"
