"""The fidelity board: its order and front, its file, its text, and a page that nothing can break
out of."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from itertools import combinations
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.boards import HOST, MAC, entry, nineteen

from phipipe import backends
from phipipe.board import board, colours, file, html, plots
from phipipe.board import entry as board_entry
from phipipe.board import figures as drawn
from phipipe.board import text as board_text
from phipipe.board.entry import Entry
from phipipe.errors import SourceError
from phipipe.package.description import Description


def test_the_smallest_comes_first_of_equals_the_closest_and_failures_last() -> None:
    entries = [
        board_entry.failed("z", "torch", "fp16", "no"),
        entry("large", 8, 1e-8),
        entry("far", 4, 1e-2),
        entry("near", 4, 1e-3),
        entry("largest", 32, 0),
    ]
    assert [e.name for e in board.ranked(entries)] == ["near", "far", "large", "largest", "z"]


def test_every_board_says_how_it_is_ordered() -> None:
    entries = nineteen()
    assert "Smallest first." in board_text.table(entries).splitlines()
    assert "Smallest first." in board_text.markdown(entries)
    assert "19 builds, the smallest first" in html.render(entries)


def test_equal_names_are_told_apart() -> None:
    assert sorted(
        e.name for e in board.ranked([entry("a"), entry("a", kld=0.1), entry("a", kld=0.2)])
    ) == [
        "a",
        "a (2)",
        "a (3)",
    ]


def test_a_board_survives_its_file() -> None:
    entries = nineteen()
    again = file.load(file.dump(entries))
    assert again == board.ranked(entries)
    assert file.dump(again) == file.dump(reversed(entries))


@st.composite
def drawn_entries(draw: st.DrawFn) -> list[Entry]:
    """Boards of any devices and backends, where some figures were not taken and some builds
    failed."""
    made = []
    for i in range(draw(st.integers(0, 6))):
        device, backend = (
            draw(st.sampled_from(["Mac", "Pi", "", "\x1b[31mNPU\n"])),
            draw(st.sampled_from(["mlx", "new"])),
        )
        if draw(st.integers(0, 3)) == 0:
            made.append(board_entry.failed(f"b{i}", backend, "int4", "no memory", device))
            continue
        figures = {
            "kld_mean": draw(st.sampled_from([0.0, 0.01, 0.5])),
            "size_gib": 1.0 + i % 3,
            "bits_per_weight": 4.5,
        }
        if draw(st.booleans()):
            figures["decode_tokens_per_s"] = draw(st.sampled_from([0.0, 1e-300, 5.0, 1e300]))
        spread = draw(
            st.sampled_from([{}, {"decode_tokens_per_s": [0.0, 9.0]}, {"ttft_s": [9.0, 1.0]}])
        )
        told = {
            "metrics": figures,
            "spread": spread,
            "device": device,
            "backend": backend,
            "stderr": {},
        }
        told |= {
            "on_target": draw(st.sampled_from(["true", "emulated", "false"])),
            "reference": draw(st.booleans()),
        }
        made.append(entry(draw(st.sampled_from(["same", "b|`<\n"])), **told))
    return made


@settings(max_examples=40)
@given(drawn_entries(), st.randoms(use_true_random=False))
def test_any_board_has_its_answers_in_every_order_and_after_its_file(
    entries: list[Entry], dice: Random
) -> None:
    found = board.answers(entries)
    assert board.answers(dice.sample(entries, len(entries))) == found
    assert board.answers(file.load(file.dump(entries))) == found
    assert all(line.isprintable() for line in board_text.advice(entries))
    assert [
        line for line in board_text.markdown(entries).splitlines() if line.startswith("# ")
    ] == ["# Fidelity board"]
    assert board_text.table(entries)


def changed(**new: Any) -> str:
    raw = json.loads(file.dump([entry()]))
    for name, value in new.items():
        (raw if name in ("type", "format", "entries") else raw["entries"][0])[name] = value
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "no board"),
        (changed(type="phipipe-package"), "no board"),
        (changed(format=2), "newer phipipe"),
        (changed(format=True), "no known format"),
        (changed(entries={}), "no known format"),
        (changed(entries=[3]), "`entries.0`"),
        (changed(tokens="many"), "`entries.0.tokens`"),
        (changed(on_target="perhaps"), "`entries.0.on_target`"),
        (changed(unheard=1), "`entries.0.unheard`"),
        (changed(metrics={"kld_mean": math.nan}), "`NaN` is no number"),
        (changed(metrics={"kld_mean": "0.1"}), "`entries.0.metrics.kld_mean`"),
        (changed().replace('"window": 512', '"window": 512, "window": 512'), "stands there twice"),
        (changed(metrics={"kld_mean": 0.1}), "has no `size_gib`"),
        (changed(metrics={"kld_mean": 0.1, "size_gib": 0.0, "bits_per_weight": 4}), "has no size"),
        (changed(metrics={"kld_mean": -0.1, "size_gib": 1.0, "bits_per_weight": 4}), "below zero"),
        (changed(spread={"ttft_s": [1.0]}), "no pair"),
        (changed(sanity={"answers_ended": True}), "sanity"),
        (changed(sanity={"greedy_agreement": "all"}), "`entries.0.sanity"),
    ],
)
def test_what_is_no_board_is_refused(text: str, said: str) -> None:
    with pytest.raises(SourceError, match=re.escape(said)):
        file.load(text)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            {"source_digest": "d" * 64},
            "source model differs: `one` has phi-3-mini aaaaaaaaaaaa, `two` has phi-3-mini ddd",
        ),
        ({"text_digest": "e" * 64}, "evaluation text differs"),
        ({"tokens": 8192}, "number of tokens differs: `one` has 4096, `two` has 8192"),
        ({"window": 2048}, "window differs"),
        ({"skip": 256}, "skip differs"),
    ],
)
def test_builds_that_do_not_compare_are_refused(other: dict[str, Any], said: str) -> None:
    with pytest.raises(SourceError, match=said) as caught:
        board.check_comparable(
            [entry("one"), board_entry.failed("x", "torch", "int4", "no"), entry("two", **other)]
        )
    assert caught.value.hint


def test_another_machine_is_allowed_and_marked() -> None:
    entries = [entry("a"), entry("b"), entry("c", host=MAC), entry("d", prompt_tokens=512)]
    board.check_comparable(entries)
    assert board.elsewhere(entries) == {"c", "d"}
    marked = [line for line in board_text.table(entries, 200).splitlines() if "†" in line]
    assert [line.split()[1] for line in marked[:2]] == ["c", "d"]
    assert marked[2].startswith("† measured on another machine")
    assert "†" not in board_text.table(entries[:2], 200)


@given(st.integers(20, 220))
def test_the_table_keeps_its_width(width: int) -> None:
    lines = board_text.table(nineteen(), width).splitlines()
    assert max(map(len, lines)) <= width
    assert all(line.isprintable() for line in lines)


def test_a_narrow_table_still_says_what_matters() -> None:
    shown = board_text.table(nineteen(), 100)
    head, *rows = shown.splitlines()
    assert head.split()[:2] == ["build", "backend,"]
    assert all(word in head for word in ("size", "bits/w", "KLD, nats", "top-1 %"))
    assert any(row.startswith("* torch-fp16-7") and "2.00e-7" in row for row in rows)
    assert "! onnxruntime-gptq: onnxruntime int4, failed: `quantize` was ended: [31mmemory" in shown
    assert "KLD" in board_text.table([entry("n" * 70)], 80)
    assert "behind" in board_text.table(nineteen(), 200)


def test_a_board_without_a_success_says_so() -> None:
    entries = [board_entry.failed("x", "torch", "int4", "no memory")]
    assert board.lines(board.answers(entries)) == ["Nothing to ship: no build succeeded."]
    for text in (
        board_text.table(entries),
        board_text.markdown(entries),
        html.render(entries),
    ):
        assert "no memory" in text
    assert file.load(file.dump(entries)) == entries
    assert "Nothing" in html.render([])


def test_which_to_ship_comes_from_the_figures_of_each_device() -> None:
    cpu, *others = board.answers(nineteen())
    assert cpu.where == "CPU (x86-64)"
    assert [(pick.aim, pick.build) for pick in cpu.picks] == [
        ("size", "torch-int4-8"),
        ("fidelity", "llamacpp-int8-10"),  # fp16 is no quantized build
        ("answer speed", "llamacpp-int4-11"),
    ]
    assert cpu.picks[2].equals == (
        "onnxruntime-int4-4",
        "torch-int4-8",
        "onnxruntime-int4-5",
        "llamacpp-int4-12",
    )
    assert [[pick.aim for pick in answer.picks] for answer in others] == [["size", "fidelity"]] * 2
    cautions = {answer.where: " ".join(answer.cautions) for answer in others}
    assert "emulated" in cautions["Intel NPU, intel-npu"]
    assert "not measured on the device" in cautions["Apple silicon, metal"].casefold()


def test_text_markdown_page_and_data_say_the_same_of_every_device() -> None:
    entries = nineteen()
    found = board.answers(entries)
    assert len(found) == 3
    page = Page(html.render(entries))
    markdown = board_text.markdown(entries)
    for answer, told in zip(found, json.loads(file.dump(entries))["picks"], strict=True):
        assert answer.line in page.seen
        assert answer.line in markdown
        assert told["line"] == answer.line
        for pick in answer.picks:
            assert f"{pick.build}: {pick.words}" in page.seen
            assert f"`{pick.build}` ({pick.words})" in markdown
    best, rivals = board.standing(found)
    starred = [row.split("|")[1].strip() for row in markdown.splitlines() if row.endswith("| ★ |")]
    assert sorted(starred) == sorted(best)
    assert all(
        f"| {name} |" in markdown and f"| behind {rival} |" in markdown
        for name, rival in rivals.items()
    )
    assert {
        line.split()[1]
        for line in board_text.table(entries, 160).splitlines()
        if line.startswith("* ")
    } >= best


def test_markdown_holds_whatever_it_is_told() -> None:
    text = board_text.markdown(
        [entry("a|b\n# c"), board_entry.failed("x", "torch", "int4", "| <b>\n\n# heading")]
    )
    assert len([line for line in text.splitlines() if line.startswith("#")]) == 2
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


class Page(HTMLParser):
    """What a browser would see: elements, their text, and every attribute."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.seen = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts.append((self.tags[-1][1], data))
        else:
            self.seen += data


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(html.render(nineteen(), "Nineteen"))


def test_the_page_loads_nothing(page: Page) -> None:
    loads = [
        (tag, name)
        for tag, found in page.tags
        for name in found
        if name in ("src", "href", "srcset", "action")
    ]
    assert loads == []
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "img", "object", "base"}
    policy = next(found for tag, found in page.tags if tag == "meta" and "http-equiv" in found)
    assert (policy["content"] or "").startswith("default-src 'none'")
    own = "".join(text for _, text in page.scripts if "plotly.js v" not in text[:200])
    assert not re.search(r"https?://|@import|url\(", own + page.seen)


def test_the_page_has_both_themes_and_colours_for_each(page: Page) -> None:
    assert "prefers-color-scheme: dark" in page.seen
    assert '[data-theme="dark"]' in page.seen
    assert any(found.get("id") == "theme" for tag, found in page.tags if tag == "button")
    used = {
        colour
        for _, text in page.scripts
        if text.startswith("{")
        for colour in re.findall(r"#[0-9a-f]{6}\b", text)
    }
    assert set(colours.DARK) & used
    assert used <= set(colours.DARK) | set(
        colours.DARK.values()
    )  # none that the dark theme forgets


# Linear RGB as people see it who lack one kind of cone (Machado, Oliveira and Fernandes 2009,
# severity 1).
SIGHT = {
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.1523, 1.0526, -0.2049), (0.1145, 0.7863, 0.0992), (-0.0039, -0.0481, 1.0520)),
    "deutan": ((0.3673, 0.8606, -0.2280), (0.2801, 0.6725, 0.0474), (-0.0118, 0.0429, 0.9689)),
    "tritan": ((1.2555, -0.0767, -0.1788), (-0.0784, 0.9308, 0.1476), (0.0047, 0.6914, 0.3039)),
}
# Linear RGB → cones, and their cube roots → lightness and two colour axes: OKLab, in which
# distances are even.
CONES = ((0.4122, 0.5363, 0.0514), (0.2119, 0.6807, 0.1074), (0.0883, 0.2817, 0.6300))
OKLAB = ((0.2105, 0.7936, -0.0041), (1.9780, -2.4286, 0.4506), (0.0259, 0.7828, -0.8087))
Vector = tuple[float, ...]


def times(matrix: Sequence[Vector], vector: Vector) -> Vector:
    return tuple(sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix)


def linear(colour: str) -> Vector:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return tuple(c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)


def seen(colour: str, sight: str) -> Vector:
    shown = tuple(min(max(c, 0.0), 1.0) for c in times(SIGHT[sight], linear(colour)))
    return times(OKLAB, tuple(cone ** (1 / 3) for cone in times(CONES, shown)))


@pytest.mark.parametrize("pages", [("#ffffff", 0), ("#0d1117", 1)])
def test_plot_colours_stand_out_from_the_page(pages: tuple[str, int]) -> None:
    def light(colour: str) -> float:
        return sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True))

    for pair in colours.SERIES.items():
        low, high = sorted((light(pages[0]), light(pair[pages[1]])))
        assert (high + 0.05) / (low + 0.05) >= 3, pair


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", [0, 1])
def test_every_backend_has_a_colour_of_its_own_for_all_eyes(theme: int, sight: str) -> None:
    assert all(backends.load(name).colour is not None for name in backends.names())
    assert (
        len({colours.of_entry(entry(backend=name)) for name in (*backends.names(), "another")}) == 8
    )
    for one, other in combinations(
        colours.SERIES.items(), 2
    ):  # 0.02 is what can just be told apart
        assert math.dist(seen(one[theme], sight), seen(other[theme], sight)) > 0.08, (one, other)


def test_the_page_can_be_read_without_eyes(page: Page) -> None:
    plots = [found for tag, found in page.tags if tag == "div" and found.get("class") == "plot"]
    assert len(plots) == 7
    assert all(found.get("role") == "img" and found.get("aria-label") for found in plots)
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert [tag for tag, _ in page.tags].count("caption") == 2
    assert (
        len([1 for tag, found in page.tags if tag == "th" and found.get("scope") == "row"])
        == 19 + 18
    )


def figures(page: Page) -> dict[str, Any]:
    return {
        str(a["id"]): json.loads(t)
        for a, t in page.scripts
        if str(a.get("id", "")).endswith("-figure")
    }


def test_a_divergence_of_zero_keeps_its_place_on_the_logarithmic_axis(page: Page) -> None:
    scatter = figures(page)["plot-front-figure"]
    heights = [y for trace in scatter["data"] for y in trace["y"] if y is not None]
    assert min(heights) == board_entry.ZERO
    assert scatter["layout"]["yaxis"]["ticktext"][-1].startswith("0 (≤ 10")
    assert scatter["layout"]["yaxis"]["tickvals"][-1] == board_entry.ZERO
    without = figures(Page(html.render([entry()])))["plot-front-figure"]
    assert not any(text.startswith("0 (") for text in without["layout"]["yaxis"]["ticktext"])


FEW = {"kld_mean": 0.1, "size_gib": 1e-5, "bits_per_weight": 4.0}


@pytest.mark.parametrize(
    "entries", [[entry(kld=0.0)], [entry(profile={}, spread={}, sanity={}, metrics=FEW)]]
)
def test_a_page_of_one_build_with_little_to_say(entries: list[Entry]) -> None:
    assert "one" in Page(html.render(entries)).seen
    assert board_text.table(entries)
    assert board_text.markdown(entries)


NASTY = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--<b>\u2028&lt;\" ' {{ 7*7 }}"
)
ACTING = "\x1b]0;x\x07\x9b\u202e\u2066"


def test_nothing_breaks_out_of_the_page() -> None:
    told: dict[str, Any] = dict.fromkeys(
        ("scheme", "device", "source", "text", "backend", "backend_title", "precision"),
        ACTING + NASTY,
    )
    entries = [
        entry(NASTY, **told, host={"system": NASTY}, tools={NASTY: NASTY}, keys={NASTY: NASTY}),
        board_entry.failed(f"2{NASTY}", NASTY, NASTY, NASTY),
    ]
    page, plain = (
        Page(html.render(entries, NASTY)),
        Page(html.render([entry("x"), board_entry.failed("y", "z", "z", "z")])),
    )
    assert len(page.scripts) == len(plain.scripts)
    assert [tag for tag, _ in page.tags if tag in ("script", "img", "b")] == ["script"] * len(
        plain.scripts
    )
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    assert "alert(1)" in page.seen
    written = (
        page.seen
        + board_text.markdown(entries, ACTING)
        + "".join(str(found) for _, found in page.tags)
    )
    assert not set(ACTING) - set("]0;x") & set(written)
    assert "49" not in page.seen.split("{{ 7*7 }}")[0][-5:]
    for text in (
        str(trace.get(name))
        for f in figures(page).values()
        for trace in f["data"]
        for name in ("name", "text", "hovertext", "y")
    ):
        assert not re.search(
            r"<(?!b>|/b>|br>|sup>|/sup>)", text
        )  # plotly reads its labels as markup


def test_labels_are_one_short_line() -> None:
    assert drawn.label("a\n<b>&" + "c" * 99, 8) == "a &lt;b&gt;&amp;c…"
    assert "\u2028" not in plots.embedded(["\u2028</script>"])
    assert json.loads(plots.embedded(["</script>&"])) == ["</script>&"]


def test_an_entry_says_what_its_manifest_says() -> None:
    step = {"digest": "t" * 64, "key": "k" * 64, "tools": {"torch": "2.13.0", "idna": "3.20"}}
    manifest = Description.model_validate({
        "name": "tiny", "backend": "torch", "backend_title": "PyTorch",
        "precision": "fp16", "scheme": "float16",
        "api": "cpu", "on_target": "true", "phipipe": "0.1.0", "device": {"title": "CPU"},
        "recipe": {"backend": "torch", "precision": "fp16",
            "evaluate": {"text": {"builtin": "stories"}}},
        "steps": {"text": step},
        "source": {"kind": "hub", "repo": "someone/phi", "digest": "s" * 64, "parameters": 5,
            "architecture": "Phi3ForCausalLM", "context_length": 64},
        "fidelity": {
            "baseline": {"tokens": 64, "window": 32, "skip": 0, "ppl": 2.0, "ppl_stderr": 0.1},
            "metrics": {"kld_mean": 1e-7, "size_gib": 0.1, "bits_per_weight": 16.0},
            "profile": {"by_position": [1e-7], "quantiles": [0.0] * 101},
            "stderr": {}, "sanity": {}, "positions": 62,
        },
        "speed": {"metrics": {"ttft_s": 0.1}, "spread": {"ttft_s": [0.1, 0.2]}, "host": HOST,
            "prompt_tokens": 16},
    })  # fmt: skip
    made = board_entry.from_manifest(manifest)
    assert (made.source, made.text, made.text_digest) == ("someone/phi", "stories", "t" * 64)
    assert made.metrics == {
        "kld_mean": 1e-7,
        "size_gib": 0.1,
        "bits_per_weight": 16.0,
        "ttft_s": 0.1,
    }
    assert (dict(made.tools), dict(made.keys)) == ({"torch": "2.13.0"}, {"text": "k" * 64})
    assert file.load(file.dump([made])) == [made]
