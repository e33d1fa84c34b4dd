"""What a plan is made of, and which function a step's name stands for.

A step is known by its name, ``room/verb``: it stands in keys, records, requests and manifests, and
never changes. Where the function lies is looked up by the process that runs it, so a module can
move and every stored result stays what it was. Light: toolchains import this.
"""

from __future__ import annotations

import importlib
import importlib.machinery
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

Json = Any
"""A JSON value: None, bool, int, float, str, list or dict of these."""

Dtype = Literal["float32", "float16", "bfloat16"]
Keep = Literal["result", "material", "proof"]
Inputs = Mapping[str, Path]
Params = Mapping[str, Json]
Function = Callable[[Inputs, Path, Params], None]

ADDRESSES: Mapping[str, str] = {
    "algorithms/distil": "phipipe.algorithms.distil:distil",
    "algorithms/learn": "phipipe.algorithms.learn:learn",
    "algorithms/gptq": "phipipe.algorithms.olive_run:gptq",
    "algorithms/rotate": "phipipe.algorithms.olive_run:rotate",
    "algorithms/sensitivity": "phipipe.algorithms.fisher:measure",
    "algorithms/smooth": "phipipe.algorithms.smooth_run:fold",
    "evaluate/ask_build": "phipipe.evaluate.generation:ask_build",
    "evaluate/ask_original": "phipipe.evaluate.generation:ask_original",
    "evaluate/baseline": "phipipe.evaluate.fidelity:baseline",
    "evaluate/baseline_pictures": "phipipe.evaluate.pictures:baseline",
    "evaluate/calibration": "phipipe.evaluate.fidelity:calibration",
    "evaluate/change_by_adapter": "phipipe.evaluate.change:change_by_adapter",
    "evaluate/check_decode": "phipipe.evaluate.gates:check_decode",
    "evaluate/check_gates": "phipipe.evaluate.gates:check_gates",
    "evaluate/check_parity": "phipipe.evaluate.gates:check_parity",
    "evaluate/codec_errors": "phipipe.evaluate.codec_errors:measure",
    "evaluate/compare": "phipipe.evaluate.fidelity:compare",
    "evaluate/compare_pictures": "phipipe.evaluate.pictures:compare",
    "evaluate/compare_run": "phipipe.evaluate.fidelity:compare_run",
    "evaluate/keep_reference": "phipipe.evaluate.reference:keep",
    "evaluate/measure": "phipipe.evaluate.speed:measure",
    "evaluate/round": "phipipe.evaluate.rounding:measure",
    "hub/fetch": "phipipe.hub.repository:fetch",
    "hub/take": "phipipe.hub.taking:take",
    "models/check_tokenizer": "phipipe.models.tokenizer_reading:check",
    "models/cut_layers": "phipipe.models.first_layers:cut",
    "models/unpack_gguf": "phipipe.models.unpack_gguf:unpack",
    "models/widen": "phipipe.models.widen:widen",
    "models/merge_adapter": "phipipe.models.merge:merge",
    "models/mend_tokenizer": "phipipe.models.tokenizer_reading:mend",
    "package/assemble": "phipipe.package.package:package",
    "vision/cut_language": "phipipe.vision.language:cut",
    "vision/draw_pictures": "phipipe.vision.pictures:draw",
    "vision/merge_lora": "phipipe.vision.lora:cut",
}
"""Name → ``module:function`` of the steps that no backend owns. A backend's face has ``STEPS``."""


@dataclass(frozen=True)
class Outside:
    """Files that lie outside the store and enter it, or are read once: a checkpoint, a text, a
    package.

    Only the files' names and contents decide a key, never ``folder``.
    """

    folder: Path
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One node of the plan: a function that reads ``inputs`` and writes into a folder.

    ``runs`` is the name of a function with the signature ``(inputs, out, params) -> None``.
    ``version`` is bumped by hand whenever the function's output changes. ``needs`` maps the
    function's input names to names of earlier steps; a backend may name ``source`` (the
    checkpoint), ``calibration`` (``evaluate/calibration``'s tokens) and its own steps. ``params``
    holds everything else that decides the bytes. ``unquantized`` marks a plain conversion, by the
    dtype that it stores: its output must equal the baseline but for that dtype's rounding, and is
    compared with it before any later step of the backend starts.
    """

    name: str
    runs: str
    version: int
    needs: Mapping[str, str] = field(default_factory=dict)
    # steps that must have succeeded before this one starts; order alone, not in the key
    after: tuple[str, ...] = ()
    params: Params = field(default_factory=dict)
    outside: Mapping[str, Outside] = field(default_factory=dict)  # input name → files
    # takes the one of ``outside`` into the store as it is: output and input have the same digest
    copies: bool = False
    # of a step that ``copies``: its files are read where they lie, and none enters the store
    borrows: bool = False
    # of its output: "result": somebody may want to see it; "material": steps alone read it;
    # "proof": so they do, and once they have, nobody will again
    keep: Keep = "result"
    # name of the input whose files it ships as they are; it takes them over where nobody else
    # reads them
    takes_over: str | None = None
    # of a light step that can go on where it was cut short: it works here, and this is kept
    folder: Path | None = None
    resumes: bool = False  # in its toolchain; what it left in its folder is there again
    toolchain: str | None = None  # None: light enough to run in the parent process
    # the host belongs into the key, and the step gets a process of its own
    measurement: bool = False
    # in a process of its own, not in the key: what that did before would show in the output
    fresh: bool = False
    # of a measurement that is taken over from elsewhere: the host that it counts as taken on
    host: Mapping[str, Json] | None = None
    # "machine KIND", "device NAME": all that whoever does it must be; not in the key
    machine: tuple[str, ...] = ()
    # name of its input, a checkpoint, through whose layers it goes once from the first to the last
    # before it does so again; what is read of them is shared with others that start beside it
    layers: str | None = None
    unquantized: Dtype | None = None
    # evaluated in place of the artifact, which this machine cannot load: same graph, same bits
    twin: bool = False
    # what the artifact computes of a text as its unit would (``backends.emulated``)
    tried: bool = False
    # the bench adds ``params["steps"]``: the records of all steps before it
    provenance: bool = False
    output_bytes: int = 0  # estimate, for `plan` and the disk check
    taken_bytes: int = 0  # of these, what is not written: it is borrowed or taken over
    memory_bytes: int = 0  # estimate of the peak, for `plan`
    # estimate where no earlier result tells, from what was measured for such steps; None: no idea
    seconds: float | None = None
    # whose step it is, or whose it was first where plans share it; not in the key: it tells which
    # earlier results are worth comparing with
    recipe: str = ""
    # estimate of what its output takes when it is opened; 0: as much as in fp32
    loaded_bytes: int = 0


def material(step: Step) -> Step:
    """``step``, whose output nothing but steps reads."""
    return replace(step, keep="material")


def reading(step: Step, old: str, new: str) -> Step:
    """``step`` with the output of step ``new`` wherever it would read that of ``old``."""
    needs = {key: new if need == old else need for key, need in step.needs.items()}
    return replace(step, needs=needs)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Something that a rule finds in a recipe: ``level`` is "error" or "warning", ``hint`` the
    remedy."""

    level: str
    rule: str
    message: str
    hint: str | None = None

    @property
    def sentence(self) -> str:
        """What is wrong and what to do, on one line."""
        return f"{self.message} [{self.rule}]" + (f". What to do: {self.hint}" if self.hint else "")

    @property
    def lines(self) -> list[str]:
        """The same for a terminal or a log."""
        remedy = [f"  try: {self.hint}"] if self.hint else []
        return [f"{self.level}: {self.message} [{self.rule}]", *remedy]

    def as_json(self) -> dict[str, str | None]:
        """The same for machines."""
        return {"rule": self.rule, "level": self.level, "message": self.message, "hint": self.hint}


def resolve(name: str) -> Function:
    """The function of step ``name``, imported. No backend is, where the step belongs to none.

    Raises:
        LookupError: no step has this name.
        ImportError: its module, or what that imports, is not there.
    """
    module, _, function = address(name).partition(":")
    step: Function = getattr(importlib.import_module(module), function)
    return step


def address(name: str) -> str:
    """``module:function`` of step ``name``; imports the backend whose step it is.

    Raises:
        LookupError: no step has this name.
    """
    room, _, verb = name.partition("/")
    known = ADDRESSES.get(name) or own_steps(room).get(verb)
    if known is None:
        raise LookupError(f"no step is called `{name}`")
    return known


def own_steps(room: str) -> Mapping[str, str]:
    """What the face of ``room`` declares: a backend, or else a module on the import path, where
    tests keep theirs (PHIPIPE_WORKER_PATH)."""
    backends = str(Path(__file__).parent / "backends")
    if importlib.machinery.PathFinder.find_spec(room, [backends]):
        room = f"phipipe.backends.{room}"
    elif not all(part.isidentifier() for part in room.split(".")):
        return {}
    try:
        face = importlib.import_module(room)
    except ModuleNotFoundError as error:
        if error.name and room.startswith(error.name):
            return {}
        raise
    steps: Mapping[str, str] = getattr(face, "STEPS", {})
    return steps
