"""Devices are facts with sources, and never name a backend."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.clock import DEADLINE_MS
from testing.places import RECIPES
from testing.plans import planned

from phipipe import backends
from phipipe.errors import PhipipeError, RecipeError, TargetError
from phipipe.recipe import device

MINE = """\
title: My board
memory_gib: 3.5
units:
  - {api: cpu, on: four small cores, precisions: [int8, int4]}
  - api: vulkan
    precisions: [fp16]
    constraints:
      fp16: {layout: [nchw]}
sources: [https://vendor.example/board]
"""


def own(tmp_path: Path, text: str) -> device.Device:
    (tmp_path / "mine.yaml").write_text(text, "utf-8")
    return device.load("./mine.yaml", tmp_path)


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        own(tmp_path, text)
    return caught.value.message.replace(str(tmp_path), "")


def test_the_shipped_devices_are_these() -> None:
    expected = (
        "android-phone apple-silicon cpu-arm64 cpu-x86_64 directml-gpu intel-cpu "
        "intel-gpu intel-npu nvidia-gpu"
    )
    assert {*expected.split(), "raspberry-pi-5", "snapdragon-x-npu"} <= set(device.names())
    assert list(device.names()) == sorted(device.names())


@pytest.mark.parametrize("name", device.names())
def test_a_shipped_device_says_what_it_is_and_who_says_so(name: str) -> None:
    found = device.load(name)
    assert found.name == name
    assert all(unit.on for unit in found.units)
    assert all(re.fullmatch(r"https://[a-z0-9.-]+/\S*", url) for url in found.sources)
    assert device.load(name) is found  # read once


@pytest.mark.parametrize("name", device.names())
def test_a_device_never_names_a_backend(name: str) -> None:
    """Links may: a runtime's own pages document hardware, too."""
    words = r"llama\.?cpp|onnx|openvino|mlx|olive|gguf|pytorch|genai|" + "|".join(backends.names())
    text = (device.FOLDER / f"{name}.yaml").read_text("utf-8")
    facts = "\n".join(line for line in text.splitlines() if not line.startswith("  - https://"))
    assert not re.search(words, facts, re.IGNORECASE)


def test_the_intel_npu_takes_one_kind_of_weights() -> None:
    (unit,) = device.load("intel-npu").units
    assert (unit.api, unit.precisions) == ("intel-npu", ("int4",))
    assert unit.constraints == {
        "int4": {"symmetric": [True], "group_size": [128, -1], "ratio": [1.0]}
    }


def test_the_npu_of_a_snapdragon_comes_before_its_cpu() -> None:
    assert [unit.api for unit in device.load("snapdragon-x-npu").units][:2] == ["hexagon", "cpu"]


def test_a_device_of_ones_own_lies_beside_the_recipe(tmp_path: Path) -> None:
    found = own(tmp_path, MINE)
    assert (found.name, found.title, found.memory_gib) == ("mine", "My board", 3.5)
    assert found.units[1].constraints == {"fp16": {"layout": ["nchw"]}}
    with pytest.raises(RecipeError, match="no device file at"):
        device.load("./other.yaml", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("api: cpu", "api: cpuu", "4:11", "did you mean `cpu`?"),
        ("title: My board", "titel: My board", "1:1", "unknown key `titel`; did you mean `title`?"),
        ("title: My board", "title: 3", "1:8", "put it in quotes"),
        ("title: My board", "title: x\nname: x", "2:1", "the file's own name is the device's"),
        ("memory_gib: 3.5", "memory_gib: 0", "2:13", "must be greater than 0"),
        ("memory_gib: 3.5", "memory_gib: lots", "2:13", "expected a number, got text `lots`"),
        ("[int8, int4]", "[int8, int5]", "4:57", "did you mean `int8`?"),
        ("[int8, int4]", "[int8, int8]", "4:50", "twice"),
        ("[int8, int4]", "[]", "4:50", "must not be empty"),
        ("api: vulkan", "api: cpu", "4:3", "two units with api `cpu`"),
        ("fp16: {layout", "int4: {layout", "8:7", "not among the unit's precisions"),
        ("[nchw]", "[]", "8:22", "must not be empty"),
        ("https:", "http:", "9:11", "does not match the pattern ^https://"),
        ("sources: [https://vendor.example/board]", "sources: []", "9:10", "must not be empty"),
    ],
)
def test_mistakes_in_it_are_named_where_they_are(
    tmp_path: Path, old: str, new: str, place: str, words: str
) -> None:
    assert MINE.count(old) == 1
    message = refusal(tmp_path, MINE.replace(old, new))
    assert f"mine.yaml:{place}: " in message
    assert words in message


def test_a_list_whose_items_are_wrong_is_not_called_empty(tmp_path: Path) -> None:
    message = refusal(tmp_path, MINE.replace("api: cpu", "api: gpu").replace("vulkan", "gpu2"))
    assert "unknown value `gpu`" in message
    assert "must not be empty" not in message


def test_all_of_them_at_once(tmp_path: Path) -> None:
    message = refusal(
        tmp_path,
        MINE.replace("3.5", "x").replace("api: cpu", "api: gpu").replace("sources", "source"),
    )
    assert re.findall(r"mine\.yaml:(\d+):", message) == ["1", "2", "4", "9"]


@pytest.mark.parametrize("text", ["", "- a\n", "title: [\n", "a: &x 1\n"])
def test_what_is_no_device_file_is_refused(tmp_path: Path, text: str) -> None:
    assert "mine.yaml:1:" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "guess"),
    [("intel-npuu", "intel-npu"), ("cpu-x86", "cpu-x86_64"), ("rasberry-pi5", "raspberry-pi-5")],
)
def test_an_unknown_device_is_guessed_and_all_are_listed(name: str, guess: str) -> None:
    with pytest.raises(
        TargetError, match=f"unknown device `{name}`; did you mean `{guess}`"
    ) as caught:
        device.load(name)
    assert caught.value.exit_code == 3
    assert "intel-npu" in str(caught.value.hint)


@pytest.mark.parametrize(
    "name", ["", "../cpu-x86_64", "cpu-x86_64\0", "/etc/passwd", "CPU-X86_64", "x" * 10_000]
)
def test_a_name_is_never_a_path(name: str) -> None:
    with pytest.raises(TargetError, match="unknown device"):
        device.load(name)


@settings(
    max_examples=200,
    deadline=DEADLINE_MS,
)
@given(st.integers(0, len(MINE)), st.integers(0, 6), st.text(max_size=4))
def test_a_spoiled_file_is_a_device_or_a_clear_error(
    tmp_path: Path, at: int, drop: int, put: str
) -> None:
    try:
        own(tmp_path, MINE[:at] + put + MINE[at + drop :])
    except PhipipeError as error:
        assert re.match(r".*mine\.yaml:\d+:\d+: ", error.message)  # noqa: PT017 (either outcome is right)
    except UnicodeEncodeError:  # the text itself cannot be written to a file
        pass


def test_what_suits_a_device_best_is_taken_where_the_recipe_leaves_the_choice() -> None:
    def quantized(*sets: str) -> Any:
        steps = planned("device=raspberry-pi-5", "quantize={}", *sets).steps
        return next(step.params for step in steps if step.name == "quantize")

    assert quantized("backend=llamacpp")["type"] == "Q4_0"
    assert quantized("backend=llamacpp", "quantize={type: Q4_K_M}")["type"] == "Q4_K_M"
    assert quantized("backend=llamacpp", "precision=int8")["type"] == "Q8_0"
    assert quantized("backend=onnxruntime")["block_size"] == 32


def test_defaults_are_values_of_some_backend() -> None:
    for name in device.names():
        for unit in device.load(name).units:
            for option, value in (
                pair for table in unit.defaults.values() for pair in table.items()
            ):
                able = [
                    b for b in backends.names() if option in backends.load(b).options.model_fields
                ]
                assert able
                for backend in able:
                    backends.load(backend).options.model_validate({option: value})


@pytest.mark.parametrize("name", device.names())
def test_every_device_says_which_recipe_to_start_from_and_it_plans_for_it(name: str) -> None:
    found = device.load(name)
    assert found.recipe
    sets, path = ("source={builtin: tiny-phi3}", f"device={name}"), RECIPES / f"{found.recipe}.yaml"
    assert planned(*sets, path=path).device is found


def test_a_device_takes_only_what_its_system_has_a_runtime_for() -> None:
    phone = device.load("iphone-8gb")
    assert not any(
        backends.able(name, phone, unit)
        for name in ("openvino", "torch", "qnn")
        for unit in phone.units
    )
    assert backends.able("mlx", phone, phone.units[0]) == ["fp16", "int8", "int4"]
    assert backends.serving(device.load("webgpu-browser"), "int4") == ["onnxruntime"]


def test_the_chip_of_a_context_is_the_devices() -> None:
    def soc(*sets: str) -> Any:
        steps = planned("backend=qnn", "quantize={}", *sets).steps
        (model,) = {
            step.params["soc"]["model"] for step in steps if step.runs.startswith("qnn/compile")
        }
        return model

    models = {
        name: soc(f"device={name}")
        for name in device.names()
        if "hexagon" in str(device.load(name).units)
    }
    assert models == {
        "snapdragon-8-elite": 69,
        "snapdragon-8-gen-3": 57,
        "snapdragon-x-npu": 60,
        "snapdragon-x2-npu": 87,
    }
    with pytest.raises(TargetError, match="only with `soc` = x-elite, not x2-elite"):
        soc("device=snapdragon-x-npu", "quantize={soc: x2-elite}")
    with pytest.raises(RecipeError, match=r"quantize.*x3-elite.*x2-elite|x-elite"):
        soc("device=snapdragon-x-npu", "quantize={soc: x3-elite}")
