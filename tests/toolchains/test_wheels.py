"""What is compiled once and taken by others: how far it is, the wheel, and who may take it."""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest
from testing.shell import Run
from testing.tiny_toolchain import NAME, Tiny

from phipipe import progress
from phipipe.errors import ToolchainError
from phipipe.settings import Settings
from phipipe.toolchains import compiling, environments, processor, uv_settings, wheels

FILE = f"{NAME}-1.0-py3-none-any.whl"


@pytest.fixture
def compiled(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tiny:
    """The tiny toolchain, whose package counts as one that is compiled, and a remote store."""
    monkeypatch.setattr(compiling, "COMPILED", {"tiny": NAME})
    monkeypatch.setenv("PHIPIPE_REMOTE", (tmp_path / "remote").as_uri())
    tiny.go_on()
    return tiny


def made(tmp_path: Path, *, native: bool = False) -> wheels.Wheel:
    return wheels.build("tiny", Settings.read(), print, out=tmp_path / "wheels", native=native)


@pytest.mark.parametrize(
    ("line", "done"),
    [
        ("DEBUG [7/83] /usr/bin/g++ -c x.cpp", (7, 83)),
        ("DEBUG [ 37%] Building CXX object x.o", (37, 100)),
        ("DEBUG [100%] Built target llama", (100, 100)),
        ("[7/83] said by nobody", None),
        ("DEBUG see [7/83]", None),
        ("DEBUG [9/3] more than all", None),
        ("DEBUG [0/0] nothing", None),
    ],
)
def test_lines_of_ninja_and_make_tell_how_far_the_compiler_is(
    line: str, done: tuple[int, int] | None
) -> None:
    assert compiling.read(line) == done


@pytest.mark.skipif(sys.platform == "win32", reason="nothing is heard there")
def test_who_installs_hears_how_far_the_compiler_is(tiny: Tiny) -> None:
    (tiny.folder / "talk").touch()
    tiny.go_on()
    said: list[str] = []
    told: list[tuple[int, int, str]] = []
    with progress.listening(lambda *words: told.append(words)):
        environments.ensure("tiny", Settings.read(), said.append)
    assert told == [(1, 2, "compile steps"), (2, 2, "compile steps")]
    assert [line for line in said if line.startswith("compiling for toolchain `tiny` with ")]


def test_only_the_library_is_compiled_with_the_cores_that_are_granted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CMAKE_ARGS", raising=False)
    monkeypatch.setattr(uv_settings.hardware, "cores", lambda: 3)
    told = uv_settings.environment()
    assert told["CMAKE_BUILD_PARALLEL_LEVEL"] == "3"
    assert "-DLLAVA_BUILD=OFF" in told["CMAKE_ARGS"]
    included = Path(told["CMAKE_ARGS"].rpartition("CMAKE_PROJECT_INCLUDE=")[2].rstrip("'"))
    assert "LLAMA_BUILD_COMMON OFF" in included.read_text("utf-8")
    monkeypatch.setenv("CMAKE_ARGS", "-DGGML_CUDA=ON")
    assert uv_settings.environment()["CMAKE_ARGS"] == "-DGGML_CUDA=ON"


def test_a_wheel_in_a_folder_that_pip_knows_is_taken_and_nothing_compiled(
    compiled: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path)
    assert compiled.builds() == 1
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "another machine"))
    monkeypatch.delenv("UV_FIND_LINKS")
    links = f"{tmp_path / 'wheels'} {compiled.folder / 'links'}"  # the archive is there, too
    monkeypatch.setenv("PIP_FIND_LINKS", links)
    installed = environments.ensure("tiny", Settings.read(), print)
    assert (installed.packages, compiled.builds()) == ({"phipipe-tiny": "1.0"}, 1)


def test_a_wheel_is_what_was_built_and_the_same_bytes_each_time(
    compiled: Tiny, tmp_path: Path
) -> None:
    first, second = made(tmp_path), made(tmp_path)
    assert (first, first.path.name) == (second, FILE)
    assert hashlib.sha256(first.path.read_bytes()).hexdigest() == first.sha256
    with zipfile.ZipFile(first.path) as opened:
        names = set(opened.namelist())
        record = opened.read(f"{NAME}-1.0.dist-info/RECORD").decode("utf-8")
    assert names == {
        f"{NAME}.py",
        *(f"{NAME}-1.0.dist-info/{name}" for name in ("METADATA", "WHEEL", "RECORD")),
    }
    assert {line.partition(",")[0] for line in record.splitlines()} == names
    assert [path.name for path in first.path.parent.iterdir()] == [FILE]
    assert not list(compiled.toolchains.glob("wheel-*"))


def take(name: str = "tiny") -> tuple[bool, list[str]]:
    """Whether there is a wheel to take, and what is said."""
    said: list[str] = []
    with wheels.shared(name, Settings.read(), said.append) as links:
        return links is not None and (links / FILE).is_file(), said


@pytest.mark.parametrize("native", [False, True])
def test_another_machine_takes_a_shared_wheel_instead_of_compiling(
    compiled: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    wheel = made(tmp_path, native=native)
    assert wheels.share("tiny", wheel, Settings.read()).shared
    assert compiled.builds() == 1
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "another machine"))
    with wheels.shared("tiny", Settings.read(), print) as links:
        environments.ensure("tiny", Settings.read(), print, links=links)
    assert compiled.builds() == 1


def test_a_wheel_for_other_features_is_not_taken(
    compiled: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels.share("tiny", made(tmp_path, native=True), Settings.read())
    assert take()[0]
    lesser = processor.features() - {"avx512f", "asimddp"} - {max(processor.features())}
    monkeypatch.setattr(processor, "features", lambda: lesser)
    assert take() == (False, ["no shared wheel for toolchain `tiny` suits this machine"])


def test_a_portable_wheel_is_not_taken_by_a_processor_that_is_too_old(
    compiled: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels.share("tiny", made(tmp_path), Settings.read())
    monkeypatch.setattr(processor.hardware, "architecture", lambda: "x86_64")
    monkeypatch.setattr(processor, "features", lambda: frozenset(("sse4_2",)))
    assert not take()[0]


@pytest.mark.parametrize("damage", ["wheel", "record", "name"])
def test_a_damaged_wheel_is_not_taken(compiled: Tiny, tmp_path: Path, damage: str) -> None:
    wheels.share("tiny", made(tmp_path), Settings.read())
    suffix = "*.whl" if damage == "wheel" else "*.json"
    (path,) = (tmp_path / "remote" / "wheels").glob(suffix)
    content = path.read_bytes()
    bad = content.replace(FILE.encode(), b"../x.whl") if damage == "name" else content[:-9]
    path.write_bytes(bad)
    assert take()[0] is False
    assert "damaged" in " ".join(take()[1])


def test_without_a_remote_store_sharing_is_refused_before_anything_is_compiled(
    compiled: Tiny, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PHIPIPE_REMOTE")
    for words in (("build", "tiny", "--share"), ("install", "tiny", "--shared")):
        code, _, err = run("toolchain", *words)
        assert code == 4
        assert "PHIPIPE_REMOTE" in err
    assert compiled.builds() == 0


def test_the_commands_build_share_and_take(
    compiled: Tiny, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, _ = run("toolchain", "build", "tiny", "--share", "--json")
    told = json.loads(out)
    assert (code, told["shared"], told["native"]) == (0, True, False)
    assert (tmp_path / told["wheel"]).is_file()
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "another machine"))
    code, out, err = run("toolchain", "install", "tiny", "--shared")
    assert (code, out) == (0, "tiny: 1 package\n")
    assert f"taking the shared wheel `{FILE}`" in err
    assert compiled.builds() == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [("onnxruntime", "nothing of toolchain `onnxruntime` is compiled"), ("nope", "unknown")],
)
def test_what_is_not_compiled_has_no_wheel_to_build(run: Run, name: str, words: str) -> None:
    code, _, err = run("toolchain", "build", name)
    assert code == 4
    assert words in err


def test_the_lock_names_the_package_that_is_compiled() -> None:
    assert wheels.requirement("llamacpp").startswith("llama-cpp-python==")


def test_who_has_changed_an_installed_file_packs_no_wheel(compiled: Tiny, tmp_path: Path) -> None:
    installed = environments.ensure("tiny", Settings.read(), print)
    next(installed.path.rglob(f"{NAME}.py")).unlink()
    with pytest.raises(ToolchainError, match="not installed as it should be"):
        wheels.pack(installed.path, NAME, tmp_path)
