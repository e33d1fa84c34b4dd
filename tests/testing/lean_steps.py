"""Light steps over a checkpoint of a few bytes, and a plan of them: what is read, made, checked and
shipped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from phipipe.planning.plan import Plan
from phipipe.steps import Outside, Step
from phipipe.store import files
from testing.plans import plan as plan_of

STEPS = {
    "convert": f"{__name__}:convert",
    "score": f"{__name__}:score",
    "assemble": f"{__name__}:assemble",
    "mend": f"{__name__}:mend",
}
CALLS: list[str] = []  # names of the steps that ran
MEANWHILE: dict[str, Callable[[], None]] = {}  # done while the step of that name reads
WEIGHTS = "model.safetensors"


def checkpoint(folder: Path, weights: bytes = b"weights" * 4096) -> Path:
    """Files written long ago, with one beside them that is none of the model's."""
    folder.mkdir(parents=True)
    for name, content in ((WEIGHTS, weights), ("tokens.json", b"{}"), ("evil.py", b"raise")):
        (folder / name).write_bytes(content)
        os.utime(folder / name, (1, 1))
    return folder


def convert(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """Double the weights of the source, or of what another step made of it."""
    name = str(params["name"])
    (read,) = inputs.values()
    raw = (read / WEIGHTS).read_bytes()
    assert not (read / "evil.py").exists()
    MEANWHILE.get(name, lambda: None)()
    (out / WEIGHTS).write_bytes(raw + raw)
    CALLS.append(name)


def score(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """A report on what was made."""
    size = sum(path.stat().st_size for folder in inputs.values() for path in folder.iterdir())
    (out / "metrics.json").write_text(json.dumps({"bytes": size, "tokens": params.get("tokens")}))
    CALLS.append(str(params["name"]))


def assemble(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """A package of the artifact's files."""
    for path in inputs["artifact"].iterdir():
        files.take_over(path, out / path.name)
    (out / "manifest.json").write_text("{}")
    CALLS.append("package")


def mend(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """The source with other settings; weights are what they are there."""
    weights = inputs["source"] / WEIGHTS
    if weights.is_symlink():
        (out / WEIGHTS).symlink_to(weights.resolve())
    else:
        os.link(weights, out / WEIGHTS)
    (out / "tokens.json").write_text(json.dumps(dict(params["settings"])))
    CALLS.append("mend")


def source(folder: Path, name: str = "source", *, borrows: bool = True) -> Step:
    """The step that takes the checkpoint in ``folder``."""
    return Step(
        name=name,
        runs="hub/take",
        version=1,
        outside={"files": Outside(folder, (WEIGHTS, "tokens.json"))},
        copies=True,
        borrows=borrows,
        keep="material",
        output_bytes=28672,
        taken_bytes=28672 if borrows else 0,
    )


def step(name: str, verb: str, keep: Any, needs: Mapping[str, str], **more: Any) -> Step:
    """A step of this module."""
    params = {"name": name, **more.pop("params", {})}
    return Step(
        name=name,
        runs=f"{__name__}/{verb}",
        version=1,
        keep=keep,
        needs=needs,
        params=params,
        **more,
    )


def chain(folder: Path, *, borrows: bool = True, tokens: int = 1) -> list[Step]:
    """Proof, artifact, report and package of the checkpoint in ``folder``."""
    return [
        source(folder, borrows=borrows),
        step("slice", "convert", "proof", {"source": "source"}, output_bytes=57344),
        step("check", "score", "result", {"slice": "slice"}),
        step(
            "quantize",
            "convert",
            "material",
            {"source": "source"},
            after=("check",),
            output_bytes=57344,
        ),
        step("evaluate", "score", "result", {"artifact": "quantize"}, params={"tokens": tokens}),
        step(
            "package",
            "assemble",
            "result",
            {"artifact": "quantize", "metrics": "evaluate"},
            takes_over="artifact",
            output_bytes=57346,
            taken_bytes=57344,
        ),
    ]


def plan(
    folder: Path,
    *,
    borrows: bool = True,
    tokens: int = 1,
    name: str = "lean",
    keep: str | None = None,
) -> Plan:
    """A plan of ``chain``; ``keep`` as its recipe says it."""
    return plan_of(name, *chain(folder, borrows=borrows, tokens=tokens), keep=keep)


def changed(steps: list[Step], name: str, **more: Any) -> list[Step]:
    """``steps`` with that one changed."""
    return [replace(one, **more) if one.name == name else one for one in steps]
