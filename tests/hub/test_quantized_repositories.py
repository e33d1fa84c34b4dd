"""GGUF files and other quantized weights of a hub, and adapters of one: headers for a plan, all of
them for a step."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from testing import adapters as small
from testing import hostile_checkpoints as hostile
from testing import packed_headers, small_gguf, small_package
from testing.hub_server import Fault, Hub
from testing.kitchen import Kitchen
from testing.plans import planned
from testing.shell import Run

from phipipe.errors import SourceError
from phipipe.execution.bench import Bench
from phipipe.execution.results import Waiting
from phipipe.hub import gguf_repository, pin, take
from phipipe.hub import view as hub_view
from phipipe.models import gguf_checkpoints, gguf_files
from phipipe.package import original
from phipipe.package.manifest_schema import Manifest
from phipipe.planning.plan import Plan
from phipipe.settings import Settings
from phipipe.store import digests
from phipipe.store.store import Store

RECIPE = """\
name: from-hub
source: {source}
device: cpu-x86_64
backend: torch
precision: fp16
evaluate: {{text: {{builtin: stories}}, tokens: 256, window: 128}}
"""
FILE, OTHER = "small-Q8_0.gguf", "deep/small-Q4_0.gguf"


@pytest.fixture(autouse=True)
def own_hub_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hf"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with a repository of GGUF files, whose headers take several requests."""
    monkeypatch.setattr(gguf_repository, "FIRST_BYTES", 256)
    files = {FILE: small_gguf.written(), OTHER: small_gguf.written(), "README.md": b"# small"}
    with Hub(files, repo="someone/small-GGUF") as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def source(served: Hub, file: str | None = FILE, repo: str | None = None) -> str:
    named = f", file: {json.dumps(file)}" if file is not None else ""
    return f"{{repo: {repo or served.repo}, revision: {served.commit}{named}}}"


def plan(folder: Path, text: str) -> Plan:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(source=text), "utf-8")
    return planned(path=recipe)


def stored(made: Plan, cache: Path, name: str = "stored") -> Path:
    """What the step ``name``, which needs no other, leaves."""
    bench = Bench(Store(cache), Settings.read(), print)
    found = bench.look(next(step for step in made.steps if step.name == name), {}, {})
    done = bench.make(found, {}, lambda *report: None) if isinstance(found, Waiting) else found
    return done.stored.path


def test_a_plan_reads_the_header_of_a_gguf_alone(served: Hub, tmp_path: Path) -> None:
    made = plan(tmp_path, source(served))
    whole = tmp_path / FILE
    small_gguf.write(whole)
    assert made.checkpoint.config == gguf_checkpoints.read(whole).config
    assert made.checkpoint.quantized == "GGUF, Q4_0"
    assert [step.name for step in made.steps][:2] == ["stored", "source"]
    assert 0 < served.sent(FILE) < len(served.files[FILE]) / 2
    assert served.sent(OTHER) == 0
    asked = len(served.seen)
    assert plan(tmp_path, source(served)).steps[:2] == made.steps[:2]
    assert len(served.seen) == asked


def test_the_step_brings_the_one_file(served: Hub, tmp_path: Path, own_cache: Path) -> None:
    folder = stored(plan(tmp_path, source(served, OTHER)), own_cache)
    assert [path.name for path in folder.iterdir()] == ["small-Q4_0.gguf"]
    assert (folder / "small-Q4_0.gguf").read_bytes() == served.files[OTHER]
    assert served.sent(FILE) == 0


def test_files_of_one_repository_are_models_of_their_own(
    served: Hub, tmp_path: Path, own_cache: Path
) -> None:
    served.files[OTHER] = small_gguf.written({**small_gguf.SETTINGS, "llama.context_length": 256})
    one, two = (plan(tmp_path, source(served, file)) for file in (FILE, OTHER))
    assert (one.checkpoint.context_length, two.checkpoint.context_length) == (512, 256)
    assert stored(one, own_cache) != stored(two, own_cache)


def bands() -> list[float]:
    """Llama 3's factors: slowed down by 8, but for frequencies that turn often in 8192 tokens."""
    found = []
    for pair in range(8):
        turns = 8192 / (2 * math.pi * 10000 ** (pair / 8))
        smooth = min(max((turns - 1) / 3, 0.0), 1.0)
        found.append(1 / ((1 - smooth) / 8 + smooth))
    return found


def test_rotary_factors_behind_the_header_are_read_too(
    served: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = small_gguf.written(tensors={**small_gguf.TENSORS, "rope_freqs.weight": (0, (8,))})
    (tmp_path / "m.gguf").write_bytes(raw)
    at = gguf_files.read(tmp_path / "m.gguf").tensors["rope_freqs.weight"].offset
    served.files[FILE] = raw[:at] + struct.pack("<8f", *bands()) + raw[at + 32 :]
    made = plan(tmp_path, source(served))
    assert made.checkpoint.scaling == "llama3"
    assert served.sent(FILE) < at
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert plan(tmp_path, source(served)).checkpoint == made.checkpoint


@pytest.mark.parametrize("kind", ["no-range", "cut", "status"])
def test_a_header_comes_from_a_server_that_knows_no_ranges_or_fails(
    served: Hub, tmp_path: Path, kind: str
) -> None:
    served.faults[FILE] = [Fault(kind, at=100)] * 2
    assert plan(tmp_path, source(served)).checkpoint.layers == 1


def test_a_damaged_header_in_the_cache_is_brought_again(
    served: Hub, tmp_path: Path, own_cache: Path
) -> None:
    made = plan(tmp_path, source(served))
    (view,) = (path for path in (own_cache / "hub").rglob(FILE) if path.is_file())
    view.write_bytes(b"GGUF" + b"\xff" * 100)
    assert plan(tmp_path, source(served)).checkpoint == made.checkpoint


def test_the_hub_clients_own_cache_spares_the_network(
    served: Hub, tmp_path: Path, own_hub_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = own_hub_home / "hub" / "models--someone--small-GGUF"
    snapshot = home / "snapshots" / served.commit / "deep"
    snapshot.mkdir(parents=True)
    (home / "blobs").mkdir()
    blob = home / "blobs" / served.published(OTHER)["lfs"]["sha256"]
    blob.write_bytes(served.files[OTHER])
    (snapshot / "small-Q4_0.gguf").symlink_to(blob)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert plan(tmp_path, source(served, OTHER)).checkpoint.layers == 1
    assert not served.seen


def test_a_repository_of_ggufs_wants_one_of_them_named(served: Hub, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="GGUF files only") as refused:
        plan(tmp_path, source(served, None))
    assert f"`{FILE}`" in refused.value.message
    assert f"`{OTHER}`" in refused.value.message
    assert f"file: {OTHER}}}`" in str(refused.value.hint)


def test_a_file_that_is_not_there_is_refused_with_those_that_are(
    served: Hub, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=r"has no file `Q2_K\.gguf`") as refused:
        plan(tmp_path, source(served, "Q2_K.gguf"))
    assert FILE in str(refused.value.hint)


def test_what_is_wrong_with_a_file_is_said_of_the_repository(
    served: Hub, tmp_path: Path, own_cache: Path
) -> None:
    served.files[FILE] = b"GGUF" + bytes(400)
    with pytest.raises(SourceError, match=r"someone/small-GGUF@c0ffee000000/small-Q8_0\.gguf` is"):
        plan(tmp_path, source(served))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{path: tiny, file: a.gguf}", "a local one is a `path`"),
        ("{builtin: tiny-phi3, file: a.gguf}", "a local one is a `path`"),
        ("{repo: a/b, revision: COMMIT, file: model.safetensors}", "is no GGUF"),
        ("{repo: a/b, revision: COMMIT, file: ../a.gguf}", "no path inside a repository"),
        ("{repo: a/b, revision: COMMIT, file: 'a\\b.gguf'}", "no path inside a repository"),
        ("{repo: a/b, revision: COMMIT, file: .gguf}", "no path inside a repository"),
        ("{repo: a/b, file: a.gguf}", "`revision` is missing"),
        ("{base: {path: t, file: a.gguf}, adapter: {path: a}}", "a local one is a `path`"),
        ("{base: {path: t}, adapter: {repo: a/b, revision: COMMIT, file: a.gguf}}", "unknown key"),
    ],
)
def test_a_file_that_names_no_gguf_of_a_repository_is_refused_where_it_stands(
    tmp_path: Path, run: Run, text: str, words: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(source=text.replace("COMMIT", '"' + "0" * 40 + '"')), "utf-8")
    code, _, err = run("validate", recipe)
    assert (code, words in err) == (2, True), err
    assert "recipe.yaml:2:" in err


def test_pin_keeps_the_file(served: Hub, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(source=f"{{repo: {served.repo}, file: {FILE}}}"), "utf-8")
    assert [done.commit for done in pin.pin(recipe)] == [served.commit]
    assert planned(path=recipe).checkpoint.layers == 1


def line(path: Path) -> str:
    return next(one for one in path.read_text("utf-8").splitlines() if one.startswith("source:"))


def test_init_takes_a_file_of_a_repository(served: Hub, tmp_path: Path, run: Run) -> None:
    for text in (f"{served.repo}/{OTHER}", f"{served.repo}/{OTHER}@main"):
        (tmp_path / "small-q4-0-fp16.yaml").unlink(missing_ok=True)
        code, _, err = run("init", text, "--precision", "fp16", "--text", "stories")
        assert code == 0, err
        wanted = f"{{repo: {served.repo}, revision: {served.commit}, file: {OTHER}}}"
        assert line(tmp_path / "small-q4-0-fp16.yaml") == f"source: {wanted}"


def test_init_names_the_one_file_or_lists_all(served: Hub, tmp_path: Path, run: Run) -> None:
    code, _, err = run("init", served.repo)
    assert (code, FILE in err, OTHER in err) == (2, True, True), err
    assert f"phipipe init {served.repo}/FILE.gguf" in err
    assert not list(tmp_path.glob("*.yaml"))
    del served.files[OTHER]
    served.branches["main"] = served.commit = "e" * 40
    code, _, err = run("init", served.repo, "--precision", "fp16")
    assert code == 0, err
    assert line(tmp_path / "small-gguf-fp16.yaml").endswith(f"file: {FILE}}}")


def test_a_package_names_the_file_and_finds_it_again(
    served: Hub, tmp_path: Path, own_cache: Path
) -> None:
    made = plan(tmp_path, source(served))
    steps = {step.name: step for step in made.steps}
    told = dict(steps["package"].params["source"])
    assert (told["file"], told["license"]) == (FILE, "mit")
    one = {"key": "0" * 64, "digest": "0" * 64, "tools": {}}
    described = small_package.described(
        source={**told, "digest": "0" * 64},
        steps={"text": one, "source": one, "stored": one | {"params": steps["stored"].params}},
    )
    manifest = Manifest.model_validate(described | {"files": [], "digest": "0" * 64})
    shutil.rmtree(own_cache)
    found = original.find(manifest, Store(own_cache), None)
    assert [step.name for step in found.before] == ["stored"]
    assert found.before[0].params == steps["stored"].params
    served.files[FILE] += bytes(32)
    shutil.rmtree(own_cache)
    with pytest.raises(SourceError, match="published with other files"):
        original.find(manifest, Store(own_cache), None)


def test_the_gguf_of_a_package_may_be_given(tmp_path: Path, own_cache: Path, run: Run) -> None:
    path = small_gguf.write(tmp_path / "small.gguf")
    store = Store(own_cache)
    told = small_package.described()["source"] | {"kind": "path", "name": path.name}
    told["digest"] = digests.digest(take.outside(path), store.root)
    whole = small_package.described(source=told) | {"files": [], "digest": "0" * 64}
    found = original.find(Manifest.model_validate(whole), store, path)
    assert found.step.runs == "models/unpack_gguf"
    other = small_package.written(tmp_path / "other")
    code, _, err = run("eval", other, "--source", path)
    assert code == 8
    assert "small.gguf` is not the checkpoint that this package was made from" in err


def test_the_card_names_the_file(tmp_path: Path) -> None:
    kitchen = Kitchen(tmp_path / "kitchen")
    named = {"repo": "someone/small-GGUF", "revision": "c0ffee" + "0" * 34, "file": FILE}
    kitchen.params["source"] |= {"kind": "hub", **named}
    kitchen.params["recipe"]["source"] = named
    card = (kitchen.cook() / "README.md").read_text("utf-8")
    assert f"the GGUF `{FILE}` of `someone/small-GGUF` at commit" in card


def test_gptq_of_a_repository_is_planned_by_headers_and_widened(
    served: Hub, tmp_path: Path, own_cache: Path
) -> None:
    folder = tmp_path / "gptq"
    hostile.base(folder)
    packed_headers.pieces(folder)
    packed_headers.edit(folder, quantization_config=packed_headers.GPTQ)
    served.others["someone/gptq"] = {path.name: path.read_bytes() for path in folder.iterdir()}
    made = plan(tmp_path, source(served, None, "someone/gptq"))
    steps = {step.name: step for step in made.steps}
    assert (steps["stored"].runs, steps["source"].runs) == ("hub/fetch", "models/widen")
    assert steps["package"].params["source"]["widened_from"] == "GPTQ, 4 bits"
    assert "W40" in {warning.rule for warning in made.warnings}
    assert served.sent("model.safetensors") <= hub_view.HEAD_BYTES
    kept = stored(made, own_cache)
    assert {path.name for path in kept.iterdir()} == {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("base", ["safetensors", "gguf"])
def test_an_adapter_and_its_base_come_from_one_hub(
    served: Hub, tmp_path: Path, own_cache: Path, base: str
) -> None:
    hostile.base(tmp_path / "tiny")
    shapes = small.shapes()
    if base == "gguf":
        at = f"{small.PREFIX}model.layers.0.self_attn.o_proj"
        shapes = {f"{at}.lora_A.weight": [4, 32], f"{at}.lora_B.weight": [32, 4]}
    told = small.settings(*(["self_attn.o_proj"] if base == "gguf" else []))
    small.write(tmp_path / "mine", told, shapes)
    for name in ("tiny", "mine"):
        files = {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        served.others[f"someone/{name}"] = files
    below = source(served) if base == "gguf" else source(served, None, "someone/tiny")
    mine = source(served, None, "someone/mine")
    made = plan(tmp_path, f"{{base: {below}, adapter: {mine}}}")
    steps = {step.name: step for step in made.steps}
    assert steps["source"].needs == {"base": "base", "adapter": "adapter"}
    named = steps["package"].params["source"]
    assert named["adapter"]["repo"] == "someone/mine"
    assert named["base"].get("file") == (FILE if base == "gguf" else None)
    assert served.sent(small.WEIGHTS) <= hub_view.HEAD_BYTES
    kept = stored(made, own_cache, "adapter")
    assert sorted(path.name for path in kept.iterdir()) == ["adapter_config.json", small.WEIGHTS]
