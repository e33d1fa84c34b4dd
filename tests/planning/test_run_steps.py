"""The step that scores an artifact as its runtime computes by default: where there is one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from testing import plans

from phipipe import backends
from phipipe.errors import TargetError
from phipipe.evaluate import run_reports
from phipipe.planning import run_steps
from phipipe.planning.plan import Plan
from phipipe.steps import Step

GATE = "evaluate.gates={kld_run: {max: 0.1}}"
INTEL_NPU = ("device=intel-npu", "backend=openvino", "precision=int4", "quantize={}")


def planned(backend: str, precision: str = "int8", *sets: str, device: str = "cpu-x86_64") -> Plan:
    words = (f"device={device}", f"backend={backend}", f"precision={precision}", "quantize={}")
    return plans.planned(*words, *sets)


def steps(plan: Plan) -> dict[str, Step]:
    return {step.name: step for step in plan.steps}


@pytest.mark.parametrize("backend", backends.names())
def test_what_has_a_knob_can_be_opened_as_it_runs(backend: str) -> None:
    face = backends.load(backend)
    recipe = plans.planned("precision=int8").build.recipe
    knobs = {api: face.knob(recipe, api) for api in {*face.precisions, "cpu"}}
    assert (face.open_run is not None) == any(knobs.values()), knobs
    assert all(how == how.strip() and not how.endswith(".") for how in knobs.values())
    assert face.caches.keys() in (set(), {"q8", "q4"})
    assert not face.caches or face.open_run is not None


@pytest.mark.parametrize(
    ("backend", "precision", "words"),
    [
        ("openvino", "int8", "8-bit activations and cache"),
        ("openvino", "fp16", "float16 cache"),
        ("llamacpp", "int4", "flash attention"),
        ("torch", "int4", "16-bit arithmetic"),
    ],
)
def test_a_runtime_that_rounds_more_is_scored_twice(
    backend: str, precision: str, words: str
) -> None:
    plan = planned(backend, precision)
    found = steps(plan)
    run, evaluation = found[run_steps.NAME], found["evaluate"]
    assert words in (plan.knob or "")
    assert run.needs == {"artifact": evaluation.needs["artifact"], "baseline": "baseline"}
    assert run.params == {"backend": backend, "tokens": plan.build.recipe.evaluate.tokens}
    assert (run.toolchain, run.after, run.measurement) == (
        evaluation.toolchain, evaluation.after, True,
    )  # fmt: skip
    assert found["package"].needs["run"] == run_steps.NAME
    assert found["package"].params["knob"] == plan.knob


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("onnxruntime", "int8"), ("litert", "int8"), ("torch", "fp32")],
)
def test_a_runtime_that_does_as_it_is_scored_is_scored_once(backend: str, precision: str) -> None:
    plan = planned(backend, precision)
    assert plan.knob == run_reports.SAME
    assert run_steps.NAME not in steps(plan)
    assert "run" not in steps(plan)["package"].needs


def test_a_build_for_a_mac_is_scored_in_its_arithmetic_too() -> None:
    assert planned("mlx", device="apple-silicon").knob == "16-bit arithmetic"
    assert planned("mlx", "fp32", device="apple-silicon").knob == run_reports.SAME


def test_a_unit_without_logits_has_no_such_figure_and_no_gate_on_it() -> None:
    plan = plans.planned(*INTEL_NPU)
    assert plan.knob is None
    assert run_steps.NAME not in steps(plan)
    with pytest.raises(TargetError, match="`kld_run` cannot be measured on `intel-npu`") as caught:
        plans.planned(*INTEL_NPU, GATE)
    assert "kld_mean" in (caught.value.hint or "")


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_only_a_gate_that_names_it_waits_for_the_run(backend: str) -> None:
    plain, gated = (steps(planned(backend, "int8", *sets)) for sets in ((), (GATE,)))
    assert plain["gates"].needs.keys() == {"metrics", "speed"}
    assert "knob" not in plain["gates"].params
    assert gated["gates"].params["knob"] == gated["package"].params["knob"]
    assert ("run" in gated["gates"].needs) == (run_steps.NAME in gated)
    for name in ("evaluate", "measure", "quantize", "baseline"):
        assert plain[name] == gated[name]


def test_a_large_model_is_scored_on_fewer_tokens() -> None:
    plan = planned("openvino")
    large = replace(plan.checkpoint, parameters=4 * 10**9)
    recipe = plan.build.recipe
    assert run_steps.tokens(recipe, large) == run_steps.LARGE_TOKENS < recipe.evaluate.tokens
    assert run_steps.tokens(recipe, plan.checkpoint) == recipe.evaluate.tokens


# --- a quantized cache


@pytest.mark.parametrize("backend", ["onnxruntime", "litert", "qnn", "torch"])
def test_a_runtime_that_cannot_quantize_its_cache_names_those_that_can(backend: str) -> None:
    recipe = planned("openvino").build.recipe.model_copy(update={"backend": backend})
    with pytest.raises(TargetError, match=f"`{backend}` cannot keep the keys and values") as caught:
        run_steps.check_cache(recipe, "cpu", "q8")
    assert "llamacpp, mlx, openvino" in (caught.value.hint or "")


def test_a_cache_of_a_kind_that_nobody_has_is_refused() -> None:
    recipe = planned("openvino").build.recipe
    run_steps.check_cache(recipe, "cpu", "q4")
    with pytest.raises(TargetError, match="as q2"):
        run_steps.check_cache(recipe, "cpu", "q2")
    with pytest.raises(TargetError, match="`intel-npu` shows in no figure"):
        run_steps.check_cache(recipe, "intel-npu", "q4")


def test_a_quantized_cache_differs_from_the_run_in_that_alone() -> None:
    plan = planned("llamacpp")
    evaluation = steps(plan)["evaluate"]
    (run,) = run_steps.steps(evaluation, "some", 512, plan.build.recipe)
    kept = run_steps.cache_step(evaluation, "q4", 512)
    assert kept.params == {**run.params, "cache": "q4"}
    assert replace(kept, name=run.name, params=run.params) == run
