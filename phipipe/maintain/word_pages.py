"""Pages about metrics, rules, exit codes, events and settings."""

from __future__ import annotations

import re
from collections.abc import Iterable

from phipipe import metrics
from phipipe.cli import explain
from phipipe.cli.explain import Explanation
from phipipe.execution import events
from phipipe.maintain.markdown import bullets, code, page, prose, section, sentence, table

# First letter of an id → where the rule stands, in the order of the page.
FAMILIES = {
    "M": "Every backend: the model",
    "A": "Every backend: learned weights",
    "O": "onnxruntime",
    "L": "llamacpp",
    "X": "mlx",
    "V": "openvino",
    "Q": "qnn",
    "R": "litert",
    "T": "torch",
    "D": "Devices and units",
    "W": "Remarks about a checkpoint",
    "F": "Fix-ups",
}
KINDS = {
    "fidelity": "Fidelity: how close the file is to the original",
    "pictures": "Fidelity after pictures, for models that see",
    "answers": "Answers to prompts (`evaluate.generate`)",
    "size": "Size",
    "speed": "Speed and memory",
}


def metric_page() -> str:
    """Every figure of a build."""
    sections = [
        section(
            title,
            *(_metric(row) for row in metrics.ROWS if row.kind == kind),
        )
        for kind, title in KINDS.items()
    ]
    return page(
        "Metrics",
        "A build is measured by these figures. Gates and tolerances of a recipe name them. All "
        "figures of fidelity compare the very file that ships with the original, on the same "
        "tokens: what the file loses, and in `kld_run` what its runtime adds by default. Most come "
        "with a standard error; a difference within it says nothing. Sizes are those of the files "
        "that the runtime needs. A package's papers (README, licence, recipe, manifest, sums, "
        "reference data) do not count, so `run`, `eval`, `measure` and the board give one size.",
        *sections,
    )


def _metric(row: metrics.Metric) -> str:
    factor = f", shown in {row.unit}" if row.factor != 1 else f", in {row.unit}" if row.unit else ""
    better = "Lower is better" if row.better == "lower" else "Higher is better"
    return section(
        row.name,
        f"**{row.title}**{factor}. {better}.",
        sentence(row.meaning),
        level=3,
    )


def rules() -> str:
    """Every rule, remark and fix-up, with its reason."""
    known = [one for one in explain.explanations().values() if one.kind != "exit code"]
    order = list(FAMILIES)
    known.sort(key=lambda one: (order.index(one.id[0]), one.id))
    index = [[f"[{one.id}](#{one.id.lower()})", one.kind, sentence(one.what)] for one in known]
    return page(
        "Rules and fix-ups",
        "phipipe knows what cannot work, and what works badly. An error stops the build before any "
        "work. A warning is printed, and the build goes on. A fix-up changes a staged copy of "
        "`config.json`; the source is never changed. `phipipe explain ID` prints one of them. "
        "Words in capitals stand for values of the build.",
        section("All of them", table(["id", "kind", "says"], index)),
        *(
            section(title, *(_rule(one) for one in known if one.id[0] == letter))
            for letter, title in FAMILIES.items()
            if any(one.id[0] == letter for one in known)
        ),
    )


def _rule(one: Explanation) -> str:
    facts = [
        f"**Why:** {sentence(one.why)}",
        f"**What to do:** {sentence(one.do)}" if one.do else "",
        f"**Seen in:** {one.since}." if one.since else "",
        f"**Upstream:** {', '.join(one.upstream)}." if one.upstream else "",
        f"**Also called:** {', '.join(one.also)}." if one.also else "",
    ]
    lines = bullets(line for line in facts if line)
    return section(one.id, f"*{one.kind}* – {sentence(one.what)}", lines, level=3)


def exit_codes() -> str:
    """Every exit code."""
    known = [one for one in explain.explanations().values() if one.kind == "exit code"]
    rows = [[f"[{one.id}](#exit-code-{one.id})", sentence(one.what)] for one in known]
    return page(
        "Exit codes",
        "A command that succeeds ends with 0. Of several failures the highest code counts. With "
        "`--json` the code stands in `error.code`, too.",
        table(["code", "meaning"], rows),
        *(
            section(
                f"Exit code {one.id}",
                sentence(one.what),
                bullets([f"**Why:** {sentence(one.why)}", f"**What to do:** {sentence(one.do)}"]),
            )
            for one in known
        ),
    )


def event_page() -> str:
    """Every event of a run, as ``execution.events`` lists them."""
    text = events.__doc__ or ""
    rows = [
        [code(name), _fields(rest.replace("``PROGRESS_S``", f"{events.PROGRESS_S:g} s"))]
        for name, rest in re.findall(r"^- ``(\w+)``: (.*?)(?=^- |^$)", text, re.M | re.S)
    ]
    return page(
        "Events",
        "`run` and `batch` write events with `--log-format json`: one JSON object per line on "
        "stderr. The last "
        f"{events.KEPT} runs keep theirs in the cache, killed runs too: `phipipe runs ls`, "
        "`phipipe runs show ID`, `phipipe runs logs ID`.",
        "Every event has `event`, `time` (UTC, ISO 8601) and `run`. Fields in [ ] are there where "
        "they are known.",
        table(["event", "fields"], rows),
        "With the extra `otel` and `OTEL_EXPORTER_OTLP_ENDPOINT` set, a run is a trace, and each "
        "step that was not cached is a span.",
    )


def _fields(text: str) -> str:
    return prose(text).replace("[", r"\[").replace("]", r"\]")


def names_of_events() -> Iterable[str]:
    """Events that the page lists."""
    return re.findall(r"^- ``(\w+)``:", events.__doc__ or "", re.M)
