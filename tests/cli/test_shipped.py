"""The recipes that come with phipipe: listed, shown, copied to start from."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from testing.places import RECIPES
from testing.shell import Run

from phipipe import backends
from phipipe.backends.llamacpp.types import TYPES

NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))


def listed(run: Run, *words: str) -> list[str]:
    code, out, _ = run("recipes", "ls", *words, "--json")
    assert code == 0
    return [row["recipe"] for row in json.loads(out)]


def test_every_shipped_recipe_is_listed_with_its_first_sentence(run: Run) -> None:
    code, out, _ = run("recipes")
    lines = out.splitlines()
    assert code == 0
    assert [line.split()[0] for line in lines[1:]] == NAMES
    assert all(line.endswith(".") for line in lines[1:])


def test_a_file_where_a_folder_is_needed_is_told(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine", "utf-8")
    code, _, stderr = run("recipes", "copy", "quickstart", str(tmp_path / "mine.yaml" / "x.yaml"))
    assert (code, "a file is where a folder is needed" in stderr) == (2, True)
    assert (tmp_path / "mine.yaml").read_text("utf-8") == "mine"


def test_recipes_are_found_by_device_and_by_a_part_of_the_models_name(run: Run) -> None:
    assert "phi4mini-pi5-int4" in listed(run, "--device", "raspberry-pi-5")
    assert listed(run, "--model", "Phi4 Mini") == listed(run, "--model", "phi-4-mini")
    assert listed(run, "--model", "moe") == ["phi35moe-cpu-int4"]
    assert listed(run, "--device", "mac-8gb", "--model", "moe") == []


def test_a_device_that_only_borrows_a_recipe_has_it_listed(run: Run) -> None:
    """`rtx-24gb` has no recipe of its own; its device file names one to start from."""
    from phipipe.recipe import device

    for name in device.names():
        start = device.load(name).recipe
        if start:
            assert start in listed(run, "--device", name)


def test_where_no_recipe_fits_the_way_on_is_said(run: Run) -> None:
    code, out, err = run("recipes", "ls", "--device", "mac-8gb", "--model", "moe")
    assert (code, out) == (0, "")
    assert "phipipe init my-recipe.yaml --device mac-8gb" in err


@pytest.mark.parametrize("words", [("show", "quickstart"), ("quickstart",), ("quickstart.yaml",)])
def test_a_recipe_is_shown_as_its_file_is(run: Run, words: tuple[str, ...]) -> None:
    assert run("recipes", *words)[1] == (RECIPES / "quickstart.yaml").read_text("utf-8")


@pytest.mark.parametrize("name", ["quickstrat", "../pyproject", "", "/etc/passwd"])
def test_a_wrong_name_is_refused(run: Run, name: str) -> None:
    code, _, err = run("recipes", "show", name)
    assert code == 2
    assert "there is no shipped recipe" in err
    assert ("did you mean `quickstart`" in err) is (name == "quickstrat")


def test_an_unknown_device_is_guessed(run: Run) -> None:
    code, _, err = run("recipes", "ls", "--device", "rasberry-pi-5")
    assert code == 2
    assert "did you mean `raspberry-pi-5`" in err


def test_a_copy_knows_its_own_path_and_its_schema_and_validates(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run("recipes", "copy", "quickstart")
    text = Path("quickstart.yaml").read_text("utf-8")
    assert code == 0
    assert out.splitlines() == [
        "wrote quickstart.yaml",
        "next: phipipe plan quickstart.yaml",
        "then: phipipe run quickstart.yaml",
    ]
    assert text.splitlines()[0].endswith("$schema=recipe.schema.json")
    assert "#   phipipe run quickstart.yaml\n" in text
    assert "phipipe schema --write recipe.schema.json" in err
    assert run("validate", "quickstart.yaml")[0] == 0


def test_a_copy_beside_a_folder_of_schemas_uses_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "recipe.schema.json").touch()
    (tmp_path / "recipes").mkdir()
    code, _, err = run("recipes", "copy", "board", tmp_path / "recipes")
    copied = (tmp_path / "recipes" / "board.yaml").read_text("utf-8")
    assert (code, err) == (0, "")
    assert copied.splitlines()[0] == (RECIPES / "board.yaml").read_text("utf-8").splitlines()[0]


@pytest.mark.parametrize("name", NAMES)
def test_every_copy_says_how_it_is_run(run: Run, tmp_path: Path, name: str) -> None:
    target = tmp_path / f"{name}.yaml"
    assert run("recipes", "copy", name, target)[0] == 0
    assert f"phipipe run {target.as_posix()}" in target.read_text("utf-8")
    assert "recipes/" not in target.read_text("utf-8").replace(target.as_posix(), "")


def test_a_copy_never_overwrites(run: Run, tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").write_text("mine", "utf-8")
    code, _, err = run("recipes", "copy", "quickstart", tmp_path)
    assert (code, (tmp_path / "quickstart.yaml").read_text("utf-8")) == (2, "mine")
    assert "is there already" in err


@pytest.mark.parametrize("path", ["recipes/phi4mini-pi5-int4.yaml", "phi4mini-pi5-int4"])
def test_who_runs_a_shipped_recipe_that_is_not_there_hears_how_to_get_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run("run", path)
    assert code == 2
    assert "phipipe recipes copy phi4mini-pi5-int4" in err


def test_what_a_device_says_to_start_with_works_in_an_empty_folder(run: Run) -> None:
    _, out, _ = run("devices", "show", "raspberry-pi-5-16gb", "--json")
    copy, start = json.loads(out)["start"].split(" && ")
    assert run(*copy.split()[1:])[0] == 0
    assert run("validate", *start.split()[2:])[0] == 0


@pytest.mark.parametrize("named", ["./my-board.yaml", "boards/it's my board #1.yaml"])
@pytest.mark.parametrize("recipe", ["recipe: phi35-pi5-int4\n", ""])
def test_what_a_device_file_says_to_start_with_names_the_file_as_the_user_did(
    run: Run, tmp_path: Path, named: str, recipe: str
) -> None:
    (tmp_path / "boards").mkdir()
    text = "title: Mine\nunits: [{api: cpu, precisions: [int4]}]\nsources: [https://a.example/]\n"
    (tmp_path / named).write_text(text + recipe, "utf-8")
    _, out, _ = run("devices", "show", named, "--json")
    first, _, start = json.loads(out)["start"].partition(" && ")
    assert run(*shlex.split(first)[1:])[0] == 0
    if start:
        assert run("validate", *shlex.split(start)[2:])[0] == 0


@pytest.mark.parametrize("name", backends.names())
def test_a_backend_says_when_it_suits_and_when_to_use_which_value(run: Run, name: str) -> None:
    face = backends.load(name)
    told = json.loads(run("backends", name, "--json")[1])
    assert told["suits"] == face.suits != ""
    assert {key: one["advice"] for key, one in told["quantize"].items()} == face.advice
    shown = run("backends", name)[1]
    for line in (face.suits, *face.advice.values()):
        assert line in shown
    assert "typing." not in shown


def test_every_type_of_llamacpp_has_a_line_of_its_own(run: Run) -> None:
    told = json.loads(run("backends", "llamacpp", "--json")[1])["quantize"]["type"]["values"]
    shown = run("backends", "llamacpp")[1]
    assert list(told) == list(TYPES)
    for name, words in told.items():
        assert any(name in line and words in line for line in shown.splitlines())
    assert [name for name in told if "imatrix" in told[name] and TYPES[name].needs_imatrix]
