"""A stranger's signature: whatever stands in it, there is one sentence, and nothing is a bug."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import signatures
from testing.shell import Run

import phipipe
from phipipe.package.closed_world import MAX_ATTACHED_BYTES
from phipipe.package.manifest import read_manifest
from phipipe.signing import verdict
from phipipe.signing.demands import Certificates, Demand, Keys


@pytest.fixture(scope="module")
def signed(cooked: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys in ``keys``, and a package that each of them signed: ``key`` and ``certificate``."""
    root = tmp_path_factory.mktemp("signed")
    own = signatures.key(root / "keys")
    issued = signatures.issue(root / "keys", "alone")
    phipipe.sign(shutil.copytree(cooked, root / "key"), key=own)
    folder = shutil.copytree(cooked, root / "certificate")
    phipipe.sign(folder, key=issued.key_path, certificate=issued.path)
    return root


def demands(signed: Path) -> list[Demand | None]:
    keys = Keys(file=signed / "keys" / "signing.pub")
    certificates = Certificates(files=(signed / "keys" / "alone.pem",))
    asked = [Demand(policy="enforce", anchor=a, source="the test") for a in (keys, certificates)]
    return [None, *asked]


def judged(signed: Path, content: bytes) -> list[verdict.Verdict]:
    """What becomes of ``content`` as a signature, for everybody who may ask."""
    folder = signed / "key"
    old = (folder / "model.sig").read_bytes()
    (folder / "model.sig").write_bytes(content)
    manifest = read_manifest(folder)
    try:
        return [verdict.judge(folder, manifest, demand) for demand in demands(signed)]
    finally:
        (folder / "model.sig").write_bytes(old)


def refused(signed: Path, content: bytes) -> str:
    nobody, *asked = judged(signed, content)
    assert nobody.error is None
    assert all(one.state == "refused" for one in asked)
    assert all("\n" not in one.message and one.message.isprintable() for one in asked)
    return asked[0].message


def test_what_is_no_json_of_a_sensible_size_never_reaches_a_library(signed: Path) -> None:
    for content, words in (
        (b"", "it is empty"),
        (b"\x00\xff" * 50, "is not"),
        (b"[" * 100_000, "nested deeper than 64 levels"),
        (b'{"a": ' * 5000 + b"1" + b"}" * 5000, "nested deeper than 64 levels"),
        (b'{"a": 1, "a": 2}', "stands there twice"),
        (b"NaN", "is no number"),
        (b"[]", "holds no JSON object"),
        (b"null", "holds no JSON object"),
        (b"{}", "is no signature of the model-signing format 1.0"),
        (b" " * (MAX_ATTACHED_BYTES + 1), "too large"),
    ):
        assert words in refused(signed, content)


PARTS: tuple[tuple[str, Callable[[dict[str, Any]], object], str], ...] = (
    ("two signatures", lambda b: b["dsseEnvelope"]["signatures"].append({"sig": ""}), "signatures"),
    ("no signature", lambda b: b["dsseEnvelope"].update(signatures=[]), "signatures"),
    ("no base64", lambda b: b["dsseEnvelope"].update(payload="%%%"), "base64"),
    ("another media type", lambda b: b.update(mediaType="text/html"), "mediaType"),
    ("an older bundle", lambda b: b.update(mediaType=OLD), "was not made by the key"),
    ("another payload", lambda b: b["dsseEnvelope"].update(payloadType="x"), "payloadType"),
    ("no material", lambda b: b.update(verificationMaterial={}), "by what it was signed"),
    (
        "two materials",
        lambda b: b["verificationMaterial"].update(certificate={"rawBytes": ""}),
        "by what it was signed",
    ),
    (
        "a hint that is none",
        lambda b: b["verificationMaterial"]["publicKey"].update(hint="x"),
        "hint",
    ),
    ("text for a part", lambda b: b.update(dsseEnvelope="x"), "dsseEnvelope"),
    (
        "a signature of nothing",
        lambda b: b["dsseEnvelope"].update(signatures=[{"sig": ""}]),
        "was not made by the key",
    ),
    (
        "a certificate that is none",
        lambda b: b.update(verificationMaterial={"x509CertificateChain": {"certificates": RAW}}),
        "with a certificate",
    ),
)
OLD = "application/vnd.dev.sigstore.bundle.v0.2+json"
RAW = [{"rawBytes": base64.b64encode(b"0\x82" + b"A" * 300).decode()}]


@pytest.mark.parametrize(("what", "edit", "words"), PARTS, ids=[part[0] for part in PARTS])
def test_a_bundle_that_is_wrong_in_one_place_says_where(
    signed: Path, tmp_path: Path, what: str, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    copy = tmp_path / "model.sig"
    shutil.copy(signed / "key" / "model.sig", copy)
    signatures.edited(copy, lambda bundle: (edit(bundle), None)[1])
    assert words in refused(signed, copy.read_bytes()), what


INNER: tuple[tuple[str, Callable[[dict[str, Any]], object], str], ...] = (
    (
        "an older predicate",
        lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"),
        "predicateType",
    ),
    ("another statement", lambda s: s.update(_type="x"), "_type"),
    ("shards", lambda s: s["predicate"]["serialization"].update(method="shards"), "method"),
    ("another hash", lambda s: s["predicate"]["resources"][0].update(algorithm="md5"), "algorithm"),
    ("a short digest", lambda s: s["predicate"]["resources"][0].update(digest="ab"), "digest"),
    (
        "a file twice",
        lambda s: s["predicate"]["resources"].append(s["predicate"]["resources"][0]),
        "twice",
    ),
    ("a file less", lambda s: s["predicate"]["resources"].pop(0), "is not covered"),
    (
        "a file more",
        lambda s: s["predicate"]["resources"].append(MORE),
        "was signed, and is missing",
    ),
    ("no files", lambda s: s["predicate"].update(resources=[]), "does not cover `manifest.json`"),
    (
        "a control character",
        lambda s: s["predicate"]["resources"].append({**MORE, "name": "\x1b[2J"}),
        "\\x1b[2J",
    ),
    ("another subject", lambda s: s["subject"][0].update(name="x"), "was not made by the key"),
)
MORE = {"name": "../../etc/passwd", "algorithm": "sha256", "digest": "0" * 64}


@pytest.mark.parametrize(("what", "edit", "words"), INNER, ids=[part[0] for part in INNER])
def test_a_statement_that_is_wrong_in_one_place_says_where(
    signed: Path, tmp_path: Path, what: str, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    copy = tmp_path / "model.sig"
    shutil.copy(signed / "key" / "model.sig", copy)
    signatures.edited(copy, lambda statement: (edit(statement), None)[1], inner=True)
    assert words in refused(signed, copy.read_bytes()), what


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.text(max_size=20),
    st.binary(max_size=30).map(lambda raw: base64.b64encode(raw).decode()),
)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner)
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where there is something in a nested JSON value."""
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    return [at, *(place for key, inner in items for place in places(inner, (*at, key)))]


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    value[at[0]] = changed(value[at[0]], at[1:], new)
    return value


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["key", "certificate"]), inner=st.booleans(), new=VALUES, data=st.data()
)
def test_any_value_in_any_place_is_refused_or_changes_nothing(
    signed: Path, kind: str, inner: bool, new: Any, data: st.DataObject
) -> None:
    bundle = json.loads((signed / kind / "model.sig").read_text("utf-8"))
    envelope = bundle["dsseEnvelope"]
    held = json.loads(base64.b64decode(envelope["payload"])) if inner else bundle
    held = changed(held, data.draw(st.sampled_from(places(held))), new)
    if inner:
        envelope["payload"] = base64.b64encode(json.dumps(held).encode()).decode()
    for one in judged(signed, json.dumps(bundle if inner else held).encode())[1:]:
        assert one.state in ("refused", "trusted")
        # what was signed is trusted as it was signed alone
        assert not (inner and one.state == "trusted")


@settings(max_examples=150)
@given(data=st.data(), new=st.binary(min_size=1, max_size=4))
def test_flipped_bytes_are_refused_or_change_nothing(
    signed: Path, data: st.DataObject, new: bytes
) -> None:
    raw = bytearray((signed / "certificate" / "model.sig").read_bytes())
    start = data.draw(st.integers(0, len(raw) - 1))
    raw[start : start + len(new)] = new
    for one in judged(signed, bytes(raw)):
        assert one.state in ("refused", "trusted", "unasked")


@settings(max_examples=100)
@given(der=st.binary(max_size=400), at=st.integers(0, 500))
def test_bytes_for_a_certificate_are_refused(signed: Path, der: bytes, at: int) -> None:
    bundle = json.loads((signed / "certificate" / "model.sig").read_text("utf-8"))
    chain = bundle["verificationMaterial"]["x509CertificateChain"]["certificates"]
    good = base64.b64decode(chain[0]["rawBytes"])
    mixed = good[:at] + der + good[at + len(der) :]
    if mixed == good:
        return
    chain[0]["rawBytes"] = base64.b64encode(mixed).decode()
    refused(signed, json.dumps(bundle).encode())


CHANGES: dict[str, Callable[[Path], object]] = {
    "a file that was added": lambda p: (p / "added.txt").write_text("x", "utf-8"),
    "a file below .git": lambda p: (p / ".git").mkdir() or (p / ".git" / "x").touch(),
    "an empty folder": lambda p: (p / "empty").mkdir(),
    "a file that is missing": lambda p: (p / "tokenizer.json").unlink(),
    "a flipped bit": lambda p: _flip(p / "model.onnx.data"),
    "a file's mode": lambda p: (p / "model.onnx").chmod(0o755),
    "a link": lambda p: (p / "link").symlink_to(p / "model.onnx"),
    "a renamed file": lambda p: (p / "model.onnx").rename(p / "other.onnx"),
    "a signature that is a link": lambda p: _linked(p / "model.sig"),
}


def _flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(raw)


def _linked(path: Path) -> None:
    path.rename(path.parent.parent / "elsewhere")
    path.symlink_to(path.parent.parent / "elsewhere")


@pytest.mark.parametrize("what", sorted(CHANGES))
def test_whatever_changes_after_the_signing_is_found(
    package: Path, key: Path, pub: Path, what: str, run: Run
) -> None:
    if os.name == "nt" and ("link" in what or "mode" in what):
        pytest.skip("Windows has no such thing, or asks for rights")
    phipipe.sign(package, key=key)
    CHANGES[what](package)
    code, out, err = run("verify", package, "--key", pub)
    assert code == 8
    assert "signed by" not in out
    assert "finding" in err


def test_the_key_that_a_forgery_names_is_no_more_than_a_claim(
    package: Path, key: Path, run: Run
) -> None:
    """The number in it is public, so anybody can write the maker's."""
    phipipe.sign(package, key=key)
    bundle = json.loads((package / "model.sig").read_bytes())
    bundle["dsseEnvelope"]["signatures"][0]["sig"] = "AAAA"
    (package / "model.sig").write_text(json.dumps(bundle), "utf-8")
    code, out, _ = run("verify", package)
    assert code == 0
    assert "claims to be signed by key" in out
    assert "nothing proves it" in out


def test_a_package_that_was_sealed_again_is_not_the_one_that_was_signed(
    package: Path, key: Path, pub: Path, run: Run
) -> None:
    """Who can write files can write a manifest that fits them: that is what signatures are for."""
    from phipipe.package import manifest

    phipipe.sign(package, key=key)
    held = (package / "model.sig").read_bytes()
    described = manifest.read_manifest(package).as_json()
    for name in ("model.sig", "provenance.json", "manifest.json", "SHA256SUMS"):
        (package / name).unlink()
    (package / "tokenizer_config.json").write_text('{"model_max_length": 4096}\n', "utf-8")
    manifest.seal(package, {k: v for k, v in described.items() if k not in ("files", "digest")})
    (package / "model.sig").write_bytes(held)
    assert run("verify", package)[0] == 0
    code, _, err = run("verify", package, "--key", pub)
    assert code == 8
    assert "the signature of another package, or of this one before it was changed" in err


def test_what_came_beside_it_after_the_signing_is_not_covered(
    package: Path, key: Path, pub: Path, run: Run
) -> None:
    statement = json.loads((package / "provenance.json").read_text("utf-8"))
    build = statement["predicate"]  # by another builder: what it says is its own affair
    build["buildDefinition"]["buildType"] = "https://ci.example/workflow/1"
    build["runDetails"]["builder"] = {"id": "https://ci.example/runner"}
    said = json.dumps(statement).encode()
    (package / "provenance.json").unlink()
    phipipe.sign(package, key=key)
    (package / "provenance.json").write_bytes(said)
    code, _, err = run("verify", package, "--key", pub)
    assert code == 8
    assert "`provenance.json` is not covered by the signature" in err
    phipipe.sign(package, key=key)
    (package / "provenance.json").write_bytes(said + b"\n")
    assert "was changed after it was signed" in run("verify", package, "--key", pub)[2]
    (package / "provenance.json").unlink()
    assert "was signed, and is missing" in run("verify", package, "--key", pub)[2]
