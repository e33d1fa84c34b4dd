"""Environments that are made once, noticed when they are damaged, and never half there."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from phipipe.errors import ToolchainError
from phipipe.settings import Settings
from phipipe.toolchains import environments, installation, uv_settings

PACKAGE = "iniconfig==2.1.0"


def write_wheel(folder: Path) -> None:
    """Write the package's wheel, as an index would have it."""
    name, version = PACKAGE.split("==")
    about = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": "VALUES = {}\n" * 100,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    sizes = {path: len(text) for path, text in files.items()} | {f"{about}/RECORD": ""}
    record = "".join(f"{path},,{size}\n" for path, size in sizes.items())
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in (*files.items(), (f"{about}/RECORD", record)):
            wheel.writestr(path, text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings with an empty toolchain folder, and one tiny toolchain, `tiny`, to put into it."""
    locks = tmp_path / "locks"
    locks.mkdir()
    (locks / "tiny.txt").write_text(f"{PACKAGE}\n")
    (locks / "broken.txt").write_text("phipipe-has-no-such-package==1.0\n")
    monkeypatch.setattr(environments, "LOCKS", locks)
    write_wheel(tmp_path)
    monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    return Settings.read({**os.environ, "PHIPIPE_TOOLCHAINS": str(tmp_path / "toolchains")})


def test_a_toolchain_is_installed_once_and_its_fingerprint_is_what_is_in_it(home: Settings) -> None:
    said: list[str] = []
    first = environments.ensure("tiny", home, said.append)
    assert first.packages == {"iniconfig": "2.1.0"}
    assert said == ["installing toolchain `tiny` (once)"]
    assert environments.ensure("tiny", home, said.append) == first
    assert environments.installed("tiny", home) == first
    assert len(said) == 1
    code = "import iniconfig, importlib.util; print(importlib.util.find_spec('pydantic'))"
    done = subprocess.run([first.python, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None", "nothing of the core's own packages is visible"
    assert environments.size_bytes("tiny", home) > 1000


def site(installed: environments.Installed) -> Path:
    return next(installed.path.rglob("iniconfig-*.dist-info")).parent


@pytest.mark.parametrize(
    "gone",
    [
        "iniconfig/__init__.py",
        "iniconfig-2.1.0.dist-info/METADATA",
        "iniconfig-2.1.0.dist-info/RECORD",
    ],
)
def test_a_missing_file_is_noticed_before_a_step_runs_and_repaired(
    home: Settings, gone: str
) -> None:
    first = environments.ensure("tiny", home, print)
    (site(first) / gone).unlink()
    said: list[str] = []
    again = environments.check("tiny", home, said.append)
    assert (site(again) / gone).is_file()
    assert any(gone in line for line in said)


@pytest.mark.parametrize("what", ["python", "state", "dist-info"])
def test_half_a_toolchain_counts_as_none(home: Settings, what: str) -> None:
    import shutil

    first = environments.ensure("tiny", home, print)
    if what == "python":
        first.python.unlink()
    elif what == "state":
        (first.path / environments.STATE).unlink()
    else:
        shutil.rmtree(next(site(first).glob("*.dist-info")))
    assert environments.installed("tiny", home) is None
    said: list[str] = []
    assert environments.ensure("tiny", home, said.append).packages == {"iniconfig": "2.1.0"}
    assert "incomplete" in said[0]


def test_a_failed_installation_says_why_and_leaves_nothing(home: Settings) -> None:
    with pytest.raises(ToolchainError) as caught:
        environments.ensure("broken", home, print)
    assert caught.value.exit_code == 4
    assert "phipipe-has-no-such-package" in caught.value.message
    assert "phipipe toolchain install broken" in str(caught.value.hint)
    assert not environments.path_of("broken", home).exists()


def test_without_a_network_the_error_comes_at_once(
    home: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_OFFLINE", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv"))
    monkeypatch.delenv("UV_FIND_LINKS")
    with pytest.raises(ToolchainError, match="iniconfig"):
        environments.ensure("tiny", home, print)
    assert not environments.path_of("tiny", home).exists()


def test_several_processes_install_it_once(home: Settings, tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from phipipe.toolchains import environments
from phipipe.settings import Settings
environments.LOCKS = Path(sys.argv[1])
environments.ensure("tiny", Settings.read(), print)
"""
    environment = {**os.environ, "PHIPIPE_TOOLCHAINS": str(home.toolchains)}
    command = [sys.executable, "-c", code, str(environments.LOCKS)]
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = "".join(process.communicate()[0] for process in running)
    assert [process.returncode for process in running] == [0] * 4
    assert said.count("installing") == 1


def test_an_unknown_toolchain_is_named_with_those_there_are(home: Settings) -> None:
    with pytest.raises(ToolchainError) as caught:
        environments.ensure("nope", home, print)
    assert "tiny" in str(caught.value.hint)


def test_a_folder_that_cannot_be_written_is_said(home: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    settings = Settings.read({**os.environ, "PHIPIPE_TOOLCHAINS": str(tmp_path / "file" / "x")})
    with pytest.raises(ToolchainError, match="cannot be installed into"):
        environments.ensure("tiny", settings, print)


def test_the_running_interpreter_can_be_the_toolchain() -> None:
    settings = Settings.read({**os.environ, "PHIPIPE_TOOLCHAIN": "current"})
    found = environments.ensure("torch", settings, print)
    assert found.python == Path(sys.executable)
    assert found.packages["pydantic"]


def test_pips_settings_reach_uv_unless_uv_has_its_own() -> None:
    made = uv_settings.from_pip(
        {"PIP_FIND_LINKS": "/a /b", "PIP_INDEX_URL": "https://x", "UV_DEFAULT_INDEX": "y"}
    )
    assert made == {"UV_FIND_LINKS": "/a,/b"}


def test_each_of_pips_settings_has_its_counterpart() -> None:
    made = uv_settings.from_pip(
        {"PIP_INDEX_URL": "https://x", "PIP_EXTRA_INDEX_URL": "https://y", "PIP_CERT": "/c"}
    )
    assert made == {"UV_DEFAULT_INDEX": "https://x", "UV_INDEX": "https://y", "SSL_CERT_FILE": "/c"}
    assert uv_settings.from_pip({"PIP_INDEX_URL": "", "PATH": "/bin"}) == {}


def test_a_file_that_was_cut_short_is_noticed_and_a_whole_toolchain_is_left_alone(
    home: Settings,
) -> None:
    first = environments.ensure("tiny", home, print)
    said: list[str] = []
    assert environments.check("tiny", home, said.append) == first
    assert said == []
    source = site(first) / "iniconfig" / "__init__.py"
    whole = source.read_bytes()
    source.unlink()  # uv may have linked it to its cache, which is not ours to spoil
    source.write_bytes(whole[:100])
    environments.check("tiny", home, said.append)
    assert said
    assert (site(first) / "iniconfig" / "__init__.py").read_bytes() == whole


def test_a_toolchain_that_is_removed_is_gone(home: Settings) -> None:
    environments.ensure("tiny", home, print)
    environments.remove("tiny", home)
    assert environments.installed("tiny", home) is None
    assert not environments.path_of("tiny", home).exists()


def test_credentials_in_urls_are_not_repeated() -> None:
    assert (
        uv_settings.redact("from https://me:secret@host/simple failed")
        == "from https://***@host/simple failed"
    )


def test_locks_name_no_index_no_local_version_and_nothing_for_one_kind_of_gpu() -> None:
    for name in environments.names():
        text = (environments.LOCKS / f"{name}.txt").read_text("utf-8")
        assert "://" not in text
        assert "+cpu" not in text
        assert ("nvidia" in text) == name.endswith("-cuda")


@pytest.mark.parametrize(
    ("system", "machine", "missing"),
    [
        ("Darwin", "arm64", {"qnn", "onnxruntime-cuda"}),
        ("Windows", "ARM64", {"mlx", "onnxruntime-cuda"}),
        ("Linux", "aarch64", {"qnn", "onnxruntime-cuda"}),
        ("Linux", "x86_64", set()),
    ],
)
def test_what_exists_elsewhere_only_is_refused_before_anything_is_installed(
    home: Settings, monkeypatch: pytest.MonkeyPatch, system: str, machine: str, missing: set[str]
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert {name for name in environments.ONLY if environments.foreign(name)} == missing
    for name in missing:
        (environments.LOCKS / f"{name}.txt").write_text(f"{PACKAGE}\n")
        with pytest.raises(
            ToolchainError,
            match=f"toolchain `{name}` exists for .* only; this is {system} on {machine}",
        ):
            environments.ensure(name, home, print)
    assert not home.toolchains.exists()


@pytest.mark.usefixtures("toolchains")  # asks the package index
def test_each_lock_is_what_its_extra_asks_for() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "phipipe.maintain.lock", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "stale: none\n", done.stdout + done.stderr


@pytest.mark.usefixtures("toolchains")
def test_a_missing_compiler_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("CC", "CXX"):
        monkeypatch.setenv(variable, "no-such-compiler")
    settings = Settings.read({**os.environ, "PHIPIPE_TOOLCHAINS": str(tmp_path / "toolchains")})
    with pytest.raises(ToolchainError, match="could not be installed") as caught:
        environments.ensure("llamacpp", settings, print)
    assert "build-essential" in (caught.value.hint or "")
    assert not list(tmp_path.glob("toolchains/llamacpp-*/lib"))


@pytest.mark.parametrize("there", [True, False])
def test_what_needs_a_gpu_is_of_use_where_one_is(
    monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(environments, "has_nvidia", lambda: there)
    assert environments.is_useful("onnxruntime-cuda") is there
    assert environments.is_useful("onnxruntime")


@pytest.mark.parametrize(
    ("name", "driver", "index", "asked"),
    [
        ("torch", True, False, "auto"),
        ("torch", False, False, "cpu"),
        ("onnxruntime", True, False, "cpu"),  # its torch only exports
        ("torch", True, True, None),  # the user decides where packages come from
    ],
)
def test_the_build_of_torch_is_chosen_by_the_machine(
    name: str,
    driver: bool,
    index: bool,
    asked: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for setting in (
        *uv_settings.INDEX_SETTINGS,
        "PIP_FIND_LINKS",
        "PIP_INDEX_URL",
        "PIP_EXTRA_INDEX_URL",
    ):
        monkeypatch.delenv(setting, raising=False)
    if index:
        monkeypatch.setenv("UV_FIND_LINKS", str(tmp_path))
    monkeypatch.setattr(installation, "has_nvidia", lambda: driver)
    job = installation.Installation(
        name=name,
        lock=environments.lock_of(name),
        path=tmp_path / name,
        notify=print,
        stop=lambda: False,
    )._job("uv", tmp_path / "excludes")
    words = [str(word) for word in job.commands[1]]
    at = words.index("--torch-backend") if "--torch-backend" in words else None
    assert (None if at is None else words[at + 1]) == asked
