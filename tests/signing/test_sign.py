"""A package is signed by a key, and whoever is asked says whose key it was."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from model_signing._signing import sign_ec_key
from sigstore.models import ClientTrustConfig
from testing import documents, signatures
from testing.shell import Run

import phipipe
from phipipe.errors import PhipipeError, RecipeError, SourceError, StoreError, ToolchainError
from phipipe.evaluate import papers
from phipipe.package.manifest import read_manifest
from phipipe.signing import bundle, credentials, sign
from phipipe.store import claims, keys

SECRET = "correct horse battery staple"


def fingerprint(pub: Path) -> str:
    return f"sha256:{hashlib.sha256(pub.read_bytes()).hexdigest()}"


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("curve", sorted(signatures.CURVES))
def test_every_curve_signs_and_is_recognised(package: Path, tmp_path: Path, curve: str) -> None:
    key = signatures.key(tmp_path, curve, signatures.CURVES[curve])
    before = tree(package)
    signer = phipipe.sign(package, key=key)
    assert str(signer) == f"key {fingerprint(key.with_suffix('.pub'))}"
    assert tree(package).keys() - before.keys() == {"model.sig"}
    assert phipipe.verify(package) == []
    trusted = phipipe.Trust(key=key.with_suffix(".pub"))
    assert phipipe.verify(package, trust=trusted) == []


def test_a_signature_covers_every_file_but_itself(package: Path, key: Path) -> None:
    (package / papers.PROVENANCE).write_text('{"_type": "statement"}\n', "utf-8")
    phipipe.sign(package, key=key)
    signed = bundle.read(package).files
    assert signed == {
        name: hashlib.sha256(data).hexdigest()
        for name, data in tree(package).items()
        if name != "model.sig"
    }


def test_the_digest_of_a_package_is_the_same_signed_or_not(package: Path, key: Path) -> None:
    before = read_manifest(package)
    phipipe.sign(package, key=key)
    assert read_manifest(package) == before


def test_the_command_says_who_signed_and_who_is_trusted(
    package: Path, key: Path, pub: Path, run: Run
) -> None:
    assert run("verify", package) == (
        0,
        f"{package}: complete and unchanged\n{package}: not signed\n",
        "",
    )
    code, out, err = run("sign", package, "--key", key)
    assert (code, err) == (0, "")
    assert out == f"{package}: signed by key {fingerprint(pub)}\nsignature  {package}/model.sig\n"
    code, out, _ = run("verify", package)
    assert code == 0
    assert f"claims to be signed by key {fingerprint(pub)}; nothing proves it" in out
    code, out, _ = run("verify", package, "--key", pub)
    assert code == 0
    assert f"signed by key {fingerprint(pub)}, as --key asks" in out


def test_both_commands_answer_as_their_schemas_promise(
    package: Path, key: Path, pub: Path, run: Run
) -> None:
    own = {"kind": "key", "fingerprint": fingerprint(pub), "subject": None, "issuer": None}
    words = ("sign", package, "--key", key, "--json")
    assert documents.fits(words, run(*words)[1])["signer"] == own
    other = signatures.key(key.parent, "other").with_suffix(".pub")
    for asked, code, state in (
        ([], 0, "unasked"),
        (["--key", pub], 0, "trusted"),
        (["--key", other], 8, "refused"),
        (["--key", other, "--policy", "warn"], 0, "refused"),
        (["--key", other, "--policy", "off"], 0, "unasked"),
    ):
        words = ("verify", package, *asked, "--json")
        ended, out, _ = run(*words)
        answer = documents.fits(words, out)
        assert (ended, answer["signature"]["state"]) == (code, state)
        assert answer["ok"] == (code == 0)
        assert (answer["signature"]["signer"] == own) == (state != "refused")


def test_a_package_that_must_be_signed_and_is_not_is_refused(
    package: Path, pub: Path, run: Run
) -> None:
    code, _, err = run("verify", package, "--key", pub)
    assert code == 8
    assert "not signed, and --key asks for the signature of a key of `signing.pub`" in err
    code, out, err = run("verify", package, "--key", pub, "--policy", "warn")
    assert code == 0
    assert "warning:" in err
    assert "not signed" in out


def test_signing_again_replaces_the_signature_in_one_step(
    package: Path, key: Path, pub: Path, tmp_path: Path
) -> None:
    other = signatures.key(tmp_path, "other")
    phipipe.sign(package, key=other)
    phipipe.sign(package, key=key)
    assert phipipe.verify(package, trust=phipipe.Trust(key=pub)) == []
    left = phipipe.verify(package, trust=phipipe.Trust(key=other.with_suffix(".pub")))
    assert len(left) == 1
    assert sorted(path.name for path in package.parent.iterdir() if path.name[0] == ".") == []


def test_a_changed_package_is_not_signed(package: Path, key: Path) -> None:
    (package / "model.onnx.data").write_bytes(b"x" * 60_000)
    with pytest.raises(SourceError, match="not as it was packaged"):
        phipipe.sign(package, key=key)
    assert not bundle.is_there(package)


@pytest.mark.parametrize("moment", ["library", "disk", "self-check"])
def test_a_signing_that_fails_leaves_the_old_signature(
    package: Path, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    phipipe.sign(package, key=key)
    before = tree(package)
    other = signatures.key(tmp_path, "other")
    if moment == "library":

        def fails(*_: object) -> None:
            raise RuntimeError("no entropy")

        monkeypatch.setattr(sign_ec_key.Signer, "sign", fails)
    elif moment == "disk":

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(claims.files, "write", full)
    else:
        old = (package / "model.sig").read_bytes()  # it holds, but it is another key's
        monkeypatch.setattr(credentials.ByKey, "sign", lambda *_: old)
    with pytest.raises((SourceError, StoreError)):
        phipipe.sign(package, key=other)
    assert tree(package) == before
    assert [path.name for path in package.parent.iterdir() if path.name.startswith(".")] == []


def test_a_passphrase_comes_from_the_environment_and_goes_nowhere(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    key = signatures.key(tmp_path / "keys", "closed", passphrase=SECRET)
    monkeypatch.delenv("SIGNING_KEY_PASSPHRASE", raising=False)
    code, _, err = run("sign", package, "--key", key)
    assert code == 8
    assert "has a passphrase, and nobody gave it" in err
    monkeypatch.setenv("SIGNING_KEY_PASSPHRASE", "wrong")
    code, _, err = run("sign", package, "--key", key)
    assert code == 8
    assert "does not open with this passphrase" in err
    monkeypatch.setenv("SIGNING_KEY_PASSPHRASE", SECRET)
    code, out, err = run("sign", package, "--key", key, "-v")
    assert code == 0
    monkeypatch.setenv("MY_PASS", SECRET)
    monkeypatch.delenv("SIGNING_KEY_PASSPHRASE")
    assert run("sign", package, "--key", key, "--passphrase-env", "MY_PASS")[0] == 0
    held = [out.encode(), err.encode(), *tree(package).values()]
    body = b"".join(key.read_bytes().splitlines()[1:-1])
    assert not any(SECRET.encode() in text or body in text for text in held)
    own = credentials.from_file(key, lambda: SECRET)
    assert "PRIVATE" not in repr(own)


def test_what_is_no_key_to_sign_with_is_said_in_one_sentence(
    package: Path, tmp_path: Path, key: Path, pub: Path
) -> None:
    bitcoin = signatures.key(tmp_path, "bitcoin", ec.SECP256K1())
    (tmp_path / "text.key").write_text("no key at all")
    torn = key.with_name("torn.key")
    torn.write_bytes(key.read_bytes()[:90])
    huge = tmp_path / "huge.key"
    huge.write_bytes(b"-" * (2**20 + 1))
    for path, words in (
        (signatures.rsa_key(tmp_path), "is no EC key"),
        (bitcoin, "is an EC key on secp256k1"),
        (tmp_path / "text.key", "holds no private key in PEM"),
        (torn, "holds no private key in PEM"),
        (pub, "holds no private key in PEM"),
        (huge, "too large"),
        (tmp_path / "nowhere.key", "there is no file"),
        (tmp_path, "is a folder, and a file is meant"),
    ):
        with pytest.raises(SourceError, match=words) as caught:
            phipipe.sign(package, key=path)
        assert "\n" not in caught.value.message
    assert not bundle.is_there(package)


def test_what_is_no_key_to_trust_is_said_in_one_sentence(
    package: Path, key: Path, tmp_path: Path
) -> None:
    phipipe.sign(package, key=key)
    root = signatures.issue(tmp_path, "root", is_ca=True)
    (tmp_path / "empty.pub").write_text("")
    broken = tmp_path / "broken.pub"
    broken.write_text("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n")
    for path, words in (
        (key, "holds a private key, and its public one is needed here"),
        (root.path, "holds a certificate, no public key"),
        (tmp_path / "empty.pub", "holds no public key in PEM"),
        (tmp_path / "nowhere.pub", "there is no file"),
    ):
        with pytest.raises(SourceError, match=words):
            phipipe.verify(package, trust=phipipe.Trust(key=path))
    assert phipipe.verify(package, trust=phipipe.Trust(key=broken))


def test_a_file_may_hold_several_keys(package: Path, key: Path, pub: Path, tmp_path: Path) -> None:
    """Keys change; for a while both are good."""
    other = signatures.key(tmp_path, "other").with_suffix(".pub")
    phipipe.sign(package, key=key)
    both = tmp_path / "both.pub"
    both.write_bytes(other.read_bytes() + pub.read_bytes().replace(b"\n", b"\r\n"))
    assert phipipe.verify(package, trust=phipipe.Trust(key=both)) == []
    # older signers left out which key it was
    signatures.edited(
        package / "model.sig", lambda b: b["verificationMaterial"].update(publicKey={})
    )
    assert phipipe.verify(package, trust=phipipe.Trust(key=both)) == []
    assert phipipe.verify(package, trust=phipipe.Trust(key=other))


def test_options_that_do_not_go_together_are_refused(
    package: Path, key: Path, pub: Path, run: Run
) -> None:
    for words in (
        ["sign", package],
        ["sign", package, "--sigstore", "--key", key],
        ["sign", package, "--sigstore", "--cert", pub],
        ["verify", package, "--key", pub, "--cert", pub],
        ["verify", package, "--sigstore-identity", "a@example.com"],
        ["verify", package, "--sigstore-roots", pub],
        ["verify", package, "--policy", "enforce"],
    ):
        code, _, err = run(*words)
        assert code == 2, words
        assert "error:" in err
    for trust in (
        phipipe.Trust(),
        phipipe.Trust(key=pub, certificate=pub),
        phipipe.Trust(identity="a@example.com"),
        phipipe.Trust(key=pub, policy="often"),
    ):
        with pytest.raises(RecipeError):
            phipipe.verify(package, trust=trust)
    with pytest.raises(RecipeError):
        phipipe.sign(package)
    with pytest.raises(RecipeError):
        phipipe.sign(package, sigstore=True, certificate=pub)


def test_without_the_extra_a_signature_is_named_and_what_to_install_is_said(
    package: Path, key: Path, pub: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    phipipe.sign(package, key=key)
    for name in [
        name for name in sys.modules if name.split(".")[0] in ("model_signing", "OpenSSL")
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "OpenSSL", None)  # as where it is not installed
    code, out, _ = run("verify", package)
    assert code == 0
    assert fingerprint(pub) in out
    code, _, err = run("verify", package, "--key", pub)
    assert code == 4
    assert "pip install 'phipipe[sign]'" in err
    with pytest.raises(ToolchainError):
        phipipe.sign(package, key=key)


def test_a_package_that_cannot_be_written_is_said(package: Path, key: Path) -> None:
    if os.name == "nt" or os.geteuid() == 0:
        pytest.skip("this user may write everywhere")
    package.parent.chmod(0o500)
    try:
        with pytest.raises(StoreError):
            phipipe.sign(package, key=key)
    finally:
        package.parent.chmod(0o700)


def test_through_sigstore_nothing_is_signed_without_a_network(
    package: Path, key: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Its servers cannot be had here; what becomes of that can."""

    def refuses(*_: object, **__: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(ClientTrustConfig, "production", refuses)
    code, _, err = run("sign", package, "--sigstore")
    assert code == 8
    assert "it cannot be signed: [Errno 101] Network is unreachable" in err
    assert "sign and trust with a key, which needs no network" in err
    phipipe.sign(package, key=key)
    asked = ("--sigstore-identity", "a@example.com", "--sigstore-issuer", "https://example.com")
    code, _, err = run("verify", package, *asked)
    assert code == 8
    assert "it was made with a key, and --sigstore-identity asks for the signature of" in err
    as_sigstore = signatures.issue(key.parent, "someone")
    der = as_sigstore.certificate.public_bytes(serialization.Encoding.DER)
    raw = {"rawBytes": base64.b64encode(der).decode()}
    signatures.edited(
        package / "model.sig", lambda b: b.update(verificationMaterial={"certificate": raw})
    )
    code, _, err = run("verify", package, *asked)
    assert code == 8
    assert "sigstore's roots of trust cannot be had" in err
    roots = key.parent / "roots.json"
    roots.write_text(json.dumps({"mediaType": "no trust configuration"}))
    code, _, err = run("verify", package, *asked, "--sigstore-roots", roots)
    assert code == 8
    assert "sigstore's roots of trust cannot be had" in err


def test_a_batch_of_versions_is_signed_where_it_was_accepted(package: Path, key: Path) -> None:
    versions = package.parent / "versions"
    versions.mkdir()
    shutil.move(package, versions / "abc")
    (versions / "latest").write_text("abc\n", "utf-8")
    phipipe.sign(versions, key=key)
    assert bundle.is_there(versions / "abc")


def test_signing_needs_no_more_than_one_look_at_a_file(
    package: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model is hashed once for the check, and its signature takes that digest."""
    hashed: list[str] = []
    original = keys.hash_file

    def counted(path: Path) -> str:
        hashed.append(path.name)
        return original(path)

    monkeypatch.setattr(keys, "hash_file", counted)
    sign.sign(package, credentials.from_file(key, lambda: None))
    assert hashed.count("model.onnx.data") == 1


def test_errors_are_ours(package: Path, key: Path) -> None:
    (package / "model.sig").mkdir()
    with pytest.raises(PhipipeError):
        phipipe.sign(package, key=key)
