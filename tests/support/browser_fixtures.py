"""Provides a browser with the dashboard opened in it; any error of a page fails its test."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from dashboard_pages import Open, watched
from playwright.sync_api import Browser, Page, sync_playwright

from lgclip.reporting.dashboard import schema
from lgclip.reporting.dashboard.page import render

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage")


@pytest.fixture(scope="module")  # Playwright keeps an event loop running, which other modules' tests must not meet
def browser() -> Iterator[Browser]:
    """Starts Chromium if available; LGCLIP_BROWSER_REQUIRED=1 makes its absence a failure."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        reason = f"none of {', '.join(NAMES)} is installed"
        if os.environ.get("LGCLIP_BROWSER_REQUIRED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens a page's data as a file; at the end no page may have made requests or reported errors."""
    wrong: list[str] = []
    requests: list[str] = []
    files: list[str] = []
    with ExitStack() as stack:

        def open_page(data: schema.Page, width: int = 1280, scheme: Any = "light", **kwargs: Any) -> Page:
            path = tmp_path / f"{len(files)}.html"
            path.write_bytes(render(data).encode())
            context = browser.new_context(
                viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce", **kwargs
            )
            stack.callback(context.close)
            files.append(path.as_uri())
            page = watched(context, wrong, requests)
            page.goto(path.as_uri())
            return page

        yield open_page
        assert not wrong
        assert {url for url in requests if not url.startswith("data:")} <= set(files)
