"""Phi-4-multimodal: its language model with the pictures' adapter merged, and its eyes, on
OpenVINO and ONNX Runtime GenAI."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing.drive import drive
from testing.seeing import planned, seen

from phipipe.cli.listeners import Silent
from phipipe.errors import TargetError
from phipipe.execution import dispatch
from phipipe.execution.manner import Manner
from phipipe.execution.results import Outcome
from phipipe.models import checkpoints
from phipipe.package import manifest
from phipipe.settings import Settings
from phipipe.store.store import Store
from phipipe.vision import kinds
from phipipe.vision import pictures as vision_pictures

DRIVER = Path(__file__).parent / "phi4mm_driver.py"

pytestmark = pytest.mark.timeout(600)
BUILD = ("backend=openvino", "device=intel-cpu")
GENAI_KLD = 1e-3


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, python_of: Callable[[str], Path]) -> Path:
    """What ``phi4mm_checkpoints`` leaves."""
    folder = tmp_path_factory.mktemp("phi4mm")
    drive(python_of("torch"), "-m", "testing.phi4mm_checkpoints", folder)
    return folder


@pytest.fixture(scope="module")
def builds(made: Path, toolchains: Path) -> dict[str, Outcome]:
    """The small model at fp32 and at 4 bits."""
    settings, store = Settings(cache=made / "cache", toolchains=toolchains), Store(made / "cache")
    asked = {name: (*BUILD, f"precision={name}", f"name={name}") for name in ("fp32", "int4")}
    asked["int4"] += ("quantize={group_size: 32}",)
    plans = [planned(made / "source", *sets) for sets in asked.values()]
    manner = Manner(out=made / "packages", jobs=2)
    ends = dispatch.attempt(plans, store, settings, Silent(), manner)
    return dict(zip(asked, ends, strict=True))


def package_of(builds: dict[str, Outcome], name: str) -> Path:
    package = builds[name].package
    assert package is not None
    return package


def test_the_eyes_are_transformers_own_and_the_adapter_is_merged(
    made: Path, builds: dict[str, Outcome], python_of: Callable[[str], Path]
) -> None:
    told = json.loads(
        drive(
            python_of("torch"),
            DRIVER,
            made / "source",
            builds["fp32"].results["source"].stored.path,
        )
    )
    assert len(told["eyes"]) == 5
    assert max(told["eyes"].values()) < 1e-5
    assert told["batch"] < 1e-5
    assert told["adapter"] < 0.01  # bf16; measured 0.002


def test_the_language_model_is_phi4_mini(made: Path, builds: dict[str, Outcome]) -> None:
    whole, part = (
        checkpoints.read(made / "source"),
        checkpoints.read(builds["fp32"].results["source"].stored.path),
    )
    assert (part.architecture, part.model_type, part.parts) == ("Phi3ForCausalLM", "phi3", ())
    assert whole.parts == ("vision", "audio")
    assert kinds.language(whole).parameters == part.parameters < whole.parameters
    assert not {"vision_lora", "speech_lora", "embd_layer", "auto_map"} & set(part.config)


def test_an_adapter_that_is_incomplete_is_refused(
    made: Path, tmp_path: Path, python_of: Callable[[str], Path]
) -> None:
    shutil.copytree(made / "source", tmp_path / "source")
    path = tmp_path / "source" / "config.json"
    path.write_text(path.read_text("utf-8").replace('"r": 8', '"r": 9'), "utf-8")
    (tmp_path / "out").mkdir()
    code = (
        "import sys; from pathlib import Path; from phipipe.vision import lora\n"
        "from phipipe.errors import StepFailed\n"
        "try: lora.cut({'original': Path(sys.argv[1])}, Path(sys.argv[2]), {})\n"
        "except StepFailed as error: print(error.message)"
    )
    said = drive(python_of("torch"), "-c", code, tmp_path / "source", tmp_path / "out")
    assert "rank 9" in said


def test_unquantized_it_sees_what_the_original_sees(builds: dict[str, Outcome]) -> None:
    found = seen(builds["fp32"])
    assert found["metrics"]["image_kld_mean"] < 1e-4  # another way of resizing pictures included
    assert found["metrics"]["image_top1"] > 0.95
    assert found["vectors"] == {"wide": 23 * 33 + 1 + 272, "tall": 23 * 17 + 1 + 272}


def test_rounded_text_and_pictures_suffer_alike(builds: dict[str, Outcome]) -> None:
    found = seen(builds["int4"])
    told = json.loads((package_of(builds, "int4") / manifest.NAME).read_text("utf-8"))
    assert (
        1e-4
        < found["metrics"]["image_kld_mean"]
        < 1e-3 + 3 * told["fidelity"]["metrics"]["kld_mean"]
    )
    assert told["steps"]["eyes"]["params"]["bits"] == 8
    assert told["source"]["architecture"] == kinds.PHI4
    assert told["fidelity"]["parity"]["kld_mean"] <= told["fidelity"]["parity"]["limit"]


def test_the_pipelines_answers_follow_from_the_graphs(
    builds: dict[str, Outcome], python_of: Callable[[str], Path], tmp_path: Path
) -> None:
    # one that fills its crops, some with padding below or at the right, and one of more crops than
    # are allowed
    shown = (
        *vision_pictures.LARGER,
        *vision_pictures.SQUARES,
        vision_pictures.Picture(name="long", width=16600, height=60),
    )
    for picture in shown:
        (tmp_path / f"{picture.name}.png").write_bytes(picture.png())
    said = drive(
        python_of("openvino"),
        "-m",
        "testing.openvino_answers",
        package_of(builds, "int4"),
        *sorted(tmp_path.glob("*.png")),
    )
    gaps: dict[str, Any] = json.loads(said.splitlines()[-1])
    assert set(gaps) == {picture.name for picture in shown}
    assert max(gaps.values()) < 0.1


@pytest.mark.parametrize("pictures", [(), ("wide",), ("wide", "tall")], ids=["text", "one", "two"])
def test_the_cards_program_answers(
    builds: dict[str, Outcome],
    python_of: Callable[[str], Path],
    tmp_path: Path,
    pictures: tuple[str, ...],
) -> None:
    package = package_of(builds, "int4")
    program = run_card(package, python_of("openvino"), tmp_path, pictures)
    assert "ImageOps" not in program  # the pipeline pads by itself


def run_card(package: Path, python: Path, folder: Path, pictures: tuple[str, ...]) -> str:
    """The program on the card, which has answered about ``pictures``."""
    (program,) = re.findall(
        r"```python\n(.*?)```", (package / "README.md").read_text("utf-8"), re.DOTALL
    )
    (folder / "run.py").write_text(program, "utf-8")
    files = []
    for picture in vision_pictures.LARGER:
        if picture.name in pictures:
            files.append(folder / f"{picture.name}.png")
            files[-1].write_bytes(picture.png())
    assert drive(python, folder / "run.py", package, *files).strip()
    return str(program)


def test_the_plan_says_what_is_left_out(made: Path) -> None:
    told = planned(made / "source", *BUILD).warnings
    assert ["hears" in advice.message for advice in told if advice.rule == "M20"] == [True]
    assert not [advice for advice in told if advice.rule == "M18"]


def test_other_backends_say_who_can(made: Path) -> None:
    with pytest.raises(TargetError, match="M03") as refused:
        planned(made / "source", "backend=llamacpp")
    assert "openvino" in (refused.value.hint or "")


def test_too_few_tokens_for_onnxruntimes_mark_are_refused(made: Path) -> None:
    with pytest.raises(TargetError, match="M25") as refused:
        planned(made / "source")
    assert "200010" in refused.value.message


def test_intel_gpus_have_eyes(made: Path) -> None:
    plan = planned(made / "source", "backend=openvino", "device=intel-gpu", "precision=fp16")
    assert "eyes" in [step.name for step in plan.steps]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory, python_of: Callable[[str], Path]) -> Path:
    """The checkpoint with as many tokens as the original."""
    folder = tmp_path_factory.mktemp("phi4mm-wide")
    drive(python_of("torch"), "-m", "testing.phi4mm_checkpoints", folder, "wide")
    return folder


@pytest.fixture(scope="module")
def genai_builds(wide: Path, toolchains: Path) -> dict[str, Outcome]:
    """The same on onnxruntime."""
    settings, store = Settings(cache=wide / "cache", toolchains=toolchains), Store(wide / "cache")
    few = ("evaluate.tokens=256", "evaluate.window=64")  # of 200,000 log-probabilities each
    plans = [
        planned(wide / "source", f"precision={name}", f"name={name}", *few)
        for name in ("fp32", "int4")
    ]
    manner = Manner(out=wide / "packages", jobs=1)
    ends = dispatch.attempt(plans, store, settings, Silent(), manner)
    return dict(zip(("fp32", "int4"), ends, strict=True))


@pytest.mark.nightly
def test_onnxruntime_sees_what_the_original_sees(genai_builds: dict[str, Outcome]) -> None:
    whole, rounded = (seen(genai_builds[name]) for name in ("fp32", "int4"))
    # the runtime scales the picture as a whole down with antialiasing, the original without
    assert whole["metrics"]["image_kld_mean"] < GENAI_KLD
    assert whole["metrics"]["image_top1"] > 0.95
    assert whole["vectors"] == {"wide": 23 * 33 + 1 + 272, "tall": 23 * 17 + 1 + 272}
    assert whole["metrics"]["image_kld_mean"] < rounded["metrics"]["image_kld_mean"]


@pytest.mark.nightly
@pytest.mark.parametrize("pictures", [(), ("wide",), ("wide", "tall")], ids=["text", "one", "two"])
def test_onnxruntimes_program_answers(
    genai_builds: dict[str, Outcome],
    python_of: Callable[[str], Path],
    tmp_path: Path,
    pictures: tuple[str, ...],
) -> None:
    run_card(package_of(genai_builds, "int4"), python_of("onnxruntime"), tmp_path, pictures)


def test_eyes_of_another_kind_are_refused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "source", tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text("utf-8"))
    config["embd_layer"]["image_embd_layer"]["hd_transform_order"] = "glb_sub"
    (tmp_path / "source" / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(TargetError, match="M19"):
        planned(tmp_path / "source", *BUILD)
