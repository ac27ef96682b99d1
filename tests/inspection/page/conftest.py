"""A headless Chromium for the tests of the page."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pccompile.ir import Program

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """The browser. Where there is none the tests are skipped, unless PCCOMPILE_REQUIRE_BROWSER is set, as in CI."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        reason = "no Chromium here: apt-get install chromium"
        pytest.fail(reason) if os.environ.get("PCCOMPILE_REQUIRE_BROWSER") else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def show(chromium, tmp_path):
    """show(program, ...) opens its page; what the console says and what is fetched is in `page.said`."""
    pages = []

    def open_page(program: Program, width: int = 1440, height: int = 900, dark: bool = False, **options):
        path: Path = tmp_path / f"program{len(pages)}.html"
        program.save_html(path, **options)
        scheme = "dark" if dark else "light"
        page = chromium.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
        page.set_default_timeout(15_000)
        pages.append(page)
        page.said = []
        page.on("console", lambda message: page.said.append(message.text))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda request: _note_request(page, request.url))
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-ready=true]", timeout=60_000)
        return page

    yield open_page
    for page in pages:
        page.close()


def _note_request(page, url: str) -> None:
    if not url.startswith(("file:", "blob:", "data:")):
        page.said.append(f"asks for {url}")
