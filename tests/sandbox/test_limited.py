"""Strangers' templates and tokenizers: whatever they ask for, they get so much and no more, in one
sentence."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from testing.hostile_templates import ATTACKS, DEEP, deep, variations
from testing.places import TESTS

from phipipe.errors import PhipipeError, SourceError, StepKilled, ToolchainError
from phipipe.hub import take, taking
from phipipe.models import checkpoints
from phipipe.processes.children import python_command
from phipipe.sandbox import chat_templates, template_files, watch
from phipipe.sandbox.limited import Child, Opening, Raised
from phipipe.sandbox.watch import RENDER, Bounds
from phipipe.words import MIB

TINY = take.BUILTIN_MODELS["tiny-phi3"]
CHAT = [{"role": "user", "content": "Say hi."}]
LITTLE_S = 0.3  # what those that only compute are given here: the limit is the same kind of limit
TIMED = {
    "squaring",
    "nests",
    "nests_deep",
    "output",
    "macro_tree",
    "sort",
    "slice",
    "split",
    "lipsum",
    "cycle",
}
TIMED |= {"tojson", "sum", "counting", "power", "wordwrap", "urlize", "striptags"}
CHILD = python_command(Path(sys.executable), "from phipipe.sandbox.child import main; main()")


@contextlib.contextmanager
def renderer(template: str) -> Iterator[chat_templates.Renderer]:
    made = chat_templates.Renderer(template)
    try:
        yield made
    finally:
        made.close()


def asked(template: str, cpu_s: float) -> tuple[list[dict[str, Any]], int, float]:
    """What a child says to one template, how it ends, and the CPU time it took in all."""
    bounds = {"cpu_s": cpu_s, "memory": RENDER.memory, "reply": RENDER.reply}
    calls = [
        ("import", [["jinja2.sandbox"]]),
        ("open", ["phipipe.sandbox.jinja_templates:Template", [template], False]),
    ]
    requests = [
        {"id": i, "call": c, "arguments": a}
        for i, (c, a) in enumerate([*calls, ("render", [CHAT])])
    ]
    lines = "".join(
        json.dumps(request | (bounds if request["id"] else bounds | {"cpu_s": 60})) + "\n"
        for request in requests
    )
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(CHILD, input=lines, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [json.loads(line) for line in done.stdout.splitlines()], done.returncode, took


def test_there_are_enough_attacks() -> None:
    made = dict(variations())
    assert len(ATTACKS) >= 40
    assert len(made) >= 200
    assert len(set(made.values())) == len(made)


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the parent looks on, and limits")
@pytest.mark.parametrize("name", sorted(ATTACKS))
def test_a_template_that_attacks_gets_no_more_than_its_share(name: str) -> None:
    """By the child's own count: what it says of itself, and what the system says of it once it is
    gone."""
    cpu_s = LITTLE_S if name in TIMED else RENDER.cpu_s
    told, code, took = asked(ATTACKS[name], cpu_s)
    assert (
        took < 1.0 + 2 * cpu_s
    )  # of which starting takes up to 1 s; opening and rendering are one call each
    if code:
        assert signal.Signals(-code).name == "SIGPROF"
        assert name in TIMED
        return
    last = told[-1]
    assert last.keys() & {"over", "raised"}
    if sys.platform == "linux" and "peak" in last:
        assert last["peak"] - told[0]["value"]["VmHWM"] < RENDER.memory + 16 * MIB


@pytest.mark.full
@pytest.mark.parametrize("kind", DEEP)
@pytest.mark.parametrize("levels", [300, 3000, 30_000])
def test_a_deep_template_ends_no_process_of_ours(kind: str, levels: int) -> None:
    with renderer(deep(kind, levels)) as made:
        try:
            told = made.render(CHAT)
        except (SourceError, Raised) as refused:
            told = refused.message
        assert told.strip().count("\n") == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("text_times", "takes more than 256 MiB of memory"),
        ("macro", "calls itself without end"),
        ("range", "counts further than it may"),
        ("nests", "computes for more than 2 s"),
    ],
)
def test_a_refusal_says_what_it_took_too_much_of(name: str, words: str) -> None:
    with (
        renderer(ATTACKS[name]) as made,
        pytest.raises(SourceError, match=f"the package's chat template {words}"),
    ):
        made.render(CHAT)


def test_a_template_that_refuses_in_its_own_words_is_heard_and_the_next_chat_rendered() -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}ok"
    )
    with renderer(template) as made:
        with pytest.raises(Raised, match="no system role"):
            made.render([{"role": "system", "content": "x"}])
        assert made.render(CHAT) == "ok"


def test_after_a_refusal_the_next_call_gets_a_child_of_its_own() -> None:
    with renderer("{% if messages|length > 1 %}{{ 'A'*10**10 }}{% endif %}ok") as made:
        with pytest.raises(SourceError, match="MiB"):
            made.render([*CHAT, *CHAT])
        assert made.render(CHAT) == "ok"


def test_what_is_asked_and_answered_may_be_any_text() -> None:
    said = "ä\ud800\x00\u2028\n\"'{{ 7*7 }}🙂"
    with renderer(
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    ) as made:
        assert made.render([{"role": "user", "content": said}]) == said


def test_a_template_reads_no_file_and_changes_no_message() -> None:
    for attack in (
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include 'x' %}",
    ):
        with renderer(attack) as made, pytest.raises(Raised):
            made.render(CHAT)


# -- how a child ends
# -----------------------------------------------------------------------------------------


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals")


class Odd:
    """In the child: an object that ends as its method says."""

    def facts(self) -> dict[str, int]:
        return {"answer": 42}

    def end(self, name: str) -> None:
        os.kill(os.getpid(), getattr(signal, name))

    def stop(self, code: int) -> None:
        os._exit(code)

    def wait(self) -> None:
        signal.pause()

    def long(self, length: int) -> str:
        return "x" * length


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[Child]:
    here = (str(Path(__file__).parent), str(TESTS))  # this module, and what it imports
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(here))
    child = Child(Opening("test_limited:Odd", imports=("test_limited",), whose="checkpoint"))
    yield child
    child.close()


SMALL = Bounds(cpu_s=1, memory=64 * MIB, reply=1000)


@POSIX
@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("SIGSEGV", SourceError, "makes the program that reads it crash (SIGSEGV)"),
        ("SIGABRT", SourceError, "makes the program that reads it crash (SIGABRT)"),
        ("SIGKILL", StepKilled, "most likely the system ran out of memory"),
        ("SIGTERM", StepKilled, "was ended by SIGTERM"),
        ("SIGPROF", SourceError, "computes for more than 1 s"),
    ],
)
def test_however_a_child_dies_it_is_a_sentence(
    odd: Child, name: str, kind: type[PhipipeError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        odd.call("end", name, bounds=SMALL, what="tokenizer")
    assert words in caught.value.message
    assert "the checkpoint's tokenizer" in caught.value.message
    assert odd.call("long", 3, bounds=SMALL, what="tokenizer") == "xxx"


def test_an_answer_too_long_is_refused(odd: Child) -> None:
    assert len(odd.call("long", 1000, bounds=SMALL, what="tokenizer")) == 1000
    with pytest.raises(SourceError, match="makes more than 1000 characters"):
        odd.call("long", 1001, bounds=SMALL, what="tokenizer")


@POSIX
def test_one_that_sleeps_is_ended_too(odd: Child, monkeypatch: pytest.MonkeyPatch) -> None:
    odd.start()
    monkeypatch.setattr(watch, "WALL_S", 0.1)
    with pytest.raises(SourceError, match="gave no answer within"):
        odd.call("wait", bounds=Bounds(cpu_s=0.01, memory=MIB), what="tokenizer")


def test_a_child_that_is_asked_for_something_private_or_unknown_says_no(odd: Child) -> None:
    for name in ("_sizes", "nothing"):
        with pytest.raises(Raised):
            odd.call(name, bounds=SMALL, what="tokenizer")


def test_a_library_that_is_missing_is_an_import_error(odd: Child) -> None:
    with pytest.raises(ImportError, match="no_such_library"):
        Child(Opening("test_limited:Odd", imports=("no_such_library",))).start()


def test_a_python_that_cannot_run_is_a_damaged_toolchain(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(ToolchainError, match="cannot be started"):
        Child(Opening("test_limited:Odd")).start()


@POSIX
def test_nothing_of_a_child_stays_when_nobody_has_it_any_more() -> None:
    made = chat_templates.Renderer("x")
    made.render(CHAT)
    pid = made._child.pid
    assert pid is not None
    del made
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# -- checkpoints
# ----------------------------------------------------------------------------------------------


def checkpoint(folder: Path, template: str | None = None, **settings: Any) -> Path:
    """The tiny model's small files, with another chat template."""
    folder.mkdir()
    for name in checkpoints.files(TINY):
        shutil.copyfile(TINY / name, folder / name)
    if template is not None:
        told = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
        (folder / "tokenizer_config.json").write_text(
            json.dumps(told | {"chat_template": template} | settings), "utf-8"
        )
        (folder / "chat_template.jinja").unlink(missing_ok=True)
    return folder


def test_the_source_step_refuses_a_template_that_attacks(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source", "{{ 'A'*10000000000 }}")
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match="the checkpoint's chat template takes more than 256 MiB"):
        taking.take({"files": source}, tmp_path / "out", {"files": checkpoints.files(source)})


@pytest.mark.parametrize(
    "fields",
    [
        {
            "chat_template": [
                {"name": "default", "template": "ok"},
                {"name": "tool_use", "template": "{{ 'A'*10**10 }}"},
            ]
        },
        {
            "chat_template": {
                "default": "ok",
                "rag": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
            }
        },
        {"chat_template": "{{ messages.append(1) }}"},
        {"chat_template": "{% for %}"},
        {"chat_template": "{# " + "x" * template_files.MAX_LENGTH + " #}"},
    ],
    ids=("list", "dict", "unsafe", "syntax", "long"),
)
def test_every_template_of_a_checkpoint_is_tried(fields: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields), "utf-8")
    with pytest.raises(SourceError, match="chat template"):
        chat_templates.check(tmp_path)


@pytest.mark.parametrize("name", ["chat_template.jinja", f"{template_files.NAMED}/tools.jinja"])
def test_templates_in_files_of_their_own_are_tried(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("{{ 'A'*10**10 }}", "utf-8")
    with pytest.raises(SourceError, match="takes more than 256 MiB"):
        chat_templates.check(tmp_path)


def test_an_ordinary_template_passes_even_if_it_knows_no_system_message(tmp_path: Path) -> None:
    chat_templates.check(checkpoint(tmp_path / "own"))
    chat_templates.check(checkpoint(tmp_path / "strict", "{{ raise_exception('never') }}"))
    chat_templates.check(
        checkpoint(
            tmp_path / "dated", "{{ strftime_now('%d %b %Y') }}{{ messages|tojson(indent=2) }}"
        )
    )


# -- tokenizers
# -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "value"),
    [
        (
            "pre_tokenizer",
            {
                "type": "Split",
                "pattern": {"Regex": "(a|a)+$|(a+a+)+b|((a+)+)+c"},
                "behavior": "Isolated",
                "invert": False,
            },
        ),
        (
            "normalizer",
            {
                "type": "Sequence",
                "normalizers": [
                    {"type": "Replace", "pattern": {"Regex": "."}, "content": "aa" * 50}
                ]
                * 12,
            },
        ),
        (
            "decoder",
            {
                "type": "Sequence",
                "decoders": [{"type": "Replace", "pattern": {"Regex": "."}, "content": "aa" * 50}]
                * 12,
            },
        ),
    ],
    ids=("regex", "replace", "decoder"),
)
def test_a_tokenizer_that_attacks_is_refused(
    part: str, value: Any, tmp_path: Path, python_of: Callable[[str], Path]
) -> None:
    folder = checkpoint(tmp_path / "source")
    told = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    (folder / "tokenizer.json").write_text(json.dumps(told | {part: value}), "utf-8")
    call = (
        "import sys; from pathlib import Path; from phipipe import errors; "
        "from phipipe.models import tokenizer as t\n"
        "try: tokenizer = t.of_source(Path(sys.argv[1])); tokenizer.encode('a' * 60 + '!'); "
        "print('ok')\n"
        "except errors.PhipipeError as e: print(type(e).__name__, e.message)"
    )
    done = subprocess.run(
        python_command(python_of("torch"), call, str(folder)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("SourceError the checkpoint's tokenizer"), done.stdout
