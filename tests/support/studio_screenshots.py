"""Makes the screenshots of docs/guides/studio.md with the models of the package, and prints how long a round takes.

PYTHONPATH=.:tests/support python tests/support/studio_screenshots.py FOLDER [STORE]
"""

import shutil
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright
from studio_pages import ROOT, started, studio

NAMES = ROOT / "examples" / "names.txt"
PHOTOGRAPHS = sorted((ROOT / "examples" / "images").glob("*.jpg"))[:6]
PATIENCE = 300_000


def open_tab(browser: Browser, url: str, width: int, height: int, scheme: Any) -> Page:
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.set_default_timeout(PATIENCE)
    page.goto(url)
    return page


def complete_round(page: Page) -> tuple[float, float]:
    """Builds the ten classes and classifies photographs; returns the seconds of the build, and of all."""
    page.locator("#names textarea").fill(NAMES.read_text(encoding="utf-8"))
    start = time.perf_counter()
    page.click("#build")
    expect(page.locator("#class-9 img").first).to_be_attached(timeout=PATIENCE)
    built = time.perf_counter() - start
    page.set_input_files("#files input[type=file]", PHOTOGRAPHS)
    expect(page.locator("#similar img").first).to_be_attached(timeout=PATIENCE)
    return built, time.perf_counter() - start


def save(page: Page, path: Path, selector: str) -> None:
    page.locator(selector).scroll_into_view_if_needed()
    page.locator(selector).evaluate("element => element.scrollIntoView({block: 'start'})")
    page.wait_for_timeout(2000)  # the page keeps a connection open, so that it is never idle
    page.screenshot(path=path)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main(folder: Path, store: Path) -> None:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with started(*studio(f"paths.store={store}")) as (_, url), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        page = open_tab(browser, url, 1000, 900, "light")
        built, total = complete_round(page)
        print(f"build {built:.1f} s, with {len(PHOTOGRAPHS)} photographs {total:.1f} s")
        save(page, folder / "studio_light.png", "#names")
        page.emulate_media(color_scheme="dark")
        page.reload()
        complete_round(page)
        save(page, folder / "studio_dark.png", "#photo-status")
        phone = open_tab(browser, url, 390, 844, "light")
        complete_round(phone)
        save(phone, folder / "studio_phone.png", "#class-0")
        browser.close()


if __name__ == "__main__":
    with TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else temporary))
