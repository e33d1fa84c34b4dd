"""Ollama's TEMPLATE, carried out by Go's own templates, gives the source's chat template."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from testing import consumers
from testing.places import TESTS

from phipipe.backends.llamacpp import modelfile
from phipipe.hub import take
from phipipe.sandbox.jinja_templates import Template
from phipipe.steps import Json

Chat = Sequence[dict[str, str]]
Render = Callable[[Sequence[Chat], str, Json], list[str]]

TINY = json.loads((take.BUILTIN_MODELS["tiny-phi3"] / "tokenizer_config.json").read_text("utf-8"))[
    "chat_template"
]
TURNS = (  # Phi-3.5's shape: an empty system message is none
    "{% for m in messages %}{% if m['role'] == 'system' and m['content'] %}"
    "{{ '<|system|>\\n' + m['content'] + '<|end|>\\n' }}{% elif m['role'] == 'user' %}"
    "{{ '<|user|>\\n' + m['content'] + '<|end|>\\n' }}{% elif m['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + m['content'] + '<|end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
TOOLED = (  # Phi-4-mini's shape: a system message may carry tools
    "{% for m in messages %}{% if m['role'] == 'system' and 'tools' in m and m['tools'] is not "
    "none %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|tool|>' + m['tools'] + '<|/tool|>' + "
    "'<|end|>' }}{% else %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
SEPARATED = (  # Phi-4's shape
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + "
    "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
BEGUN = (  # one that begins a text
    "{{ bos_token }}{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + '</>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
HELPFUL = (  # one that speaks for a system that is silent
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATES = {
    "tiny-phi3": TINY,
    "phi-3.5": TURNS,
    "phi-4-mini": TOOLED,
    "phi-4": SEPARATED,
    "begun": BEGUN,
    "helpful": HELPFUL,
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look_up",
            "description": "Look <a word> up in the house's book",
            "parameters": {"type": "object", "properties": {"word": {"type": "string"}}},
        },
    }
]


def chat(*contents: str, system: str | None = None) -> Chat:
    """Contents by turns of user and assistant, after what the system says."""
    turns = [
        {"role": "assistant" if i % 2 else "user", "content": text}
        for i, text in enumerate(contents)
    ]
    return [*([{"role": "system", "content": system}] if system is not None else []), *turns]


CHATS: Sequence[Chat] = (
    chat("Where is the key?"),
    chat("Where is the key?", system="Be brief."),
    chat("Hi", "Hello!", "Who had the key?"),
    chat("Hi", "Hello!", "Who had the key?", system="You keep the house."),
    chat("1", "2", "3", "4", "5", "6", "7"),
    chat("1", "2", "3", "4", "5", "6", "7", system="Count."),
    chat(" leading", "trailing ", "  both  "),
    chat("\n\nline\n", "\ttab\t", "a\r\nb", system=" \n "),
    chat(" ", "x", "\n"),
    chat("four    spaces", "no\u00a0break", "zero\u200bwidth"),
    chat("Grüße, 世界 👋🏽", "नमस्ते", "مرحبا", system="Ελληνικά"),
    chat("e\u0301 and é", "\u2028\u2029", "\ufeffmark"),
    chat("<b>&amp;</b>", "a < b > c & d", "\"quoted\" and 'so'"),
    chat("{{ .Content }}", "{{ end }}", "{% raw %}", system="{{ range .Messages }}"),
    chat('"""', "''' ```", "\\n is no newline \\"),
    chat("<|user|>", "<|end|>", "<|assistant|>"),
    chat("x" * 5000, "y" * 5000, "z"),
    chat("", "empty", "again"),
    chat("def f(x):\n    return {x: 1}\n", "```python\nf(1)\n```", "Thanks", system="Code."),
    chat("$100 `tick` %d %s", "#!/bin/sh", "C:\\path\\file"),
)


@pytest.fixture(scope="module")
def ollama(toolchains: Path) -> Render:
    """Renders chats with a Go template as Ollama does."""
    program = consumers.go_program(toolchains, TESTS / "testing" / "ollama_template.go")

    def render(chats: Sequence[Chat], template: str, tools: Json = None) -> list[str]:
        jobs = [
            json.dumps({"Template": template, "Messages": list(one), "Tools": tools})
            for one in chats
        ]
        given = "\n".join(jobs) + "\n"
        ended = subprocess.run(
            [program], input=given, capture_output=True, encoding="utf-8", check=True
        )
        return [json.loads(line) for line in ended.stdout.split("\n") if line]

    return render


def jinja(text: str) -> Callable[[Sequence[dict[str, str]]], str]:
    template = Template(text, json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return template.render


def go(text: str) -> str:
    made = modelfile.translated(jinja(text), text)
    assert made.go is not None
    return written(f"TEMPLATE {modelfile.quoted(made.go)}\n")


def written(line: str) -> str:
    """What Ollama's parser reads (parser/parser.go): between three quotes, else between one."""
    value = line.removeprefix("TEMPLATE ").strip()
    for mark in ('"""', '"'):
        if value.startswith(mark) and value.endswith(mark):
            return value[len(mark) : -len(mark)]
    return value


def test_there_are_twenty_chats_and_no_two_alike() -> None:
    assert len(CHATS) == 20 == len({json.dumps(list(one)) for one in CHATS})


@pytest.mark.parametrize("name", TEMPLATES)
def test_ollama_renders_every_chat_as_the_source_does(name: str, ollama: Render) -> None:
    text = TEMPLATES[name]
    assert ollama(CHATS, go(text), None) == list(map(jinja(text), CHATS))


def test_ollama_tells_tools_where_the_source_does(ollama: Render) -> None:
    asked = [one for one in CHATS if one[0]["role"] == "system"]
    with_tools = [[{**one[0], "tools": json.dumps(TOOLS)}, *one[1:]] for one in asked]
    got = [apart(text) for text in ollama(asked, go(TOOLED), TOOLS)]
    assert got == [apart(text) for text in map(jinja(TOOLED), with_tools)]
    assert [tools for _, tools, _ in got] == [TOOLS] * len(asked)


def apart(text: str) -> tuple[str, Json, str]:
    """A text with its tools as data: Go writes the same JSON with other spaces and escapes."""
    before, _, rest = text.partition("<|tool|>")
    tools, _, after = rest.partition("<|/tool|>")
    return before, json.loads(tools), after


def test_an_answer_of_a_tool_stands_where_the_source_has_it(ollama: Render) -> None:
    asked = [*chat("Where is the key?", "look_up(key)"), {"role": "tool", "content": "in a drawer"}]
    assert ollama([asked], go(TOOLED), None) == [jinja(TOOLED)(asked)]


def test_a_template_that_trims_contents_says_so() -> None:
    trimming = TURNS.replace("m['content'] + ", "m['content'] | trim + ")
    made = modelfile.translated(jinja(trimming), trimming)
    assert made.go is not None
    assert any("white space" in remark for remark in made.remarks)
    plain = modelfile.translated(jinja(TURNS), TURNS)
    assert not any("white space" in remark for remark in plain.remarks)
