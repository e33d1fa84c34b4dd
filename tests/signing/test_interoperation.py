"""What phipipe signs, the library's own command verifies, and the other way round."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from testing import signatures

import phipipe


def stock(*words: str | Path, ok: bool = True) -> str:
    """``model_signing WORDS`` in a process of its own: what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "model_signing", *map(str, words)],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert (done.returncode == 0) == ok, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("curve", sorted(signatures.CURVES))
def test_the_stock_command_verifies_our_key_signature(
    package: Path, tmp_path: Path, curve: str
) -> None:
    key = signatures.key(tmp_path, curve, signatures.CURVES[curve])
    phipipe.sign(package, key=key)
    words = ("verify", "key", "--signature", package / "model.sig", "--public_key")
    assert "succeeded" in stock(*words, key.with_suffix(".pub"), package)
    other = signatures.key(tmp_path, "other").with_suffix(".pub")
    stock(*words, other, package, ok=False)


@pytest.mark.parametrize("curve", sorted(signatures.CURVES))
def test_we_verify_the_stock_command_s_key_signature(
    package: Path, tmp_path: Path, curve: str
) -> None:
    key = signatures.key(tmp_path, curve, signatures.CURVES[curve])
    stock("sign", "key", "--signature", package / "model.sig", "--private_key", key, package)
    assert phipipe.verify(package, trust=phipipe.Trust(key=key.with_suffix(".pub"))) == []
    other = signatures.key(tmp_path, "other").with_suffix(".pub")
    assert phipipe.verify(package, trust=phipipe.Trust(key=other))


def test_certificates_go_both_ways(package: Path, tmp_path: Path) -> None:
    root = signatures.issue(tmp_path, "root", is_ca=True)
    middle = signatures.issue(tmp_path, "middle", root, is_ca=True)
    signer = signatures.issue(tmp_path, "signer", middle)
    phipipe.sign(package, key=signer.key_path, certificate=signer.path, chain=[middle.path])
    sig = package / "model.sig"
    stock("verify", "certificate", "--signature", sig, "--certificate_chain", root.path, package)
    sig.unlink()
    stock(
        *("sign", "certificate", "--signature", sig, "--private_key", signer.key_path),
        *("--signing_certificate", signer.path, "--certificate_chain", middle.path, package),
    )
    assert phipipe.verify(package, trust=phipipe.Trust(certificate=root.path)) == []
    assert phipipe.verify(package, trust=phipipe.Trust(certificate=signer.path))


def test_we_find_what_the_stock_command_passes(package: Path, key: Path, pub: Path) -> None:
    """It looks at no file of git's."""
    phipipe.sign(package, key=key)
    (package / ".git").mkdir()
    (package / ".git" / "hook").write_text("harm", "utf-8")
    words = ("verify", "key", "--signature", package / "model.sig", "--public_key", pub, package)
    assert "succeeded" in stock(*words)
    findings = phipipe.verify(package, trust=phipipe.Trust(key=pub))
    assert [str(one) for one in findings] == [
        ".git: was added: a folder that the package does not have"
    ]


def test_what_a_signer_told_the_stock_command_to_ignore_is_missed_by_nobody_here(
    package: Path, key: Path, pub: Path
) -> None:
    sig, model = package / "model.sig", package / "model.onnx.data"
    words = ("--signature", sig, "--private_key", key, "--ignore-paths", model)
    stock("sign", "key", *words, package)
    (finding,) = phipipe.verify(package, trust=phipipe.Trust(key=pub))
    assert "`model.onnx.data` is not covered by the signature" in finding.message
