"""Whatever happens to any file of the cache: the next run ends with the same digests, and no
command ends as a bug."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from testing import hostile_paths

from phipipe.cli.listeners import Silent
from phipipe.execution import events
from phipipe.execution.bench import Bench
from phipipe.execution.dispatch import attempt
from phipipe.execution.manner import Manner
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.steps import Outside, Step
from phipipe.store import digests, keys
from phipipe.store.store import Store

Spoil = Callable[[Path], object]
STEPS = {"work": f"{__name__}:work"}


def work(inputs: Mapping[str, Path], out: Path, params: Mapping[str, Any]) -> None:
    """A light step: what its inputs hold, and its name."""
    texts = [
        path.read_text("utf-8")
        for name in sorted(inputs)
        for path in sorted(inputs[name].iterdir())
    ]
    (out / "made.txt").write_text("".join(texts) + params["name"], "utf-8")


class Workshop:
    """A plan of three steps, one of which reads a folder of the user's."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.cache, self.source = cache, folder / "source"
        self.source.mkdir()
        for name in ("a.txt", "b.txt"):
            (self.source / name).write_text(name * 100, "utf-8")
            os.utime(self.source / name, (1e9, 1e9))  # old enough to be remembered
        self.outside = Outside(self.source, ("a.txt", "b.txt"))
        first = self.step("first", outside={"files": self.outside})
        steps = (first, self.step("second", "first"), self.step("third", "first", "second"))
        recipe = SimpleNamespace(backend="none", cache=SimpleNamespace(keep=None))
        build: Any = SimpleNamespace(name="tried", recipe=recipe)
        made: Any = Plan(build=build, device=None, api="cpu", on_target="false", steps=steps)  # type: ignore[arg-type]
        self.plan = made

    def step(self, name: str, *needs: str, **rest: Any) -> Step:
        runs = f"{__name__}/work"
        return Step(
            name=name,
            runs=runs,
            version=1,
            needs={n: n for n in needs},
            params={"name": name},
            **rest,
        )

    def run(self) -> dict[str, str]:
        """Digest of every step's result."""
        store = Store(self.cache)
        with events.recorded(self.cache, "run", ["tried"], Silent()) as recorder:
            (outcome,) = attempt([self.plan], store, Settings.read(), recorder, Manner(jobs=1))
            recorder.ended("tried", outcome.error)
        assert outcome.error is None, outcome.error
        return {name: result.stored.digest for name, result in outcome.results.items()}

    def why(self) -> dict[str, str]:
        """What `plan` says of each step."""
        bench = Bench(Store(self.cache), Settings.read(), lambda line: None)
        return {item.step.name: item.why for item in bench.foresee(self.plan)}

    @property
    def memory(self) -> Path:
        (found,) = (self.cache / "outside").glob("*.json")
        return found


@pytest.fixture
def shop(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Workshop:
    monkeypatch.setitem(sys.modules, "test_cache_damage", sys.modules[__name__])
    return Workshop(tmp_path, own_cache)


def flip(path: Path) -> None:
    raw, seed = bytearray(path.read_bytes()), random.Random(path.name)
    raw[seed.randrange(len(raw))] ^= 1 << seed.randrange(8)
    path.write_bytes(raw)


def folder_instead(path: Path) -> None:
    path.unlink()
    (path / "inner").mkdir(parents=True)


def device_instead(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def pipe_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def loop_instead(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


SPOILS: dict[str, Spoil] = {
    "a flipped bit": flip,
    "cut short": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "a folder": folder_instead,
    "no text": lambda path: path.write_bytes(b"\xff\xfe\0\x80" * 20),
    "deep": lambda path: path.write_bytes(b"[" * 100_000),
    "numbers": lambda path: path.write_bytes(b'{"event": 1e999, "files": ' + b"9" * 5000 + b"}"),
    "other types": lambda path: path.write_bytes(
        b'{"event": [], "time": {}, "files": [1], "check": null}'
    ),
}
if sys.platform != "win32":
    SPOILS |= {"a device": device_instead, "a loop": loop_instead, "a pipe": pipe_instead}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("spoil", SPOILS.values(), ids=SPOILS)
def test_damage_to_any_file_of_the_cache_is_healed(shop: Workshop, spoil: Spoil) -> None:
    expected = shop.run()
    files = [
        path.relative_to(shop.cache) for path in sorted(shop.cache.rglob("*")) if path.is_file()
    ]
    tried = 0
    for file in files:
        path = shop.cache / file
        if not path.is_file() or not path.stat().st_size:  # gone with other damage, or a lock
            continue
        path.chmod(0o600)
        spoil(path)
        tried += 1
        for words in (
            ["runs", "ls"],
            ["runs", "show", "latest"],
            ["runs", "logs", "latest"],
            ["cache", "ls"],
        ):
            code, said = hostile_paths.outcome(words)
            assert code in hostile_paths.DOCUMENTED, (file, words, said)
        assert shop.run() == expected, file
    assert tried >= 8
    code, said = hostile_paths.outcome(["cache", "verify"])
    assert code in (0, 9), said
    assert hostile_paths.outcome(["cache", "verify"])[0] == 0


@pytest.mark.parametrize("at", range(3, 700, 17))
def test_no_flipped_bit_in_what_is_remembered_of_files_outside_is_believed(
    shop: Workshop, at: int
) -> None:
    digest = digests.digest(shop.outside, shop.cache)
    raw = bytearray(shop.memory.read_bytes())
    raw[at % len(raw)] ^= 1 << (at % 8)
    shop.memory.write_bytes(raw)
    assert digests.digest(shop.outside, shop.cache) == digest
    assert digests.verify(shop.cache) == []  # it was written anew


def test_a_sum_that_is_right_over_other_types_is_not_believed(shop: Workshop) -> None:
    digest = digests.digest(shop.outside, shop.cache)
    good = json.loads(shop.memory.read_bytes())["files"]
    for key in ("size", "mtime_ns", "hashed_ns", "sha256"):
        for odd in (None, "x", [], {}, 1.5, True, -1, 10**30):
            entry = {**good["a.txt"], key: odd}
            shop.memory.write_bytes(keys.seal_record({"files": {**good, "a.txt": entry}}))
            if key != "hashed_ns" or not isinstance(odd, int):  # any time is a time
                assert digests.digest(shop.outside, shop.cache) == digest, (key, odd)
    shop.memory.write_bytes(keys.seal_record({"files": {"a.txt": good["b.txt"]}}))
    assert digests.digest(shop.outside, shop.cache)


def test_cache_verify_finds_damage_of_both_kinds_and_ends_with_9(shop: Workshop) -> None:
    shop.run()
    assert hostile_paths.outcome(["cache", "verify"]) == (0, "everything intact\n")
    flip(shop.memory)
    (tree, *_) = sorted((shop.cache / "objects").iterdir())
    (tree / "made.txt").chmod(0o600)
    flip(tree / "made.txt")
    code, said = hostile_paths.outcome(["cache", "verify"])
    assert code == 9
    assert "files outside the cache" in said
    assert said.count(tree.name[:12]) == 1
    assert "2 damaged" in said
    assert hostile_paths.outcome(["cache", "verify"])[0] == 0


@pytest.mark.parametrize("verified", [True, False])
@pytest.mark.parametrize("part", ["objects", "actions"])
def test_a_step_that_is_built_again_for_damage_says_so(
    shop: Workshop, part: str, verified: bool
) -> None:
    shop.run()
    for path in (shop.cache / part).iterdir():
        file = path / "made.txt" if path.is_dir() else path
        file.chmod(0o600)
        file.write_bytes(b"something else, and longer or shorter than what was there")
    if verified:
        assert hostile_paths.outcome(["cache", "verify"])[0] == 9
    assert shop.why()["first"] == "its stored result was damaged"
    shop.run()
    assert set(shop.why().values()) == {""}


def test_a_result_that_is_gone_is_no_damage(shop: Workshop) -> None:
    shop.run()
    for path in (shop.cache / "objects").iterdir():
        shutil.rmtree(path)
    assert shop.why()["first"] == "its stored result is gone"


def test_a_step_that_a_run_did_not_have_is_said_with_those_it_had(shop: Workshop) -> None:
    shop.run()
    code, said = hostile_paths.outcome(["runs", "logs", "latest", "frist"])
    assert code == 8
    assert "did you mean `first`?" in said
    assert "steps: first, second, third" in said
    code, said = hostile_paths.outcome(["runs", "logs", "latest", "second"])
    assert (code, said.count("\n")) == (0, 2)


def test_what_an_earlier_version_remembered_is_forgotten_and_no_damage(shop: Workshop) -> None:
    digest = digests.digest(shop.outside, shop.cache)
    entries = json.loads(shop.memory.read_bytes())["files"]
    shop.memory.write_text(json.dumps(entries), "utf-8")
    assert digests.verify(shop.cache) == []
    assert not list((shop.cache / "outside").iterdir())
    assert digests.digest(shop.outside, shop.cache) == digest
