"""What is possible, in what order, with which keys; and the loop that follows a plan, on cheap
steps."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from testing.places import RECIPES
from testing.plans import planned

from phipipe import backends, hardware
from phipipe.cli.listeners import Silent
from phipipe.errors import SourceError, StepFailed, TargetError, ToolchainError
from phipipe.execution.dispatch import attempt
from phipipe.execution.nodes import graph
from phipipe.hub import take as hub
from phipipe.planning import preparation
from phipipe.planning.plan import Plan
from phipipe.planning.plans import planned as made_from
from phipipe.recipe import device, loading
from phipipe.settings import Settings
from phipipe.steps import Outside, Step
from phipipe.store import digests
from phipipe.store.store import Store


def test_steps_stand_after_everything_they_need() -> None:
    seen: set[str] = set()
    for step in planned().steps:
        assert set(step.needs.values()) <= seen
        seen.add(step.name)


def test_the_conversion_is_compared_before_anything_is_quantized() -> None:
    names = [step.name for step in planned().steps]
    assert (
        names.index("check-parity")
        < names.index("quantize")
        < names.index("evaluate")
        < names.index("package")
    )


def test_no_key_holds_a_path_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("x" * 100)
    sets = (
        f"source={{path: {hub.BUILTIN_MODELS['tiny-phi3'].as_posix()}}}",
        f"evaluate.text={{file: {tmp_path}/text.txt}}",
    )
    for step in planned(*sets).steps:
        assert str(tmp_path) not in str(step.params)
        assert str(hub.ASSETS) not in str(step.params)


def test_fp32_has_no_quantization_step() -> None:
    assert "quantize" not in [step.name for step in planned("precision=fp32").steps]


# What each runtime runs on, and what it takes there: written down once more, by hand.
EVERYWHERE = "fp32 fp16 int8 int4"
RUNTIMES: dict[str, tuple[str, dict[str, str]]] = {
    "litert": ("android ios linux macos windows", {"cpu": "fp32 int8 int4"}),
    "llamacpp": (
        "android ios linux macos windows",
        dict.fromkeys(("cpu", "cuda", "metal", "opencl", "vulkan"), EVERYWHERE),
    ),
    "mlx": ("ios macos", {"metal": EVERYWHERE}),
    "onnxruntime": (
        "android ios linux macos web windows",
        {
            "cpu": "fp32 int8 int4",
            "cuda": "fp16 int8 int4",
            "directml": "fp16 int4",
            "tensorrt-rtx": "fp16",
            "webgpu": "fp16 int8 int4",
        },
    ),
    "openvino": (
        "linux macos windows",
        {"cpu": EVERYWHERE, "intel-gpu": "fp16 int8 int4", "intel-npu": "int4"},
    ),
    "qnn": ("android windows", {"hexagon": "int8 int4"}),
    "torch": ("linux macos windows", dict.fromkeys(("cpu", "cuda", "metal"), EVERYWHERE)),
}
# Every pair of device and backend, device and precision, backend and precision.
COMBINATIONS = [
    (name, EVERYWHERE.split()[(i + j) % 4], backend)
    for i, name in enumerate(device.names())
    for j, backend in enumerate(RUNTIMES)
]


def test_the_table_of_runtimes_has_them_all() -> None:
    assert sorted(RUNTIMES) == sorted(backends.names())


@pytest.mark.parametrize(("name", "precision", "backend"), COMBINATIONS)
def test_every_combination_plans_or_says_what_would_work(
    name: str, precision: str, backend: str
) -> None:
    sets = (f"device={name}", f"precision={precision}", f"backend={backend}", "quantize={}")
    target, (systems, table) = device.load(name), RUNTIMES[backend]
    able = [
        unit.api
        for unit in target.units
        if precision in unit.precisions and precision in table.get(unit.api, "").split()
    ]
    if able and {*systems.split()} & {*target.systems}:
        assert planned(*sets).api == able[0]  # a device's units are in order of preference
        return
    with pytest.raises(TargetError) as refused:
        planned(*sets)
    assert refused.value.hint
    assert refused.value.message.startswith(("--set precision=", "--set backend="))


def test_the_memory_of_an_evaluation_grows_with_its_window() -> None:
    """By three logits of 4 bytes for each of the embedded model's 2304 words."""

    def memory(window: int) -> int:
        (step,) = (s for s in planned(f"evaluate.window={window}").steps if s.name == "evaluate")
        return step.memory_bytes

    assert memory(1024) - memory(512) == 512 * 2304 * 3 * 4


def test_a_package_is_as_large_as_its_artifact_and_its_reference() -> None:
    """A probability of 4 bytes and an id of 4 for the 64 likeliest words at every position, of
    which 16,384 are kept."""

    def sizes(tokens: int) -> tuple[int, int]:
        steps = {s.name: s.output_bytes for s in planned(f"evaluate.tokens={tokens}").steps}
        return steps["reference"], steps["package"] - steps["quantize"]

    assert sizes(1024) == (1024 * 64 * 8,) * 2
    assert sizes(65536) == (16_384 * 64 * 8,) * 2


def test_numbers_of_this_machine_are_not_called_another_devices() -> None:
    assert planned("device=raspberry-pi-5").on_target == "false"
    assert planned("device=intel-cpu").on_target == "false"


def scored(
    kinds: set[str], *sets: str
) -> tuple[str, list[tuple[str, str | None, tuple[str, ...]]]]:
    """What a plan for machines of ``kinds`` says its figures are, and of each step that takes them
    how and where."""
    with hardware.there(frozenset(kinds)):
        made = planned("quantize={}", *sets)
    steps = {step.name: step for step in made.steps}
    taken = [steps[name] for name in ("evaluate", "measure")]
    return made.on_target, [(str(s.toolchain), s.params.get("api"), s.machine) for s in taken]


def test_figures_of_the_machines_that_do_the_steps_count_not_those_of_the_one_that_plans() -> None:
    assert scored({"x86_64"}) == (
        "true",
        [("onnxruntime", None, ()), ("onnxruntime", None, ("machine x86_64",))],
    )
    assert scored({"arm64"}) == ("false", [("onnxruntime", None, ())] * 2)
    assert scored({"arm64"}, "device=cpu-arm64")[1][1] == ("onnxruntime", None, ("machine arm64",))


def test_no_gpu_is_measured_on_where_it_is_to_be_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    build = ("device=nvidia-gpu", "backend=torch")
    cuda = ("torch", "cuda", ("machine nvidia",))
    assert scored({"x86_64", "nvidia"}, *build) == ("true", [cuda, cuda])
    monkeypatch.setenv("PHIPIPE_COMPUTE", "cpu")
    assert scored({"x86_64", "nvidia"}, *build) == ("false", [("torch", None, ())] * 2)


def test_a_gpu_that_is_asked_for_and_not_there_is_refused_before_anything_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PHIPIPE_COMPUTE", "cuda")
    with hardware.there(frozenset({"x86_64"})), pytest.raises(ToolchainError) as caught:
        planned()
    assert caught.value.message == "PHIPIPE_COMPUTE is `cuda`, and this machine has no NVIDIA GPU"


def test_what_runs_on_a_gpu_goes_to_a_machine_that_has_one() -> None:
    cuda = ("onnxruntime-cuda", "cuda", ("machine nvidia",))
    assert scored({"x86_64", "nvidia"}, "device=nvidia-gpu") == ("true", [cuda, cuda])
    assert scored({"x86_64"}, "device=nvidia-gpu") == ("false", [("onnxruntime", None, ())] * 2)
    on, taken = scored(
        {"arm64", "nvidia", "device jetson-orin-nano"}, "device=jetson-orin-nano", "unit=cuda"
    )
    assert (on, taken[1]) == ("true", ("onnxruntime-cuda", "cuda", ("device jetson-orin-nano",)))
    assert scored({"x86_64", "nvidia"}, "device=rtx-8gb", "unit=cuda") == ("false", [cuda, cuda])


def test_a_worker_that_is_the_device_turns_emulated_speed_into_its_own() -> None:
    npu = ("device=intel-npu", "backend=openvino")
    assert scored({"x86_64"}, *npu) == ("emulated", [("openvino", None, ())] * 2)
    assert scored({"x86_64", "device intel-npu"}, *npu) == (
        "true",
        [("openvino", None, ()), ("openvino", "intel-npu", ("device intel-npu",))],
    )
    with hardware.there(frozenset({"arm64", "device snapdragon-x-npu"})):
        steps = {
            s.name: s
            for s in planned("quantize={}", "device=snapdragon-x-npu", "backend=qnn").steps
        }
    assert steps["measure"].params["api"] == "hexagon"
    assert (
        steps["measure"].needs["artifact"] == "compile"
    )  # what ships, not the twin that the emulator loads
    assert steps["evaluate"].needs["artifact"] != "compile"
    assert "emulate" in steps


def test_two_devices_are_measured_each_on_its_own() -> None:
    with hardware.there(frozenset({"x86_64", "arm64"})):
        made = [planned(f"device={name}") for name in ("cpu-x86_64", "cpu-arm64")]
    _, names = graph(made)
    assert names[0]["evaluate"] == names[1]["evaluate"]
    assert names[0]["measure"] != names[1]["measure"]


NEEDS_CALIBRATION = ("backend=openvino", "quantize={awq: true}")


def refused(*sets: str) -> TargetError:
    with pytest.raises(TargetError) as caught:
        planned(*sets)
    assert caught.value.hint
    return caught.value


def test_calibration_tokens_come_before_what_learns_from_them() -> None:
    names = [step.name for step in planned(*NEEDS_CALIBRATION).steps]
    assert names.index("calibration-text") < names.index("calibration") < names.index("quantize")
    assert "calibration" not in [
        step.name for step in planned("backend=openvino", "quantize={}").steps
    ]


def test_a_model_of_ones_own_needs_a_calibration_text_of_ones_own(tmp_path: Path) -> None:
    source = f"source={{path: {hub.BUILTIN_MODELS['tiny-phi3'].as_posix()}}}"
    assert "names none" in refused(source, *NEEDS_CALIBRATION).message
    (tmp_path / "text.txt").write_text("Once upon a time there was a fox.")
    given = f"calibrate.text={{file: {(tmp_path / 'text.txt').as_posix()}}}"
    assert planned(source, given, *NEEDS_CALIBRATION)
    with pytest.raises(SourceError, match="does not exist"):
        planned(source, "calibrate.text={file: nowhere.txt}", *NEEDS_CALIBRATION)


WINDOWED = """\
name: x
source: {builtin: tiny-phi3}
device: intel-cpu
backend: openvino
precision: int4
quantize: {awq: AWQ}
evaluate: {tokens: 4096, window: EVALUATED}
calibrate: {tokens: 4096, window: LEARNED}
"""


@pytest.mark.parametrize(
    ("learns", "evaluated", "learned", "words"),
    [
        (True, 2048, 2048, None),
        (True, 2049, 64, "7:34: `evaluate.window: 2049` is longer than the 2,048 tokens"),
        (True, 64, 4096, "8:35: `calibrate.window: 4096` is longer than the 2,048 tokens"),
        (False, 64, 4096, None),  # nothing learns from it
    ],
)
def test_a_window_that_the_model_cannot_read_is_refused(
    tmp_path: Path, learns: bool, evaluated: int, learned: int, words: str | None
) -> None:
    text = WINDOWED.replace("AWQ", str(learns).lower()).replace("EVALUATED", str(evaluated))
    (tmp_path / "r.yaml").write_text(text.replace("LEARNED", str(learned)), "utf-8")
    if words is None:
        assert made_from(tmp_path / "r.yaml")
        return
    with pytest.raises(TargetError) as caught:
        made_from(tmp_path / "r.yaml")
    assert f"r.yaml:{words}" in caught.value.message
    key = "evaluate" if evaluated > 2048 else "calibrate"
    assert caught.value.hint == f"`--set {key}.window=2048`, or less"


@pytest.mark.parametrize(
    "change",
    [lambda t: t, lambda t: t.replace(" ", "  \n"), lambda t: t[:9000], lambda t: "A. " + t],
)
def test_the_exam_is_no_calibration_text(tmp_path: Path, change: Callable[[str], str]) -> None:
    exam = (hub.ASSETS / "stories" / "evaluation.txt").read_text("utf-8")
    (tmp_path / "text.txt").write_text(change(exam), "utf-8")
    given = f"calibrate.text={{file: {(tmp_path / 'text.txt').as_posix()}}}"
    assert "evaluation text" in refused(given, *NEEDS_CALIBRATION).message


def test_an_npu_artifact_is_tried_through_the_npus_own_pipeline() -> None:
    made = planned("device=intel-npu", "backend=openvino", "quantize={}")
    assert (made.api, made.on_target) == ("intel-npu", "emulated")
    (emulate,) = (step for step in made.steps if step.name == "emulate")
    (package,) = (step for step in made.steps if step.name == "package")
    assert emulate.runs == "openvino/verify_npu"
    assert "emulate" in package.needs.values()
    assert emulate.needs["artifact"] == "quantize"


def test_the_board_recipe_is_one_graph_from_one_source() -> None:
    builds = loading.load(RECIPES / "board.yaml", options=backends.OptionsOf())
    plans = [preparation.prepare(build) for build in builds]
    assert {made.build.recipe.backend for made in plans} == {
        "torch",
        "onnxruntime",
        "llamacpp",
        "openvino",
        "mlx",
    }
    shared = [node.label for node in graph(plans)[0].values()]
    assert [shared.count(name) for name in ("source", "text", "baseline")] == [1, 1, 1]
    able = {
        (name, precision)
        for name in {made.build.recipe.backend for made in plans}
        for table in backends.load(name).precisions.values()
        for precision in table
    }
    missing = able - {(made.build.recipe.backend, made.build.recipe.precision) for made in plans}
    assert missing == {("onnxruntime", "fp16")}, "GPUs only: its CPU kernels cannot decode in it"


def cheap(tmp_path: Path, *steps: Step) -> Plan:
    """The quickstart's plan with other steps: light ones, which run right here."""
    return replace(planned(), steps=steps)


def take(folder: Path) -> Step:
    return Step(
        name="source",
        runs="hub/take",
        version=1,
        outside={"files": Outside(folder, ("a.txt",))},
        copies=True,
    )


def parity() -> Step:
    """A light step that fails where the metrics in its input are not those of a plain
    conversion."""
    return Step(name="check", runs="evaluate/check_parity", version=1, needs={"metrics": "source"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "outside"
    made.mkdir()
    (made / "a.txt").write_text("one")
    return made


@pytest.fixture
def store(own_cache: Path) -> Store:
    return Store(own_cache)


def run(made: Plan, store: Store) -> list[bool]:
    (outcome,) = attempt([made], store, Settings.read(), Silent())
    if outcome.error:
        raise outcome.error
    return [result.cached for result in outcome.results.values()]


def test_the_second_run_is_cached_and_a_change_is_not(
    tmp_path: Path, folder: Path, store: Store
) -> None:
    made = cheap(tmp_path, take(folder))
    assert run(made, store) == [False]
    assert run(made, store) == [True]
    (folder / "a.txt").write_text("two")
    assert run(made, store) == [False]
    (folder / "a.txt").write_text("one")
    assert run(made, store) == [True]


def metrics(folder: Path, value: float) -> Step:
    (folder / "metrics.json").write_text(
        json.dumps({"metrics": {"kld_mean": value}, "sanity": {"tokenizer_equal": True}})
    )
    files = Outside(folder, ("metrics.json",))
    return Step(name="source", runs="hub/take", version=1, outside={"files": files}, copies=True)


def test_a_failing_step_keeps_what_was_finished(tmp_path: Path, folder: Path, store: Store) -> None:
    made = cheap(tmp_path, metrics(folder, 0.5), parity())
    for cached in (False, True):
        (outcome,) = attempt([made], store, Settings.read(), Silent())
        assert isinstance(outcome.error, StepFailed)
        assert outcome.results["source"].cached is cached
        assert "check" not in outcome.results


def test_a_source_that_changes_while_it_is_read_is_noticed(
    tmp_path: Path, folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = digests.digest

    def then_change(source: Outside, cache: Path) -> str:
        found = real(source, cache)
        (folder / "a.txt").write_text("other")
        return found

    monkeypatch.setattr(digests, "digest", then_change)
    with pytest.raises(SourceError, match="changed while it was read"):
        run(cheap(tmp_path, take(folder)), store)
    assert not list((store.root / "actions").iterdir())


def test_a_flipped_bit_in_an_input_is_rebuilt_before_it_is_used(
    tmp_path: Path, folder: Path, store: Store
) -> None:
    source = metrics(folder, 0.5)
    run(cheap(tmp_path, source), store)
    (stored,) = (store.root / "objects").iterdir()
    path = stored / "metrics.json"
    status = path.stat()
    path.chmod(0o644)
    path.write_text(path.read_text().replace("0.5", "0.1"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(StepFailed, match=r"5\.00e-01"):
        run(cheap(tmp_path, source, parity()), Store(store.root))


def test_a_files_digest_is_remembered_by_size_and_time_but_never_when_racy(
    tmp_path: Path, folder: Path
) -> None:
    source = Outside(folder, ("a.txt",))
    first = digests.digest(source, tmp_path / "cache")
    (folder / "a.txt").write_text("two")  # same size, within the resolution of the clock
    assert digests.digest(source, tmp_path / "cache") != first
    old = time.time_ns() - 10**10
    os.utime(folder / "a.txt", ns=(old, old))
    second = digests.digest(source, tmp_path / "cache")
    (folder / "a.txt").write_text("six")
    os.utime(folder / "a.txt", ns=(old, old))
    assert (
        digests.digest(source, tmp_path / "cache") == second
    )  # believed, as documented; the copy is hashed
    digests.forget(source, tmp_path / "cache")
    assert digests.digest(source, tmp_path / "cache") != second


def test_where_there_is_a_gpu_it_is_what_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked_at(*sets: str) -> tuple[str, list[tuple[str | None, object, bool]]]:
        made = planned("quantize={}", *sets)
        chosen = [step for step in made.steps if step.name in ("parity", "evaluate", "measure")]
        return made.on_target, [
            (s.toolchain, s.params.get("api", "cpu"), s.measurement) for s in chosen
        ]

    here, gpu = ("onnxruntime", "cpu", False), ("onnxruntime-cuda", "cuda", True)
    timed = ("onnxruntime", "cpu", True)
    monkeypatch.setattr(hardware, "nvidia", lambda: None)
    assert looked_at("device=nvidia-gpu") == ("false", [here, here, timed])
    monkeypatch.setattr(hardware, "nvidia", lambda: "GPU 0: some GPU")
    assert looked_at("device=nvidia-gpu") == ("true", [here, gpu, gpu])
    assert looked_at("device=rtx-8gb") == (
        "false",
        [here, gpu, gpu],
    )  # a GPU, but perhaps not that one
    assert looked_at("device=cpu-x86_64") == ("true", [here, here, timed])
    assert looked_at("device=rtx-8gb", "unit=directml") == ("false", [here, here, timed])
