"""An Ollama ``Modelfile`` that keeps the source's chat template.

Ollama's templates are Go's, not Jinja's. The source's template is rendered with marks for contents, read
back as the text before and after each role's content, and written as a Go template; it is kept only if,
carried out here, it gives the very text of the original on longer chats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phipipe import transformers_tokenizer

ROLES = ("system", "user", "assistant")
Frames = Mapping[str, tuple[str, str]]  # role → text before and after a content
CHATS: Sequence[Sequence[str]] = (
    ("user",),
    ("user", "assistant", "user"),
    ("system", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


def text(source: Path, model: str) -> str:
    """The Modelfile for the GGUF file ``model`` beside it; reads the checkpoint ``source``'s tokenizer."""
    tokenizer = transformers_tokenizer.load(source)
    lines = [f"# ollama create NAME -f Modelfile\nFROM ./{model}"]
    if tokenizer.chat_template:
        found = frames(_renderer(tokenizer))
        if found is None:
            lines.append(
                "# The source's chat template has no equal in Ollama's language; Ollama picks one by the GGUF's."
            )
        else:
            lines.append(f"TEMPLATE {quoted(go_template(*found))}")
    lines += [f"PARAMETER stop {quoted(stop)}" for stop in _stops(source, tokenizer)]
    return "\n".join(lines) + "\n"


def _renderer(tokenizer: Any) -> Any:
    def render(messages: Sequence[Mapping[str, str]]) -> str:
        return str(tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True))

    return render


def frames(render: Any) -> tuple[str, Frames, str] | None:
    """(text before all, role → frame, text that asks for the answer), or None if that is not how it renders."""
    bare = _marked(render, ("user",))
    twice = _marked(render, ("user", "assistant", "user"))
    whole = _marked(render, ("system", "user"))
    if bare is None or twice is None or whole is None:
        return None
    # A content's frame ends where the next one's beginning starts; the user's beginning is known from the repeat.
    opening = _common_end(bare[0], twice[2])
    ask = bare[1]
    cuts = (_candidate(bare, twice, whole, opening, ask[:i], ask[i:]) for i in range(len(ask) + 1))
    fits = [c for c in cuts if c and all(_carried_out(c, chat) == render(_messages(chat)) for chat in CHATS)]
    # Several cuts give the same text for these chats; a user's turn most likely ends as an assistant's does.
    return next((c for c in fits if c[1]["user"][1] == c[1]["assistant"][1]), fits[0] if fits else None)


def _candidate(
    bare: list[str], twice: list[str], whole: list[str], opening: str, after: str, ask: str
) -> tuple[str, Frames, str] | None:
    head = bare[0][: len(bare[0]) - len(opening)]
    if not twice[1].startswith(after) or not twice[2].endswith(opening):
        return None
    user = (opening, after)
    assistant = (twice[1][len(after) :], twice[2][: len(twice[2]) - len(opening)])
    if not whole[1].endswith(opening) or not whole[0].startswith(head):
        return None
    system = (whole[0][len(head) :], whole[1][: len(whole[1]) - len(opening)])
    return head, {"system": system, "user": user, "assistant": assistant}, ask


def _messages(chat: Sequence[str]) -> list[dict[str, str]]:
    return [{"role": role, "content": f"⟦{i}⟧"} for i, role in enumerate(chat)]


def _marked(render: Any, chat: Sequence[str]) -> list[str] | None:
    """The texts between contents, first and last included."""
    rest, parts = render(_messages(chat)), []
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
    # The repeat also ends the answer before: what belongs to the user's turn starts at a special token.
    common = a[len(a) - length :]
    start = common.rfind("<|")
    return common[start:] if start >= 0 else common


def _carried_out(candidate: tuple[str, Frames, str], chat: Sequence[str]) -> str:
    head, frame, ask = candidate
    body = "".join(f"{frame[m['role']][0]}{m['content']}{frame[m['role']][1]}" for m in _messages(chat))
    return head + body + ask


def go_template(head: str, frame: Frames, ask: str) -> str:
    """The same as a Go template over Ollama's ``.Messages``."""
    cases = ""
    for i, role in enumerate(ROLES):
        before, after = map(_go, frame[role])
        cases += f'{{{{ {"else " * bool(i)}if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
    return f"{_go(head)}{{{{ range .Messages }}}}{cases}{{{{ end }}}}{{{{ end }}}}{_go(ask)}"


def _go(plain: str) -> str:
    return plain.replace("{{", '{{ "{{" }}') if "{{" in plain else plain


def quoted(value: str) -> str:
    """A value as a Modelfile takes it: between triple quotes where one line is not enough."""
    return f'"""{value}"""' if "\n" in value or '"' in value else f'"{value}"'


def _stops(source: Path, tokenizer: Any) -> list[str]:
    """Texts of the tokens that end an answer, by ``generation_config.json``."""
    path = source / "generation_config.json"
    settings = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    found = settings.get("eos_token_id", tokenizer.eos_token_id)
    ids = found if isinstance(found, list) else [found]
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in ids if i is not None]
