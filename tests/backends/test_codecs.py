"""What each backend says its files hold of a weight, against the files of a real build."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.drive import drive, read, section
from testing.shapes import phi3

from phipipe import backends
from phipipe.backends.base import Job

DRIVER = Path(__file__).parent / "codec_driver.py"
CASES = {
    "onnxruntime": ["default", "asymmetric", "rtn", "k_quant", "fp16"],
    "llamacpp": ["plain", "imatrix"],
    "openvino": ["symmetric", "asymmetric"],
    "mlx": ["bfloat16", "float16", "nvfp4"],
    "torch": ["symmetric", "asymmetric"],
    "litert": ["dynamic", "by row", "weight only"],
    "qnn": ["by row"],
}
BEFORE = {"llamacpp": ("torch",), "qnn": ("torch",)}  # toolchains that convert
MATRICES = {
    "torch": 20,
    "qnn": 21,
    "onnxruntime rtn": 21,
    "onnxruntime k_quant": 21,
}  # 22 in the others
# onnxruntime's code for embeddings at 4 bits rounds halves to even, that for products away from 0.
HALVES = {f"onnxruntime {case}": {"embed_tokens"} for case in ("default", "asymmetric", "fp16")}


@pytest.fixture(scope="session")
def facts_of(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, Any]]:
    @cache
    def facts(backend: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(f"codec-{backend}")
        for toolchain in (*BEFORE.get(backend, ()), backend):
            drive(python_of(toolchain), DRIVER, folder, backend, toolchain)
        return read(folder / f"{backend}.json")

    return facts


@pytest.mark.parametrize(
    ("backend", "case"), [(name, case) for name, cases in CASES.items() for case in cases]
)
def test_files_hold_what_the_codec_says(
    facts_of: Callable[[str], dict[str, Any]], backend: str, case: str
) -> None:
    found = section(facts_of(backend), case)
    assert len(found) == MATRICES.get(f"{backend} {case}", MATRICES.get(backend, 22))
    shares = {name: differing for name, (_, differing, _) in found.items() if differing}
    assert set(shares) <= HALVES.get(f"{backend} {case}", set())
    assert all(share < 0.01 for share in shares.values())


@pytest.mark.parametrize("backend", CASES)
def test_rows_of_any_shape_are_rounded_one_by_one(
    facts_of: Callable[[str], dict[str, Any]], backend: str
) -> None:
    assert section(facts_of(backend), "any") == {"rows": 40, "shape": 40, "near": 40}


@pytest.mark.parametrize(
    ("backend", "case", "words"),
    [
        ("llamacpp", "weighed", "IQ2_XS needs an importance matrix"),
        ("llamacpp", "blocks", "Q6_K has blocks of 256 weights, and rows have 288"),
        ("onnxruntime", "pairs", "blocks of 64 are odd in number, 3 in 192 weights"),
    ],
)
def test_rows_that_cannot_be_stored_so_are_told(
    facts_of: Callable[[str], dict[str, Any]], backend: str, case: str, words: str
) -> None:
    kind, message, _ = section(facts_of(backend), "refused")[case]
    assert (kind, words in message) == ("StepFailed", True), message


def test_who_stores_single_widths_tells_what_they_hold() -> None:
    faces = {name: backends.load(name) for name in backends.names()}
    assert {n for n, face in faces.items() if face.codec} == set(CASES)
    assert {n for n, face in faces.items() if face.stores} == set(CASES)


@given(
    st.sampled_from(sorted(CASES)),
    st.sampled_from([None, "cpu", "cuda", "metal"]),
    st.sampled_from(["float32", "float16", "bfloat16"]),
    st.sampled_from(["torch_dtype", "dtype"]),
)
def test_a_codec_is_asked_with_options_unit_and_dtype(
    backend: str, api: str | None, dtype: str, key: str
) -> None:
    face = backends.load(backend)
    options = face.options.model_validate({"map": {"lm_head": {"bits": 8}}})
    unit: Any = SimpleNamespace(api=api) if api else None
    config = {key: dtype}
    recipe: Any = None
    params = Job(recipe, options, phi3(config=config), unit=unit).codec_params
    assert json.loads(json.dumps(params)) == params
    assert (params["api"], params["source_dtype"]) == (api or "cpu", dtype)
    own = {name: params[name] for name in face.options.model_fields if name != "map"}
    assert face.options.model_validate({**own, "map": options.map}) == options
    assert set(params) == {*own, "api", "source_dtype"}
