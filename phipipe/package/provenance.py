"""How a package came to be, as others' tools read it: ``provenance.json``, an in-toto statement
with SLSA's predicate for builds.

It is about the sealed package, so it lies beside the manifest, which does not list it. It holds no
time, host or user: the same build gives the same statement. Nobody has signed it; a signature over
the manifest or over this file is another's to make. A build on a machine of one's own is of SLSA's
build level 1, provenance that exists, and the builder's name claims no more.

https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
https://slsa.dev/spec/v1.0/provenance
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from phipipe.errors import SourceError
from phipipe.evaluate import papers, reports
from phipipe.evaluate.reports import dump
from phipipe.files import json_files
from phipipe.files.json_files import shown
from phipipe.package.bounds import unfit
from phipipe.package.closed_world import MAX_ATTACHED_BYTES
from phipipe.package.manifest import NAME as MANIFEST
from phipipe.package.manifest import Finding
from phipipe.package.manifest_schema import Manifest
from phipipe.package.materials import materials, toolchains
from phipipe.package.statement import PREDICATE, STATEMENT, Statement
from phipipe.steps import Json

NAME = papers.PROVENANCE
# What stands in `externalParameters` and `resolvedDependencies`: another number for another sense.
OURS = "urn:phipipe:"
BUILD_TYPE = "urn:phipipe:build:1"
BUILDER = "urn:phipipe:builder:local:slsa-build-level-1"
OWN_DIGEST = "phipipeManifest1"  # the manifest's `digest`, which covers all else in it


def write(folder: Path, manifest: Manifest) -> None:
    """Write the statement on the sealed package in ``folder``, whose manifest that is."""
    raw = (folder / MANIFEST).read_bytes()
    (folder / NAME).write_bytes(dump(statement(manifest, raw)).encode())


def statement(manifest: Manifest, raw: bytes) -> dict[str, Json]:
    """The statement on the package with this ``manifest``; ``raw`` is the manifest's file."""
    return {
        "_type": STATEMENT,
        "subject": [{"name": MANIFEST, "digest": _subject(manifest, raw)}],
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {"recipe": manifest.recipe.as_json()},
                "resolvedDependencies": list(_dependencies(manifest)),
            },
            "runDetails": {"builder": {"id": BUILDER, "version": {"phipipe": manifest.phipipe}}},
        },
    }


def _subject(manifest: Manifest, raw: bytes) -> dict[str, str]:
    return {"sha256": hashlib.sha256(raw).hexdigest(), OWN_DIGEST: manifest.digest}


def _dependencies(manifest: Manifest) -> Iterator[dict[str, Json]]:
    """The original's files and the texts, as they came, and what each toolchain had; ``sha256`` of
    a toolchain is over the lines of its ``packages``, each with a line end."""
    for one in materials(manifest):
        where = {"uri": one.uri} if one.uri else {}
        yield {"name": f"{one.step}/{one.path}", **where, "digest": {"sha256": one.sha256}}
    for toolchain in toolchains(manifest):
        yield {
            "name": f"toolchain/{toolchain.name}",
            "digest": {"sha256": toolchain.sha256},
            "annotations": {"packages": toolchain.lines},
        }


def findings(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    """What is wrong with the statement that lies beside the manifest of the package in ``folder``;
    nothing where none does, as older packages have none.

    It must be well-formed and about this package. One of a build by phipipe must be, byte for byte,
    what phipipe writes of that manifest: no file lists its digest. What another builder says of the
    build is theirs.
    """
    path = folder / NAME
    if not path.is_file() or path.is_symlink():
        return
    try:
        content = json_files.read_object(path, MAX_ATTACHED_BYTES)
        for where, reason in unfit(content):
            raise SourceError(f"`{shown(where)}` {reason}")
        said = Statement.model_validate(content)
        raw = (folder / MANIFEST).read_bytes()
        phrases = list(_disagreements(said, manifest, raw))
        if not phrases and _is_ours(said):
            phrases += _changes(content, path.read_bytes(), statement(manifest, raw))
    except SourceError as error:
        yield Finding(NAME, error.message.removeprefix(f"`{path}` "))
    except ValidationError as error:
        where = shown(reports.place(error))
        yield Finding(NAME, f"is no provenance by in-toto and SLSA: look at `{where}`")
    except OSError as error:
        yield Finding(NAME, f"cannot be read: {error.strerror}")
    else:
        yield from (Finding(NAME, phrase) for phrase in phrases)


def _is_ours(said: Statement) -> bool:
    """Whether the statement is on a build by phipipe, by its kind or by its builder: a change of
    one of the two does not make it another's."""
    predicate = said.predicate
    names = predicate.buildDefinition.buildType, predicate.runDetails.builder.id
    return any(name.casefold().startswith(OURS) for name in names)  # as URNs are compared


def _changes(content: Json, written: bytes, wanted: Json) -> Iterator[str]:
    """A phrase where the statement is not the ``wanted`` one, by what it says or how."""
    if place := next(json_files.differences(content, wanted), None):
        yield f"does not say what phipipe says of this manifest: look at `{shown(place)}`"
    elif written != dump(wanted).encode():
        yield "is not written as phipipe writes it"


def _disagreements(said: Statement, manifest: Manifest, raw: bytes) -> Iterator[str]:
    """Phrases on what the statement says otherwise than the manifest."""
    subject = _subject(manifest, raw)
    if not any(one.digest.get("sha256") == subject["sha256"] for one in said.subject):
        yield "is about another package: its subject is not this `manifest.json`"
        return
    if any(one.digest.get(OWN_DIGEST, manifest.digest) != manifest.digest for one in said.subject):
        yield "names another digest of the package than its manifest does"
    if not _is_ours(said):
        return
    build = said.predicate.buildDefinition
    if build.externalParameters.get("recipe") != manifest.recipe.as_json():
        yield "says another recipe than the manifest"
    wanted = {(str(one["name"]), one["digest"]["sha256"]) for one in _dependencies(manifest)}
    named = {
        (one.name or one.uri or "", one.digest.get("sha256")) for one in build.resolvedDependencies
    }
    if missing := sorted(wanted - named):
        yield f"does not name `{shown(missing[0][0])}` as the manifest does"
    if added := sorted(name for name, _ in named - wanted):
        yield f"names `{shown(added[0])}`, which the manifest does not have so"


def is_of_another_builder(said: Mapping[str, Json]) -> bool:
    """Whether a statement is on a build by another tool than phipipe."""
    try:
        return not _is_ours(Statement.model_validate(dict(said)))
    except ValidationError:
        return False
