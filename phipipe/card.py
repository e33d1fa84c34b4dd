"""The model card: README.md with Hugging Face front matter, from what was measured.

Nothing that a model, a checkpoint or a recipe says can change the card's structure: every value the
template prints is escaped unless it is ``Safe``, text of models stands in code blocks whose fences
it cannot close, and the front matter is dumped, not templated.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from phipipe import backends, pages, report
from phipipe.evaluate import CONTINUATION_TOKENS

if TYPE_CHECKING:
    from jinja2 import Environment

PRECISION_WORDS = {
    "fp32": "32-bit floating-point weights",
    "fp16": "16-bit floating-point weights",
    "int8": "8-bit weights",
    "int4": "4-bit weights",
}
# What a reader wants to see of some sixty packages; the manifest has them all.
MAIN_TOOLS = re.compile(
    r"torch|transformers|onnx.*|openvino|openvino-(genai|tokenizers)|nncf|mlx.*|llama.*|gguf|optimum.*|olive.*|"
    r"auto-round|safetensors|.*qnn|litert.*|ai-edge-.*"
)
ANSWER_CHARACTERS = 2000
SNIPPET_TOKENS = 512
PICTURE_TOKENS = 8192  # of a prompt with up to three pictures and its answer
REPETITIVE = 0.5  # share of repeated 4-grams from which an answer is called a loop


class Safe(str):
    """Markdown that we made."""

    __slots__ = ()


def inline(value: object) -> Safe:
    """``value`` as plain text within a line of Markdown, also within a table."""
    if value is None:
        raise TypeError("the card's template prints a value that is not there")
    if isinstance(value, Safe):
        return value
    text = " ".join(_visible(str(value)).split())
    text = re.sub(r"(?<!\w)_|_(?!\w)|[\\`*\[\]<|~$]|&(?=#?\w+;)", r"\\\g<0>", text)
    text = re.sub(
        r"^(#+(?=\s|$)|>|[+-](?=[\s+-]|$))", r"\\\1", text
    )  # what only begins a block at a line's start
    return Safe(re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", text))


def code(value: object, cell: bool = False) -> Safe:
    """``value`` as a code span; ``cell`` says that it stands in a table, where a bar needs a
    backslash."""
    text = " ".join(_visible(str(value)).split()) or " "
    text = text.replace("|", "\\|") if cell else text
    fence = "`" * (_longest_run(text) + 1)
    return Safe(f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}")


def block(value: object, language: str = "text") -> Safe:
    """``value`` as a fenced code block that it cannot end."""
    text = _visible(str(value)).strip("\n") or "(nothing)"
    if len(text) > ANSWER_CHARACTERS:
        text = text[:ANSWER_CHARACTERS] + " […]"
    fence = "`" * max(3, _longest_run(text) + 1)
    return Safe(f"{fence}{language}\n{text}\n{fence}")


def link(value: object) -> Safe:
    """A web address as a link, anything else as a code span."""
    plain = re.fullmatch(r"https?://[\w.:-]+(/[\w./?=&%#:~+@,-]*)?", str(value), re.ASCII)
    return Safe(f"<{value}>") if plain else code(value)


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def _visible(text: str) -> str:
    """Control and direction characters spelled out: they could hide or reorder what a reader
    sees."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c in "\n\t" or _harmless(c) else f"\\u{{{ord(c):x}}}" for c in text)


def _harmless(c: str) -> bool:
    return c in "\u200c\u200d" or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


def render(
    manifest: Mapping[str, Any], baseline: Mapping[str, Any], answers: list[Mapping[str, str]]
) -> str:
    """The text of README.md.

    Args:
        manifest: all of the manifest but its file list.
        baseline: ``baseline.json``; the original's answers are in its ``chats``.
        answers: the artifact's answers, ``prompt`` and ``text`` each.
    """
    environment = _environment()
    rows = report.fidelity_table(
        manifest["fidelity"], manifest["speed"], manifest["fidelity"]["baseline"]
    )
    view = {
        **manifest,
        "what": PRECISION_WORDS.get(manifest["precision"], manifest["precision"]),
        "values": {row.metric: f"{row.value} {row.unit}".rstrip() for row in rows},
        "quality": Safe(report.markdown_table([row for row in rows if row.group == "fidelity"])),
        "pictures": Safe(report.markdown_table([row for row in rows if row.group == "pictures"])),
        "speeds": Safe(
            report.markdown_table([row for row in rows if row.group in ("size", "speed")])
        ),
        "anchors": {
            name: report.number(value, 2) for name, value in (report.KLD_8_BIT, report.KLD_4_BIT)
        },
        "samples": _samples(baseline, answers),
        "text": _text(manifest["recipe"]),
        "host": _host(manifest["speed"].get("host", {})),
        "order": _order(manifest["steps"]),
        "tools": _tools(manifest["steps"]),
        "limits": _limits(manifest, baseline),
        "snippet": _snippet(environment, manifest),
        "licence": _licence(manifest["licence"]),
        "parameters": report.number(manifest["source"]["parameters"] / 1e6) + " million",
        "original": _original(manifest["source"]),
        "answer_tokens": CONTINUATION_TOKENS,
    }
    return _front_matter(manifest) + environment.get_template("card.md.j2").render(view)


def _environment() -> Environment:
    made = pages.environment(inline)  # Markdown, not HTML: ``inline`` escapes
    made.filters |= {
        "code": code,
        "codes": lambda values: Safe(", ".join(map(code, values))),
        "block": block,
        "link": link,
        "number": report.number,
        "counted": report.counted,
        "bounds": _bounds,
        "markdown": Safe,
        "title_of": _title,
    }
    return made


def _bounds(gate: Mapping[str, Any]) -> str:
    words = (("min", "at least"), ("max", "at most"))
    return " and ".join(f"{word} {gate[end]:g}" for end, word in words if gate.get(end) is not None)


def _front_matter(manifest: Mapping[str, Any]) -> str:
    import yaml

    source, licence = manifest["source"], manifest["licence"]
    chat = ["conversational"] if manifest["chat_template"] else []
    facts: dict[str, Any] = {"license": licence["id"] or "unknown"}
    if licence["id"] == "other" and licence["files"]:
        facts |= {"license_name": "see-license-file", "license_link": licence["files"][0]}
    if source["kind"] == "hub":
        facts |= {"base_model": source["repo"]}
        facts |= (
            {"base_model_relation": "quantized"} if manifest["precision"].startswith("int") else {}
        )
    facts |= {
        "library_name": manifest["backend"],
        "pipeline_tag": "image-text-to-text"
        if "vision" in manifest["fidelity"]
        else "text-generation",
        "tags": [
            "phipipe",
            manifest["backend"],
            manifest["precision"],
            manifest["device"]["name"],
            *chat,
        ],
    }
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=False)}---\n\n"


def _samples(baseline: Mapping[str, Any], answers: list[Mapping[str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "prompt": answer["prompt"],
            "original": chat["text"],
            "here": answer["text"],
            "same": chat["text"] == answer["text"],
        }
        for chat, answer in zip(baseline["chats"], answers, strict=True)
    ]


def _order(steps: Mapping[str, Any]) -> list[str]:
    """Steps after what they read, else as the plan has them; what only takes files in reads what it
    leaves."""
    made, ordered = {step["digest"] for step in steps.values()}, list[str]()
    while len(ordered) < len(steps):
        there = {steps[name]["digest"] for name in ordered}
        waiting = [name for name in steps if name not in ordered]
        needed = {
            name: set(steps[name]["inputs"].values()) & made - {steps[name]["digest"]}
            for name in waiting
        }
        ordered.append(next((name for name in waiting if needed[name] <= there), waiting[0]))
    return ordered


def _title(source: Mapping[str, Any]) -> str:
    return str(source.get("name") or source["repo"])


def _original(source: Mapping[str, Any]) -> Safe:
    if source["kind"] == "hub":
        return Safe(f"{code(source['repo'])} at commit {code(source['revision'])}")
    where = (
        f"phipipe's embedded model {code(source['name'])}"
        if source["kind"] == "builtin"
        else f"the local checkpoint {code(source['name'])}"
    )
    return Safe(where)


def _text(recipe: Mapping[str, Any]) -> str:
    text = recipe.get("evaluate", {}).get("text", {})
    if "builtin" in text:
        return f"phipipe's embedded text “{text['builtin']}”"
    if "dataset" in text:
        return f"a text from the data set {text['dataset'].get('repo', '')}"
    return f"the text file “{text.get('file', 'unnamed')}”"


def _host(host: Mapping[str, Any]) -> str:
    parts = [
        f"{host['cores']} cores of {host['processor']}"
        if host.get("cores") and host.get("processor")
        else "",
        f"{host['memory_gib']} GiB of memory" if host.get("memory_gib") else "",
        " ".join(str(host[k]) for k in ("system", "machine") if host.get(k)),
    ]
    return ", ".join(part for part in parts if part) or "an unrecorded machine"


def _tools(steps: Mapping[str, Any]) -> list[str]:
    found = {
        (n, v)
        for step in steps.values()
        for n, v in step["tools"].items()
        if MAIN_TOOLS.fullmatch(n)
    }
    return [f"{name} {version}" for name, version in sorted(found)]


def _limits(manifest: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """What a reader must know and the tables do not say."""
    sanity = manifest["fidelity"].get("sanity", {})
    lines = [*manifest["warnings"]]
    if not sanity.get("tokenizer_equal", True):
        lines.append("The packaged tokenizer does not give the original's ids on the test text.")
    if not sanity.get("chat_template_equal", True):
        lines.append("The runtime renders the chat template differently from the original.")
    ended = zip(sanity.get("answers_ended", []), baseline["chats"], strict=False)
    if endless := sum(not end and len(chat["answer"]) < CONTINUATION_TOKENS for end, chat in ended):
        lines.append(
            f"{endless} of the sample answers below had not ended when the original's had."
        )
    if sanity.get("repetition", 0) > REPETITIVE:
        lines.append("It repeats itself in a sample answer.")
    return lines


def _snippet(environment: Environment, manifest: Mapping[str, Any]) -> Safe | None:
    """A program that runs the package with its runtime alone; backends without one have none."""
    from jinja2 import TemplateNotFound

    try:
        template = environment.get_template(f"run-{manifest['backend']}.py.j2")
    except TemplateNotFound:
        return None
    versions = {n: v for step in manifest["steps"].values() for n, v in step["tools"].items()}
    length = min(SNIPPET_TOKENS, manifest["source"]["context_length"])
    view = {
        "versions": versions,
        "chat": bool(manifest["chat_template"]),
        "max_length": length,
        "api": manifest["api"],
    }
    view |= {
        "sees": "vision" in manifest.get("fidelity", {}),
        "square": manifest["source"].get("architecture")
        in backends.load(manifest["backend"]).square,
        "picture_length": min(PICTURE_TOKENS, manifest["source"]["context_length"]),
    }
    view |= {
        "options": manifest["recipe"].get("quantize", {}),
        "quantized": manifest["precision"] in ("int4", "int8"),
    }
    return block(template.render(view), "python")


def _licence(licence: Mapping[str, Any]) -> dict[str, Safe]:
    """Its name for the overview, and the sentence that says where the name comes from."""
    name, files = licence["id"], Safe(" and ".join(map(code, licence["files"])))
    if not files:
        words = f"{inline(name)}, says the recipe" if name else "none came with the original"
        said = f"The recipe states {inline(name)}, but the original" if name else "The original"
        return {
            "words": Safe(words),
            "sentence": Safe(
                f"{said} came without a licence file, so there is none here. Ask its publisher "
                f"first."
            ),
        }
    origin = "the recipe says" if licence["stated"] else "by its wording"
    named = "" if name in (None, "other") else f" It is {inline(name)}, {origin}."
    words = files if name in (None, "other") else f"{inline(name)} ({files})"
    return {
        "words": Safe(words),
        "sentence": Safe(f"The original's own licence is in {files} and holds here too.{named}"),
    }
