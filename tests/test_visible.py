"""Text of strangers on a terminal, and streams that cannot write, cannot be written or go away."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st
from testing import hostile_paths
from testing.places import QUICKSTART, ROOT

from phipipe.cli import answers, listeners, messages
from phipipe.errors import PhipipeError
from phipipe.hub import take
from phipipe.visible import json_again, json_text, one_line, visible

QUICKSTART = str(QUICKSTART)
ANYTHING = st.text(st.characters(exclude_categories=()))
VALUES = st.recursive(ANYTHING | st.none() | st.booleans() | st.integers(), st.lists, max_leaves=5)
ACTING = "\x00\x07\x08\r\x1b\x7f\x85\x9b\u2028\u2029\u202a\u202e\u2066\u2069\ud800\udcff"
EVIL = "x\x1b]0;owned\x07y\u202ez\x9b31m"


@given(ANYTHING)
def test_nothing_that_acts_on_a_terminal_gets_through(text: str) -> None:
    shown = visible(text)
    assert not {
        c for c in shown if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") and c not in "\n\t"
    }
    assert not set(shown) & set(ACTING)
    assert "\n" not in one_line(text)
    shown.encode("utf-8")


@given(
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp"), exclude_characters=ACTING))
)
def test_what_can_be_seen_stays_as_it_is(text: str) -> None:
    assert visible(text) == text


@given(VALUES, st.sampled_from([None, "utf-8", "ascii", "cp1252"]))
def test_json_says_the_same_and_shows_nothing_that_acts(
    value: object, encoding: str | None
) -> None:
    text = json_text(value, encoding=encoding)
    assert json.loads(text) == value
    assert not set(text) & set(ACTING)
    text.encode(encoding or "utf-8")
    assert json.loads(json_again(json.dumps(value, ensure_ascii=False))) == value


def test_every_way_to_print_makes_text_visible(capsys: pytest.CaptureFixture[str]) -> None:
    messages.echo(EVIL)
    messages.note(EVIL)
    messages.complain(PhipipeError(EVIL, hint=EVIL))
    messages.misused(click.UsageError(EVIL))
    answers.give({EVIL: [EVIL]})
    answers.give_text(json.dumps(EVIL, ensure_ascii=False))
    listeners.Lines(10, sys.stderr).note(EVIL)
    listeners.Lines(10, sys.stderr).started("step", EVIL)
    out, err = capsys.readouterr()
    assert not set(out + err) & set(ACTING)
    assert out.count("owned") == 4
    assert err.count("owned") == 6


def test_a_config_a_recipe_and_an_argument_cannot_command_the_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    for path in take.BUILTIN_MODELS["tiny-phi3"].iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "config.json").unlink()
    config = json.loads((take.BUILTIN_MODELS["tiny-phi3"] / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [EVIL]}), "utf-8")
    said = [
        hostile_paths.outcome(
            ["plan", QUICKSTART, "--set", f"source={{path: {json.dumps(str(folder))}}}"]
        )
    ]
    recipe = tmp_path / f"r{EVIL}.yaml"
    recipe.write_text(
        "name: x\n# \u202e\nsource: {builtin: \u202eabc}\nprecision: int4\ndevice: \u2066x\n",
        "utf-8",
    )
    said += [
        hostile_paths.outcome([command, str(recipe)]) for command in ("plan", "validate", "pin")
    ]
    said += [
        hostile_paths.outcome(["validate", "--json", str(recipe)]),
        hostile_paths.outcome([EVIL]),
    ]
    said += [
        hostile_paths.outcome(["plan", QUICKSTART, f"--{EVIL}"]),
        hostile_paths.outcome(["devices", EVIL]),
    ]
    for code, text in said:
        assert code in hostile_paths.DOCUMENTED
        assert not set(text) & set(ACTING)


def started(
    command: list[str], stdout: object = subprocess.PIPE, **environ: str
) -> subprocess.CompletedProcess[bytes]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONIOENCODING", "PYTHONUTF8")
    }
    return subprocess.run(
        [sys.executable, "-m", "phipipe", *command],
        stdout=stdout,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=environment | environ,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_an_output_that_cannot_encode_gets_signs_that_it_can(encoding: str) -> None:
    done = started(["plan", QUICKSTART], PYTHONIOENCODING=encoding)
    assert done.returncode == 0, done.stderr
    assert b"quickstart" in done.stdout.replace(b"\0", b"")
    told = started(["plan", QUICKSTART, "--json"], PYTHONIOENCODING=encoding).stdout
    assert json.loads(told.decode(encoding.partition(":")[0]))[0]["name"] == "quickstart"


def test_a_locale_that_cannot_encode_is_no_bug() -> None:
    done = started(["plan", QUICKSTART], LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_takes_nothing_is_said_and_ends_with_9() -> None:
    with Path("/dev/full").open("wb") as full:
        done = started(["devices"], stdout=full)
        assert (done.returncode, done.stderr.count(b"\n")) == (9, 2)
        assert b"standard output takes nothing more" in done.stderr
        failed = started(["plan", "nope.yaml"], stdout=full)
        assert failed.returncode == 2  # the command's own end comes first


@pytest.mark.full
@pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")
@pytest.mark.parametrize(
    ("rest", "code"),
    [
        ("plan recipes/quickstart.yaml | true; exit ${PIPESTATUS[0]}", 0),
        ("plan nope.yaml | true; exit ${PIPESTATUS[0]}", 2),
        ("plan recipes/quickstart.yaml >&-", 0),
        ("plan nope.yaml >&- 2>&-", 2),
        ("plan recipes/quickstart.yaml >&- 2>&- <&-", 0),
        ("cache verify 2>/dev/full", 0),
        ("plan nope.yaml 2>/dev/full", 2),
        ("validate nope.yaml --json >&-", 2),
    ],
)
def test_a_stream_that_is_closed_or_whose_reader_has_gone_changes_no_ending(
    rest: str, code: int
) -> None:
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m phipipe {rest}'],
        cwd=ROOT,
        capture_output=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception ignored" not in done.stderr


def test_a_file_never_takes_the_number_of_an_output_that_is_closed(tmp_path: Path) -> None:
    """Else what is printed would land in it: a lock, a record."""
    code = (
        "from phipipe.cli import streams; streams.prepare(); file = open(FILE, 'w'); "
        "file.write(str(file.fileno()))"
    )
    command = [sys.executable, "-c", f"FILE = {str(tmp_path / 'number')!r}; {code}"]
    if sys.platform == "win32":
        pytest.skip("numbers are not inherited there")
    subprocess.run(["bash", "-c", '"$0" "$@" >&- 2>&-', *command], cwd=ROOT, check=True)
    assert int((tmp_path / "number").read_text("utf-8")) > 2
