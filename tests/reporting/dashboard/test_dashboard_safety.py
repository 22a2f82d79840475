"""Tests the dashboard in a browser: malicious text, narrow screens, colors, keyboards, print, statistics."""

import re
from importlib.resources import files
from itertools import pairwise
from typing import Any

import pytest
from dashboard_pages import MALICIOUS_TEXTS, Open, build_malicious_page, single_page, sweep_page
from playwright.sync_api import Page, expect
from scipy.stats import binomtest

from lgclip.evaluation.metrics import wilson
from lgclip.reporting.dashboard import schema
from lgclip.reporting.dashboard.page import LIBRARY, SCRIPTS, render

pytest_plugins = ("browser_fixtures",)

UNREADABLE = """() => {
  const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    paint.clearRect(0, 0, 1, 1);
    paint.fillStyle = color;
    paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data].map((value) => value / 255);
  };
  const over = (top, under) => top.slice(0, 3).map((value, at) => value * top[3] + under[at] * (1 - top[3]));
  const ground = (element) => {
    const own = rgba(getComputedStyle(element).backgroundColor);
    return own[3] === 1 || !element.parentElement ? own.slice(0, 3) : over(own, ground(element.parentElement));
  };
  const light = (rgb) => rgb.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((total, v, at) => total + v * [0.2126, 0.7152, 0.0722][at], 0);
  const bad = new Set();
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement, style = getComputedStyle(element);
    if (!walk.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    const under = ground(element), ink = element.closest("svg") ? style.fill : style.color;
    const [a, b] = [light(over(rgba(ink), under)), light(under)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) bad.add(`${element.outerHTML.slice(0, 60)} ${ink}`);
  }
  return [...bad];
}"""
"""Texts with a contrast below 4.5 to 1 (WCAG 2.2, 1.4.3, AA)."""

NAMELESS = """() => [...document.querySelectorAll("button, select, input, a, img, table, figure, [role]")]
  .filter((element) => element.checkVisibility()).filter((element) => {
    const name = element.getAttribute("aria-label") || element.alt || element.labels?.[0]?.textContent
      || element.querySelector(":scope > caption, :scope > figcaption")?.textContent || element.textContent;
    return !name.trim();
  }).map((element) => element.outerHTML.slice(0, 200))"""
"""What can be used or seen and has no name."""


@pytest.fixture(scope="module")
def sweep() -> schema.Page:
    return sweep_page()


@pytest.fixture(scope="module")
def malicious_page() -> schema.Page:
    return build_malicious_page()


def open_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((one) => { one.open = true; })")


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_page_fits_the_screen(opened: Open, sweep: schema.Page, malicious_page: schema.Page, width: int) -> None:
    for data in (sweep, malicious_page, single_page()):
        page = opened(data, width)
        open_all(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.context.close()


def test_run_text_is_never_executed(opened: Open, malicious_page: schema.Page) -> None:
    page = opened(malicious_page)
    open_all(page)
    assert page.evaluate("window.pwned") is None
    assert page.locator("script").count() == 3
    assert page.locator("img:not([src^='data:image/webp'])").count() == 0
    assert page.locator("[onerror], [onload], iframe, object, embed, a[href^=javascript], a[href^=http]").count() == 0
    assert page.get_by_role("heading", level=1).text_content() == MALICIOUS_TEXTS[0]
    expect(page).to_have_title(MALICIOUS_TEXTS[0])
    names = page.locator("#classes tbody th.name").all_text_contents()
    assert sorted(names) == sorted(text or "(empty)" for text in MALICIOUS_TEXTS)
    prompts = page.locator("#gallery .prompts p").all_text_contents()
    assert set(prompts) == {text or "(empty)" for text in MALICIOUS_TEXTS}
    assert page.locator("#summary aside li").all_text_contents() == [text or "(empty)" for text in MALICIOUS_TEXTS]
    expect(page.get_by_role("table", name="Runs that failed")).to_contain_text(
        MALICIOUS_TEXTS[0] + "\n" + MALICIOUS_TEXTS[9]
    )


def test_controls_work_with_malicious_names(opened: Open, malicious_page: schema.Page) -> None:
    page = opened(malicious_page)
    for select in page.locator("main select").all():
        if select.is_visible():
            select.select_option(index=select.locator("option").count() - 1)
    for box in page.get_by_role("checkbox").all():
        box.click()
    for field in page.get_by_role("searchbox").all():
        field.fill(MALICIOUS_TEXTS[1])
    page.get_by_role("button", name=re.compile("^Switch to")).click()
    assert page.evaluate("window.pwned") is None


def hover_text(page: Page, chart: Any, *, vertical: bool = False) -> set[str]:
    """Returns the texts of a chart's tooltips while the mouse moves over it, from left to right or downwards."""
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    texts = set()
    for step in range(60):
        across, down = (0.45, 0.06 + 0.92 * step / 59) if vertical else (0.06 + 0.92 * step / 59, 0.45)
        page.mouse.move(box["x"] + box["width"] * across, box["y"] + box["height"] * down)
        tips = chart.locator(".tip")
        if tips.count():
            texts.add(tips.first.text_content() or "")
    return texts


def test_tooltips_show_literal_names(opened: Open, malicious_page: schema.Page) -> None:
    page = opened(malicious_page)
    tooltips = hover_text(page, page.locator("#classes .chart").first, vertical=True)
    for name in MALICIOUS_TEXTS:
        assert any((name or "(empty)")[:299] in text for text in tooltips), name
    assert hover_text(page, page.locator("#cost .chart"))
    assert page.evaluate("window.pwned") is None


def test_chart_labels_are_literal(opened: Open, malicious_page: schema.Page) -> None:
    page = opened(malicious_page, 1280)
    labels = page.locator("#classes .chart").first.locator("svg text").all_text_contents()
    assert "constructor" in labels
    assert any(text.startswith("<img src=x") for text in labels)
    assert any(text.startswith("{{script}}") for text in labels)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(opened: Open, sweep: schema.Page, scheme: str) -> None:
    page = opened(sweep, scheme=scheme)
    open_all(page)
    assert page.evaluate(UNREADABLE) == []


def test_theme_follows_the_system(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep, scheme="dark")
    body = page.locator("body")
    text = page.locator("#grid .chart svg text").first
    tuning_data = page.evaluate("getComputedStyle(document.body).backgroundColor")
    ink = page.evaluate("getComputedStyle(document.querySelector('#grid .chart svg text')).fill")
    page.emulate_media(color_scheme="light")  # charts are drawn anew a moment later
    expect(body).not_to_have_css("background-color", tuning_data)
    expect(text).not_to_have_css("fill", ink)
    page.get_by_role("button", name="Switch to dark colors").click()
    expect(body).to_have_css("background-color", tuning_data)
    expect(text).to_have_css("fill", ink)
    page.reload()
    expect(body).to_have_css("background-color", tuning_data)


def test_keyboard_reaches_every_control(opened: Open, malicious_page: schema.Page) -> None:
    page = opened(malicious_page)
    page.keyboard.press("Tab")
    expect(page.locator(":focus")).to_have_text("Skip to the content")
    expect(page.locator(":focus")).to_be_in_viewport()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    expected = page.evaluate(
        "[...document.querySelectorAll('main :is(a, button, select, input, summary, [tabindex=\"0\"])')]"
        ".filter((e) => e.checkVisibility()).forEach((e) => { e.dataset.wanted = ''; })"
    )
    look = """() => {
      const e = document.activeElement, s = getComputedStyle(e);
      const seen = s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2;
      delete e.dataset.wanted;
      return [e.tagName, seen];
    }"""
    for _ in range(600):
        page.keyboard.press("Tab")
        tag, seen = page.evaluate(look)
        if tag == "BODY":
            break
        assert seen, tag
    expected = page.evaluate("[...document.querySelectorAll('[data-wanted]')].map((e) => e.outerHTML.slice(0, 120))")
    assert expected == []


def test_landmarks_have_names_and_order(opened: Open, sweep: schema.Page, malicious_page: schema.Page) -> None:
    for data in (sweep, malicious_page, single_page()):
        page = opened(data)
        open_all(page)
        assert page.evaluate(NAMELESS) == []
        assert page.locator("h1").count() == page.locator("main").count() == 1
        levels = page.evaluate(
            "[...document.querySelectorAll('h1, h2, h3')].filter((e) => e.checkVisibility()).map((e) => +e.tagName[1])"
        )
        assert all(next_one <= level + 1 for level, next_one in pairwise(levels))
        assert page.evaluate("document.querySelectorAll('table:not(:has(> caption))').length") == 0
        ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
        assert len(ids) == len(set(ids))
        assert page.evaluate("[...document.querySelectorAll('nav a')].every((a) => document.querySelector(a.hash))")
        page.context.close()


def test_print_layout_is_open_and_light(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep, scheme="dark")
    tuning_data = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')")
    cell = "getComputedStyle(document.querySelector('.heat button')).backgroundColor"
    dark = page.evaluate(cell)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(cell) != dark
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')") != tuning_data
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(cell) == dark
    assert page.locator("details[open]").count() == 0
    assert page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--paper')") == tuning_data
    assert page.pdf().startswith(b"%PDF")


def test_large_sweep_opens_quickly(opened: Open) -> None:
    data = sweep_page(4, 195)
    assert len(render(data).encode()) < 5_000_000
    page = opened(data)
    assert page.locator("#runs table").first.locator("tbody tr").count() == 61
    assert page.locator("#classes .box").first.locator("tbody tr").count() == 195


def test_statistics_match_scipy(opened: Open) -> None:
    page = opened(single_page())
    counts = [(0, 0), (0, 1), (1, 0), (3, 9), (40, 41), (0, 300), (1200, 1100), (25_000, 24_000)]
    for only, only_second in counts:
        p = binomtest(only, only + only_second).pvalue if only + only_second else 1.0
        assert page.evaluate(f"exactMcNemar({only}, {only_second})") == pytest.approx(p, rel=1e-6, abs=1e-300)
    for right, n in ((0, 5), (5, 5), (3, 7), (980, 1000)):
        assert page.evaluate(f"wilson({right}, {n})") == pytest.approx(wilson(right, n), abs=1e-12)


def part(name: str) -> str:
    return (files("lgclip.reporting.dashboard") / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*SCRIPTS, "page.html", "page.css"])
def test_scripts_write_no_markup_or_url(name: str) -> None:
    text = part(name).replace("http://www.w3.org/2000/svg", "")
    for word in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "Function(",
        "http:",
        "https:",
    ):
        assert word not in text
    assert not re.search(r"\s(style|on\w+)=\"", text)
    assert not re.search(r"@import|url\(", text)
    assert max(map(len, text.split("\n"))) <= (400 if name == "page.css" else 130)
    assert len(text.split("\n")) <= 301


def test_chart_library_license_is_included() -> None:
    licence = part("echarts.LICENSE")
    assert '"6.1.0"' in part(LIBRARY)
    for words in ("6.1.0", "Apache License", "The Apache Software Foundation", "Mike Bostock"):
        assert words in licence
