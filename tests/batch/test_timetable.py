"""Batches on other engines' timetables, and who is told when one has ended."""

from __future__ import annotations

import ast
import datetime
import http.server
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st
from testing.places import QUICKSTART
from testing.shell import Run

from phipipe.batch import hooks, origin, timetable
from phipipe.batch.timetable import Job
from phipipe.errors import RecipeError, StoreError
from phipipe.steps import Json

WORDS = ("batch", "recipes", "--tag", 'it\'s 100 % "mine" $HOME', "--out", "out")


def job(at: str = "0 2 * * *", folder: Path = Path("/srv/a b")) -> Job:
    program = [sys.executable, "-m", "phipipe"]
    return Job(name="nightly", at=at, words=WORDS, program=program, folder=folder, out=Path("out"))


def test_cron_gets_one_line_that_a_shell_takes_apart_again() -> None:
    (text,) = timetable.files("cron", job()).values()
    (line,) = [line for line in text.splitlines() if not line.startswith("#")]
    fields, command = line.split(maxsplit=5)[:5], line.split(maxsplit=5)[5]
    assert " ".join(fields) == "0 2 * * *"
    assert not re.search(r"(?<!\\)%", command)  # cron would end the command there
    words = shlex.split(command.replace("\\%", "%"))
    assert words[:3] == ["cd", str(Path("/srv/a b")), "&&"]
    assert words[3 : words.index(">>")] == job().command


def test_a_workflow_is_valid_yaml_and_runs_the_batch() -> None:
    ((path, text),) = timetable.files("github-actions", job()).items()
    assert path == ".github/workflows/phipipe-nightly.yml"
    told = yaml.safe_load(text)
    assert told[True]["schedule"] == [{"cron": "0 2 * * *"}]  # YAML 1.1 takes `on` for true
    steps = told["jobs"]["batch"]["steps"]
    assert shlex.split(next(s["run"] for s in steps if "batch" in s.get("run", ""))) == [
        "phipipe",
        *WORDS,
    ]
    assert steps[-1]["with"]["path"] == "out"
    (kept,) = [s["with"]["path"].split() for s in steps if "cache" in s.get("uses", "")]
    assert kept == [".phipipe", "out"]  # without the latter there is nothing to compare with
    assert told["jobs"]["batch"]["env"]["HF_TOKEN"] == "${{ secrets.HF_TOKEN }}"


def export(run: Run, *words: str) -> tuple[int, str, str]:
    return run("schedule", "export", "--github-actions", QUICKSTART, *words)


def installs(text: str) -> list[str]:
    """What the workflow gives pip to install."""
    steps = yaml.safe_load(text)["jobs"]["batch"]["steps"]
    return [
        shlex.split(step["run"])[2]
        for step in steps
        if step.get("run", "").startswith("pip install")
    ]


def test_a_workflow_installs_what_the_user_says_and_nothing_else(run: Run) -> None:
    wanted = "phipipe @ git+https://git.example.com/me/phipipe@v1.2"
    code, out, _ = export(run, "--install", wanted)
    assert (code, installs(out)) == (0, [wanted])
    _, out, _ = export(run, "--install", "./vendor/phipipe", "--on", "dask://host:8786")
    assert installs(out) == ["./vendor/phipipe[dask]"]


def came_from(monkeypatch: pytest.MonkeyPatch, told: dict[str, Json]) -> None:
    """Let the installation of phipipe say ``told``; what other packages say stays, since a library
    may look at them while it is imported."""

    class Told(importlib.metadata.PathDistribution):
        def read_text(self, filename: str | os.PathLike[str]) -> str:
            return json.dumps(told)

    real = importlib.metadata.distribution
    monkeypatch.setattr(
        importlib.metadata,
        "distribution",
        lambda name: Told(Path()) if name == "phipipe" else real(name),
    )


def test_a_workflow_without_an_origin_is_refused_not_guessed(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    came_from(monkeypatch, {})
    code, out, err = export(run)
    assert (code, out) == (2, "")
    assert "--install 'phipipe @ git+https://" in err


def test_a_workflow_installs_the_commit_that_this_phipipe_came_from(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"url": "https://git.example.com/p.git", "vcs_info": {"commit_id": "0a1b"}}
    came_from(monkeypatch, told)
    assert installs(export(run)[1]) == ["phipipe @ git+https://git.example.com/p.git@0a1b"]


def test_who_starts_this_machines_phipipe_installs_none(run: Run) -> None:
    code, _, err = run("schedule", "export", "--cron", QUICKSTART, "--install", "phipipe==1")
    assert code == 2
    assert "no --install" in err


@pytest.mark.parametrize(
    ("given_", "extras", "word"),
    [
        ("git+ssh://git@host/p@v1", set(), "phipipe @ git+ssh://git@host/p@v1"),
        ("git+https://host/p@v1", {"dask"}, "phipipe[dask] @ git+https://host/p@v1"),
        ("phipipe @ https://host/p.whl", {"dask"}, "phipipe[dask] @ https://host/p.whl"),
        ("phipipe[otel] @ file:///p", {"dask"}, "phipipe[dask,otel] @ file:///p"),
        ("phipipe==1.2", {"dask"}, "phipipe[dask]==1.2"),
        (".", {"dask"}, ".[dask]"),
    ],
)
def test_extras_join_whatever_names_phipipe(given_: str, extras: set[str], word: str) -> None:
    assert origin.requirement(given_, frozenset(extras)) == word


@pytest.mark.parametrize("given_", ["", "  ", "-r x", "--index-url=x", "a\nb", "a\x1bb"])
def test_what_is_no_requirement_is_refused(given_: str) -> None:
    with pytest.raises(RecipeError, match="nothing that pip installs"):
        origin.requirement(given_)


def test_a_dag_is_valid_python_and_runs_the_batch() -> None:
    ((path, text),) = timetable.files("airflow", job()).items()
    assert path == "phipipe_nightly.py"
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    given_ = {
        k.arg: k.value.value
        for call in calls
        for k in call.keywords
        if isinstance(k.value, ast.Constant)
    }
    assert given_["schedule"] == "0 2 * * *"
    assert shlex.split(given_["bash_command"]) == job().command
    assert not given_["bash_command"].endswith(".sh")
    assert (given_["max_active_runs"], given_["catchup"], given_["retries"]) == (1, False, 0)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is Linux's")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    for path, text in timetable.files("systemd", job(folder=tmp_path)).items():
        (tmp_path / path).write_text(text, "utf-8")
    units = sorted(str(path) for path in tmp_path.glob("phipipe-*"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "phipipe-nightly" not in done.stderr, done.stderr


fields = st.tuples(
    st.sampled_from(["0", "*/15", "5,35", "10-40/10", "*"]),
    st.sampled_from(["2", "*/6", "9-17", "*"]),
    st.sampled_from(["*", "1", "1,15", "*/10"]),
    st.sampled_from(["*", "1", "3-5", "*/4"]),
    st.sampled_from(["*", "0", "7", "1-5", "MON,WED"]),
).filter(lambda f: f[2] == "*" or f[4] == "*")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is Linux's")
@given(fields)
def test_systemd_means_the_same_times(parts: tuple[str, ...]) -> None:
    at = " ".join(parts)
    base = datetime.datetime(2026, 1, 1, 0, 0, 30)
    command = ["systemd-analyze", "calendar", "--iterations=4", f"--base-time={base} UTC"]
    done = subprocess.run(
        [*command, f"{timetable.on_calendar(at)} UTC"],
        capture_output=True,
        text=True,
        check=True,
        env={"TZ": "UTC"},
    )
    found = re.findall(
        r"(?:Next elapse|Iteration #\d+|Iter\. #\d+): \w+ (\S+ \S+) UTC", done.stdout
    )
    expected = CronSim(at, base)
    assert found == [f"{next(expected):%Y-%m-%d %H:%M:%S}" for _ in range(4)]


@pytest.mark.parametrize(
    ("at", "wrong"),
    [
        ("61 * * * *", "minute"),
        ("0 25 * * *", "hour"),
        ("0 2 31 2 *", "day-of-month"),
        ("0 2 * * 8", "day-of-week"),
        ("0 2 * *", "five"),
        ("0 0 2 * * *", "five"),
        ("@daily", "five"),
        ("", "five"),
    ],
)
def test_what_is_wrong_with_an_expression_is_said(at: str, wrong: str) -> None:
    with pytest.raises(RecipeError, match=wrong) as error:
        timetable.parse(at)
    assert "0 2 * * *" in str(error.value.hint)


@pytest.mark.parametrize("at", ["0 0 1 * 7", "0 0 L * *", "0 0 * * 5#2"])
def test_what_systemd_cannot_say_is_refused(at: str) -> None:
    assert timetable.files("cron", job(at))
    with pytest.raises(RecipeError, match="systemd"):
        timetable.files("systemd", job(at))


def test_only_files_of_ours_are_written_again(tmp_path: Path) -> None:
    made = timetable.files("systemd", job())
    assert timetable.write(made, tmp_path) == timetable.write(made, tmp_path)
    (tmp_path / "phipipe-nightly.timer").write_text("mine", "utf-8")
    (tmp_path / "phipipe-nightly.service").unlink()
    with pytest.raises(StoreError, match="timer"):
        timetable.write(made, tmp_path)
    assert (tmp_path / "phipipe-nightly.timer").read_text("utf-8") == "mine"
    assert not (tmp_path / "phipipe-nightly.service").exists()


@pytest.mark.parametrize("kind", list(timetable.FORMATS))
def test_export_prints_and_writes(run: Run, tmp_path: Path, kind: str) -> None:
    words = (
        "schedule",
        "export",
        f"--{kind}",
        QUICKSTART,
        "--at",
        "30 1 * * 1-5",
        "--device",
        "cpu-*",
        *(["--install", "."] if kind == "github-actions" else []),
    )
    code, out, err = run(*words)
    assert code == 0
    assert "01:30" in err
    assert "1 build today" in err
    assert "--device" in out
    assert run(*words, "--write", tmp_path)[0] == 0
    for path in timetable.FORMATS[kind]("nightly"):
        assert (tmp_path / path).read_text("utf-8").rstrip("\n") in out


@pytest.mark.parametrize("kind", ["cron", "systemd", "airflow"])
def test_engines_with_an_empty_environment_get_our_settings_and_all_options(
    run: Run,
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("PHIPIPE_REMOTE", "s3://farm/results")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    words = (
        "--on",
        "dask://farm:8786",
        "--on-finish",
        "./tell",
        "--keep",
        "5",
        "--fail-fast",
        "--jobs",
        "2",
    )
    code, out, _ = run("schedule", "export", f"--{kind}", QUICKSTART, *words)
    assert code == 0
    line = next(line for line in out.splitlines() if "dask://farm:8786" in line)
    assert "hush" not in out
    found = [word.strip("'\",") for word in line.split()]
    for word in (
        *words,
        "/usr/bin/env",
        "PHIPIPE_REMOTE=s3://farm/results",
        f"PHIPIPE_CACHE={tmp_path / 'cache'}",
    ):
        assert any(word in one for one in found), word


def test_mistakes_of_export_end_with_2(run: Run) -> None:
    for words in (
        [QUICKSTART],
        ["--cron", QUICKSTART, "--at", "often"],
        ["--cron", QUICKSTART, "--job", "a b"],
    ):
        code, out, err = run("schedule", "export", *words)
        assert (code, out) == (2, "")
        assert err
    code, out, _ = run("schedule", "export", "--cron", QUICKSTART, "--device", "none")
    assert (code, out) == (2, "")


class Receiver(http.server.BaseHTTPRequestHandler):
    answer = 204
    got: ClassVar[list[tuple[str, Any]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.got.append((str(self.headers["X-Phipipe-Exit-Code"]), json.loads(body)))
        self.send_response(self.answer)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    Receiver.got.clear()
    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://user:hunter2@127.0.0.1:{server.server_port}/secret?token=hunter2"
    server.shutdown()
    server.server_close()


@pytest.fixture
def summary(tmp_path: Path) -> Path:
    (tmp_path / "batch.json").write_text('{"version": 1}', "utf-8")
    return tmp_path / "batch.json"


def test_a_url_gets_the_summary(url: str, summary: Path) -> None:
    plain = url.replace("user:hunter2@", "")
    assert hooks.tell(plain, summary, 7) is None
    assert Receiver.got == [("7", {"version": 1})]


def test_a_url_that_fails_is_named_without_its_secrets(
    url: str, summary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Receiver, "answer", 500)
    plain = url.replace("user:hunter2@", "")
    for hook in (plain, "http://127.0.0.1:9/secret?token=hunter2", url):
        said = hooks.tell(hook, summary, 0)
        assert said is not None
        assert "127.0.0.1" in said
        assert "hunter2" not in said
        assert "secret" not in said


def test_a_command_gets_the_summarys_path(summary: Path, tmp_path: Path) -> None:
    script = tmp_path / "the hook.py"
    script.write_text(
        "import os, sys; open(sys.argv[1] + '.seen', 'w').write(os.environ['PHIPIPE_EXIT_CODE'])",
        "utf-8",
    )
    assert hooks.tell(f'"{sys.executable}" "{script}"', summary, 7) is None
    assert (tmp_path / "batch.json.seen").read_text() == "7"


@pytest.mark.parametrize(
    ("hook", "said"), [("no-such-program", "does not start"), ("", "does not start")]
)
def test_a_command_that_fails_is_said(summary: Path, hook: str, said: str) -> None:
    assert said in str(hooks.tell(hook, summary, 0))
    failing = f'"{sys.executable}" -c "raise SystemExit(3)"'
    assert "exit code 3" in str(hooks.tell(failing, summary, 0))


@pytest.mark.parametrize("hook", ["no-such-program", "no-such-program --with 'words'", "", "'open"])
def test_a_command_that_cannot_start_is_known_before_the_batch(hook: str) -> None:
    assert "start" in str(hooks.doubt(hook))
    assert hooks.doubt(f'"{sys.executable}" -c pass') is None
    assert hooks.doubt("https://ci.example/hook") is None
