"""The environment is read in one place, and what makes no sense is named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phipipe import settings
from phipipe.errors import RecipeError
from phipipe.settings import Settings, child_environment, compute


def test_defaults_are_the_platforms_cache_and_no_limits() -> None:
    found = Settings.read({})
    assert found.cache.name == "phipipe"
    assert found.toolchains == found.cache / "toolchains"
    assert (
        found.step_timeout_s,
        found.idle_timeout_s,
        found.memory_limit_gib,
        found.use_current,
    ) == (None,) * 3 + (False,)


def test_every_variable_is_used(tmp_path: Path) -> None:
    values = {
        "PHIPIPE_CACHE": str(tmp_path / "c"),
        "PHIPIPE_TOOLCHAINS": str(tmp_path / "t"),
        "PHIPIPE_TOOLCHAIN": "current",
        "PHIPIPE_COMPUTE": "cuda",
        "PHIPIPE_STEP_TIMEOUT_S": "1.5",
        "PHIPIPE_IDLE_TIMEOUT_S": "2",
        "PHIPIPE_MEMORY_LIMIT_GIB": "3",
    }
    found = Settings.read(values)
    assert (found.cache, found.toolchains, found.use_current) == (
        tmp_path / "c",
        tmp_path / "t",
        True,
    )
    assert (found.step_timeout_s, found.idle_timeout_s, found.memory_limit_gib) == (1.5, 2, 3)
    assert found.compute == compute(values) == "cuda"
    assert Settings.read({}).compute == compute({}) == "auto"


@pytest.mark.parametrize("name", ["STEP_TIMEOUT_S", "IDLE_TIMEOUT_S", "MEMORY_LIMIT_GIB"])
@pytest.mark.parametrize("value", ["abc", "0", "-1", "inf", "nan"])
def test_a_value_that_makes_no_sense_is_named(name: str, value: str) -> None:
    with pytest.raises(RecipeError, match=f"PHIPIPE_{name} is `{value}`"):
        Settings.read({f"PHIPIPE_{name}": value})


def test_a_misspelt_choice_is_named() -> None:
    with pytest.raises(RecipeError, match="PHIPIPE_TOOLCHAIN is `curent`"):
        Settings.read({"PHIPIPE_TOOLCHAIN": "curent"})


def test_preflight_can_be_switched_off() -> None:
    assert Settings.read({}).preflight
    assert not Settings.read({"PHIPIPE_PREFLIGHT": "off"}).preflight
    with pytest.raises(RecipeError, match="PHIPIPE_PREFLIGHT is `maybe`"):
        Settings.read({"PHIPIPE_PREFLIGHT": "maybe"})


@pytest.mark.parametrize(
    "name",
    [
        "HF_TOKEN",
        "GITHUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "MY_PASSWORD",
        "OPENAI_API_KEY",
        "GPG_PASSPHRASE",
    ],
)
def test_no_child_sees_a_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("UV_INDEX_URL", "https://me:canary@example.org/simple")
    assert "canary" not in str(child_environment(offline=True))


@given(
    st.sampled_from(sorted(settings.COMPUTING)),
    st.sampled_from(
        [
            "JWT",
            "AUTH",
            "TOKEN",
            "KEY",
            "PASSWORD",
            "WEBHOOK",
            "PRIVATE_KEY_PEM",
            "CLIENT_SECRET",
            "DSN",
            "BEARER_1",
        ]
    ),
)
def test_no_beginning_lets_a_secret_through(row: str, ending: str) -> None:
    name = f"{row.partition('*')[0]}{ending}"
    assert not settings.is_among(name, settings.COMPUTING)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("UV_INDEX_ACME_PASSWORD", "canary"),
        ("UV_INDEX_URL", "https://me:canary@example.org/simple"),
        ("PIP_EXTRA_INDEX_URL", "https://me:canary@example.org/simple"),
        ("https_proxy", "http://me:canary@proxy:8080"),
        ("NETRC", "/home/me/canary"),
        ("CMAKE_ARGS", "-DCANARY=canary"),
        ("CXX", "canary++"),
    ],
)
def test_the_installer_gets_what_it_needs_and_nobody_else_does(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert settings.installer_environment()[name] == value
    assert name not in child_environment(offline=True)


@pytest.mark.parametrize(
    "name", ["HF_TOKEN", "UV_PUBLISH_TOKEN", "CARGO_REGISTRY_TOKEN", "AWS_SECRET_ACCESS_KEY", "JWT"]
)
def test_the_installer_gets_no_other_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("CMAKE_TOOLS", "https://me:canary@example.org")
    assert "canary" not in str(settings.installer_environment())


def test_a_container_that_keeps_no_bytecode_does_not_slow_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    assert "PYTHONDONTWRITEBYTECODE" not in child_environment(offline=True)


def test_offline_children_are_told_so_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert child_environment(offline=True)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in child_environment(offline=False)


def test_an_empty_value_counts_as_unset() -> None:
    names = (
        "CACHE",
        "TOOLCHAINS",
        "TOOLCHAIN",
        "STEP_TIMEOUT_S",
        "IDLE_TIMEOUT_S",
        "MEMORY_LIMIT_GIB",
        "WORKER_PATH",
    )
    assert Settings.read({f"PHIPIPE_{name}": "" for name in names}) == Settings.read({})


@pytest.mark.parametrize("name", ["PHIPIPE_CACHE", "PHIPIPE_TOOLCHAINS"])
def test_a_folder_that_is_a_file_or_nobodys_home_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for value in (str(tmp_path / "file"), "~phipipe-nobody/cache"):
        with pytest.raises(RecipeError, match=f"{name} is `") as caught:
            Settings.read({name: value})
        assert value in caught.value.message
        assert caught.value.exit_code == 2


def test_import_roots_of_workers_are_absolute_and_may_be_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = Settings.read({"PHIPIPE_WORKER_PATH": os.pathsep.join(["a", str(tmp_path / "b"), ""])})
    assert found.server_path == (tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize(
    "name", ["PATH", "TOKENIZERS_PARALLELISM", "LC_TIME", "OMP_NUM_THREADS", "PWD"]
)
def test_what_is_no_secret_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "kept-1618")
    assert child_environment(offline=True)[name] == "kept-1618"


def test_a_toolchains_imports_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert "PYTHONPATH" not in child_environment(offline=True)
    assert child_environment(offline=True, keep_path=True)["PYTHONPATH"] == "/elsewhere"
