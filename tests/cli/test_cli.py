"""Every command as a user meets it: exit codes, messages, hints. No toolchain is needed for any of
this."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from testing.places import QUICKSTART, RECIPES
from testing.shell import Run

from phipipe import backends, cli
from phipipe.cli import help
from phipipe.hub import take


def commands() -> list[str]:
    return [
        name for name in cli.cli.commands if name not in ("toolchain", "cache", "runs", "schedule")
    ]


@pytest.mark.parametrize(
    "words",
    [[name] for name in commands()] + [["toolchain", "install"], ["cache", "gc"], ["runs", "logs"]],
)
def test_every_command_has_help_with_an_example(run: Run, words: list[str]) -> None:
    code, out, _ = run(*words, "--help")
    assert code == 0
    assert "Example:" in out


def test_a_mistyped_command_is_guessed(run: Run) -> None:
    code, _, err = run("vaildate")
    assert code == 2
    assert "Did you mean `validate`?" in err


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_validates_plans_and_begins_with_its_command(
    run: Run, path: Path
) -> None:
    assert f"#   phipipe run recipes/{path.name}" in path.read_text("utf-8")
    assert run("validate", path)[0] == 0
    embedded = (
        "--set",
        "source={builtin: tiny-phi3}",
        "--set",
        "evaluate.gates={}",
    )  # some gates are on pictures
    code, out, _ = run("plan", path, *(embedded if "repo:" in path.read_text("utf-8") else ()))
    assert code == 0
    assert "will run" in out


def test_plan_shows_state_reason_disk_and_memory(run: Run) -> None:
    _, out, _ = run("plan", QUICKSTART)
    assert "quickstart: tiny-phi3 → int4 for CPU (x86-64), onnxruntime" in out
    assert "first time" in out
    assert "MiB" in out
    code, text, _ = run("plan", QUICKSTART, "--json")
    steps = {step["name"]: step for step in json.loads(text)[0]["steps"]}
    assert code == 0
    assert list(steps)[:4] == ["source", "text", "baseline", "convert"]
    assert steps["convert"]["memory_bytes"] > 0


def test_plan_changes_nothing(run: Run, own_cache: Path) -> None:
    run("plan", QUICKSTART)
    assert not list((own_cache / "objects").iterdir())
    assert not list((own_cache / "actions").iterdir())


@pytest.mark.parametrize(
    ("sets", "code", "words"),
    [
        (["precision=fp16"], 3, ["cannot run fp16", "fp32, int8, int4", "`torch`"]),
        (["device=intel-npu"], 3, ["does not run on Intel NPU"]),
        (["device=cpu-x86"], 3, ["unknown device", "did you mean `cpu-x86_64`?"]),
        (["backend=onnxruntim"], 2, ["unknown backend", "did you mean `onnxruntime`?"]),
        (["backend=mlx"], 2, ["unknown key `block_size`", "did you mean `group_size`?"]),
        (["precision=int5"], 2, ["int4", "int8"]),
        (["source={builtin: tiny-phi}"], 2, ["did you mean `tiny-phi3`?"]),
        (["source={path: nowhere}"], 8, ["nowhere", "no such folder"]),
        (["evaluate.text={file: nowhere.txt}"], 8, ["nowhere.txt", "does not exist"]),
        (["evaluate.text={file: .}"], 8, ["is a folder"]),
        (["quantize.block_sise=32"], 2, ["did you mean `block_size`?"]),
        (
            ["quantize={algorithm: k_quant, symmetric: true}"],
            2,
            ["k_quant always stores zero points"],
        ),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    run: Run, own_cache: Path, sets: list[str], code: int, words: list[str]
) -> None:
    found, out, err = run("run", QUICKSTART, *(part for text in sets for part in ("--set", text)))
    assert found == code, err
    assert not out
    for word in words:
        assert word in err
    assert not (own_cache / "objects").exists() or not list((own_cache / "objects").iterdir())


def test_a_target_error_points_into_the_recipe(run: Run, tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nsource: {builtin: tiny-phi3}\ndevice: cpu-x86_64\nprecision: fp16\n", "utf-8"
    )
    code, _, err = run("plan", recipe)
    assert code == 3
    assert f"{recipe}:4:12:" in err
    assert "               ^" in err


def spoiled(tmp_path: Path, spoil: Callable[[Path], None]) -> str:
    folder = tmp_path / "checkpoint"
    shutil.copytree(take.BUILTIN_MODELS["tiny-phi3"], folder)
    spoil(folder)
    return f"source={{path: {folder.as_posix()}}}"


def change(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | values), "utf-8")


@pytest.mark.parametrize(
    ("spoil", "code", "word"),
    [
        (lambda f: (f / "model.safetensors").unlink(), 8, "no weights"),
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), 8, "pickles"),
        (lambda f: (f / "model.safetensors").write_bytes(b"x" * 100), 8, "model.safetensors"),
        (
            lambda f: (f / "code.py").write_text("") or change(f, auto_map={"AutoModel": "code.X"}),
            8,
            "auto_map",
        ),
        (lambda f: change(f, architectures=["GPT2LMHeadModel"]), 3, "GPT2LMHeadModel"),
        (lambda f: change(f, architectures=["Phi3SmallForCausalLM"]), 3, "Phi-3-small"),
        (
            lambda f: change(
                f,
                rope_parameters={"rope_theta": 1e4},
                model_type="stablelm",
                architectures=["StableLmForCausalLM"],
            ),
            3,
            "transformers 5",
        ),
    ],
)
def test_an_unfit_checkpoint_is_refused(
    run: Run, tmp_path: Path, spoil: Callable[[Path], None], code: int, word: str
) -> None:
    found, _, err = run("run", QUICKSTART, "--set", spoiled(tmp_path, spoil))
    assert found == code, err
    assert word in err


def test_a_sliding_window_is_mended_on_a_copy_and_said(run: Run, tmp_path: Path) -> None:
    source = spoiled(tmp_path, lambda folder: change(folder, sliding_window=1023))
    code, out, err = run("plan", QUICKSTART, "--set", source)
    assert code == 0, err
    assert "fix-up F1" in out


def test_a_cache_that_cannot_be_written_is_said_with_the_way_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("PHIPIPE_CACHE", str(tmp_path / "file" / "cache"))
    code, _, err = run("run", QUICKSTART)
    assert code == 9
    assert "PHIPIPE_CACHE" in err


def test_validate_reports_all_files_and_all_problems(run: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: x\nname: y\nsource: {builtin: tiny-phi3}\n", "utf-8")
    worse = tmp_path / "worse.yaml"
    worse.write_text("name: X\nsorce: {}\nprecision: int3\n", "utf-8")
    code, out, err = run("validate", QUICKSTART, bad, worse)
    assert code == 2
    assert f"{QUICKSTART}: valid" in out
    for place in (f"{bad}:2:1:", f"{worse}:1:7:", f"{worse}:2:1:", f"{worse}:3:12:"):
        assert place in err
    rows = json.loads(run("validate", "--json", QUICKSTART, bad)[1])
    assert [row["ok"] for row in rows] == [True, False]


def test_init_writes_a_recipe_that_plans_and_never_overwrites(run: Run) -> None:
    assert run("init", "mine.yaml", "--precision", "int8")[0] == 0
    assert run("plan", "mine.yaml")[0] == 0
    code, _, err = run("init", "mine.yaml")
    assert code == 2
    assert "is there already" in err


def test_listings_are_text_and_json(run: Run) -> None:
    for words in (
        ["devices"],
        ["devices", "intel-npu"],
        ["backends"],
        ["backends", "onnxruntime"],
        ["doctor"],
    ):
        assert run(*words)[0] == 0
        assert json.loads(run(*words, "--json")[1])
    for words in (["toolchain", "ls"], ["cache", "ls"]):
        assert run(*words)[0] == 0
        json.loads(run(*words, "--json")[1])
    assert "block_size" in run("backends", "onnxruntime")[1]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["devices", "nope"], 3),
        (["backends", "nope"], 3),
        (["toolchain", "install", "nope"], 4),
        (["toolchain", "path", "torch"], 4),
        (["verify", "nope"], 8),
        (["eval", "nope"], 8),
        (["chat", "nope"], 8),
        (["run", "nope.yaml"], 2),
        (["run"], 2),
        (["run", "x.yaml", "--nope"], 2),
        (["cache", "gc"], 2),
    ],
)
def test_wrong_names_have_their_exit_code_and_no_traceback(
    run: Run, words: list[str], code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PHIPIPE_TOOLCHAINS", str(tmp_path / "none"))
    found, _, err = run(*words)
    assert found == code
    assert err
    assert "Traceback" not in err


def test_a_bug_ends_with_70_and_a_log(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(help, "settings_of_user", broken)
    code, _, err = run("doctor")
    assert code == 70
    assert "Traceback" not in err
    log = Path(err.split("report it with ")[1].strip())
    assert "ZeroDivisionError: on purpose" in log.read_text("utf-8")
    log.unlink()


def test_cache_commands_work_on_an_empty_cache(run: Run) -> None:
    assert "nothing yet" in run("cache", "ls")[1]
    assert "everything intact" in run("cache", "verify")[1]
    assert run("cache", "gc", "--budget", "0", "--dry-run")[1].startswith("would free 0 B")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(run: Run, shell: str) -> None:
    code, out, _ = run("completion", shell)
    assert code == 0
    assert "_PHIPIPE_COMPLETE" in out


def test_the_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "phipipe", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("phipipe, version ")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (
            ("chat", "a.yaml"),
            8,
            "error: `a.yaml` is a file, and a folder is meant\n  try: a package is a folder",
        ),
        (
            ("verify", "a.yaml"),
            8,
            "error: `a.yaml` is a file, and a folder is meant\n  try: a package is a folder",
        ),
        (
            ("run", "a.yaml", "--out", "a.yaml"),
            2,
            "--out: `a.yaml` is a file, and a folder is meant",
        ),
        (("eval", ""), 8, "error: a path is empty"),
        (("cache", "gc", "--budget", "abc"), 2, "'abc' is not a valid number of GiB"),
        (("run", "a.yaml", "--jobs", "two"), 2, "'two' is not a valid whole number"),
        (("backends", "show", "onnx"), 3, "unknown backend `onnx`; did you mean `onnxruntime`?"),
        (("toolchain", "install", "llama"), 4, "did you mean `llamacpp`?"),
        (("runs", "show", "lates"), 8, "did you mean `latest`?"),
        (("devices", "show", "cpu"), 3, "did you mean `cpu-arm64` or `cpu-x86_64`?"),
    ],
)
def test_a_slip_is_named_in_the_users_words(
    run: Run, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    shutil.copy(QUICKSTART, tmp_path / "a.yaml")
    found, out, err = run(*words)
    assert (found, out) == (code, ""), err
    assert said in err


def test_a_recipe_of_the_embedded_model_has_nothing_to_pin(run: Run) -> None:
    assert run("pin", QUICKSTART)[1].endswith("it names no repository of a hub\n")


def test_a_metric_and_a_device_are_guessed_by_how_they_begin(run: Run) -> None:
    words = (
        "validate",
        QUICKSTART,
        "--set",
        "device=cpu",
        "--set",
        "evaluate.gates={kld: {max: 1}}",
    )
    code, _, err = run(*words)
    assert code == 2
    assert "did you mean `kld_mean`, `kld_run`, `kld_median`, `kld_p99` or `kld_max`?" in err
    assert "did you mean `cpu-arm64` or `cpu-x86_64`?" in run(*words[:4])[2]


def test_python_itself_lacks_what_a_toolchain_has(
    run: Run, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PHIPIPE_TOOLCHAIN", "current")
    # side by side with the conversion, the baseline would fail, sometimes first
    code, out, err = run("run", QUICKSTART, "--jobs", "1")
    assert (code, out) == (4, "")
    assert "this Python has not what toolchain `onnxruntime` needs" in err
    assert "pip install 'phipipe[onnxruntime]'" in err


def test_options_are_described_without_pythons_own_words(run: Run) -> None:
    for name in backends.names():
        code, out, err = run("backends", "show", name)
        assert code == 0, err
        assert not re.findall(r"typing|Optional|Literal|NoneType|<class|collections", out)


def test_the_command_to_start_from_takes_a_device_file_as_it_is_called(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "my-board.yaml").write_text(
        "title: Mine\nunits: [{api: cpu, precisions: [int4]}]\nsources: [https://vendor.example/x]\n"
    )
    (line,) = re.findall("start from +phipipe (.*)", run("devices", "show", "my-board.yaml")[1])
    code, _, err = run(*line.split())
    assert code == 0, err
