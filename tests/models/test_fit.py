"""What a build takes on its device, and what is said where that is more than there is."""

from __future__ import annotations

from dataclasses import replace

import pytest
from testing.plans import planned

from phipipe.errors import TargetError
from phipipe.hub import take
from phipipe.models import checkpoints, fit
from phipipe.models.checkpoint import Checkpoint
from phipipe.planning.plan import Plan
from phipipe.recipe import device

TINY = checkpoints.read(take.BUILTIN_MODELS["tiny-phi3"])


def shaped(**changes: object) -> Checkpoint:
    return replace(TINY, **changes)  # type: ignore[arg-type]


# The configs that Microsoft publishes with the models; parameters as their cards count them.
PHI35 = shaped(
    vocab_size=32064, hidden_size=3072, intermediate_size=8192,
    layers=32, heads=32, kv_heads=32, head_size=96,
    context_length=131072, original_context_length=4096, sliding_window=262144, longrope=True,
    parameters=3_821_079_552, weight_bytes=7_642_159_104,
)  # fmt: skip
PHI4_MINI = shaped(
    vocab_size=200064, hidden_size=3072, intermediate_size=8192, tied=True,
    layers=32, heads=24, kv_heads=8, head_size=128,
    context_length=131072, original_context_length=4096, sliding_window=262144, longrope=True,
    parameters=3_836_021_760, weight_bytes=7_672_043_520,
)  # fmt: skip


def planned_for(monkeypatch: pytest.MonkeyPatch, checkpoint: Checkpoint, *sets: str) -> Plan:
    """The quickstart's plan, were the embedded model ``checkpoint``."""
    monkeypatch.setattr(checkpoints, "read", lambda folder: checkpoint)
    return planned(*sets)


def test_the_cache_is_keys_and_values_of_every_layer() -> None:
    found = fit.reckon(PHI35, 0, 4096, 2)
    assert (
        found.cache_bytes == 4096 * 32 * 2 * 32 * 96 * 2 == 1_610_612_736
    )  # 384 KiB for each token
    assert (
        fit.reckon(PHI4_MINI, 0, 4096, 2).cache_bytes == found.cache_bytes // 3
    )  # 8 heads of 128 for 32 of 96
    assert "4,096 tokens × 32 layers × 2 × 32 heads × 96 × 2 B" in found.words()


def test_what_fits_is_what_is_there() -> None:
    total = fit.reckon(PHI35, 10**9, 4096, 2).total_bytes
    assert total == 10**9 + 1_610_612_736 + fit.RUNTIME_BYTES
    assert fit.reckon(PHI35, 10**9, 4096, 2, memory_gib=total / 2**30).fits
    tight = fit.reckon(PHI35, 10**9, 4096, 2, memory_gib=(total - 2**20) / 2**30)
    assert not tight.fits
    assert tight.longest == 4096 - 3  # a MiB is 2.7 tokens of 384 KiB
    assert fit.reckon(PHI35, 10**9, 4096, 2).fits


def test_a_model_that_is_too_large_is_refused_with_the_sum_and_a_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = ("device=raspberry-pi-5", "backend=llamacpp", "quantize={}")
    with pytest.raises(TargetError) as refused:
        planned_for(monkeypatch, PHI35, *board, "precision=fp16", "context=2048")
    assert refused.value.exit_code == 3
    assert (
        "--set device=raspberry-pi-5: Raspberry Pi 5 (8 GB) has 7 GiB for a model, and this one "
        "needs" in refused.value.message
    )
    assert (
        "weights 7.12 GiB + cache 768 MiB (2,048 tokens × 32 layers × 2 × 32 heads × 96 × 2 B)"
        in refused.value.message
    )
    assert refused.value.hint == "`precision: int8` fits with `context: 2048`"
    with pytest.raises(TargetError) as refused:
        planned_for(monkeypatch, PHI35, *board, "context=32768")
    assert "--set context=32768" in refused.value.message
    assert str(refused.value.hint).startswith("`context: 1")
    longest = str(refused.value.hint).split("`")[1].removeprefix("context: ")
    assert planned_for(monkeypatch, PHI35, *board, f"context={longest}").fit
    with pytest.raises(TargetError) as refused:
        planned_for(monkeypatch, PHI35, "device=iot-arm64", "backend=llamacpp", "quantize={}")
    assert "smaller model" in str(refused.value.hint)


def test_a_cache_of_fixed_length_takes_the_recipes_context(monkeypatch: pytest.MonkeyPatch) -> None:
    npu = ("device=snapdragon-x-npu", "backend=qnn", "quantize={}")
    assert fixed(planned_for(monkeypatch, PHI35, *npu)) == 512
    assert fixed(planned_for(monkeypatch, PHI35, *npu, "context=2048")) == 2048
    assert fixed(planned_for(monkeypatch, PHI35, *npu, "quantize={context_length: 1024}")) == 1024
    with pytest.raises(TargetError, match=r"`context: 2048` is beyond the 1024 tokens"):
        planned_for(monkeypatch, PHI35, *npu, "quantize={context_length: 1024}", "context=2048")
    with pytest.raises(TargetError, match=r"`context: 4096` is beyond the 1152 tokens"):
        planned_for(
            monkeypatch,
            PHI35,
            "device=intel-npu",
            "backend=openvino",
            "quantize={}",
            "context=4096",
        )


def fixed(made: Plan) -> int:
    (convert,) = (step for step in made.steps if step.name == "convert")
    assert made.fit
    assert made.fit.context == convert.params["context_length"]
    return made.fit.context


def test_more_context_than_the_model_has_is_said_and_not_reckoned_with() -> None:
    made = planned("context=4096")
    assert made.fit
    assert made.fit.context == 2048
    assert [a.rule for a in made.warnings] == ["M14"]


@pytest.mark.parametrize(
    ("name", "model"), [("rtx-8gb", PHI4_MINI), ("mac-8gb", PHI35), ("jetson-orin-nano", PHI35)]
)
def test_sixteen_bits_of_a_large_model_fit_no_small_device(
    monkeypatch: pytest.MonkeyPatch, name: str, model: Checkpoint
) -> None:
    backend = "mlx" if name.startswith("mac") else "onnxruntime"
    with pytest.raises(TargetError, match="GiB for a model"):
        planned_for(
            monkeypatch,
            model,
            f"device={name}",
            f"backend={backend}",
            "precision=fp16",
            "quantize={}",
        )


def test_a_unit_is_chosen_by_name() -> None:
    def api(*sets: str) -> str:
        return planned("device=core-ultra-2", "backend=openvino", "quantize={}", *sets).api

    assert api() == "intel-npu"
    assert [api(f"unit={unit.api}") for unit in device.load("core-ultra-2").units] == [
        "intel-npu",
        "intel-gpu",
        "cpu",
    ]
    assert api("precision=int8") == "intel-gpu"  # the NPU takes int4 only
    with pytest.raises(TargetError, match="has no unit `intel-gpuu`; did you mean `intel-gpu`"):
        api("unit=intel-gpuu")


def test_a_large_model_for_an_npu_is_emulated_for_very_few_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def emulated(checkpoint: Checkpoint) -> tuple[str, str, object]:
        made = planned_for(
            monkeypatch, checkpoint, "device=snapdragon-x-npu", "backend=qnn", "quantize={}"
        )
        steps = {step.name: step for step in made.steps}
        emulate = steps["emulate"]
        return (
            steps["evaluate"].needs["artifact"],
            emulate.needs["decoded"],
            emulate.params["decoded"],
        )

    assert emulated(TINY) == ("compile-apart", "emulate-head", 32)
    assert emulated(PHI35) == ("quantize", "emulate-head", 2)
