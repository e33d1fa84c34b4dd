"""Every rule of the table hits where it should, and keeps quiet where it should not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from phipipe import rules

Facts = dict[str, Any]

PHI3: Facts = {
    "architecture": "Phi3ForCausalLM",
    "model_type": "phi3",
    "config": {},
    "vocab_size": 32064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "layers": 32,
    "heads": 32,
    "kv_heads": 32,
    "context_length": 4096,
    "original_context_length": 4096,
    "sliding_window": None,
    "tied": False,
    "longrope": False,
    "parameters": 3_821_079_552,
}
RECIPE: Facts = {"backend": "onnxruntime", "precision": "int4", "context": None}
OPTIONS: Facts = {
    "algorithm": "default",
    "symmetric": True,
    "block_size": 32,
    "mixed": "none",
    "embeddings": "auto",
    "rotate": None,
    "model_fields_set": set(),
}
MOE: Facts = {"architecture": "PhiMoEForCausalLM", "model_type": "phimoe", "config": {}}
MINI: Facts = {"tied": True, "vocab_size": 200064, "heads": 24, "kv_heads": 8}

# rule: (what it takes to hit, what is as near as possible without hitting)
CASES: dict[str, tuple[Facts, Facts]] = {
    "M01": ({"architecture": "Phi4FlashForCausalLM"}, {}),
    "M02": ({"architecture": "Phi3SmallForCausalLM"}, {}),
    "M03": ({"architecture": "Phi4MMForCausalLM"}, {}),
    "M04": (MOE, {**MOE, "backend": "openvino"}),
    "M05": ({**MOE, "backend": "llamacpp"}, {**MOE, "backend": "openvino"}),
    "M06": ({**MOE, "config": {"head_dim": 128}}, {**MOE, "config": {"head_dim": 96}}),
    "M07": ({"config": {"rope_parameters": {}}}, {"config": {"rope_parameters": {}}, "backend": "torch"}),
    "M12": ({"context": 4097}, {"context": 4096}),
    "D02": (MINI, {**MINI, "mixed": "layers"}),
    "O09": ({"algorithm": "k_quant"}, {"algorithm": "k_quant", "symmetric": False}),
    "O14": ({"precision": "fp32", "model_fields_set": {"mixed"}}, {"precision": "fp32"}),
    "O15": ({"precision": "int8", "mixed": "head"}, {"mixed": "head"}),
    "O16": (
        {"precision": "int8", "embeddings": "quantized"},
        {"precision": "int8", "embeddings": "quantized", "tied": True},
    ),
    "O17": (
        {"algorithm": "rtn", "symmetric": False, "intermediate_size": 8224},
        {"algorithm": "default", "symmetric": False, "intermediate_size": 8224},
    ),
    "O18": ({"vocab_size": 16384}, {"vocab_size": 8192}),
    "O20": ({"architecture": "GPT2LMHeadModel"}, {"architecture": "Qwen3ForCausalLM"}),
    "O21": (
        {"rotate": "quarot", "model_type": "phi"},
        {"rotate": "quarot", "model_type": "phi", "precision": "fp16"},
    ),
    "O22": ({"precision": "int8", "algorithm": "gptq"}, {"algorithm": "gptq"}),
    "O23": (
        {"algorithm": "gptq", "block_size": 64, "intermediate_size": 8224},
        {"algorithm": "gptq", "block_size": 32, "intermediate_size": 8224},
    ),
    "O24": (
        {"algorithm": "gptq", "config": {"quantization_config": {}}},
        {"config": {"quantization_config": {}}},
    ),
    "O25": ({"rotate": "quarot", "tied": True}, {"rotate": "quarot"}),
    "O19": ({"config": {"partial_rotary_factor": 0.25}}, {"config": {"partial_rotary_factor": 0.5}}),
}
TABLE = {rule.id: rule for rule in (*rules.MODELS, *rules.ONNXRUNTIME)}


def hits(rule: rules.Rule, changes: Facts) -> list[Any]:
    def part(base: Facts) -> Any:
        return SimpleNamespace(**(base | {k: v for k, v in changes.items() if k in base}))

    return rules.check(part(RECIPE), part(OPTIONS), part(PHI3), [rule])


def test_every_rule_has_a_case() -> None:
    assert set(TABLE) == set(CASES)
    assert len(TABLE) == len(rules.MODELS) + len(rules.ONNXRUNTIME)


@pytest.mark.parametrize("name", CASES)
def test_the_rule_hits(name: str) -> None:
    (advice,) = hits(TABLE[name], CASES[name][0])
    assert (advice.rule, advice.level) == (name, TABLE[name].level)
    assert "{" not in advice.message


@pytest.mark.parametrize("name", CASES)
def test_the_rule_keeps_quiet(name: str) -> None:
    assert hits(TABLE[name], CASES[name][1]) == []


@pytest.mark.parametrize("rule", TABLE.values(), ids=TABLE)
def test_a_plain_phi3_meets_no_rule(rule: rules.Rule) -> None:
    assert hits(rule, {}) == []


def fixes(**changes: Any) -> dict[str, Any]:
    recipe: Any = SimpleNamespace(backend=changes.pop("backend", "onnxruntime"))
    checkpoint: Any = SimpleNamespace(**(PHI3 | changes))
    return rules.fixups(recipe, checkpoint)


def test_f1_lists_the_sliding_layers() -> None:
    assert fixes(sliding_window=2047)["F1"]["patch"] == {"layer_types": ["sliding_attention"] * 32}


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": None},
        {"sliding_window": 262144, "context_length": 131072},
        {"sliding_window": 2047, "backend": "torch"},
        {"sliding_window": 2047, "config": {"layer_types": ["sliding_attention"] * 32}},
    ],
)
def test_f1_is_left_out_where_nothing_is_wrong(changes: dict[str, Any]) -> None:
    assert fixes(**changes) == {}
