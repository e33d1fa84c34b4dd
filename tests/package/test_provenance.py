"""The statement on how a package came to be: the standards' shape, nothing that differs from run to
run, and no word that the manifest does not bear out."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from testing.kitchen import SPEED, TOOLS, Kitchen, digest_of, step

from phipipe.package import package, provenance

COMMIT = "2fe192450127e6a83f7441aef6e3ca586c338b77"


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path / "kitchen")


@pytest.fixture(scope="module")
def cooked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that no test may change."""
    return Kitchen(tmp_path_factory.mktemp("cooked")).cook()


def statement_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / provenance.NAME).read_text("utf-8"))
    return found


def build_of(folder: Path) -> dict[str, Any]:
    build: dict[str, Any] = statement_of(folder)["predicate"]["buildDefinition"]
    return build


def test_it_is_a_statement_by_in_toto_with_slsas_predicate(cooked: Path) -> None:
    """Unknown fields and wrong kinds are errors to the projects' own classes."""
    said = statement_of(cooked)
    whole = json_format.ParseDict(said, statement_pb2.Statement())
    Statement.copy_from_pb(whole).validate()
    predicate = json_format.ParseDict(said["predicate"], provenance_pb2.Provenance())
    assert whole.predicate_type == "https://slsa.dev/provenance/v1"
    assert predicate.build_definition.build_type == provenance.BUILD_TYPE
    assert predicate.run_details.builder.id.endswith("level-1")
    assert len(predicate.build_definition.resolved_dependencies) >= 3


def test_its_subject_is_the_package(cooked: Path) -> None:
    (subject,) = statement_of(cooked)["subject"]
    raw = (cooked / "manifest.json").read_bytes()
    assert subject["digest"]["sha256"] == hashlib.sha256(raw).hexdigest()
    assert subject["digest"][provenance.OWN_DIGEST] == json.loads(raw)["digest"]


def test_it_names_recipe_source_texts_and_toolchains(kitchen: Kitchen) -> None:
    kitchen.params["source"] |= {
        "kind": "hub",
        "repo": "microsoft/Phi-3.5-mini-instruct",
        "revision": COMMIT,
    }
    hub = {"kind": "model", "repo": "microsoft/Phi-3.5-mini-instruct", "revision": COMMIT}
    kitchen.params["steps"]["source"] = step("hub/fetch", tools=False, **hub)
    kitchen.params["steps"]["quantize"]["toolchain"] = "onnxruntime"
    build = build_of(kitchen.cook())
    found = {one["name"]: one for one in build["resolvedDependencies"]}
    assert build["externalParameters"]["recipe"]["name"] == "quickstart"
    assert found["source/made"]["digest"] == {"sha256": digest_of("fetch")}
    assert found["source/made"]["uri"] == (
        f"pkg:huggingface/microsoft/Phi-3.5-mini-instruct@{COMMIT}"
    )
    assert found["text/made"]["uri"] == "urn:phipipe:builtin:stories"
    lines = sorted(f"{name}=={version}" for name, version in TOOLS.items())
    had = found["toolchain/onnxruntime"]
    assert had["annotations"]["packages"] == lines
    text = "".join(f"{line}\n" for line in lines)
    assert had["digest"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_it_has_no_time_and_no_place(cooked: Path) -> None:
    text = (cooked / provenance.NAME).read_text("utf-8")
    details = statement_of(cooked)["predicate"]["runDetails"]
    assert set(details) == {"builder"}
    assert SPEED["host"]["processor"] not in text
    assert not {"startedOn", "finishedOn", "invocationId"} & set(text.split('"'))


def test_an_older_package_without_one_is_as_good_as_ever(cooked: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(cooked, tmp_path / "older")
    (folder / provenance.NAME).unlink()
    assert package.verify(folder) == []
    assert package.open_(folder).name == "quickstart"


def test_one_of_another_builder_is_theirs(cooked: Path, tmp_path: Path) -> None:
    def hosted(said: dict[str, Any]) -> None:
        build = said["predicate"]["buildDefinition"]
        build["buildType"] = "https://actions.github.io/buildtypes/workflow/v1"
        build["externalParameters"] = {"workflow": {"ref": "refs/heads/main"}}
        build["internalParameters"] = {"github": {"event_name": "push"}}
        build["resolvedDependencies"] = [{"uri": "git+https://example.org/a", "digest": {}}]
        said["predicate"]["runDetails"]["builder"] = {"id": "https://example.org/runner"}
        said["predicate"]["runDetails"]["metadata"] = {"invocationId": "https://example.org/1"}

    assert findings(cooked, tmp_path, hosted) == []


def findings(cooked: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> list[str]:
    folder = shutil.copytree(cooked, tmp_path / "changed")
    said = statement_of(folder)
    change(said)
    (folder / provenance.NAME).write_text(json.dumps(said), "utf-8")
    return [str(finding) for finding in package.verify(folder)]


def _build(said: dict[str, Any]) -> Any:
    return said["predicate"]["buildDefinition"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), "about another package"),
        (
            lambda s: s["subject"][0]["digest"].update({provenance.OWN_DIGEST: "0" * 64}),
            "another digest",
        ),
        (lambda s: s.update(subject=[]), "look at `subject`"),
        (lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "look at `_type`"),
        (lambda s: s.update(predicateType="x"), "look at `predicateType`"),
        (lambda s: s["subject"][0].pop("digest"), "look at `subject.0.digest`"),
        (
            lambda s: s["predicate"]["runDetails"]["builder"].pop("id"),
            "look at `predicate.runDetails.builder.id`",
        ),
        (lambda s: _build(s).update(buildType="none"), "look at `predicate.buildDefinition"),
        (
            lambda s: _build(s)["externalParameters"]["recipe"].update(precision="int8"),
            "another recipe",
        ),
        (lambda s: _build(s)["resolvedDependencies"].pop(0), "does not name `source/made`"),
        (
            lambda s: _build(s)["resolvedDependencies"][0]["digest"].update(sha256="1" * 64),
            "does not name `source/made`",
        ),
        (
            lambda s: _build(s)["resolvedDependencies"].append(
                {"name": "more", "digest": {"sha256": "2" * 64}}
            ),
            "names `more`",
        ),
        (lambda s: _build(s).update(internalParameters="\x1b[2J"), "holds characters"),
        (lambda s: s["subject"][0].update(name="m`nifest.json"), "look at `subject`"),
        (lambda s: s.update(more=1), "look at `more`"),
        (
            lambda s: _build(s)["externalParameters"].update(more=1),
            "look at `predicate.buildDefinition.externalParameters.more`",
        ),
        (
            lambda s: _build(s).update(buildType="urn:phipipf:build:1"),
            "look at `predicate.buildDefinition.buildType`",
        ),
        (
            lambda s: (
                _build(s).update(buildType="URN:PhiPipe:build:1"),
                s["predicate"]["runDetails"]["builder"].update(id="https://example.org"),
            ),
            "look at `predicate.buildDefinition.buildType`",
        ),
        (
            lambda s: s["predicate"]["runDetails"]["builder"].update(id="https://example.org"),
            "look at `predicate.runDetails.builder.id`",
        ),
        (lambda s: None, "is not written as phipipe writes it"),
    ],
)
def test_what_the_manifest_does_not_bear_out_is_found(
    cooked: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    found = findings(cooked, tmp_path, change)
    assert found
    assert all(line.startswith("provenance.json: ") for line in found)
    assert expected in found[0]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"a": 1, "a": 2}', b"\xff", b"[" * 100])
def test_what_is_no_statement_is_one_finding(cooked: Path, tmp_path: Path, content: bytes) -> None:
    folder = shutil.copytree(cooked, tmp_path / "other")
    (folder / provenance.NAME).write_bytes(content)
    (finding,) = package.verify(folder)
    assert finding.path == provenance.NAME


@given(st.binary(max_size=200), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_no_bytes_whatever_make_the_check_fail_otherwise(
    cooked: Path, tmp_path_factory: pytest.TempPathFactory, garbage: bytes, at: int
) -> None:
    folder = tmp_path_factory.mktemp("garbage") / "package"
    shutil.copytree(cooked, folder)
    text = (folder / provenance.NAME).read_bytes()
    spoiled = text[: at % len(text)] + garbage + text[at % len(text) :]
    (folder / provenance.NAME).write_bytes(spoiled)
    found = list(provenance.findings(folder, package.read_manifest(folder)))
    assert all(finding.path == provenance.NAME for finding in found)
