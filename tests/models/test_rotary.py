"""Every kind of rotary scaling on every backend: converted and compared with transformers, within
the original context and beyond it; or refused with its rule."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from testing.drive import drive
from testing.places import QUICKSTART
from testing.rotary_checkpoints import LONG, SHORT

from phipipe import backends
from phipipe.planning.plan import Plan
from phipipe.planning.preparation import prepare
from phipipe.planning.scoring import PARITY_KLD_MEAN
from phipipe.recipe import loading

DRIVER = Path(__file__).parent / "family_driver.py"
THREADS = {"OMP_NUM_THREADS": "2"}
WINDOWS = {"short": SHORT, "long": LONG}
LIMIT = PARITY_KLD_MEAN["fp32"]
NEAR = 0.01  # nats: between two tokens that are almost equally likely, rounding decides
BUILDS = {
    "onnxruntime": ("cpu-x86_64", "fp32"),
    "llamacpp": ("cpu-x86_64", "fp32"),
    "openvino": ("cpu-x86_64", "fp32"),
    "mlx": ("apple-silicon", "fp32"),
    "torch": ("cpu-x86_64", "fp16"),
    "litert": ("cpu-x86_64", "fp32"),
}
pytestmark = pytest.mark.timeout(1800)


def plan_of(source: Path, backend: str, window: str) -> Plan:
    device, precision = BUILDS[backend]
    (build,) = loading.load(
        QUICKSTART,
        sets=[
            f"source={{path: {source.as_posix()}}}",
            f"device={device}",
            f"backend={backend}",
            "quantize={}",
            f"precision={precision}",
            "calibrate.text={builtin: stories}",
            "evaluate.text={builtin: stories}",
            f"evaluate={{tokens: 512, window: {WINDOWS[window]}, gates: {{}}}}",
            "measure={prompt_tokens: 16, new_tokens: 16}",
        ],
        options=backends.OptionsOf(),
    )
    return prepare(build)


def job(root: Path, backend: str, kind: str, spelling: str, window: str) -> dict[str, Any]:
    """What the driver needs of a plan: the backend's steps up to the first unquantized
    conversion."""
    source, steps = f"{kind}/{spelling}", list[dict[str, Any]]()
    for step in plan_of(root / source, backend, window).steps:
        if not step.runs.startswith(f"{backend}/"):
            continue
        told: dict[str, Any] = {"name": step.name, "runs": step.runs, "needs": dict(step.needs)}
        told["params"] = dict(step.params)
        before = [made["folder"] for made in steps]
        digest = hashlib.sha256(json.dumps([source, before, told], sort_keys=True).encode())
        steps.append(told | {"folder": f"{backend}-{digest.hexdigest()[:16]}"})
        if step.unquantized:
            break
    name = f"{kind} {spelling} {window}"
    return {"name": name, "source": source, "window": window, "steps": steps}


@pytest.fixture(scope="session")
def checkpoints(python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small checkpoint of each kind."""
    root = tmp_path_factory.mktemp("rotary")
    drive(python_of("torch"), "-m", "testing.rotary_checkpoints", root, **THREADS)
    return root
