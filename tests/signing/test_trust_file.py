"""The trust file: what it may say, and that every command obeys it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from testing import signatures
from testing.shell import Run

import phipipe
from phipipe.api import workplace
from phipipe.chat import start
from phipipe.errors import RecipeError, SourceError
from phipipe.execution import finished
from phipipe.package.manifest import read_manifest
from phipipe.settings import Settings
from phipipe.signing import trust_file, verdict
from phipipe.signing.demands import Keys
from phipipe.store.store import Store


def write(folder: Path, text: str) -> Path:
    path = folder / "trust.yaml"
    path.write_text(text, "utf-8")
    return path


@pytest.fixture
def trust(tmp_path: Path, pub: Path) -> Path:
    """It asks for the signature of ``key``."""
    return write(tmp_path, "rules:\n- {packages: '*', key: keys/signing.pub}\n")


def complaint(path: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        trust_file.load(path)
    assert caught.value.exit_code == 2
    return caught.value.message


def test_the_first_rule_that_fits_decides(tmp_path: Path, pub: Path) -> None:
    path = write(
        tmp_path,
        "default: warn\nrules:\n"
        "- {packages: scratch-*, policy: off}\n"
        "- {packages: 'phi35-*', key: keys/signing.pub, policy: warn}\n"
        "- {packages: 'phi*', key: keys/signing.pub}\n",
    )
    found = trust_file.load(path)
    asked = {
        name: found.demand(name)
        for name in ("scratch-phi35", "phi35-npu", "phi4", "llama", "Phi35-npu")
    }
    assert {name: one.policy for name, one in asked.items()} == {
        "scratch-phi35": "off",
        "phi35-npu": "warn",
        "phi4": "enforce",
        "llama": "warn",
        "Phi35-npu": "warn",
    }
    assert asked["phi4"].anchor == Keys(file=tmp_path / "keys" / "signing.pub")
    assert asked["phi4"].source == f"rule 3 of `{path}`"
    assert asked["llama"].anchor is None
    assert "no rule of which is for `llama`" in asked["llama"].source


def test_what_no_rule_is_for_is_refused_unless_the_file_says_otherwise(
    package: Path, key: Path, tmp_path: Path
) -> None:
    phipipe.sign(package, key=key)
    path = write(tmp_path, "rules:\n- {packages: other-*, key: keys/signing.pub}\n")
    (finding,) = phipipe.verify(package, trust=path)
    assert "no rule of which is for `quickstart`, names nobody to trust" in finding.message
    for policy in ("warn", "off"):
        lax = f"default: {policy}\n{path.read_text('utf-8')}"
        if policy == "warn":
            with pytest.warns(UserWarning, match="no rule of which is for `quickstart`"):
                assert phipipe.verify(package, trust=write(tmp_path, lax)) == []
        else:
            assert phipipe.verify(package, trust=write(tmp_path, lax)) == []
        path = write(tmp_path, "rules:\n- {packages: other-*, key: keys/signing.pub}\n")


WRONG = {
    "rules:\n- {packages: '*', kee: a.pub}\n": ("2:19: unknown key `kee`", "`key`"),
    "defualt: warn\nrules:\n- {packages: '*', policy: off}\n": (
        "1:1: unknown key `defualt`; did you mean `default`?",
    ),
    "rules:\n- {packages: '*', key: keys/signing.pub, policy: sometimes}\n": (
        "2:50: unknown value `sometimes`",
        "off, warn, enforce",
    ),
    "rules:\n- {key: keys/signing.pub}\n": ("`packages` is missing",),
    "rules:\n- {packages: '*'}\n": ("there is none",),
    "rules:\n- {packages: '*', key: keys/signing.pub, certificate: c.pem}\n": (
        "there is `key` and `certificate`",
    ),
    "rules:\n- {packages: '*', identity: a@example.com}\n": ("belong together",),
    "rules:\n- {packages: '*', key: keys/signing.pub, crl: c.crl}\n": (
        "`crl` is for rules with `certificate`",
    ),
    "rules:\n- {packages: '*', key: keys/signing.pub, sigstore_roots: c.json}\n": (
        "`sigstore_roots` is for rules with `identity`",
    ),
    "rules:\n- {packages: '*', key: keys/signing.pub, revoked: [abc]}\n": (
        "`abc` is no fingerprint",
    ),
    "rules:\n- {packages: '*', key: nowhere.pub}\n": ("2:24: `nowhere.pub` is not there",),
    "rules:\n- {packages: '*', key: keys}\n": ("2:24: `keys` is a folder",),
    "rules: []\n": ("1:8:",),
    "rules:\n- {packages: '*', key: keys/signing.pub, revoked: }\n": ("`revoked` has no value",),
    "rules:\n- {packages: '*', certificate: keys/signing.pub, crl: }\n": ("`crl` has no value",),
    "rules: all\n": ("1:8: expected a list",),
    "- packages: '*'\n": ("a trust file is a mapping of keys",),
    "rules: [\n": ("1:8:",),
    "": ("the file is empty",),
    "rules:\n- {packages: '*', policy: off}\nrules: []\n": ("stands here again",),
}


@pytest.mark.parametrize("text", sorted(WRONG))
def test_a_mistake_is_said_with_its_place(tmp_path: Path, pub: Path, text: str) -> None:
    path = write(tmp_path, text)
    message = complaint(path)
    assert str(path) in message
    for words in WRONG[text]:
        assert words in message


def test_all_mistakes_are_said_at_once(tmp_path: Path, pub: Path) -> None:
    path = write(
        tmp_path,
        "rules:\n- {packages: '*', kye: a}\n- {packages: 3, key: keys/signing.pub}\n",
    )
    message = complaint(path)
    assert "2:19:" in message
    assert "3:14:" in message


def test_paths_count_from_the_trust_file_s_folder(
    package: Path, trust: Path, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phipipe.sign(package, key=key)
    monkeypatch.chdir(package)
    assert phipipe.verify(package, trust=trust) == []


def test_a_revoked_key_is_not_trusted(package: Path, key: Path, pub: Path, tmp_path: Path) -> None:
    phipipe.sign(package, key=key)
    fingerprint = str(phipipe.sign(package, key=key).fingerprint)
    path = write(
        tmp_path,
        f"rules:\n- {{packages: '*', key: keys/signing.pub, revoked: ['{fingerprint}']}}\n",
    )
    (finding,) = phipipe.verify(package, trust=path)
    assert "has revoked the key" in finding.message
    # whoever holds it can leave out which key it was
    signatures.edited(
        package / "model.sig", lambda b: b["verificationMaterial"].update(publicKey={})
    )
    (finding,) = phipipe.verify(package, trust=path)
    assert "has revoked every key of `signing.pub`" in finding.message


def test_a_rule_of_certificates_with_a_list_of_revoked_ones(package: Path, tmp_path: Path) -> None:
    root = signatures.issue(tmp_path, "root", is_ca=True)
    signer = signatures.issue(tmp_path, "signer", root)
    phipipe.sign(package, key=signer.key_path, certificate=signer.path)
    signatures.revocations(tmp_path, root)
    path = write(tmp_path, "rules:\n- {packages: '*', certificate: root.pem, crl: root.crl}\n")
    assert phipipe.verify(package, trust=path) == []
    signatures.revocations(tmp_path, root, signer)
    (finding,) = phipipe.verify(package, trust=path)
    assert "it was revoked" in finding.message


OPENING = (["chat", "--prompt", "hi"], ["eval"], ["measure"], ["compare"])


@pytest.mark.parametrize("words", OPENING, ids=[one[0] for one in OPENING])
def test_every_command_that_opens_a_package_obeys(
    package: Path,
    trust: Path,
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    words: list[str],
) -> None:
    monkeypatch.setenv("PHIPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PHIPIPE_TRUST", str(trust))
    command, *more = words
    code, _, err = run(command, package, *more)
    assert code == 8
    assert "is not to be trusted: not signed, and rule 1 of" in err
    trust.write_text(trust.read_text("utf-8").replace("}", ", policy: warn}"), "utf-8")
    _, _, err = run(command, package, *more)
    assert "warning: " in err
    assert "is not to be trusted: not signed" in err
    phipipe.sign(package, key=key)
    _, _, err = run(command, package, *more)
    assert "is not to be trusted" not in err


def test_python_obeys_too(
    package: Path,
    trust: Path,
    key: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PHIPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PHIPIPE_TRUST", str(trust))
    store, settings = Store(tmp_path / "cache"), Settings.read()
    doors = (
        lambda: phipipe.Package.open(package),
        lambda: phipipe.Board(package),
        lambda: finished.plan_measurement(package, workplace.silent),
        lambda: finished.plan_evaluation(
            package, store, workplace.silent, text=None, tokens=None, source=None
        ),
        lambda: start.converse(package, settings, workplace.silent, system=None, tokens=8),
    )
    for door in doors:
        with pytest.raises(SourceError, match="not signed, and rule 1 of"):
            door()
    assert phipipe.verify(package)
    phipipe.sign(package, key=key)
    assert phipipe.Package.open(package).verify() == []
    assert phipipe.verify(package) == []
    trust.write_text("rules: [{packages: 'x', policy: off}]\ndefault: warn\n", "utf-8")
    with pytest.warns(UserWarning, match="names nobody to trust"):
        phipipe.Package.open(package)


def test_a_trust_file_of_the_settings_that_is_wrong_stops_everything(
    package: Path, trust: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("PHIPIPE_TRUST", str(trust))
    trust.write_text("rules: nobody", "utf-8")
    code, _, err = run("verify", package)
    assert code == 2
    assert f"{trust}:1:8:" in err
    assert "it is the trust file of your settings" in err
    trust.unlink()
    code, _, err = run("compare", package)
    assert code == 2
    assert f"no trust file at `{trust}`" in err


def test_options_count_before_the_settings(
    package: Path, trust: Path, key: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.setenv("PHIPIPE_TRUST", str(trust))
    other = signatures.key(key.parent, "other")
    phipipe.sign(package, key=other)
    assert run("verify", package)[0] == 8
    assert run("verify", package, "--policy", "warn")[0] == 0
    assert run("verify", package, "--key", other.with_suffix(".pub"))[0] == 0
    assert run("verify", package, "--trust", trust)[0] == 8


def test_the_name_that_counts_is_the_package_s_own(
    package: Path, trust: Path, tmp_path: Path, pub: Path
) -> None:
    """A folder is called as anybody likes."""
    path = write(
        tmp_path,
        "default: off\nrules:\n- {packages: quickstart, key: keys/signing.pub}\n",
    )
    moved = shutil.move(package, tmp_path / "harmless")
    assert phipipe.verify(moved, trust=path)


def test_nothing_is_asked_where_the_policy_is_off(package: Path, tmp_path: Path) -> None:
    path = write(tmp_path, "rules:\n- {packages: '*', policy: off}\n")
    (package / "model.sig").write_text("no signature", "utf-8")
    assert phipipe.verify(package, trust=path) == []
    found = verdict.judge(
        package, read_manifest(package), trust_file.load(path).demand("quickstart")
    )
    assert (found.state, found.policy) == ("unasked", "off")
    assert "does not count" in found.message
