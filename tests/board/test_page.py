"""The board's page as text: what it says, that it loads nothing, and that nothing breaks out of
it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testing.boards import entry, nineteen
from testing.pages import Page

from phipipe.board import board, file, html
from phipipe.board import entry as board_entry
from phipipe.board import text as board_text
from phipipe.board.entry import Entry
from phipipe.metrics import METRICS
from phipipe.package import figures

MOST_BYTES = 600_000


@pytest.fixture(scope="module")
def page() -> Page:
    return Page(html.render(nineteen(), "Nineteen"))


def test_the_page_loads_nothing_and_links_only_within_itself(page: Page) -> None:
    loads = [
        (tag, found[name])
        for tag, found in page.tags
        for name in found
        if name in ("src", "href", "srcset", "action")
    ]
    assert {tag for tag, _ in loads} == {"a"}
    ids = {found.get("id") for _, found in page.tags}
    assert all(str(link).startswith("#") and str(link)[1:] in ids for _, link in loads)
    assert not {tag for tag, _ in page.tags} & {"link", "iframe", "img", "object", "base"}
    policy = next(found for tag, found in page.tags if tag == "meta" and "http-equiv" in found)
    assert (policy["content"] or "").startswith("default-src 'none'")
    own = "".join(text for _, text in page.scripts)
    assert not re.search(r"https?://|@import|url\(", own + page.seen)


def sixty() -> list[Entry]:
    """As much as a page may have to hold: long names, all steps, a profile each."""
    steps = {f"step number {i}": f"{i:064x}" for i in range(15)}
    tools = {f"some-package-{i}": "2026.4.0" for i in range(12)}
    return [
        entry(f"{'very-long-name-' * 4}{i}", 4 + i / 9, 0.5 / (i + 1), keys=steps, tools=tools)
        for i in range(60)
    ]


def test_a_page_of_sixty_builds_is_small() -> None:
    assert len(html.render(sixty()).encode()) <= MOST_BYTES
    assert len(html.render(nineteen()).encode()) <= MOST_BYTES / 3


def test_ids_on_the_page_are_its_own(page: Page) -> None:
    ids = [found["id"] for _, found in page.tags if "id" in found]
    assert len(ids) == len(set(ids))
    for _, found in page.tags:
        assert found.get("popovertarget", ids[0]) in ids


def test_the_page_says_where_it_comes_from(page: Page) -> None:
    assert re.search(r"phi-3-mini · \d{1,2} \w+ \d{4}, phipipe \d+\.\d+", page.seen)
    one = Page(html.render([entry()])).seen
    assert "2 cores of AMD EPYC, 24 GiB of memory, Linux x86_64" in one
    assert "2 machines" in page.seen


def test_every_heading_of_the_table_has_its_explanation(page: Page) -> None:
    for name in ("kld_mean", "size_gib", "decode_tokens_per_s", "peak_memory_gib"):
        assert page.seen.count(METRICS[name].meaning) == 2  # beside its ?, and for paper
    assert f"at most {figures.KLD_FIT[1]:g}" in page.seen


def test_a_figure_that_is_not_the_devices_own_is_not_in_its_answer() -> None:
    there, here = (
        Page(html.render([entry(on_target=place), entry("b", on_target=place)])).seen
        for place in ("false", "true")
    )
    answers = [text.split("All builds")[0] for text in (there, here)]
    assert ["tokens/s" in text.split("matters most")[0] for text in answers] == [False, True]
    assert "Not known: none of them was timed on the device." in answers[0]


def test_a_board_without_anything_to_ship_says_so_first() -> None:
    text = Page(html.render([entry(kld=0.9), entry("two", kld=0.8)])).seen
    assert "Nothing to ship" in text.split("All builds")[0]
    assert "none of these 2 builds is fit to ship" in text


def test_the_page_can_be_read_without_eyes(page: Page) -> None:
    plots = [found for _, found in page.tags if found.get("class") in ("plot", "bars")]
    assert len([found for found in plots if found.get("aria-label")]) == 1 + 4 + 6
    assert [tag for tag, _ in page.tags].count("h1") == 1
    assert [tag for tag, _ in page.tags].count("caption") == 2
    scopes = [1 for tag, found in page.tags if tag == "th" and found.get("scope") == "row"]
    assert len(scopes) == 19 + 18


FEW = {"kld_mean": 0.1, "size_gib": 1e-5, "bits_per_weight": 4.0}


@pytest.mark.parametrize(
    "entries", [[entry(kld=0.0)], [entry(profile={}, spread={}, sanity={}, metrics=FEW)]]
)
def test_a_page_of_one_build_with_little_to_say(entries: list[Entry]) -> None:
    assert "one" in Page(html.render(entries)).seen
    assert board_text.table(entries)
    assert board_text.markdown(entries)


def test_one_build_alone_has_no_plot_of_its_size_against_itself() -> None:
    ids = {found.get("id") for _, found in Page(html.render([entry()])).tags}
    assert "chart-front" not in ids
    assert {"chart-divergence", "chart-decode"} <= ids


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
    assert [text for _, text in page.scripts] == [text for _, text in plain.scripts]
    assert not {"img", "table>"} & {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, found in page.tags for name in found)
    assert "alert(1)" in page.seen
    written = (
        page.seen
        + board_text.markdown(entries, ACTING)
        + "".join(str(found) for _, found in page.tags)
    )
    assert not set(ACTING) - set("]0;x") & set(written)
    assert "49" not in page.seen.split("{{ 7*7 }}")[0][-5:]


@settings(max_examples=30)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=30),
            st.floats(0, 1e6),
            st.floats(1e-9, 1e6),
            st.sampled_from(["", "Mac", "Pi"]),
            st.dictionaries(
                st.sampled_from(["decode_tokens_per_s", "ttft_s", "kld_p99", "kld_median"]),
                st.floats(0, 1e300),
            ),
        ),
        max_size=5,
    )
)
def test_any_figures_make_a_page_whose_places_lie_inside_its_charts(made: list[Any]) -> None:
    entries = [
        entry(
            name,
            device=device,
            metrics={"kld_mean": kld, "size_gib": size, "bits_per_weight": 4.0, **other},
            profile={"by_position": [kld, 0.0, kld / 3]},
        )
        for name, kld, size, device, other in made
    ]
    text = html.render(file.load(file.dump(entries)))
    places = re.findall(r"(?:left|bottom|width):(-?[\d.e+-]+|nan|inf)%", text)
    assert all(0 <= float(place) <= 100 for place in places)
    assert len(board.done(entries)) == text.count('id="build-')
