"""Packages: the same bytes twice, every change found, a card that holds whatever it is told."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.kitchen import (
    ARTIFACT_FILES,
    GATES,
    METRICS,
    MIT,
    PARAMS,
    SPEED,
    TEMPLATE,
    TOOLS,
    Kitchen,
    digest_of,
)

from phipipe import backends
from phipipe.errors import SourceError, StepFailed
from phipipe.evaluate import papers
from phipipe.package import card, closed_world, manifest, markdown, package, recipe
from phipipe.package.description import Step


@pytest.fixture
def kitchen(tmp_path: Path) -> Kitchen:
    return Kitchen(tmp_path / "kitchen")


@pytest.fixture(scope="module")
def cooked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package that no test may change."""
    return Kitchen(tmp_path_factory.mktemp("cooked")).cook()


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


# -- what is in it


def test_the_artifact_ships_unchanged_with_everything_around_it(cooked: Path) -> None:
    found = tree(cooked)
    assert {name: found[name] for name in ARTIFACT_FILES} == ARTIFACT_FILES
    ours = {
        "README.md",
        "LICENSE",
        "recipe.yaml",
        "bom.cdx.json",
        "manifest.json",
        "provenance.json",
        "SHA256SUMS",
        "reference/tokens.npy",
    }
    assert set(found) == set(ARTIFACT_FILES) | ours
    assert found["LICENSE"].decode() == MIT


def test_the_manifest_says_what_it_is_and_where_it_came_from(cooked: Path) -> None:
    made = package.read_manifest(cooked)
    assert (made.name, made.api, made.backend, made.precision) == (
        "quickstart",
        "cpu",
        "onnxruntime",
        "int4",
    )
    assert made.source.digest == made.steps["source"].digest
    (file,) = made.source.files
    assert file.as_json() == {"path": "made", "size": 3, "sha256": digest_of("source")}
    assert made.chat_template is not None
    assert made.chat_template.sha256 == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert made.fidelity.metrics == METRICS["metrics"]
    assert made.speed.as_json() == SPEED
    assert [gate.as_json() for gate in made.gates] == GATES
    assert made.steps["quantize"].tools == TOOLS
    assert made.licence.as_json() == {"id": "mit", "stated": False, "files": ["LICENSE"]}


def test_a_package_from_when_steps_had_addresses_is_read_as_ever(kitchen: Kitchen) -> None:
    earlier = "phipipe.backends.onnxruntime:quantize"
    kitchen.params["steps"]["quantize"]["runs"] = earlier
    folder = kitchen.cook()
    assert package.read_manifest(folder).steps["quantize"].runs == earlier
    assert package.verify(folder) == []


def test_the_manifest_lists_every_other_file(cooked: Path) -> None:
    listed = {e.path: (e.size, e.sha256) for e in package.read_manifest(cooked).files}
    there = {
        n: (len(data), hashlib.sha256(data).hexdigest())
        for n, data in tree(cooked).items()
        if n not in ("manifest.json", "provenance.json")
    }
    assert listed == there


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="needs coreutils")
def test_people_without_phipipe_can_check_the_sums(cooked: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(cooked, tmp_path / "copy")
    check = ["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"]
    assert subprocess.run(check, cwd=copied, check=False).returncode == 0
    (copied / "model.onnx").write_bytes(b"other")
    assert subprocess.run(check, cwd=copied, check=False, capture_output=True).returncode == 1


def test_an_artifact_in_folders_keeps_them(kitchen: Kitchen) -> None:
    (kitchen.artifact / "deep" / "er").mkdir(parents=True)
    (kitchen.artifact / "deep" / "er" / "model.onnx.data").write_bytes(b"w")
    out = kitchen.cook()
    assert (out / "deep/er/model.onnx.data").read_bytes() == b"w"
    assert package.verify(out) == []


@pytest.mark.parametrize("name", ["README.md", "manifest.json", "sha256sums", "Recipe.yaml"])
def test_an_artifact_cannot_replace_what_the_package_says_of_it(
    kitchen: Kitchen, name: str
) -> None:
    (kitchen.artifact / name).write_text("mine")
    with pytest.raises(StepFailed, match="of its own"):
        kitchen.cook()


@pytest.mark.parametrize(
    "name", ["a:b", "tail.", "back\\slash", "new\nline", "\u202etxt.exe", "star*"]
)
def test_names_that_some_systems_cannot_hold_do_not_ship(kitchen: Kitchen, name: str) -> None:
    (kitchen.artifact / name).write_text("x")
    with pytest.raises(StepFailed, match="cannot ship"):
        kitchen.cook()


def test_links_and_empty_artifacts_do_not_ship(kitchen: Kitchen) -> None:
    (kitchen.artifact / "link").symlink_to("model.onnx")
    with pytest.raises(StepFailed, match="no plain file"):
        kitchen.cook()
    shutil.rmtree(kitchen.artifact)
    kitchen.artifact.mkdir()
    with pytest.raises(StepFailed, match="empty"):
        kitchen.cook("second")


# -- the same bytes


def test_the_same_inputs_give_the_same_bytes_anywhere(tmp_path: Path) -> None:
    first = Kitchen(tmp_path / "a").cook()
    second = Kitchen(tmp_path / "another" / "place")
    second.params = dict(
        reversed(second.params.items())
    )  # but the steps: the plan has them in one order everywhere
    for record in second.params[
        "steps"
    ].values():  # of times and the like, nothing enters a package
        record["outputs"][0]["mtime_ns"] = 2
        record["usage"] = {"seconds": 3.5}
    before = os.umask(0o077)
    try:
        out = second.cook("elsewhere")
    finally:
        os.umask(before)
    assert tree(out) == tree(first)


@pytest.mark.parametrize("zone", ["Asia/Kathmandu"])
def test_the_environment_leaves_no_trace(cooked: Path, tmp_path: Path, zone: str) -> None:
    kitchen = Kitchen(tmp_path / "k")
    kitchen.cook("unused")  # writes the inputs
    out = kitchen.root / "out"
    out.mkdir()
    (tmp_path / "params.json").write_text(json.dumps(kitchen.params))
    call = (
        "import json, sys; from pathlib import Path; "
        "from phipipe.package import package; "
        f"package.package({{n: Path(p) for n, p in "
        f"{[(n, str(p)) for n, p in kitchen.inputs.items()]}}}, "
        f"Path({str(out)!r}), json.loads(Path({str(tmp_path / 'params.json')!r}).read_text()))"
    )
    other = {
        "TZ": zone,
        "LC_ALL": "C",
        "PYTHONHASHSEED": "7",
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
    }
    subprocess.run([sys.executable, "-c", call], env=other, check=True, cwd=tmp_path)
    assert tree(out) == tree(cooked)


# -- every change is found


def test_an_untouched_package_has_no_findings(cooked: Path) -> None:
    assert package.verify(cooked) == []


def flip(folder: Path) -> None:
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[30_000] ^= 4
    (folder / "model.onnx.data").write_bytes(data)


def link(folder: Path) -> None:
    (folder.parent / "outside").write_bytes(ARTIFACT_FILES["model.onnx"])
    (folder / "model.onnx").unlink()
    (folder / "model.onnx").symlink_to(folder.parent / "outside")


def git(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("[core]")


def swap(folder: Path) -> None:
    (folder / "tokenizer.json").rename(folder / "x")
    (folder / "tokenizer_config.json").rename(folder / "tokenizer.json")
    (folder / "x").rename(folder / "tokenizer_config.json")


MUTATIONS: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "flip": (flip, "model.onnx.data", "other content"),
    "truncate": (
        lambda f: (f / "model.onnx").write_bytes(b""),
        "model.onnx",
        "0 bytes instead of 2053",
    ),
    "remove": (lambda f: (f / "LICENSE").unlink(), "LICENSE", "missing"),
    "add": (lambda f: (f / "extra.py").write_text("import os"), "extra.py", "added"),
    "add hidden": (lambda f: (f / ".gitattributes").write_text("*"), ".gitattributes", "added"),
    "rename": (lambda f: (f / "model.onnx").rename(f / "Model.onnx"), "Model.onnx", "added"),
    "swap": (swap, "tokenizer.json", "changed"),
    "link": (link, "model.onnx", "symbolic link"),
    "dangling link": (lambda f: (f / "gone").symlink_to("nowhere"), "gone", "symbolic link"),
    "linked folder": (lambda f: (f / "more").symlink_to(f.parent), "more", "symbolic link"),
    "empty folder": (lambda f: (f / "empty").mkdir(), "empty", "added: a folder"),
    ".git": (git, ".git", "added: a folder"),
    "executable": (lambda f: (f / "model.onnx").chmod(0o755), "model.onnx", "executable"),
    "executable manifest": (
        lambda f: (f / "manifest.json").chmod(0o755),
        "manifest.json",
        "executable",
    ),
    "setuid": (lambda f: (f / "model.onnx").chmod(0o4644), "model.onnx", "executable"),
    "pipe": (lambda f: os.mkfifo(f / "pipe"), "pipe", "neither file nor folder"),
    "pipe in place": (
        lambda f: ((f / "LICENSE").unlink(), os.mkfifo(f / "LICENSE")),
        "LICENSE",
        "neither",
    ),
    "folder in place": (
        lambda f: ((f / "LICENSE").unlink(), (f / "LICENSE").mkdir()),
        "LICENSE",
        "folder",
    ),
    "no manifest": (
        lambda f: (f / "manifest.json").unlink(),
        "manifest.json",
        "it has no `manifest.json`",
    ),
    "sums": (lambda f: (f / "SHA256SUMS").write_text(""), "SHA256SUMS", "changed"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_one_change_is_found_and_named(cooked: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(cooked, tmp_path / "package")
    change, path, words = MUTATIONS[name]
    change(folder)
    findings = package.verify(folder)
    assert any(f.path == path and words in f.message for f in findings), findings
    assert len(findings) <= 2  # a rename is two; nothing else is reported beside the change


@pytest.mark.full
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_found(
    cooked: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    names = sorted(tree(cooked))
    name = data.draw(st.sampled_from(names))
    content = bytearray((cooked / name).read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    folder = shutil.copytree(cooked, tmp_path_factory.mktemp("flip") / "package")
    (folder / name).write_bytes(content)
    try:
        found = bool(package.verify(folder))
    except SourceError as error:  # the flip made the format a newer one
        found = name == "manifest.json" and "newer" in error.message
    assert found


@settings(max_examples=60, deadline=None)
@given(
    name=st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=40),
    folder=st.booleans(),
)
def test_nothing_can_be_added_under_any_name(
    cooked: Path, tmp_path_factory: pytest.TempPathFactory, name: str, folder: bool
) -> None:
    package_folder = shutil.copytree(cooked, tmp_path_factory.mktemp("add") / "package")
    target = package_folder / name
    if name in (".", "..") or target.exists() or len(name.encode()) > 255:
        return
    target.mkdir() if folder else target.write_bytes(b"")
    findings = package.verify(package_folder)
    assert len(findings) == 1
    assert "added" in findings[0].message
    assert findings[0].path.isprintable()


def rewritten(
    folder: Path, change: Callable[[dict[str, Any]], object], *, sealed: bool = True
) -> None:
    """Change the manifest; ``sealed`` gives it a digest that fits again."""
    made = json.loads((folder / "manifest.json").read_text())
    change(made)
    if sealed:
        made["digest"] = manifest.digest(made)
    (folder / "manifest.json").write_text(manifest.dump(made))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["fidelity"]["metrics"].update(kld_mean=0.0), "own digest"),
        (lambda m: m["files"].pop(), "own digest"),
        (lambda m: m.update(note="hello"), "own digest"),
        (lambda m: m.pop("digest"), "own digest"),
    ],
)
def test_a_change_inside_the_manifest_is_found(
    cooked: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    folder = shutil.copytree(cooked, tmp_path / "package")
    rewritten(folder, change, sealed=False)
    (finding,) = package.verify(folder)
    assert words in finding.message
    with pytest.raises(SourceError, match=words):
        package.read_manifest(folder)


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "/etc/passwd",
        "a/../../b",
        "C:\\x",
        "a//b",
        "./a",
        "",
        "manifest.json",
        "model.sig",
        "a\nb",
        "..",
        "c:x",
    ],
)
def test_a_manifest_cannot_point_outside_even_with_a_digest_that_fits(
    cooked: Path, tmp_path: Path, path: str
) -> None:
    folder = shutil.copytree(cooked, tmp_path / "package")
    rewritten(folder, lambda m: m["files"].append({"path": path, "size": 0, "sha256": "0" * 64}))
    (finding,) = package.verify(folder)
    assert finding.path == "manifest.json"
    assert "it lists" in finding.message


def test_what_is_attached_may_lie_beside_the_manifest(cooked: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(cooked, tmp_path / "attached")
    (folder / papers.SIGNATURE).write_text("{}", "utf-8")
    assert (folder / papers.PROVENANCE).is_file()
    assert not package.verify(folder)


@pytest.mark.parametrize("name", papers.ATTACHED)
def test_what_is_attached_is_a_plain_file_of_a_sensible_size(
    cooked: Path, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(cooked, tmp_path / "attached")
    fit = (folder / name).read_bytes() if (folder / name).exists() else b"{}"
    (folder / name).unlink(missing_ok=True)
    (folder / name).mkdir()
    assert [finding.path for finding in package.verify(folder)] == [name]
    (folder / name).rmdir()
    (folder / name).write_bytes(bytes(closed_world.MAX_ATTACHED_BYTES + 1))
    assert [finding.path for finding in package.verify(folder)] == [name]
    (folder / name).write_bytes(fit)
    (folder / name).chmod(0o755)
    assert os.name == "nt" or [finding.path for finding in package.verify(folder)] == [name]
    (folder / name).chmod(0o644)
    (folder / f"sub/{name}").parent.mkdir()
    (folder / f"sub/{name}").write_text("{}", "utf-8")
    assert [finding.path for finding in package.verify(folder)] == ["sub"]


@pytest.mark.parametrize(
    "files",
    [
        None,
        [],
        {},
        [1],
        [{"path": "a"}],
        [{"path": 1, "size": 0, "sha256": "0" * 64}],
        [{"path": "a", "size": "0"}],
    ],
)
def test_a_malformed_file_list_is_found(cooked: Path, tmp_path: Path, files: object) -> None:
    folder = shutil.copytree(cooked, tmp_path / "package")
    rewritten(folder, lambda m: m.update(files=files))
    assert [f.path for f in package.verify(folder)] == ["manifest.json"]


def test_a_file_listed_twice_is_found_even_in_another_case(cooked: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(cooked, tmp_path / "package")
    rewritten(
        folder,
        lambda m: m["files"].append({**m["files"][0], "path": m["files"][0]["path"].lower()}),
    )
    assert "twice" in str(package.verify(folder)[0])


def test_manifest_and_sums_must_agree(cooked: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(cooked, tmp_path / "package")
    text = (folder / "SHA256SUMS").read_bytes().replace(b"0", b"1")
    (folder / "SHA256SUMS").write_bytes(text)

    def follow(made: dict[str, Any]) -> None:
        entry = next(e for e in made["files"] if e["path"] == "SHA256SUMS")
        entry["sha256"] = hashlib.sha256(text).hexdigest()

    rewritten(folder, follow)
    (folder / "provenance.json").unlink()
    assert [str(f) for f in package.verify(folder)] == [
        "SHA256SUMS: does not say what `manifest.json` says"
    ]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("{", "{ ", 1),
        lambda text: text + "\n",
        lambda text: text.replace('"name"', '"name": "evil",\n  "name"', 1),
        lambda text: text.replace("4080", "4.08e3"),
    ],
)
def test_nothing_hides_in_what_parsers_skip(
    cooked: Path, tmp_path: Path, spoil: Callable[[str], str]
) -> None:
    folder = shutil.copytree(cooked, tmp_path / "package")
    before = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(spoil(before))
    assert spoil(before) != before
    assert [f.path for f in package.verify(folder)] == ["manifest.json"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[]", b"{}", b"{", b"[" * 100_000, b'{"type": "phipipe-package"}'],
)
def test_anything_else_is_not_a_manifest(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    assert [f.path for f in package.verify(tmp_path)] == ["manifest.json"]
    with pytest.raises(SourceError) as caught:
        package.read_manifest(tmp_path)
    assert caught.value.hint
    assert caught.value.exit_code == 8


def test_a_manifest_that_is_a_pipe_does_not_hang_us(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    assert "no plain file" in str(package.verify(tmp_path)[0])


def test_what_is_no_package_is_called_that(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(SourceError, match="no p") as caught:
            package.read_manifest(folder)
        assert "phipipe run" in str(caught.value.hint)
    with pytest.raises(SourceError, match="no such folder"):
        package.verify(tmp_path / "nowhere")


def test_a_newer_format_says_so_instead_of_crying_damage(cooked: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(cooked, tmp_path / "package")
    rewritten(folder, lambda m: m.update(format=2, files="something new"))
    for ask in (package.verify, package.read_manifest):
        with pytest.raises(SourceError, match="newer phipipe") as caught:
            ask(folder)
        assert "newest" in str(caught.value.hint)


# -- chat template and licence


def test_a_changed_chat_template_stops_the_package(kitchen: Kitchen) -> None:
    (kitchen.artifact / "chat_template.jinja").write_text(TEMPLATE + "{# be evil #}")
    with pytest.raises(StepFailed, match="chat template is not the source's"):
        kitchen.cook()


def test_a_lost_chat_template_stops_the_package_unless_it_renders_alike(kitchen: Kitchen) -> None:
    (kitchen.artifact / "chat_template.jinja").unlink()
    kitchen.metrics["sanity"]["chat_template_equal"] = False
    with pytest.raises(StepFailed, match="lost"):
        kitchen.cook()
    kitchen.metrics["sanity"]["chat_template_equal"] = True
    made = package.read_manifest(kitchen.cook("second")).as_json()
    assert made["chat_template"]["compared"] == "rendering"


def test_an_added_chat_template_stops_the_package(kitchen: Kitchen) -> None:
    (kitchen.source / "chat_template.jinja").unlink()
    with pytest.raises(StepFailed, match="which has none"):
        kitchen.cook()


@pytest.mark.parametrize(
    "stored", [TEMPLATE, [{"name": "default", "template": TEMPLATE}]], ids=["text", "named default"]
)
def test_the_template_may_move_between_files(kitchen: Kitchen, stored: object) -> None:
    (kitchen.source / "chat_template.jinja").unlink()
    (kitchen.source / "tokenizer_config.json").write_text(json.dumps({"chat_template": stored}))
    assert package.read_manifest(kitchen.cook()).as_json()["chat_template"]["compared"] == "text"


def test_no_licence_is_invented(kitchen: Kitchen) -> None:
    (kitchen.source / "LICENSE").unlink()
    out = kitchen.cook()
    assert not (out / "LICENSE").exists()
    text = (out / "README.md").read_text("utf-8")
    assert "license: unknown" in text
    assert "came without a licence file" in text


def test_an_unknown_licence_is_not_guessed_and_notices_travel(kitchen: Kitchen) -> None:
    (kitchen.source / "LICENSE").write_text("You may look at it.")
    (kitchen.source / "NOTICE.txt").write_text("Made by many.")
    out = kitchen.cook()
    assert (out / "NOTICE.txt").read_text() == "Made by many."
    front = yaml.safe_load((out / "README.md").read_text("utf-8").split("---\n")[1])
    assert (front["license"], front["license_link"]) == ("other", "LICENSE")


# -- recipe.yaml


def test_the_recipe_travels_without_paths_of_this_machine(kitchen: Kitchen) -> None:
    kitchen.params["source"] |= {"kind": "path", "name": "my-phi"}
    kitchen.params["recipe"] |= {
        "source": {"path": "../models/my-phi/"},
        "device": "boards/my-board.yaml",
    }
    kitchen.params["recipe"]["evaluate"]["text"] = {"file": "C:\\texts\\mine.txt"}
    kitchen.params["recipe"]["calibrate"] = {"text": {"file": "../texts/learned.txt"}}
    out = kitchen.cook()
    text = (out / "recipe.yaml").read_text("utf-8")
    recipe = yaml.safe_load(text)
    assert recipe["source"] == {"path": "my-phi"}
    assert recipe["calibrate"]["text"] == {"file": "learned.txt"}
    assert recipe["device"] == "my-board.yaml"
    assert recipe["evaluate"]["text"] == {"file": "mine.txt"}
    assert "--set 'source={path: FOLDER}'" in text
    assert package.read_manifest(out).recipe.as_json() == recipe


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(codec="utf-8"), max_size=30)
    | st.sampled_from(["1e5", "0o17", "no", "12e45", ".5", "~", "=", "a: b"])
)
def test_strings_stay_strings_in_yaml_1_1_and_1_2(value: str) -> None:
    params = copy.deepcopy(PARAMS)
    params["recipe"]["quantize"]["note"] = value
    text = recipe.text(params)
    assert yaml.safe_load(text)["quantize"]["note"] == value
    core = r"null|true|false|~||[-+]?[0-9]+|0o[0-7]+|0x[0-9a-f]+|[-+]?\.inf|\.nan"
    core += r"|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)(e[-+]?[0-9]+)?"
    written = re.search(r"note: ?(.*)", text)
    assert written is not None
    assert not re.fullmatch(
        core, written[1], re.IGNORECASE
    )  # what YAML 1.2 would not read as a string


# -- leaks


@pytest.mark.parametrize(
    "path",
    [
        "/home/jane/models/phi",
        "/Users/jane/phi",
        "/ro" + "ot/phi",
        "/tmp/tmpa1b2/model.onnx",
        "/var/folders/zz/T/x",
        "C:\\\\Users\\\\jane",
        "file:///home/jane",
        str(Path.home() / "checkpoints"),
    ],
)
@pytest.mark.parametrize("name", ["tokenizer_config.json", "model.onnx"])
def test_a_path_of_the_build_machine_stops_the_package(
    kitchen: Kitchen, name: str, path: str
) -> None:
    (kitchen.artifact / name).write_bytes(b"{\n\n" + f' "where": "{path}"\n}}\n'.encode())
    with pytest.raises(StepFailed, match=f"`{name}`, line 3"):
        kitchen.cook()


def test_the_cache_and_the_inputs_folder_are_paths_too(
    kitchen: Kitchen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phipipe.package.leaks.COMMON", (rb"/nowhere-else",))
    (kitchen.artifact / "genai_config.json").write_text(
        f'{{"source": "{kitchen.source}/config.json"}}'
    )
    with pytest.raises(StepFailed, match="line 1, holds a path"):
        kitchen.cook()


@pytest.mark.parametrize(
    "text",
    [
        "see https://example.org/home/jane/x",
        "/home",
        "/tmp",
        "/home/",
        "cd /homestead/x",
        "/usr/bin/env",
    ],
)
def test_what_only_looks_like_a_path_does_not(kitchen: Kitchen, text: str) -> None:
    (kitchen.artifact / "tokenizer_config.json").write_text(json.dumps({"x": text}))
    kitchen.cook()


def test_paths_in_the_models_words_and_the_sources_files_are_not_ours(kitchen: Kitchen) -> None:
    kitchen.metrics["answers"][0]["text"] = "Type cd /home/user/project and press return."
    (kitchen.source / "tokenizer_config.json").write_text(
        '{"name_or_path": "/tmp/author/ckpt-500"}'
    )
    (kitchen.artifact / "tokenizer_config.json").write_text(
        '{\n  "name_or_path": "/tmp/author/ckpt-500"\n}'
    )
    assert "/home/user/project" in (kitchen.cook() / "README.md").read_text("utf-8")


# -- the card


def front_matter(text: str) -> dict[str, Any]:
    _, front, _ = re.split(r"(?m)^---$\n", text, maxsplit=2)
    found = yaml.safe_load(front)
    assert isinstance(found, dict)
    return found


def prose(text: str) -> list[str]:
    """Lines outside front matter and code blocks, by CommonMark's rule for fences."""
    found, fence = [], ""
    body = re.split(r"(?m)^---$\n", text, maxsplit=2)[2]
    for line in body.split("\n"):
        ticks = re.match(r" {0,3}(`{3,}|~{3,})", line)
        if fence:
            fence = "" if re.fullmatch(rf" {{0,3}}{fence}+\s*", line) else fence
        elif ticks:
            fence = ticks[1]
        else:
            found.append(line)
    assert not fence, "a code block is not closed"
    return found


def headings(text: str) -> list[str]:
    return [line for line in prose(text) if line.lstrip().startswith("#")]


HEADINGS = [
    "# quickstart",
    "## Run it",
    "### Use it in AI Dev Gallery",
    "### Use it in Foundry Local",
    "## How close it is to the original",
    "### Sample answers",
    "## Size and speed",
    "## How it was made",
    "## Check it, make it again",
    "## Limits",
    "## Licence",
]


def test_the_card_says_what_a_reader_wants_to_know(cooked: Path) -> None:
    text = (cooked / "README.md").read_text("utf-8")
    assert headings(text) == HEADINGS
    for words in (
        "PC with an x86-64 CPU",
        "0.0123 ± 0.0004 nats",
        "93.1 ± 0.4 %",
        "3.48 MiB, 5.01 bits",
        "543 tokens/s",
        "2 cores of Example CPU @ 2.5 GHz",
        "Llama-3-8B",
        "went out to find blackberries",
        "barked at the moon",
        "agree to the letter",
        "onnxruntime-genai 0.18.0",
        "phipipe chat .",
        "at most 0.05",
        "the window was lost",
        hashlib.sha256(TEMPLATE.encode()).hexdigest(),
    ):
        assert words in text, words


def test_the_front_matter_is_what_the_hub_reads(cooked: Path, kitchen: Kitchen) -> None:
    front = front_matter((cooked / "README.md").read_text("utf-8"))
    assert front["license"] == "mit"
    assert "base_model" not in front  # the embedded model is on no hub
    commit = "2fe192450127e6a83f7441aef6e3ca586c338b77"
    kitchen.params["source"] |= {
        "kind": "hub",
        "repo": "microsoft/Phi-3.5-mini-instruct",
        "revision": commit,
    }
    del kitchen.params["source"]["name"]
    kitchen.params["recipe"]["source"] = {
        "repo": "microsoft/Phi-3.5-mini-instruct",
        "revision": commit,
    }
    text = kitchen.card()
    assert front_matter(text)["base_model"] == "microsoft/Phi-3.5-mini-instruct"
    assert front_matter(text)["base_model_relation"] == "quantized"
    assert f"at commit `{commit}`" in text


def test_the_card_names_what_the_hub_calls_each_runtime(kitchen: Kitchen) -> None:
    front = front_matter(kitchen.card())
    assert front["library_name"] == "onnxruntime-genai"
    assert {"phipipe", "onnxruntime", "int4", "onnx", "conversational"} <= set(front["tags"])
    known = {"gguf", "onnxruntime-genai", "openvino", "mlx", "litert-lm", "transformers"}
    assert {backends.load(name).library or name for name in backends.names()} == known


def without_chat(k: Kitchen) -> None:
    for folder in (k.artifact, k.source):
        (folder / "chat_template.jinja").unlink()
    k.baseline["chats"] = k.metrics["answers"] = []
    k.metrics["sanity"] |= {"greedy_agreement": None, "answers_ended": [], "repetition": 0.0}


def bare(k: Kitchen) -> None:
    without_chat(k)
    k.params |= {"fixups": {}, "steps": {"source": PARAMS["steps"]["source"]}}
    k.json("gates", [])
    del k.inputs["parity"]
    del k.speed["metrics"]["decode_tokens_per_s"]
    k.speed |= {"spread": {}, "host": {}}


def unlucky(k: Kitchen) -> None:
    k.metrics["sanity"] |= {
        "tokenizer_equal": False,
        "chat_template_equal": False,
        "repetition": 0.9,
    }
    k.metrics["sanity"]["answers_ended"] = [True, False]
    k.params |= {"on_target": "emulated", "warnings": ["4 bits everywhere degrade this model"]}
    k.metrics["metrics"]["ppl_ratio"] = 1.0003


@pytest.mark.parametrize("vary", [lambda k: None, without_chat, bare, unlucky])
def test_no_card_has_holes(kitchen: Kitchen, vary: Callable[[Kitchen], object]) -> None:
    vary(kitchen)
    text = kitchen.card()
    assert not re.search(r"None|\bnan\b|\{\{|\{%|Undefined|\{'|object at|\n\n\n", text)
    assert "\n## Licence" in text
    headings(text)
    assert all(line == line.rstrip() for line in text.splitlines())


def test_bad_news_is_in_the_card(kitchen: Kitchen) -> None:
    unlucky(kitchen)
    text = kitchen.card()
    for words in (
        "**does not give**",
        "**differently from**",
        "was emulated",
        "degrade this model",
        "repeats itself",
    ):
        assert words in text, words
    assert "1 of the sample answers" in text
    assert "no change beyond twice the standard error" in text


def test_speed_measured_elsewhere_is_never_called_the_devices(kitchen: Kitchen) -> None:
    for on_target in ("true", "emulated", "false"):
        kitchen.params["on_target"] = on_target
        text = (kitchen.cook(on_target) / "README.md").read_text("utf-8")
        headline, _, rest = text.partition("## Run it")
        assert ("tokens/s" in headline) == (on_target == "true")
        assert "tokens/s" in rest
    assert "That is not PC with an x86-64 CPU" in rest


@given(st.randoms(use_true_random=False))
def test_the_card_tells_the_steps_in_the_order_in_which_they_were_made(dice: random.Random) -> None:
    """Each after all that it reads; where several may come next, as the plan has them."""
    names = [f"{dice.choice('abxyz')}{i}" for i in range(dice.randint(1, 12))]
    steps = {}
    for i, name in enumerate(names):
        before = dice.sample(names[:i], dice.randint(0, min(i, 3)))
        inputs = {f"in{other}": digest_of(other) for other in before} or {"files": digest_of(name)}
        steps[name] = Step(key=name, digest=digest_of(name), tools={}, inputs=inputs)
    assert card._order(steps) == names
    shuffled = dice.sample(names, len(names))
    ordered = card._order({name: steps[name] for name in shuffled})
    assert sorted(ordered) == sorted(names)
    made = {step.digest for step in steps.values()}
    for i, name in enumerate(ordered):
        reads = set(steps[name].inputs.values()) & made - {steps[name].digest}
        assert reads <= {steps[other].digest for other in ordered[:i]}


@pytest.mark.parametrize(("count", "said"), [(1, "1 gate passed"), (2, "2 gates passed")])
def test_one_gate_is_not_called_gates(kitchen: Kitchen, count: int, said: str) -> None:
    gate = {"metric": "kld_mean", "value": 0.01, "max": 0.05, "passed": True}
    kitchen.json("gates", [gate] * count)
    assert said in kitchen.card()


ATTACKS = [
    "```\n# Free money\n```",
    "~~~~\n`````` x\n# no",
    "{{ 7 * 7 }}{% for x in range(10**9) %}{% endfor %}",
    "---\nlicense: mine\n---\n",
    "| a | b |\n|---|---|\n",
    "<script>alert(1)</script><img src=x onerror=y>",
    "[click](javascript:x) ![](https://track.example/p.png)",
    "\u202eevil\u202c \x1b[31mred \x00 \x0b \r# head",
    "# heading",
    "1. list",
    "\ud800 lone",
    "`code` `` two ``",
    "&lt;b&gt; $x$ **bold** _it_ \\",
    "",
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_nothing_a_model_or_a_recipe_says_changes_the_card(kitchen: Kitchen, attack: str) -> None:
    before = kitchen.params["name"]
    kitchen.metrics["answers"][0] = {"prompt": f"P {attack}", "text": attack}
    kitchen.baseline["chats"][1]["text"] = attack
    for field in ("scheme", "backend_title"):
        kitchen.params[field] = f"S {attack}"
    kitchen.params["device"] |= {
        "title": f"D {attack}",
        "name": f"d{attack}",
        "sources": [attack, f"https://x/{attack}"],
    }
    kitchen.params["source"] |= {
        "architecture": attack,
        "name": f"n{attack}",
        "license": f"l{attack}",
    }
    kitchen.params["warnings"] = [attack]
    kitchen.params["fixups"] = {attack: {"patch": {attack: 1}, "reason": attack}}
    kitchen.speed["host"]["processor"] = attack
    text = kitchen.card()
    assert headings(text) == [f"# {before}", *HEADINGS[1:]]
    lines = prose(text)
    assert not any(re.fullmatch(r"\s*(---+|===+|\* \* \*|<.*)\s*", line) for line in lines)
    bare = [re.sub(r"(`+)(?!`).*?(?<!`)\1(?!`)", "", line) for line in lines]  # without code spans
    assert not any(
        re.search(r"(?<!\\)(<(script|img|b>)|\[click|&lt;|\*\*bold)", line) for line in bare
    )
    assert not set(text) & set("\x1b\x00\x0b\r\u202e\u202c")
    front = front_matter(text)
    assert front["license"] == f"l{attack}"
    assert front["tags"][3] == f"d{attack}"
    for line in lines:
        if line.startswith("| Precision"):
            assert len(re.findall(r"(?<!\\)\|", line)) == 3


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("`~#\n\r \t|<ax\\\u202e\u0301🙂"), max_size=40))
def test_a_code_block_cannot_be_closed_from_inside(text: str) -> None:
    lines = markdown.block(text).split("\n")
    fence = lines[0].removesuffix("text")
    assert set(fence) == {"`"}
    assert lines[-1] == fence
    assert not any(re.match(rf"\s*{fence}", line) for line in lines[1:-1])


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("`~#\n| <a_*[]()\\&;-+1."), max_size=30))
def test_inline_text_keeps_to_its_line_and_cell(text: str) -> None:
    shown = markdown.inline(text)
    assert "\n" not in shown
    assert not re.search(
        r"(?<!\\)(\\\\)*[|<`*\[\]]", re.sub(r"\\[\\|<`*\[\]~$_&#>+.)-]", "", shown)
    )
    assert markdown.inline(shown) is shown


def test_the_program_in_the_card_is_python(cooked: Path) -> None:
    program = re.search(
        r"```python\n(.*?)\n```", (cooked / "README.md").read_text("utf-8"), re.DOTALL
    )
    assert program is not None
    compile(program[1], "card", "exec")
    assert "onnxruntime-genai==0.18.0" in program[1]
    assert "apply_chat_template" in program[1]


# -- the file and its run

KNOB = "8-bit activations and cache"


def with_run(kitchen: Kitchen) -> Kitchen:
    """Scored apart as it runs."""
    folder = kitchen.root / "in" / "run"
    folder.mkdir()
    told = {"metrics": {"kld_run": 0.02345}, "stderr": {"kld_run": 0.0011}, "positions": 1020}
    (folder / "run.json").write_text(json.dumps(told))
    kitchen.inputs["run"], kitchen.params["knob"] = folder, KNOB
    return kitchen


def test_a_package_says_what_its_runtime_adds(kitchen: Kitchen) -> None:
    fidelity = manifest.read_manifest(with_run(kitchen).cook()).fidelity
    assert fidelity.metrics["kld_run"] == 0.02345
    assert fidelity.stderr["kld_run"] == 0.0011
    assert fidelity.run is not None
    assert (fidelity.run.how, fidelity.run.positions) == (KNOB, 1020)


def test_the_card_names_the_knob_beside_both_figures(kitchen: Kitchen) -> None:
    words = " ".join(with_run(kitchen).card().split())
    assert "mean KL divergence 0.0123 ± 0.0004 nats, as it runs 0.0234 ± 0.0011 nats" in words
    assert (
        f"ONNX Runtime GenAI computes by default ({KNOB}) on the build machine, for 1,020" in words
    )


def test_the_card_says_where_both_figures_are_one(kitchen: Kitchen) -> None:
    kitchen.params["knob"] = ""
    text = kitchen.card()
    assert "scored as ONNX Runtime GenAI computes by default" in text
    assert "kld_run" not in text
    told = manifest.read_manifest(kitchen.root / "out").fidelity
    assert told.metrics["kld_run"] == told.metrics["kld_mean"]


def test_a_device_that_was_emulated_is_not_said_to_round_as_the_build_machine(
    kitchen: Kitchen,
) -> None:
    kitchen.params |= {"on_target": "emulated", "knob": None}
    assert "What its arithmetic rounds besides is in no figure here." in kitchen.card()


def test_a_package_of_an_older_phipipe_opens_and_knows_no_run(kitchen: Kitchen) -> None:
    told = manifest.read_manifest(kitchen.cook()).fidelity  # nobody said anything of a run
    assert told.run is None
    assert "kld_run" not in told.metrics
