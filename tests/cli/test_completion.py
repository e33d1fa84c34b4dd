"""What shells offer after TAB; bash is asked for real, the others by the way they ask."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing.places import RECIPES
from testing.shell import Run

from phipipe import backends, cli
from phipipe.cli import completions
from phipipe.recipe import device
from phipipe.toolchains import environments

BOARD = RECIPES / "board.yaml"
KINDS = {  # names of parameters whose values are known here
    **dict.fromkeys(("device", "devices"), "devices"),
    **dict.fromkeys(("backend", "backends"), "backends"),
    **dict.fromkeys(("toolchains",), "toolchains"),
    **dict.fromkeys(("sets", "only", "run_id"), ""),
}
bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash")


@pytest.fixture
def offer(run: Run, monkeypatch: pytest.MonkeyPatch) -> object:
    """What is offered for the last of ``words``."""

    def ask(*words: str | Path) -> list[str]:
        monkeypatch.setenv("_PHIPIPE_COMPLETE", "powershell_complete")
        monkeypatch.setenv("COMP_WORDS", "\n".join(map(str, ("phipipe", *words))))
        code, out, err = run()
        assert (code, err) == (0, "")
        return [line.split("\t")[1] for line in out.splitlines() if line.startswith("plain")]

    return ask


def every(group: click.Group, *before: str) -> list[tuple[str, click.Parameter]]:
    found = []
    for name, command in group.commands.items():
        found += [(" ".join((*before, name)), parameter) for parameter in command.params]
        if isinstance(command, click.Group):
            found += every(command, *before, name)
    return found


def test_every_parameter_whose_values_are_known_is_completed() -> None:
    context = click.Context(cli.cli)
    for where, parameter in every(cli.cli):
        if KINDS.get(str(parameter.name)):
            known = getattr(completions, KINDS[str(parameter.name)])(context, parameter, "")
            offered = parameter.shell_complete(context, "")
            assert [item.value for item in offered] == [item.value for item in known], where
        elif parameter.name in KINDS:
            assert parameter._custom_shell_complete is not None, where


def test_commands_options_and_names_are_offered(offer: object) -> None:
    assert callable(offer)
    assert {"run", "runs"} <= set(offer("ru"))
    assert offer("run", "--on") == ["--only", "--on"]
    assert offer("devices", "show", "intel") == [n for n in device.names() if n[:5] == "intel"]
    assert offer("devices", "intel-n") == ["intel-npu"]
    assert offer("backends", "sho") == ["show"]
    assert offer("batch", "recipes", "--backend", "") == list(backends.names())
    assert offer("toolchain", "install", "torch", "") == list(environments.names())
    assert "M20" in offer("explain", "M2")
    assert "cache-ls" in offer("schema", "cache")
    assert offer("recipes", "copy", "quick") == ["quickstart"]
    assert offer("docs", "reference/exit") == ["reference/exit-codes"]
    assert offer("completion", "p") == ["powershell"]
    assert "Europe/Berlin" in offer("schedule", "serve", "r", "--timezone", "Europe/B")


def test_variants_come_from_the_recipe_that_is_typed(offer: object, tmp_path: Path) -> None:
    assert callable(offer)
    offered = offer("run", BOARD, "--only", "torch-int")
    assert offered == ["torch-int8", "torch-int4"]
    assert offer("plan", BOARD, "--only", "torch-int") == offered
    assert offer("run", BOARD, "--jobs", "2", "--only", "torch-int") == offered
    (tmp_path / "bad.yaml").write_text("name: [", "utf-8")
    assert offer("run", "bad.yaml", "--only", "") == []
    assert offer("run", "nowhere.yaml", "--only", "") == []
    assert offer("run", "--only", "") == []


def test_keys_and_values_of_a_recipe_are_offered(offer: object) -> None:
    assert callable(offer)
    assert {"precision=", "device=", "evaluate.tokens="} <= set(offer("run", BOARD, "--set", ""))
    assert offer("run", BOARD, "--set", "precision=int") == ["precision=int4", "precision=int8"]
    assert offer("run", BOARD, "--set", "device=intel-n") == ["device=intel-npu"]
    assert offer("run", BOARD, "--set", "nonsense=") == []


def test_runs_and_their_steps_are_offered(
    offer: object, run: Run, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(offer)
    run("run", RECIPES / "quickstart.yaml")  # fails for want of a toolchain; it is recorded
    known = offer("runs", "show", "")
    assert known[0] == "latest"
    assert known[1:] == sorted(path.name for path in (own_cache / "runs").iterdir())
    assert "source" in offer("runs", "logs", "latest", "")
    monkeypatch.setenv("PHIPIPE_PREFLIGHT", "nonsense")  # no settings, nothing to say
    assert offer("runs", "show", "") == []


@pytest.mark.parametrize("asked", ["bash_complete", "nonsense", "tcsh_complete", "zsh_"])
def test_a_question_that_makes_no_sense_gets_no_answer(
    run: Run, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv("_PHIPIPE_COMPLETE", asked)
    for name in ("COMP_LINE", "COMP_WORDS", "COMP_CWORD"):
        monkeypatch.delenv(name, raising=False)
    assert run() == (1, "", "")


@given(st.text(max_size=12))
def test_no_word_that_a_shell_would_take_apart_is_offered(word: str) -> None:
    offering = completions.offering(lambda context, incomplete: [word])
    command = click.Command("c", params=[click.Argument(["a"])])
    found = offering(click.Context(command), command.params[0], "")
    values = [item if isinstance(item, str) else item.value for item in found]
    assert not [value for value in values if set(value) & set(" \t\n'\"`$;&|<>()*?!#\\~\x1b")]


def test_completion_imports_no_toolchain_and_asks_no_network(tmp_path: Path) -> None:
    code = (
        "import socket, sys\nsocket.socket.connect = socket.create_connection = None\n"
        "sys.argv = ['phipipe']\nfrom phipipe.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert not {'torch', 'numpy', 'huggingface_hub', 'rich'} & sys.modules.keys()"
    )
    for words in (["run", str(BOARD), "--only", "to"], ["explain", ""], ["recipes", "copy", ""]):
        asked = {
            "_PHIPIPE_COMPLETE": "powershell_complete",
            "COMP_WORDS": "\n".join(["phipipe", *words]),
        }
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            encoding="utf-8",
            env=os.environ | asked,
            check=True,
        )
        assert done.stdout.startswith("plain\t")
        assert done.stderr == ""


# Each shell


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a command `phipipe`, for PATH."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "phipipe").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m phipipe "$@"\n', "utf-8"
    )
    (folder / "phipipe").chmod(0o755)
    return folder


def in_bash(tool: Path, folder: Path, line: str, breaks: str = " \t\n\"'><=;|&(:") -> list[str]:
    """What bash completes ``line`` to, by the script that we print; words are taken apart as bash
    does it."""
    program = """
    eval "$(phipipe completion bash)"
    COMP_LINE=$1 COMP_POINT=${#1} COMP_WORDBREAKS=$2
    compopt() { echo "compopt $*" >> options; }
    _phipipe_completion phipipe
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", line, breaks],
        capture_output=True,
        encoding="utf-8",
        cwd=folder,
        env=os.environ | {"PATH": f"{tool}{os.pathsep}{os.environ['PATH']}"},
        check=True,
    )
    assert done.stderr == ""
    return [word for word in done.stdout.splitlines() if word]


@bash
def test_bash_offers_what_there_is(tool: Path, tmp_path: Path) -> None:
    assert in_bash(tool, tmp_path, "phipipe devices show intel-n") == ["intel-npu"]
    assert in_bash(tool, tmp_path, "phipipe verif") == ["verify"]
    assert in_bash(tool, tmp_path, "phipipe toolchain p") == ["path"]


@bash
def test_bash_takes_words_apart_and_gets_what_is_missing(tool: Path, tmp_path: Path) -> None:
    line = "phipipe run r.yaml --set precision=int"
    assert in_bash(tool, tmp_path, line) == ["int4", "int8"]
    assert in_bash(tool, tmp_path, line, breaks=" ") == ["precision=int4", "precision=int8"]
    assert in_bash(tool, tmp_path, "phipipe run r.yaml --set preci") == ["precision="]
    assert (tmp_path / "options").read_text("utf-8") == "compopt -o nospace\n"


@bash
def test_bash_offers_files_where_a_path_is_meant(tool: Path, tmp_path: Path) -> None:
    assert in_bash(tool, tmp_path, "phipipe run ") == []
    assert (tmp_path / "options").read_text("utf-8") == "compopt -o default\n"


@bash
def test_bash_says_nothing_where_nothing_is_right(tool: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: [", "utf-8")
    for line in ("phipipe nonsense x", "phipipe run bad.yaml --only ", "phipipe explain 'MM"):
        assert in_bash(tool, tmp_path, line) in ([], sorted(cli.cli.commands))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_its_script(run: Run, tmp_path: Path, shell: str) -> None:
    code, out, err = run("completion", shell)
    assert (code, err) == (0, "")
    assert "_PHIPIPE_COMPLETE" in out
    if program := shutil.which(shell):
        (tmp_path / "script").write_text(out, "utf-8")
        subprocess.run([program, "-n", str(tmp_path / "script")], check=True)


@pytest.mark.parametrize(
    ("asked", "words", "said"),
    [
        (
            "zsh_complete",
            {"COMP_WORDS": "phipipe toolchain pa", "COMP_CWORD": "2"},
            "plain\npath\n",
        ),
        ("fish_complete", {"COMP_WORDS": "phipipe toolchain pa", "COMP_CWORD": "pa"}, "plain,path"),
        ("powershell_complete", {"COMP_WORDS": "phipipe\ntoolchain\npa"}, "plain\tpath\tPrint the"),
        ("powershell_complete", {"COMP_WORDS": "phipipe\ntoolchain\n"}, "plain\tls\tList"),
    ],
)
def test_other_shells_get_answers_in_their_own_form(
    run: Run, monkeypatch: pytest.MonkeyPatch, asked: str, words: dict[str, str], said: str
) -> None:
    monkeypatch.setenv("_PHIPIPE_COMPLETE", asked)
    for name, value in words.items():
        monkeypatch.setenv(name, value)
    code, out, _ = run()
    assert code == 0
    assert said in out


def test_powershell_is_told_to_ask_and_to_forget(run: Run) -> None:
    code, out, _ = run("completion", "powershell")
    assert code == 0
    assert "Register-ArgumentCompleter -Native -CommandName phipipe" in out
    assert "Remove-Item Env:_PHIPIPE_COMPLETE" in out
    assert out.count("{") == out.count("}")
    assert out.count("(") == out.count(")")


@pytest.mark.skipif(shutil.which("pwsh") is None, reason="PowerShell")
def test_powershell_completes(run: Run, tool: Path, tmp_path: Path) -> None:
    script = tmp_path / "completion.ps1"
    script.write_text(run("completion", "powershell")[1], "utf-8")
    line = "phipipe devices show intel-n"
    program = f". {script}; (TabExpansion2 '{line}' {len(line)}).CompletionMatches.CompletionText"
    done = subprocess.run(
        ["pwsh", "-NoProfile", "-Command", program],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PATH": f"{tool}{os.pathsep}{os.environ['PATH']}"},
        check=True,
    )
    assert done.stdout.strip() == "intel-npu"
