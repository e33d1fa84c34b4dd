"""PyTorch: options and rules of int8 and int4, what the step writes, and how it is read back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from testing.drive import facts_of, section

from phipipe.backends import torch
from phipipe.backends.base import Job
from phipipe.backends.rules import check
from phipipe.models.checkpoint import Checkpoint
from phipipe.recipe.learned import Weights

DRIVER = Path(__file__).parent / "driver.py"
CASES = ["int4", "int4-32", "int4-row", "int4-asymmetric", "int8", "int8-row", "signround"]


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the driver found out, in one process of the toolchain's Python."""
    folder = tmp_path_factory.mktemp("torch")
    return facts_of(python_of("torch"), DRIVER, folder)


def recipe(precision: str) -> Any:
    return SimpleNamespace(
        precision=precision,
        backend="torch",
        calibrate=SimpleNamespace(tokens=4096),
        weights=Weights(),
    )


class Shape(SimpleNamespace):
    """What of a checkpoint is looked at here."""

    input_widths = Checkpoint.input_widths
    is_divided_by = Checkpoint.is_divided_by


def checkpoint(**changes: Any) -> Any:
    shape: dict[str, Any] = {
        "architecture": "Phi3ForCausalLM",
        "model_type": "phi3",
        "config": {},
        "parameters": 10_000_000,
        "vocab_size": 32064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "heads": 32,
        "kv_heads": 32,
        "head_size": 96,
        "layers": 2,
        "experts": 0,
        "tied": False,
        "weight_bytes": 20_000_000,
    }
    return Shape(**shape | changes)


def planned(precision: str, **options: Any) -> Any:
    (step,) = torch.steps(Job(recipe(precision), torch.Options(**options), checkpoint(), {}))
    return step


def rules(precision: str, options: dict[str, Any] | None = None, **changes: Any) -> dict[str, str]:
    """Rule → level of what is advised."""
    found = check(
        Job(recipe(precision), torch.Options(**options or {}), checkpoint(**changes)), torch.RULES
    )
    return {advice.rule: advice.level for advice in found}


def test_options_have_defaults() -> None:
    options = torch.Options()
    assert (options.algorithm, options.group_size, options.symmetric, options.iterations) == (
        "rtn",
        128,
        True,
        None,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"algorithm": "gptq"},
        {"group_size": 48},
        {"group_size": 0},
        {"symmetric": "yes"},
        {"iterations": 0},
        {"iterations": True},
        {"seed": 1},
    ],
)
def test_unknown_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        torch.Options.model_validate(wrong)


def test_options_describe_themselves() -> None:
    fields = torch.Options.model_json_schema()["properties"].values()
    assert all(field.get("description") for field in fields)


def test_nothing_unquantized_is_made_on_the_way_to_integers() -> None:
    assert planned("fp32").unquantized == "float32"
    assert (planned("int4").name, planned("int4").unquantized) == ("quantize", None)


def test_only_signround_reads_the_calibration_text() -> None:
    assert dict(planned("int4").needs) == {"source": "source"}
    assert dict(planned("int4", algorithm="signround").needs) == {
        "source": "source",
        "calibration": "calibration",
    }


def test_a_default_that_is_spelled_out_is_the_same_step() -> None:
    assert planned("int4", group_size=128, algorithm="rtn").params == planned("int4").params
    learned = planned("int4", algorithm="signround")
    assert learned.params == planned("int4", algorithm="signround", iterations=200).params
    assert learned.params["iterations"] == 200


def test_parameters_of_steps_are_json() -> None:
    params = planned("int8", group_size=-1).params
    assert json.loads(json.dumps(params)) == params
    assert params == {"bits": 8, "algorithm": "rtn", "group_size": -1, "symmetric": True}


@pytest.mark.parametrize(
    ("precision", "options", "words"),
    [
        ("int4", {}, "auto-round, 4 bits symmetric, groups of 128"),
        ("int8", {"group_size": -1}, "auto-round, 8 bits symmetric, a scale per row"),
        (
            "int4",
            {"symmetric": False, "group_size": 32},
            "auto-round, 4 bits asymmetric, groups of 32",
        ),
        ("fp16", {}, "float16"),
    ],
)
def test_scheme(precision: str, options: dict[str, Any], words: str) -> None:
    assert torch.scheme(Job(recipe(precision), torch.Options(**options))) == words


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_nothing_is_advised_against_the_defaults(precision: str) -> None:
    assert rules(precision) == {}


@pytest.mark.parametrize(
    ("rule", "level", "precision", "options", "changes"),
    [
        ("T01", "warning", "fp16", {"group_size": 32}, {}),
        ("T02", "error", "int4", {"iterations": 50}, {}),
        ("T03", "error", "int4", {"group_size": 128}, {"intermediate_size": 8256}),
        ("T04", "error", "int8", {"symmetric": False}, {}),
        ("T05", "error", "int4", {}, {"model_type": "phimoe"}),
        ("T06", "error", "int4", {"group_size": -1}, {"hidden_size": 3080}),
    ],
)
def test_rules(
    rule: str, level: str, precision: str, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert rules(precision, options, **changes) == {rule: level}


@pytest.mark.parametrize(
    ("precision", "options", "changes"),
    [
        ("int4", {"algorithm": "signround", "iterations": 50}, {}),
        ("int4", {"symmetric": False}, {}),
        ("int4", {"group_size": 64}, {"intermediate_size": 8256}),
        ("fp16", {}, {"model_type": "phimoe", "hidden_size": 3080}),
    ],
)
def test_what_works_is_not_advised_against(
    precision: str, options: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert rules(precision, options, **changes) == {}


def test_a_wrong_group_size_names_those_that_work() -> None:
    (advice,) = check(
        Job(recipe("int4"), torch.Options(), checkpoint(intermediate_size=8256)), torch.RULES
    )
    assert "intermediate_size: 8256" in advice.message
    assert advice.hint == "these work: 32, 64, -1 (-1 is a whole row)"


def test_more_bits_smaller_groups_and_learned_rounding_are_closer(facts: dict[str, Any]) -> None:
    kld = section(facts, "fidelity")["kld"]
    assert kld["int8"] < kld["int4-32"] < kld["int4"] < kld["int4-row"] < 0.01
    assert kld["signround"] < kld["int4"]
    assert kld["int4-asymmetric"] < 0.01
    assert max(kld["int8"], kld["int8-row"]) < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_generation_follows_the_logits(facts: dict[str, Any], case: str) -> None:
    assert section(facts, "fidelity")["chain"][case]
    assert section(facts, "fidelity")["dtype"][case] == "float32"


def test_all_but_weights_and_one_key_of_the_config_is_the_sources(facts: dict[str, Any]) -> None:
    found = section(facts, "files")
    assert found["changed"] == ["config.json", "model.safetensors"]
    assert {"tokenizer.model", "tokenizer_config.json", "generation_config.json"} <= set(
        found["names"]
    )
    assert found["config"]
    assert found["settings"]["bits"] == 4
    assert found["absolute"] == []


@pytest.mark.parametrize("case", ["int4", "int8"])
def test_packed_weights_are_the_sources_within_a_level(facts: dict[str, Any], case: str) -> None:
    # half a level by rounding, a whole one where the largest weight of a group is cut off
    assert section(facts, "files")["errors"][case] < 1.01


@pytest.mark.parametrize("case", ["int4", "int8", "int4-asymmetric", "signround"])
def test_two_runs_are_equal_to_the_byte(facts: dict[str, Any], case: str) -> None:
    assert section(facts, "reproducible")[case]


@pytest.mark.parametrize("source", ["tied", "phi2"])
def test_other_layouts_of_sources(facts: dict[str, Any], source: str) -> None:
    found = section(facts, "sources")[source]
    assert found["kld"] < 1e-3
    assert found["unchanged"]


def test_the_index_names_what_lies_in_the_shards(facts: dict[str, Any]) -> None:
    assert section(facts, "sources")["index"]


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("missing", "left `model.layers.2.mlp.down_proj` unquantized"),
        ("shape", "down_proj.scales` is torch.float16 (2, 256)"),
        ("zeros", "not symmetric"),
        ("head", "`lm_head.weight` is not the source's own"),
        ("norm", "`model.norm.weight` is not the source's own"),
        ("more", "unexpected tensor `lm_head.qweight`"),
        ("bits", "`bits: 8`, not 4"),
        ("groups", "`group_size: 32`, not 128"),
    ],
)
def test_results_that_were_not_asked_for_fail(facts: dict[str, Any], case: str, words: str) -> None:
    kind, message, _ = section(facts, "failures")[case]
    assert kind == "StepFailed"
    assert words in message


def test_an_untouched_result_passes(facts: dict[str, Any]) -> None:
    assert section(facts, "failures")["untouched"][0] == "nothing raised"


def test_no_process_is_started_and_nothing_is_left_behind(facts: dict[str, Any]) -> None:
    assert section(facts, "processes") == {"started": [], "scratch": []}
