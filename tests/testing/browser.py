"""A real browser for tests of pages: Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

PROGRAM, SCREENSHOTS = "PHIPIPE_TEST_BROWSER", "PHIPIPE_TEST_SCREENSHOTS"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge")
MISSING = (
    f"there is no Chromium: install it with `apt-get install chromium` (or brew, winget), or name "
    f"a browser of its kind in {PROGRAM}"
)
PHONE, DESKTOP = (390, 844), (1400, 900)
SERIOUS = ("serious", "critical")


def program() -> str:
    """The browser to start.

    Raises:
        RuntimeError: there is none, and how to get one.
    """
    found = os.environ.get(PROGRAM) or next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        raise RuntimeError(MISSING)
    return found


@contextmanager
def launched() -> Iterator[Browser]:
    """Chromium without a window."""
    sandbox = [] if os.name == "nt" or os.geteuid() else ["--no-sandbox"]  # root has none
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program(), args=sandbox)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: Browser, path: Path, size: tuple[int, int] = DESKTOP, theme: str = "light", **more: Any
) -> Iterator[Page]:
    """The page in a window of its own; a message on its console or a request is an error."""
    width, height = size
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if theme == "dark" else "light",
        **more,
    )
    said: list[str] = []
    page = context.new_page()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on(
        "request", lambda asked: asked.url.startswith("file:") or said.append(f"asks {asked.url}")
    )
    try:
        page.goto(path.as_uri())
        yield page
        assert said == []
    finally:
        context.close()


def faults(page: Page) -> list[str]:
    """What axe finds that is serious or critical, with the first element of each."""
    found = Axe().run(page).response["violations"]
    return [
        f"{one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in SERIOUS
    ]


def overflowing(page: Page) -> list[str]:
    """Elements that stick out of the window to the right, outside of what scrolls."""
    found: list[str] = page.evaluate(
        """() => [...document.body.querySelectorAll("*")].filter(element =>
            element.getBoundingClientRect().right > innerWidth + 1
            && !element.closest(".scroll, .unseen, .point span, [popover]")
        ).map(element => element.outerHTML.slice(0, 160))"""
    )
    wide = page.evaluate("document.documentElement.scrollWidth > innerWidth")
    return [*found, *(["the page scrolls sideways"] if wide else [])]


def kept(page: Page, name: str, folder: Path) -> Path:
    """A screenshot of the whole page, in ``folder`` or where the environment wants it."""
    place = Path(os.environ.get(SCREENSHOTS) or folder)
    place.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=place / f"{name}.png", full_page=True)
    return place / f"{name}.png"


GROUNDS = {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}


def check_shown(page: Page, theme: str, name: str, folder: Path) -> None:
    """The page fits its window, has no serious fault, and the ground of its ``theme``; a picture
    of it is kept."""
    assert overflowing(page) == []
    assert faults(page) == []
    assert kept(page, name, folder).stat().st_size > 5000
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == GROUNDS[theme]


def check_printed(page: Page, name: str, folder: Path) -> None:
    """On paper the page fits, and is light whatever the screen's theme; a picture is kept."""
    page.emulate_media(media="print", color_scheme="dark")
    assert overflowing(page) == []
    paper = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--page')")
    assert paper.strip() == "#ffffff"
    kept(page, name, folder)
    assert len(page.pdf(format="A4")) > 10_000
