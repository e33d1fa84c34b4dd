"""The model card: README.md with Hugging Face front matter, from what was measured.

Nothing that a model, a checkpoint or a recipe says can change the card's structure: every value the
template prints is escaped unless it is ``Safe``, text of models stands in code blocks whose fences
it cannot close, and the front matter is dumped, not templated.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from phipipe import backends, words
from phipipe.evaluate import sampling
from phipipe.evaluate.gates import misread_words
from phipipe.evaluate.reports import Answer, Baseline, Sampling, Verdict
from phipipe.evaluate.sanity import CONTINUATION_TOKENS
from phipipe.files import pages
from phipipe.package import answer_words, figures, programs
from phipipe.package.description import Description, Licence, Origin, Source, Step, Text
from phipipe.package.markdown import Safe, block, code, inline, link
from phipipe.package.ready import Ready
from phipipe.steps import Json

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
    r"torch|transformers|onnx.*|openvino|openvino-(genai|tokenizers)|nncf|mlx.*|llama.*|gguf|"
    r"optimum.*|olive.*|auto-round|safetensors|.*qnn|litert.*|ai-edge-.*"
)
REPETITIVE = 0.5  # share of repeated 4-grams from which an answer is called a loop


def _sampled(told: Sampling | None) -> str:
    """How much was scored, where that was not said beforehand."""
    return sampling.words(told) if told and told.reason != "asked" else ""


def render(
    package: Description, baseline: Baseline, answers: Sequence[Answer], uses: Sequence[Ready] = ()
) -> str:
    """The text of README.md.

    Args:
        baseline: the original's answers are in its ``chats``.
        answers: the artifact's, to the same questions.
        uses: apps that open the package's folder, and what to do there.
    """
    templates = environment()
    fidelity, speed = package.fidelity, package.speed
    generation = fidelity.generation
    rows = figures.fidelity_table(fidelity, speed, fidelity.baseline, fidelity.vision, generation)
    view = {
        **dict(package),
        "what": PRECISION_WORDS.get(package.precision, package.precision),
        **_tables(rows),
        "sampled": _sampled(fidelity.sampling),
        "answer_remarks": answer_words.remarks(generation) if generation else [],
        "anchors": {
            name: figures.number(value, 2) for name, value in (figures.KLD_8_BIT, figures.KLD_4_BIT)
        },
        "samples": _samples(baseline, answers),
        "text": _text(package.recipe.evaluate.text),
        "host": figures.host_words(speed.host),
        "order": _order(package.steps),
        "tools": _tools(package.steps),
        "limits": _limits(package, baseline),
        "snippet": programs.alone(package, templates),
        "apps": programs.in_apps(package, templates),
        "uses": uses,
        "licence": _licence(package.licence),
        "parameters": figures.number(package.source.parameters / 1e6) + " million",
        "original": _original(package.source),
        "change": _change(package),
        "answer_tokens": CONTINUATION_TOKENS,
    }
    return _front_matter(package) + templates.get_template("package/card.md.j2").render(view)


def _tables(rows: Sequence[figures.Row]) -> dict[str, Json]:
    """The figures of ``rows`` one by one, and as tables of what belongs together."""

    def table(*groups: str) -> Safe:
        return Safe(figures.markdown_table([row for row in rows if row.group in groups]))

    return {
        "values": {row.metric: f"{row.value} {row.unit}".rstrip() for row in rows},
        "quality": table("fidelity"),
        "pictures": table("pictures"),
        "answered": table("answers"),
        "speeds": table("size", "speed"),
    }


def environment() -> Environment:
    """For templates of Markdown, those of backends among them."""
    # Markdown, not HTML: ``inline`` escapes
    made = pages.environment(inline, folders=backends.__path__)
    made.filters |= {
        "code": code,
        "codes": lambda values: Safe(", ".join(map(code, values))),
        "block": block,
        "link": link,
        "number": figures.number,
        "counted": words.counted,
        "bounds": _bounds,
        "markdown": Safe,
    }
    return made


def _bounds(gate: Verdict) -> str:
    limits = (("at least", gate.min), ("at most", gate.max))
    return " and ".join(f"{words} {limit:g}" for words, limit in limits if limit is not None)


def _front_matter(package: Description) -> str:
    import yaml

    source, licence = package.source, package.licence
    facts: dict[str, Json] = {"license": licence.id or "unknown"}
    if licence.id == "other" and licence.files:
        facts |= {"license_name": "see-license-file", "license_link": licence.files[0]}
    if bases := _bases(source):
        facts |= {"base_model": bases[0] if len(bases) == 1 else bases}
        # without the key the hub takes one base for a fine-tune's; 16 bits are another format, too
        merged = source.adapter is not None and not package.precision.startswith("int")
        facts |= {"base_model_relation": "merge" if merged else "quantized"}
    face = backends.load(package.backend)
    own = [*face.hub_tags, *(["conversational"] if package.chat_template else [])]
    named = ["phipipe", package.backend, package.precision, package.device.name, *own]
    facts |= {
        "library_name": face.library or package.backend,
        "pipeline_tag": "image-text-to-text" if package.fidelity.vision else "text-generation",
        "tags": list(dict.fromkeys(named)),
    }
    return f"---\n{yaml.safe_dump(facts, sort_keys=False, allow_unicode=False)}---\n\n"


def _bases(source: Source) -> list[str]:
    """Repositories that a hub's page of this package leads back to, the nearest last."""
    parts = [source.base, source.adapter] if source.base and source.adapter else [source]
    return [str(part.repo) for part in parts if part and part.kind == "hub"]


def _samples(baseline: Baseline, answers: Sequence[Answer]) -> list[dict[str, str | bool]]:
    return [
        {
            "prompt": answer.prompt,
            "original": chat.text,
            "here": answer.text,
            "same": chat.text == answer.text,
        }
        for chat, answer in zip(baseline.chats, answers, strict=True)
    ]


def _order(steps: Mapping[str, Step]) -> list[str]:
    """Steps after what they read, else as the plan has them; what only takes files in reads what it
    leaves."""
    digests, ordered = {step.digest for step in steps.values()}, list[str]()
    while len(ordered) < len(steps):
        there = {steps[name].digest for name in ordered}
        waiting = [name for name in steps if name not in ordered]
        needed = {
            name: set(steps[name].inputs.values()) & digests - {steps[name].digest}
            for name in waiting
        }
        ordered.append(next((name for name in waiting if needed[name] <= there), waiting[0]))
    return ordered


def _original(source: Source | Origin) -> Safe:
    if isinstance(source, Source) and source.base and source.adapter:
        return Safe(
            f"{_original(source.base)}{_widened(source)} with a LoRA adapter merged into it, "
            f"{_adapter(source.adapter)}"
        )
    if source.kind == "hub":
        file = f"the GGUF {code(source.file)} of " if source.file else ""
        where = f"{file}{code(source.repo)} at commit {code(source.revision)}"
    elif source.kind == "builtin":
        where = f"phipipe's embedded model {code(source.name)}"
    else:
        where = f"the local checkpoint {code(source.name)}"
    return Safe(where + (_widened(source) if isinstance(source, Source) else ""))


def _widened(source: Source) -> str:
    """Figures compare with the widened model, and know nothing of one before it."""
    if source.widened_from is None:
        return ""
    return f", whose quantized weights ({code(source.widened_from)}) were widened to 16 bits"


def _adapter(adapter: Origin) -> Safe:
    if adapter.kind == "hub":
        return Safe(f"{code(adapter.repo)} at commit {code(adapter.revision)}")
    return Safe(f"the local {code(adapter.name)}")


def _change(package: Description) -> str:
    """What the adapter changed, in one sentence; empty without one."""
    change = package.fidelity.change
    return figures.adapter_change(change, package.fidelity.baseline.ppl) if change else ""


def _text(text: Text) -> str:
    if text.builtin is not None:
        return f"phipipe's embedded text “{text.builtin}”"
    if text.dataset is not None:
        return f"a text from the data set {text.dataset.repo}"
    return f"the text file “{'unnamed' if text.file is None else text.file}”"


def _tools(steps: Mapping[str, Step]) -> list[str]:
    named = {(name, version) for step in steps.values() for name, version in main_tools(step)}
    return [f"{name} {version}" for name, version in sorted(named)]


def main_tools(step: Step) -> Iterator[tuple[str, str]]:
    """Names and versions of what a reader wants to see of the packages that ``step`` had."""
    return ((name, version) for name, version in step.tools.items() if MAIN_TOOLS.fullmatch(name))


def _limits(package: Description, baseline: Baseline) -> list[str]:
    """What a reader must know and the tables do not say."""
    sanity = package.fidelity.sanity
    lines = [*package.warnings]
    if sanity.tokenizer_equal is False:
        accepted = "tokenizer" in package.recipe.evaluate.accept
        found, also = sanity.tokenizer_difference, ", which its recipe accepts" if accepted else ""
        shown = f": it reads {misread_words(found)}" if found else " on the test text"
        lines.append(f"The packaged tokenizer does not give the original's ids{also}{shown}.")
    elif found := sanity.tokenizer_difference:
        lines.append(
            "The runtime reads characters that combine with the one before them (vowel signs of "
            "Hindi and Thai, accents that are not composed) otherwise than the original: it reads "
            f"{misread_words(found)}."
        )
    if sanity.chat_template_equal is False:
        lines.append("The runtime renders the chat template differently from the original.")
    ended = zip(sanity.answers_ended, baseline.chats, strict=False)
    if endless := sum(not end and len(chat.answer) < CONTINUATION_TOKENS for end, chat in ended):
        lines.append(
            f"{endless} of the sample answers below had not ended when the original's had."
        )
    if (sanity.repetition or 0) > REPETITIVE:
        lines.append("It repeats itself in a sample answer.")
    return lines


def _licence(licence: Licence) -> dict[str, Safe]:
    """Its name for the overview, and the sentence that says where the name comes from."""
    name, files = licence.id, Safe(" and ".join(map(code, licence.files)))
    if not files:
        words = f"{inline(name)}, says the recipe" if name else "none came with the original"
        start = f"The recipe states {inline(name)}, but the original" if name else "The original"
        return {
            "words": Safe(words),
            "sentence": Safe(
                f"{start} came without a licence file, so there is none here. Ask its publisher "
                f"first."
            ),
        }
    origin = "the recipe says" if licence.stated else "by its wording"
    named = "" if name in (None, "other") else f" It is {inline(name)}, {origin}."
    words = files if name in (None, "other") else f"{inline(name)} ({files})"
    return {
        "words": Safe(words),
        "sentence": Safe(f"The original's own licence is in {files} and holds here too.{named}"),
    }
