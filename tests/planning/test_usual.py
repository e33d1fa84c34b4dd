"""How int4 is rounded where a recipe says nothing of it: learned, at no more than the size of the
runtime's own rounding."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phipipe import backends
from phipipe.models.checkpoint import Checkpoint
from phipipe.planning import preparation, usual
from phipipe.planning.plan import Plan
from phipipe.recipe import loading
from phipipe.recipe.build import Build

OPTIONS = backends.OptionsOf()
TEXT = """\
name: x
source: {builtin: tiny-phi3}
device: cpu-x86_64
precision: int4
"""
ABLE = [
    ("backend=onnxruntime",),
    ("backend=llamacpp",),
    ("backend=openvino",),
    ("backend=torch",),
    ("backend=litert",),
    ("backend=litert", "device=android-phone"),
    ("backend=mlx", "device=apple-silicon"),
    ("backend=mlx", "device=iphone-8gb"),
    ("backend=openvino", "device=intel-npu"),
    ("backend=openvino", "device=core-ultra-2"),
    ("backend=onnxruntime", "device=nvidia-gpu"),
]


def built(folder: Path, *sets: str, text: str = TEXT) -> Build:
    (folder / "r.yaml").write_text(text, "utf-8")
    (build, *_) = loading.load(folder / "r.yaml", options=OPTIONS, sets=sets)
    return build


def planned(folder: Path, *sets: str, text: str = TEXT) -> Plan:
    return preparation.prepare(built(folder, *sets, text=text), elsewhere=True)


def size_bytes(plan: Plan) -> int:
    assert plan.fit is not None
    return plan.fit.weight_bytes


@pytest.mark.parametrize("sets", ABLE, ids=" ".join)
def test_weights_are_learned_and_take_no_more_room(tmp_path: Path, sets: tuple[str, ...]) -> None:
    plan = planned(tmp_path, *sets)
    assert plan.build.recipe.weights.learn == "gptq"
    assert any(step.name == "weights" for step in plan.steps)
    (line,) = usual.lines(plan)
    assert "weights are learned by gptq" in line
    assert "`weights: none`" in line
    for own in ("weights=none", "quantize=none"):
        plain = planned(tmp_path, *sets, own)
        assert plain.build.recipe.weights.learn is None
        assert usual.lines(plain) == []
        assert size_bytes(plan) <= usual.LEEWAY * size_bytes(plain)


@pytest.mark.parametrize(
    "sets",
    [
        ("precision=int8",),
        ("precision=fp32",),
        ("weights={}",),
        ("weights={smooth: awq}",),
        ("quantize={}",),
        ("quantize={block_size: 64}",),
        ("backend=llamacpp", "quantize={type: Q4_K_M}"),
        ("backend=qnn", "device=snapdragon-x-npu"),  # stores no learned weights
        ("calibrate={text: {builtin: stories}, tokens: 4096, window: 4096}",),  # reads 2,048
    ],
    ids=" ".join,
)
def test_what_a_recipe_says_of_rounding_holds(tmp_path: Path, sets: tuple[str, ...]) -> None:
    assert planned(tmp_path, *sets).build.recipe.weights.learn is None


def test_a_recipe_that_says_which_learning_keeps_it(tmp_path: Path) -> None:
    plan = planned(tmp_path, "weights={learn: search}")
    assert plan.build.recipe.weights.learn == "search"
    assert usual.lines(plan) == []


def test_what_is_settled_stays(tmp_path: Path) -> None:
    plan = planned(tmp_path, "backend=openvino")
    again = usual.settled(plan.build, plan.whole, preparation.outlined)
    assert again is plan.build
    assert preparation.prepare(again, elsewhere=True).steps == plan.steps


@pytest.mark.parametrize(("millions", "learns"), [(999, True), (1_001, False), (3_800, False)])
def test_models_that_take_longer_than_minutes_are_left_to_the_runtime(
    tmp_path: Path, millions: int, learns: bool
) -> None:
    build = built(tmp_path)
    whole = replace(preparation.prepare(build).whole, parameters=millions * 10**6)
    assert (usual.settled(build, whole, preparation.outlined) is not build) == learns


@pytest.mark.parametrize(
    ("calibrate", "learns"),
    [("", False), ("calibrate: {text: {file: t.txt}}\n", True)],
)
def test_a_model_of_ones_own_needs_a_text_to_learn_from(
    tmp_path: Path, calibrate: str, learns: bool
) -> None:
    (tmp_path / "t.txt").write_text("to learn from " * 9, "utf-8")
    whole = planned(tmp_path).whole
    text = TEXT.replace("{builtin: tiny-phi3}", "{path: model}") + calibrate
    build = built(tmp_path, text=text)
    assert (usual.settled(build, whole, preparation.outlined) is not build) == learns


def test_the_text_that_is_evaluated_on_is_not_learned_from(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("to learn from " * 9, "utf-8")
    same = ("calibrate={text: {file: t.txt}}", "evaluate={text: {file: t.txt}}")
    assert planned(tmp_path, *same).build.recipe.weights.learn is None


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(ABLE),
    st.sampled_from([64, 96, 256, 288, 576, 768]),
    st.sampled_from([64, 192, 480, 1024, 1536]),
    st.booleans(),
)
def test_models_of_any_shape_take_no_more_room(
    tmp_path: Path, sets: tuple[str, ...], hidden: int, inner: int, tied: bool
) -> None:
    build, plain = built(tmp_path, *sets), built(tmp_path, *sets, "weights=none")
    whole = shaped(planned(tmp_path).whole, hidden, inner, tied)
    found = usual.settled(build, whole, preparation.outlined)
    if found is not build:
        theirs_bytes = size_bytes(preparation.outlined(plain, whole))
        found_bytes = size_bytes(preparation.outlined(found, whole))
        assert found_bytes <= usual.LEEWAY * theirs_bytes


def shaped(whole: Checkpoint, hidden: int, inner: int, tied: bool) -> Checkpoint:
    """The embedded model in another shape."""
    config = {
        **whole.config,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "tie_word_embeddings": tied,
    }
    return replace(
        whole,
        config=config,
        hidden_size=hidden,
        intermediate_size=inner,
        head_size=hidden // whole.heads,
        tied=tied,
    )
