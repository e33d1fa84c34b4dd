"""The fidelity board on the embedded model: five runtimes, every precision, from one download, by
one command."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing.places import RECIPES
from testing.shell import Shell

from phipipe.package import package

BOARD = RECIPES / "board.yaml"
FEWER = (
    *("--set", "evaluate.tokens=2048"),
    *("--set", "calibrate.tokens=4096"),
    *("--set", "measure.repetitions=2"),
)
KLD_MEAN = {"fp32": 1e-6, "fp16": 1e-6, "int8": 1e-4, "int4": 5e-3}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, toolchains: Path) -> Shell:
    return Shell(tmp_path_factory.mktemp("board"), toolchains)


@pytest.fixture(scope="module")
def said(shell: Shell) -> str:
    """What the run prints."""
    return str(shell("run", BOARD, *FEWER).stdout)


@pytest.fixture(scope="module")
def entries(shell: Shell, said: str) -> list[dict[str, Any]]:
    board = json.loads((shell.folder / "packages" / "board" / "board.json").read_text("utf-8"))
    return list(board["entries"])


def test_every_cell_is_measured(entries: list[dict[str, Any]]) -> None:
    assert len(entries) == 19
    for entry in entries:
        assert entry["error"] is None
        figures = {
            "kld_mean",
            "top1",
            "ppl",
            "size_gib",
            "bits_per_weight",
            "load_s",
            "ttft_s",
            "prefill_tokens_per_s",
        }
        figures |= {"decode_tokens_per_s", "peak_memory_gib"}
        assert figures <= entry["metrics"].keys(), entry["name"]
        assert entry["on_target"] == ("false" if entry["backend"] == "mlx" else "true")


def test_every_runtime_is_as_close_as_its_precision_allows(entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        assert entry["metrics"]["kld_mean"] <= KLD_MEAN[entry["precision"]], entry["name"]
        assert entry["sanity"]["tokenizer_equal"], entry["name"]
        assert entry["sanity"]["chat_template_equal"], entry["name"]
    for backend in {entry["backend"] for entry in entries}:
        mine = {e["precision"]: e["metrics"] for e in entries if e["backend"] == backend}
        assert mine["int4"]["kld_mean"] > mine["int8"]["kld_mean"] > mine["fp32"]["kld_mean"]
        assert mine["int4"]["size_gib"] < mine["int8"]["size_gib"] < mine["fp32"]["size_gib"]


def test_the_run_ends_in_a_table_an_answer_and_a_page(said: str, shell: Shell) -> None:
    assert len(re.findall(r"^[* ] board-", said, re.MULTILINE)) == 19
    assert "CPU (x86-64): ship board-" in said
    page = (shell.folder / "packages" / "board" / "board.html").read_text("utf-8")
    assert not re.search(r"""<(?:script|link|img)[^>]*(?:src|href)=["']?https?:""", page), (
        "it opens offline"
    )
    assert str(shell.folder) not in page


def test_a_second_run_is_cached_whole_and_prints_the_same(said: str, shell: Shell) -> None:
    again = shell("run", BOARD, *FEWER).stdout
    assert again.rstrip().endswith("everything was cached, nothing had to be done")
    assert [line for line in again.splitlines() if "board-" in line][:19] == [
        line for line in said.splitlines() if "board-" in line
    ][:19]


def test_one_more_variant_costs_its_own_steps_alone(said: str, shell: Shell) -> None:
    recipe = shell.folder / "more.yaml"
    recipe.write_text(
        BOARD.read_text("utf-8")
        + "  - {backend: llamacpp, precision: int4, name: more, quantize: {type: Q5_K_M}}\n"
    )
    builds = shell.run(*FEWER, recipe=recipe)
    made = {
        (build["name"], step["name"])
        for build in builds
        for step in build["steps"]
        if not step["cached"]
    }
    assert {name for name, _ in made} == {builds[-1]["name"]}
    assert {step for _, step in made} <= {
        *("quantize", "evaluate", "run-evaluate", "measure", "gates", "package")
    }


def fidelity(line: str) -> str:
    """The divergence in a row of the table."""
    found = re.search(r"\S+ ± \S+", line)
    assert found
    return found[0]


def test_packages_are_compared_as_the_run_did(said: str, shell: Shell) -> None:
    packages = [
        shell.folder / "packages" / f"board-{name}-int4" for name in ("llamacpp", "openvino")
    ]
    kept = [
        fidelity(line)
        for line in said.splitlines()
        if re.search("^[* ] board-(llamacpp|openvino)-int4 ", line)
    ]
    shown = shell("compare", *packages).stdout
    assert [fidelity(line) for line in shown.splitlines() if "±" in line] == kept
    assert len(kept) == 2
    whole = json.loads(shell("compare", shell.folder / "packages", "--json").stdout)
    assert (
        len(whole["entries"])
        == len(list((shell.folder / "packages").glob("*/manifest.json")))
        >= 19
    )


def test_other_tokens_do_not_compare(said: str, shell: Shell) -> None:
    words = (
        "--only",
        "board-torch-fp32",
        "--set",
        "evaluate.tokens=1024",
        "--set",
        "measure.repetitions=2",
    )
    shell("run", BOARD, *words, "--out", "other")
    packages = [
        shell.folder / "packages" / "board-torch-int8",
        shell.folder / "other" / "board-torch-fp32",
    ]
    assert "number of tokens differs" in shell("compare", *packages, expect=8).stderr


def snippet(folder: Path) -> str:
    """The program in the package's card."""
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text("utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_the_cards_programs_run_the_packages_without_phipipe(
    said: str, shell: Shell, python_of: Callable[[str], Path]
) -> None:
    # No parameters: a run of one backend's tests by `-k` would build the whole board for some.
    for backend, precision in itertools.product(
        ("llamacpp", "openvino", "mlx", "torch"), ("int4", "fp16")
    ):
        folder = shell.folder / "packages" / f"board-{backend}-{precision}"
        command = [python_of(backend), "-I", "-c", snippet(folder), folder]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{folder.name}: {done.stderr[-2000:]}"
        assert re.search(
            r"\b(?:Once upon a time|There once) (?:there )?was a .*\bfox\b.*\.\n", done.stdout
        ), folder.name
        assert package.verify(folder) == []


def test_a_package_made_with_a_calibration_text_says_so(said: str, shell: Shell) -> None:
    options = "quantize={type: IQ3_XXS, imatrix: true}"
    words = ("--only", "board-llamacpp-int4", "--set", options, "--set", "calibrate.tokens=4096")
    (build,) = shell.run(*FEWER, *words, "--out", "calibrated", recipe=BOARD)
    manifest = package.read_manifest(shell.folder / "calibrated" / "board-llamacpp-int4")
    assert manifest.recipe.as_json()["calibrate"]["tokens"] == 4096
    assert {"calibration-text", "calibration", "imatrix"} <= manifest.steps.keys()
    assert build["evaluation"]["metrics"]["bits_per_weight"] < 4.6


def test_an_npu_package_was_tried_through_the_npus_pipeline(said: str, shell: Shell) -> None:
    words = (
        "--set",
        "backend=openvino",
        "--set",
        "device=intel-npu",
        "--set",
        "quantize={}",
        "--out",
        "npu",
    )
    (build,) = shell.run(*words)
    folder = shell.folder / "npu" / "quickstart"
    manifest = package.read_manifest(folder)
    assert manifest.emulation is not None
    assert manifest.on_target == "emulated"
    assert manifest.emulation["gap_nats"] < 0.01
    assert manifest.emulation["prompt_length"] == manifest.recipe.quantize["prompt_length"]
    assert manifest.recipe.quantize["symmetric"]
    assert '"NPU", lengths' in snippet(folder)
    assert build["ok"]


@pytest.mark.parametrize(
    ("precision", "limit"),
    [("int8", 1e-3), pytest.param("int4", 1e-2, marks=pytest.mark.nightly)],  # of targets, too
)
def test_a_qualcomm_package_was_decoded_on_the_emulator(
    said: str, shell: Shell, precision: str, limit: float
) -> None:
    words = (
        "--set",
        "backend=qnn",
        "--set",
        "device=snapdragon-x-npu",
        "--set",
        f"precision={precision}",
    )
    words += (
        "--set",
        "quantize={}",
        "--set",
        "calibrate.tokens=4096",
        "--set",
        "evaluate.tokens=512",
    )
    words += (
        "--set",
        "measure={prompt_tokens: 64, new_tokens: 4, repetitions: 1}",
        "--out",
        f"qnn-{precision}",
    )
    (build,) = shell.run(*words)
    folder = shell.folder / f"qnn-{precision}" / "quickstart"
    manifest = package.read_manifest(folder)
    assert (manifest.on_target, manifest.twin) == ("emulated", "compile-apart")
    assert manifest.emulation is not None
    assert manifest.emulation["decode_kld_mean"] < limit
    assert build["evaluation"]["metrics"]["kld_mean"] < limit
    assert {path.name for path in folder.glob("*.bin")} == {
        "decoder_0_prompt_qnn.bin",
        "head_prompt_qnn.bin",
    }
    assert "its twin" in (folder / "README.md").read_text("utf-8")
    assert (
        "run this package on the device" in shell("chat", folder, "--prompt", "Hi", expect=5).stderr
    )
