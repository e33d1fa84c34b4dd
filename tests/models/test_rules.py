"""Every rule of the table hits where it should, and keeps quiet where it should not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from testing.shapes import phi3

from phipipe import backends
from phipipe.backends import fixups, model_rules, rules
from phipipe.backends.base import Job
from phipipe.backends.onnxruntime import rules as onnxruntime_rules
from phipipe.backends.widths import Width
from phipipe.models.checkpoint import Checkpoint

Facts = dict[str, Any]

RECIPE: Facts = {"backend": "onnxruntime", "precision": "int4", "context": None, "window": 512}
RECIPE |= {"smooth": "none", "learn": None}
OPTIONS: Facts = {
    "algorithm": "default",
    "symmetric": True,
    "block_size": 32,
    "mixed": "none",
    "embeddings": "auto",
    "rotate": None,
    "exclude": [],
    "map": {},
    "model_fields_set": set(),
}
MOE: Facts = {"architecture": "PhiMoEForCausalLM", "model_type": "phimoe"}
MINI: Facts = {"tied": True, "vocab_size": 200064, "heads": 24, "kv_heads": 8}

RESAVED: Facts = {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}

SEEING = {"architectures": ["Phi3VForCausalLM"], "img_processor": {"name": "clip_vision_model"}}

HEARING = {"architectures": ["Phi4MMForCausalLM"], "vision_lora": {"r": 8, "lora_alpha": 16}}
EIGHT = Width(bits=8)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 256}

# rule: (what it takes to hit, what is as near as possible without hitting)
CASES: dict[str, tuple[Facts, Facts]] = {
    "M01": ({"architecture": "Phi4FlashForCausalLM"}, {}),
    "M02": ({"architecture": "Phi3SmallForCausalLM"}, {}),
    "M03": ({"config": {"vision_config": {"hidden_size": 8}}}, {"config": {"vision_config": None}}),
    "M04": (MOE, {**MOE, "backend": "openvino"}),
    "M05": ({**MOE, "backend": "llamacpp"}, {**MOE, "backend": "openvino"}),
    "M06": ({**MOE, "config": {"head_dim": 128}}, {**MOE, "config": {"head_dim": 96}}),
    "M07": (
        {"config": {"rope_parameters": {"rope_theta": 1e4}, "model_type": "stablelm"}},
        {"config": RESAVED},
    ),
    "M17": (
        {"config": {**SEEING, "embd_layer": {"hd_transform_order": "glb_sub"}}},
        {"config": SEEING},
    ),
    "M18": (
        {"backend": "openvino", "architecture": "Phi3VForCausalLM"},
        {"architecture": "Phi3VForCausalLM"},
    ),
    "M19": (
        {"config": {**HEARING, "embd_layer": {"image_embd_layer": {"crop_size": 384}}}},
        {"config": {**HEARING, "embd_layer": {"image_embd_layer": {"crop_size": 448}}}},
    ),
    "M20": (
        {"backend": "openvino", "config": HEARING},
        {"backend": "llamacpp", "config": HEARING},
    ),
    "M25": (
        {"config": {**HEARING, "vocab_size": 200010}},
        {"config": {**HEARING, "vocab_size": 200064}},
    ),
    "M21": (
        {"config": {"rope_scaling": {"type": "linear", "factor": 2.0}}},
        {"config": {"rope_scaling": None}},
    ),
    "M22": (
        {"config": {"rope_scaling": {"rope_type": "dynamic"}, "model_type": "llama"}},
        {"config": {"rope_scaling": {"rope_type": "llama3"}, "model_type": "llama"}},
    ),
    "M23": (
        {"architecture": "StableLmForCausalLM", "like": ("LlamaForCausalLM",)},
        {"architecture": "LlamaForCausalLM"},
    ),
    "M24": (
        {
            "backend": "llamacpp",
            "config": {"rope_scaling": {**YARN, "beta_fast": 8.0}, "model_type": "llama"},
        },
        {"backend": "llamacpp", "config": {"rope_scaling": YARN, "model_type": "llama"}},
    ),
    "M26": (
        {"architecture": "Gemma3ForCausalLM", "model_type": "gemma3_text"},
        {"backend": "torch", "architecture": "Gemma3ForCausalLM", "model_type": "gemma3_text"},
    ),
    "M28": ({"cuts_digits": True}, {"cuts_digits": True, "backend": "llamacpp"}),
    "M27": ({"normal_form": "NFC"}, {"normal_form": "NFC", "backend": "openvino"}),
    "M14": ({"context": 4097}, {"context": 4096}),
    "A01": ({"smooth": "awq", **MOE}, MOE),
    "A02": ({"smooth": "awq", "precision": "fp32"}, {"smooth": "awq", "precision": "int8"}),
    "A03": ({"smooth": "awq", "rotate": "quarot"}, {"rotate": "quarot"}),
    "A04": ({"learn": "signround"}, {"learn": "signround", "parameters": 10**9}),
    "A05": (
        {"learn": "signround", "map": {"*": EIGHT}},
        {"learn": "signround", "map": {"layers.[!0]*": EIGHT, "*d*": EIGHT}},
    ),
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
    "O25": ({"rotate": "quarot", "tied": True}, {"rotate": "quarot"}),
    "O26": (
        {"architecture": "LlamaForCausalLM", "map": {"*.q_proj": EIGHT, "*.k_proj": EIGHT}},
        {"architecture": "LlamaForCausalLM", "map": {"*.qkv_proj": EIGHT}},
    ),
    "O27": ({"algorithm": "gptq", "map": {"lm_head": EIGHT}}, {"map": {"lm_head": EIGHT}}),
    "O28": ({"mixed": "head", "learn": "round"}, {"learn": "round"}),
    "O19": (
        {"config": {"partial_rotary_factor": 0.25}},
        {"config": {"partial_rotary_factor": 0.5}},
    ),
}
RULES = (*model_rules.RULES, *rules.SOFTMAX_ROUTED, *onnxruntime_rules.RULES)
TABLE = {rule.id: rule for rule in RULES}


def recipe_of(changes: Facts) -> Any:
    told = RECIPE | {k: v for k, v in changes.items() if k in RECIPE}
    evaluate = SimpleNamespace(window=told["window"], accept=[])
    weights = SimpleNamespace(smooth=told["smooth"], learn=told["learn"], group_size=32)
    return SimpleNamespace(**told, evaluate=evaluate, weights=weights)


def checkpoint_of(changes: Facts) -> Checkpoint:
    fields = {
        k: v for k, v in changes.items() if k in Checkpoint.__dataclass_fields__ and k != "config"
    }
    return phi3(changes.get("config"), **fields)


def hits(rule: rules.Rule, changes: Facts) -> list[Any]:
    options: Any = SimpleNamespace(**(OPTIONS | {k: v for k, v in changes.items() if k in OPTIONS}))
    recipe = recipe_of(changes)
    own = (*model_rules.RULES, *backends.load(recipe.backend).rules)
    job = Job(recipe, options, checkpoint_of(changes))
    return rules.check(job, [rule] if rule in own else [])


def test_every_rule_has_a_case() -> None:
    assert set(TABLE) == set(CASES)
    assert len(TABLE) == len(RULES)


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
    return fixups.needed(recipe_of(changes), checkpoint_of(changes))


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
    assert "F1" not in fixes(**changes)


def test_f11_gives_a_phi3_without_longrope_one_context() -> None:
    key = "original_max_position_embeddings"
    patch = {key: 2048}
    assert fixes(context_length=2048)["F11"]["patch"] == patch  # 4096 where none is said
    assert fixes(context_length=2048, config={key: 1024})["F11"]["patch"] == patch
    assert fixes(context_length=2048, config={key: 2048}) == {}
    assert fixes(context_length=2048, backend="openvino") == {}
    assert fixes(context_length=2048, model_type="llama", architecture="LlamaForCausalLM") == {}


LISTS: Facts = {"short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
LONG: Facts = {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096}


def test_f2_puts_the_short_factors_in_the_long_ones_place_unless_long_windows_are_evaluated() -> (
    None
):
    config = {**LONG, "rope_scaling": {"type": "longrope", **LISTS}}
    patch = fixes(backend="mlx", config=config)["F2"]["patch"]["rope_scaling"]
    assert patch == {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}
    assert fixes(backend="mlx", config=config, window=4097) == {}
    assert fixes(backend="openvino", config=config) == {}


@pytest.mark.parametrize("kind", ["su", "yarn"])
def test_f8_gives_longrope_its_present_name(kind: str) -> None:
    for backend in ("openvino", "torch"):
        patch = fixes(backend=backend, config={**LONG, "rope_scaling": {"type": kind, **LISTS}})[
            "F8"
        ]["patch"]
        assert patch == {"rope_scaling": {"type": "longrope", **LISTS}}
    assert fixes(config={**LONG, "rope_scaling": {"type": "yarn", "factor": 4.0}}) == {}
    assert "F8" in fixes(config={**LONG, "rope_scaling": {"rope_type": "longrope", **LISTS}}), (
        "mlx-lm reads `type`"
    )


def test_f7_brings_back_the_original_spelling() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 5e5, "partial_rotary_factor": 0.75, **LISTS}
    config = {
        **LONG,
        "rope_parameters": rope,
        "rope_theta": None,
        "rope_scaling": None,
        "dtype": "bfloat16",
    }
    patch = fixes(backend="openvino", config=config)["F7"]["patch"]
    assert patch == {
        "rope_parameters": None,
        "rope_theta": 5e5,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {"type": "longrope", **LISTS},
        "original_max_position_embeddings": 4096,
        "torch_dtype": "bfloat16",
    }
    assert fixes(backend="torch", config=config) == {}
    moe = {
        "architectures": ["PhimoeForCausalLM"],
        "model_type": "phimoe",
        "num_local_experts": 4,
        **RESAVED,
    }
    assert fixes(backend="openvino", config=moe)["F7"]["patch"]["architectures"] == [
        "PhiMoEForCausalLM"
    ]


UNIFORM: dict[
    str, tuple[Facts, Facts]
] = {  # backend: options that are uniform, and some that are not
    "onnxruntime": ({}, {"mixed": "down"}),
    "openvino": ({}, {"ratio": 0.8}),
    "llamacpp": ({"type": "Q4_0"}, {}),
    "mlx": ({}, {"mixed": "mixed_4_6"}),
    "qnn": ({"keep_8bit": []}, {}),
    "torch": ({}, {}),
    "litert": ({}, {"map": {"layers.*.mlp.down_proj": {"bits": 8}}}),
}


@pytest.mark.parametrize("name", backends.names())
def test_every_backend_warns_of_a_phi_4_mini_in_four_bits_alone(name: str) -> None:
    def warned(precision: str, options: Facts, **more: Any) -> bool:
        chosen = backends.load(name).options.model_validate(options)
        recipe, mini = (
            recipe_of({"backend": name, "precision": precision}),
            checkpoint_of(MINI | more),
        )
        return any(
            a.rule == "D02" and a.hint
            for a in rules.check(Job(recipe, chosen, mini), model_rules.RULES)
        )

    uniform, mixed = UNIFORM[name]
    assert warned("int4", uniform)
    assert not warned("int4", uniform, tied=False)
    assert not warned("int8", uniform)
    assert name == "torch" or not warned("int4", mixed)


@pytest.mark.parametrize("name", ["vision", "audio"])
def test_parts_are_named_in_the_refusal(name: str) -> None:
    shape = checkpoint_of({"config": {f"{name}_config": {"hidden_size": 8}}})
    job = Job(recipe_of({}), SimpleNamespace(**OPTIONS), shape)
    (advice,) = rules.check(job, model_rules.RULES)
    assert (advice.rule, f"{name} parts" in advice.message) == ("M03", True)


def test_a_backend_that_takes_a_model_whole_is_not_refused() -> None:
    shape = checkpoint_of(
        {
            "config": {
                "architectures": ["Phi3VForCausalLM"],
                "img_processor": {"name": "clip_vision_model"},
            }
        }
    )
    told = {
        b: rules.check(
            Job(recipe_of({"backend": b}), SimpleNamespace(**OPTIONS), shape), model_rules.RULES
        )
        for b in ("openvino", "mlx")
    }
    assert [a.rule for a in told["mlx"]] == ["M03"]
    assert [a.rule for a in told["openvino"] if a.level == "error"] == []
