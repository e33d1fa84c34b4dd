"""The environment is read in one place, and what makes no sense is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from phipipe.errors import RecipeError
from phipipe.settings import Settings, child_environment


def test_defaults_are_the_platforms_cache_and_no_limits() -> None:
    found = Settings.read({})
    assert found.cache.name == "phipipe"
    assert found.toolchains == found.cache / "toolchains"
    assert (found.step_timeout_s, found.idle_timeout_s, found.memory_limit_gib, found.use_current) == (None,) * 3 + (
        False,
    )


def test_every_variable_is_used(tmp_path: Path) -> None:
    values = {
        "PHIPIPE_CACHE": str(tmp_path / "c"),
        "PHIPIPE_TOOLCHAINS": str(tmp_path / "t"),
        "PHIPIPE_TOOLCHAIN": "current",
        "PHIPIPE_STEP_TIMEOUT_S": "1.5",
        "PHIPIPE_IDLE_TIMEOUT_S": "2",
        "PHIPIPE_MEMORY_LIMIT_GIB": "3",
    }
    found = Settings.read(values)
    assert (found.cache, found.toolchains, found.use_current) == (tmp_path / "c", tmp_path / "t", True)
    assert (found.step_timeout_s, found.idle_timeout_s, found.memory_limit_gib) == (1.5, 2, 3)


@pytest.mark.parametrize("name", ["STEP_TIMEOUT_S", "IDLE_TIMEOUT_S", "MEMORY_LIMIT_GIB"])
@pytest.mark.parametrize("value", ["abc", "0", "-1", "inf", "nan"])
def test_a_value_that_makes_no_sense_is_named(name: str, value: str) -> None:
    with pytest.raises(RecipeError, match=f"PHIPIPE_{name} is `{value}`"):
        Settings.read({f"PHIPIPE_{name}": value})


def test_a_misspelt_choice_is_named() -> None:
    with pytest.raises(RecipeError, match="PHIPIPE_TOOLCHAIN is `curent`"):
        Settings.read({"PHIPIPE_TOOLCHAIN": "curent"})


@pytest.mark.parametrize("name", ["HF_TOKEN", "GITHUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_PASSWORD", "OPENAI_API_KEY"])
def test_no_child_sees_a_secret(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "canary")
    monkeypatch.setenv("UV_INDEX_URL", "https://me:canary@example.org/simple")
    assert "canary" not in str(child_environment(offline=True))


def test_offline_children_are_told_so_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert child_environment(offline=True)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in child_environment(offline=False)


def test_a_toolchains_imports_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert "PYTHONPATH" not in child_environment(offline=True)
    assert child_environment(offline=True, keep_path=True)["PYTHONPATH"] == "/elsewhere"
