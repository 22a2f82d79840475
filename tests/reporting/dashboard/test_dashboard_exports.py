"""Tests the page's exports of tables and charts, and the link to its state."""

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from dashboard_pages import Open, build_malicious_page, done, page_of, run_of, sweep_page, top1
from PIL import Image
from playwright.sync_api import Locator, Page, expect

from lgclip.reporting.dashboard import schema
from lgclip.runtime.csv_cells import escaped_cell, original_cell

pytest_plugins = ("browser_fixtures",)

FORMULAS = ("=1+1", "+cmd", "-2+3", "@sum", "\tx", "\rx", " =a", "'=a", "\uff1da", "-1.5", "1e3", "plain", 'a"b,c', "")


@pytest.fixture(scope="module")
def sweep() -> schema.Page:
    return sweep_page(seeds=1, classes=6)


def exported(page: Page, scope: Locator, label: str, folder: Path) -> Path:
    """Returns the file that a button of an export menu downloads."""
    menu = scope.locator("details.export").first
    menu.locator("summary").click()
    with page.expect_download() as download:
        menu.get_by_role("button", name=label, exact=True).click()
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    menu.locator("summary").click()
    return path


def test_table_of_runs_is_exported_as_csv(opened: Open, sweep: schema.Page, tmp_path: Path) -> None:
    page = opened(sweep)
    page.get_by_role("search", name="Filter the runs").get_by_label("scales", exact=True).select_option("multi")
    path = exported(page, page.locator("#runs .table").first, "CSV", tmp_path)
    assert path.name == "all-runs.csv"
    rows = list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
    expected = sorted((run for run in done(sweep) if run["axes"]["scales"] == "multi"), key=top1, reverse=True)
    assert "Pick" not in rows[0]
    assert [float(row["Top-1"]) for row in rows] == [top1(run) for run in expected], "as shown, with all digits"
    assert [int(row["prompts_per_class"]) for row in rows] == [run["axes"]["prompts_per_class"] for run in expected]


def test_csv_cells_are_no_formulas(opened: Open) -> None:
    page = opened(build_malicious_page())
    written = page.evaluate("(cells) => cells.map((cell) => csvTable({ heads: [cell, 'end'], rows: [] }))", FORMULAS)
    for text, line in zip(FORMULAS, written, strict=True):
        ((cell, end),) = csv.reader(io.StringIO(line, newline=""))
        assert cell == escaped_cell(text)
        assert original_cell(cell) == text
        assert end == "end"


def test_tables_are_exported_as_markdown_and_latex(opened: Open, tmp_path: Path) -> None:
    names = ["a|b", "50% & <b>", "under_score", "x\\y", "{brace}", "[link](x)"]
    page = opened(page_of([run_of(0, {}, names, 1.0)], names))
    table = page.locator("#classes .table").first
    markdown = exported(page, table, "Markdown", tmp_path).read_text(encoding="utf-8").splitlines()
    assert markdown[0].startswith("| Class | Images | Accuracy |")
    assert set(markdown[1]) <= set("| -:")
    cells = {re.split(r"(?<!\\) \| ", line.strip("| "))[0] for line in markdown[2:]}
    assert cells >= {r"a\|b", r"50% \& \<b\>", r"under\_score", r"\[link\](x)"}
    latex = exported(page, table, "LaTeX", tmp_path).read_text(encoding="utf-8")
    assert latex.startswith("\\begin{tabular}{lrr")
    assert all(line.endswith(r"\\") for line in latex.splitlines()[2:] if "&" in line)
    for text in (r"a\textbar{}b", r"50\% \& \textless{}b\textgreater{}", r"under\_score", r"\{brace\}"):
        assert text in latex


def test_every_table_and_chart_has_an_export(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    assert page.evaluate(
        "[...document.querySelectorAll('table')].every((t) => t.closest('.table').querySelector('.export'))"
    )
    assert page.evaluate(
        "[...document.querySelectorAll('.chart:has(svg)')].every((c) => c.parentElement.querySelector('.export'))"
    )


def test_charts_are_exported_as_svg_and_png(opened: Open, sweep: schema.Page, tmp_path: Path) -> None:
    page = opened(sweep)
    figure = page.locator("#grid figure", has=page.locator(".chart"))
    path = exported(page, figure, "SVG", tmp_path)
    assert path.name == "top-1-along-one-setting.svg"
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    texts = ["".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts[0] == "Top-1 along one setting"
    assert {"single", "multi", "ten"} <= set(texts), "with its legend"
    image = Image.open(exported(page, figure, "PNG", tmp_path))
    assert image.format == "PNG"
    assert image.width == 2 * int(root.attrib["width"])
    assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20, "it is not empty"


def test_malicious_names_are_exported_as_text(opened: Open, tmp_path: Path) -> None:
    page = opened(build_malicious_page())
    path = exported(page, page.locator("#classes figure").first, "SVG", tmp_path)
    root = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    assert not [node for node in root.iter() if node.tag.endswith(("script", "image", "foreignObject", "}a"))]
    assert page.evaluate("window.pwned") is None


def test_link_restores_filters_and_selection(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    page.get_by_role("search", name="Filter the runs").get_by_label("scales", exact=True).select_option("multi")
    page.locator("#runs").get_by_label("Find").fill("prompts_per_class=5")
    page.locator("#focus select").select_option(index=4)
    page.locator("#grid").get_by_label("Along", exact=True).select_option("scales")
    page.locator("#classes").get_by_label("Sort by").select_option("margin")
    page.locator("#gallery").get_by_label("Errors only").check()
    page.locator("nav").get_by_role("link", name="Classes").click()
    page.wait_for_function("location.hash.startsWith('#classes?')")
    url = page.url
    page.goto("about:blank")
    page.goto(url)
    rows = page.locator("#runs table").first.locator("tbody tr")
    expect(rows).to_have_count(1)
    expect(page.locator("#focus select")).to_have_value(re.compile("^4: "))
    expect(page.locator("#grid").get_by_label("Along", exact=True)).to_have_value("scales")
    expect(page.locator("#classes").get_by_label("Sort by")).to_have_value("margin")
    expect(page.locator("#gallery").get_by_label("Errors only")).to_be_checked()
    assert page.evaluate("Math.abs(document.getElementById('classes').getBoundingClientRect().top) < 400")


@pytest.mark.parametrize(
    "query",
    [
        "focus=99", "focus=%22x%22", "focus={", "pair=[0,99]", "pair=null", "filter=[]", "filter={%22text%22:1}",
        "grid={%22along%22:%22no%22}", "grid={%22along%22:%22scales%22,%22fixed%22:[1,null]}", "sort={}", "sort=null",
        "classes=7", "classes={%22by%22:%22constructor%22,%22text%22:null}", "gallery={%22errors%22:3}", "map=-7",
        "learning=%22__proto__%22", "sort={%22key%22:%22pick%22,%22down%22:true}",
    ],
)  # fmt: skip
def test_damaged_link_opens_the_page(opened: Open, sweep: schema.Page, query: str) -> None:
    page = opened(sweep)
    url = page.url
    page.goto("about:blank")
    page.goto(f"{url}#runs?{query}")
    expect(page.locator("#provenance .facts")).to_be_visible()
    assert page.locator("#runs table").first.locator("tbody tr").count() == len(sweep["runs"])
