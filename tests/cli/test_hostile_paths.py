"""Whatever path or value a user gives, every command ends in a sentence and a documented code, and
soon."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import hostile_paths, small_package
from testing.drive import PATHS

from phipipe import backends
from phipipe.batch import selection, timetable
from phipipe.board import entry, gathering
from phipipe.cli import files as cli_files
from phipipe.errors import RecipeError, SourceError, StoreError
from phipipe.execution import finished
from phipipe.files import user_paths
from phipipe.files.user_paths import Kind
from phipipe.package import manifest_schema
from phipipe.store import exports

LIMIT_S = 240.0  # for all of them together: a command that hangs is ended, and named


@pytest.mark.full
def test_no_odd_path_or_value_is_a_bug_or_a_hang_for_any_command(tmp_path: Path) -> None:
    """Every command × every place for a path × every kind of odd path, and odd values for the other
    options."""
    command = [sys.executable, "-m", "testing.hostile_paths", str(tmp_path / "odd")]
    child = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": PATHS},
    )
    try:
        said, _ = child.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        child.kill()
        pytest.fail(f"hangs: {child.communicate()[0].splitlines()[-1]}")
    lines = [json.loads(line) for line in said.splitlines()]
    tried = [line for line in lines if "code" in line]
    assert child.returncode == 0, lines[-1:]
    assert len(tried) > 1500
    wrong = [
        line
        for line in tried
        if line["code"] not in hostile_paths.DOCUMENTED or "Traceback" in line["said"]
    ]
    assert not wrong
    silent = [line for line in tried if line["code"] and not line["said"].strip()]
    assert not silent
    raw = [line for line in tried if {"\x1b", "\x07", "\x9b", "\u202e"} & set(line["said"])]
    assert not raw


def test_an_odd_path_in_a_recipe_is_refused_where_it_stands(tmp_path: Path) -> None:
    odd = hostile_paths.paths(tmp_path / "odd")
    recipe = tmp_path / "r.yaml"
    for name in ("a link, loop", "a pipe", "a long name", "nobody's home", "/dev/zero"):
        if name not in odd:
            continue
        text = hostile_paths.RECIPE.replace(
            "{builtin: stories}", f"{{file: {json.dumps(odd[name])}}}"
        )
        recipe.write_text(text, "utf-8")
        code, said = hostile_paths.outcome(["validate", str(recipe)])
        assert code == 2
        assert f"{recipe}:5:26: " in said, name


def test_what_is_to_be_read_is_what_is_meant(tmp_path: Path) -> None:
    odd = hostile_paths.paths(tmp_path)
    file, folder, missing = (Path(odd[name]) for name in ("a file", "a folder", "missing"))
    for kind in Kind:
        files, folders = kind in (Kind.FILE, Kind.NEW_FILE), kind in (Kind.FOLDER, Kind.NEW_FOLDER)
        assert (user_paths.problem(file, kind) is None) == (not folders)
        assert (user_paths.problem(folder, kind) is None) == (not files)
        assert user_paths.problem(missing, kind) is None


@pytest.mark.skipif(sys.platform == "win32", reason="needs links")
def test_links_are_followed_to_what_they_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "null").symlink_to("/dev/null")
    assert user_paths.problem(tmp_path / "link", Kind.FILE) is None
    assert "a device" in str(user_paths.problem(tmp_path / "null", Kind.NEW_FILE))
    assert "link" in str(
        user_paths.problem(Path(hostile_paths.paths(tmp_path)["a link, dangling"]), Kind.NEW_FOLDER)
    )


@given(st.text(st.characters(exclude_categories=()), max_size=400))
@settings(max_examples=150, deadline=None)
def test_every_text_is_a_path_or_is_refused_in_words(tmp_path: Path, text: str) -> None:
    for kind in Kind:
        told = user_paths.problem(tmp_path / text, kind, text)
        assert told is None or told
    assert user_paths.inside(tmp_path, text)


def test_a_deep_folder_for_output_leaves_room_for_what_is_written_in_it(tmp_path: Path) -> None:
    if os.name == "nt":
        pytest.skip("paths have no such limit there")
    longest = os.pathconf("/", "PC_PATH_MAX")
    deep = tmp_path
    while len(str(deep)) < longest - 150:
        deep /= "d" * 100
    assert "too long" in str(user_paths.problem(deep, Kind.NEW_FOLDER))


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["cache", "gc", "--budget", "nan"], 2, "no size"),
        (["cache", "gc", "--budget", "1e400"], 2, "no size"),
        (["cache", "gc", "--dry-run", "--budget", "1e300"], 0, "would free"),
        (["schema", "--write", "."], 2, "is a folder"),
        (["schema", "--check", "nope.json"], 2, "no schema at `nope.json`"),
        (["batch", "nope"], 2, "no recipe or folder of recipes at `nope`"),
        (["eval", "nope", "--text", "nope.txt"], 8, "no text at `nope.txt`"),
    ],
)
def test_what_is_wrong_with_an_option_names_the_option_and_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if words[0] == "eval":
        (tmp_path / "nope").mkdir()
    found, told = hostile_paths.outcome(words)
    assert (found, said in told) == (code, True), told


def test_too_few_tokens_for_a_window_are_the_options_fault_not_the_texts() -> None:
    recipe = {**yaml.safe_load(hostile_paths.RECIPE), "backend": "onnxruntime"}
    manifest = manifest_schema.parse(small_package.described(recipe=recipe, precision="int8"))
    with pytest.raises(
        RecipeError, match=r"--tokens 256 is less than one window of 512 tokens"
    ) as caught:
        finished._recipe(manifest, None, 256)
    assert caught.value.hint == "--tokens 512 or more"
    assert finished._recipe(manifest, None, 512).evaluate.tokens == 512


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.timeout(60)
def test_what_is_in_the_place_of_a_file_that_is_written_never_hangs_or_is_written_into(
    tmp_path: Path,
) -> None:
    (tmp_path / "precious").write_text("mine", "utf-8")

    def occupied(name: str) -> None:
        for kind, make in {
            "pipe": os.mkfifo,
            "link": lambda path: path.symlink_to(tmp_path / "precious"),
            "loop": lambda path: path.symlink_to(path.name),
            "folder": lambda path: (path / "x").mkdir(parents=True),
        }.items():
            folder = tmp_path / f"{name}-{kind}"
            folder.mkdir(exist_ok=True)
            make(folder / name)

    entries = [entry.failed("x", "onnxruntime", "int4", "it failed")]
    for name in ("board.html", "nightly.service", "board.json"):
        occupied(name)
    for kind in ("pipe", "link", "loop", "folder"):
        with contextlib.suppress(StoreError):
            gathering.write(entries, tmp_path / f"board.html-{kind}", "title")
        with contextlib.suppress(StoreError):
            timetable.write({"nightly.service": "text"}, tmp_path / f"nightly.service-{kind}")
        with contextlib.suppress(SourceError):
            gathering.of_paths([tmp_path / f"board.json-{kind}"], print)
        if kind != "link":  # a link of the user's own is followed where a file is named outright
            with pytest.raises(RecipeError):
                cli_files.save(tmp_path / f"board.json-{kind}" / "board.json", "text")
    assert (tmp_path / "precious").read_text("utf-8") == "mine"
    with pytest.raises(StoreError, match="in the way"):
        exports.check_replaceable(tmp_path / "board.json-pipe" / "board.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
@pytest.mark.timeout(60)
def test_a_folder_of_recipes_may_hold_anything(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    (folder / "folder.yaml").mkdir(parents=True)
    os.mkfifo(folder / "pipe.yaml")
    for name, target in {
        "loop": "loop.yaml",
        "null": "/dev/null",
        "zero": "/dev/zero",
        "gone": "no/where",
    }.items():
        (folder / f"{name}.yaml").symlink_to(target)
    (folder / "\udcff.yaml").touch()
    (folder / "good.yaml").write_text(hostile_paths.RECIPE, "utf-8")
    code, said = hostile_paths.outcome(
        ["schedule", "export", "--cron", str(folder), "--name", "tried"]
    )
    assert code == 0, said
    items = selection.select([folder], selection.Wanted(), backends.OptionsOf())
    assert {item.path.name for item in items if item.error is None} == {"good.yaml"}
    assert len(items) == 8


@pytest.mark.parametrize(
    ("told", "place"),
    [("source: {path: nowhere}", "2:16"), ("evaluate: {text: {file: nowhere.txt}}", "6:25")],
)
def test_a_path_that_is_missing_is_said_where_it_stands(
    tmp_path: Path, told: str, place: str
) -> None:
    recipe, key = tmp_path / "r.yaml", told.partition(":")[0]
    lines = [told if line.startswith(key) else line for line in hostile_paths.RECIPE.splitlines()]
    recipe.write_text("\n".join(lines if told in lines else [*lines, told]), "utf-8")
    code, said = hostile_paths.outcome(["plan", str(recipe)])
    assert code == 8
    assert f"{recipe}:{place}: " in said
    assert "nowhere" in said
