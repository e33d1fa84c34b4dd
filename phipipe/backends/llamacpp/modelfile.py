"""An Ollama ``Modelfile`` that keeps the source's chat template.

Ollama's templates are Go's, not Jinja's. The source's template is rendered with marks for contents,
read back as the text before and after each role's content, and written as a Go template; it is kept
only if, carried out here, it gives the very text of the original on longer chats. A role that the
template refuses is left out, and so is a template that tells the day: what is written here must be
as true tomorrow.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from phipipe.files import json_files
from phipipe.models import tokenizer as transformers_tokenizer
from phipipe.models import tokenizer_files
from phipipe.sandbox import chat_templates
from phipipe.sandbox.limited import Raised
from phipipe.sandbox.tokenizer import LimitedTokenizer
from phipipe.steps import Json

ROLES = ("system", "user", "assistant", "tool")
TOOLS = "⟦tools⟧"
Frames = Mapping[str, tuple[str, str]]  # role → text before and after a content
Layout = tuple[str, Frames, str]  # text before all, frames, text that asks for the answer
Render = Callable[[Sequence[Mapping[str, str]]], str]
CHATS: Sequence[Sequence[str]] = (
    ("user",),
    ("user", "assistant", "user"),
    ("system", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


class Template(NamedTuple):
    """What a Modelfile says of the source's chat template: comments, Go's text if there is one,
    what ends an answer."""

    remarks: tuple[str, ...] = ()
    go: str | None = None
    end: str = ""


def text(source: Path, model: str, context: int) -> str:
    """The Modelfile for the GGUF file ``model`` beside it; reads the checkpoint ``source``'s
    tokenizer."""
    tokenizer = transformers_tokenizer.of_source(source)
    jinja = tokenizer.facts["chat_template"]
    written = jinja if isinstance(jinja, str) else json.dumps(jinja)
    template = translated(tokenizer.render, written) if jinja else Template()
    lines = [
        "# ollama create NAME -f Modelfile",
        f"FROM ./{model}",
        *(f"# {remark}" for remark in template.remarks),
    ]
    lines += [f"TEMPLATE {quoted(template.go)}"] if template.go else []
    lines += [f"PARAMETER num_ctx {context}"]
    lines += [f"PARAMETER stop {quoted(stop)}" for stop in _stops(source, tokenizer, template.end)]
    return "\n".join(lines) + "\n"


def translated(render: Render, jinja: str) -> Template:
    """The chat template ``jinja``, which ``render`` carries out, for Ollama."""
    if chat_templates.CLOCK in jinja:
        return Template(
            (
                "The source's chat template tells today's date, which Ollama's cannot: Ollama "
                "picks one by the GGUF's.",
            )
        )
    layout = frames(render)
    if layout is None:
        return Template(
            (
                "The source's chat template has no equal in Ollama's language; Ollama picks one "
                "by the GGUF's.",
            )
        )
    remarks, head, frame = [], *layout[:2]
    if "system" not in frame:
        remarks.append("The source's chat template refuses system messages: they are left out.")
    tools = tool_frame(render, layout) if "tools" in jinja else None
    if "tools" in jinja and tools is None:
        remarks.append(
            "The source's chat template knows tools in a way that Ollama's language does not: "
            "none are told."
        )
    return Template(
        tuple(remarks), go_template(head, frame, layout[2], tools), frame["assistant"][1].strip()
    )


def frames(render: Render) -> Layout | None:
    """(text before all, role → frame, text that asks for the answer), or None if that is not how it
    renders.

    A role that the template refuses has no frame; only "system" and "tool" may be such.
    """
    bare = _marked(render, ("user",))
    twice = _marked(render, ("user", "assistant", "user"))
    whole = _marked(render, ("system", "user"))
    if (
        bare is None
        or twice is None
        or (whole is None and _rendered(render, ("system", "user")) is not None)
    ):
        return None
    # A content's frame ends where the next one's beginning starts; the user's beginning is known
    # from the repeat.
    opening = _common_end(bare[0], twice[2])
    ask = bare[1]
    cuts = (_candidate(bare, twice, whole, opening, ask[:i], ask[i:]) for i in range(len(ask) + 1))
    chats = [chat for chat in CHATS if whole is not None or "system" not in chat]
    wanted = [_rendered(render, chat) for chat in chats]
    fits = [c for c in cuts if c and [carried_out(c, chat) for chat in chats] == wanted]
    # Several cuts give the same text for these chats; a user's turn most likely ends as an
    # assistant's does.
    best = next(
        (c for c in fits if c[1]["user"][1] == c[1]["assistant"][1]), fits[0] if fits else None
    )
    return best and _with_tool_role(render, best)


def _with_tool_role(render: Render, layout: Layout) -> Layout:
    """``layout``, and what stands around a tool's answer if the template takes one."""
    head, frame, ask = layout
    chat = ("user", "assistant", "tool")
    parts, after = _marked(render, chat), frame["assistant"][1]
    if parts is None or not parts[2].startswith(after) or not parts[3].endswith(ask):
        return layout
    tool = (parts[2][len(after) :], parts[3][: len(parts[3]) - len(ask)])
    more = (head, {**frame, "tool": tool}, ask)
    return more if carried_out(more, chat) == _rendered(render, chat) else layout


def tool_frame(render: Render, layout: Layout) -> tuple[str, str] | None:
    """Text between a system message's content and the tools that it carries, and after these; None
    without such."""
    if "system" not in layout[1]:
        return None
    system, user = messages(("system", "user"))
    try:
        whole = render([{**system, "tools": TOOLS}, user])
    except Raised:
        return None
    before, after = layout[1]["system"]
    opening, closing = (
        f"{layout[0]}{before}{system['content']}",
        carried_out(("", layout[1], layout[2]), ("system", "user")),
    )
    closing = closing[len(before + system["content"] + after) :]
    inside = whole.removeprefix(opening).removesuffix(closing)
    left, mark, right = inside.partition(TOOLS)
    fits = mark and TOOLS not in right and f"{opening}{inside}{closing}" == whole
    return (left, right) if fits else None


def _candidate(
    bare: list[str], twice: list[str], whole: list[str] | None, opening: str, after: str, ask: str
) -> Layout | None:
    head = bare[0][: len(bare[0]) - len(opening)]
    if not twice[1].startswith(after) or not twice[2].endswith(opening):
        return None
    frame = {
        "user": (opening, after),
        "assistant": (twice[1][len(after) :], twice[2][: len(twice[2]) - len(opening)]),
    }
    if whole is None:
        return head, frame, ask
    if not whole[1].endswith(opening) or not whole[0].startswith(head):
        return None
    system = (whole[0][len(head) :], whole[1][: len(whole[1]) - len(opening)])
    return head, {"system": system, **frame}, ask


def messages(chat: Sequence[str]) -> list[dict[str, str]]:
    """A message of each role, with a mark for its content."""
    return [{"role": role, "content": f"⟦{i}⟧"} for i, role in enumerate(chat)]


def _rendered(render: Render, chat: Sequence[str]) -> str | None:
    """``chat`` in the template; None if it refuses."""
    try:
        return render(messages(chat))
    except Raised:
        return None


def _marked(render: Render, chat: Sequence[str]) -> list[str] | None:
    """The texts between contents, first and last included."""
    rest, parts = _rendered(render, chat) or "", []
    for i in range(len(chat)):
        before, mark, rest = rest.partition(f"⟦{i}⟧")
        if not mark:
            return None
        parts.append(before)
    return [*parts, rest]


def _common_end(a: str, b: str) -> str:
    length = 0
    while length < min(len(a), len(b)) and a[-1 - length] == b[-1 - length]:
        length += 1
    # The repeat also ends the answer before: what belongs to the user's turn starts at a special
    # token.
    common = a[len(a) - length :]
    start = common.rfind("<|")
    return common[start:] if start >= 0 else common


def carried_out(candidate: Layout, chat: Sequence[str]) -> str:
    """``chat`` as ``candidate`` has it."""
    head, frame, ask = candidate
    body = "".join(
        f"{frame[m['role']][0]}{m['content']}{frame[m['role']][1]}" for m in messages(chat)
    )
    return head + body + ask


def go_template(head: str, frame: Frames, ask: str, tools: tuple[str, str] | None = None) -> str:
    """The same as a Go template over Ollama's ``.Messages`` and ``.Tools``."""
    cases = ""
    for i, role in enumerate(role for role in ROLES if role in frame):
        before, after = map(_go, frame[role])
        if role == "system" and tools:
            between, behind = map(_go, tools)
            after = (
                f"{{{{ if $.Tools }}}}{between}{{{{ $.Tools }}}}{behind}{{{{ else "
                f"}}}}{after}{{{{ end }}}}"
            )
        cases += (
            f'{{{{ {"else " * bool(i)}if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
        )
    return f"{_go(head)}{{{{ range .Messages }}}}{cases}{{{{ end }}}}{{{{ end }}}}{_go(ask)}"


def _go(plain: str) -> str:
    return plain.replace("{{", '{{ "{{" }}') if "{{" in plain else plain


def quoted(value: str) -> str:
    """A value as a Modelfile takes it: between triple quotes where one line is not enough."""
    return f'"""{value}"""' if "\n" in value or '"' in value else f'"{value}"'


def _stops(source: Path, tokenizer: LimitedTokenizer, end: str) -> list[str]:
    """Texts of the tokens that end an answer: by both configs, by the tokenizer, and ``end``, by
    the template."""
    ids: list[Json] = []
    for name in ("generation_config.json", "config.json"):
        if (source / name).is_file():
            settings = json_files.read_object(source / name)
            ids += tokenizer_files.end_ids(settings.get("eos_token_id"))
    ids.append(tokenizer.facts["eos_token_id"])
    last = tokenizer.encode(end) if end else []
    ids += last if len(last) == 1 else []
    return [
        tokenizer.token(number) for number in dict.fromkeys(i for i in ids if isinstance(i, int))
    ]
