"""What `init` writes validates and plans: for every device, whatever the recipe is called and
wherever it lies."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from testing import hub_server, small_gguf
from testing.places import RECIPES
from testing.shell import Run

from phipipe import backends
from phipipe.backends import tokenizer_rules
from phipipe.errors import PhipipeError, RecipeError, SourceError, TargetError
from phipipe.files import shipped
from phipipe.hub import failures, take
from phipipe.models import checkpoints, family
from phipipe.models.checkpoint import Checkpoint
from phipipe.output.recipes import Started
from phipipe.planning import (
    plans,
    preparation,
    starter,
    starter_choice,
    starter_text,
    starter_words,
    targets,
)
from phipipe.planning.plan import Plan
from phipipe.planning.starter_choice import Choice
from phipipe.recipe import device
from phipipe.recipe.recipe import PRECISIONS

TINY = take.BUILTIN_MODELS["tiny-phi3"]


def write(path: Path, **given: str | None) -> tuple[Started, tuple[str, ...]]:
    usual = {
        "device": "cpu-x86_64",
        "precision": None,
        "backend": None,
        "source": "builtin:tiny-phi3",
    }
    return starter.write(path, **(usual | given))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", device.names())
def test_a_starter_plans_for_the_devices_first_unit_with_the_options_of_its_own_recipe(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "r.yaml"
    made, _ = write(path, device=name)
    targets.checked(path)
    (planned,) = plans.planned(path)
    target = device.load(name)
    assert planned.api == target.units[0].api == made.unit
    own = yaml.safe_load((RECIPES / f"{target.recipe}.yaml").read_text("utf-8"))
    told = yaml.safe_load(path.read_text("utf-8"))
    kept = [told.get(key) for key in ("precision", "quantize", "backend")]
    assert kept == [own.get("precision"), own.get("quantize"), own.get("backend", "onnxruntime")]
    assert "M14" not in [
        advice.rule for advice in planned.warnings
    ]  # no more context than the model has


@pytest.mark.parametrize("name", device.names())
def test_a_starter_of_a_folder_plans_where_no_shipped_recipe_is_at_hand(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "none" / "phipipe")
    write(tmp_path / "r.yaml", device=name, source=str(TINY))
    (planned,) = plans.planned(tmp_path / "r.yaml")
    assert planned.api == device.load(name).units[0].api


def test_every_backend_and_precision_that_a_device_has_makes_a_starter_and_no_other(
    tmp_path: Path,
) -> None:
    assert len({backends.load(name).rank for name in backends.names()}) == len(backends.names())
    target = device.load("core-ultra-2")
    for backend in backends.names():
        for precision in PRECISIONS:
            path = tmp_path / f"{backend}-{precision}.yaml"
            works = any(precision in backends.able(backend, target, unit) for unit in target.units)
            if works:
                write(path, device="core-ultra-2", backend=backend, precision=precision)
                targets.checked(path)
                continue
            with pytest.raises(TargetError) as caught:
                write(path, device="core-ultra-2", backend=backend, precision=precision)
            assert "what works" in str(caught.value.hint)
            assert not path.exists()


@pytest.mark.parametrize(
    "name",
    [
        "a.yaml",
        "My Recipe.yaml",
        "-x-.yaml",
        "Größe.yaml",
        f"{'n' * 100}-.yaml",
        "012.yaml",
        "CON.yaml",
        'it\'s "$x".yaml',
    ],
)
@pytest.mark.parametrize("folder", [".", "new/er", "a b"])
def test_the_printed_command_works_when_copied(
    run: Run,
    name: str,
    folder: str,
    tmp_path: Path,
) -> None:
    if os.name == "nt" and '"' in name:
        pytest.skip("no such name on Windows")
    (tmp_path / "model").mkdir()
    for file in TINY.iterdir():
        shutil.copy(file, tmp_path / "model")
    code, out, err = run("init", "--source", "model", "--", Path(folder) / name)
    assert code == 0, err
    commands = [
        line.removeprefix("next: ") for line in out.splitlines() if line.startswith("next: ")
    ]
    text = (tmp_path / folder / name).read_text("utf-8")
    commands += [line[4:] for line in text.splitlines() if line.startswith("#   phipipe plan")]
    assert len(commands) == 2
    for command in commands:
        code, _, err = run(*shlex.split(command)[1:])
        assert code == 0, err


@pytest.mark.parametrize(
    ("recipe", "source", "said"),
    [
        ("r.yaml", "model", "model"),
        ("r.yaml", "./model/", "model"),
        ("sub/r.yaml", "model", "../model"),
        ("sub/r.yaml", "sub/model", "model"),
        ("sub/r.yaml", "..", "../.."),
        ("sub/r.yaml", ".", ".."),
        ("model/r.yaml", "model", "."),
        ("r.yaml", "~/model", "~/model"),
        ("r.yaml", "some folder", "some folder"),
        ("r.yaml", "C:\\new: #1", "C:\\new: #1"),
        ("r.yaml", "./no", "no"),
        ("r.yaml", "/somewhere/else", "/somewhere/else"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="spelt as POSIX does")
def test_a_folder_counts_from_the_working_folder_and_is_written_as_seen_from_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, source: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "sub" / "model").mkdir(parents=True)
    _, notes = write(Path(recipe), source=source)
    told = yaml.safe_load(Path(recipe).read_text("utf-8"))["source"]
    assert told == {"path": said}
    there = (tmp_path / Path(recipe).parent / Path(said).expanduser()).is_dir()
    # a folder without a model is said in other words than one that is not there yet
    assert ["no weights" in note for note in notes] == [there]


def test_a_folder_that_looks_like_somebodys_home_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY, tmp_path / "~model")
    write(Path("r.yaml"), source="./~model")
    plans.planned(Path("r.yaml"))


def test_a_folder_seen_through_a_link_is_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "far" / "off").mkdir(parents=True)
    try:
        (tmp_path / "near").symlink_to(tmp_path / "far" / "off", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(TINY, tmp_path / "model")
    write(Path("near/r.yaml"), source="model")
    plans.planned(Path("near/r.yaml"))


def test_a_device_file_is_written_as_seen_from_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = (
        "title: Mine\nunits: [{api: ryzen-npu, precisions: [int4]}, {api: cpu, precisions: "
        "[fp32]}]\n"
    )
    (tmp_path / "mine.yaml").write_text(f"{text}sources: [https://example.org/]\n", "utf-8")
    made, _ = write(Path("sub/r.yaml"), device="mine.yaml")
    assert (made.unit, made.precision, made.device) == ("cpu", "fp32", "../mine.yaml")
    plans.planned(Path("sub/r.yaml"))
    with pytest.raises(RecipeError, match="no device file"):
        write(Path("sub/s.yaml"), device="other.yaml")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"source": "builtin:tiny"}, "did you mean `tiny-phi3`?"),
        ({"source": ""}, "source.path: must not be empty"),
        ({"device": "intel-npuu"}, "did you mean `intel-npu`?"),
        ({"device": "mine.yaml\nprecision: x"}, "characters that no recipe can hold"),
        ({"source": "a\x1b]0;x"}, "characters that no recipe can hold"),
        ({"source": "a\udcff"}, "characters that no recipe can hold"),
        ({"source": "someone/tiny@"}, "names no revision"),
        ({"backend": "nope"}, "unknown backend `nope`"),
        ({"backend": "mlx"}, "`mlx` does not build anything for CPU (x86-64)"),
        ({"device": "intel-npu", "precision": "fp16"}, "no backend builds fp16 for Intel NPU"),
    ],
)
def test_a_starter_that_would_not_load_is_refused_and_nothing_is_left(
    tmp_path: Path, given: dict[str, str], words: str
) -> None:
    with pytest.raises(PhipipeError) as caught:
        write(tmp_path / "new" / "r.yaml", **given)
    assert words in caught.value.message
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("mine")
    (tmp_path / "folder").mkdir()
    for name in ("r.yaml", "folder"):
        with pytest.raises(RecipeError, match="is there already"):
            write(tmp_path / name)
    for name in ("r.yaml/x.yaml", f"{'n' * 300}.yaml"):
        with pytest.raises(RecipeError, match="cannot write"):
            write(tmp_path / name)
    assert (tmp_path / "r.yaml").read_text() == "mine"


def test_a_hub_source_is_pinned_to_the_commit_that_the_hub_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server.of_folder(TINY, repo="someone/tiny") as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        served.branches["dev"] = served.commit
        for i, said in enumerate(("someone/tiny", "someone/tiny@main", "someone/tiny@dev")):
            made, notes = write(tmp_path / f"{i}.yaml", source=said)
            told = yaml.safe_load((tmp_path / f"{i}.yaml").read_text("utf-8"))["source"]
            assert told == {"repo": "someone/tiny", "revision": served.commit}
            assert (made.pinned, notes) == (True, ())
        (planned,) = plans.planned(
            tmp_path / "0.yaml",
            ["evaluate.text={builtin: stories}", "calibrate.text={builtin: stories}"],
        )
        assert planned.build.recipe.source.revision == served.commit
        for wrong in ("someone/else", "someone/tiny@nope"):
            with pytest.raises(SourceError, match=r"there is no|has no revision"):
                write(tmp_path / "wrong.yaml", source=wrong)
        assert not (tmp_path / "wrong.yaml").exists()


@pytest.mark.parametrize("why", ["offline", "unreachable", "broken"])
def test_a_hub_that_cannot_be_asked_leaves_the_pinning_to_the_next_command(
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    why: str,
) -> None:
    monkeypatch.setattr(failures, "PACE", failures.Pace(attempts=2, first_s=0.01))
    with hub_server.of_folder(TINY, repo="someone/tiny") as served:
        monkeypatch.setenv(
            "HF_ENDPOINT", "http://127.0.0.1:9" if why == "unreachable" else served.url
        )
        monkeypatch.setenv("HF_HUB_OFFLINE", "1" if why == "offline" else "")
        served.answers = [(503, {}, b"")] * 9 if why == "broken" else []
        code, out, err = run("init", "r.yaml", "--source", "someone/tiny", "--json")
        assert code == 0, err
        told = json.loads(out)
        assert (told["pinned"], told["next"]) == (
            False,
            ["phipipe pin r.yaml", "phipipe plan r.yaml", "phipipe run r.yaml"],
        )
        assert "not pinned yet" in err
        assert "# not pinned yet: phipipe pin r.yaml" in (tmp_path / "r.yaml").read_text("utf-8")
        for command in ("plan", "validate", "run"):
            code, _, err = run(command, "r.yaml")
            assert code == 2
            assert "try: phipipe pin r.yaml" in err
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "")
        served.answers = []
        assert run("pin", "r.yaml")[0] == 0
        assert run("validate", "r.yaml")[0] == 0


def test_a_commit_is_taken_as_it_is_without_asking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert write(tmp_path / "r.yaml", source="a/b@" + "0" * 40)[0].pinned


def test_planning_a_starter_needs_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from phipipe.planning import starter\n"
    code += (
        f"starter.write(Path({str(tmp_path / 'r.yaml')!r}), device='cpu-x86_64', "
        f"precision=None, backend=None, "
    )
    code += (
        "source='builtin:tiny-phi3')\nprint({'torch', 'numpy', 'huggingface_hub'} & "
        "set(sys.modules))"
    )
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert said.strip() == "set()"


def test_a_starter_of_the_embedded_model_is_what_prepare_takes(tmp_path: Path) -> None:
    write(tmp_path / "r.yaml")
    (build,) = targets.checked(tmp_path / "r.yaml")
    assert preparation.prepare(build).build.name == "r"


def test_a_source_that_is_a_file_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "model.bin").touch()
    _, (note,) = write(tmp_path / "a.yaml", source=str(tmp_path / "model.bin"))
    assert note.endswith("model.bin` is a file, and a folder is meant")
    (tmp_path / "model.gguf").touch()
    _, (note,) = write(tmp_path / "c.yaml", source=str(tmp_path / "model.gguf"))
    assert "is no GGUF file (0 bytes)" in note
    _, (note,) = write(tmp_path / "b.yaml", source=str(tmp_path / "nope"))
    assert "there is no folder" in note


# --- the model is known


def started(tmp_path: Path, name: str, repo: str, **given: str) -> tuple[str, Plan | None]:
    """The text of a starter for ``repo`` on the device ``name``, and its plan, if there is one."""
    path = tmp_path / "r.yaml"
    path.unlink(missing_ok=True)
    write(path, device=name, source=f"{repo}@{'0' * 40}", **given)
    (build,) = targets.checked(path)
    with contextlib.suppress(TargetError):
        return path.read_text("utf-8"), preparation.outlined(build, shape(repo))
    return path.read_text("utf-8"), None


def shape(repo: str) -> Checkpoint:
    (member,) = (one for one in family.MEMBERS if repo in one.repos)
    return checkpoints.of_config(member.config, member.tokenizer)


def degenerates(plan: Plan) -> bool:
    return any(str(advice.rule).startswith("D") for advice in plan.warnings)


@pytest.mark.parametrize("name", device.names())
def test_a_starter_degenerates_or_is_impossible_only_where_all_else_is_so_too(
    name: str, tmp_path: Path
) -> None:
    for member in family.MEMBERS:
        text, made = started(tmp_path, name, member.repos[0])
        if made and not degenerates(made):
            continue
        told = yaml.safe_load(text)
        target = device.load(name)
        units = [unit for unit in target.units if made is None or unit.api == made.api]
        for unit, backend, options in itertools.product(units, backends.names(), ({}, "apart")):
            face = backends.load(backend)
            for precision in backends.able(backend, target, unit):
                tried = {**told, "unit": unit.api, "backend": backend, "precision": precision}
                tried["quantize"] = dict(face.apart) if options else {}
                tried.pop("weights", None)  # those of one recipe alone
                (tmp_path / "t.yaml").write_text(json.dumps(tried), "utf-8")
                with contextlib.suppress(PhipipeError):
                    (build,) = targets.checked(tmp_path / "t.yaml")
                    other = preparation.outlined(build, shape(member.repos[0]))
                    assert made is not None, (member.name, tried)
                    assert degenerates(other), (member.name, tried)


@pytest.mark.parametrize(
    ("name", "repo", "options", "said"),
    [
        (
            "raspberry-pi-5",
            "microsoft/Phi-4-mini-instruct",
            {"type": "Q4_K_M", "imatrix": True},
            "# Options of the shipped recipe phi4mini-pi5-int4.",
        ),
        (
            "raspberry-pi-5",
            "microsoft/Phi-3.5-mini-instruct",
            {"map": {"lm_head": {"bits": 4}, "embed_tokens": {"bits": 4}}},
            "# Options of the shipped recipe phi35-pi5-int4.",
        ),
        (
            "android-phone",
            "microsoft/Phi-4-mini-reasoning",
            {"type": "Q4_K_M", "imatrix": True},
            "# Instead of int4 with llamacpp, learned weights: Phi-4-mini degenerates",
        ),
        (
            "rtx-12gb",
            "microsoft/Phi-4-mini-instruct",
            {"block_size": 32, "mixed": "layers"},
            "# Options of the shipped recipe phi4mini-rtx-int4.",
        ),
    ],
)
def test_a_model_that_is_known_gets_its_own_options_and_the_recipe_says_why(
    tmp_path: Path, name: str, repo: str, options: dict[str, object], said: str
) -> None:
    text, made = started(tmp_path, name, repo)
    assert made is not None
    assert yaml.safe_load(text)["quantize"] == options
    assert said in text


def test_what_the_user_names_is_kept_also_where_the_model_degenerates(tmp_path: Path) -> None:
    repo = "microsoft/Phi-4-mini-instruct"
    text, made = started(tmp_path, "cpu-x86_64", repo, backend="openvino", precision="int4")
    told = yaml.safe_load(text)
    assert (told["backend"], told["precision"]) == ("openvino", "int4")
    assert told["quantize"] == {"ratio": 0.8}
    assert made is not None
    assert not degenerates(made)
    text, _ = started(tmp_path, "cpu-x86_64", repo, backend="litert", precision="int4")
    assert yaml.safe_load(text)["precision"] == "int4"


def test_a_fine_tune_in_a_folder_is_known_by_its_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phi4_mini = shape("microsoft/Phi-4-mini-instruct")
    monkeypatch.setattr(checkpoints, "read", lambda folder: phi4_mini)
    monkeypatch.setattr(take, "check_weights", lambda folder: None)  # there are none
    (tmp_path / "tuned").mkdir()
    path = tmp_path / "r.yaml"
    write(path, device="android-phone", source=str(tmp_path / "tuned"))
    assert yaml.safe_load(path.read_text("utf-8"))["quantize"]["type"] == "Q4_K_M"


@pytest.mark.parametrize("backend", ["onnxruntime", "llamacpp", "openvino", "mlx", "torch"])
@pytest.mark.parametrize("repo", ["Qwen/Qwen3-0.6B", "microsoft/Phi-4-mini-instruct"])
def test_a_difference_of_tokenizers_that_the_plan_asks_about_is_accepted_with_a_comment(
    tmp_path: Path, repo: str, backend: str
) -> None:
    name = "mac-16gb" if backend == "mlx" else "cpu-x86_64"
    text, _ = started(tmp_path, name, repo, backend=backend)
    differs = "Qwen" in repo and not backends.load(backend).normalizes
    assert yaml.safe_load(text)["evaluate"].get("accept", []) == ["tokenizer"] * differs
    assert ("[M27]" in text) == differs
    (build,) = targets.checked(tmp_path / "r.yaml")
    form = "NFC" if "Qwen" in repo else ""
    assert preparation.outlined(build, replace(shape(repo), normal_form=form))


@pytest.mark.parametrize("repo", ["SmolLM2-135M-Instruct", "SmolLM2-360M-Instruct"])
@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_groups_divide_the_rows_of_the_model(tmp_path: Path, repo: str, backend: str) -> None:
    text, made = started(tmp_path, "cpu-x86_64", f"HuggingFaceTB/{repo}", backend=backend)
    told = yaml.safe_load(text)
    assert (told["precision"], told["quantize"]["group_size"]) == ("int4", 64)
    assert "does not divide" in text
    assert made is not None


@pytest.mark.parametrize("name", [n for n in backends.names() if backends.load(n).apart])
def test_options_that_keep_layers_wider_are_those_that_the_hint_names(name: str) -> None:
    face = backends.load(name)
    assert not face.is_uniform(face.options(**face.apart))
    for key, value in face.apart.items():
        assert f"`quantize.{key}: {starter_text.flow(value)}`" in face.wider


@pytest.mark.parametrize(
    ("name", "backend", "options"),
    [
        ("mac-16gb", "mlx", [{"mixed": f"mixed_{bits}"} for bits in ("2_6", "3_4", "3_6", "4_6")]),
        (
            "rtx-12gb",
            "onnxruntime",
            [{}, {"mixed": "head"}, {"mixed": "down"}, {"mixed": "layers"}],
        ),
        ("intel-gpu", "openvino", [{}, {"ratio": 0.8}]),
        ("raspberry-pi-5", "llamacpp", [{"type": "Q4_0"}, {"type": "Q4_K_M"}]),
    ],
)
@pytest.mark.parametrize(
    "repo", ["microsoft/Phi-4-mini-instruct", "microsoft/Phi-3.5-mini-instruct"]
)
def test_what_keeps_layers_wider_is_planned_larger_than_without_and_smaller_than_8_bits(
    tmp_path: Path, name: str, backend: str, options: list[dict[str, object]], repo: str
) -> None:
    sizes = []
    for keys in (*({"quantize": one} for one in options), {"precision": "int8"}):
        tried = {"name": "r", "source": {"builtin": "tiny-phi3"}, "precision": "int4", **keys}
        tried |= {"device": name, "backend": backend, "context": 512}
        (tmp_path / "t.yaml").write_text(json.dumps(tried), "utf-8")
        (build,) = targets.checked(tmp_path / "t.yaml")
        made = preparation.outlined(build, shape(repo)).fit
        assert made is not None
        sizes.append(made.weight_bytes)
    assert sizes == sorted(set(sizes))


# --- `init MODEL`: the recipe is called after the model


def test_a_repository_alone_becomes_a_pinned_recipe_for_the_device(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hub_server.of_folder(TINY, repo="someone/My_Tiny.Model") as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        code, out, err = run("init", "someone/My_Tiny.Model@main", "--device", "raspberry-pi-5")
        assert code == 0, err
        path = tmp_path / "my-tiny.model-raspberry-pi-5.yaml"
        assert [line for line in out.splitlines() if "phipipe" in line] == [
            f"next: phipipe plan {path.name}",
            f"then: phipipe run {path.name}",
        ]
        told = yaml.safe_load(path.read_text("utf-8"))
        assert told["source"] == {"repo": "someone/My_Tiny.Model", "revision": served.commit}
        assert (told["backend"], told["precision"]) == ("llamacpp", "int4")
        assert told["weights"] == {"learn": "gptq"}
        dataset = told["evaluate"]["text"]["dataset"]
        assert dataset["repo"].endswith("wikitext")
        assert len(dataset["revision"]) == 40
        (planned,) = plans.planned(
            path, ["evaluate.text={builtin: stories}", "calibrate.text={builtin: stories}"]
        )
        assert planned.device.name == "raspberry-pi-5"


def test_a_folder_alone_becomes_a_recipe_that_plans(run: Run, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "models" / "My Model")
    (tmp_path / "mine.txt").write_text("a text of my task. " * 400, "utf-8")
    words = ("--device", "cpu-x86_64", "--precision", "int8", "--text", "mine.txt")
    code, _, err = run("init", "models/My Model", *words)
    assert code == 0, err
    path = tmp_path / "my-model-cpu-x86-64-int8.yaml"
    told = yaml.safe_load(path.read_text("utf-8"))
    assert told["source"] == {"path": "models/My Model"}
    assert told["evaluate"]["text"] == {"file": "mine.txt"}
    assert told["precision"] == "int8"
    code, _, err = run("plan", path.name)
    assert code == 0, err


def test_a_recipe_of_a_folder_has_no_more_context_than_its_model(run: Run, tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "mine")
    for name in ("cpu-x86_64", "mac-16gb"):  # whose own recipes have a longer context
        assert run("init", "mine", "--device", name)[0] == 0
    for path in tmp_path.glob("*.yaml"):
        (planned,) = plans.planned(path)
        assert "M14" not in [advice.rule for advice in planned.warnings]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (".", "holds no model: it has no `config.json`\n"),
        ("models", "`models` holds no model: it has no `config.json`; did you mean `models/mine`?"),
        ("empty", "`empty` holds no model: it has no `config.json`\n"),
    ],
)
def test_a_folder_without_a_model_is_refused_with_the_one_that_is_meant(
    run: Run, tmp_path: Path, given: str, said: str
) -> None:
    shutil.copytree(TINY, tmp_path / "models" / "mine")
    (tmp_path / "empty").mkdir()
    code, _, err = run("init", given)
    assert (code, said in err) == (2, True), err
    assert not list(tmp_path.glob("*.yaml"))


def test_a_gguf_alone_becomes_a_recipe_that_is_called_after_it(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tuned-Q8_0.gguf").touch()
    code, _, err = run("init", "./tuned-Q8_0.gguf")
    assert code == 0, err
    assert "no GGUF file (0 bytes)" in err
    told = yaml.safe_load((tmp_path / "tuned-q8-0.yaml").read_text("utf-8"))
    assert told["source"] == {"path": "tuned-Q8_0.gguf"}


@pytest.mark.parametrize("folder", ["model", "a/b"])  # the first could be a name of the hub's
def test_a_file_of_a_checkpoint_is_refused_with_its_folder(
    run: Run, tmp_path: Path, folder: str
) -> None:
    place = tmp_path / folder / "adapter_model.safetensors"
    place.parent.mkdir(parents=True)
    place.touch()
    code, _, err = run("init", f"{folder}/{place.name}")
    assert code == 2
    assert "is a file" in err
    assert f"phipipe init {folder}" in err


def test_a_model_that_cannot_be_built_is_said_while_its_recipe_is_written(
    run: Run, tmp_path: Path
) -> None:
    shutil.copytree(TINY, tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").unlink()
    code, _, err = run("init", "mine")
    assert code == 0
    assert "note: this model cannot be built yet: " in err


def test_an_adapter_that_names_no_base_is_refused_with_what_to_write(
    run: Run, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "adapter_config.json").write_text("{}")
    code, _, err = run("init", "mine")
    assert code == 2
    assert "does not say which model it was trained on" in err
    assert "source: {base: {repo: …, revision: …}, adapter: {path: mine}}" in err


def test_a_wrong_device_is_said_before_a_recipe_that_is_there_already(
    run: Run, tmp_path: Path
) -> None:
    assert run("init", "builtin:tiny-phi3", "--device", "cpu-x86_64")[0] == 0
    code, _, err = run("init", "builtin:tiny-phi3", "--device", "cpu-x86-64")
    assert (code, "did you mean `cpu-x86_64`?" in err) == (3, True), err


def test_the_embedded_model_alone_becomes_a_recipe(run: Run, tmp_path: Path) -> None:
    assert run("init", "builtin:tiny-phi3")[0] == 0
    assert plans.planned(tmp_path / "tiny-phi3.yaml")


def test_a_recipe_called_after_the_model_is_never_overwritten(run: Run, tmp_path: Path) -> None:
    (tmp_path / "tiny-phi3.yaml").write_text("mine")
    code, _, err = run("init", "builtin:tiny-phi3")
    assert code == 2
    assert "try: phipipe plan tiny-phi3.yaml goes on with it" in err
    assert "phipipe init OTHER.yaml --source builtin:tiny-phi3" in err
    assert (tmp_path / "tiny-phi3.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["./not-there"], "`not-there` is no model that can be found"),
        (["recipe"], "a recipe's file that ends in .yaml"),
        (["builtin:tiny"], "did you mean `tiny-phi3`?"),
        (["builtin:tiny-phi3", "--text", "no.txt"], "--text: `no.txt` does not exist"),
        (["builtin:tiny-phi3", "--text", "."], "a text file, `wikitext` or `stories`"),
        (["builtin:tiny-phi3", "--device", "nope"], "nope"),
    ],
)
def test_a_word_that_names_no_model_is_refused_and_nothing_is_written(
    run: Run, tmp_path: Path, words: list[str], said: str
) -> None:
    code, _, err = run("init", *words)
    assert code in (2, 3)
    assert said in err
    assert not list(tmp_path.iterdir())


@given(st.text(max_size=60))
def test_whatever_a_model_is_called_its_recipe_has_a_plain_name(text: str) -> None:
    with contextlib.suppress(RecipeError):
        path, _ = starter_words.meant(f"someone/{text}", None, (None, None, None))
        assert re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,84}", path.name)


@pytest.mark.parametrize("folder", ["empty", "./empty", ".", ".."])
def test_a_folder_without_a_checkpoint_is_no_model(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    (tmp_path / "here" / "empty").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    code, _, stderr = run("init", folder)
    assert (code, f"`{Path(folder)}` holds no model" in stderr) == (2, True)
    assert [path.name for path in Path().iterdir()] == ["empty"]
    _, (note,) = write(Path("r.yaml"), source=folder)  # it may come later
    assert note.startswith("this model cannot be built yet: ")


def test_a_device_that_is_named_by_nothing_is_refused(run: Run) -> None:
    assert run("init", "r.yaml", "--device", "")[0] != 0


def test_a_gguf_is_a_model_to_start_from(tmp_path: Path) -> None:
    path = small_gguf.write(tmp_path / "m.gguf")
    assert starter_words.names_model(str(path))
    assert starter_words.meant(str(path), None, ()).path.name == "m.yaml"


@pytest.mark.parametrize("backend", backends.names())
@pytest.mark.parametrize("facts", [{"normal_form": "NFC"}, {"cuts_digits": True}, {}], ids=str)
def test_a_starter_accepts_what_a_rule_about_tokenizers_would_refuse(
    backend: str, facts: dict[str, Any]
) -> None:
    model = replace(shape("HuggingFaceTB/SmolLM2-135M-Instruct"), **facts)
    choice = starter_choice.suited(Choice(keys={"backend": backend}), model)
    recipe: Any = SimpleNamespace(backend=backend, evaluate=SimpleNamespace(accept=[]))
    options: Any = None
    asked = [rule.id for rule in tokenizer_rules.RULES if rule.when(recipe, options, model)]
    assert [bool(choice.accept)] == [bool(asked)]
    assert all(f"[{rule}]" in choice.accept for rule in asked[:1])
