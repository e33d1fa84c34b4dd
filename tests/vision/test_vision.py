"""Models that see: taken apart, built like any other, and shown pictures."""

from __future__ import annotations

import json
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from testing.drive import drive
from testing.family_builds import headers_of, plan_of
from testing.seeing import planned, seen
from testing.shell import Run

from phipipe import backends
from phipipe.board import entry
from phipipe.cli.listeners import Silent
from phipipe.errors import GateFailed, TargetError
from phipipe.evaluate.reports import Metrics, Vision
from phipipe.execution import dispatch, finished
from phipipe.execution.manner import Manner
from phipipe.execution.results import Outcome
from phipipe.hub import take
from phipipe.models import checkpoints, family, tensor_places
from phipipe.package import manifest
from phipipe.settings import Settings
from phipipe.store.store import Store
from phipipe.vision import kinds, language
from phipipe.vision import pictures as vision_pictures

DRIVER = Path(__file__).parent / "driver.py"


@pytest.mark.parametrize("picture", vision_pictures.PICTURES, ids=lambda p: p.name)
def test_pictures_are_valid_files(picture: vision_pictures.Picture) -> None:
    raw, chunks, at = picture.png(), {}, 8
    while at < len(raw):
        (length,) = struct.unpack(">I", raw[at : at + 4])
        kind, body = raw[at + 4 : at + 8], raw[at + 8 : at + 8 + length]
        assert struct.unpack(">I", raw[at + 8 + length : at + 12 + length]) == (
            zlib.crc32(kind + body),
        )
        chunks[kind] = body
        at += 12 + length
    assert struct.unpack(">II", chunks[b"IHDR"][:8]) == (picture.width, picture.height)
    rows, stride = zlib.decompress(chunks[b"IDAT"]), 3 * picture.width
    lines = [rows[i * (stride + 1) :][: stride + 1] for i in range(picture.height)]
    assert {line[0] for line in lines} == {0}
    assert b"".join(line[1:] for line in lines) == picture.pixels()
    middle = lines[picture.height // 2][1 + 3 * (picture.width // 3) :]
    assert middle[:3] == b"\xd0\x20\x20"  # the disc


def test_the_eyes_are_transformers_clip_and_pictures_are_laid_out_row_by_row(
    seeing: Path, python_of: Callable[[str], Path]
) -> None:
    told = json.loads(drive(python_of("torch"), DRIVER, seeing))
    assert told["clip"] < 1e-5
    assert told["order"] < 1e-5
    assert told["same"] < 0.01  # of 255
    assert told["prepared"] == {
        "wide 4": [[5, 3, 336, 336], [672, 672]],
        "wide 16": [[13, 3, 336, 336], [1008, 1344]],
        "tall 4": [[5, 3, 336, 336], [672, 672]],
        "tall 16": [[13, 3, 336, 336], [1344, 1008]],
        "square 4": [[5, 3, 336, 336], [672, 672]],
        "square 16": [[17, 3, 336, 336], [1344, 1344]],
    }


def test_the_language_model_is_a_checkpoint_of_its_own(seeing: Path, tmp_path: Path) -> None:
    language.cut({"original": seeing / "source"}, tmp_path, {})
    whole, part = checkpoints.read(seeing / "source"), checkpoints.read(tmp_path)
    assert (part.architecture, part.parts, whole.parts) == ("Phi3ForCausalLM", (), ("vision",))
    assert kinds.language(whole).parameters == part.parameters < whole.parameters
    assert "auto_map" not in part.config
    theirs, ours = tensor_places.places(seeing / "source"), tensor_places.places(tmp_path)
    others = kinds.KINDS[kinds.PHI3].others
    assert {name for name in theirs if not name.startswith(others)} == set(ours)
    for name, place in ours.items():
        old = theirs[name]
        bytes_of = (seeing / "source" / old.file).read_bytes()[
            old.offset : old.offset + old.size_bytes
        ]
        assert (tmp_path / place.file).read_bytes()[
            place.offset : place.offset + place.size_bytes
        ] == bytes_of


@pytest.mark.parametrize(
    "name", [n for n in backends.names() if kinds.PHI3 not in backends.load(n).vision]
)
def test_other_backends_say_who_can(seeing: Path, name: str) -> None:
    device = {"mlx": "mac-16gb", "qnn": "snapdragon-x-npu", "litert": "android-phone"}.get(
        name, "cpu-x86_64"
    )
    with pytest.raises(TargetError, match=r"M03") as refused:
        planned(seeing / "source", f"backend={name}", f"device={device}", "precision=int8")
    assert refused.value.hint
    assert "backend: onnxruntime" in refused.value.hint


def test_phi_3_5_vision_on_a_mac_is_refused_with_what_mlx_vlm_lacks(
    tmp_path: Path, run: Run
) -> None:
    member = next(one for one in family.MEMBERS if one.name == "Phi-3.5-vision")
    made = headers_of(member, tmp_path / "source")
    with pytest.raises(TargetError, match="the model has vision parts besides text") as refused:
        plan_of(tmp_path, "mlx", "short", lambda source, base: made)
    assert "`mlx` builds have no place for them" in refused.value.message
    assert "`backend: onnxruntime` or `openvino`" in str(refused.value.hint)
    code, out, _ = run("explain", "M03")
    assert code == 0
    assert "mlx-vlm knows Phi-3.5-vision, but it stretches a picture" in " ".join(out.split())


def test_units_without_eyes_are_refused(seeing: Path) -> None:
    with pytest.raises(TargetError, match="see") as refused:
        planned(seeing / "source", "device=nvidia-gpu", "precision=fp16")
    assert "cuda" in refused.value.message


def test_gates_on_pictures_need_eyes(tmp_path: Path) -> None:
    shutil.copytree(take.BUILTIN_MODELS["tiny-phi3"], tmp_path / "source")
    with pytest.raises(TargetError, match="image_top1"):
        planned(tmp_path / "source", "evaluate.gates={image_top1: {min: 0.5}}")


def test_eyes_of_another_kind_are_refused(seeing: Path, tmp_path: Path) -> None:
    shutil.copytree(seeing / "source", tmp_path / "source")
    config = json.loads((tmp_path / "source" / "config.json").read_text("utf-8"))
    config["embd_layer"]["hd_transform_order"] = "glb_sub"
    (tmp_path / "source" / "config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(TargetError, match="M17"):
        planned(tmp_path / "source")


@pytest.fixture(scope="module")
def builds(seeing: Path, toolchains: Path) -> dict[str, Outcome]:
    """The small model at fp32, at 4 bits, and with a gate on pictures that nothing passes."""
    settings, store = (
        Settings(cache=seeing / "cache", toolchains=toolchains),
        Store(seeing / "cache"),
    )
    asked = {
        "fp32": (),
        "int4": ("precision=int4", "name=four"),
        "gated": ("precision=int4", "name=gated"),
    }
    asked["gated"] += ("evaluate.gates={image_kld_mean: {max: 1.0e-9}}",)
    plans = [planned(seeing / "source", *sets) for sets in asked.values()]
    manner = Manner(out=seeing / "packages", jobs=2)
    ends = dispatch.attempt(plans, store, settings, Silent(), manner)
    return dict(zip(asked, ends, strict=True))


def test_unquantized_it_sees_what_the_original_sees(builds: dict[str, Outcome]) -> None:
    found = seen(builds["fp32"])
    assert (
        found["metrics"]["image_kld_mean"] < 1e-4
    )  # two ways of resizing pictures included; measured 1.3e-5
    assert found["metrics"]["image_top1"] > 0.98
    assert (
        found["greedy_agreement"] >= 0.75
    )  # one answer parts where two tokens are almost equally likely
    assert found["vectors"] == {
        "wide": 1921,
        "tall": 1933,
    }  # 12 h (12 w + 1) + 157 for 3 × 4 and 4 × 3 crops


def test_at_four_bits_text_and_pictures_suffer_alike(builds: dict[str, Outcome]) -> None:
    found = seen(builds["int4"])
    package = builds["int4"].package
    assert package is not None
    told = json.loads((package / manifest.NAME).read_text("utf-8"))
    read = manifest.read_manifest(package)
    assert 1e-4 < found["metrics"]["image_kld_mean"] < 3 * told["fidelity"]["metrics"]["kld_mean"]
    assert told["steps"]["eyes"]["params"]["bits"] == 8
    assert (
        told["source"]["digest"]
        == told["steps"]["original"]["digest"]
        != told["steps"]["source"]["digest"]
    )
    assert told["source"]["architecture"] == "Phi3VForCausalLM"
    assert told["fidelity"]["parity"]["kld_mean"] <= told["fidelity"]["parity"]["limit"]
    assert "### Pictures" in (package / "README.md").read_text("utf-8")
    assert entry.from_manifest(read).metrics["kld_mean"] == told["fidelity"]["metrics"]["kld_mean"]


def test_gates_on_pictures_hold_a_package_back(builds: dict[str, Outcome]) -> None:
    assert isinstance(builds["gated"].error, GateFailed)
    assert "image_kld_mean" in builds["gated"].error.message
    assert builds["gated"].package is None


@pytest.mark.parametrize("pictures", [(), ("wide",), ("wide", "tall")], ids=["text", "one", "two"])
def test_the_cards_program_answers(
    builds: dict[str, Outcome],
    python_of: Callable[[str], Path],
    tmp_path: Path,
    pictures: tuple[str, ...],
) -> None:
    package = builds["int4"].package
    assert package is not None
    (program,) = re.findall(
        r"```python\n(.*?)```", (package / "README.md").read_text("utf-8"), re.DOTALL
    )
    (tmp_path / "run.py").write_text(program, "utf-8")
    files = []
    for picture in vision_pictures.PICTURES:
        if picture.name in pictures:
            files.append(tmp_path / f"{picture.name}.png")
            files[-1].write_bytes(picture.png())
    assert drive(python_of("onnxruntime"), tmp_path / "run.py", package, *files).strip()


def test_a_package_is_evaluated_again_with_its_eyes(
    builds: dict[str, Outcome], seeing: Path, tmp_path: Path, toolchains: Path
) -> None:
    package = builds["int4"].package
    assert package is not None
    store = Store(tmp_path / "cache")  # nothing is at hand but the original
    again_plan = finished.plan_evaluation(
        package, store, print, text=None, tokens=None, source=seeing / "source"
    )
    settings = Settings(cache=store.root, toolchains=toolchains)
    (done,) = dispatch.attempt([again_plan], store, settings, Silent(), Manner(jobs=2))
    assert done.error is None
    pictures, fidelity = done.load("vision-evaluate", Vision), done.load("evaluate", Metrics)
    assert pictures is not None
    assert fidelity is not None
    assert pictures.metrics == pytest.approx(seen(builds["int4"])["metrics"], rel=1e-4)
    assert fidelity.metrics["bits_per_weight"] == pytest.approx(
        json.loads((package / manifest.NAME).read_text("utf-8"))["fidelity"]["metrics"][
            "bits_per_weight"
        ],
        rel=0.01,
    )
