"""Speeds from a device where phipipe does not run, on the board."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from testing.kitchen import Kitchen

import phipipe
from phipipe.errors import SourceError

MLX = "Prompt: 64 tokens, 320.0 tokens-per-sec\nGeneration: 100 tokens, 40.0 tokens-per-sec\n"
TENSOR = b'{"w":{"dtype":"F16","shape":[1],"data_offsets":[0,2]}}'


@pytest.fixture
def iphones(tmp_path: Path) -> phipipe.Package:
    """A package for iPhones, of 4.5 million parameters."""
    kitchen = Kitchen(tmp_path / "kitchen")
    for path in kitchen.artifact.glob("*onnx*"):
        path.unlink()
    (kitchen.artifact / "genai_config.json").unlink()
    weights = len(TENSOR).to_bytes(8, "little") + TENSOR + b"\0\0"
    (kitchen.artifact / "model.safetensors").write_bytes(weights)
    (kitchen.artifact / "config.json").write_text('{"model_type": "phi3"}\n', "utf-8")
    kitchen.params |= {"backend": "mlx", "backend_title": "MLX", "api": "metal"}
    kitchen.params |= {"on_target": "false"}
    kitchen.params["recipe"] |= {"backend": "mlx", "device": "iphone-8gb", "quantize": {}}
    kitchen.params["device"] = {"name": "iphone-8gb", "title": "iPhone", "sources": []}
    return phipipe.Package.open(kitchen.cook())


@pytest.fixture
def printed(tmp_path: Path) -> Path:
    path = tmp_path / "mlx.txt"
    path.write_text(MLX, "utf-8")
    return path


def test_real_speeds_take_the_place_of_the_build_machines(
    iphones: phipipe.Package, printed: Path, tmp_path: Path
) -> None:
    speeds = iphones.import_speeds(printed, machine="iPhone 16 Pro")
    report = speeds.write(tmp_path / "report.json")
    for items in ((iphones, speeds), (iphones, report)):
        (entry,) = phipipe.Board(*items).entries
        assert entry.measured
        assert entry.on_target == "true"
        assert entry.metrics["decode_tokens_per_s"] == 40
        assert entry.metrics["ttft_s"] == 0.2
        assert entry.metrics["kld_mean"] == 0.01234
        assert "peak_memory_gib" not in entry.metrics
        assert entry.conditions == ("iPhone 16 Pro, as MLX printed", 64)


def test_the_card_has_what_an_app_calls(iphones: phipipe.Package, tmp_path: Path) -> None:
    assert "```swift" in iphones.card
    assert "com.apple.developer.kernel.increased-memory-limit" in iphones.card
    assert "```swift" not in phipipe.Package.open(Kitchen(tmp_path / "other").cook()).card


def test_the_command_says_what_it_read(
    iphones: phipipe.Package, printed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "measured.json"
    command = [sys.executable, "-m", "phipipe", "measure", str(iphones.path), "--out", str(out)]

    def told(*more: str, code: int) -> str:
        done = subprocess.run([*command, *more], capture_output=True, text=True, check=False)
        assert done.returncode == code, done.stderr
        return done.stdout + done.stderr

    text = told("--import", str(printed), "--on", "iPhone 16", code=0)
    assert "quickstart on iPhone 16, as MLX printed" in text
    assert "Answer speed: 40.0 tokens/s" in text
    assert out.is_file()
    assert "`--on 'iPhone 16 Pro'`" in told("--import", str(printed), code=8)
    assert "`--on` names the machine" in told("--on", "iPhone 16", code=2)


def test_another_model_and_another_runtime_are_refused(
    iphones: phipipe.Package, printed: Path, tmp_path: Path
) -> None:
    wrong = Kitchen(tmp_path / "other").cook()
    with pytest.raises(SourceError, match=r"MLX times packages of `mlx`, and .* `onnxruntime`"):
        phipipe.Package.open(wrong).import_speeds(printed, machine="iPhone 16")
    with pytest.raises(SourceError, match="nowhere"):
        iphones.import_speeds(tmp_path / "nowhere.json")
