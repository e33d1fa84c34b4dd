"""Qualcomm NPUs: static graphs against transformers, fixed point, contexts on the emulator."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from testing import small_package
from testing.checkpoints import source, tie
from testing.drive import drive, facts_of, section
from testing.plans import planned
from testing.shapes import phi3

from phipipe.backends import qnn, rules
from phipipe.backends.base import Job
from phipipe.backends.qnn import stages
from phipipe.backends.qnn.shape import shape_of
from phipipe.errors import StepFailed, TargetError
from phipipe.hub import take
from phipipe.models.checkpoint import Checkpoint
from phipipe.package import card, programs
from phipipe.package.description import Description
from phipipe.steps import Step

DRIVER = Path(__file__).parent / "driver.py"

ON_NPU = ("device=snapdragon-x-npu", "backend=qnn", "quantize={}")
PARTLY_ROTATED = {
    "max_position_embeddings": 8192,
    "original_max_position_embeddings": 512,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {
        "type": "longrope",
        "short_factor": [1 + i / 64 for i in range(24)],
        "long_factor": [2 + i / 8 for i in range(24)],
    },
}


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the driver found out in the toolchain's Python, against logits of transformers."""
    root = tmp_path_factory.mktemp("qnn")
    source(root / "source")
    source(root / "longrope", **PARTLY_ROTATED)
    tie(source(root / "tied", tie_word_embeddings=True))
    stories = take.ASSETS / "stories"
    drive(
        python_of("torch"),
        "-m",
        "testing.reference",
        root,
        stories / "evaluation.txt",
        "250",
        "source",
        "longrope",
        "tied",
    )
    shutil.copytree(root / "source", root / "words" / "source")
    drive(
        python_of("torch"),
        "-m",
        "testing.reference",
        root / "words",
        stories / "calibration.txt",
        "1536",
        "source",
    )
    ids = json.loads((root / "words" / "ids.json").read_text())
    (root / "calibration.json").write_text(
        json.dumps([ids[i : i + 256] for i in range(0, 1536, 256)])
    )
    return facts_of(python_of("qnn"), DRIVER, root)


def recipe(precision: str = "int8", window: int = 512, calibrate: int = 512) -> Any:
    evaluate = SimpleNamespace(window=window, tokens=4096)
    calibration = SimpleNamespace(window=calibrate, tokens=16_384)
    return SimpleNamespace(
        precision=precision, backend="qnn", evaluate=evaluate, calibrate=calibration
    )


def checkpoint(**changes: Any) -> Checkpoint:
    return phi3(**{"parameters": 10_000_000, **changes})


def advice(asked: Any, shape: Any = None, **options: Any) -> list[tuple[str, str]]:
    found = rules.check(Job(asked, qnn.Options(**options), shape or checkpoint()), qnn.RULES)
    return [(entry.rule, entry.level) for entry in found]


@pytest.mark.parametrize(
    "wrong",
    [
        {"soc": "888"},
        {"prompt_length": 100},
        {"context_length": 32},
        {"context_length": True},
        {"arch": 73},
        {"parts": 0},
        {"parts": True},
    ],
)
def test_wrong_options_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        qnn.Options.model_validate(wrong)


def test_what_cannot_be_compiled_is_refused_with_its_reason() -> None:
    assert advice(recipe()) == []
    assert advice(recipe(), checkpoint(model_type="phimoe")) == [("Q01", "error")]
    assert advice(recipe(), checkpoint(context_length=256)) == [("Q02", "error")]
    assert advice(recipe(window=256), context_length=500) == [("Q05", "error")]
    assert advice(recipe(window=1024)) == [("Q06", "error")]
    assert advice(recipe(), keep_8bit=["down"]) == [("Q07", "warning")]
    assert advice(recipe(calibrate=64)) == [("Q08", "error")]
    assert advice(recipe(), parts=32) == []
    assert advice(recipe(), parts=33) == [("Q09", "error")]
    long = checkpoint(longrope=True, context_length=131072)
    assert advice(recipe(), long) == []
    assert advice(recipe(), long, context_length=8192) == [("Q11", "error")]
    assert advice(recipe(window=8192), long, context_length=8192) == []
    assert advice(recipe(), checkpoint(sliding_window=500)) == [("Q12", "error")]
    assert advice(recipe(), checkpoint(sliding_window=2047)) == []
    llama = checkpoint(model_type="llama")
    assert advice(recipe(), llama) == []
    assert advice(recipe(), llama, rotate="quarot") == [("Q13", "error")]
    scaled = phi3({"rope_scaling": {"rope_type": "proportional"}}, parameters=10_000_000)
    assert advice(recipe(), scaled) == [("Q14", "error")]
    bare = phi3({"model_type": "smollm3"}, parameters=10_000_000)
    assert advice(recipe(), bare, parts=8) == []
    assert advice(recipe(), bare, parts=32) == [("Q15", "error")]
    assert advice(recipe(), checkpoint(parameters=3_800_000_000)) == [("Q10", "warning")]


def steps(asked: Any, options: qnn.Options | None = None, **changes: Any) -> dict[str, Step]:
    made = qnn.steps(Job(asked, options or qnn.Options(), checkpoint(**changes), {}))
    return {step.name: step for step in made}


def test_a_large_model_is_scored_in_fixed_point_and_emulated_for_a_few_tokens() -> None:
    small, large = (steps(recipe(), parameters=n) for n in (10_000_000, 3_800_000_000))
    assert [name for name, step in small.items() if step.twin] == ["compile-apart"]
    assert [name for name, step in large.items() if step.twin] == ["quantize"]
    assert "quantize" not in small
    assert "compile-apart" not in large, "nobody opens it"
    for made, decoded in ((small, 32), (large, 2)):
        assert [name for name, step in made.items() if step.tried] == ["emulate-head"]
        assert {s.params["decoded"] for s in made.values() if s.runs == "qnn/emulate"} == {decoded}


def test_what_is_emulated_is_checked_once_all_stages_are() -> None:
    plan = {step.name: step for step in planned(*ON_NPU).steps}
    assert plan["emulate"].needs == {"decoded": "emulate-head", "baseline": "baseline"}
    assert plan["emulate"].params["decoded"] == 32
    assert plan["emulate-head"].needs == {"compiled": "compile-apart-head", "before": "emulate-0"}
    assert plan["package"].needs["artifact"] == "compile"
    assert plan["package"].params["twin"] == "compile-apart"


def test_each_stage_is_quantized_compiled_and_emulated_by_itself() -> None:
    made = steps(recipe("int4"), qnn.Options(soc="8-elite", parts=2))
    for stage, of in (("0", "decoder_0"), ("1", "decoder_1"), ("head", "head")):
        assert made[f"quantize-{stage}"].needs == {"model": "convert", "ranges": "calibrate"}
        assert made[f"quantize-{stage}"].params == {
            "stage": of,
            "bits": 4,
            "keep_8bit": ["down_proj", "lm_head"],
        }
        for verb, shared in (("compile-apart", False), ("compile", True)):
            step = made[f"{verb}-{stage}"]
            assert step.needs == {"model": f"quantize-{stage}"}
            chip = {"model": 69, "arch": 79}
            assert step.params == {"stage": of, "soc": chip, "shared": shared}
    assert list(made)[-1] == "compile"
    read = list(made["compile"].needs.values())
    assert read == ["convert", "compile-0", "compile-1", "compile-head"]
    assert steps(recipe())["quantize-0"].params["keep_8bit"] == []


def test_the_ranges_serve_every_precision_and_map() -> None:
    def of(*sets: str) -> dict[str, Step]:
        return {step.name: step for step in planned(*ON_NPU, *sets).steps}

    usual, wide = of("precision=int4"), of("precision=int8")
    mapped = of("precision=int4", "quantize.parts=2", 'quantize.map={"layers.3.*": {bits: 8}}')
    parts = of("precision=int4", "quantize.parts=2")
    assert usual["calibrate"] == wide["calibrate"]
    assert usual["quantize-0"] != wide["quantize-0"]
    changed = [name for name in parts if parts[name].params != mapped[name].params]
    assert [name for name in changed if name.startswith("quantize")] == ["quantize-1"]


def test_memory_and_time_of_a_stage_follow_its_size() -> None:
    whole, split = (steps(recipe(), qnn.Options(parts=n)) for n in (1, 4))
    for verb in ("compile-apart", "compile", "emulate"):
        one, four = whole[f"{verb}-0"], split[f"{verb}-0"]
        assert one.memory_bytes > 3 * four.memory_bytes - 3 * 2**30
        assert one.seconds is not None
        assert four.seconds is not None
        assert one.seconds == pytest.approx(4 * four.seconds, rel=0.1)
    few = steps(recipe(), qnn.Options(parts=4), parameters=3_800_000_000)
    assert (few["emulate-0"].seconds or 0) < (split["emulate-0"].seconds or 0)


def test_a_full_size_build_is_foretold_in_minutes_that_grow_with_context_and_tokens() -> None:
    def seconds(verb: str, **options: Any) -> float:
        made = steps(recipe(), qnn.Options(**options), parameters=3_800_000_000)
        return sum(s.seconds or 0 for s in made.values() if s.runs == f"qnn/{verb}")

    usual, long = ({"context_length": n} for n in (512, 2048))
    assert 500 < seconds("compile", **usual) < seconds("compile", **long) < 2400
    assert 300 < seconds("emulate", **usual) < seconds("emulate", **long) < 1800
    assert seconds("emulate", prompt_length=256) > seconds("emulate")
    assert seconds("calibrate") == pytest.approx(0.06 * 3.7 * 16_384, rel=0.1)


def test_the_step_holds_the_widths_of_the_map() -> None:
    text = '{"layers.0.*": {bits: 8}, lm_head: {bits: 4}}'
    plan = planned(*ON_NPU, f"quantize.map={text}")
    made = {step.name: step for step in plan.steps}
    assert made["quantize-head"].params["widths"] == {
        "lm_head": {"bits": 4, "group_size": None},
    }
    assert len(made["quantize-0"].params["widths"]) == 4
    sizes = {one.name: one.size_bytes for one in plan.matrices}
    assert sizes["lm_head"] == 2304 * 256 // 2
    assert sizes["layers.*.mlp.down_proj"] == 256 * 768
    usual = {step.name: step for step in planned(*ON_NPU).steps}
    assert "widths" not in usual["quantize-0"].params
    # of the first layer all but down are wider now, and the head is narrower
    wider = (512 + 256 + 1536) * 256 - 2304 * 256
    assert made["compile"].output_bytes - usual["compile"].output_bytes == wider // 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lm_head: {bits: 16}", "no 16 bits, but 4 and 8"),
        ("lm_head: {bits: 8, group_size: 32}", "no groups of 32 at 8 bits, but -1"),
        ("embed_tokens: {bits: 8}", "no choice of widths for `embed_tokens`"),
        ("lm_head: w8", "no type `w8`"),
    ],
)
def test_a_map_that_cannot_be_is_refused(text: str, words: str) -> None:
    with pytest.raises(TargetError, match=words):
        planned(*ON_NPU, f"quantize.map={{{text}}}")


def test_the_scheme_tells_of_the_map() -> None:
    chosen = qnn.Options.model_validate({"map": {"lm_head": {"bits": 4}}})
    told = qnn.scheme(Job(recipe("int4"), chosen))
    assert told == "w4a16, lm_head and down_proj at 8 bits, map, 8-bit caches"


def test_the_layers_are_split_by_their_bytes_unless_the_recipe_says_into_how_many() -> None:
    def parts(precision: str, shape: Any = None, **options: Any) -> Any:
        return qnn.steps(Job(recipe(precision), qnn.Options(**options), shape or checkpoint(), {}))[
            0
        ].params["parts"]

    assert parts("int8") == parts("int4") == 4  # 32 layers of 108 MiB at 8 bits
    assert parts("int8", checkpoint(layers=2)) == 1
    assert parts("int8", checkpoint(layers=3, intermediate_size=300_000)) == 3, (
        "a layer is never split"
    )
    assert parts("int4", parts=7) == 7


def test_parts_are_consecutive_layers_of_nearly_one_size() -> None:
    assert stages.ranges_of(4, 1) == [range(4)]
    assert stages.ranges_of(7, 3) == [range(3), range(3, 5), range(5, 7)]
    assert list(stages.stages({"layers": 4, "parts": 2})) == [
        "decoder_0",
        "decoder_1",
        "head",
    ]


@pytest.mark.parametrize("template", [None, {"sha256": "0"}])
def test_the_cards_snippet_registers_the_provider_and_keeps_to_the_context(template: Any) -> None:
    step = {"key": "k", "digest": "d", "inputs": {}}
    tools = {"onnxruntime-qnn": "2.7.0", "onnxruntime-genai": "0.18.0"}
    described = small_package.described(
        backend="qnn",
        api="hexagon",
        context_length=4096,
        recipe={"backend": "qnn", "precision": "int4", "quantize": {"context_length": 256}},
        chat_template=template,
        steps={"compile": {**step, "tools": tools}},
    )
    program = programs.alone(Description.model_validate(described), card.environment())
    words = str(program).removeprefix("```python\n").removesuffix("```")
    compile(words, "snippet", "exec")
    assert "onnxruntime-qnn==2.7.0" in words.splitlines()[0]
    assert "register_execution_provider_library" in words
    assert "max_length=256" in words
    assert ("apply_chat_template" in words) is bool(template)


def test_models_that_static_graphs_do_not_know_are_named() -> None:
    config = {"model_type": "phi", "num_attention_heads": 4, "hidden_size": 256}
    with pytest.raises(StepFailed, match="not `phi`"):
        shape_of(config, 64, 512)
    scaled = {"model_type": "phi3", "rope_scaling": {"type": "dynamic"}}
    with pytest.raises(StepFailed, match="`dynamic`"):
        shape_of(config | scaled, 64, 512)


def test_longropes_factors_follow_the_compiled_context() -> None:
    config = (
        json.loads((take.BUILTIN_MODELS["tiny-phi3"] / "config.json").read_text("utf-8"))
        | PARTLY_ROTATED
    )
    short, long = (shape_of(config, 64, context) for context in (512, 1024))
    assert short.rotary == 48
    assert short.inverse_frequencies[0] == 1
    assert long.inverse_frequencies[0] == 0.5
    assert short.attention_factor == pytest.approx((1 + 4 / 9) ** 0.5)


@pytest.mark.parametrize("name", ["source", "tied", "longrope"])
def test_static_graphs_are_exact_in_chunks_and_token_by_token(
    facts: dict[str, Any], name: str
) -> None:
    found = section(facts, "convert")[name]
    assert found["chunks"] < 1e-6
    assert found["decoded"] < 1e-6
    assert found["chain"]


def test_fixed_point_is_close_prompt_and_decode_together(facts: dict[str, Any]) -> None:
    found = section(facts, "quantize")
    assert found["int8"]["kld"] < 2e-3
    assert found["int8"]["kld"] < found["int4"]["kld"] < 1e-2
    assert found["int8"]["caches"] == "uint8"
    assert found["reproducible"]


def test_every_linear_has_the_bits_that_were_asked(facts: dict[str, Any]) -> None:
    found = section(facts, "quantize")
    assert found["down"]
    assert found["gate"]
    for name, words in (
        ("scales", "no scale for each of its outputs"),
        ("lost", "no linear that holds `layers.9.mlp.down_proj`"),
        ("wrong_bits", "asked was 4"),
        ("float", "floating point"),
        ("range", "another range"),
    ):
        assert found[name][0] == "StepFailed", name
        assert words in found[name][1]


def test_a_map_gives_single_linears_their_bits(facts: dict[str, Any]) -> None:
    attention = [f"layers.0.self_attn.{one}_proj" for one in "kqv"]
    assert section(facts, "quantize")["eights"] == [
        *attention,
        "layers.1.mlp.gate_proj",
        "layers.1.mlp.up_proj",
    ]
    assert section(facts, "compile")["map"] < 2e-2


def test_a_width_changes_its_own_stage_alone(facts: dict[str, Any]) -> None:
    assert section(facts, "quantize")["apart"] == {
        "layers.0.mlp.gate_up_proj": ["decoder_0"],
        "layers.4.mlp.gate_up_proj": ["decoder_1"],
    }


def test_too_short_a_calibration_says_what_it_takes(facts: dict[str, Any]) -> None:
    kind, words, _ = section(facts, "quantize")["short"]
    assert kind == "StepFailed"
    assert "2 windows of 70 tokens" in words


@pytest.mark.parametrize("name", ["apart", "shared", "other"])
def test_every_graph_is_one_context(facts: dict[str, Any], name: str) -> None:
    assert section(facts, "compile")[name]["nodes"] == ["EPContext"] * 4


def test_contexts_are_the_same_wherever_the_graphs_lie(facts: dict[str, Any]) -> None:
    assert section(facts, "compile")["anywhere"]


def test_prompt_and_token_graphs_share_their_weights(facts: dict[str, Any]) -> None:
    found = section(facts, "compile")
    assert len(found["apart"]["binaries"]) == 4
    assert len(found["shared"]["binaries"]) == 2
    assert sum(found["shared"]["binaries"].values()) < 0.75 * sum(
        found["apart"]["binaries"].values()
    )


def test_the_emulated_npu_decodes_as_the_original(facts: dict[str, Any]) -> None:
    assert section(facts, "compile")["kld"] < 1e-2


def test_stages_one_after_another_compute_what_all_do_in_turn(facts: dict[str, Any]) -> None:
    found = section(facts, "compile")["emulated"]
    assert found["same"], "bit for bit"
    assert found["by"] == "Qualcomm's HTP emulator"
    assert found["short"][0] == "StepFailed"
    assert "decode 16 tokens after a prompt of 64" in found["short"][1]


def test_what_the_emulator_cannot_load_is_said(facts: dict[str, Any]) -> None:
    kind, words, _ = section(facts, "compile")["shared on the emulator"]
    assert kind == "StepFailed"
    assert "share their weights" in words


def test_a_graph_that_is_not_whole_on_the_npu_is_refused(facts: dict[str, Any]) -> None:
    kind, words, _ = section(facts, "compile")["broken"]
    assert kind == "StepFailed"
    assert "`head_prompt.onnx` falls apart" in words
    assert "NonZero" in words


def test_the_pipelines_config_names_every_graph_and_its_chip(facts: dict[str, Any]) -> None:
    found = section(facts, "compile")
    stages = found["other"]["config"]["model"]["decoder"]["pipeline"]
    assert [next(iter(stage)) for stage in stages] == [
        "embedding",
        "decoder_0_prompt",
        "decoder_0_token",
        "head_prompt",
        "head_token",
    ]
    options = stages[1]["decoder_0_prompt"]["session_options"]["provider_options"]
    assert options[0]["qnn"]["soc_model"] == "69"
    assert options[0]["qnn"]["enable_htp_shared_memory_allocator"] == "1"
    assert found["ids"][0] == found["ids"][1], "onnxruntime-genai reads the folder"


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_split_model_predicts_as_the_whole_one(facts: dict[str, Any], parts: int) -> None:
    found = section(facts, "split")
    assert found[str(parts)]["difference"] < 1e-6
    assert found[str(parts)]["fixed"] < 2e-3
    assert found[str(parts)]["compiled"] == pytest.approx(found["1"]["compiled"], rel=0.05)
    assert found[str(parts)]["nodes"] == ["EPContext"] * 2 * (parts + 1)


def test_a_split_models_pipeline_hands_hidden_states_on(facts: dict[str, Any]) -> None:
    stages = {
        name: stage
        for entry in section(facts, "split")["2"]["pipeline"]
        for name, stage in entry.items()
    }
    assert list(stages) == [
        "embedding",
        "decoder_0_prompt",
        "decoder_0_token",
        "decoder_1_prompt",
        "decoder_1_token",
        "head_prompt",
        "head_token",
    ]
    first, second = stages["decoder_0_prompt"], stages["decoder_1_prompt"]
    assert first["inputs"][0] == "inputs_embeds"
    assert first["outputs"][0] == second["inputs"][0] == "hidden_states_3"  # of five layers
    assert second["outputs"][0] == stages["head_prompt"]["inputs"][0] == "hidden_states"
    assert "past_key_2" in first["inputs"]
    assert "past_key_3" not in first["inputs"]
    assert "present_value_4" in second["outputs"]


def test_weights_are_written_once_and_only_what_is_needed_goes_on(facts: dict[str, Any]) -> None:
    found = section(facts, "split")["2"]
    data = {"decoder_0.data", "decoder_1.data", "head.data", "embedding.data"}
    assert {name for name in found["float files"] if name.endswith(".data")} == data
    assert {name for name in found["compiled files"] if name.endswith(".data")} == {
        "embedding.data"
    }


def test_weights_are_rounded_to_the_nearest_step(facts: dict[str, Any]) -> None:
    found = section(facts, "round_off")
    assert found["8"]["range"][1] - found["8"]["range"][0] > 200
    assert found["4"]["range"] == [-8, 7]
    assert found["8"]["scales"] == found["4"]["scales"] == [found["outputs"]]
    assert max(found[width]["steps off"] for width in ("8", "4")) < 0.501
    assert found["pairs"] == [0xF1, 0x87, 0x30, 0x52, 0x0D]
