"""The kinds of attacks that ``attack.py`` counts: packages, manifests, checkpoints, recipes, paths,
templates, and killed installations.

The inputs are the tests' own (``tests/testing/hostile_*.py``), and the commands the real ones, in
this process.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from testing import (  # noqa: E402 (the tests' own)
    hostile_checkpoints,
    hostile_packages,
    hostile_paths,
    hostile_templates,
    tiny_toolchain,
)

from phipipe.errors import PhipipeError  # noqa: E402
from phipipe.hub import take  # noqa: E402
from phipipe.package import manifest  # noqa: E402
from phipipe.sandbox import chat_templates  # noqa: E402

Input = TypeVar("Input")
BUG = 70
REFUSED = 8
TEMPLATE_CPU_S = 2.0 + 1.5  # and what starting the child costs
TEMPLATE_MIB = 256 + 96  # and the interpreter with Jinja
RECIPE = (ROOT / "recipes" / "quickstart.yaml").read_text("utf-8")
ODD_VALUES = (
    "",
    "~",
    "-1",
    "0",
    "1e400",
    ".nan",
    "9" * 400,
    "[]",
    "{}",
    "[[[[]]]]",
    "'\\e[31m'",
    '"\\e]0;x\\a"',
    "*x",
    "&x y",
)
ODD_VALUES += (
    "!!python/object:os.system x",
    "no",
    "012",
    "../../x",
    "x" * 5000,
    "{a: {b: {c: 1}}}",
    "\U0001f600",
    "|\n  x",
)


@dataclass
class Tally:
    """Of one kind: how many were tried, and which got through."""

    kind: str
    bad: str  # what it means that one got through
    tried: int = 0
    through: list[str] = field(default_factory=list)
    seconds: float = 0.0
    note: str = ""

    def line(self) -> str:
        note = f"  ({self.note})" if self.note else ""
        return (
            f"{self.kind:38} {self.tried:6}   {self.bad:34} {len(self.through):5}   "
            f"{self.seconds:6.0f} s{note}"
        )


class Attack:
    """The folder that everything happens in, and how many of each kind are tried."""

    def __init__(self, home: Path, most: int, seed: int) -> None:
        self.home, self.most, self.chance = home, most, random.Random(seed)
        self.canary = home / "canary"

    def some(self, inputs: Iterable[Input]) -> list[Input]:
        """All of ``inputs``, or ``most`` of them by chance."""
        every = list(inputs)
        return every if len(every) <= self.most else self.chance.sample(every, self.most)

    def command(self, *words: str) -> int:
        """The exit code of one command line."""
        with _silent():
            return hostile_paths.outcome(words)[0]

    def package(self) -> Path:
        """A real package: the quickstart's."""
        folder = self.home / "packages" / "quickstart"
        if not folder.is_dir():
            code, output = hostile_paths.outcome(
                ["run", str(ROOT / "recipes" / "quickstart.yaml"), "--out", str(folder.parent)]
            )
            if code:
                sys.exit(f"the quickstart cannot be built:\n{output}")
        return folder


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """What processes of ours print (a chat with a package that is none the worse) goes nowhere."""
    kept = [os.dup(number) for number in (1, 2)]
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        for number in (1, 2):
            os.dup2(nothing, number)
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
        for number in (*kept, nothing):
            os.close(number)


def of_package(folder: Path, out: Path) -> dict[str, list[str]]:
    """The commands that open a package."""
    return {
        "verify": ["verify", str(folder)],
        "compare": ["compare", str(folder), "--out", str(out)],
        "chat": ["chat", str(folder), "--prompt", "Once", "--tokens", "2"],
        "eval": ["eval", str(folder), "--tokens", "512"],
        "measure": ["measure", str(folder), "--out", str(out / "measured.json")],
    }


def packages(attack: Attack) -> Tally:
    tally = Tally("packages with hooks × commands", "not refused, or a canary")
    attack.canary.mkdir(exist_ok=True)
    for edit in hostile_packages.edits(attack.canary):
        folder = hostile_packages.laid_out(attack.package(), attack.home / "hooked", edit.backend)
        with contextlib.suppress(FileExistsError):
            edit.apply(folder)
        hostile_packages.sealed(folder)
        for name, words in of_package(folder, attack.home / "out").items():
            tally.tried += 1
            code = attack.command(*words)
            if code != REFUSED or any(attack.canary.iterdir()):
                tally.through.append(f"{edit.backend}: {edit.name}, {name}: exit {code}")
                shutil.rmtree(attack.canary)
                attack.canary.mkdir()
        shutil.rmtree(folder)
    return tally


def manifests(attack: Attack) -> Tally:
    tally = Tally("manifests, resealed", "exit 70")
    folder = shutil.copytree(attack.package(), attack.home / "resealed")
    content = json.loads((folder / manifest.NAME).read_text("utf-8"))
    for number, (name, changed) in enumerate(attack.some(hostile_packages.mutated(content))):
        with contextlib.suppress(UnicodeEncodeError, ValueError):  # what no file can hold
            hostile_packages.resealed(folder, changed)
            commands = of_package(folder, attack.home / "out")
            command = list(commands)[number % len(commands)]
            _count(tally, f"{name}: {command}", attack.command(*commands[command]))
    return tally


def _count(tally: Tally, what: str, code: int) -> None:
    tally.tried += 1
    if code not in hostile_paths.DOCUMENTED:
        tally.through.append(f"{what}: exit {code}")


def checkpoints(attack: Attack) -> Tally:
    tally = Tally("checkpoints", "exit 70")
    backends = ("onnxruntime", "openvino", "llamacpp", "torch", "mlx")
    for number, mutation in enumerate(attack.some(hostile_checkpoints.mutations())):
        folder = attack.home / "checkpoint"
        hostile_checkpoints.base(folder)
        for name, content in mutation.files.items():
            (folder / name).unlink(missing_ok=True)
            if content is not None:
                (folder / name).write_bytes(content)
        recipe = attack.home / "checkpoint.yaml"
        recipe.write_text(
            f"name: tried\nsource: {{path: ./checkpoint}}\ndevice: cpu-x86_64\nbackend: "
            f"{backends[number % 5]}\n"
            "precision: int8\nevaluate: {text: {builtin: stories}, tokens: 512}\n",
            "utf-8",
        )
        _count(tally, mutation.name, attack.command("plan", str(recipe)))
        shutil.rmtree(folder)
    return tally


def recipes(attack: Attack) -> Tally:
    tally = Tally("recipes", "exit 70")
    recipe = attack.home / "mutated.yaml"
    for number in range(attack.most):
        recipe.write_bytes(_mutated(RECIPE, attack.chance))
        _count(
            tally,
            f"mutation {number}",
            attack.command("plan" if number % 4 == 0 else "validate", str(recipe)),
        )
    return tally


def _mutated(text: str, chance: random.Random) -> bytes:
    """``text`` with a few of its lines or bytes spoiled."""
    lines = text.splitlines()
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(lines))
        key, colon, _value = lines[at].partition(":")
        lines[at] = chance.choice(
            (
                f"{key}{colon} {chance.choice(ODD_VALUES)}",
                lines[at] + chance.choice("]}{[:,'\"#&*!|>%@`\t"),
                lines[at][chance.randrange(len(lines[at]) + 1) :],
                f"{lines[at]}\n{lines[at]}",
                " " * chance.randint(1, 5) + lines[at],
                f"{chance.choice(('matrix', 'quantize', 'evaluate', 'source', 'device'))}: "
                f"{chance.choice(ODD_VALUES)}",
                f"matrix:\n  - {{device: {chance.choice(ODD_VALUES[:8])}}}\n  - {{unit: npu}}",
            )
        )
    raw = bytearray("\n".join(lines).encode("utf-8"))
    if chance.random() < 0.3:
        raw[chance.randrange(len(raw))] = chance.randrange(256)
    return bytes(raw)


def paths(attack: Attack) -> Tally:
    tally = Tally("paths and values on the command line", "exit 70")
    folder = attack.home / "odd"
    folder.mkdir()
    shutil.copytree(take.BUILTIN_MODELS["tiny-phi3"], folder / "package")
    before = Path.cwd()
    (folder / "here").mkdir()
    os.chdir(folder / "here")
    try:
        for name, words, environ in hostile_paths.everything(folder):
            _count(tally, name, hostile_paths.outcome(words, environ)[0])
    finally:
        os.chdir(before)
    return tally


def templates(attack: Attack) -> Tally:
    import resource  # not on Windows, where nobody accounts for children that are gone

    tally = Tally("chat templates", "over 2 s or 256 MiB, or exit 70")
    longest = 0.0
    for name, text in attack.some(hostile_templates.variations()):
        tally.tried += 1
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        renderer = chat_templates.Renderer(text)
        try:
            renderer.render([{"role": "user", "content": "Say it."}])
        except PhipipeError as error:
            if error.exit_code == BUG:
                tally.through.append(f"{name}: {error}")
        finally:
            renderer.close()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        longest = max(longest, cpu_s)
        mib = after.ru_maxrss / 2**10  # of any child so far
        if cpu_s > TEMPLATE_CPU_S or (mib > TEMPLATE_MIB and mib * 2**10 > before.ru_maxrss):
            tally.through.append(f"{name}: {cpu_s:.1f} s of CPU, {mib:.0f} MiB")
    tally.note = f"the longest took {longest:.1f} s of CPU, its child's start included"
    return tally


def installations(attack: Attack, kills: int) -> Tally:
    tally = Tally("installations killed (kill -9)", "processes, folders, failures left")
    counts: Mapping[str, Any] = tiny_toolchain.kills(
        attack.home / "tiny", kills, attack.chance.randrange(2**16)
    )
    tally.tried = int(counts["kills"])
    tally.through = [
        f"{count} × {name}" for name, count in counts.items() if name != "kills" and count
    ]
    return tally
