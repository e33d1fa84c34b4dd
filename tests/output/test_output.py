"""`--json` is data: one document for each command, as its schema says, whatever happens."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from testing import documents
from testing.places import QUICKSTART, RECIPES, ROOT
from testing.plans import plan, step
from testing.shell import Run

from phipipe import cli, failures
from phipipe.api import show
from phipipe.cli import answers, help, schemas
from phipipe.cli.listeners import Silent
from phipipe.errors import (
    Located,
    PhipipeError,
    Place,
    RecipeError,
    SourceError,
    StoreError,
    TargetError,
    kinds,
)
from phipipe.execution import dispatch
from phipipe.execution.manner import Manner
from phipipe.output import documents as output
from phipipe.recipe import device
from phipipe.settings import Settings
from phipipe.store.store import Store

PEOPLE = re.compile(
    r"\d (B|KiB|MiB|GiB)\b|\b(ago|just now|not installed|nothing to set|all set)\b|^-$|^–$"
)


def commands(
    group: click.Group = cli.cli, before: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its words, groups included."""
    for name, command in group.commands.items():
        yield (*before, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*before, name))


WITH_JSON = [
    words
    for words, command in commands()
    if "--json" in {o for p in command.params for o in p.opts}
]


def texts(value: Any) -> Iterator[str]:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inner:
        yield from texts(one)
    if isinstance(value, str):
        yield value


def test_every_command_that_prints_json_has_a_schema_and_every_schema_a_command() -> None:
    assert {"-".join(words) for words in WITH_JSON} == set(schemas.DOCUMENTS)


def test_the_schemas_in_the_repository_are_up_to_date_and_no_others_are_there() -> None:
    folder = ROOT / "schemas"
    found = {
        path.relative_to(folder): path.read_text("utf-8")
        for path in folder.rglob("*")
        if path.is_file()
    }
    assert found == schemas.files()


@pytest.mark.parametrize("name", schemas.DOCUMENTS)
def test_a_schema_is_closed_and_takes_a_failure(name: str) -> None:
    made = documents.validator(name).schema
    closed = [d for d in made["$defs"].values() if "properties" in d]
    assert closed
    assert all(definition["additionalProperties"] is False for definition in closed)
    failure = {"error": output.plain(output.error_of(SourceError("x", hint="y")))}
    assert documents.validator(name).is_valid(failure)
    assert not documents.validator(name).is_valid({"error": "x"})


@pytest.mark.full
@pytest.mark.parametrize(
    "words",
    [
        ("devices",),
        ("devices", "show", "core-ultra-2"),
        ("devices", "intel-npu"),
        ("backends",),
        ("backends", "show", "onnxruntime"),
        ("doctor",),
        ("explain",),
        ("explain", "M20"),
        ("docs",),
        ("docs", "metrics"),
        ("toolchain", "ls"),
        ("cache", "ls"),
        ("cache", "verify"),
        ("cache", "gc", "--budget", "0", "--dry-run"),
        ("runs", "ls"),
        ("validate", QUICKSTART, RECIPES / "board.yaml"),
        ("plan", QUICKSTART),
        ("plan", RECIPES / "board.yaml", "--only", "mlx-int4", "--only", "torch-fp32"),
        ("init", "new.yaml"),
        ("pin", QUICKSTART),
        ("schedule", "export", "--systemd", QUICKSTART),
        ("schedule", "export", "--cron", QUICKSTART, "--write", "there"),
        ("schema", "--check", ROOT / "schemas" / "recipe.schema.json"),
        ("schema", "--all", "--check", ROOT / "schemas"),
    ],
    ids=lambda words: " ".join(Path(word).name for word in words),
)
def test_what_a_command_prints_is_as_its_schema_says(run: Run, words: Sequence[str | Path]) -> None:
    code, out, err = run(*words, "--json")
    assert code == 0, err
    document = documents.fits(words, out)
    if words[0] not in (
        "schedule",
        "backends",
        "plan",
        "doctor",
        "explain",
        "docs",
    ):  # which have texts for people
        assert not [text for text in texts(document) if PEOPLE.search(text)]


def test_what_an_installed_toolchain_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PHIPIPE_TOOLCHAIN", "current")
    for words in (
        ("toolchain", "install", "torch"),
        ("toolchain", "path", "torch"),
        ("toolchain", "ls"),
    ):
        code, out, err = run(*words, "--json")
        document = documents.fits(words, out)
        if code == 0:
            rows = document if isinstance(document, list) else [document]
            assert all(row["installed"] is True for row in rows), err


@pytest.mark.parametrize("words", WITH_JSON, ids=" ".join)
@pytest.mark.parametrize("wrong", ["--nope", "--json=3"])
def test_a_wrong_option_is_told_in_json_too(run: Run, words: Sequence[str], wrong: str) -> None:
    code, out, err = run(*words, "--json", wrong)
    assert code == 2
    told = documents.fits(words, out)["error"]
    assert (told["code"], told["kind"]) == (2, "UsageError")
    assert told["message"] in err
    assert str(told["hint"]).endswith("--help")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("run", "nope.yaml"), 2),
        (("run", "bad.yaml"), 2),
        (("plan", "impossible.yaml"), 3),
        (("eval", "nope"), 8),
        (("measure", "nope"), 8),
        (("compare", "nope"), 8),
        (("serve", "nope"), 8),
        (("verify", "nope"), 8),
        (("init", "bad.yaml"), 2),
        (("batch", "empty"), 2),
        (("schedule", "export", "--cron", "empty"), 2),
        (("schedule", "export", "impossible.yaml"), 2),
        (("devices", "nope"), 3),
        (("backends", "show", "nope"), 3),
        (("toolchain", "install", "nope"), 4),
        (("toolchain", "path", "nope"), 4),
        (("runs", "show", "nope"), 8),
        (("runs", "logs", "nope"), 8),
        (("pin", "bad.yaml"), 2),
        (("pin", "nope.yaml"), 2),
        (("schema", "--check", "nope.json"), 2),
        (("schema", "--all", "--check", "nope"), 2),
        (("schema", "nope"), 2),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else str(words),
)
def test_a_failure_is_one_document_with_the_exit_code(
    run: Run,
    tmp_path: Path,
    words: Sequence[str],
    code: int,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.yaml").write_text("name: x\nname: y\n", "utf-8")
    impossible = "name: x\nsource: {builtin: tiny-phi3}\ndevice: intel-npu\nprecision: fp32\n"
    (tmp_path / "impossible.yaml").write_text(impossible, "utf-8")
    found, out, err = run(*words, "--json")
    assert found == code, err
    document = documents.fits(words, out)
    if isinstance(document, dict):
        assert document["error"]["code"] == code
        assert document["error"]["message"].splitlines()[0] in err
        assert document["error"]["problems"]
    assert err  # for people, as ever
    assert run(*words)[1] == ""  # and who asks for no JSON gets none


def test_a_place_is_file_line_and_column(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: X\nsorce: {}\nprecision: int3\ndevice: x\n", "utf-8")
    told = json.loads(run("plan", "bad.yaml", "--json")[1])["error"]
    assert told["place"] == {"file": "bad.yaml", "line": 1, "column": 1}
    places = [(one["line"], one["column"]) for one in told["problems"]]
    assert {(1, 7), (2, 1), (3, 12)} <= set(places)


def test_every_problem_of_validate_is_an_entry(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("name: X\nsorce: {}\nprecision: int3\ndevice: x\n", "utf-8")
    code, out, _ = run("validate", QUICKSTART, "bad.yaml", "nope.yaml", "--json")
    good, bad, missing = documents.fits(["validate"], out)
    assert code == 2
    assert (good["ok"], good["problems"]) == (True, [])
    assert good["builds"] == [
        {
            "name": "quickstart",
            "device": "cpu-x86_64",
            "unit": None,
            "backend": "onnxruntime",
            "precision": "int4",
        }
    ]
    assert [bad["ok"], missing["ok"]] == [False, False]
    assert {(p["file"], p["line"], p["column"]) for p in bad["problems"]} >= {
        ("bad.yaml", 1, 7),
        ("bad.yaml", 3, 12),
    }
    assert [(p["file"], p["line"]) for p in missing["problems"]] == [("nope.yaml", None)]


def test_plan_is_an_array_of_builds_that_say_what_they_are(run: Run) -> None:
    (one,) = documents.fits(["plan"], run("plan", QUICKSTART, "--json")[1])
    told = [
        one[key] for key in ("name", "device", "unit", "backend", "precision", "source", "refusal")
    ]
    assert told == ["quickstart", "cpu-x86_64", "cpu", "onnxruntime", "int4", "tiny-phi3", None]


def test_strict_plans_exit_where_run_would_refuse(
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run("plan", QUICKSTART, "--strict")[0] == 0
    monkeypatch.setenv("PHIPIPE_MEMORY_LIMIT_GIB", "0.01")
    code, out, err = run("plan", QUICKSTART)
    assert (code, "will run" in out) == (0, True)
    assert "run would refuse: `quickstart` does not fit this machine" in err
    code, out, err = run("plan", QUICKSTART, "--strict", "--json")
    assert code == 3
    assert "run would refuse: `quickstart` does not fit this machine" in err
    (one,) = documents.fits(["plan"], out)
    assert (one["refusal"]["code"], one["refusal"]["kind"]) == (6, "StepKilled")
    monkeypatch.setenv("PHIPIPE_PREFLIGHT", "off")  # then `run` refuses nothing
    code, out, err = run("plan", QUICKSTART, "--strict", "--json")
    assert (code, json.loads(out)[0]["refusal"]) == (0, None)
    assert "run would refuse" not in err


def test_what_builds_came_to_is_told_also_of_failed_ones(own_cache: Path) -> None:
    recipe: Any = SimpleNamespace(
        backend="torch", precision="int8", cache=SimpleNamespace(keep=None)
    )
    plans = [
        replace(
            made,
            device=device.load("cpu-x86_64"),
            build=SimpleNamespace(name=made.build.name, recipe=recipe),
        )  # type: ignore[arg-type]
        for made in (plan("a", step("x")), plan("b", step("x"), step("y", "x", fail=True)))
    ]
    store, settings = Store(own_cache), Settings(cache=own_cache, toolchains=own_cache)
    one = Manner(jobs=1)
    done = dispatch.attempt(plans, store, settings, Silent(), one)
    again = dispatch.attempt(plans[:1], store, settings, Silent(), one)
    rows = documents.fits(
        ["run"], json.dumps(output.plain([show.outcome_json(one) for one in [*done, *again]]))
    )
    assert [row["ok"] for row in rows] == [True, False, True]
    assert rows[1]["error"]["kind"] == "StepFailed"
    ((first,), (last,)) = rows[0]["steps"], rows[2]["steps"]
    assert first["seconds"] > 0
    assert (last["cached"], last["seconds"]) == (True, None)


def test_runs_are_told(run: Run, own_cache: Path) -> None:
    from testing.plans import recorded

    recorded(own_cache, plan("a", step("x"), step("y", "x", fail=True)))
    for words in (
        ("runs", "ls"),
        ("runs", "show", "latest"),
        ("runs", "logs", "latest"),
        ("cache", "ls"),
    ):
        code, out, err = run(*words, "--json")
        assert code == 0, err
        assert documents.fits(words, out)
    (row,) = json.loads(run("cache", "ls", "--json")[1])
    assert isinstance(row["size_bytes"], int)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", row["used"])


def test_a_bug_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ZeroDivisionError("on purpose")

    monkeypatch.setattr(help, "settings_of_user", broken)
    code, out, _ = run("doctor", "--json")
    assert code == 70
    told = documents.fits(["doctor"], out)["error"]
    assert told["code"] == 70
    Path(told["message"].split("report it with ")[1]).unlink()


def test_who_is_stopped_tells_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(help, "settings_of_user", stopped)
    code, out, _ = run("doctor", "--json")
    assert code == 130
    assert documents.fits(["doctor"], out)["error"]["kind"] == "Interrupted"


def test_nothing_is_added_to_a_document_that_was_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    answers.begin(["run", "--json"])
    answers.give([])
    answers.fail(output.error_of(SourceError("too late")))
    assert json.loads(capsys.readouterr().out) == []
    answers.begin(["run", "--", "--json"])  # a recipe of that name
    answers.fail(output.error_of(SourceError("nobody asked")))
    assert capsys.readouterr().out == ""


ODD = [Path("a"), "a\udcff", Path("\udc80")]


@examples(max_examples=50)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text()
        | st.sampled_from([Path("a"), "a\udcff", Path("\udc80")]),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
        max_leaves=12,
    )
)
def test_whatever_is_printed_is_json(value: Any) -> None:
    text = json.dumps(output.plain(value), allow_nan=False)
    assert json.loads(text) == output.plain(value)
    text.encode()
    json.dumps(output.plain(value), ensure_ascii=False).encode()  # no halves of surrogate pairs


@examples(max_examples=50)
@given(
    st.lists(
        st.builds(
            lambda kind, message, hint, places: kind(message, hint=hint, problems=places),
            st.sampled_from([RecipeError, TargetError, SourceError, StoreError]),
            st.text(min_size=1),
            st.none() | st.text(min_size=1),
            st.lists(
                st.builds(
                    Located, st.text(), st.builds(Place, st.text(), st.none() | st.integers(1, 9))
                )
            ),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_several_errors_are_one_that_says_them_all(errors: list[PhipipeError]) -> None:
    whole = failures.as_one(errors)
    assert whole.exit_code == max(error.exit_code for error in errors)
    assert type(whole) in kinds()
    told = output.plain(output.error_of(whole))
    for error in errors:
        assert error.message in whole.message
        assert error.hint is None or error.hint in f"{whole.message}{whole.hint}"
        said = [problem.message for problem in error.problems] or [error.message]
        assert {*said} <= {problem["message"] for problem in told["problems"]}
    assert documents.validator("plan").is_valid({"error": told})


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM that can be caught")
def test_a_process_that_is_terminated_leaves_its_document(tmp_path: Path) -> None:
    code = "import sys, time, phipipe.cli as c\nfrom phipipe.cli import help as cli_help\n"
    code += "def slow():\n    print('ready', file=sys.stderr, flush=True)\n    time.sleep(60)\n"
    code += "cli_help.settings_of_user = slow\nsys.argv = ['phipipe', 'doctor', '--json']\nc.main()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert documents.fits(["doctor"], out)["error"]["code"] == 143
