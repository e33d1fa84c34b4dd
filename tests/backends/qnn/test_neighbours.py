"""Decoders beside Phi on Qualcomm NPUs: projections alone or with biases, norms of queries and
keys, layers without positions, scaled positions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing.dense_checkpoints import VARIANTS
from testing.drive import drive, facts_of, section

from phipipe.backends.qnn import rotary
from phipipe.hub import take

DRIVER = Path(__file__).parent / "neighbours_driver.py"
EMULATED = ("llama3-rope", "qwen2", "qwen3", "smollm3")


@pytest.fixture(scope="session")
def checkpoints(python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all small checkpoints, and what transformers makes of them."""
    root = tmp_path_factory.mktemp("neighbours")
    drive(python_of("torch"), "-m", "testing.dense_checkpoints", root)
    text = take.ASSETS / "stories" / "evaluation.txt"
    drive(python_of("torch"), "-m", "testing.reference", root, text, "250", *VARIANTS)
    return root


@pytest.fixture(scope="session")
def in_float(checkpoints: Path, python_of: Callable[[str], Path]) -> dict[str, Any]:
    return facts_of(python_of("qnn"), DRIVER, checkpoints, "float")


@pytest.fixture(scope="session")
def fixed(checkpoints: Path, python_of: Callable[[str], Path]) -> dict[str, Any]:
    return facts_of(python_of("qnn"), DRIVER, checkpoints, "fixed", *EMULATED)


@pytest.mark.parametrize("name", VARIANTS)
def test_static_graphs_are_exact_beyond_the_first_context(
    in_float: dict[str, Any], name: str
) -> None:
    found = section(in_float, name)
    assert found["chunks"] < 1e-9
    assert found["decoded"] < 1e-9


@pytest.mark.nightly
@pytest.mark.parametrize("name", EMULATED)
def test_the_emulated_npu_predicts_as_the_original(fixed: dict[str, Any], name: str) -> None:
    found = section(fixed, name)
    assert found["nodes"] == ["EPContext"]
    assert found["emulated"] < 2e-2
    assert found["emulated"] == pytest.approx(found["fixed"], rel=0.25)


def test_llama_3_slows_long_waves_down_and_keeps_short_ones() -> None:
    plain, _ = rotary.frequencies({**VARIANTS["llama"]}, 64, 512)
    scaled, factor = rotary.frequencies({**VARIANTS["llama3-rope"]}, 64, 512)
    assert factor == 1
    assert scaled[0] == plain[0]
    assert scaled[-1] == plain[-1] / 8
    assert all(before / 8 <= now <= before for now, before in zip(scaled, plain, strict=True))


@pytest.mark.parametrize("name", ["su", "yarn", "longrope"])
def test_longrope_is_known_by_its_first_names(name: str) -> None:
    scaling = {"type": name, "short_factor": [1.0] * 32, "long_factor": [2.0] * 32}
    config = json.loads((take.BUILTIN_MODELS["tiny-phi3"] / "config.json").read_text("utf-8"))
    config |= {"original_max_position_embeddings": 512, "max_position_embeddings": 8192}
    frequencies, factor = rotary.frequencies(config | {"rope_scaling": scaling}, 64, 1024)
    assert frequencies[0] == 0.5
    assert factor == pytest.approx((1 + 4 / 9) ** 0.5)
