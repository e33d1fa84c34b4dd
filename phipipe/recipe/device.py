"""Target devices: facts and their sources, one YAML file each. A device never names a backend."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationError, model_validator

from phipipe.errors import TargetError
from phipipe.recipe.complaints import At, complaints
from phipipe.recipe.document import read
from phipipe.recipe.places import Problem
from phipipe.recipe.recipe import SLUG, Precision
from phipipe.recipe.strict import Model
from phipipe.steps import Json
from phipipe.suggestions import near

FOLDER = Path(__file__).parents[1] / "devices"
Api = Literal[
    "cpu", "cuda", "tensorrt-rtx", "directml", "webgpu", "vulkan", "metal", "opencl", "hexagon",
    "intel-gpu", "intel-npu", "ryzen-npu",
]  # fmt: skip
System = Literal["linux", "windows", "macos", "android", "ios", "web"]
Machine = Literal["x86_64", "arm64", "nvidia", "apple"]


class Unit(Model):
    """One thing in a device that runs models, by the interface through which runtimes reach it."""

    api: Api = Field(description="The interface.")
    on: str | None = Field(
        None, min_length=1, description="Which part of the device that is, in words."
    )
    precisions: tuple[Precision, ...] = Field(
        min_length=1, description="Weights that it can compute with."
    )
    constraints: dict[Precision, dict[str, Annotated[list[Json], Field(min_length=1)]]] = Field(
        {},
        description="Quantization options it insists on: option → values it takes, the usual "
        "one first.",
    )
    defaults: dict[Precision, dict[str, str | int | bool]] = Field(
        {},
        description="Quantization options that suit it best: option → what a recipe gets that "
        "leaves the choice.",
    )

    @model_validator(mode="after")
    def _agrees(self) -> Unit:
        if len(set(self.precisions)) != len(self.precisions):
            raise At("precisions", "a precision stands here twice")
        for key, table in (("constraints", self.constraints), ("defaults", self.defaults)):
            if idle := [name for name in table if name not in self.precisions]:
                raise At(
                    key, f"there are {key} for {idle[0]}, which is not among the unit's precisions"
                )
        return self


class Device(Model):
    """A device: its units in order of preference."""

    name: str = Field(description="The file's name without `.yaml`.")
    title: str = Field(min_length=1, description="What people call it.")
    memory_gib: float | None = Field(
        None, gt=0, description="Memory that a model can use; none if it varies."
    )
    architecture: Literal["x86_64", "arm64"] | None = Field(
        None, description="Of its processor; none if it varies."
    )
    systems: tuple[System, ...] = Field(
        ("linux", "windows", "macos"),
        min_length=1,
        description="Operating systems that it comes with.",
    )
    machines: tuple[Machine, ...] = Field(
        (), description="Build machines that are such a device, or have one."
    )
    recipe: str | None = Field(
        None, pattern=SLUG, description="The recipe of phipipe's to start from."
    )
    units: tuple[Unit, ...] = Field(
        min_length=1, description="What runs models, the preferred one first."
    )
    sources: tuple[Annotated[str, Field(pattern="^https://")], ...] = Field(
        min_length=1, description="Public pages of the vendor that say so."
    )
    notes: str | None = Field(None, description="What else a recipe's author should know.")

    @model_validator(mode="after")
    def _one_unit_per_api(self) -> Device:
        apis = [unit.api for unit in self.units]
        if twice := [api for api in apis if apis.count(api) > 1]:
            raise At("units", f"two units with api `{twice[0]}`")
        return self


@cache
def names() -> tuple[str, ...]:
    """Names of the devices that phipipe knows, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


def load(name: str, folder: Path | None = None) -> Device:
    """The device ``name``, or the user's own file if it ends in .yaml (relative to ``folder``).

    Raises:
        TargetError: there is no such device.
        RecipeError: the user's file is missing or malformed; names every problem by line and
            column.
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
    if not isinstance(document.data, dict):
        message = "a device file is a mapping of keys: `title:`, `units:`, `sources:` …"
        raise document.error([Problem(*document.place(()), message)])
    problems = []
    if "name" in document.data:
        message = "unknown key `name`: the file's own name is the device's"
        problems.append(Problem(*document.place(("name",), key=True), message))
    try:
        device = Device.model_validate_json(
            json.dumps({**document.data, "name": path.stem}), strict=True
        )
    except ValidationError as error:
        for where, message, key in complaints(error, Device):
            problems.append(Problem(*document.place(where, key), message))
    if problems:
        raise document.error(problems)
    return device
