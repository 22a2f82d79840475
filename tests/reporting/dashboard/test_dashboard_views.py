"""Tests what the page shows of several data sets, of classes and of predictions, on wide and narrow screens."""

import re
from typing import Any

import pytest
from dashboard_pages import Open, class_names, done, illustrated, page_of, run_of, sweep_page, top1
from playwright.sync_api import expect

from lgclip.reporting.dashboard import schema

pytest_plugins = ("browser_fixtures",)


@pytest.fixture(scope="module")
def two_sets() -> schema.Page:
    """Returns a page of two methods on two data sets, one easy and one hard; only one method uses prompts."""
    names = class_names(6)
    runs: list[Any] = []
    for dataset, strength in (("easy", 3.0), ("hard", -0.5)):
        for method, prompts in (("lgclip", 1), ("lgclip", 5), ("clip_text", None)):
            axes: dict[str, Any] = {"dataset": dataset, "method": method}
            if prompts:
                axes["prompts_per_class"] = prompts
            run = run_of(len(runs), axes, names, strength + 0.1 * (prompts or 3))
            runs.append({**run, "dataset": dataset, "method": method, "evaluation_key": dataset})
    page = page_of(runs, names)
    return {**page, "comparisons": [], "groups": []}


def shares(text: str) -> set[str]:
    return set(re.findall(r"\d+\.\d%", text))


def test_no_mean_over_data_sets_or_methods_is_shown(opened: Open, two_sets: schema.Page) -> None:
    page = opened(two_sets)
    single = {f"{100 * top1(run):.1f}%" for run in two_sets["runs"]}
    for label in page.locator("#grid select").all():
        options = label.locator("option").all_inner_texts()
        if "lgclip" in options:
            assert "mean of all" not in options
    cells = page.locator("#grid table.heat tbody b").all_inner_texts()
    assert len(cells) == 8, "two methods by two numbers of prompts, for each data set"
    assert set(cells) <= single
    assert page.locator("#grid h3").all_inner_texts() == ["easy", "hard"]
    for along in page.locator("#grid").get_by_label("Along", exact=True).locator("option").all_inner_texts():
        page.locator("#grid").get_by_label("Along", exact=True).select_option(along)
        page.locator("#grid").get_by_label("One line for each").select_option("no setting")
        assert set(page.locator("#grid table.heat tbody b").all_inner_texts()) <= single
    for card in page.locator("#summary .card", has_text="What moves").all():
        assert shares(card.inner_text()) <= single


def test_each_data_set_has_its_own_table_of_runs(opened: Open, two_sets: schema.Page) -> None:
    page = opened(two_sets)
    for name in ("easy", "hard"):
        table = page.get_by_role("table", name=f"Runs on {name}")
        assert table.locator("tbody tr").count() == 3
        expect(table.locator("tbody tr", has_text="clip_text")).to_contain_text("\u2013")
    page.locator("#runs").get_by_label("Find").fill("hard")
    assert page.get_by_role("table", name="Runs on easy").locator("tbody tr").count() == 0
    expect(page.locator("#runs")).to_contain_text("3 of 6 runs shown")


def test_cards_share_one_scale(opened: Open, two_sets: schema.Page) -> None:
    page = opened(two_sets)
    ends = [" ".join(card.inner_text().split()) for card in page.locator("#summary .ends").all()]
    assert len(ends) == 2
    assert len(set(ends)) == 1


@pytest.mark.parametrize("most", [3e-4, 0.02, 0.9, 7.0, 59.0, 61.0, 200.0, 1500.0, 4000.0, 30_000.0, 200_000.0])
def test_ticks_of_seconds_are_round(opened: Open, two_sets: schema.Page, most: float) -> None:
    page = opened(two_sets)
    ticks = page.evaluate(
        """(most) => {
          const { max, interval, write } = secondsScale(most);
          return [max, Array.from({ length: Math.round(max / interval) + 1 }, (_, at) => write(at * interval))];
        }""",
        most,
    )
    assert ticks[0] >= most * 0.999
    assert 2 <= len(ticks[1]) <= 8
    for text in ticks[1]:
        assert re.fullmatch(r"\d+(\.[125]|\.\d5?)? (h|min|s|ms|µs)", text), text
    assert len({text.split()[1] for text in ticks[1]}) == 1


def test_lowest_twenty_classes_have_whole_names(opened: Open) -> None:
    names = [f"a rather long name of class number {c}" for c in range(30)]
    data = page_of([run_of(0, {}, names, 1.0)], names)
    page = opened(data)
    chart = page.locator("#classes .chart").first
    labels = [text for text in chart.locator("svg text").all_text_contents() if text.startswith("a rather")]
    shares = {name: row["right"] for name, row in zip(names, data["runs"][0]["classes"], strict=True)}
    assert len(labels) == 20
    assert sorted(shares[name] for name in labels) == sorted(shares.values())[:20]
    expect(chart).to_have_attribute("aria-label", re.compile("20 of 30 classes"))


@pytest.mark.parametrize("width", [390, 1280])
def test_navigation_is_not_cut(opened: Open, two_sets: schema.Page, width: int) -> None:
    page = opened(two_sets, width)
    for link in page.locator("nav a").all():
        box = link.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    assert page.evaluate(
        "(({ scrollWidth, clientWidth }) => scrollWidth <= clientWidth)(document.querySelector('nav'))"
    )


def test_tables_say_that_they_scroll(opened: Open, two_sets: schema.Page) -> None:
    page = opened(two_sets, 390)
    table = page.locator("#runs .table").first
    expect(table).to_contain_text("Scroll sideways for more columns.")
    expect(opened(two_sets, 1280).locator("#compare .table").first).not_to_contain_text("Scroll")


def test_confusion_matrix_has_a_cell_for_each_mistake(opened: Open) -> None:
    data = sweep_page(seeds=1, classes=6)
    page = opened(data)
    run = max(done(data), key=top1)
    chart = page.locator("#confusions .chart")
    mistakes = sum(count for _, _, count in run["matrix"])
    expect(chart).to_have_attribute("aria-label", re.compile(f"{mistakes} mistakes in {len(run['matrix'])} cells"))
    page.locator("#confusions summary", has_text="The numbers").click()
    rows = page.get_by_role("table", name="Mistakes by pair of classes").locator("tbody tr")
    assert rows.count() == len(run["matrix"])


def test_matrix_of_many_classes_shows_those_with_mistakes(opened: Open) -> None:
    names = class_names(120)
    page = opened(page_of([run_of(0, {}, names, 1.5)], names))
    expect(page.locator("#confusions .chart")).to_have_attribute(
        "aria-label", re.compile("80 classes with fewer mistakes are not shown")
    )


def test_reliability_diagram_shows_every_bin(opened: Open) -> None:
    data = sweep_page(seeds=1, classes=6)
    page = opened(data)
    run = max(done(data), key=top1)
    figure = page.locator("#confidence figure", has_text="Reliability")
    figure.locator("summary", has_text="The numbers").click()
    rows = [row.locator("th, td").all_inner_texts() for row in figure.locator("tbody tr").all()]
    assert rows == [
        [f"{100 * part['confidence']:.1f}%", f"{100 * part['accuracy']:.1f}%", str(part["n"])]
        for part in run["reliability"]
    ]


def test_feature_map_highlights_a_class(opened: Open) -> None:
    page = opened(sweep_page(seeds=1, classes=6))
    chart = page.locator("#map .chart")
    expect(chart).to_have_attribute(
        "aria-label", re.compile("6 real, correct, 6 real, misclassified, 6 synthetic, 6 prototype")
    )
    before = chart.locator("svg").inner_html()
    page.locator("#map").get_by_label("Highlight a class").select_option(index=2)
    assert chart.locator("svg").inner_html() != before


def test_gallery_shows_classes_with_errors_only(opened: Open) -> None:
    names = class_names(8)
    run = illustrated(run_of(0, {}, names, 2.6), ["a photo"], pairs=2)
    page = opened(page_of([run], names))
    wrong = [name for name, row in zip(names, run["classes"], strict=True) if row["right"] < row["n"]]
    assert 0 < len(wrong) < len(names)
    page.locator("#gallery").get_by_label("Errors only").check()
    headings = page.locator("#gallery .card h3 bdi").all_inner_texts()
    assert headings == wrong
    expect(page.locator("#gallery .card").first).to_contain_text("Misclassified test images")
