"""Every target, on the embedded model: all rows of the matrix, every shipped recipe, and figures
from the device."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from testing.places import QUICKSTART, RECIPES
from testing.shell import Shell

from phipipe import backends
from phipipe.hub import repository, take
from phipipe.maintain import support_tables
from phipipe.models import checkpoints, family
from phipipe.package import package
from phipipe.planning import preparation
from phipipe.recipe import device, loading
from phipipe.steps import Step

TARGETS = RECIPES / "all-targets.yaml"
EMBEDDED = ("--set", "source={builtin: tiny-phi3}")
# The emulated NPU is slow.
FEWER = (
    *("--set", "evaluate.window=256"),
    *("--set", "evaluate.tokens=256"),
    *("--set", "calibrate.tokens=4096"),
    *("--set", "measure={prompt_tokens: 16, new_tokens: 4, repetitions: 1}"),
)
ELSEWHERE = {  # rows whose device no machine of ours is, and what is said there
    "nvidia-gpu-onnxruntime": "this machine has no NVIDIA GPU",
    "apple-silicon-mlx": (
        "this machine's processor is x86_64, and that of Apple silicon (Mac) is arm64"
    ),
    "snapdragon-x-npu": "this machine's processor is x86_64, and that of Snapdragon X NPU is arm64",
    "directml-gpu": "no toolchain of phipipe's runs `onnxruntime` packages on `directml` yet",
    "vulkan-gpu": "this machine has no GPU that this build of llama.cpp can use",
    "intel-gpu": "this machine has no Intel GPU that OpenVINO can use",
    "intel-npu": "this machine has no Intel NPU that OpenVINO can use",
}
MATRIX = yaml.safe_load(TARGETS.read_text("utf-8"))["matrix"]
ROWS = {row["name"]: row for row in MATRIX}
WRITTEN = {path: yaml.safe_load(path.read_text("utf-8")) for path in sorted(RECIPES.glob("*.yaml"))}
SHIPPED = {path.stem: told for path, told in WRITTEN.items() if "backend" in told}
EXAMPLE = "phi4-cpu-int4"  # the others are built at night
FROM_HUB = [name for name, told in SHIPPED.items() if "repo" in told["source"]]


LARGE = 2**19  # bytes: a file of weights; graphs and tokenizers of the embedded model are smaller
# What else such files hold, or a plan leaves out, as a share: it hardly grows with a model.
# onnxruntime's are tables of cosines and sines, 12 % of this model with 4 bits.
SLACK = {"openvino": 0.03, "mlx": 0.03, "llamacpp": 0.07, "qnn": 0.08, "onnxruntime": 0.14}
SLACK |= {"litert": 0.25, "torch": 0.03}


def unit_of(row: Mapping[str, Any]) -> device.Unit:
    """The unit that a row of the matrix is for."""
    target, precision = device.load(row["device"]), row.get("precision", "int4")
    return next(
        unit
        for unit in target.units
        if row.get("unit") in (None, unit.api)
        and precision in backends.able(row.get("backend", "onnxruntime"), target, unit)
    )


def on_target(row: Mapping[str, Any]) -> str:
    """What a PC with an x86-64 CPU alone says of the figures that it takes for a row."""
    if unit_of(row).api in ("hexagon", "intel-npu"):
        return "emulated"
    return "true" if row["device"] == "cpu-x86_64" else "false"


def different() -> list[str]:
    """Of the shipped recipes that are the same on the embedded model, the first."""
    kinds: dict[str, str] = {}
    for name, told in SHIPPED.items():
        if name != TARGETS.stem:
            api = unit_of(told).api
            kinds.setdefault(
                json.dumps([told["backend"], api, told["precision"], told.get("quantize")]), name
            )
    return list(kinds.values())


def of_each_kind() -> list[dict[str, Any]]:
    """Rows of the matrix, one for each kind of artifact: backend, unit and precision.

    Tests name some rows; those speak for their kinds.
    """
    kinds: dict[tuple[object, ...], dict[str, Any]] = {}
    for row in sorted(MATRIX, key=lambda row: row["name"] not in ELSEWHERE):
        api, precision = unit_of(row).api, row.get("precision", "int4")
        # What is emulated is slow: int8 is built by tests of runtimes.
        kind = row.get("backend", "onnxruntime"), api, precision if api != "hexagon" else None
        kinds.setdefault(kind, row)
    return list(kinds.values())


def kind(target: device.Device) -> tuple[object, ...]:
    """What devices that differ in memory alone share."""
    return target.systems, tuple(unit.api for unit in target.units)


def test_no_device_and_no_unit_is_missing() -> None:
    built = {(kind(device.load(row["device"])), unit_of(row).api) for row in MATRIX}
    assert {row["device"] for row in MATRIX} == set(device.names())
    for name in device.names():
        target = device.load(name)
        for unit in target.units:
            if not any(backends.able(backend, target, unit) for backend in backends.names()):
                assert "Nothing is built" in (target.notes or ""), "the device says why"
            else:
                assert (kind(target), unit.api) in built, f"{name}: {unit.api}"
    assert {row.get("backend", "onnxruntime") for row in MATRIX} == set(backends.names())


def test_the_table_of_devices_names_all_of_them_and_all_backends() -> None:
    table = support_tables.support()
    for name in (*device.names(), *backends.names()):
        assert f"`{name}`" in table


@pytest.mark.parametrize("name", FROM_HUB)
def test_recipes_of_the_hub_fit_their_models_and_devices(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (build,) = loading.load(RECIPES / f"{name}.yaml", options=backends.OptionsOf())
    (member,) = (m for m in family.MEMBERS if build.recipe.source.repo in m.repos)
    original = take.Original(
        checkpoints.of_config(member.config, member.tokenizer),
        Step(name="source", runs="", version=1),
    )
    monkeypatch.setattr(
        repository, "text_step", lambda told, name: Step(name=name, runs=told.file, version=1)
    )
    monkeypatch.setattr(take, "same_text", lambda *_: False)
    made = preparation.prepare(build, lambda *_: original)
    texts = {
        step.name: step.runs for step in made.steps if step.name in ("text", "calibration-text")
    }
    assert texts["text"] == "wikitext-2-raw-v1/test-00000-of-00001.parquet"
    assert texts.get("calibration-text", "train").rpartition("/")[2].startswith("train")
    assert made.fit is not None
    assert made.fit.fits


@pytest.mark.parametrize("name", FROM_HUB)
def test_a_recipe_has_its_files_name_and_pins_its_model(name: str) -> None:
    assert SHIPPED[name]["name"] == name
    assert re.fullmatch("[0-9a-f]{40}", SHIPPED[name]["source"]["revision"])


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, toolchains: Path) -> Shell:
    return Shell(tmp_path_factory.mktemp("targets"), toolchains)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(of_each_kind(), id="kinds"),
        pytest.param(MATRIX, id="matrix", marks=pytest.mark.nightly),
    ],
)
def rows(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """What is built of the matrix."""
    chosen: list[dict[str, Any]] = request.param
    return chosen


def only(rows: list[dict[str, Any]]) -> list[str]:
    """The command line's words for these rows alone."""
    return [word for row in rows for word in ("--only", f"all-targets-{row['name']}")]


@pytest.fixture(scope="module")
def entries(shell: Shell, rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The board, by row."""
    shell("run", TARGETS, *FEWER, *only(rows), timeout=1700)
    board = json.loads(
        (shell.folder / "packages" / "all-targets" / "board.json").read_text("utf-8")
    )
    return {entry["name"].removeprefix("all-targets-"): entry for entry in board["entries"]}


@pytest.mark.timeout(1800)
def test_every_target_is_built_and_says_what_ran_where(
    rows: list[dict[str, Any]], entries: dict[str, dict[str, Any]]
) -> None:
    assert set(entries) == {row["name"] for row in rows}
    for row in rows:
        entry, api = entries[row["name"]], unit_of(row).api
        assert entry["error"] is None
        assert entry["api"] == api
        assert entry["on_target"] == on_target(row), row["name"]
        assert entry["metrics"]["kld_mean"] < 0.05, row["name"]
        assert entry["sanity"]["tokenizer_equal"], row["name"]


@pytest.mark.timeout(1800)
def test_what_plan_says_of_the_size_is_what_is_built(
    shell: Shell, rows: list[dict[str, Any]], entries: dict[str, dict[str, Any]]
) -> None:
    plans = json.loads(shell("plan", TARGETS, *FEWER, *only(rows), "--json").stdout)
    assert len(plans) == len(rows)
    for plan in plans:
        name = plan["name"]
        files = (shell.folder / "packages" / name).rglob("*")
        sizes = [path.stat().st_size for path in files if path.suffix not in (".json", ".xml")]
        built = sum(size for size in sizes if size >= LARGE)
        backend = entries[name.removeprefix("all-targets-")]["backend"]
        assert plan["fit"]["weight_bytes"] == pytest.approx(built, rel=SLACK[backend]), name


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == EXAMPLE else pytest.mark.nightly)
        for name in different()
    ],
)
def test_every_recipe_builds_the_embedded_model(shell: Shell, name: str) -> None:
    path = RECIPES / f"{name}.yaml"
    words = (
        "--set",
        "evaluate.tokens=512",
        "--set",
        "calibrate.tokens=4096",
        "--set",
        "measure.new_tokens=8",
    )
    words += (
        ("--set", "evaluate.gates={}") if "vision" in name else ()
    )  # the embedded model does not see
    (build,) = shell.run(*EMBEDDED, *words, "--set", "measure.repetitions=1", recipe=path)
    folder = shell.folder / "packages" / path.stem
    manifest = package.read_manifest(folder)
    assert build["ok"]
    assert package.verify(folder) == []
    assert manifest.on_target == on_target(SHIPPED[name])
    assert (folder / "reference" / "top.npz").is_file()


@pytest.mark.timeout(1800)
def test_a_package_is_measured_on_its_device_without_the_original(
    shell: Shell, entries: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    folder, report = (
        shell.folder / "packages" / "all-targets-cpu-x86_64-llamacpp",
        tmp_path / "measured.json",
    )
    empty = {"PHIPIPE_CACHE": str(tmp_path / "cache")}
    done = shell("measure", folder, "--out", report, env=empty)
    assert "taking this machine for CPU (x86-64)" in done.stderr
    (entry,) = json.loads(report.read_text("utf-8"))["entries"]
    built = entries["cpu-x86_64-llamacpp"]["metrics"]
    assert entry["on_target"] == "true"
    assert (
        0.9 * built["kld_mean"] < entry["metrics"]["kld_mean"] <= 1.001 * built["kld_mean"]
    )  # a lower bound, and close
    assert entry["metrics"]["top1"] == pytest.approx(built["top1"], abs=1e-6)
    assert entry["metrics"]["ppl"] == pytest.approx(built["ppl"], rel=1e-5)
    assert entry["metrics"]["size_gib"] == built["size_gib"]
    assert "decode_tokens_per_s" in entry["metrics"]
    board = json.loads(shell("compare", folder, report, "--json").stdout)
    assert [e["reference"] for e in board["entries"]] == [True]  # it took the build's place
    assert "≥" in shell("compare", folder, report).stdout


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("row", "words"), ELSEWHERE.items(), ids=[unit_of(ROWS[name]).api for name in ELSEWHERE]
)
def test_a_machine_that_is_not_the_device_is_told_so(
    shell: Shell, entries: dict[str, dict[str, Any]], row: str, words: str
) -> None:
    done = shell("measure", shell.folder / "packages" / f"all-targets-{row}", expect=3)
    assert words in done.stderr
    assert "phipipe eval" in done.stderr


def test_a_recipe_is_checked_without_what_only_other_commands_need() -> None:
    code = (
        "import json, sys; from pathlib import Path; from phipipe.planning import targets; "
        f"targets.checked(Path({str(QUICKSTART)!r})); "
        "print(json.dumps([name for name in sys.modules if name.startswith('phipipe.')]))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8", check=True
    )
    loaded = set(json.loads(answer.stdout))
    assert "phipipe.backends.onnxruntime" in loaded
    others = {f"phipipe.backends.{name}" for name in backends.names()}
    assert loaded & others == {"phipipe.backends.onnxruntime"}
    rooms = {name.split(".")[1] for name in loaded}
    assert not rooms & {"package", "sandbox", "evaluate", "execution", "output"}
