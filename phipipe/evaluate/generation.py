"""Chats that the original and an artifact answer, greedily: what decides where fidelity only
screens.

The original's chat template renders every prompt, and its tokenizer reads it; an artifact gets the
same ids. The original writes at most ``new_tokens``. Where it ends by itself, an artifact may take
twice as many before its answer counts as one that does not: another wording may be longer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from phipipe import backends, progress
from phipipe.errors import SourceError
from phipipe.evaluate import answers, calls, original, reports
from phipipe.evaluate.answer_reports import Answers, LeftOut, Question, Questions, Reply
from phipipe.evaluate.answers import Judged
from phipipe.files.json_files import shown
from phipipe.models import prompts, stop_tokens, tool_prompts
from phipipe.models import tokenizer as transformers_tokenizer
from phipipe.models.layerwise_memory import ANSWERED_TOGETHER
from phipipe.models.prompts import Prompt
from phipipe.sandbox.limited import Raised
from phipipe.sandbox.tokenizer import LimitedTokenizer
from phipipe.steps import Inputs, Json, Params

ROOM = 2  # times ``new_tokens`` that an answer may take which the original ends
SHORTER = "change the prompts, lower `evaluate.generate.new_tokens`, or raise `context`"
IGNORED = "the original's chat template shows no tools"


def ask_original(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: the original's answers to prompts.

    ``inputs``: source, prompts. ``params``: new_tokens; context, of prompt and answer together;
    limit, how many prompts from the first (None: all); strict, whether one that cannot be asked is
    an error. Writes ``questions.json``.

    Raises:
        SourceError: the original has no chat template, or no prompt can be asked; ``strict``: one
            is too long, or the template refuses it.
    """
    (path,) = (one for one in inputs["prompts"].iterdir() if one.is_file())
    tokenizer = transformers_tokenizer.of_source(inputs["source"])
    if not tokenizer.facts["chat_template"]:
        raise SourceError(
            "the original has no chat template, and `evaluate.generate` asks it in chats",
            hint="take `evaluate.generate` out, or build a model that was trained on chats",
        )
    new_tokens, notes = int(params["new_tokens"]), _Notes()
    asked = list(_askable(tokenizer, prompts.read(path)[: params["limit"]], params, notes))
    if not asked:
        raise SourceError(f"no prompt can be asked: {notes.left_out[0].why}", hint=SHORTER)
    config = json.loads((inputs["source"] / "config.json").read_text("utf-8"))
    model = original.load(inputs["source"])
    answered = _answered(model, [question["ids"] for question in asked], new_tokens)
    report = Questions(
        new_tokens=new_tokens,
        ends=stop_tokens.known(inputs["source"], config),
        questions=[
            Question(answer=answer, text=tokenizer.decode(answer), **question)
            for question, answer in zip(asked, answered, strict=True)
        ],
        left_out=notes.left_out,
        without_tools=notes.without_tools,
    )
    reports.write_in_order(out / report.FILE, report.as_json())


@dataclass
class _Notes:
    """What became of prompts that were not asked as they stand."""

    left_out: list[LeftOut] = field(default_factory=list)
    without_tools: list[LeftOut] = field(default_factory=list)


def _askable(
    tokenizer: LimitedTokenizer, chats: Sequence[Prompt], params: Params, notes: _Notes
) -> Iterator[dict[str, Json]]:
    """The prompts as a ``Question`` has them; what cannot be asked is noted."""
    for chat in chats:
        try:
            text, tools = tool_prompts.rendered(tokenizer, chat.messages, chat.tools)
            ids = tokenizer.encode(text)
            why = _too_long(ids, int(params["new_tokens"]), int(params["context"]))
        except Raised as refusal:
            why = f"the original's chat template refuses it: {shown(refusal.message)}"
        if why:
            notes.left_out.append(_left_out(chat.line, why, params))
            continue
        if chat.tools and not tools:
            notes.without_tools.append(LeftOut(line=chat.line, why=IGNORED))
        yield {"line": chat.line, "rendered": text, "ids": ids, "tools": tools}


def _too_long(ids: Sequence[int], new_tokens: int, context: int) -> str:
    """Why a prompt and its answer do not fit into ``context`` tokens; empty where they do."""
    most = context - ROOM * new_tokens
    if len(ids) <= most:
        return ""
    return (
        f"it has {len(ids):,} tokens, and a context of {context:,} has {max(most, 0):,} beside an "
        f"answer of {ROOM * new_tokens:,}"
    )


def _left_out(line: int, why: str, params: Params) -> LeftOut:
    """The note on a prompt that is not asked.

    Raises:
        SourceError: the user chose it.
    """
    if params["strict"]:
        raise SourceError(f"the prompt in line {line} cannot be asked: {why}", hint=SHORTER)
    return LeftOut(line=line, why=why)


def _answered(
    model: original.Original, prompts: Sequence[Sequence[int]], limit: int
) -> list[list[int]]:
    """The model's greedy answers: to as many prompts of like length at once as their states fit
    into memory."""
    answers: list[list[int]] = [[] for _ in prompts]
    together: list[int] = []
    by_length = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for i, following in zip(by_length, [*by_length[1:], None], strict=True):
        together.append(i)
        if (
            following is None
            or (len(together) + 1) * (len(prompts[following]) + limit) > ANSWERED_TOGETHER
        ):
            found = model.generate([prompts[k] for k in together], limit)
            progress.generated(sum(map(len, found)))
            for k, ids in zip(together, found, strict=True):
                answers[k] = ids
            together = []
    return answers


def ask_build(inputs: Inputs, out: Path, params: Params) -> None:
    """Step: an artifact's answers to the questions of ``ask_original``, and what they are worth.

    ``inputs``: artifact, questions. ``params``: backend; api, the unit to run on (default "cpu");
    context, of prompt and answer together; strict, as for ``ask_original``. Writes
    ``answers.json``.

    Raises:
        SourceError: no prompt fits into the context; ``strict``: one does not.
    """
    asked = _fitting(reports.read(Questions, inputs["questions"]), params)
    backend = backends.load(params["backend"])
    runtime = backend.to_answer(inputs["artifact"], params.get("api", "cpu"))
    tokenizer = backend.tokenizer(inputs["artifact"])
    replies, originals = list[Reply](), list[Judged]()
    for question in asked.questions:
        theirs = _of_original(question, asked)
        limit = asked.new_tokens * (ROOM if theirs.ended else 1)
        ids = list(runtime.generate(question.ids, limit))
        progress.generated(len(ids))
        text = tokenizer.decode(ids)
        ended = answers.ends(ids, limit, asked.ends, tokenizer.decode)
        here = answers.judge(ids, text, ended=ended, call=_call(text, question))
        replies.append(answers.reply(question.line, theirs, here, (question.text, text)))
        originals.append(theirs)
        progress.report(len(replies), len(asked.questions), "prompts")
    runtime.close()
    report = _report(asked, replies, originals)
    reports.write_in_order(out / report.FILE, report.as_json())


def _fitting(asked: Questions, params: Params) -> Questions:
    """What of ``asked`` fits into the artifact's context."""
    fitting, left_out = list[Question](), list(asked.left_out)
    for question in asked.questions:
        why = _too_long(question.ids, asked.new_tokens, int(params["context"]))
        if why:
            left_out.append(_left_out(question.line, why, params))
        else:
            fitting.append(question)
    if not fitting:
        raise SourceError(f"no prompt can be asked: {left_out[0].why}", hint=SHORTER)
    return asked.model_copy(update={"questions": fitting, "left_out": left_out})


def _of_original(question: Question, asked: Questions) -> Judged:
    ended = bool(question.answer) and question.answer[-1] in asked.ends
    call = _call(question.text, question)
    return answers.judge(question.answer, question.text, ended=ended, call=call)


def _call(text: str, question: Question) -> bool | None:
    return calls.is_valid(text, question.tools) if question.tools else None


def _report(asked: Questions, replies: Sequence[Reply], originals: Sequence[Judged]) -> Answers:
    called = [one.call for one in originals if one.call is not None]
    metrics, errors, counts = answers.figures(replies, bool(called))
    return Answers(
        metrics=metrics,
        stderr=errors,
        asked=counts,
        failed=answers.failed(replies),
        original={
            **{name: sum(getattr(one, name) for one in originals) for name in YARDSTICKS},
            **({"calls": sum(called)} if called else {}),
        },
        prompts=len(replies),
        new_tokens=asked.new_tokens,
        left_out=list(asked.left_out),
        without_tools=list(asked.without_tools),
        replies=list(replies),
    )


YARDSTICKS = ("ended", "loops", "empty")
