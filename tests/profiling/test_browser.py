"""A run's page in a real browser, light and dark, on a phone and on a desk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from testing import browser as tool
from testing import kept_runs

from phipipe.profiling import page
from phipipe.profiling.profile import profile

pytestmark = [pytest.mark.full, pytest.mark.browser]
SIZES = {"390": tool.PHONE, "1400": tool.DESKTOP}
A4 = (688, 1017)  # without margins, in CSS pixels
LONG = "phi-4-mini-instruct-of-our-team-for-summaries-of-letters: quantize"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tool.launched() as started:
        yield started


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of thirty steps, one of them with a name as long as people make them."""
    run = kept_runs.usual(count=30)
    told = [{n: LONG if v == "s2" else v for n, v in event.items()} for event in run.events]
    made = profile(replace(run, events=tuple(told), builds=("a-long-name" * 30,)))
    folder = tmp_path_factory.mktemp("run")
    (folder / "page.html").write_text(page.render(made), "utf-8")
    return folder / "page.html"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_its_window_and_has_no_serious_fault(
    size: str, theme: str, browser: Browser, path: Path, tmp_path: Path
) -> None:
    with tool.opened(browser, path, SIZES[size], theme) as shown:
        tool.check_shown(shown, theme, f"run-{size}-{theme}", tmp_path)


@pytest.mark.parametrize("size", SIZES)
def test_a_bar_lies_where_its_step_ran(size: str, browser: Browser, path: Path) -> None:
    whole = profile(kept_runs.usual(count=30))
    worked = [one for one in whole.steps if one.state != "cached"]
    with tool.opened(browser, path, SIZES[size]) as shown:
        track = shown.locator(".gantt .track").first.bounding_box()
        bars = [bar.bounding_box() for bar in shown.locator(".gantt .bar").all()]
        assert track is not None
        assert len(bars) == len(worked)
        scale = track["width"] / (1.04 * whole.span_seconds)
        for box, one in zip(bars, worked, strict=True):
            assert box is not None
            assert box["x"] - track["x"] == pytest.approx(one.start_seconds * scale, abs=1.5)
            assert box["width"] == pytest.approx(max(one.seconds * scale, 2), abs=1.5)


def test_words_are_explained_without_scripts(browser: Browser, path: Path) -> None:
    with tool.opened(browser, path, java_script_enabled=False) as shown:
        shown.get_by_role("button", name="Explain Waited").first.click()
        assert shown.locator("#term-waited").is_visible()


def test_the_page_prints_on_light_paper(browser: Browser, path: Path, tmp_path: Path) -> None:
    with tool.opened(browser, path, A4, "dark") as shown:
        tool.check_printed(shown, "run-print", tmp_path)
