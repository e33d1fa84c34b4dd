"""The whole path on the embedded model: real toolchains, real weights, one cache for the
session."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from testing import hostile_packages
from testing.places import QUICKSTART
from testing.shell import Shell

from phipipe.evaluate import papers
from phipipe.hub import take
from phipipe.package import manifest as manifests
from phipipe.package import package


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, toolchains: Path) -> Shell:
    return Shell(tmp_path_factory.mktemp("quickstart"), toolchains)


@pytest.fixture(scope="module")
def first(shell: Shell) -> dict[str, Any]:
    """The first run's own account of itself."""
    (build,) = shell.run()
    return build


def steps(build: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in build["steps"]}


def stored(shell: Shell, build: Mapping[str, Any], step: str) -> Path:
    return shell.cache / "objects" / str(steps(build)[step]["digest"])


@pytest.mark.always
def test_the_first_run_does_real_work_and_passes_its_gates(first: dict[str, Any]) -> None:
    assert first["ok"]
    assert not any(step["cached"] for step in first["steps"])
    metrics = first["evaluation"]["metrics"]
    assert 1e-3 < metrics["kld_mean"] < 0.05
    assert 0.85 < metrics["top1"] < 1
    assert metrics["ppl_ratio"] == pytest.approx(1, abs=0.05)
    assert first["evaluation"]["sanity"]["tokenizer_equal"]
    assert first["evaluation"]["sanity"]["chat_template_equal"]


def test_the_second_run_is_cached_whole(shell: Shell, first: dict[str, Any]) -> None:
    (again,) = shell.run()
    assert all(step["cached"] for step in again["steps"])
    assert [s["digest"] for s in again["steps"]] == [s["digest"] for s in first["steps"]]
    assert "everything was cached" in shell("run", QUICKSTART).stdout


def test_a_cached_run_stays_light(shell: Shell, first: dict[str, Any]) -> None:
    code = (
        "import sys\nfrom phipipe.cli import main\nsys.argv = ['phipipe', 'run', "
        "sys.argv[1]]\ntry:\n    main()\n"
    )
    code += (
        "finally:\n    print(sorted({'torch', 'numpy', 'onnxruntime', 'transformers'} & "
        "set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(QUICKSTART)],
        env=shell._env, cwd=shell.folder, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_package_is_complete_and_says_how_it_was_made(
    shell: Shell, first: dict[str, Any]
) -> None:
    folder = shell.folder / "packages" / "quickstart"
    assert package.verify(folder) == []
    manifest = package.read_manifest(folder)
    names = {entry.path for entry in manifest.files}
    assert {
        "model.onnx",
        "model.onnx.data",
        "genai_config.json",
        "tokenizer.json",
        "README.md",
        "LICENSE",
    } <= names
    assert manifest.steps["quantize"].tools["onnxruntime-genai"]
    assert str(shell.folder) not in (folder / "manifest.json").read_text("utf-8")


def test_the_package_runs_in_onnxruntime_genai_without_phipipe(
    shell: Shell, first: dict[str, Any], python_of: Callable[[str], Path]
) -> None:
    code = """
import json, sys
import onnxruntime_genai as genai
model = genai.Model(sys.argv[1])
tokenizer = genai.Tokenizer(model)
chat = json.dumps([{"role": "user", "content": "Tell me a story."}])
prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)
generator = genai.Generator(model, genai.GeneratorParams(model))
generator.append_tokens(tokenizer.encode(prompt))
tokens = []
while not generator.is_done() and len(tokens) < 40:
    generator.generate_next_token()
    tokens.append(int(generator.get_next_tokens()[0]))
print(tokenizer.decode(tokens))
"""
    folder = shell.folder / "packages" / "quickstart"
    done = subprocess.run(
        [python_of("onnxruntime"), "-c", code, folder],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
    )
    assert len(done.stdout.split()) > 10


def test_the_recipe_in_the_package_builds_the_same_artifact(
    shell: Shell, first: dict[str, Any]
) -> None:
    (again,) = shell.run(
        "--out", "elsewhere", recipe=shell.folder / "packages" / "quickstart" / "recipe.yaml"
    )
    assert steps(again)["quantize"]["cached"]
    assert steps(again)["quantize"]["digest"] == steps(first)["quantize"]["digest"]


def test_a_deleted_object_is_noticed_and_built_again(shell: Shell, first: dict[str, Any]) -> None:
    gone = stored(shell, first, "convert")
    unlock(gone)
    shutil.rmtree(gone)
    (again,) = shell.run()
    assert not steps(again)["convert"]["cached"]
    assert steps(again)["convert"]["digest"] == steps(first)["convert"]["digest"]


@pytest.mark.parametrize("keep_times", [False, True])
def test_a_flipped_bit_never_leaves_the_cache(
    shell: Shell, first: dict[str, Any], keep_times: bool
) -> None:
    path = stored(shell, first, "package") / "model.onnx.data"
    status = path.stat()
    path.chmod(0o644)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    if keep_times:  # as a failing disk would do it
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    target = shell.folder / f"spoiled-{keep_times}"
    done = shell("run", QUICKSTART, "--out", target)
    assert "damaged" in done.stderr
    assert package.verify(target / "quickstart") == []
    assert (target / "quickstart" / "model.onnx.data").read_bytes() == good(shell).read_bytes()


def good(shell: Shell) -> Path:
    return shell.folder / "packages" / "quickstart" / "model.onnx.data"


def unlock(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_fidelity_orders_the_precisions(shell: Shell, first: dict[str, Any]) -> None:
    (int8,) = shell.run("--set", "precision=int8", "--out", "int8")
    (fp32,) = shell.run("--set", "precision=fp32", "--set", "quantize={}", "--out", "fp32")
    kld = [build["evaluation"]["metrics"]["kld_mean"] for build in (first, int8, fp32)]
    assert kld[0] > 3 * kld[1] > 3 * kld[2]
    assert kld[2] <= 1e-6
    assert steps(int8)["convert"]["cached"], "converted once, quantized many times"
    assert steps(int8)["baseline"]["cached"]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_pytorch_checkpoint_is_an_output_too(shell: Shell, precision: str) -> None:
    words = (
        "--set",
        "backend=torch",
        "--set",
        f"precision={precision}",
        "--set",
        "quantize={}",
        "--out",
        f"torch-{precision}",
    )
    (build,) = shell.run(*words)
    assert build["evaluation"]["metrics"]["kld_mean"] <= 1e-6
    assert package.verify(shell.folder / f"torch-{precision}" / "quickstart") == []


def test_a_failing_gate_packages_nothing(shell: Shell, first: dict[str, Any]) -> None:
    words = ("--set", "evaluate.gates.top1={min: 0.9999}", "--out", "gated")
    done = shell("run", QUICKSTART, *words, expect=7)
    assert "`top1`" in done.stderr
    assert "0.9999" in done.stderr
    assert not (shell.folder / "gated").exists()


def test_one_failing_variant_does_not_stop_the_others(shell: Shell, first: dict[str, Any]) -> None:
    recipe = shell.folder / "two.yaml"
    text = (
        QUICKSTART.read_text("utf-8")
        .replace("name: quickstart", "name: two")
        .replace("0.85", "0.98")
    )
    recipe.write_text(text + "matrix:\n  - {precision: int4}\n  - {precision: int8}\n", "utf-8")
    done = shell("run", recipe, "--out", "two", expect=7)
    assert "two-onnxruntime-int4 failed:" in done.stderr
    rows = [line for line in done.stdout.splitlines() if "two-onnxruntime-" in line]
    assert any(line.startswith("* two-onnxruntime-int8") for line in rows)
    assert any("two-onnxruntime-int4" in line and "top1" in line for line in rows), (
        "the failed one has a row, too"
    )
    assert {path.name for path in (shell.folder / "two").iterdir()} == {
        "two-onnxruntime-int8",
        "two",
    }


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(shell: Shell) -> None:
    environment = {**shell._env, "PHIPIPE_CACHE": str(shell.folder / "stopped")}
    command = [sys.executable, "-m", "phipipe", "run", str(QUICKSTART)]
    process = subprocess.Popen(
        command, env=environment, cwd=shell.folder, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.strip().startswith("baseline"):
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "what was finished is kept" in said
    shown = shell("plan", QUICKSTART, env={"PHIPIPE_CACHE": str(shell.folder / "stopped")}).stdout
    assert "source        cached" in shown


def test_plan_says_what_changed(shell: Shell, first: dict[str, Any]) -> None:
    shown = shell("plan", QUICKSTART, "--set", "quantize.block_size=64").stdout
    assert "block_size 32 → 64" in shown
    assert "cached" in shown


def test_a_package_can_be_evaluated_again(shell: Shell, first: dict[str, Any]) -> None:
    build = json.loads(
        shell("eval", shell.folder / "packages" / "quickstart", "--tokens", "1024", "--json").stdout
    )
    assert build["evaluation"]["positions"] == 1022
    assert build["evaluation"]["metrics"]["kld_mean"] > 1e-3


def test_a_package_answers(shell: Shell, first: dict[str, Any]) -> None:
    done = shell("chat", shell.folder / "packages" / "quickstart", "--prompt", "Tell me a story.")
    assert len(done.stdout.split()) > 10


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ range(10000000000)|list|length }}", "the package's chat template"),
        ("{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}", "crash (SIGSEGV)"),
        ("{{ 'A'*10000000000 }}", "the package's chat template"),
        ("{{ " + "(" * 30_000, "calls itself without end"),
        ("{{ " + "(" * 90_000, "at most 65536 make sense"),
    ],
    ids=("range", "macro", "text", "deep", "long"),
)
def test_a_packages_template_that_attacks_ends_in_one_sentence(
    shell: Shell, first: dict[str, Any], tmp_path: Path, template: str, words: str
) -> None:
    folder = tmp_path / "package"
    shutil.copytree(shell.folder / "packages" / "quickstart", folder)
    unlock(folder)
    described = manifests.read_manifest(folder)
    (folder / "chat_template.jinja").write_text(template, "utf-8")
    for name in (manifests.SUMS, manifests.NAME, *papers.ATTACHED):
        (folder / name).unlink(missing_ok=True)
    manifests.seal(folder, described.as_json())
    said = shell("chat", folder, "--prompt", "Hi", expect=8)
    assert said.stdout == ""
    assert words in said.stderr
    assert len(said.stderr.splitlines()) <= 2
    assert "Traceback" not in said.stderr


def test_a_checkpoints_template_that_attacks_ends_the_run_in_one_sentence(
    shell: Shell, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(
        take.BUILTIN_MODELS["tiny-phi3"],
        source,
        ignore=shutil.ignore_patterns("LICENSE", "README.md"),
    )
    settings = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    settings["chat_template"] = "{{ 'A'*10000000000 }}"
    (source / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    recipe = tmp_path / "recipe.yaml"
    text = QUICKSTART.read_text("utf-8").replace(
        "{builtin: tiny-phi3}", json.dumps({"path": str(source)})
    )
    recipe.write_text(text, "utf-8")
    said = shell("run", recipe, expect=8)
    assert "the checkpoint's chat template takes more than 256 MiB of memory" in said.stderr
    assert not (shell.folder / "packages" / "recipe").exists()


def test_verify_names_what_changed(shell: Shell, first: dict[str, Any]) -> None:
    copy = shell.folder / "copy"
    shutil.copytree(shell.folder / "packages" / "quickstart", copy)
    unlock(copy)
    (copy / "added.txt").write_text("x")
    assert "added.txt" in shell("verify", copy, expect=8).stdout


OPTIONS = "genai model/decoder/session_options"


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("hook", ["custom_ops_library", "enable_profiling"])
def test_no_command_runs_a_hook_that_the_runtime_itself_would(
    shell: Shell, first: dict[str, Any], python_of: Callable[[str], Path], tmp_path: Path, hook: str
) -> None:
    """The runtime alone leaves something behind (so the hook is a real one); phipipe's commands
    leave nothing."""
    canary = tmp_path / "canary"
    (edit,) = (edit for edit in hostile_packages.edits(canary) if edit.name == f"{OPTIONS}/{hook}")
    folder = shutil.copytree(shell.folder / "packages" / "quickstart", tmp_path / "package")
    edit.apply(folder)
    source = tmp_path / "ops.c"
    source.write_text(
        f"#include <stdio.h>\n__attribute__((constructor)) void f(void) {{ "
        f'fclose(fopen("{canary}/ran", "w")); }}\n'
    )
    subprocess.run(["cc", "-shared", "-fPIC", "-o", folder / "libops.so", source], check=True)
    hostile_packages.sealed(folder)
    for words in (
        ("chat", folder, "--prompt", "hi"),
        *((name, folder) for name in ("eval", "measure", "verify")),
    ):
        shell(*words, expect=8)
    shell("compare", folder, expect=8)
    assert not list(canary.iterdir())
    alone = "import sys, os; os.chdir(sys.argv[1]); import onnxruntime_genai as g; g.Model('.')"
    subprocess.run(
        [python_of("onnxruntime"), "-c", alone, folder], check=False, capture_output=True
    )
    assert list(canary.iterdir())
