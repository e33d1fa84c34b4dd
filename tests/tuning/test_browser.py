"""The page of a choice of widths in a real browser, light and dark, on a phone and on a desk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from testing import browser as tool
from testing import choices, shapes

from phipipe.tuning import page
from phipipe.tuning.aims import Aim

pytestmark = [pytest.mark.full, pytest.mark.browser]
SIZES = {"420": (420, 900), "1280": (1280, 900)}
A4 = (688, 1017)  # without margins, in CSS pixels


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with tool.launched() as started:
        yield started


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three builds: of few layers, of 32 and of 80."""
    folder = tmp_path_factory.mktemp("tuned")
    (onnx,), (gguf,) = choices.builds(), choices.builds("backend=llamacpp", "quantize={}")
    many = shapes.phi3({"num_hidden_layers": 80})
    tuned = [
        choices.tuned(folder / "onnx", onnx),
        choices.tuned(folder / "gguf", gguf, Aim(by_gates=True), shapes.phi3()),
        choices.tuned(folder / "many", onnx, Aim(bits=4.5), many, answers=None),
    ]
    (folder / "page.html").write_text(
        page.render(tuned, f"phipipe tune {'a-long-name' * 30}.yaml"), "utf-8"
    )
    return folder / "page.html"


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("screenshots")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_page_fits_its_window_and_has_no_serious_fault(
    size: str, theme: str, browser: Browser, path: Path, screenshots: Path
) -> None:
    with tool.opened(browser, path, SIZES[size], theme) as shown:
        tool.check_shown(shown, theme, f"tuned-{size}-{theme}", screenshots)


def test_cells_have_figures_where_there_is_room(browser: Browser, path: Path) -> None:
    with tool.opened(browser, path, SIZES["1280"]) as shown:
        assert shown.locator("#map-2 .cell b").first.is_visible()
        assert not shown.locator("#map-3 .cell b").first.is_visible()
    with tool.opened(browser, path, SIZES["420"]) as shown:
        assert not shown.locator("#map-2 .cell b").first.is_visible()
        widths = [cell.bounding_box() for cell in shown.locator("#map-2 tbody td").all()[:32]]
        assert all(box is not None and box["width"] > 5 for box in widths)


def test_a_row_under_the_pointer_keeps_its_colours(browser: Browser, path: Path) -> None:
    ground = "cell => getComputedStyle(cell).backgroundColor"
    with tool.opened(browser, path) as shown:
        cell = shown.locator("#map-1 tbody td").first
        before = cell.evaluate(ground)
        cell.hover()
        assert cell.evaluate(ground) == before


def test_words_are_explained_without_scripts(browser: Browser, path: Path) -> None:
    with tool.opened(browser, path, java_script_enabled=False) as shown:
        shown.get_by_role("button", name="Explain Predicted").first.click()
        assert shown.locator("#term-predicted").is_visible()


def test_a_point_leads_to_its_file(browser: Browser, path: Path) -> None:
    with tool.opened(browser, path) as shown:
        shown.locator("#plot-1 .point.best").click()
        assert "chosen" in shown.locator("tr:target").inner_text()


def test_the_page_prints_on_light_paper(browser: Browser, path: Path, screenshots: Path) -> None:
    with tool.opened(browser, path, A4, "dark") as shown:
        tool.check_printed(shown, "tuned-print", screenshots)
