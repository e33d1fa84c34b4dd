"""Packages in repositories of a hub: pushed in one commit, pulled at one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from testing.hub_writes import WritableHub
from testing.kitchen import Kitchen

import phipipe
from phipipe.errors import SourceError, StoreError
from phipipe.hub import exchange, failures
from phipipe.package import package as packages
from phipipe.publishing import eval_results

REPO = "someone/tiny-phi"
ADDRESS = f"hf://{REPO}"
# of the hub's own client
pytestmark = pytest.mark.filterwarnings("ignore:Use .content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[WritableHub]:
    monkeypatch.setattr(failures, "PACE", failures.Pace(attempts=3, first_s=0.01, stall_s=5.0))
    monkeypatch.setattr(exchange.library().constants, "HF_HUB_DISABLE_XET", True)
    with WritableHub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", server.TOKEN)
        yield server


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return Kitchen(tmp_path / "kitchen").cook()


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_push_shows_the_whole_package_in_one_commit(hub: WritableHub, package: Path) -> None:
    done = phipipe.push(package, ADDRESS, private=True)
    assert done.state == "pushed"
    assert done.private is True
    assert hub.repos[REPO].private
    assert hub.shown(REPO) == content(package)
    assert len(hub.repos[REPO].commits) == 2  # the hub's own, and ours
    assert done.sent_bytes == sum(map(len, content(package).values()))


def test_the_same_package_again_sends_nothing(hub: WritableHub, package: Path) -> None:
    phipipe.push(package, ADDRESS, private=False)
    calls = len(hub.calls)
    again = phipipe.push(package, ADDRESS)
    assert (again.state, again.sent, len(hub.calls)) == ("same", (), calls)


def test_a_dry_run_changes_nothing(hub: WritableHub, package: Path) -> None:
    done = phipipe.push(package, ADDRESS, private=True, dry_run=True)
    assert done.state == "dry-run"
    assert {item.path for item in done.sent} == set(content(package))
    assert (hub.repos, hub.calls) == ({}, [])


def test_who_may_see_a_new_repository_has_to_be_said(hub: WritableHub, package: Path) -> None:
    with pytest.raises(SourceError, match="who may see it"):
        phipipe.push(package, ADDRESS)
    assert hub.repos == {}


def test_a_repository_is_not_another_than_was_asked_for(hub: WritableHub, package: Path) -> None:
    hub.make(REPO)
    with pytest.raises(SourceError, match="is public, and --private was asked for"):
        phipipe.push(package, ADDRESS, private=True)
    assert hub.shown(REPO) == {}
    assert phipipe.push(package, ADDRESS, private=False).state == "pushed"
    # nothing is to be sent now: that it is public has to be told all the same
    with pytest.raises(SourceError, match="is public, and --private was asked for"):
        phipipe.push(package, ADDRESS, private=True)
    with pytest.raises(SourceError, match="is public, and --private was asked for"):
        phipipe.push(package, f"{ADDRESS}@not-there-yet", private=True)
    assert set(hub.repos[REPO].heads) == {"main"}
    hub.repos[REPO].private = True
    with pytest.raises(SourceError, match="is private, and --public was asked for"):
        phipipe.push(package, ADDRESS, private=False)
    assert phipipe.push(package, ADDRESS, private=True).state == "same"


def test_another_package_is_replaced_by_force_alone(
    hub: WritableHub, package: Path, tmp_path: Path
) -> None:
    old = phipipe.push(package, ADDRESS, private=False).digest
    hub.repos[REPO].commit(
        "main", {**hub.repos[REPO].commits[hub.repos[REPO].heads["main"]], "picture.png": b"of his"}
    )
    other = Kitchen(tmp_path / "other")
    other.params["name"] = other.params["recipe"]["name"] = "other"
    (other.artifact / "merges.txt").write_bytes(b"a b\n")
    (other.artifact / "tokenizer_config.json").unlink()
    new = other.cook()
    before = hub.shown(REPO)
    with pytest.raises(SourceError, match=old) as caught:
        phipipe.push(new, ADDRESS)
    assert phipipe.Package.open(new).manifest["digest"] in caught.value.message
    assert hub.shown(REPO) == before
    done = phipipe.push(new, ADDRESS, force=True)
    assert done.replaced == old
    assert hub.shown(REPO) == {**content(new), "picture.png": b"of his"}


def test_files_of_others_are_not_mixed_with_a_package(hub: WritableHub, package: Path) -> None:
    hub.make(REPO, {"README.md": b"mine\n", "manifest.json": b"{}"})
    with pytest.raises(SourceError, match="2 files that belong to no package"):
        phipipe.push(package, ADDRESS)
    assert phipipe.push(package, ADDRESS, force=True).state == "pushed"
    assert hub.shown(REPO) == content(package)


def test_a_branch_begins_without_what_others_show(
    hub: WritableHub, package: Path, tmp_path: Path
) -> None:
    phipipe.push(package, ADDRESS, private=False)
    other = Kitchen(tmp_path / "other")
    (other.artifact / "merges.txt").write_bytes(b"a b\n")
    new = other.cook()
    assert phipipe.push(new, f"{ADDRESS}@v2").state == "pushed"
    assert hub.shown(REPO, "v2") == content(new)
    assert hub.shown(REPO) == content(package)
    with pytest.raises(SourceError, match="names a commit"):
        phipipe.push(new, f"{ADDRESS}@{hub.repos[REPO].heads['main']}", force=True)


def test_a_pull_gives_the_very_package_and_what_is_attached(
    hub: WritableHub, package: Path, tmp_path: Path
) -> None:
    (package / "model.sig").write_text("signed")
    phipipe.push(package, ADDRESS, private=True)
    done = phipipe.pull(ADDRESS, tmp_path / "here" / "phi")
    assert content(tmp_path / "here" / "phi") == content(package)
    assert (done.state, done.attached) == ("pulled", ("provenance.json", "model.sig"))
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["phi"]
    assert phipipe.pull(ADDRESS, tmp_path / "here" / "phi").state == "same"


def test_a_signature_that_came_later_is_sent_alone(
    hub: WritableHub, package: Path, tmp_path: Path
) -> None:
    phipipe.push(package, ADDRESS, private=False)
    (package / "model.sig").write_text("signed")
    done = phipipe.push(package, ADDRESS)
    assert ([item.path for item in done.sent], done.replaced) == (["model.sig"], None)
    assert phipipe.pull(ADDRESS, tmp_path / "p").attached == ("provenance.json", "model.sig")


def test_a_pull_goes_where_run_puts_packages(
    hub: WritableHub, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phipipe.push(package, ADDRESS, private=False)
    monkeypatch.chdir(tmp_path)
    assert phipipe.pull(ADDRESS).folder == Path("packages/quickstart")
    assert packages.verify(tmp_path / "packages/quickstart") == []


def test_what_is_in_the_way_stays(hub: WritableHub, package: Path, tmp_path: Path) -> None:
    phipipe.push(package, ADDRESS, private=False)
    target = tmp_path / "target"
    target.mkdir()
    (target / "mine").write_text("mine")
    with pytest.raises(StoreError, match="in the way"):
        phipipe.pull(ADDRESS, target)
    assert content(target) == {"mine": b"mine"}


def test_a_package_that_does_not_verify_leaves_nothing(
    hub: WritableHub, package: Path, tmp_path: Path
) -> None:
    phipipe.push(package, ADDRESS, private=False)
    files = hub.repos[REPO].commits[hub.repos[REPO].heads["main"]]
    files["model.onnx.data"] = files["model.onnx.data"][:-1] + b"\x01"
    with pytest.raises(SourceError, match="contradicts its manifest"):
        phipipe.pull(ADDRESS, tmp_path / "a" / "target")
    files["tokenizer.json"] = files["tokenizer.json"].replace(
        b"2", b"3"
    )  # no SHA-256 is said of it
    files["model.onnx.data"] = (package / "model.onnx.data").read_bytes()
    with pytest.raises(SourceError, match="not what was published"):
        phipipe.pull(ADDRESS, tmp_path / "a" / "target")
    assert list((tmp_path / "a").iterdir()) == []


def test_no_package_is_said_in_one_sentence(hub: WritableHub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no package at"):
        phipipe.pull(ADDRESS, tmp_path / "x")
    hub.make(REPO, {"README.md": b"mine\n"})
    with pytest.raises(SourceError, match="only other files"):
        phipipe.pull(ADDRESS, tmp_path / "x")


def test_an_answer_that_is_lost_makes_no_second_commit(hub: WritableHub, package: Path) -> None:
    hub.loses_answer = 1
    assert phipipe.push(package, ADDRESS, private=False).state == "pushed"
    assert len(hub.repos[REPO].commits) == 2


def test_who_committed_meanwhile_is_not_overwritten(
    hub: WritableHub, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from phipipe.hub import writing

    hub.make(REPO)
    bring = writing.bring

    def late(repo: object, added: object) -> None:
        bring(repo, added)  # type: ignore[arg-type]
        hub.repos[REPO].commit("main", {"README.md": b"somebody was faster"})

    monkeypatch.setattr(writing, "bring", late)
    with pytest.raises(SourceError, match="changed while the package was sent"):
        phipipe.push(package, ADDRESS)
    assert hub.shown(REPO) == {"README.md": b"somebody was faster"}


@pytest.mark.parametrize("how", ["drops", "changes"])
def test_a_hub_that_shows_something_else_is_told(hub: WritableHub, package: Path, how: str) -> None:
    setattr(hub, how, "genai_config.json")
    with pytest.raises(SourceError, match=r"`genai_config.json` has another content"):
        phipipe.push(package, ADDRESS, private=False)


def test_without_a_token_nothing_is_sent(
    hub: WritableHub, package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(exchange.library(), "get_token", lambda: None)
    with pytest.raises(SourceError, match="needs a token that may write"):
        phipipe.push(package, ADDRESS, private=True)
    assert hub.calls == []


def test_figures_on_a_data_set_of_the_hub_lie_where_the_hub_looks(
    hub: WritableHub, tmp_path: Path
) -> None:
    kitchen = Kitchen(tmp_path / "kitchen")
    dataset = {"repo": "Salesforce/wikitext", "revision": "b" * 40, "file": "test.txt"}
    kitchen.params["recipe"]["evaluate"]["text"] = {"dataset": dataset}
    package = kitchen.cook()
    phipipe.push(package, ADDRESS, private=False)
    shown = hub.shown(REPO)
    rows = yaml.safe_load(shown.pop(eval_results.PATH))
    assert shown == content(package)
    (kld, *_) = rows
    assert kld["dataset"] == {
        "id": "Salesforce/wikitext",
        "task_id": "fidelity-kld",
        "revision": "b" * 40,
    }
    assert kld["value"] == 0.01234
    assert kld["source"]["url"] == f"{hub.url}/{REPO}"
    assert phipipe.push(package, ADDRESS).state == "same"
    assert phipipe.pull(ADDRESS, tmp_path / "p").state == "pulled"
    assert content(tmp_path / "p") == content(package)


def test_the_token_is_in_nothing_that_is_written_or_said(
    hub: WritableHub, package: Path, tmp_path: Path
) -> None:
    hub.read_only = True
    hub.make(REPO)
    with pytest.raises(SourceError, match="may not write") as caught:
        phipipe.push(package, ADDRESS)
    assert hub.TOKEN not in json.dumps([caught.value.message, caught.value.hint])
