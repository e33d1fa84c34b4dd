"""What original and artifact are asked, and what is made of their answers: with models that say
what a test wants."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from phipipe.errors import GateFailed, SourceError
from phipipe.evaluate import gates, generation, reports
from phipipe.evaluate.answer_reports import Answers, Questions
from phipipe.sandbox.limited import Raised

END = 2
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object"}}}
USER = {"role": "user", "content": "Hi"}
PARAMS = {"new_tokens": 32, "context": 4096, "limit": None, "strict": False}


class Words:
    """A tokenizer of one id per character; its template shows tools as ``style`` says."""

    def __init__(self, style: str = "variable", template: str | None = "some") -> None:
        self.style = style
        self.facts = {"chat_template": template}

    def encode(self, text: str) -> list[int]:
        return [ord(c) for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids if i > END)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        ask: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        if any(message["content"] == "refuse" for message in messages):
            raise Raised("no \x1b such chats", kind="TemplateError")
        text = "".join(f"<{m['role']}>{m['content']}" for m in messages)
        if self.style == "variable" and tools:
            text = f"[{json.dumps(list(tools))}]{text}"
        elif self.style == "message":
            text = "".join(str(m.get("tools", "")) for m in messages) + text
        elif self.style == "refuses" and tools:
            raise Raised("no tools", kind="TemplateError")
        return text


def coded(text: str, end: bool = True) -> list[int]:
    return [ord(c) for c in text] + ([END] if end else [])


class Model:
    """Answers by what a prompt ends with; counts what is asked for."""

    def __init__(self, answers: Mapping[str, list[int]]) -> None:
        self.answers, self.limits = answers, list[int]()

    def generate(self, prompts: Sequence[Sequence[int]], limit: int) -> list[list[int]]:
        return [list(self.said(prompt, limit)) for prompt in prompts]

    def said(self, prompt: Sequence[int], limit: int) -> Iterator[int]:
        self.limits.append(limit)
        text = "".join(map(chr, prompt))
        answer = next(said for key, said in self.answers.items() if text.endswith(key))
        yield from answer[:limit]


class Bench:
    """Runs both steps on a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.patch = folder, monkeypatch
        for name in ("source", "prompts", "questions", "answers"):
            (folder / name).mkdir()
        (folder / "source" / "config.json").write_text(json.dumps({"eos_token_id": END}))

    def original(
        self,
        chats: Sequence[Mapping[str, Any]],
        said: Mapping[str, list[int]],
        words: Words | None = None,
        **params: Any,
    ) -> Questions:
        text = "".join(json.dumps(chat) + "\n" for chat in chats)
        (self.folder / "prompts" / "p.jsonl").write_text(text)
        tokenizer = SimpleNamespace(of_source=lambda folder: words or Words())
        self.patch.setattr(generation, "transformers_tokenizer", tokenizer)
        self.patch.setattr(generation.original, "load", lambda folder: Model(said))
        inputs = {name: self.folder / name for name in ("source", "prompts")}
        generation.ask_original(inputs, self.folder / "questions", PARAMS | params)
        return reports.read(Questions, self.folder / "questions")

    def build(self, said: Mapping[str, list[int]], **params: Any) -> tuple[Answers, Model]:
        model = Model(said)
        runtime = SimpleNamespace(generate=model.said, close=lambda: None)
        face = SimpleNamespace(to_answer=lambda *_: runtime, tokenizer=lambda _: Words())
        self.patch.setattr(generation.backends, "load", lambda name: face)
        inputs = {"artifact": self.folder, "questions": self.folder / "questions"}
        given = {"backend": "torch", "context": 4096, "strict": False, **params}
        generation.ask_build(inputs, self.folder / "answers", given)
        return reports.read(Answers, self.folder / "answers"), model


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def chat(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def test_a_build_that_never_ends_is_seen_however_close_it_is(bench: Bench) -> None:
    chats = [chat("one"), chat("two"), chat("three"), chat("four")]
    said = {"one": coded("yes"), "two": coded("no"), "three": coded("ab" * 30, end=False)}
    said["four"] = coded("fine")
    bench.original(chats, said)
    worse = {**said, "two": coded("no" * 60, end=False), "four": coded("Fine")}
    told, model = bench.build(worse)
    assert told.metrics["ended"] == pytest.approx(2 / 3)
    assert told.metrics["loops"] == pytest.approx(1 / 3)
    assert told.metrics["answer_flips"] == 0.25
    assert told.failed == {"ended": [2], "loops": [2], "answer_flips": [4]}
    assert told.original == {"ended": 3, "loops": 1, "empty": 0}
    assert model.limits == [64, 64, 32, 64]  # twice as long where the original ends
    assert told.replies[1].original == "no"
    assert told.replies[1].text == "no" * 32


def test_the_original_beside_itself_passes_every_gate(bench: Bench) -> None:
    said = {"one": coded("yes"), "two": coded("ha" * 40, end=False), "three": [END]}
    bench.original([chat("one"), chat("two"), chat("three")], said)
    told, _ = bench.build(said)
    perfect = {"ended": 1.0, "loops": 0.0, "empty": 0.0, "answer_flips": 0.0}
    assert {name: told.metrics[name] for name in perfect} == perfect


def test_a_longer_wording_may_take_twice_as_long(bench: Bench) -> None:
    bench.original([chat("one")], {"one": coded("x" * 31)})
    told, _ = bench.build({"one": coded("y" * 63)})
    assert told.metrics["ended"] == 1.0
    told, _ = bench.build({"one": coded("y" * 64)})
    assert told.metrics["ended"] == 0.0


CALL = '{"name": "now", "arguments": {}}'


@pytest.mark.parametrize("style", ["variable", "message"])
def test_tools_reach_the_model_in_the_way_that_its_template_knows(bench: Bench, style: str) -> None:
    told = bench.original([chat("one", tools=[TOOL])], {"one": coded(CALL)}, Words(style))
    assert '"now"' in told.questions[0].rendered
    assert not told.without_tools
    good, _ = bench.build({"one": coded(CALL)})
    assert good.metrics["tool_json_valid"] == 1.0
    assert good.original["calls"] == 1
    bad, _ = bench.build({"one": coded(CALL[:-1])})
    assert bad.metrics["tool_json_valid"] == 0.0
    assert bad.failed["tool_json_valid"] == [1]


@pytest.mark.parametrize("style", ["none", "refuses"])
def test_tools_that_a_template_does_not_show_are_said_and_judge_nothing(
    bench: Bench, style: str
) -> None:
    told = bench.original([chat("one", tools=[TOOL])], {"one": coded("no")}, Words(style))
    assert [note.line for note in told.without_tools] == [1]
    answers, _ = bench.build({"one": coded("no")})
    assert "tool_json_valid" not in answers.metrics
    assert answers.without_tools[0].why == "the original's chat template shows no tools"


def test_a_prompt_of_ours_that_cannot_be_asked_is_left_out(bench: Bench) -> None:
    chats = [chat("one"), chat("refuse"), chat("x" * 5000 + "one")]
    told = bench.original(chats, {"one": coded("yes")})
    assert [note.line for note in told.left_out] == [2, 3]
    assert "refuses it: no \\x1b such chats" in told.left_out[0].why
    assert "has 5,009 tokens, and a context of 4,096 has 4,032 beside" in told.left_out[1].why
    answers, _ = bench.build({"one": coded("yes")})
    assert (answers.prompts, len(answers.left_out)) == (1, 2)


@pytest.mark.parametrize("text", ["refuse", "x" * 5000 + "one"])
def test_a_prompt_of_the_users_that_cannot_be_asked_is_an_error(bench: Bench, text: str) -> None:
    with pytest.raises(SourceError, match="the prompt in line 2 cannot be asked") as caught:
        bench.original([chat("one"), chat(text)], {"one": coded("yes")}, strict=True)
    assert "new_tokens" in (caught.value.hint or "")


def test_a_cache_that_is_too_short_for_one_prompt_asks_the_others(bench: Bench) -> None:
    said = {"one": coded("yes")}
    bench.original([chat("one"), chat("x" * 200 + "one")], said)
    told, _ = bench.build(said, context=128)
    assert (told.prompts, [note.line for note in told.left_out]) == (1, [2])
    with pytest.raises(SourceError, match="line 2 cannot be asked"):
        bench.build(said, context=128, strict=True)
    with pytest.raises(SourceError, match="no prompt can be asked"):
        bench.build(said, context=64)


def test_a_model_without_a_chat_template_cannot_be_asked(bench: Bench) -> None:
    with pytest.raises(SourceError, match="has no chat template"):
        bench.original([chat("one")], {}, Words(template=None))


def test_only_the_first_prompts_are_asked_where_there_is_a_limit(bench: Bench) -> None:
    said = {"one": coded("a"), "two": coded("b")}
    told = bench.original([chat("one"), chat("two")], said, limit=1)
    assert [question.line for question in told.questions] == [1]


def test_long_lists_go_through_the_original_in_parts() -> None:
    model = Model({"": coded("a")})
    asked = [[1] * 9000, [1] * 9000, [1] * 10]
    assert len(list(generation._answered(model, asked, 8))) == 3
    assert len(model.limits) == 3


def gated(bench: Bench, **limits: dict[str, float]) -> None:
    inputs = {"answers": bench.folder / "answers"}
    for name, content in (
        ("metrics", {"metrics": {"kld_mean": 0.001}, "sanity": {}}),
        ("speed", {"metrics": {}}),
    ):
        inputs[name] = bench.folder / name
        inputs[name].mkdir()
        (inputs[name] / f"{name}.json").write_text(json.dumps(content))
    gates.check_gates(inputs, bench.folder, {"gates": limits})


def test_a_gate_on_answers_stops_a_build_that_fidelity_lets_pass(bench: Bench) -> None:
    bench.original([chat("one")], {"one": coded("yes")})
    bench.build({"one": coded("yes" * 60, end=False)})
    with pytest.raises(GateFailed, match=r"`ended` is 0, the recipe wants min 0\.9"):
        gated(bench, kld_mean={"max": 0.01}, ended={"min": 0.9})
