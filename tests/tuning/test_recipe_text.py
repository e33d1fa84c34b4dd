"""Chosen widths as a recipe, which is read again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import choices
from testing.places import RECIPES

from phipipe import backends
from phipipe.recipe import loading
from phipipe.recipe.build import Build, paths_of
from phipipe.steps import Json
from phipipe.tuning import recipe_text
from phipipe.tuning.aims import Aim
from phipipe.tuning.curve import Curve
from phipipe.tuning.fit import Fit
from phipipe.tuning.results import AS_IT_STANDS, Tuned

METRICS = {"size_gib": 0.5, "kld_mean": 0.0123, "top1": 0.9}
MAP: dict[str, Json] = {"layers.*.mlp.down_proj": {"bits": 8, "group_size": 32}}
SHIPPED = sorted(RECIPES.glob("*.yaml"))


def load(path: Path) -> list[Build]:
    return loading.load(path, options=backends.OptionsOf())


def found(build: Build, quantize: dict[str, Json], folder: Path) -> Tuned:
    """As much of it as a recipe's text asks for."""
    today = choices.trial(AS_IT_STANDS, None, 2**29, 0.0123, 0)
    return Tuned(
        build=build,
        aim=Aim(),
        limit_bytes=None,
        base_bytes=0,
        curve=Curve({}),
        fit=Fit(),
        checks=(),
        trials=(today,),
        best=today,
        quantize=quantize,
        final=choices.outcome(folder, choices.NO_PLAN, METRICS, None),
    )


def again(
    tuned: Sequence[Tuned], target: Path, command: str = "phipipe tune x.yaml"
) -> list[Build]:
    target.parent.mkdir(parents=True, exist_ok=True)
    name = recipe_text.name_of([one.build for one in tuned])
    target.write_text(recipe_text.compose(tuned, name, target.parent, command), "utf-8")
    return load(target)


def plain(build: Build) -> dict[str, Json]:
    """The recipe without its name and without what is chosen, with whole paths."""
    data: dict[str, Json] = build.recipe.model_dump(mode="json", exclude={"name", "quantize"})
    for where, path in paths_of(build.recipe):
        *outer, last = map(str, where)
        inner = data
        for key in outer:
            inner = inner[key]
        inner[last] = str((build.folder / path).resolve())
    return data


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_reads_back_from_another_folder(path: Path, tmp_path: Path) -> None:
    before = load(path)
    tuned = [found(one, dict(one.recipe.quantize), tmp_path / "reports") for one in before]
    after = again(tuned, tmp_path / "deep" / "new.yaml")
    assert [plain(one) for one in after] == [plain(one) for one in before]
    assert [one.options for one in after] == [one.options for one in before]
    name = before[0].recipe.name
    assert [one.name for one in after] == [
        one.name.replace(name, f"{name}-tuned", 1) for one in before
    ]


VARIANTS = """\
name: mine
source: {builtin: tiny-phi3}
device: boards/mine.yaml
precision: int4
calibrate: {text: {file: texts/learn.txt}}
evaluate: {text: {file: texts/check.txt}, tokens: 2048}
quantize: {block_size: 32}
matrix:
  - {name: here}
  - {name: there, evaluate: {tokens: 1024}, quantize: {block_size: 64}}
  - {name: gguf, backend: llamacpp}
"""


@pytest.fixture
def variants(tmp_path: Path) -> list[Build]:
    device = (RECIPES.parent / "phipipe/devices/cpu-x86_64.yaml").read_text("utf-8")
    home = tmp_path / "home"
    for name, text in (
        ("boards/mine.yaml", device),
        ("texts/learn.txt", "a"),
        ("r.yaml", VARIANTS),
    ):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_text(text, "utf-8")
    return load(home / "r.yaml")


def test_variants_with_files_beside_them(variants: list[Build], tmp_path: Path) -> None:
    maps: list[dict[str, Json]] = [{"map": MAP}, {"block_size": 64}, {"map": {"lm_head": "Q6_K"}}]
    tuned = [
        found(one, quantize, tmp_path / "reports")
        for one, quantize in zip(variants, maps, strict=True)
    ]
    after = again(tuned, tmp_path / "away" / "new.yaml")
    assert [plain(one) for one in after] == [plain(one) for one in variants]
    assert [dict(one.recipe.quantize) for one in after] == maps
    assert [one.name for one in after] == ["mine-tuned-here", "mine-tuned-there", "mine-tuned-gguf"]
    text = (tmp_path / "away" / "new.yaml").read_text("utf-8")
    assert "../home/texts/learn.txt" in text
    assert str(tmp_path) not in text


def test_one_variant_is_a_recipe_of_its_own(variants: list[Build], tmp_path: Path) -> None:
    (after,) = again([found(variants[1], {"map": MAP}, tmp_path)], tmp_path / "new.yaml")
    assert plain(after) == plain(variants[1])
    assert after.name == "mine-there-tuned"


@settings(max_examples=40)
@given(st.text(max_size=60))
def test_no_command_breaks_out_of_its_comment(
    tmp_path_factory: pytest.TempPathFactory, command: str
) -> None:
    folder = tmp_path_factory.mktemp("commands")
    (build,) = load(RECIPES / "phi35-cpu-int4.yaml")
    for told in (command, f"a\n{command}", f"a\nname: b{command}", f"a\u2028x: {command}\x85y: 1"):
        (after,) = again([found(build, {}, folder)], folder / "new.yaml", told)
        assert after.name == "phi35-cpu-int4-tuned"


def test_a_long_name_is_cut(tmp_path: Path) -> None:
    (build,) = choices.builds(f"name={'n' * 80}")
    (after,) = again([found(build, {}, tmp_path)], tmp_path / "new.yaml")
    assert after.name == "n" * 74 + "-tuned"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("x", "x-tuned"),
        ("x-tuned", "x-tuned-2"),
        ("x-tuned-2", "x-tuned-3"),
        ("x-tuned-99", "x-tuned-100"),
        ("x-2", "x-2-tuned"),
        ("x-tuned-0", "x-tuned-0-tuned"),
        ("n" * 74 + "-tuned", "n" * 72 + "-tuned-2"),
    ],
)
def test_a_recipe_that_is_tuned_again_has_another_name(before: str, after: str) -> None:
    (build,) = choices.builds(f"name={before}")
    assert recipe_text.name_of([build]) == after
    assert recipe_text.name_of([build], ["precision=int4"]) == after


def test_a_name_that_the_user_set_stays() -> None:
    (build,) = choices.builds("name=mine-tuned")
    assert recipe_text.name_of([build], ["precision=int4", "name=mine-tuned"]) == "mine-tuned"


def test_the_evidence_stands_above(tmp_path: Path) -> None:
    (build,) = choices.builds("evaluate.window=256")
    tuned = choices.tuned(tmp_path, build)
    head = recipe_text.compose([tuned], "x", tmp_path, "phipipe tune x.yaml").split("name:")[0]
    lines = head.splitlines()
    assert all(line.startswith("#") for line in lines)
    assert "Written by: phipipe tune x.yaml" in lines[0]
    for one in tuned.trials:
        assert any(f"{one.what}: " in line and f"{one.kld:.4g}" in line for line in lines)
    assert any("on the evaluation text" in line for line in lines)
    assert any("answers: " in line for line in lines)
