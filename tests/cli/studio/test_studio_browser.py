"""Tests the page in a browser: building, keyboard, photographs, hostile names, requests, phones and dark mode."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from dashboard_pages import watched
from factories import NAMES, FirstRun
from PIL import Image
from playwright.sync_api import Browser, Page, expect
from studio_pages import CONSOLE_NOISE, needs_gradio, started, studio

import lgclip

pytest_plugins = ("browser_fixtures", "run_fixtures")
pytestmark = [needs_gradio, pytest.mark.slow, pytest.mark.multiprocess]

PATIENCE = 90_000
HOSTILE = (
    "<script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "[a](javascript:window.pwned=1) **b**",
)
_CONTRAST = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([r, g, b]) => {
    const linear = v => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  };
  const background = element => {
    for (; element; element = element.parentElement) {
      const color = channels(getComputedStyle(element).backgroundColor);
      if (color.length < 4 || color[3] > 0.9) return color;
    }
    return [255, 255, 255];
  };
  const selector = 'h1, h2, p, textarea, button.lg, .info-text, label > span';
  return [...document.querySelectorAll(selector)].filter(e => e.offsetParent).map(e => {
    const [a, b] = [luminance(channels(getComputedStyle(e).color)), luminance(background(e))];
    return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), e.outerHTML.slice(0, 80)];
  });
}"""
"""Returns the contrast of each text with what lies behind it, as WCAG defines it."""

OpenTab = Callable[..., Page]


@pytest.fixture(scope="module")
def address(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serves a page with a classifier of three classes."""
    # A copy: other tests count what is in the store of the first run.
    store = tmp_path_factory.mktemp("served") / "store"
    shutil.copytree(first_run.sandbox.store, store)
    parts = replace(first_run.sandbox, store=store).evaluate_overrides()
    overrides = ["llm=template", *(part for part in parts if not part.startswith(("dataset", "logger", "llm=")))]
    place = tmp_path_factory.mktemp("studio") / "shapes.zip"
    lgclip.build(NAMES, llm="template", overrides=overrides[1:]).save(place)
    with started(*studio(str(place), *overrides)) as (_, url):
        yield url


@pytest.fixture
def tab(browser: Browser, address: str) -> Iterator[OpenTab]:
    """Opens tabs; none may have reported an error, run foreign code or sent a request to another host."""
    wrong: list[str] = []
    requests: list[str] = []
    pages: list[Page] = []
    with ExitStack() as stack:

        def open_tab(width: int = 1200, scheme: Any = "light") -> Page:
            context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
            stack.callback(context.close)
            page = watched(context, wrong, requests)
            page.set_default_timeout(PATIENCE)
            page.goto(address)
            expect(page.locator("#class-2 img").first).to_be_attached(timeout=PATIENCE)
            pages.append(page)
            return page

        yield open_tab
        assert not [text for text in wrong if not text.endswith(CONSOLE_NOISE)]
        assert not [page for page in pages if page.evaluate("window.pwned")]
        hosts = {url.split("/")[2] for url in requests if not url.startswith(("data:", "blob:"))}
        assert hosts == {address.removeprefix("http://")}


@pytest.fixture
def photograph(tmp_path: Path) -> Path:
    file = tmp_path / "<img src=x onerror=window.pwned=1>.png"
    Image.effect_noise((60, 60), 90).convert("RGB").save(file)
    return file


def value_of(page: Page, name: str) -> Any:
    return page.locator(f"#{name} textarea, #{name} input").first


def focus_by_tab(page: Page, selector: str, key: str = "Tab") -> None:
    """Presses Tab until an element of the selector has the focus."""
    for _ in range(120):
        page.keyboard.press(key)
        if page.evaluate("selector => document.activeElement.closest(selector) !== null", selector):
            return
    pytest.fail(f"{selector} cannot be reached by the keyboard")


def test_build_by_keyboard_alone(tab: OpenTab) -> None:
    page = tab()
    focus_by_tab(page, "#names")
    page.keyboard.type(f"{NAMES[0]}\n{NAMES[1]}")
    focus_by_tab(page, "#build")
    page.keyboard.press("Enter")
    expect(value_of(page, "progress")).to_have_value(re.compile("built 2 classes"), timeout=PATIENCE)
    expect(page.locator("#class-2")).to_have_count(0, timeout=PATIENCE)
    expect(page.locator("#class-1 button")).to_have_count(3)
    assert "expected accuracy" in value_of(page, "quality").input_value()

    focus_by_tab(page, "#class-0 button")
    page.keyboard.press("Enter")
    expect(value_of(page, "marked")).to_have_value(f"{NAMES[0]}, image 1")
    focus_by_tab(page, "#drop", "Shift+Tab")
    page.keyboard.press("Enter")
    expect(value_of(page, "drop-status")).to_have_value("dropped 1 images, 5 remain")
    expect(page.locator("#class-0 button")).to_have_count(2)


def test_wrong_names_are_one_message_in_the_page(tab: OpenTab) -> None:
    page = tab()
    value_of(page, "names").fill("cat\ncat")
    page.click("#build")
    expect(value_of(page, "progress")).to_have_value("names: 'cat' occurs twice; give each class a name of its own")
    assert "Traceback" not in page.content()
    page.click("#make")
    expect(value_of(page, "file-status")).to_have_value("there are no predictions yet; classify photographs first")


def test_dropped_photograph_gets_a_label(tab: OpenTab, photograph: Path) -> None:
    page = tab()
    transfer = page.evaluate_handle(
        """([name, bytes]) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], name, {type: 'image/png'}));
          return transfer;
        }""",
        [photograph.name, list(photograph.read_bytes())],
    )
    page.dispatch_event("#files button", "drop", {"dataTransfer": transfer})
    expect(value_of(page, "photo-status")).to_have_value("1 photographs", timeout=PATIENCE)
    expect(page.locator("#similar img")).to_have_count(5)
    details = value_of(page, "details").input_value()
    assert any(name in details for name in NAMES)
    assert "add up to 100%" in details
    assert page.locator("#photos .caption-label").inner_text().split(",")[0] in details

    page.click("#correct")
    expect(value_of(page, "photo-status")).to_have_value(re.compile("is an example of"))
    for name in ("predictions.csv", "classifier.zip", "classifier.safetensors"):
        page.locator("#kind").get_by_text(name).click()
        page.click("#make")
        expect(value_of(page, "file-status")).to_have_value(re.compile(f"^{name}"), timeout=PATIENCE)
        with page.expect_download() as download:
            page.locator("#made a").first.click()
        assert Path(download.value.path()).stat().st_size > 0


def test_hostile_names_run_nothing(tab: OpenTab, photograph: Path) -> None:
    page = tab()
    value_of(page, "more").fill("\n".join(HOSTILE))
    page.click("#add")
    expect(value_of(page, "add-status")).to_have_value(re.compile("added 3 classes, now 6"), timeout=PATIENCE)
    for place, name in enumerate(HOSTILE, 3):
        expect(page.locator(f"#class-{place} label").first).to_have_text(name)
    page.set_input_files("#files input[type=file]", photograph)
    expect(value_of(page, "photo-status")).to_have_value("1 photographs", timeout=PATIENCE)
    page.locator("#class-4 button").first.click()
    expect(value_of(page, "marked")).to_have_value(f"{HOSTILE[1]}, image 1")
    page.locator("#label input").click()
    page.locator("#label [role=option]").nth(4).click()
    page.click("#correct")
    expect(value_of(page, "photo-status")).to_have_value(re.compile("is an example of"))
    assert page.locator("img[src=x], a[href^=javascript]").count() == 0
    assert page.evaluate("window.pwned") is None


def test_tabs_do_not_share_a_classifier(tab: OpenTab) -> None:
    first = tab()
    second = tab()
    first.locator("#class-0 button").first.click()
    expect(value_of(first, "marked")).to_have_value(f"{NAMES[0]}, image 1")
    first.click("#drop")
    expect(first.locator("#class-0 button")).to_have_count(2, timeout=PATIENCE)
    assert value_of(second, "marked").input_value() == "none"
    second.reload()
    expect(second.locator("#class-0 button")).to_have_count(3, timeout=PATIENCE)


def test_phone_does_not_scroll_sideways(tab: OpenTab, photograph: Path) -> None:
    page = tab(width=390)
    page.set_input_files("#files input[type=file]", photograph)
    expect(page.locator("#similar img")).to_have_count(5, timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_are_readable(tab: OpenTab, scheme: str) -> None:
    page = tab(scheme=scheme)
    contrasts = page.evaluate(_CONTRAST)
    assert len(contrasts) > 20
    assert not [(contrast, text) for contrast, text in contrasts if contrast < 4.5]
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 200) == (scheme == "dark")
