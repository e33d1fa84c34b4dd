"""The original's predictions with one layer in memory: the whole model's, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testing.drive import facts_of

from phipipe.evaluate import original
from phipipe.models import layerwise_memory

DRIVER = Path(__file__).parent / "layerwise_driver.py"
MAPPED = ["tied", "window", "longrope", "phi", "phimoe", "bf16", "fp16", "apart"]
WIDE = ["fp32", "mixed"]  # computed with as they are stored, or cast as a whole


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the driver found out, in one process of the toolchain's Python."""
    folder = tmp_path_factory.mktemp("layerwise")
    return facts_of(python_of("torch"), DRIVER, folder)


@pytest.mark.parametrize("name", [*MAPPED, *WIDE])
def test_logits_are_the_whole_models_to_the_bit(facts: dict[str, Any], name: str) -> None:
    found = facts[name]
    assert (found["count"], found["dtype"]) == (5, "float32")
    assert found["spread"] > 0.1
    assert found["equal"]


@pytest.mark.parametrize("name", [*MAPPED, *WIDE])
def test_answers_are_the_whole_models(facts: dict[str, Any], name: str) -> None:
    assert facts[name]["answers"]
    assert facts[name]["answers_of_vectors"]
    assert facts[name]["limits"]


@pytest.mark.parametrize("name", [*MAPPED, *WIDE])
def test_weights_widened_before_their_products_give_the_same_answers(
    facts: dict[str, Any], name: str
) -> None:
    assert facts[name]["answers_of_many"]


def test_weights_are_widened_in_pieces_where_linears_alone_take_them(facts: dict[str, Any]) -> None:
    whole = {name for name in (*MAPPED, *WIDE) if not facts[name]["in_pieces"]}
    assert whole == {"phimoe"}


def test_all_texts_that_can_go_through_the_layers_as_one_batch(facts: dict[str, Any]) -> None:
    for name in (*MAPPED, *WIDE):
        assert facts[name]["passes"] == facts[name]["tokens"], name


@pytest.mark.parametrize("name", [*MAPPED, *WIDE])
def test_answers_leave_no_state(facts: dict[str, Any], name: str) -> None:
    assert facts[name]["again"]
    assert facts[name]["none"] == []


@pytest.mark.parametrize(("names", "layers"), [(MAPPED, 2), (WIDE, 0)])
def test_one_layer_is_in_memory_and_the_next(
    facts: dict[str, Any], names: list[str], layers: int
) -> None:
    assert [facts[name]["layers_in_memory"] for name in names] == [layers] * len(names)


def test_a_weight_that_is_no_number_is_the_originals_fault(facts: dict[str, Any]) -> None:
    told = facts["refusals"]
    assert len(told) == 3
    for name, message in told.items():
        assert (
            message
            == f"the original has {'NaN' if 'layers' in name else 'infinite values'} in tensor "
            f"`{name}`"
        )


def phi(**changes: Any) -> Any:
    """The shape of Phi-3.5-mini in 16 bits."""
    parameters = 3_821_079_552
    shape = {
        "parameters": parameters,
        "weight_bytes": 2 * parameters,
        "layers": 32,
        "hidden_size": 3072,
    }
    return SimpleNamespace(
        **shape | {"vocab_size": 32064, "tied": False, "model_type": "phi3"} | changes
    )


def test_memory_is_that_of_a_layer_and_the_head() -> None:
    """Pinned to a peak that was measured once; nothing measures it again."""
    assert layerwise_memory.memory_bytes(phi(), 1024, 512) == pytest.approx(1.88e9, rel=0.2)


def test_memory_does_not_grow_with_the_text() -> None:
    assert layerwise_memory.memory_bytes(phi(), 10_000_000, 512) == layerwise_memory.memory_bytes(
        phi(), layerwise_memory.TOGETHER, 512
    )


@pytest.mark.parametrize("changes", [{"weight_bytes": 7_700_000_000}, {"model_type": "phimoe"}])
def test_what_is_not_mapped_counts(changes: dict[str, Any]) -> None:
    assert layerwise_memory.memory_bytes(phi(**changes), 1024, 512) > 7_600_000_000


def test_a_quantized_original_is_loaded_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = SimpleNamespace(
        logits=lambda window: window[:1], generate=lambda prompt, limit: iter(prompt[:limit])
    )
    monkeypatch.setattr(
        original.backends, "load", lambda name: SimpleNamespace(open=lambda folder: runtime)
    )
    (tmp_path / "config.json").write_text('{"quantization_config": {}}', "utf-8")
    model: Any = original.load(tmp_path)
    assert list(model.logits([[1, 2], [3, 4]])) == [[1], [3]]
    assert model.generate([[5, 6, 7], [8]], 2) == [[5, 6], [8]]
