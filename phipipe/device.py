"""Target devices: facts and their sources, one YAML file each. A device never names a backend."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from phipipe.document import near, read
from phipipe.errors import RecipeError, TargetError
from phipipe.recipe import Model, Precision

FOLDER = Path(__file__).parent / "devices"
Api = Literal[
    "cpu", "cuda", "tensorrt-rtx", "directml", "webgpu", "vulkan", "metal", "opencl", "hexagon", "intel-gpu",
    "intel-npu", "ryzen-npu",
]  # fmt: skip


class Unit(Model):
    """One thing in a device that runs models, by the interface through which runtimes reach it."""

    api: Api
    precisions: tuple[Precision, ...] = Field(description="Weights that it can compute with.")
    constraints: dict[Precision, dict[str, list[Any]]] = Field(
        {}, description="Quantization options it insists on: option → values it takes, the usual one first."
    )


class Device(Model):
    """A device: its units in order of preference."""

    name: str
    title: str
    memory_gib: float | None = Field(None, gt=0, description="Memory that a model can use; none if it varies.")
    machines: tuple[Literal["x86_64", "arm64"], ...] = Field((), description="Build machines that are such a device.")
    units: tuple[Unit, ...] = Field(min_length=1)
    sources: tuple[Annotated[str, Field(pattern="^https://")], ...] = Field(min_length=1)
    notes: str | None = None


@cache
def names() -> tuple[str, ...]:
    """Names of the devices that phipipe knows, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load(name: str, folder: Path | None = None) -> Device:
    """The device ``name``, or the user's own file if it ends in .yaml (relative to ``folder``).

    Raises:
        TargetError: there is no such device.
        RecipeError: the user's file is malformed.
    """
    if name.endswith((".yaml", ".yml")):
        return _read((folder or Path()) / name)
    if name not in names():
        guess = near(name, names())
        raise TargetError(f"unknown device `{name}`{guess}", hint=f"devices: {', '.join(names())}")
    return _known(name)


@cache
def _known(name: str) -> Device:
    return _read(FOLDER / f"{name}.yaml")


def _read(path: Path) -> Device:
    document = read(path, "device file")
    data = document.data if isinstance(document.data, dict) else {}
    try:
        return Device.model_validate_json(json.dumps({**data, "name": path.stem}), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        line, column = document.place(tuple(first["loc"]))
        where = ".".join(map(str, first["loc"]))
        raise RecipeError(f"{path}:{line}:{column}: {where}: {first['msg']}") from None
