"""Tokens that end an answer stand in several places, and each names another one here. All of them
reach the files that each backend ships."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing.drive import drive
from testing.places import QUICKSTART
from testing.shell import Shell

from phipipe.hub import take
from phipipe.models import gguf_files

# Placeholders of the embedded model, which no runtime knows by their names. The tokenizer's own end
# is that of `generation_config.json`: a GGUF has places for three.
CONFIG, GENERATION, TEMPLATE = 2242, 2243, 2244
ENDS = {CONFIG, GENERATION, TEMPLATE}
SPELLED = {
    CONFIG: "<|placeholder1|>",
    GENERATION: "<|placeholder2|>",
    TEMPLATE: "<|placeholder3|>",
}
BUILDS = {
    "onnxruntime": ("cpu-x86_64", "int4"),
    "llamacpp": ("cpu-x86_64", "fp16"),
    "openvino": ("cpu-x86_64", "int8"),
    "mlx": ("apple-silicon", "int4"),
    "torch": ("cpu-x86_64", "int8"),
    "litert": ("cpu-x86_64", "int8"),
    "qnn": ("snapdragon-x-npu", "int8"),
}
BUNDLED = """
import io, sys
from litert_lm_builder import litertlm_header_schema_py_generated as schema, litertlm_peek
from litert_lm_builder.runtime.proto import llm_metadata_pb2
sections = litertlm_peek.read_litertlm_header(sys.argv[1], io.StringIO()).SectionMetadata()
whole = open(sys.argv[1], "rb").read()
for one in (sections.Objects(i) for i in range(sections.ObjectsLength())):
    if one.DataType() == schema.AnySectionDataType.LlmMetadataProto:
        told = llm_metadata_pb2.LlmMetadata.FromString(whole[one.BeginOffset() : one.EndOffset()])
        print(*(number for stop in told.stop_tokens for number in stop.token_ids.ids))
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """The embedded model with an end of its own in each place."""
    folder = tmp_path / "model"
    shutil.copytree(take.BUILTIN_MODELS["tiny-phi3"], folder)
    (folder / "special_tokens_map.json").unlink()
    settings = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    template = settings["chat_template"].replace("<|end|>", SPELLED[TEMPLATE])
    template = template.replace("{{ eos_token }}", "")
    for name, changes in (
        ("config.json", {"eos_token_id": CONFIG}),
        ("generation_config.json", {"eos_token_id": [GENERATION]}),
        ("tokenizer_config.json", {"chat_template": template, "eos_token": SPELLED[GENERATION]}),
    ):
        told = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(told | changes), "utf-8")
    return folder


def named(path: Path, *keys: str) -> set[int]:
    """The ids that the JSON file at ``path`` has under ``keys``."""
    value: Any = json.loads(path.read_text("utf-8"))
    for key in keys:
        value = value[key]
    return set(value if isinstance(value, list) else [value])


def of_gguf(package: Path) -> set[int]:
    """Ids that llama.cpp ends at. Ollama ends at the texts that its Modelfile names."""
    header = gguf_files.read(package / "model.gguf").settings
    tokens = header["tokenizer.ggml.tokens"]
    assert [tokens[number] for number in SPELLED] == list(SPELLED.values())
    found = {header.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")}
    lines = (package / "Modelfile").read_text("utf-8").splitlines()
    stops = {m[1] for line in lines if (m := re.fullmatch(r'PARAMETER stop "(.+)"', line))}
    assert set(SPELLED.values()) <= stops
    return found - {None}


def shipped(backend: str, package: Path, python_of: Callable[[str], Path]) -> list[set[int]]:
    """What each file of ``package`` that the backend's runtime reads says."""
    if backend in ("onnxruntime", "qnn"):
        return [named(package / "genai_config.json", "model", "eos_token_id")]
    if backend == "llamacpp":
        return [of_gguf(package)]
    if backend == "litert":
        words = drive(python_of("litert"), "-c", BUNDLED, package / "model.litertlm").split()
        return [{int(word) for word in words}]
    if backend == "mlx":
        return [named(package / "config.json", "eos_token_id")]
    return [named(package / "generation_config.json", "eos_token_id")]


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "backend",
    # qnn: many minutes for the emulator
    [pytest.param(one, marks=pytest.mark.nightly) if one == "qnn" else one for one in BUILDS],
)
def test_all_ends_are_in_the_package(
    backend: str,
    source: Path,
    toolchains: Path,
    tmp_path: Path,
    python_of: Callable[[str], Path],
) -> None:
    device, precision = BUILDS[backend]
    changes = [f"source={{path: {source.as_posix()}}}", f"device={device}", f"backend={backend}"]
    changes += [f"precision={precision}", "quantize={}", "evaluate.gates={}"]
    changes += ["evaluate.tokens=256", "evaluate.window=128", "calibrate.text={builtin: stories}"]
    changes += ["measure={prompt_tokens: 16, new_tokens: 8, repetitions: 1}"]
    sets = [word for change in changes for word in ("--set", change)]
    shell = Shell(tmp_path, toolchains)
    shell("run", QUICKSTART, "--out", tmp_path / "made", *sets, timeout=1100)
    (manifest,) = (tmp_path / "made").rglob("manifest.json")
    assert "W21" in manifest.read_text("utf-8")
    for found in shipped(backend, manifest.parent, python_of):
        assert found == ENDS
