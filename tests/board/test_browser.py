"""The board's page in a real browser, light and dark, on a phone and on a desk.

``PHIPIPE_TEST_BROWSER`` names the browser, ``PHIPIPE_TEST_SCREENSHOTS`` a folder that keeps
screenshots. Without a browser these tests fail and say how to install one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from testing import browser as tool
from testing.boards import entry, nineteen

from phipipe.batch import pages
from phipipe.board import board, file, html
from phipipe.board import entry as board_entry
from phipipe.board.entry import Entry

pytestmark = [pytest.mark.full, pytest.mark.browser]
SIZES = {"390": tool.PHONE, "1400": tool.DESKTOP}
DEVICES = ("CPU (x86-64)", "Apple silicon", "Raspberry Pi 5", "Snapdragon X Elite", "Intel NPU")
RUNTIMES = ("torch", "llamacpp", "mlx", "qnn", "openvino", "onnxruntime", "litert", "another")


def many() -> list[Entry]:
    """Sixty builds with names as long as people make them, and two that failed."""
    made = [
        entry(
            f"phi-4-mini-instruct-of-our-team-for-summaries-of-letters-{i}_q{i % 8}_k_m",
            2.5 + i % 14,
            0.3 / (1 + i % 14) ** 2,
            device=DEVICES[i % 5],
            backend=RUNTIMES[i % 8],
            on_target=("true", "false", "emulated")[i % 3],
        )
        for i in range(60)
    ]
    failed = "the converter was ended by signal 9 (out of memory?) " * 6
    lost = [board_entry.failed(f"lost-{i}", "litert", "int4", failed, DEVICES[2]) for i in (1, 2)]
    return [*made, *lost]


BOARDS = {
    "nineteen": nineteen(),
    "many": many(),
    "one": [entry()],
    "equal": [entry("a"), entry("b")],
    "unsound": [entry("a", sanity={"tokenizer_equal": False}), entry("b", kld=0.5)],
    "failed": [board_entry.failed("x", "torch", "int4", "no memory " * 40, "CPU (x86-64)")],
}
# The usual board in every way; of others both sizes and both themes.
VIEWS = [
    ("nineteen", "390", "dark"),
    ("nineteen", "1400", "light"),
    *(
        (name, *view)
        for name in (*BOARDS, "board")
        for view in (("390", "light"), ("1400", "dark"))
    ),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tool.launched() as started:
        yield started


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page for each of ``BOARDS``, and one that leads to the boards of two models."""
    place = tmp_path_factory.mktemp("boards")
    for name, entries in BOARDS.items():
        (place / f"{name}.html").write_text(html.render(entries, name), "utf-8")
    other = [replace(e, source="phi-4-mini", source_digest="d" * 64) for e in many()]
    texts, _ = pages.boards([*nineteen(), *other], place, "Two models")
    for name, text in texts.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(text, "utf-8")
    return place


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("screenshots")


def test_a_machine_without_a_browser_is_told_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(tool.PROGRAM, raising=False)
    with pytest.raises(RuntimeError, match="apt-get install chromium"):
        tool.program()
    monkeypatch.setenv(tool.PROGRAM, "of-my-own")
    assert tool.program() == "of-my-own"


@pytest.mark.parametrize(("name", "size", "theme"), VIEWS)
def test_a_page_fits_its_window_and_has_no_serious_fault(
    name: str, size: str, theme: str, browser: Browser, folder: Path, screenshots: Path
) -> None:
    with tool.opened(browser, folder / f"{name}.html", SIZES[size], theme) as page:
        assert tool.overflowing(page) == []
        assert tool.faults(page) == []
        picture = tool.kept(page, f"{name}-{size}-{theme}", screenshots)
        assert picture.stat().st_size > 5000
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark == ("rgb(13, 17, 23)" if theme == "dark" else "rgb(255, 255, 255)")


@pytest.mark.parametrize("name", ["nineteen", "many"])
def test_name_size_fidelity_and_speed_stand_on_a_phones_first_screen(
    name: str, browser: Browser, folder: Path
) -> None:
    with tool.opened(browser, folder / f"{name}.html", tool.PHONE) as page:
        for row in page.locator("#board tbody tr:not(:has(.error))").all()[:20]:
            for cell in ("th", *(f"[data-metric={m}]" for m in METRICS)):
                box = row.locator(cell).bounding_box()
                assert box is not None
                assert box["x"] >= 0
                assert box["x"] + box["width"] <= tool.PHONE[0]
        answer = page.locator(".card .build").first.bounding_box()
        assert answer is not None
        assert answer["y"] < tool.PHONE[1] / 2  # which to ship comes first


METRICS = ("size_gib", "kld_mean", "decode_tokens_per_s")


def names(page: Page) -> list[str]:
    """Of the rows that are shown, from top to bottom."""
    rows = page.locator("#board tbody tr:not([hidden])")
    return [str(row.get_attribute("data-name")) for row in rows.all()]


def column(page: Page, metric: str) -> list[float]:
    cells = page.locator(f"#board tbody tr:not([hidden]) [data-metric={metric}]")
    values = cells.evaluate_all("cells => cells.map(cell => cell.dataset.value)")
    return [float(value) for value in values if value]


def test_the_figures_on_the_page_are_those_of_its_data(browser: Browser, folder: Path) -> None:
    entries = {e["name"]: e for e in json.loads(file.dump(BOARDS["nineteen"]))["entries"]}
    with tool.opened(browser, folder / "nineteen.html") as page:
        assert names(page) == list(entries)
        for row in page.locator("#board tbody tr:not(:has(.error))").all():
            figures = entries[str(row.get_attribute("data-name"))]["metrics"]
            for metric in METRICS:
                cell = row.locator(f"[data-metric={metric}]")
                assert float(cell.get_attribute("data-value") or "nan") == figures[metric]
                assert _same(cell.inner_text(), figures[metric])
        failed = page.locator("#board tr:has(.error)")
        assert failed.count() == 1
        assert "failed: `quantize` was ended" in failed.inner_text()


def _same(shown: str, value: float) -> bool:
    """Whether a cell such as ``0.0250\\n± 0.0008`` or ``22.2 °†`` shows ``value``."""
    number = re.match(r"[\d.,e-]+", shown)
    assert number is not None
    return float(number[0].replace(",", "")) == pytest.approx(value, rel=0.06)


def test_the_answers_on_the_page_are_those_of_its_data(browser: Browser, folder: Path) -> None:
    picks = json.loads(file.dump(BOARDS["nineteen"]))["picks"]
    with tool.opened(browser, folder / "nineteen.html") as page:
        cards = page.locator(".card").all()
        assert len(cards) == len(picks) == 3
        for card, answer in zip(cards, picks, strict=True):
            assert card.locator("h3").inner_text() == answer["where"]
            assert card.locator(".build").inner_text().strip() == answer["picks"][0]["build"]
            for pick in answer["picks"]:
                assert pick["build"] in card.inner_text()


def test_a_heading_sorts_and_says_so(browser: Browser, folder: Path) -> None:
    with tool.opened(browser, folder / "nineteen.html") as page:
        assert column(page, "size_gib") == sorted(column(page, "size_gib"))
        head = page.locator("#board th[aria-sort]")
        assert (head.count(), head.get_attribute("aria-sort")) == (1, "ascending")
        speed = page.get_by_role("button", name="tokens/s", exact=True)
        for order, word in ((False, "lowest"), (True, "highest")):
            speed.click()
            found = column(page, "decode_tokens_per_s")
            assert found == sorted(found, reverse=order)
            caption = page.locator("#board caption").inner_text()
            assert caption == f"19 builds, by tokens/s, {word} first"
        assert names(page)[-1] == "onnxruntime-gptq"  # failed builds stay last
        page.get_by_role("button", name="Build", exact=True).click()
        assert names(page)[:-1] == sorted(names(page)[:-1], key=_natural)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def test_a_device_and_a_word_filter_the_whole_page(browser: Browser, folder: Path) -> None:
    with tool.opened(browser, folder / "nineteen.html") as page:
        page.get_by_label("Device").select_option("Intel NPU")
        npu = ["openvino-int4-15", "openvino-int8-14", "openvino-fp16-13"]
        assert names(page) == npu
        assert page.locator("#count").inner_text() == "3 of 19 builds"
        assert page.locator(".card:visible h3").all_inner_texts() == ["Intel NPU, intel-npu"]
        assert page.locator(".point:visible").count() == 3
        assert page.locator("#chart-decode li:visible .name").all_inner_texts() == npu
        page.get_by_label("Find").fill("INT8")
        assert names(page) == ["openvino-int8-14"]
        page.get_by_label("Find").fill("nobody")
        assert names(page) == []
        page.get_by_label("Find").fill("")
        page.get_by_label("Device").select_option("")
        assert len(names(page)) == 19
        assert page.locator("#count").inner_text() == ""


def test_a_point_leads_to_its_row_also_where_the_row_is_filtered_out(
    browser: Browser, folder: Path
) -> None:
    with tool.opened(browser, folder / "nineteen.html") as page:
        point = page.locator(".point[data-name='llamacpp-int4-11']")
        point.hover()
        assert point.locator("span").is_visible()
        point.click()
        row = page.locator("#board tr:target")
        assert row.get_attribute("data-name") == "llamacpp-int4-11"
        page.get_by_label("Find").fill("torch")
        page.evaluate("location.hash = ''")
        page.evaluate("location.hash = '#build-0'")
        page.wait_for_function("!document.querySelector('#build-0').hidden")


def focused(page: Page) -> str:
    return str(
        page.evaluate(
            "(({id, textContent, ariaLabel}) => id || ariaLabel || textContent.trim())"
            "(document.activeElement)"
        )
    )


def test_keys_reach_everything_in_the_order_of_reading(browser: Browser, folder: Path) -> None:
    with tool.opened(browser, folder / "nineteen.html") as page:
        reached = []
        for _ in range(10):
            page.keyboard.press("Tab")
            reached.append(focused(page))
        assert reached[:5] == ["theme", "Explain fit to ship", "find", "device", reached[4]]
        assert reached[5:8] == ["Build", "Explain ★ Pareto front", "size"]
        assert reached[8:10] == ["Explain size", "KLD, nats"]
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        assert page.locator("[popover]:popover-open").count() == 1
        page.keyboard.press("Escape")
        assert page.locator("[popover]:popover-open").count() == 0


@pytest.mark.parametrize("size", SIZES)
def test_a_question_mark_explains_beside_itself(size: str, browser: Browser, folder: Path) -> None:
    with tool.opened(browser, folder / "nineteen.html", SIZES[size], has_touch=True) as page:
        mark = page.get_by_role("button", name="Explain KLD, nats")
        mark.scroll_into_view_if_needed()
        mark.tap()
        note = page.locator("[popover]:popover-open")
        assert "How far the file's predictions are from the original's" in note.inner_text()
        box, own = note.bounding_box(), mark.bounding_box()
        assert box is not None
        assert own is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= SIZES[size][0]
        assert abs(box["y"] - own["y"]) < 250
        assert tool.faults(page) == []
        page.touchscreen.tap(5, 5)
        assert note.count() == 0


def test_a_button_switches_the_theme(browser: Browser, folder: Path) -> None:
    with tool.opened(browser, folder / "one.html") as page:
        button = page.locator("#theme")
        assert button.inner_text() == "Dark theme"
        button.click()
        assert button.inner_text() == "Light theme"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(13, 17, 23)"
        page.emulate_media(color_scheme="dark")


A4 = (688, 1017)  # without margins, in CSS pixels


@pytest.mark.parametrize("name", ["nineteen", "many", "board"])
def test_a_page_prints_in_full_and_on_light_paper(
    name: str, browser: Browser, folder: Path, screenshots: Path
) -> None:
    with tool.opened(browser, folder / f"{name}.html", A4, "dark") as page:
        page.emulate_media(media="print", color_scheme="dark")
        assert tool.overflowing(page) == []
        table = page.locator("table").first.bounding_box()
        assert table is not None
        assert table["x"] + table["width"] <= A4[0]
        ground = page.evaluate(
            "getComputedStyle(document.documentElement).getPropertyValue('--page')"
        )
        assert ground.strip() == "#ffffff"
        assert not page.locator(".tools").first.is_visible()
        tool.kept(page, f"{name}-print", screenshots)
        paper = page.pdf(format="A4", print_background=False)
        assert len(re.findall(rb"/Type\s*/Page\b", paper)) >= 2


def test_without_scripts_the_page_says_the_same(browser: Browser, folder: Path) -> None:
    with tool.opened(
        browser, folder / "nineteen.html", tool.PHONE, "dark", java_script_enabled=False
    ) as page:
        shown: Sequence[str] = page.locator("#board tbody th").all_inner_texts()
        assert len(shown) == 19
        assert page.locator(".point").count() == 18
        assert not page.locator(".tools").is_visible()
        assert not page.locator("#theme").is_visible()


def test_the_page_of_several_models_leads_to_their_boards(browser: Browser, folder: Path) -> None:
    with tool.opened(browser, folder / "board.html") as page:
        assert page.locator("h2 a").all_inner_texts() == ["phi-3-mini", "phi-4-mini"]
        best = [answer.picks[0].build for answer in board.answers(nineteen())]
        shown = page.locator(".ship").first.locator(".build").all_inner_texts()
        assert [text.strip() for text in shown] == best
        page.get_by_role("link", name="phi-4-mini", exact=True).click()
        assert page.title() == "Two models: phi-4-mini"
