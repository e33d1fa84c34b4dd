"""llama.cpp: options and rules; conversion equal to upstream's; what each type really stores;
vocabulary; LongRoPE."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from testing.drive import drive, read
from testing.shapes import phi3

from phipipe.backends import llamacpp, rules
from phipipe.backends.base import Job
from phipipe.backends.llamacpp import frames, modelfile, pre_tokenizers, stored
from phipipe.backends.llamacpp.types import TYPES
from phipipe.errors import StepFailed
from phipipe.hub import take
from phipipe.models import checkpoints
from phipipe.models.checkpoint import Checkpoint
from phipipe.processes.children import python_command
from phipipe.recipe.learned import Weights
from phipipe.sandbox import chat_templates
from phipipe.toolchains.environments import LOCKS

TINY = take.BUILTIN_MODELS["tiny-phi3"]
DRIVER = Path(__file__).parent / "driver.py"


def locked(name: str) -> str:
    lines = (LOCKS / "llamacpp.txt").read_text("utf-8").splitlines()
    return next(line for line in lines if line.startswith(f"{name}=="))


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive of the locked llama-cpp-python, which carries llama.cpp's
    own converter."""
    folder = tmp_path_factory.mktemp("llamacpp")
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--no-binary",
        ":all:",
    ]
    subprocess.run(
        [*command, "--dest", str(folder / "sdist"), locked("llama-cpp-python")], check=True
    )
    return folder


@pytest.fixture(scope="session")
def converted(work: Path, python_of: Callable[[str], Path]) -> dict[str, Any]:
    drive(python_of("torch"), DRIVER, work, "torch")
    return read(work / "torch.json")


@pytest.fixture(scope="session")
def quantized(
    converted: dict[str, Any], work: Path, python_of: Callable[[str], Path]
) -> dict[str, Any]:
    drive(python_of("llamacpp"), DRIVER, work, "llamacpp")
    return read(work / "llamacpp.json")


def recipe(precision: str = "int4", **more: Any) -> Any:
    source = SimpleNamespace(repo=None, builtin="tiny-phi3", adapter=None)
    evaluate = SimpleNamespace(window=512)
    calibrate = SimpleNamespace(window=512, tokens=4096)
    facts = {
        "precision": precision,
        "backend": "llamacpp",
        "source": source,
        "evaluate": evaluate,
        "calibrate": calibrate,
        "context": None,
        "weights": Weights(),
    }
    return SimpleNamespace(**facts | more)


def checkpoint(**more: Any) -> Checkpoint:
    small: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 768,
        "model_type": "phi",
        "context_length": 2048,
    }
    small |= {"original_context_length": 2048, "parameters": 10_000}
    return phi3({"torch_dtype": "bfloat16"}, **small | more)


def advised(
    options: dict[str, Any], precision: str = "int4", context: int | None = None, **more: Any
) -> dict[str, str]:
    made = llamacpp.Options.model_validate(options)
    return {
        a.rule: a.level
        for a in rules.check(
            Job(recipe(precision, context=context), made, checkpoint(**more)), llamacpp.RULES
        )
    }


def steps(options: dict[str, Any], precision: str = "int4") -> list[Any]:
    return llamacpp.steps(
        Job(recipe(precision), llamacpp.Options.model_validate(options), checkpoint(), {})
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "MXFP4_MOE"},
        {"type": "NVFP4"},
        {"type": "Q4_0_4_4"},
        {"imatrix": "yes"},
        {"tensors": {"a": "Q4"}},
    ],
)
def test_types_that_are_gone_or_mislead_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        llamacpp.Options.model_validate(wrong)


def test_every_type_has_a_name_in_the_options() -> None:
    named = llamacpp.Options.model_json_schema()["properties"]["type"]["anyOf"][0]["enum"]
    assert named == list(TYPES)


def test_options_describe_themselves() -> None:
    fields = llamacpp.Options.model_json_schema()["properties"].values()
    assert all(field.get("description") for field in fields)


@pytest.mark.parametrize(
    ("precision", "kind"), [("fp32", "F32"), ("fp16", "F16"), ("int8", "Q8_0"), ("int4", "Q4_K_M")]
)
def test_each_precision_has_its_default(precision: str, kind: str) -> None:
    assert llamacpp.scheme(Job(recipe(precision), llamacpp.Options())) == kind


@pytest.mark.parametrize(
    ("options", "precision", "rules"),
    [
        ({}, "int4", {}),
        ({"type": "IQ2_XS"}, "int4", {"L01": "error"}),
        ({"type": "IQ2_XS", "imatrix": True}, "int4", {}),
        ({"type": "Q8_0"}, "int4", {"L10": "error"}),
        ({"type": "Q4_0"}, "int8", {"L10": "error"}),
        ({"type": "F16"}, "int8", {"L10": "error"}),
        ({"type": "F16"}, "fp32", {"L10": "error"}),
        ({"type": "BF16"}, "fp16", {}),
        ({"pure": True}, "fp16", {"L14": "warning"}),
        ({"type": "Q6_K"}, "int4", {}),
    ],
)
def test_rules_about_types(options: dict[str, Any], precision: str, rules: dict[str, str]) -> None:
    assert advised(options, precision) == rules


def test_blocks_must_divide_the_layers() -> None:
    assert advised({}, intermediate_size=800) == {"L11": "error"}
    assert advised({"type": "Q4_0"}, intermediate_size=800) == {}
    assert advised({"type": "Q4_0"}, intermediate_size=801) == {"L12": "error"}
    assert advised({}, "fp16", intermediate_size=801) == {}


def test_one_tensor_is_not_named_twice() -> None:
    both = {"output_type": "Q6_K", "embedding_type": "Q8_0"}
    assert advised(both, tied=True) == {"L05": "error"}
    assert advised(both) == {}


def test_windows_and_longrope_are_told() -> None:
    assert advised({}, sliding_window=500) == {"M09": "error", "M15": "warning"}
    assert advised({}, sliding_window=1000) == {"M15": "warning"}
    assert advised({}, sliding_window=1000, context=1000) == {}
    assert advised({}, context_length=131072) == {}
    assert advised({}, longrope=True, context_length=131072) == {"M10": "warning"}
    assert advised({}, longrope=True, context_length=131072, context=2048) == {}


def test_characters_that_llamacpp_cuts_off_are_told() -> None:
    assert advised({}, keeps_marks=True) == {"L17": "warning"}


def test_a_vocabulary_of_another_kind_is_refused() -> None:
    for model_type in ("phi", "phi3", "llama", "qwen3"):
        assert advised({}, model_type=model_type, tokenizer="other") == {"L08": "error"}
        assert advised({}, model_type=model_type, tokenizer="gpt2") == {}
        assert advised({}, model_type=model_type, tokenizer="sentencepiece") == {}


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({}, {}),
        ({"no_rope_layers": [1, 1, 1, 0]}, {}),
        ({"no_rope_layer_interval": 4}, {}),
        ({"no_rope_layers": [1, 0, 1, 0]}, {"L16": "error"}),
        ({"no_rope_layer_interval": 2}, {"L16": "error"}),
        ({"no_rope_layers": []}, {}),
    ],
)
def test_other_layers_without_positions_are_refused(
    config: dict[str, Any], found: dict[str, str]
) -> None:
    shape = dataclasses.replace(
        checkpoint(model_type="smollm3", layers=4, tokenizer="gpt2"), config=config
    )
    job = Job(recipe(), llamacpp.Options(), shape)
    assert {a.rule: a.level for a in rules.check(job, llamacpp.RULES)} == found


def cutting(cuts: tuple[str, ...], **model: Any) -> str:
    """A ``tokenizer.json`` that cuts text in these ways, as the tokenizers library writes it."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": "GPT-2" in cuts}
    digits = {"type": "Digits", "individual_digits": True}
    splits = [
        {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}
        for cut in cuts
        if cut not in ("GPT-2", "digits")
    ]
    parts = [*splits, *([digits] if "digits" in cuts else []), level]
    cut = {"type": "Sequence", "pretokenizers": parts} if len(parts) > 1 else level
    return json.dumps({"pre_tokenizer": cut, "model": model})


@pytest.mark.parametrize("cuts", pre_tokenizers.PRE_TOKENIZERS)
def test_how_text_is_cut_tells_the_vocabularys_kind(tmp_path: Path, cuts: tuple[str, ...]) -> None:
    (tmp_path / "tokenizer.json").write_text(cutting(cuts), "utf-8")
    assert pre_tokenizers.name_of(tmp_path) == pre_tokenizers.PRE_TOKENIZERS[cuts]


def test_words_that_are_tokens_whatever_their_merges_are_llama_3s(tmp_path: Path) -> None:
    (cuts,) = (cuts for cuts, name in pre_tokenizers.PRE_TOKENIZERS.items() if name == "dbrx")
    for whole, name in ((True, "llama-bpe"), (False, "dbrx")):
        text = cutting(cuts, type="BPE", ignore_merges=whole)
        (tmp_path / "tokenizer.json").write_text(text, "utf-8")
        assert pre_tokenizers.name_of(tmp_path) == name


@pytest.mark.parametrize(
    "cut", [None, {"type": "Whitespace"}, {"type": "Split", "pattern": {"Regex": "[a-z]+"}}]
)
def test_other_ways_of_cutting_text_are_refused(tmp_path: Path, cut: object) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"pre_tokenizer": cut}), "utf-8")
    with pytest.raises(StepFailed, match="knows neither"):
        pre_tokenizers.name_of(tmp_path)


def test_quantized_types_share_a_conversion_at_the_sources_width() -> None:
    assert (
        steps({})[:2]
        == steps({"type": "Q8_0"}, "int8")[:2]
        == steps({"type": "IQ2_XS", "imatrix": True})[:2]
    )
    assert steps({})[0].params["type"] == "BF16"
    names = ["outline", "convert", "imatrix", "quantize"]
    assert [s.name for s in steps({"imatrix": True})] == names
    assert [s.unquantized for s in steps({})] == [None, "bfloat16", None]
    found = [(s.name, s.unquantized) for s in steps({}, "fp32")]
    assert found == [("outline", None), ("convert", "float32")]


def test_quantization_reads_no_copy_in_floats_and_a_large_model_has_none() -> None:
    (*_, quantize) = steps({"imatrix": True})
    assert set(quantize.needs.values()) == {"outline", "source", "imatrix"}
    large = Job(recipe("int4"), llamacpp.Options(), checkpoint(parameters=4 * 10**9), {})
    made = {s.name: s for s in llamacpp.steps(large)}
    assert list(made) == ["outline", "quantize"]
    assert sum(s.output_bytes for s in made.values()) < 3 * 10**9
    assert [s.name for s in llamacpp.steps(replace_precision(large))] == ["outline", "convert"]


def replace_precision(job: Any) -> Any:
    return dataclasses.replace(job, recipe=recipe("fp16"))


def test_parameters_of_steps_are_json() -> None:
    for step in steps({"tensors": {"ffn_down": "Q8_0"}, "imatrix": True}):
        assert json.loads(json.dumps(step.params)) == step.params


@pytest.mark.parametrize(
    ("folder", "tokenizer", "name"),
    [
        ("my-model", "sentencepiece", "Phi-3 my-model"),
        ("my-Phi-3", "sentencepiece", "my-Phi-3"),
        ("my-model", "gpt2", "my-model"),
        (
            "Phi3-after-phi-4",
            "gpt2",
            "Phi-after-phi-4",
        ),  # llama.cpp would look for Phi-3's tokens and not load
    ],
)
def test_only_phi_3s_own_vocabulary_is_called_phi_3(folder: str, tokenizer: str, name: str) -> None:
    shape = checkpoint(folder=Path(folder), model_type="phi3", tokenizer=tokenizer)
    assert (
        llamacpp.model_name(
            recipe(source=SimpleNamespace(repo=None, builtin=None, adapter=None)), shape
        )
        == name
    )


def written(**kinds: str) -> list[stored.Tensor]:
    return [stored.Tensor(n.replace("__", "."), kind, (256, 256)) for n, kind in kinds.items()]


ASKED = {"type": "Q4_0", "pure": False, "tensors": [], "output_type": None, "embedding_type": None}


def test_what_was_stored_is_compared_with_what_was_asked() -> None:
    stored.check_quantized(written(blk__0="Q4_0", output="Q6_K"), "Q4_0", ASKED)
    for kinds, words in (
        ({"blk__0": "F16"}, "left `blk.0` in F16"),
        ({"blk__0": "Q8_0"}, "`blk.0` is stored in Q8_0"),
    ):
        with pytest.raises(StepFailed, match=words):
            stored.check_quantized(written(**kinds), "Q4_0", ASKED)
    with pytest.raises(StepFailed, match="was asked for in Q8_0"):
        stored.check_quantized(
            written(blk__0="Q4_0"), "Q4_0", ASKED | {"tensors": [["blk", "Q8_0"]]}
        )
    kinds = {"blk__0": "Q4_0", "blk__1": "Q6_K"}
    with pytest.raises(StepFailed, match="stored in Q6_K"):
        stored.check_quantized(written(**kinds), "Q4_0", ASKED | {"pure": True})
    with pytest.raises(StepFailed, match="not F16"):
        stored.check_floats(written(blk__0="BF16"), "F16")


@pytest.mark.parametrize(
    ("template", "fits"),
    [
        (
            lambda m: (
                "".join(f"<|{x['role']}|>\n{x['content']}<|end|>\n" for x in m) + "<|assistant|>\n"
            ),
            True,
        ),
        (
            lambda m: (
                "<s>" + "".join(f"[{x['role']}] {x['content']} [/]" for x in m) + "[assistant] "
            ),
            True,
        ),
        (lambda m: m[0]["content"], False),
        (
            lambda m: (
                f"{len(m)}"
                + "".join(f"<|{x['role']}|>{x['content']}<|end|>" for x in m)
                + "<|assistant|>"
            ),
            False,
        ),
    ],
)
def test_a_chat_template_is_kept_only_if_it_says_the_same(template: Any, fits: bool) -> None:
    found = frames.frames(template)
    assert (found is not None) is fits
    if found:
        chat = ("user", "assistant", "user", "assistant", "user")
        assert frames.carried_out(found, chat) == template(frames.messages(chat))


def test_braces_in_a_template_are_text_in_go() -> None:
    frame = {"system": ("", ""), "user": ("{{", "}}"), "assistant": ("", "")}
    assert '{{ "{{" }}{{ .Content }}}}' in modelfile.go_template(frames.Layout("", frame, ""))


PLAIN = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
TOOLED = (  # Phi-4-mini's
    "{% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and "
    "message['tools'] is not "
    "none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + "
    "message['tools'] + '<|/tool|>' + "
    "'<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' "
    "}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def translated(template: str) -> modelfile.Template:
    renderer = chat_templates.Renderer(template)
    try:
        return modelfile.translated(renderer.render, template)
    finally:
        renderer.close()


def test_a_role_that_the_template_refuses_is_left_out_and_that_is_said() -> None:
    strict = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
    )
    made = translated(strict)
    assert made.go is not None
    assert "system" not in made.go
    assert '{{ if eq .Role "user" }}<|user|>{{ .Content }}<|end|>' in made.go
    assert any("refuses system messages" in remark for remark in made.remarks)


def test_a_template_that_refuses_every_chat_has_no_equal() -> None:
    made = translated("{{ raise_exception('never') }}")
    assert made.go is None
    assert any("has no equal" in remark for remark in made.remarks)


@pytest.mark.parametrize(
    "dated",
    [
        "{{ strftime_now('%d %b %Y') }}",
        "{% set f = strftime_now %}{{ f('%Y-%m-%d') }}",
        "{# strftime_now #}",
    ],
)
def test_no_day_is_baked_into_a_modelfile(dated: str) -> None:
    made = translated(dated + PLAIN)
    assert made.go is None
    assert any("today's date" in remark for remark in made.remarks)


def test_tools_are_kept_where_the_template_has_them() -> None:
    made = translated(TOOLED)
    assert made.go is not None
    assert (
        "{{ if $.Tools }}<|tool|>{{ $.Tools }}<|/tool|><|end|>{{ else }}<|end|>{{ end }}" in made.go
    )
    assert '{{ else if eq .Role "tool" }}<|tool|>{{ .Content }}<|end|>' in made.go
    assert made.remarks == ()
    assert "$.Tools" not in str(translated(PLAIN).go)


def test_tools_that_cannot_be_kept_are_said() -> None:
    made = translated(
        "{% if tools %}{% for tool in tools %}{{ tool|tojson }}{% endfor %}{% endif %}" + PLAIN
    )
    assert made.go is not None
    assert any("tools" in remark for remark in made.remarks)


@pytest.mark.parametrize(
    ("asked", "facts", "served"),
    [
        (None, {}, 2048),
        (1024, {}, 1024),
        (None, {"context_length": 131072, "original_context_length": 131072}, 4096),
        (8192, {"context_length": 131072, "original_context_length": 131072}, 8192),
        (8192, {}, 2048),
        (None, {"context_length": 8192, "original_context_length": 512, "longrope": True}, 512),
    ],
)
def test_ollamas_context_is_the_recipes_and_never_beyond_the_models(
    asked: int | None, facts: dict[str, Any], served: int
) -> None:
    (step, *_) = llamacpp.steps(
        Job(recipe("int4", context=asked), llamacpp.Options(), checkpoint(**facts), {})
    )
    assert step.params["context"] == served


@pytest.mark.parametrize(
    ("generation", "config", "stops"),
    [
        ([2240, 2247], 2240, {"<|endoftext|>", "<|end|>"}),
        (None, [2240, 2247], {"<|endoftext|>", "<|end|>"}),
        (2240, 2240, {"<|endoftext|>", "<|end|>"}),  # the template's own end
        (None, None, {"<|endoftext|>", "<|end|>"}),
    ],
)
def test_every_token_that_ends_an_answer_is_a_stop(
    generation: Any, config: Any, stops: set[str], tmp_path: Path, python_of: Callable[[str], Path]
) -> None:
    for name in checkpoints.files(TINY):
        shutil.copyfile(TINY / name, tmp_path / name)
    for name, ends in (("generation_config.json", generation), ("config.json", config)):
        told = json.loads((tmp_path / name).read_text("utf-8"))
        (tmp_path / name).write_text(json.dumps(told | {"eos_token_id": ends}), "utf-8")
    call = "import sys; from pathlib import Path; from phipipe.backends.llamacpp import modelfile\n"
    call += "print(modelfile.text(Path(sys.argv[1]), 'model.gguf', 512))"
    done = subprocess.run(
        python_command(python_of("torch"), call, str(tmp_path)),
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r'PARAMETER stop "(.*)"', done.stdout)
    assert set(found) == stops
    assert len(found) == len(stops)
    assert "PARAMETER num_ctx 512\n" in done.stdout


class TestConversion:
    def test_it_equals_upstreams_converter_but_for_a_second_end(
        self, converted: dict[str, Any]
    ) -> None:
        assert converted["upstream"] == ["GGUF.kv_count", "tokenizer.ggml.eot_token_id"]

    def test_every_float_type_is_what_was_asked(self, quantized: dict[str, Any]) -> None:
        assert quantized["floats"] == {
            "bf16": ["BF16"],
            "f16": ["F16"],
            "f32": ["F32"],
            "pieces": ["BF16"],
            "longrope": ["F32"],
        }

    def test_it_is_the_converters_file_byte_by_byte(self, quantized: dict[str, Any]) -> None:
        assert quantized["whole"]

    def test_folder_names_change_nothing(self, converted: dict[str, Any]) -> None:
        assert converted["same_bytes"]

    def test_an_unknown_architecture_is_named(self, converted: dict[str, Any]) -> None:
        assert "UnheardOfForCausalLM" in converted["unknown"]

    def test_the_importance_matrix_has_every_linear(self, converted: dict[str, Any]) -> None:
        assert converted["imatrix_fits"]

    def test_the_modelfile_keeps_the_template_and_the_stops(
        self, converted: dict[str, Any]
    ) -> None:
        text = converted["modelfile"]
        assert "FROM ./model.gguf\n" in text
        assert '{{ else if eq .Role "user" }}<|user|>\n{{ .Content }}<|end|>\n' in text
        assert text.count("PARAMETER stop") == 2
        assert "PARAMETER num_ctx 512\n" in text
        assert 'PARAMETER stop "<|end|>"' in text
        assert converted["odd_template"] is None


class TestQuantization:
    def test_every_type_is_stored_as_itself(self, quantized: dict[str, Any]) -> None:
        raised = {
            "Q3_K_M": "Q4_K",
            "Q2_K": "Q3_K",
            "Q4_K_M": "Q4_K",
            "IQ3_S": "IQ3_S",
        }  # attn_output is raised by some
        for kind, tensor in quantized["types"].items():
            assert tensor == raised.get(kind, TYPES[kind].tensor), kind

    def test_fewer_bits_are_smaller_files(self, quantized: dict[str, Any]) -> None:
        sizes = quantized["sizes"]
        assert (
            sizes["Q8_0"]
            > sizes["Q6_K"]
            > sizes["Q5_K_M"]
            > sizes["Q4_K_M"]
            > sizes["Q3_K_M"]
            > sizes["Q2_K"]
        )

    def test_smallest_types_are_refused_without_importance(self, quantized: dict[str, Any]) -> None:
        assert "IQ2_XXS" in quantized["refused"]
        assert quantized["imatrix_matters"]
        assert "blk.3.ffn_down.weight" in quantized["short"]

    def test_single_tensors_get_the_types_asked(self, quantized: dict[str, Any]) -> None:
        special = quantized["special"]
        assert {kind for name, kind in special.items() if "ffn_down" in name} == {"Q8_0"}
        assert (special["output.weight"], special["token_embd.weight"]) == ("Q6_K", "Q5_0")
        assert special["blk.0.attn_qkv.weight"] == "Q4_0"
        assert quantized["pure"] == ["Q4_K"]

    def test_a_pattern_that_matches_nothing_is_an_error(self, quantized: dict[str, Any]) -> None:
        assert "ffn_dwn" in quantized["no_such"]


class TestRuntime:
    def test_ids_equal_the_sources_around_special_tokens(self, quantized: dict[str, Any]) -> None:
        assert quantized["ids_equal"]
        assert quantized["pieces_equal"], "without `tokenizer.model`, too"
        assert quantized["rendered"] == "<|user|>\nHi<|end|>\n<|assistant|>\n"

    def test_logits_keep_no_state_and_follow_the_prompt(self, quantized: dict[str, Any]) -> None:
        assert quantized["causal"] < 1e-3
        assert quantized["greedy"]
        assert quantized["batches"] == [700, 2304]

    def test_a_short_prompt_takes_longropes_short_factors(self, quantized: dict[str, Any]) -> None:
        assert quantized["short_factors"] < 1e-2  # the long ones are nats off

    def test_a_long_prompt_takes_a_longer_context_and_leaves_nothing_behind(
        self, quantized: dict[str, Any]
    ) -> None:
        assert quantized["beyond"] == 600
        assert quantized["short_again"] == quantized["short_factors"]
        assert "8192" in quantized["refused_length"]
