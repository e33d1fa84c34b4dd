"""The gate for packages: nothing that a stranger made runs, writes or reads what it must not, and
nothing is a bug."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing import hostile_packages, small_package

from phipipe import backends, cli
from phipipe.errors import PhipipeError, SourceError, StepFailed
from phipipe.execution import finished
from phipipe.files import file_names
from phipipe.hub import take
from phipipe.models import checkpoints
from phipipe.package import gate, manifest_schema, package
from phipipe.store.store import Store

OPENING = (["chat", "--prompt", "hi"], ["eval"], ["measure"], ["compare"], ["verify"])
Command = Callable[..., int]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small package of every backend's layout; tests copy them."""
    folder = tmp_path_factory.mktemp("bases")
    first = small_package.written(folder / "small")
    return {
        name: hostile_packages.laid_out(first, folder / name, name)
        for name in hostile_packages.BACKENDS
    }


@pytest.fixture
def small(bases: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(bases["onnxruntime"], tmp_path / "package")


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """``phipipe WORDS`` in this process: its exit code; what it printed is in ``command.text``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["phipipe", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        run.text = "".join(capsys.readouterr())  # type: ignore[attr-defined]
        return int(ended.value.code or 0)

    return run


def test_every_layout_that_backends_make_passes(bases: dict[str, Path]) -> None:
    assert sorted(bases) == sorted(backends.names())
    assert {name: package.verify(folder) for name, folder in bases.items()} == {
        name: [] for name in bases
    }


@pytest.mark.full
def test_no_hook_passes_in_any_layout(bases: dict[str, Path], tmp_path: Path) -> None:
    """Of each edit, the manifest fits again; whatever it asks for is named, and nothing has come of
    it."""
    canary, tried = tmp_path / "canary", 0
    for edit in hostile_packages.edits(canary):
        folder = shutil.copytree(bases[edit.backend], tmp_path / "copy")
        edit.apply(folder)
        hostile_packages.sealed(folder)
        before = time.monotonic()
        assert package.verify(folder), edit.name
        with pytest.raises(SourceError):
            package.open_(folder)
        assert time.monotonic() - before < 10, edit.name
        shutil.rmtree(folder)
        tried += 1
    assert tried >= 170
    assert not [path for path in canary.rglob("*") if path.is_file()]


@pytest.mark.parametrize("words", OPENING, ids=lambda words: words[0])
@pytest.mark.parametrize(
    "name", ["genai model/decoder/session_options/custom_ops_library", "file evil.py in mlx"]
)
def test_every_command_refuses_in_one_sentence(
    bases: dict[str, Path], tmp_path: Path, command: Command, words: list[str], name: str
) -> None:
    edit = next(edit for edit in hostile_packages.edits(tmp_path / "canary") if edit.name == name)
    folder = shutil.copytree(bases[edit.backend], tmp_path / "package")
    edit.apply(folder)
    hostile_packages.sealed(folder)
    assert command(words[0], str(folder), *words[1:]) == 8
    assert ("asks to load a library" in command.text) or ("evil.py" in command.text)  # type: ignore[attr-defined]


def test_verify_names_every_hook_with_its_key(small: Path, command: Command) -> None:
    for name in ("custom_ops_library", "enable_profiling"):
        edit = next(
            edit
            for edit in hostile_packages.edits(small.parent / "canary")
            if edit.name.endswith(name)
        )
        edit.apply(small)
    hostile_packages.sealed(small)
    assert command("verify", str(small)) == 8
    text = command.text  # type: ignore[attr-defined]
    assert "asks to load a library (`model.decoder.session_options.custom_ops_library`)" in text
    assert "asks to write a file (`model.decoder.session_options.enable_profiling`)" in text


def test_chat_hashes_before_it_opens(small: Path, command: Command) -> None:
    (small / "model.onnx.data").write_bytes(b"\1" * 64)
    assert command("chat", str(small), "--prompt", "hi") == 8
    assert "not as it was packaged" in command.text  # type: ignore[attr-defined]


def test_auto_map_is_harmless_where_no_model_is_built_by_it(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """Sources have it, and OpenVINO's packages carry their config as it is."""
    folder = shutil.copytree(bases["openvino"], tmp_path / "package")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "auto_map": {"AutoConfig": "configuration_phi3.C"}})
    )
    assert package.verify(hostile_packages.sealed(folder)) == []


def test_a_package_that_no_command_would_open_is_not_made(tmp_path: Path) -> None:
    from testing.kitchen import Kitchen

    kitchen = Kitchen(tmp_path / "kitchen")
    (kitchen.artifact / "helper.py").write_text("print()")
    with pytest.raises(StepFailed, match=r"helper\.py"):
        kitchen.cook()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_bytes_whatever_make_the_gate_fail_otherwise(
    bases: dict[str, Path], data: st.DataObject
) -> None:
    """Files of each kind, spoiled anywhere: the gate finds something or nothing, and never fails or
    hangs."""
    backend, name = data.draw(st.sampled_from(SPOILED))
    path = bases[backend] / name
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    new = data.draw(
        st.one_of(
            st.binary(max_size=12), st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\xff\xff\xff\x7f"])
        )
    )
    path.write_bytes(
        spoiled := whole[:at] + new + whole[at + data.draw(st.sampled_from([0, len(new), 40])) :]
    )
    made = package.read_manifest(bases[backend])
    files = [
        entry.model_copy(update={"size": len(spoiled)}) if entry.path == name else entry
        for entry in made.files
    ]
    made = made.model_copy(update={"files": files})
    before = time.process_time()
    try:
        list(gate.findings(bases[backend], made))
    finally:
        path.write_bytes(whole)
    assert time.process_time() - before < 1


SPOILED = (
    ("onnxruntime", "model.onnx"),
    ("onnxruntime", "genai_config.json"),
    ("llamacpp", "model.gguf"),
    ("llamacpp", "Modelfile"),
    ("litert", "model.tflite"),
    ("openvino", "openvino_model.xml"),
    ("torch", "config.json"),
    ("mlx", "model.safetensors"),
)


# -- manifests


def test_no_manifest_whatever_is_a_bug(small: Path, command: Command, own_cache: Path) -> None:
    """Every value of a manifest is replaced; what is refused is refused by all commands alike, at
    once."""
    made = json.loads((small / "manifest.json").read_text())
    store = Store(own_cache)
    refused = 0
    for number, (what, changed) in enumerate(hostile_packages.mutated(made)):
        if number % STRIDE:
            continue
        hostile_packages.resealed(small, changed)
        before = time.monotonic()
        code = command("verify", str(small))
        if code == 8:
            refused += 1
            words = OPENING[number % 4]
            ended = command(words[0], str(small), *words[1:])
            assert ended == 8, what
            assert "bug" not in command.text, what  # type: ignore[attr-defined]
            assert not set(command.text) & set("\x1b\x07\0"), what  # type: ignore[attr-defined]
            assert time.monotonic() - before < 5, what
        else:
            assert code == 0, what
            assert _ending(
                lambda: finished.plan_evaluation(
                    small, store, print, text=None, tokens=None, source=None
                )
            ) in {0, 2, 3, 8}, what
            assert _ending(lambda: finished.plan_measurement(small, print)) in {0, 2, 3, 8}, what
    assert refused > 80


STRIDE = 13  # of some two thousand


def _ending(what: Callable[[], object]) -> int:
    """The code that a command would end with."""
    try:
        what()
    except PhipipeError as error:
        return error.exit_code
    return 0


@pytest.mark.parametrize(
    "change",
    [
        *(
            lambda made, name=name: made.pop(name)
            for name in ("backend", "recipe", "source", "fidelity", "steps")
        ),
        lambda made: made.update(source="x"),
        lambda made: made["fidelity"].update(metrics="x"),
        lambda made: made["fidelity"]["metrics"].update(kld_mean=None),
        lambda made: made["source"].update(kind="builtin", name="../../x"),
        lambda made: made["source"].update(kind="builtin", name="no-such-model"),
        lambda made: (made.update(backend="nosuch"), made["recipe"].update(backend="nosuch")),
        lambda made: made["files"].append(
            {"path": "a/" * 100_000 + "a", "size": 0, "sha256": "0" * 64}
        ),
        lambda made: made.update(hostile_packages.sized(made, 10_001)),
        lambda made: made["files"].append(
            {"path": "genai_config.json/x", "size": 0, "sha256": "0" * 64}
        ),
    ],
)
def test_nonsense_that_is_sealed_is_one_sentence_within_two_seconds(
    small: Path, command: Command, change: Callable[[dict[str, Any]], object]
) -> None:
    made = json.loads((small / "manifest.json").read_text())
    change(made)
    hostile_packages.resealed(small, made)
    before = time.process_time()
    assert command("eval", str(small)) == 8
    assert time.process_time() - before < 2
    assert command.text.count("\n") <= 2  # type: ignore[attr-defined]


def test_a_manifest_of_400_000_files_is_not_even_parsed(small: Path, command: Command) -> None:
    text = (small / "manifest.json").read_text()
    entry = '{"path": "file-%06d", "size": 0, "sha256": "' + "0" * 64 + '"},\n'
    more = "".join(entry % number for number in range(400_000))
    (small / "manifest.json").write_text(text.replace('"files": [', f'"files": [{more}', 1))
    before = time.process_time()
    for words in OPENING:
        assert command(words[0], str(small), *words[1:]) == 8
    assert time.process_time() - before < 2


def test_a_manifest_of_the_first_phipipe_is_read(small: Path) -> None:
    """What came into the format later is not asked for."""
    made = json.loads((small / "manifest.json").read_text())
    for name in ("twin", "emulation", "gates", "warnings", "licence", "fixups"):
        del made[name]
    del made["fidelity"]["profile"], made["fidelity"]["parity"]
    made["fidelity"]["baseline"].pop("skip", None)
    hostile_packages.resealed(small, made)
    assert package.verify(small) == []
    assert package.open_(small).fidelity.baseline.skip == 0


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_what_a_model_said_of_pictures_may_hold_any_character(said: str) -> None:
    made = {**small_package.described(), "files": [], "digest": small_package.DIGEST}
    made["fidelity"]["vision"] = {
        "metrics": {},
        "answers": [{"name": "text", "text": said, "original": said}],
    }
    manifest_schema.parse(made)
    made["scheme"] = "\x1b]0;x\x07"
    with pytest.raises(manifest_schema.Malformed, match="scheme"):
        manifest_schema.parse(made)


def test_thousands_of_added_files_are_one_finding(small: Path) -> None:
    for number in range(1100):
        (small / f"more-{number}").touch()
    (finding,) = package.verify(small)
    assert "files were added" in finding.message


# -- names


@pytest.mark.parametrize(
    "name",
    [
        *(
            "con",
            "CON",
            "nul.txt",
            "com1",
            "lpt9.gguf",
            "COM\u00b9",
            "aux.tar.gz",
            "con ",
            "a..",
            "a.",
            " a",
            "a ",
        ),
        *(
            "a:b",
            "a\\b",
            "a\nb",
            "\u202ea",
            "*",
            "",
            ".",
            "..",
            "x" * 300,
            "\U0001f98a" * 70,
            "conin$",
            "nul .txt",
        ),
    ],
)
def test_what_windows_makes_no_file_of_is_no_name(name: str) -> None:
    assert file_names.unfit(name)
    assert file_names.unsafe(f"a/{name}")


@pytest.mark.parametrize(
    "name", ["config.json", "console", "com10", "a b", "\u00e9t\u00e9.txt", ".x", "nulx", "x" * 255]
)
def test_what_every_system_can_hold_is_a_name(name: str) -> None:
    assert file_names.unfit(name) is None


def test_two_spellings_of_a_letter_are_one_name() -> None:
    assert file_names.alike("\u00c9t\u00e9") == file_names.alike("e\u0301te\u0301")


# -- sources


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_attn_implementation", "kernels-community/x"),
        ("attn_implementation", {"": "someone/kernel@main:fn"}),
        ("_experts_implementation", "someone/kernel"),
        ("tokenizer_class", "evil.module.Tokenizer"),
        ("tokenizer_file", "/home/someone/tokenizer.json"),
        ("quantizer_class", "x"),
    ],
)
def test_a_source_with_a_hook_is_refused_by_its_key(
    tmp_path: Path, key: str, value: object
) -> None:
    name = "tokenizer_config.json" if key.startswith("tokenizer") else "config.json"
    folder = shutil.copytree(take.BUILTIN_MODELS["tiny-phi3"], tmp_path / "source")
    settings = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**settings, key: value}))
    with pytest.raises(SourceError, match=key):
        checkpoints.read(folder)


@pytest.mark.parametrize("value", ["eager", "sdpa", "flash_attention_2", "paged|sdpa", None])
def test_attention_of_transformers_own_is_no_hook(tmp_path: Path, value: str | None) -> None:
    folder = shutil.copytree(take.BUILTIN_MODELS["tiny-phi3"], tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "_attn_implementation": value, "auto_map": {"A": "b.C"}})
    )
    assert checkpoints.read(folder).layers == 5
