"""An Ollama ``Modelfile`` that keeps the source's chat template.

Ollama's templates are Go's, not Jinja's. The source's template is rendered with marks for contents,
read back as the text before and after each role's content, and written as a Go template; it is kept
only if, carried out here, it gives the very text of the original on longer chats. A role that the
template refuses is left out, and so is a template that tells the day: what is written here must be
as true tomorrow.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from phipipe.backends.llamacpp.frames import Layout, Render, frames, tool_frame, trims
from phipipe.files import json_files
from phipipe.models import tokenizer as transformers_tokenizer
from phipipe.models import tokenizer_files
from phipipe.sandbox import chat_templates
from phipipe.sandbox.tokenizer import LimitedTokenizer
from phipipe.steps import Json

ROLES = ("system", "user", "assistant", "tool")


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
    remarks, frame = [], layout.frames
    if trims(render):
        remarks.append(
            "The source's chat template takes white space off around messages, which Ollama's "
            "language cannot."
        )
    if "system" not in frame:
        remarks.append("The source's chat template refuses system messages: they are left out.")
    tools = tool_frame(render, layout) if "tools" in jinja else None
    if "tools" in jinja and tools is None:
        remarks.append(
            "The source's chat template knows tools in a way that Ollama's language does not: "
            "none are told."
        )
    return Template(tuple(remarks), go_template(layout, tools), frame["assistant"][1].strip())


def go_template(layout: Layout, tools: tuple[str, str] | None = None) -> str:
    """The same as a Go template over Ollama's ``.Messages`` and ``.Tools``."""
    cases, frame, each = "", layout.frames, "range .Messages"
    if layout.silent:
        each = "range $i, $_ := .Messages"
        cases = f'{{{{ if and (eq $i 0) (ne .Role "system") }}}}{_go(layout.silent)}{{{{ end }}}}'
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
    return f"{_go(layout.head)}{{{{ {each} }}}}{cases}{{{{ end }}}}{{{{ end }}}}{_go(layout.ask)}"


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
