"""Every family member on every backend: planned as a user's build is, converted, compared with transformers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from family_checkpoints import LONG, MEMBERS, SHORT, slug
from test_plan import planned

from phipipe import backends
from phipipe.errors import TargetError
from phipipe.plan import PARITY_KLD_MEAN, Plan

HERE = Path(__file__).parent
WINDOWS = {"short": SHORT, "long": LONG}
BUILDS = {  # backend: device and precision, such that the unquantized conversion is fp32
    "onnxruntime": ("cpu-x86_64", "fp32"),
    "openvino": ("cpu-x86_64", "fp32"),
    "llamacpp": ("cpu-x86_64", "fp32"),
    "mlx": ("apple-silicon", "fp32"),
    "torch": ("cpu-x86_64", "fp16"),
    "litert": ("cpu-x86_64", "fp32"),
    "qnn": ("snapdragon-x-npu", "int8"),
}
pytestmark = pytest.mark.integration


def plan_of(source: Path, backend: str, window: str) -> Plan:
    """The plan of a build with evaluation windows of that kind.

    Raises:
        TargetError: it is refused.
    """
    device, precision = BUILDS[backend]
    sizes = {"tokens": 512, "window": WINDOWS[window], "text": "{builtin: stories}"}
    sets = [f"evaluate.{key}={value}" for key, value in sizes.items()]
    sets += [f"source={{path: {source.as_posix()}}}", f"device={device}", f"backend={backend}", "quantize={}"]
    sets += [f"precision={precision}", "calibrate.text={builtin: stories}"]
    return planned(*sets, "measure={prompt_tokens: 16, new_tokens: 16}", "evaluate.gates={}")


def job(name: str, source: str, window: str, plan: Plan) -> dict[str, Any]:
    """What the driver needs of a plan: the backend's steps up to the first unquantized conversion."""
    steps: list[dict[str, Any]] = []
    for step in plan.steps:
        if "phipipe.backends." in step.runs:
            told = json.dumps([source, step.runs, dict(step.params), [s["folder"] for s in steps]], sort_keys=True)
            folder = hashlib.sha256(told.encode()).hexdigest()[:16]
            needs = dict(step.needs)
            steps.append({"name": step.name, "runs": step.runs, "needs": needs, "params": dict(step.params)})
            steps[-1]["folder"] = folder
            if step.unquantized:
                break
    return {"name": name, "source": source, "window": window, "steps": steps}


@pytest.fixture(scope="session")
def drive() -> Any:
    """Run a driver in a toolchain's Python."""

    def run(python: Path, *words: Path | str) -> None:
        environment = os.environ | {"PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
        done = subprocess.run([python, *words], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]

    return run


@pytest.fixture(scope="session")
def family(torch_python: Path, drive: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all members' small checkpoints."""
    root = tmp_path_factory.mktemp("family")
    drive(torch_python, HERE / "family_checkpoints.py", root)
    return root


def test_dummy(family: Path, request: pytest.FixtureRequest, drive: Any) -> None:
    for backend in os.environ.get("ONLY", "onnxruntime").split(","):
        jobs, refused = [], {}
        for member in MEMBERS:
            for window in WINDOWS:
                source = f"{slug(member.name)}/source"
                name = f"{member.name} {window}"
                try:
                    jobs.append(job(name, source, window, plan_of(family / source, backend, window)))
                except TargetError as error:
                    refused[name] = error.message.splitlines()[0]
        (family / f"{backend}.jobs.json").write_text(json.dumps(jobs))
        made_with = request.getfixturevalue(
            "torch_python" if backend == "llamacpp" else f"{'ort' if backend == 'onnxruntime' else backend}_python"
        )
        measured_with = request.getfixturevalue(f"{'ort' if backend == 'onnxruntime' else backend}_python")
        import time

        t = time.monotonic()
        drive(made_with, HERE / "family_driver.py", family, backend, "convert")
        t2 = time.monotonic()
        drive(measured_with, HERE / "family_driver.py", family, backend, "measure")
        print(backend, "convert", t2 - t, "measure", time.monotonic() - t2)
        conv = family / f"{backend}.convert.json"
        broken = json.loads(conv.read_text()) if conv.exists() else {}
        facts = json.loads((family / f"{backend}.measure.json").read_text())
        for name, f in facts.items():
            if name in broken:
                print(name, "CONVERT ERROR", broken[name]["error"][-700:])
            elif "error" in f:
                print(name, "ERROR", f["error"][-700:])
            else:
                print(f"{name:26s} {f['kld']:.2e} answer {f['answer'] == f['right']} tok {f['tokenizer']}")
        for name, why in refused.items():
            print("REFUSED", name, why[-200:])
