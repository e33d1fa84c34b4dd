"""A certificate may sign while it is valid, leads to a root that the user trusts, and is not
revoked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from testing import signatures
from testing.shell import Run
from testing.signatures import DAY, NOW, Issued

import phipipe
from phipipe.errors import SourceError
from phipipe.package.manifest import read_manifest
from phipipe.signing import verdict
from phipipe.signing.demands import Certificates, Demand
from phipipe.signing.verdict import Verdict


@dataclass(frozen=True)
class Company:
    """A root, one that it vouches for, and who signs."""

    root: Issued
    middle: Issued
    signer: Issued

    def sign(self, package: Path, **given: Any) -> phipipe.api.signatures.Signer:  # type: ignore[name-defined]
        words = {"certificate": self.signer.path, "chain": [self.middle.path], **given}
        return phipipe.sign(package, key=self.signer.key_path, **words)


def company(folder: Path, name: str = "company", **signer: Any) -> Company:
    root = signatures.issue(folder, f"{name} root", is_ca=True)
    middle = signatures.issue(folder, f"{name} middle", root, is_ca=True)
    return Company(root, middle, signatures.issue(folder, f"{name} signer", middle, **signer))


@pytest.fixture
def ours(tmp_path: Path) -> Company:
    return company(tmp_path)


def judged(package: Path, *roots: Path, time: Any = None, **asked: Any) -> Verdict:
    revoked = asked.pop("revoked", frozenset())
    anchor = Certificates(files=roots, **asked)
    demand = Demand(policy="enforce", anchor=anchor, source="the test", revoked=revoked)
    return verdict.judge(package, read_manifest(package), demand, time)


def refusal(package: Path, *roots: Path, **asked: Any) -> str:
    found = judged(package, *roots, **asked)
    assert found.state == "refused"
    assert found.error is not None
    assert found.error.exit_code == 8
    assert "\n" not in found.message
    return found.message


def test_a_chain_to_a_trusted_root_holds_and_names_the_signer(
    package: Path, ours: Company, run: Run
) -> None:
    signer = ours.sign(package)
    assert (signer.kind, signer.subject) == ("certificate", "CN=company signer")
    found = judged(package, ours.root.path)
    assert (found.state, found.signer) == ("trusted", signer)
    code, out, _ = run("verify", package, "--cert", ours.root.path)
    assert code == 0
    assert f"signed by certificate `CN=company signer` {signer.fingerprint}" in out
    code, out, _ = run("verify", package)  # a stranger's words about himself are not repeated
    assert code == 0
    assert "company signer" not in out
    assert f"{signer.fingerprint}; nothing proves it until you say whom to trust" in out


def test_a_certificate_may_be_trusted_itself(package: Path, tmp_path: Path) -> None:
    own = signatures.issue(tmp_path, "alone")
    phipipe.sign(package, key=own.key_path, certificate=own.path)
    assert judged(package, own.path).state == "trusted"


def test_several_roots_may_be_trusted(package: Path, ours: Company, tmp_path: Path) -> None:
    other = company(tmp_path, "other")
    ours.sign(package)
    assert judged(package, other.root.path, ours.root.path).state == "trusted"
    both = tmp_path / "both.pem"
    both.write_bytes(other.root.path.read_bytes() + ours.root.path.read_bytes())
    assert judged(package, both).state == "trusted"


def test_who_leads_nowhere_is_not_trusted(package: Path, ours: Company, tmp_path: Path) -> None:
    other = company(tmp_path, "other")
    ours.sign(package)
    assert "nobody vouches for it that the trusted certificates know" in refusal(
        package, other.root.path
    )
    ours.sign(package, chain=[])
    assert "nobody vouches for it" in refusal(package, ours.root.path)
    alone = signatures.issue(tmp_path, "alone")
    phipipe.sign(package, key=alone.key_path, certificate=alone.path)
    assert "it vouches for itself" in refusal(package, ours.root.path)
    ours.sign(package, chain=[ours.middle.path, ours.root.path])
    assert "leads to a root that is not among" in refusal(package, other.root.path)


def test_who_may_not_vouch_for_others_does_not(package: Path, tmp_path: Path) -> None:
    root = signatures.issue(tmp_path, "root", is_ca=True)
    clerk = signatures.issue(tmp_path, "clerk", root)
    forged = signatures.issue(tmp_path, "forged", clerk)
    phipipe.sign(package, key=forged.key_path, certificate=forged.path, chain=[clerk.path])
    assert "may not vouch for others" in refusal(package, root.path)


def test_time_decides(package: Path, ours: Company) -> None:
    ours.sign(package)
    assert judged(package, ours.root.path, time=NOW + 99 * DAY).state == "trusted"
    said = refusal(package, ours.root.path, time=NOW + 101 * DAY)
    assert f"that signed ended on {(NOW + 100 * DAY).date()}" in said
    said = refusal(package, ours.root.path, time=NOW - 2 * DAY)
    assert f"is not valid before {(NOW - DAY).date()}" in said


def test_one_above_that_has_ended_is_said(package: Path, tmp_path: Path) -> None:
    root = signatures.issue(tmp_path, "root", is_ca=True)
    middle = signatures.issue(tmp_path, "middle", root, is_ca=True, ends=NOW + 5 * DAY)
    signer = signatures.issue(tmp_path, "signer", middle)
    Company(root, middle, signer).sign(package)
    said = refusal(package, root.path, time=NOW + 6 * DAY)
    assert "a certificate in its chain has ended" in said


def test_nobody_signs_with_what_would_be_refused(
    package: Path, tmp_path: Path, ours: Company
) -> None:
    late = company(tmp_path, "late", begins=NOW - 9 * DAY, ends=NOW - DAY)
    early = company(tmp_path, "early", begins=NOW + DAY)
    idle = company(tmp_path, "idle", signs=False)
    for made, words in (
        (late, "ended on"),
        (early, "is not valid before"),
        (idle, "is not for signing"),
    ):
        with pytest.raises(SourceError, match=words):
            made.sign(package)
    with pytest.raises(SourceError, match="they hold different keys"):
        ours.sign(package, certificate=early.signer.path)
    with pytest.raises(SourceError, match="holds no certificate in PEM"):
        ours.sign(package, certificate=ours.signer.key_path)
    assert not (package / "model.sig").exists()


def test_a_list_of_revoked_certificates_counts(
    package: Path, ours: Company, tmp_path: Path
) -> None:
    ours.sign(package)
    none = signatures.revocations(tmp_path, ours.middle)
    assert judged(package, ours.root.path, revocations=none).state == "trusted"
    own = signatures.revocations(tmp_path, ours.middle, ours.signer)
    assert "it was revoked" in refusal(package, ours.root.path, revocations=own)
    old = signatures.revocations(tmp_path, ours.middle, until=NOW - DAY / 2)
    assert "the list of revoked certificates has ended" in refusal(
        package, ours.root.path, revocations=old
    )
    others = signatures.revocations(tmp_path, company(tmp_path, "other").middle)
    assert "not its issuer's" in refusal(package, ours.root.path, revocations=others)
    with pytest.raises(SourceError, match="holds no list of revoked certificates"):
        judged(package, ours.root.path, revocations=ours.root.path)


def test_a_revoked_fingerprint_counts_anywhere_in_the_chain(package: Path, ours: Company) -> None:
    from cryptography.hazmat.primitives import hashes

    ours.sign(package)
    for one in (ours.signer, ours.middle, ours.root):
        known = f"sha256:{one.certificate.fingerprint(hashes.SHA256()).hex()}"
        assert "revoked" in refusal(package, ours.root.path, revoked=frozenset([known]))


def test_a_revoked_key_counts_under_any_certificate(package: Path, ours: Company) -> None:
    import hashlib

    ours.sign(package)
    public = ours.signer.key_path.with_suffix(".pub").read_bytes()
    known = f"sha256:{hashlib.sha256(public).hexdigest()}"
    assert "was revoked" in refusal(package, ours.root.path, revoked=frozenset([known]))


def test_another_package_s_signature_under_a_good_certificate_is_refused(
    package: Path, ours: Company
) -> None:
    ours.sign(package)
    signatures.edited(
        package / "model.sig", lambda s: s["predicate"]["resources"].pop(), inner=True
    )
    assert "is not covered by the signature" in refusal(package, ours.root.path)


def test_a_signature_that_the_certificate_did_not_make_is_refused(
    package: Path, ours: Company
) -> None:
    """All files are there, and the envelope says another subject than was signed."""
    ours.sign(package)
    signatures.edited(
        package / "model.sig", lambda s: s["subject"][0].update(name="other"), inner=True
    )
    assert "was not made by the certificate that came with it" in refusal(package, ours.root.path)
