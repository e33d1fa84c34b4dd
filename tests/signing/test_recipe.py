"""`package.sign`: a recipe's packages are signed when they are written, and nothing else knows."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from testing import finished, plans, signatures
from testing.places import QUICKSTART
from testing.shell import Run

import phipipe
from phipipe import backends
from phipipe.batch import batch, selection
from phipipe.cli.listeners import Silent
from phipipe.errors import RecipeError, SourceError
from phipipe.execution import dispatch
from phipipe.execution.manner import Manner
from phipipe.execution.results import Outcome
from phipipe.package import recipe as package_recipe
from phipipe.planning import shipping
from phipipe.recipe import loading
from phipipe.recipe import recipe as recipes
from phipipe.settings import Settings
from phipipe.signing import bundle, recipe_key
from phipipe.store.store import Store

FILE = "package: {sign: {key: {file: keys/signing.key}}}\n"
ENV = "package: {sign: {key: {env: TEAM_KEY}}}\n"


class Works:
    """A cache, and a folder for packages."""

    def __init__(self, folder: Path, package: Path) -> None:
        self.folder, self.package, self.out = folder, package, folder / "packages"

    def run(self, more: str) -> Outcome:
        plan = finished.plan(self.package, finished.recipe(self.folder, more))
        store = Store(self.folder / "cache")
        own = Settings(cache=store.root, toolchains=store.root)
        (done,) = dispatch.attempt([plan], store, own, Silent(), Manner(out=self.out, jobs=1))
        return done

    @property
    def delivered(self) -> Path:
        return self.out / "quickstart"

    def signature(self) -> tuple[int, bytes]:
        path = self.delivered / "model.sig"
        return path.stat().st_ino, path.read_bytes()


@pytest.fixture
def works(tmp_path: Path, package: Path) -> Works:
    return Works(tmp_path, package)


def test_a_package_is_signed_when_it_is_written(works: Works, key: Path, pub: Path) -> None:
    done = works.run(FILE)
    assert (done.error, done.package) == (None, works.delivered)
    assert phipipe.verify(works.delivered, trust=phipipe.Trust(key=pub)) == []
    assert not list((works.folder / "cache").rglob("model.sig"))
    assert sorted(path.name for path in works.out.iterdir()) == ["quickstart"]


def test_a_second_run_leaves_it_as_it_is(works: Works, key: Path) -> None:
    works.run(FILE)
    before = works.signature()
    assert works.run(FILE).error is None
    assert works.signature() == before


def test_another_key_signs_anew_and_nothing_is_built_again(
    works: Works, key: Path, tmp_path: Path
) -> None:
    works.run(FILE)
    before = works.signature()
    model = (works.delivered / "model.onnx").stat()
    other = signatures.key(tmp_path / "keys", "other")
    done = works.run(FILE.replace("signing", "other"))
    assert done.all_cached
    assert works.signature() != before
    assert (works.delivered / "model.onnx").stat().st_ino == model.st_ino
    trust = phipipe.Trust(key=other.with_suffix(".pub"))
    assert phipipe.verify(works.delivered, trust=trust) == []


def test_what_was_delivered_unsigned_is_signed_later(works: Works, key: Path, pub: Path) -> None:
    works.run("")
    assert not bundle.is_there(works.delivered)
    assert works.run(FILE).error is None
    assert phipipe.verify(works.delivered, trust=phipipe.Trust(key=pub)) == []


def test_a_damaged_signature_is_made_again(works: Works, key: Path, pub: Path) -> None:
    works.run(FILE)
    (works.delivered / "model.sig").write_text("{}", "utf-8")
    works.run(FILE)
    assert phipipe.verify(works.delivered, trust=phipipe.Trust(key=pub)) == []


def test_a_signature_by_hand_stays_while_the_content_does(works: Works, key: Path) -> None:
    works.run("")
    phipipe.sign(works.delivered, key=key)
    before = works.signature()
    works.run("")
    assert works.signature() == before
    (works.delivered / "model.onnx").write_bytes(b"changed")
    works.run("")
    assert not bundle.is_there(works.delivered)
    assert phipipe.verify(works.delivered) == []


def test_a_package_that_cannot_be_signed_is_not_put_out(works: Works, key: Path) -> None:
    key.unlink()
    done = works.run(FILE)
    assert isinstance(done.error, SourceError)
    assert "there is no file" in done.error.message
    assert done.package is None
    assert not works.delivered.exists()


def test_the_key_may_come_from_the_environment(
    works: Works, key: Path, pub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM_KEY", key.read_text("utf-8"))
    assert works.run(ENV).error is None
    assert phipipe.verify(works.delivered, trust=phipipe.Trust(key=pub)) == []
    held = signatures.key(key.parent, "closed", passphrase="open sesame")
    monkeypatch.setenv("TEAM_KEY", str(held))
    done = works.run(ENV)
    assert "has a passphrase, and nobody gave it" in str(done.error)
    monkeypatch.setenv("SIGNING_KEY_PASSPHRASE", "open sesame")
    assert works.run(ENV).error is None
    trust = phipipe.Trust(key=held.with_suffix(".pub"))
    assert phipipe.verify(works.delivered, trust=trust) == []


def test_a_certificate_signs_as_whom_it_names(works: Works, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    root = signatures.issue(keys, "root", is_ca=True)
    middle = signatures.issue(keys, "middle", root, is_ca=True)
    signatures.issue(keys, "signer", middle)
    done = works.run(
        "package: {sign: {key: {file: keys/signer.key}, certificate: keys/signer.pem, "
        "chain: [keys/middle.pem]}}\n"
    )
    assert done.error is None
    assert phipipe.verify(works.delivered, trust=phipipe.Trust(certificate=root.path)) == []


def test_a_missing_key_is_said_before_any_work(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("TEAM_KEY", raising=False)
    path = finished.recipe(tmp_path, ENV)
    code, _, err = run("run", path)
    assert code == 8
    assert f"{path}:5:" in err
    assert "is to be signed by the key in TEAM_KEY, which is not set" in err
    assert "export TEAM_KEY=signing.key" in err
    code, out, err = run("plan", path)
    assert code == 0
    assert "package" in out
    assert "run would refuse" in err
    assert "TEAM_KEY" in err
    assert run("plan", path, "--strict")[0] == 3
    monkeypatch.setenv("TEAM_KEY", "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg")
    code, _, err = run("run", path)
    assert code == 8
    assert "neither a private key in PEM nor the path of a file" in err
    assert "MIGH" not in err
    assert not (tmp_path / "cache" / "objects").exists() or not any(
        (tmp_path / "cache" / "objects").iterdir()
    )


def test_a_batch_refuses_the_builds_that_nobody_could_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TEAM_KEY", raising=False)
    paths = [finished.recipe(tmp_path, ENV, "one"), finished.recipe(tmp_path, "", "two")]
    items = selection.select(paths, selection.Wanted(), backends.OptionsOf(), ())
    batch.prepare(items, tmp_path / "out")
    one, two = items
    assert isinstance(one.error, SourceError)
    assert (two.error, two.plan is not None) == (None, True)


def test_neither_key_nor_path_enters_a_package_or_a_key(tmp_path: Path, key: Path) -> None:
    plain = plans.planned()
    signed = plans.planned("package={sign: {key: {env: TEAM_KEY}, certificate: secret/cert.pem}}")
    assert plain.steps == signed.steps
    (step,) = [one for one in signed.steps if one.name == "package"]
    held = json.dumps(dict(step.params))
    assert "TEAM_KEY" not in held
    assert "secret" not in held
    assert "package" not in step.params["recipe"]
    assert "package" not in package_recipe.portable(step.params)
    assert shipping._neutral(signed.build.recipe) == shipping._neutral(plain.build.recipe)


MISTAKES = {
    "package: {sign: {}}\n": "`key` is missing",
    "package: {sign: {key: {}}}\n": "give exactly one of `env`, `file`",
    "package: {sign: {key: {env: A, file: b}}}\n": "give exactly one of `env`, `file`",
    "package: {sign: {key: {env: PHIPIPE_KEY}}}\n": "hold no secrets",
    "package: {sign: {key: {env: 'two words'}}}\n": "env",
    "package: {sign: {key: {file: a}, chain: [b]}}\n": "a `chain` needs the key's `certificate`",
    "package: {sign: {key: '-----BEGIN'}}\n": "expected a mapping of keys",
    "package: {sing: {}}\n": "unknown key `sing`; did you mean `sign`?",
    "package: {sign: }\n": "`sign` has no value",
}


@pytest.mark.parametrize("more", sorted(MISTAKES))
def test_a_mistake_is_said_with_its_place(tmp_path: Path, more: str) -> None:
    path = finished.recipe(tmp_path, more)
    with pytest.raises(RecipeError) as caught:
        loading.load(path, options=backends.OptionsOf())
    assert MISTAKES[more] in caught.value.message
    assert f"{path}:5:" in caught.value.message


def test_a_file_that_is_none_is_said_where_it_stands(tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("Windows has no such file")
    path = finished.recipe(tmp_path, "package: {sign: {key: {file: /dev/null}}}\n")
    with pytest.raises(RecipeError, match="is a device") as caught:
        loading.load(path, options=backends.OptionsOf())
    assert f"{path}:5:30:" in caught.value.message


def test_a_variant_takes_the_signing_back(tmp_path: Path) -> None:
    path = finished.recipe(tmp_path, ENV)
    (build,) = loading.load(path, options=backends.OptionsOf(), sets=["package.sign=none"])
    assert build.recipe.package.sign is None
    assert recipe_key.of_build(build) is None
    assert build.recipe == recipes.recorded(
        {**build.recipe.model_dump(mode="json", exclude_none=True), "package": "folder"}
    )


def test_nothing_that_a_run_records_holds_a_key(
    works: Works, key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = key.read_text("utf-8")
    monkeypatch.setenv("TEAM_KEY", text)
    assert works.run(ENV).error is None
    body = "".join(text.splitlines()[1:-1]).encode()
    kept = [path for path in works.folder.rglob("*") if path.is_file() and path != key]
    assert not [path for path in kept if body[:40] in path.read_bytes()]
    assert recipe_key.PEM.encode() not in (works.delivered / "model.sig").read_bytes()


@pytest.mark.full
@pytest.mark.integration
def test_a_real_package_is_signed_verified_and_opened(
    tmp_path: Path, toolchains: Path, monkeypatch: pytest.MonkeyPatch, key: Path, pub: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PHIPIPE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PHIPIPE_TOOLCHAINS", str(toolchains))
    sets = [f"package={{sign: {{key: {{file: {key}}}}}}}"]
    package = phipipe.run(QUICKSTART, sets=sets, out=tmp_path / "packages").package
    assert phipipe.verify(package.path, trust=phipipe.Trust(key=pub)) == []
    trust = tmp_path / "trust.yaml"
    trust.write_text("rules: [{packages: 'quick*', key: keys/signing.pub}]\n", "utf-8")
    monkeypatch.setenv("PHIPIPE_TRUST", str(trust))
    assert phipipe.Package.open(package.path).chat("Where is the key?", tokens=8)
    (package.path / "model.sig").unlink()
    with pytest.raises(SourceError, match="not signed"):
        phipipe.Package.open(package.path)
