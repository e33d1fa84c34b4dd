"""Adapters and their bases, from folders and from a hub, as plans take them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing import adapters as small
from testing import hostile_checkpoints as hostile
from testing.hub_server import Hub
from testing.kitchen import Kitchen
from testing.plans import planned
from testing.shell import Run

from phipipe import backends
from phipipe.errors import SourceError
from phipipe.hub import pin
from phipipe.hub import view as hub_view
from phipipe.package import package
from phipipe.planning import plans
from phipipe.planning.plan import Plan
from phipipe.recipe import loading

RECIPE = """\
name: tuned
source: {{base: {{path: tiny}}, adapter: {adapter}}}
device: cpu-x86_64
backend: torch
precision: fp16
evaluate: {{text: {{builtin: stories}}, tokens: 512, window: 256}}
"""


@pytest.fixture(autouse=True)
def own_hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a base, and an adapter of it."""
    hostile.base(tmp_path / "tiny")
    small.write(tmp_path / "mine", small.settings(), small.shapes())
    return tmp_path


@pytest.fixture
def served(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the adapter."""
    files = {path.name: path.read_bytes() for path in (folder / "mine").iterdir()}
    files |= {"optimizer.pt": b"\x80\x04", "README.md": b"# mine", "train.py": b"raise SystemExit"}
    with Hub(files, repo="someone/mine") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def plan(folder: Path, adapter: str = "{path: mine}", *sets: str) -> Plan:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(adapter=adapter), "utf-8")
    return planned(*sets, path=recipe)


def hub_adapter(served: Hub) -> str:
    return f"{{repo: {served.repo}, revision: {served.commit}}}"


def test_a_plan_takes_both_and_merges_them_before_anything_is_built(folder: Path) -> None:
    made = plan(folder)
    steps = {step.name: step for step in made.steps}
    assert [step.name for step in made.steps][:3] == ["base", "adapter", "source"]
    assert steps["source"].needs == {"base": "base", "adapter": "adapter"}
    assert steps["adapter"].outside["files"].files == ("adapter_config.json", small.WEIGHTS)
    assert steps["package"].needs["change"] == "adapter-change"
    assert not made.warnings


def test_an_adapter_of_a_hub_needs_its_header_alone_for_a_plan(folder: Path, served: Hub) -> None:
    made = plan(folder, hub_adapter(served))
    step = next(step for step in made.steps if step.name == "adapter")
    names = [file["name"] for file in step.params["files"]]
    assert names == ["adapter_config.json", small.WEIGHTS]
    assert served.sent(small.WEIGHTS) <= hub_view.HEAD_BYTES


def test_adapters_of_one_base_share_it_and_its_baseline(folder: Path) -> None:
    small.write(folder / "other", small.settings(lora_alpha=1), small.shapes())
    plan(folder)
    recipe = folder / "recipe.yaml"
    matrix = "matrix:\n- {name: mine}\n- {name: other, source: {adapter: {path: other}}}\n"
    recipe.write_text(recipe.read_text("utf-8") + matrix, "utf-8")
    first, second = loading.load(recipe, options=backends.OptionsOf())
    one, two = (
        {step.name: step for step in made.steps} for made in plans.prepared([first, second])
    )
    assert all(one[name] == two[name] for name in ("base", "text", "base-baseline"))
    assert one["adapter"] != two["adapter"]


def test_a_base_that_the_adapter_does_not_name_is_a_warning(folder: Path) -> None:
    (folder / "tiny").rename(folder / "another")
    config = folder / "another" / "config.json"
    told = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**told, "_name_or_path": "someone/another"}), "utf-8")
    made = plan(folder, "{path: mine}", "source.base={path: another}")
    assert [warning.rule for warning in made.warnings] == ["W30"]


def test_the_tokenizer_of_an_adapter_takes_the_place_of_the_bases(folder: Path) -> None:
    told = {**hostile.TOKENIZER, "version": "1.0 "}
    (folder / "mine" / "tokenizer.json").write_text(json.dumps(told), "utf-8")
    made = plan(folder)
    assert [warning.rule for warning in made.warnings] == ["W31"]
    view = made.checkpoint.folder
    assert json.loads((view / "tokenizer.json").read_text("utf-8"))["version"] == "1.0 "
    assert not (view / "tokenizer_config.json").exists()  # of another tokenizer
    assert (view / "config.json").is_file()


def test_a_tokenizer_with_more_tokens_than_rows_is_refused(folder: Path) -> None:
    added = [{"id": hostile.VOCABULARY, "content": "<new>", "special": True}]
    told = {**hostile.TOKENIZER, "added_tokens": [*hostile.TOKENIZER["added_tokens"], *added]}
    (folder / "mine" / "tokenizer.json").write_text(json.dumps(told), "utf-8")
    with pytest.raises(SourceError, match="the model's vocabulary ends"):
        plan(folder)


def test_a_base_that_is_an_adapter_is_refused(folder: Path) -> None:
    with pytest.raises(SourceError, match="is a LoRA adapter"):
        plan(folder, "{path: mine}", "source.base={path: mine}")


def test_nan_in_an_adapter_is_found_in_the_plan(folder: Path) -> None:
    small.save(folder / "mine" / small.WEIGHTS, small.shapes(), float("nan"))
    with pytest.raises(SourceError, match=r"the adapter has NaN in tensor .*lora_A"):
        plan(folder)


def test_an_adapter_of_pickles_is_refused(folder: Path, served: Hub) -> None:
    served.files["adapter_model.bin"] = served.files.pop(small.WEIGHTS)
    with pytest.raises(SourceError, match="pickles only"):
        plan(folder, hub_adapter(served))


def test_a_gated_base_is_named(folder: Path, served: Hub) -> None:
    served.gated, served.token = True, "hf_other"
    base = f"source.base={{repo: {served.repo}, revision: {served.commit}}}"
    with pytest.raises(SourceError, match=r"`someone/mine` is gated"):
        plan(folder, "{path: mine}", base)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{adapter: {path: mine}}", "`base` is missing"),
        ("{base: {path: tiny}}", "and there is none"),
        ("{path: tiny, base: {path: tiny}, adapter: {path: mine}}", "exactly one of"),
        ("{base: {path: tiny}, adapter: {repo: a/b}}", "`revision` is missing"),
        ("{base: {path: tiny}, adapter: {builtin: tiny-phi3}}", "unknown key `builtin`"),
    ],
)
def test_half_a_source_says_what_is_missing(
    folder: Path, run: Run, source: str, words: str
) -> None:
    plan(folder)
    code, _, err = run("validate", folder / "recipe.yaml", "--set", f"source={source}")
    assert (code, words in err) == (2, True), err


def test_pin_writes_the_commit_of_an_adapter(folder: Path, served: Hub) -> None:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(adapter=f"{{repo: {served.repo}}}"), "utf-8")
    (done,) = pin.pin(recipe)
    assert (done.repo, done.commit) == (served.repo, served.commit)
    assert f"adapter: {{repo: {served.repo}, revision: {served.commit}}}" in recipe.read_text()


def test_init_writes_base_and_adapter(folder: Path, served: Hub, run: Run) -> None:
    told = small.settings(base_model_name_or_path="tiny")
    (folder / "mine" / small.SETTINGS).write_text(json.dumps(told), "utf-8")
    code, _, err = run("init", "mine", "--precision", "fp16")
    assert code == 0, err
    lines = (folder / "mine-fp16.yaml").read_text("utf-8").splitlines()
    assert "source: {base: {path: tiny}, adapter: {path: mine}}" in lines
    served.files[small.SETTINGS] = json.dumps(told).encode()
    code, _, err = run("init", "hub.yaml", "--source", served.repo)
    assert code == 0, err
    line = f"adapter: {{repo: {served.repo}, revision: {served.commit}}}}}"
    assert any(text.endswith(line) for text in (folder / "hub.yaml").read_text().splitlines())


@pytest.mark.parametrize(("precision", "relation"), [("int8", "quantized"), ("fp16", "merge")])
def test_the_card_names_base_and_adapter(tmp_path: Path, precision: str, relation: str) -> None:
    kitchen = Kitchen(tmp_path / "kitchen")
    commit = "c0ffee" + "0" * 34
    parts = {
        name: {"kind": "hub", "repo": f"someone/{name}", "revision": commit}
        for name in ("base", "adapter")
    }
    kitchen.params["source"] |= {"kind": "adapter", "name": "adapter on base", **parts}
    kitchen.params["recipe"]["source"] = {
        name: {"repo": part["repo"], "revision": commit} for name, part in parts.items()
    }
    kitchen.params["recipe"]["precision"] = precision
    folder = kitchen.cook()
    card = (folder / "README.md").read_text("utf-8")
    assert "base_model:\n- someone/base\n- someone/adapter\n" in card
    assert f"base_model_relation: {relation}\n" in card
    assert "`someone/base` at commit" in card
    assert package.read_manifest(folder).source.title == "adapter on base"
