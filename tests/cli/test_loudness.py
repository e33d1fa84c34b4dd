"""How much commands say (-q, -v), and how the list of commands looks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from testing.places import QUICKSTART
from testing.shell import Run

from phipipe import cli, progress
from phipipe.cli import messages
from phipipe.cli.groups import SUMMARY, Group

NOTES = ("schedule", "export", "--cron", QUICKSTART)  # a command that notes what it found


def every(group: click.Group, *before: str) -> list[tuple[tuple[str, ...], click.Command]]:
    found: list[tuple[tuple[str, ...], click.Command]] = []
    for name, command in group.commands.items():
        found.append(((*before, name), command))
        if isinstance(command, click.Group):
            found += every(command, *before, name)
    return found


EVERY = every(cli.cli)


def test_every_command_stands_under_one_heading(run: Run) -> None:
    _, out, _ = run("--help")
    shown = [
        line.split()[0] for line in out.splitlines() if line.startswith("  ") and line[2] != " "
    ]
    for name in cli.cli.commands:
        assert shown.count(name) == 1
    headings = [line for line in out.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["Options:", *(f"{heading}:" for heading in cli.COMMANDS)]


def test_the_list_says_what_the_commands_say_of_themselves() -> None:
    rows = [row for rows in cli.COMMANDS.values() for row in rows]
    said = {row.name: cli.cli.commands[row.name].get_short_help_str(SUMMARY) for row in rows}
    assert {row.name: row.summary for row in rows} == said
    assert {row.name: cli.cli.commands[row.name].name for row in rows} == {n: n for n in said}


def test_only_the_command_that_is_called_is_imported() -> None:
    code = (
        "import sys; from phipipe.cli import cli; cli.main(['--help'], standalone_mode=False); "
        "sys.exit('phipipe.cli.batch' in sys.modules or 'phipipe.cli.build' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_no_summary_is_cut_however_narrow_the_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    for words in ([], ["cache"], ["toolchain"], ["runs"], ["schedule"]):
        code, out, _ = run(*words, "--help")
        assert code == 0
        assert not re.search(r"[\w,;:`]\.\.\.$", out, re.M)


@pytest.mark.parametrize(("words", "command"), EVERY, ids=lambda value: str(value))
def test_every_command_takes_quiet_and_verbose(
    words: tuple[str, ...], command: click.Command
) -> None:
    taken = [flag for parameter in command.params for flag in parameter.opts]
    assert {"-q", "--quiet", "-v", "--verbose"} <= set(taken), words
    assert len(taken) == len(set(taken)), words


def test_every_group_guesses_a_mistyped_command() -> None:
    assert not [
        words
        for words, command in EVERY
        if isinstance(command, click.Group) and not isinstance(command, Group)
    ]


@pytest.mark.parametrize(
    "words", [("-q", *NOTES), (*NOTES, "-q"), ("schedule", "--quiet", *NOTES[1:])]
)
def test_quiet_leaves_results_alone_and_says_nothing_else(
    run: Run, words: tuple[str | Path, ...]
) -> None:
    code, out, err = run(*NOTES)
    assert code == 0
    assert "1 build today" in err
    assert run(*words) == (0, out, "")
    assert "1 build today" in run(*NOTES)[2]  # the next command is as loud as ever


def test_quiet_shows_errors_with_what_to_try(run: Run) -> None:
    code, out, err = run("run", "-q", "nowhere.yaml")
    assert (code, out) == (2, "")
    assert err.startswith("error: no recipe at `nowhere.yaml`")
    code, _, err = run("-q", "devices", "show", "cpu")
    assert code == 3
    assert "did you mean" in err


def test_a_quiet_batch_names_the_builds_that_failed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        QUICKSTART.read_text("utf-8").replace("precision: int4", "precision: fp16"), "utf-8"
    )
    code, _, err = run("batch", "r.yaml", "-q")
    assert code == 3
    assert err.startswith("quickstart refused:\nerror: ")


def test_quiet_events_are_errors_alone(run: Run) -> None:
    code, _, err = run("run", "nowhere.yaml", "-q", "--log-format", "json")
    assert code == 2
    assert [json.loads(line)["event"] for line in err.splitlines()] == ["error"]


@pytest.mark.parametrize(
    "words",
    [("-q", "-v", "devices"), ("-q", "devices", "-v"), ("devices", "show", "-vq", "intel-npu")],
)
def test_quiet_and_verbose_exclude_each_other(run: Run, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert "--quiet and --verbose exclude each other" in err


def test_only_a_verbose_command_follows_its_steps(run: Run) -> None:
    run("devices", "-v")
    assert progress.is_followed()
    run("devices")
    assert not progress.is_followed()


def test_a_steps_line_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    messages.show_log("convert", "\x1b[2Jgone")
    assert capsys.readouterr().err == "  convert | \\x1b[2Jgone\n"
