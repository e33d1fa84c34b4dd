"""Exports: whole or not at all, nothing overwritten, and installed where the app looks."""

from __future__ import annotations

import json
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from testing import app_packages
from testing.shell import Run

import phipipe
from phipipe import backends
from phipipe.errors import (
    PhipipeError,
    RecipeError,
    SourceError,
    StepFailed,
    StoreError,
    TargetError,
)
from phipipe.package import package
from phipipe.package.export import Source, check, install, write
from phipipe.planning import preparation
from phipipe.recipe import loading
from phipipe.store import exports

QUICK = "name: one\nsource: {builtin: tiny-phi3}\ndevice: cpu-x86_64\nprecision: int4\n"


def opened(folder: Path) -> Source:
    """The package in ``folder``, for an export."""
    return Source.of(folder, package.open_(folder))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Packages by backend, which no test may change."""
    root = tmp_path_factory.mktemp("packages")
    return {name: app_packages.written(root / name, name) for name in app_packages.MORE}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder of this test's own."""
    own = tmp_path / "home"
    own.mkdir()
    monkeypatch.setenv("HOME", str(own))
    monkeypatch.setenv("USERPROFILE", str(own))
    return own


def tree(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


# -- the folder


def test_a_second_export_does_nothing(made: dict[str, Path], tmp_path: Path) -> None:
    source, target = opened(made["openvino"]), tmp_path / "out"
    first = write(source, "ovms", target)
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    again = write(source, "ovms", target)
    assert (first.written, again.written) == (True, False)
    assert first.files == again.files
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before


def test_no_file_is_a_link_and_none_is_shared_with_the_package(
    made: dict[str, Path], tmp_path: Path
) -> None:
    write(opened(made["mlx"]), "mlx-server", tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_symlink()
        assert path.is_dir() or path.stat().st_nlink == 1
        assert path.is_dir() or path.stat().st_mode & stat.S_IWUSR


def test_what_is_something_else_is_never_replaced(made: dict[str, Path], tmp_path: Path) -> None:
    source, target = opened(made["llamacpp"]), tmp_path / "out"
    target.mkdir()
    (target / "letter.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(StoreError) as caught:
            write(source, "ollama", target, force=force)
        assert ("letter.txt" in caught.value.message) is force
    assert tree(target) == {"letter.txt": b"mine"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match="no folder"):
        write(source, "ollama", tmp_path / "file", force=True)


def test_an_earlier_export_is_replaced_if_that_is_said(
    made: dict[str, Path], tmp_path: Path
) -> None:
    source, target = opened(made["llamacpp"]), tmp_path / "out"
    write(source, "ollama", target)
    whole = tree(target)
    (target / "model.gguf").write_bytes(b"an older one")
    with pytest.raises(StoreError, match="holds something else"):
        write(source, "ollama", target)
    assert write(source, "ollama", target, force=True).written
    assert tree(target) == whole


def test_what_the_app_left_is_no_change(made: dict[str, Path], tmp_path: Path) -> None:
    source, target = opened(made["litert"]), tmp_path / "out"
    write(source, "litert-lm", target)
    (target / "model.litertlm_1_2.xnnpack_cache").write_bytes(b"x")
    assert not write(source, "litert-lm", target).written


def test_the_package_itself_is_no_place(made: dict[str, Path], tmp_path: Path) -> None:
    before = tree(made["mlx"])
    for target in (made["mlx"], made["mlx"] / "inner"):
        with pytest.raises(StoreError):
            write(opened(made["mlx"]), "mlx-server", target, force=True)
    assert tree(made["mlx"]) == before


def test_an_export_that_fails_leaves_nothing(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied: list[Path] = []

    def copy(source: Path, target: Path) -> None:
        copied.append(target)
        if len(copied) == 2:
            raise OSError(28, "No space left on device")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(source.read_bytes())

    monkeypatch.setattr(exports, "copy_to", copy)
    with pytest.raises(StoreError):
        write(opened(made["mlx"]), "mlx-server", tmp_path / "out")
    assert len(copied) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_changed_package_is_not_exported(tmp_path: Path) -> None:
    folder = app_packages.written(tmp_path / "own", "llamacpp")
    (folder / "Modelfile").write_bytes(app_packages.MODELFILE + b"\n")
    with pytest.raises(SourceError, match="not as it was packaged"):
        opened(folder)


# -- installed


def test_lm_studio_finds_it_in_its_models_folder(made: dict[str, Path], home: Path) -> None:
    source = opened(made["llamacpp"])
    with pytest.raises(TargetError, match="LM Studio is not installed"):
        install(source, "lm-studio")
    (home / ".lmstudio").mkdir()
    placed = install(source, "lm-studio").folder
    assert placed == home / ".lmstudio" / "models" / "phipipe" / "small"
    assert (placed / "small.gguf").is_file()


def test_lm_studios_settings_and_pointer_may_move_that(
    made: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    moved, models = tmp_path / "moved", tmp_path / "models"
    moved.mkdir()
    (home / ".lmstudio-home-pointer").write_text(f"{moved}\n", "utf-8")
    (moved / "settings.json").write_text(json.dumps({"downloadsFolder": str(models)}), "utf-8")
    placed = install(opened(made["mlx"]), "lm-studio").folder
    assert placed == models / "phipipe" / "small"
    (placed / "config.json").write_text("{}")
    with pytest.raises(StoreError, match="holds something else"):
        install(opened(made["mlx"]), "lm-studio")
    assert install(opened(made["mlx"]), "lm-studio", force=True).written


def test_foundry_local_finds_it_in_its_cache(
    made: dict[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(home))
    source = opened(made["onnxruntime"])
    with pytest.raises(TargetError, match="Foundry Local is not installed"):
        install(source, "foundry-local")
    cache = home / ".foundry" / "cache" / "models"
    cache.mkdir(parents=True)
    placed = install(source, "foundry-local").folder
    assert placed == cache / "phipipe" / "small"
    assert {"inference_model.json", "genai_config.json"} <= set(tree(placed))


posix = pytest.mark.skipif(os.name == "nt", reason="the stand-in for the command is a script")


def command(folder: Path, name: str, body: str) -> None:
    """A program ``name`` in ``folder`` that notes its words in `NAME.log` and does ``body``."""
    script = folder / name
    log = folder / f"{name}.log"
    script.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        f"with open({str(log)!r}, 'a') as log: print(*sys.argv[1:], file=log)\n{body}\n",
        "utf-8",
    )
    script.chmod(0o755)


@posix
def test_foundry_locals_command_tells_where_its_cache_is(
    made: dict[str, Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "a cache"
    cache.mkdir()
    command(home, "foundry", f"print('Cache directory path: {cache}')")
    monkeypatch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
    placed = install(opened(made["onnxruntime"]), "foundry-local").folder
    assert placed == cache / "phipipe" / "small"


@posix
def test_ollama_takes_the_model_in_by_its_own_command(
    made: dict[str, Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "kept = pathlib.Path(__file__).with_suffix('.taken')\n"
        "if sys.argv[1] == 'show': sys.exit(0 if kept.exists() else 1)\n"
        "text = pathlib.Path(sys.argv[-1]).read_text('utf-8')\n"
        "(first,) = [line for line in text.splitlines() if line.startswith('FROM ')]\n"
        "assert pathlib.Path(first[5:]).is_file() and pathlib.Path(first[5:]).is_absolute()\n"
        "kept.write_text(text, 'utf-8')"
    )
    command(home, "ollama", body)
    monkeypatch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
    source = opened(made["llamacpp"])
    said = install(source, "ollama")
    assert said.folder is None
    assert said.installed == "Ollama has it as `small`: ollama run small"
    assert 'LICENSE """MIT' in (home / "ollama.taken").read_text("utf-8")
    with pytest.raises(StoreError, match="Ollama has a model `small` already"):
        install(source, "ollama")
    assert install(source, "ollama", force=True).installed
    created = [w for w in (home / "ollama.log").read_text().splitlines() if w.startswith("create")]
    assert len(created) == 2


@posix
def test_what_ollama_says_against_it_is_told(
    made: dict[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command(home, "ollama", "sys.exit('Error: could not connect to ollama server')")
    monkeypatch.setenv("PATH", f"{home}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(StepFailed, match="could not connect to ollama server"):
        install(opened(made["llamacpp"]), "ollama")


def test_without_ollama_that_is_what_is_said(
    made: dict[str, Path], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(TargetError, match="Ollama is not installed"):
        install(opened(made["llamacpp"]), "ollama")


def test_an_app_without_a_place_here_says_so_before_anything_is_written(
    made: dict[str, Path],
) -> None:
    with pytest.raises(TargetError, match="has no place on this machine"):
        check(opened(made["llamacpp"]), ["docker"], installs=True)


# -- the command line and Python


def test_apps_are_listed_and_those_that_fit_a_package_say_how(
    made: dict[str, Path], run: Run
) -> None:
    code, out, _ = run("apps", "--json")
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == 10
    assert {row["fits"] for row in rows} == {None}
    code, out, _ = run("apps", str(made["llamacpp"]), "--json")
    fits = {row["app"]: row for row in json.loads(out) if row["fits"]}
    assert set(fits) == {"ollama", "docker", "lm-studio", "llama-server"}
    assert fits["ollama"]["commands"][0] == "ollama create small -f Modelfile"
    code, out, _ = run("apps", str(made["llamacpp"]))
    assert code == 0
    assert "  ollama create small -f Modelfile" in out.splitlines()
    assert "OpenVINO Model Server opens packages of `openvino`" in out


def test_export_writes_a_folder_for_each_app(
    made: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    package, out = str(made["llamacpp"]), tmp_path / "out"
    words = ("export", package, "--for", "ollama", "--for", "docker", "--to", str(out), "--json")
    code, said, _ = run(*words)
    rows = json.loads(said)
    assert code == 0
    assert [Path(row["folder"]) for row in rows] == [out / "ollama", out / "docker"]
    assert all(set(tree(Path(row["folder"]))) == set(row["files"]) for row in rows)
    code, said, _ = run("export", package, "--for", "ollama", "--to", str(out / "ollama"))
    assert "(there already)" in said
    assert "  ollama run small" in said.splitlines()


@pytest.mark.parametrize(
    ("words", "code", "reason"),
    [
        (("--for", "ovms", "--to", "out"), 3, "build it with `backend: openvino`"),
        (("--for", "nothing", "--to", "out"), 3, "there is no app `nothing`"),
        (("--for", "ollama"), 2, "nowhere to export to"),
        (("--to", "out"), 2, "Missing option '--for'"),
        (("--for", "docker", "--install"), 3, "has no place on this machine"),
        (("--for", "docker", "--for", "ovms", "--to", "out"), 3, "OpenVINO Model Server opens"),
    ],
)
def test_export_refuses_before_it_writes(
    words: tuple[str, ...],
    code: int,
    reason: str,
    made: dict[str, Path],
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    got, _, said = run("export", str(made["llamacpp"]), *words)
    assert (got, reason in said) == (code, True)
    assert list(tmp_path.iterdir()) == []


def test_python_exports_as_the_command_does(made: dict[str, Path], tmp_path: Path) -> None:
    package = phipipe.Package.open(made["litert"])
    (done,) = package.export("litert-lm", tmp_path / "out")
    assert done.folder == tmp_path / "out"
    assert sorted(tree(tmp_path / "out")) == done.files == ["LICENSE", "model.litertlm"]
    assert {app.app for app in phipipe.apps(made["litert"]) if app.fits} == {
        "litert-lm",
        "ai-edge-gallery",
    }
    with pytest.raises(RecipeError, match="no app is named"):
        package.export([], tmp_path / "other")


# -- recipes


def planned(tmp_path: Path, *lines: str) -> Any:
    path = tmp_path / "r.yaml"
    path.write_text(QUICK + "".join(f"{line}\n" for line in lines), "utf-8")
    (build,) = loading.load(path, options=backends.OptionsOf())
    plan = preparation.prepare(build)
    (step,) = [step for step in plan.steps if step.name == "package"]
    return step


def test_a_recipe_makes_its_package_ready_for_apps(tmp_path: Path) -> None:
    without = planned(tmp_path)
    with_app = planned(tmp_path, "package: {for: [foundry-local]}")
    assert "apps" not in without.params
    assert "package" not in without.params["recipe"]
    assert with_app.params["apps"] == {"foundry-local": 1}
    assert with_app.params["recipe"]["package"] == {"for": ["foundry-local"]}
    same = {k: v for k, v in with_app.params.items() if k not in ("apps", "recipe")}
    assert same == {k: v for k, v in without.params.items() if k != "recipe"}


@pytest.mark.parametrize(
    ("line", "place", "reason"),
    [
        ("package: {for: [ollama]}", "r.yaml:5:17", "build with `backend: llamacpp`"),
        ("package: {for: [foundry-local, olama]}", "r.yaml:5:32", "did you mean `ollama`?"),
        ("package: {for: [foundry-local, foundry-local]}", "r.yaml:5:32", "named twice"),
    ],
)
def test_an_app_that_cannot_open_the_package_is_refused_where_it_stands(
    line: str, place: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(PhipipeError) as caught:
        planned(tmp_path, line)
    assert caught.value.exit_code == 3
    assert place in caught.value.message
    assert reason in f"{caught.value.message} {caught.value.hint}"


def test_all_apps_that_are_wrong_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(PhipipeError) as caught:
        planned(tmp_path, "package: {for: [ollama, ovms]}")
    assert caught.value.message.count("r.yaml:5:") == 2


def test_a_bare_tflite_is_refused_for_an_app_that_opens_bundles(tmp_path: Path) -> None:
    lines = ("package: {for: [litert-lm]}", "backend: litert", "quantize: {format: tflite}")
    with pytest.raises(PhipipeError, match="opens bundles alone"):
        planned(tmp_path, *lines)
