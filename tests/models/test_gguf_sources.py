"""A GGUF as a source: its header within bounds, and the same model as the checkpoint it was made
of."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.drive import drive, read, section
from testing.small_gguf import HIDDEN, SETTINGS, TENSORS, text, written

from phipipe.backends.llamacpp import pre_tokenizers
from phipipe.errors import SourceError
from phipipe.hub import take
from phipipe.models import gguf_checkpoints, gguf_files, gguf_tokenizers

DRIVER = Path(__file__).parent / "gguf_driver.py"
FLOATS = ("Phi-3.5-mini-F16", "Llama-3.2-1B-F16", "Qwen3-0.6B-F16", "tiny-BF16")
PACKED = {"tiny-Q8_0": "GGUF, Q8_0", "tiny-Q4_0": "GGUF, Q4_0", "tiny-Q4_K_M": "GGUF, Q4_K"}
# nats: llama.cpp rounds a layer's inputs to 8 bits where weights are quantized
NEAR = dict.fromkeys(FLOATS, 1e-4) | dict.fromkeys(PACKED, 3e-3)


@pytest.fixture(scope="session")
def facts(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the driver's three parts found out, each in its toolchain's Python."""
    folder = tmp_path_factory.mktemp("gguf")
    for part, toolchain in (("make", "torch"), ("run", "llamacpp"), ("read", "torch")):
        drive(python_of(toolchain), DRIVER, folder, part)
    return read(folder / "facts.json")


@pytest.mark.nightly
@pytest.mark.parametrize("name", NEAR)
def test_it_predicts_what_llama_cpp_does_beyond_the_original_context(
    facts: dict[str, Any], name: str
) -> None:
    assert section(facts, name)["kld"] < NEAR[name]


@pytest.mark.nightly
@pytest.mark.parametrize("name", NEAR)
def test_tokens_template_and_plan_are_the_checkpoints(facts: dict[str, Any], name: str) -> None:
    found = section(facts, name)
    assert all(found["ids"])
    assert found["template"]
    assert found["as planned"]
    assert found["eos"]


@pytest.mark.nightly
@pytest.mark.parametrize("name", FLOATS)
def test_weights_in_16_bits_come_back_as_they_were(facts: dict[str, Any], name: str) -> None:
    found = section(facts, name)
    assert found["differing"] == []
    assert found["title"] is None
    assert found["remarks"] == []


@pytest.mark.nightly
@pytest.mark.parametrize("name", PACKED)
def test_quantized_weights_are_said_to_be_widened(facts: dict[str, Any], name: str) -> None:
    found = section(facts, name)
    assert found["title"] == PACKED[name]
    assert found["remarks"] == ["W40"]


def test_cuts_of_text_are_those_that_the_converter_names(tmp_path: Path) -> None:
    for name in ("llama-bpe", "qwen2", "gpt-4o", "tekken", "smollm", "dbrx", "phi-2"):
        header = tiny(tmp_path / "m.gguf", **{"tokenizer.ggml.pre": name})
        whole = gguf_tokenizers.files(header)["tokenizer.json"]
        (tmp_path / "tokenizer.json").write_text(json.dumps(whole), "utf-8")
        assert pre_tokenizers.name_of(tmp_path) == name


# --- headers, written byte by byte


def tiny(path: Path, **changes: object) -> gguf_files.Header:
    path.write_bytes(written({**SETTINGS, **changes}))
    return gguf_files.read(path)


def refusal(path: Path, raw: bytes) -> str:
    path.write_bytes(raw)
    with pytest.raises(SourceError) as caught:
        take.of_folder(path)
    assert caught.value.exit_code == 8
    return caught.value.message


@pytest.mark.parametrize(
    ("name", "strips"), [("Phi 3.5 mini", True), ("Phi-3 mine", True), ("Phi 4", False)]
)
def test_white_space_after_special_tokens_is_left_out_where_the_name_is_phi_3s(
    tmp_path: Path, name: str, strips: bool
) -> None:
    header = tiny(tmp_path / "m.gguf", **{"general.name": name})
    whole = gguf_tokenizers.files(header)["tokenizer.json"]
    assert isinstance(whole, dict)
    assert {token["rstrip"] for token in whole["added_tokens"]} == {strips}


def test_a_header_says_all_that_a_plan_needs(tmp_path: Path) -> None:
    tiny(tmp_path / "m.gguf")
    original = take.of_folder(tmp_path / "m.gguf")
    found = original.checkpoint
    assert (found.architecture, found.layers, found.vocab_size) == ("LlamaForCausalLM", 1, 40)
    assert found.tied
    assert found.quantized == "GGUF, Q4_0"
    assert [step.name for step in original.before] == ["stored"]
    assert original.step.runs == "models/unpack_gguf"


def without(name: str) -> Mapping[str, Any]:
    return {key: value for key, value in SETTINGS.items() if key != name}


def other(name: str, kind: int, shape: tuple[int, ...]) -> dict[str, tuple[int, tuple[int, ...]]]:
    return {**TENSORS, name: (kind, shape)}


ODD: Mapping[str, tuple[bytes, str]] = {
    "empty": (b"", "no GGUF file"),
    "another file": (b"PK\3\4" + bytes(100), "no GGUF file"),
    "the first version": (written(version=1), "version 1"),
    "cut in its header": (written()[:300], "cut short"),
    "cut in its weights": (written()[:-64], "cut short"),
    "2**61 entries": (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**61), "more than any model"),
    "a list of 2**61": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 4, 2**61),
        "list of",
    ),
    "a text that is none": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<I", 8) + text(b"\xff"),
        "UTF-8",
    ),
    "an unknown type": (written(tensors=other("blk.0.attn_q.weight", 77, (32, 32))), "number 77"),
    "a type that is not read": (
        written(tensors=other("blk.0.attn_q.weight", 19, (32, 32))),
        "IQ1_S",
    ),
    "another architecture": (
        written({**SETTINGS, "general.architecture": "mamba"}),
        "phi3, llama, qwen2, qwen3",
    ),
    "an adapter": (written({**SETTINGS, "general.type": "adapter"}), "adapter"),
    "a part": (written({**SETTINGS, "split.count": 3}), "one of 3 parts"),
    "experts": (written({**SETTINGS, "llama.expert_count": 8}), "experts"),
    "no heads": (written({**SETTINGS, "llama.attention.head_count": 0}), "0 heads"),
    "no width": (written(without("llama.embedding_length")), "embedding_length"),
    "no tokens": (written(without("tokenizer.ggml.tokens")), "tokenizer.ggml.tokens"),
    "tokens of another model": (
        written(
            {**SETTINGS, "tokenizer.ggml.tokens": ["a"] * 50, "tokenizer.ggml.token_type": [1] * 50}
        ),
        "50 tokens",
    ),
    "an unknown way to cut text": (
        written({**SETTINGS, "tokenizer.ggml.pre": "deepseek-coder"}),
        "deepseek-coder",
    ),
    "a tensor too many": (
        written(tensors=other("blk.0.attn_sinks.weight", 0, (2,))),
        "blk.0.attn_sinks.weight",
    ),
    "a tensor too few": (
        written(tensors={n: t for n, t in TENSORS.items() if n != "blk.0.ffn_up.weight"}),
        "mlp.up_proj.weight",
    ),
    "another shape": (
        written(tensors=other("blk.0.attn_v.weight", 8, (HIDDEN, 48))),
        "different models",
    ),
    "an unknown rotary scaling": (
        written({**SETTINGS, "llama.rope.scaling.type": "spiral"}),
        "spiral",
    ),
    "a way to cut text that is a list": (
        written({**SETTINGS, "tokenizer.ggml.pre": ["a"]}),
        "tokenizer.ggml.pre",
    ),
    "a template that is no text": (
        written({**SETTINGS, "tokenizer.chat_template": [1]}),
        "tokenizer.chat_template",
    ),
    "an end that is text": (written({**SETTINGS, "tokenizer.ggml.eos_token_id": "x"}), "eos_token"),
    "a part that nobody reads": (
        written({**SETTINGS, "llama.logit_scale": 0.5}),
        "llama.logit_scale",
    ),
    "attention to both sides": (written({**SETTINGS, "llama.attention.causal": False}), "causal"),
    "another vocabulary": (written({**SETTINGS, "llama.vocab_size": 50}), "llama.vocab_size"),
    "attention that is scaled": (
        written({**SETTINGS, "llama.rope.scaling.attn_factor": 2.0}),
        "scales attention by 2",
    ),
    "heads as wide as memory": (
        written(
            {**SETTINGS, "llama.attention.key_length": 2**31 - 1},
            other("rope_freqs.weight", 0, (8,)),
        ),
        "heads of 2147483647",
    ),
    "two rotary scalings": (
        written(
            {**SETTINGS, "llama.rope.scaling.factor": 4.0}, other("rope_freqs.weight", 0, (8,))
        ),
        "besides",
    ),
    "factors of nobody": (
        written(tensors=other("rope_freqs.weight", 0, (8,))),
        "rotary factors",
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_a_file_that_is_no_model_is_refused_by_name(tmp_path: Path, name: str) -> None:
    raw, words = ODD[name]
    assert words in refusal(tmp_path / "m.gguf", raw)


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from([*SETTINGS, "llama.rope.scaling.type", "llama.x", "general.alignment"]),
    value=st.integers(-(2**31), 2**31 - 1)
    | st.floats(width=32)
    | st.text(max_size=5)
    | st.booleans()
    | st.lists(st.integers(-9, 9), min_size=1, max_size=3)
    | st.lists(st.text(max_size=3), min_size=1, max_size=3),
)
def test_whatever_a_setting_is_makes_a_model_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    path.write_bytes(written({**SETTINGS, key: value}))
    try:
        found = str(gguf_checkpoints.read(path).parameters)
    except SourceError as error:
        found = error.message
    assert found.isprintable()


def test_a_factor_without_a_type_is_that_of_linear_scaling(tmp_path: Path) -> None:
    tiny(tmp_path / "m.gguf", **{"llama.rope.scaling.factor": 4.0})
    assert gguf_checkpoints.read(tmp_path / "m.gguf").scaling == "linear"


def test_an_end_beyond_the_table_is_remarked(tmp_path: Path) -> None:
    tiny(tmp_path / "m.gguf", **{"tokenizer.ggml.eos_token_id": 99})
    remarks = gguf_checkpoints.read(tmp_path / "m.gguf").remarks
    assert [remark.rule for remark in remarks] == ["W40", "W07"]


@pytest.mark.parametrize(
    "name", ["token_embd.weight", "blk.0.attn_q.weight", "blk.0.attn_v.weight"]
)
def test_nan_is_found_in_floats_and_in_scales(tmp_path: Path, name: str) -> None:
    path = tmp_path / "m.gguf"
    tensor = tiny(path).tensors[name]
    raw = bytearray(path.read_bytes())
    raw[tensor.offset : tensor.offset + 2] = b"\x00\x7e"
    assert name in refusal(path, bytes(raw))


def test_a_plan_sees_tokenizer_and_config_as_those_of_a_folder(tmp_path: Path) -> None:
    header = tiny(tmp_path / "m.gguf")
    folder = take.of_folder(tmp_path / "m.gguf").checkpoint.folder
    assert folder.name == "m.gguf"
    written = {path.name: path.read_bytes() for path in folder.iterdir()}
    config = gguf_checkpoints.read(tmp_path / "m.gguf").config
    assert written == gguf_checkpoints.small_files(header, config)


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 1400), byte=st.integers(0, 255))
def test_any_other_byte_in_a_header_makes_a_model_or_one_sentence(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    raw = bytearray(written())
    raw[at] = byte
    path = tmp_path_factory.mktemp("m") / "m.gguf"
    path.write_bytes(raw)
    try:
        found = gguf_checkpoints.read(path).parameters
    except SourceError as error:
        found = len(error.message)
    assert found
