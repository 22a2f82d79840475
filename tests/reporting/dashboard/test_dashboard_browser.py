"""Tests the dashboard in a browser: clicks, typing and displayed values."""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from dashboard_pages import Open, bits_of, done, single_page, sweep_page, top1
from playwright.sync_api import Page, expect
from scipy.stats import binomtest

from lgclip.evaluation.metrics import wilson
from lgclip.reporting.dashboard import schema

pytest_plugins = ("browser_fixtures",)


@pytest.fixture(scope="module")
def sweep() -> schema.Page:
    return sweep_page()


def column(page: Page, section: str, head: str) -> list[str]:
    """Returns the displayed cells of a column, in order."""
    table = page.locator(f"{section} table").first
    headers = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    return table.locator(f"tbody tr > :nth-child({headers.index(head) + 1})").all_inner_texts()


def head(page: Page, name: str, section: str = "#runs") -> Any:
    return page.locator(section).get_by_role("columnheader", name=name, exact=True).first


def number(text: str) -> float:
    return float(text.replace("\u2212", "-").strip("%+ "))


def test_header_names_sweep_and_best_run(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    best = max(done(sweep), key=top1)
    expect(page).to_have_title(sweep["title"])
    expect(page.get_by_role("heading", level=1)).to_have_text(sweep["title"])
    expect(page.locator("#summary")).to_contain_text("45 runs on shapes; 1 more failed")
    expect(page.locator("#summary .big")).to_contain_text(f"{100 * top1(best):.1f}%")
    low, high = (best["metrics"] or {})["top1_ci95"]
    expect(page.locator("#summary")).to_contain_text(
        f"95% interval {100 * low:.1f} to {100 * high:.1f} over 600 images"
    )


def test_effects_use_otherwise_equal_runs(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    by_value = []
    for value in ("single", "multi", "ten"):
        by_value.append([top1(run) for run in done(sweep) if run["axes"]["scales"] == value])
    means = sorted(map(np.mean, by_value))
    line = page.locator("#summary .share", has_text="scales")
    expect(line).to_contain_text(f"{100 * (means[-1] - means[0]):.1f} points")
    runs = [run for run in sweep["runs"] if run["id"] not in (0, 1)]  # one setting lacks its other scales
    data: Any = {
        **sweep,
        "runs": [{**run, "id": index} for index, run in enumerate(runs)],
        "comparisons": [],
        "groups": [],
    }
    similar = [
        run for run in done(sweep) if (run["axes"]["prompts_per_class"], run["axes"]["seed"]) not in ((1, 0), (1, 1))
    ]
    means = [np.mean([top1(run) for run in similar if run["axes"]["scales"] == value]) for value in ("single", "multi")]
    line = opened(data).locator("#summary .share", has_text="scales")
    expect(line).to_contain_text(f"{100 * (means[1] - means[0]):.1f} points")


@pytest.mark.parametrize("by_key", [None, "Enter", "Space"])
def test_runs_are_sorted_by_click_or_key(opened: Open, sweep: schema.Page, by_key: str | None) -> None:
    page = opened(sweep)
    button = head(page, "Mean per class").get_by_role("button")
    for order in ("descending", "ascending"):
        if by_key:
            button.press(by_key)
        else:
            button.click()
        expect(head(page, "Mean per class")).to_have_attribute("aria-sort", order)
        assert page.locator("#runs th[aria-sort]").count() == 1
        displayed = column(page, "#runs", "Mean per class")
        expected = sorted(run["metrics"]["mean_per_class"] for run in done(sweep) if run["metrics"])
        expected = expected[::-1] if order == "descending" else expected
        assert displayed == [f"{100 * value:.1f}%" for value in expected] + [
            ""
        ]  # the one that failed is last both ways


def test_every_run_column_is_sortable(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    buttons = page.locator("#runs table").first.locator("thead button")
    assert buttons.count() == 12
    for index in range(buttons.count()):
        buttons.nth(index).click()
        assert page.locator("#runs table").first.locator("tbody tr").count() == 46
    head(page, "Run").get_by_role("button").click()
    assert [text.split()[0] for text in column(page, "#runs", "Run")] == [str(number) for number in range(46)]


def test_runs_are_filtered_by_text_and_setting(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    rows = page.locator("#runs table").first.locator("tbody tr")
    filters = page.get_by_role("search", name="Filter the runs")
    filters.get_by_label("scales", exact=True).select_option("multi")
    assert rows.count() == 15
    filters.get_by_label("prompts_per_class").select_option("10")
    assert set(column(page, "#runs", "scales")) == {"multi"}
    assert set(column(page, "#runs", "prompts_per_class")) == {"10"}
    expect(page.locator("#runs")).to_contain_text("3 of 46 runs shown")
    filters.get_by_label("Find").fill("SEED=2")
    assert rows.count() == 1
    filters.get_by_label("Find").fill("no such run")
    assert rows.count() == 0
    filters.get_by_label("Find").fill("")
    for name in ("scales", "prompts_per_class"):
        filters.get_by_label(name).select_option("all")
    filters.get_by_label("Status").select_option("failed")
    assert rows.count() == 1


def test_failed_run_shows_its_error(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    table = page.get_by_role("table", name="Runs that failed")
    expect(table.locator("tbody tr")).to_have_count(1)
    expect(table).to_contain_text(str(sweep["runs"][-1]["error"]))


def test_differences_and_p_values_are_shown(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    head(page, "Run").get_by_role("button").click()
    for name, key in (("p", "p"), ("p, Holm", "p_holm")):
        expected = [comparison[key] for comparison in sweep["comparisons"]]  # type: ignore[literal-required]
        assert column(page, "#runs", name)[1:-1] == ["< 0.001" if p < 0.001 else f"{p:.3f}" for p in expected]
    displayed = column(page, "#runs", "Difference")[1:-1]
    assert [number(text) for text in displayed] == [
        round(100 * (comparison["difference"] or 0), 1) for comparison in sweep["comparisons"]
    ]


@pytest.mark.parametrize("pair", [(4, 40), (0, 7), (7, 0), (3, 5)])
def test_two_selected_runs_are_tested(opened: Open, sweep: schema.Page, pair: tuple[int, int]) -> None:
    page = opened(sweep)
    for index in pair:
        page.get_by_role("checkbox", name=f"Compare run {index}", exact=True).press("Space")
    page.get_by_role("link", name=f"Compare run {pair[0]} with run {pair[1]}").click()
    first, second = (sweep["runs"][index] for index in pair)
    a, b = (bits_of(run) for run in (first, second))
    only = int((a & ~b).sum())
    only_second = int((b & ~a).sum())
    p = binomtest(only, only + only_second).pvalue if only + only_second else 1.0
    verdict = page.locator("#compare .verdict").inner_text().replace("\u2212", "-")
    assert f"A alone is right on {only} of 600 images, B alone on {only_second}." in verdict
    assert f"p {'< 0.001' if p < 0.001 else f'= {p:.3f}'} (McNemar" in verdict
    assert verdict.startswith(f"{100 * (only - only_second) / 600:+.2f} points.")
    assert ("No significant difference" in verdict) == (p >= 0.05)
    differ = [key for key in first["axes"] if first["axes"][key] != second["axes"][key]]
    assert column(page, "#compare .columns > :nth-child(2)", "Setting") == sorted(differ)


def test_third_selection_replaces_the_first(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    for index in (1, 2, 3):
        page.get_by_role("checkbox", name=f"Compare run {index}", exact=True).click()
    assert page.get_by_role("checkbox", name="Compare run 1", exact=True).is_checked() is False
    expect(page.locator("#compare").get_by_label("Run A")).to_have_value(re.compile("^2: "))
    page.get_by_role("button", name="Swap").click()
    expect(page.locator("#compare").get_by_label("Run A")).to_have_value(re.compile("^3: "))


def test_classes_are_sorted_by_difference(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    table = page.get_by_role("table", name="Difference of each class")
    displayed = [number(text) for text in table.locator("tbody tr > :nth-child(5)").all_inner_texts()]
    assert len(displayed) == 30
    assert all(value >= next_one for value, next_one in pairwise(displayed))
    best = max(done(sweep), key=top1)
    reference = sweep["runs"][0]
    share = []
    for run in (best, reference):
        share.append([row["right"] / row["n"] for row in run["classes"]])
    assert displayed == sorted((round(100 * (a - b), 1) for a, b in zip(*share, strict=True)), reverse=True)


def test_heat_map_has_mean_and_interval(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    rows = page.locator("#grid table.heat tbody tr")
    assert rows.locator("th").all_inner_texts() == ["single", "multi", "ten"]
    for scales, row in zip(("single", "multi", "ten"), rows.all(), strict=True):
        cells = row.locator("td").all_inner_texts()
        for count, cell in zip((1, 2, 5, 10, 20), cells, strict=True):
            expected = {"prompts_per_class": count, "scales": scales}
            group = next(candidate for candidate in sweep["groups"] if candidate["axes"] == expected)
            low, high = np.clip(group["ci95"] or (0, 1), 0, 1)
            assert cell.split("\n") == [f"{100 * group['mean']:.1f}%", f"{100 * low:.1f} to {100 * high:.1f}"]


def test_grid_accepts_any_two_settings(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    grid = page.locator("#grid")
    grid.get_by_label("seed", exact=True).select_option("1")
    grid.get_by_label("Along", exact=True).select_option("scales")
    expect(grid.get_by_label("One line for each")).to_have_value("prompts_per_class")
    cells = grid.locator("table.heat tbody tr").first.locator("td").all_inner_texts()
    runs = [run for run in done(sweep) if run["axes"]["seed"] == 1 and run["axes"]["prompts_per_class"] == 1]
    assert [cell.split("\n")[0] for cell in cells] == [f"{100 * top1(run):.1f}%" for run in runs]
    grid.get_by_label("One line for each").select_option("no setting")
    assert grid.locator("table.heat tbody tr").count() == 1


def test_grid_cell_links_to_its_run(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    page.locator("#grid").get_by_label("seed", exact=True).select_option("2")
    page.locator("#grid table.heat button").first.click()
    expect(page.locator("#focus select")).to_have_value(re.compile("^2: "))
    expect(page.get_by_role("table", name="Metrics of run 2", exact=True)).to_be_visible()


def test_charts_have_text_alternatives(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    charts = page.locator(".chart")
    assert charts.count() == 8
    for chart in charts.all():
        assert chart.locator("svg path").count() > 10
        assert re.search(r"\d", chart.get_attribute("aria-label") or "")
    words = page.locator("#grid .chart").get_attribute("aria-label") or ""
    for group in sweep["groups"]:
        assert f"{100 * group['mean']:.1f}% at {group['axes']['prompts_per_class']}" in words


def test_classes_are_sorted_and_filtered(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    run = max(done(sweep), key=top1)
    names = sweep["class_lists"][0]
    classes = page.locator("#classes")
    classes.get_by_label("Sort by").select_option("margin")
    table = page.get_by_role("table", name=f"Classes of run {run['id']}", exact=True)
    by_margin = [names[index] for index in np.argsort(np.array(run["diagnostics"]["margin"], float), kind="stable")]
    assert table.locator("tbody th").all_inner_texts() == by_margin
    classes.get_by_label("Largest first").check()
    assert table.locator("tbody th").all_inner_texts() == by_margin[::-1]
    classes.get_by_label("Find a class").fill("RED tri")
    assert table.locator("tbody th").all_inner_texts() == ["red triangle"]
    right = run["classes"][names.index("red triangle")]["right"]
    n = 20
    expect(table).to_contain_text(f"{100 * right / n:.1f}%")
    expect(table).to_contain_text(" to ".join(f"{100 * end:.0f}" for end in wilson(right, n)))
    classes.get_by_label("Diagnostic", exact=True).select_option("gap")
    expect(classes.locator(".chart").nth(1)).to_have_attribute("aria-label", re.compile(r"Spearman.* gap .*\+0\.50"))


def test_gallery_links_class_prompts_and_images(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    gallery = page.locator("#gallery")
    assert gallery.locator(".card").count() == 12
    gallery.get_by_role("button", name="Show more").click()
    assert gallery.locator(".card").count() == 30
    page.locator("#classes").get_by_role("button", name="blue triangle", exact=True).click()
    expect(gallery.locator(".card")).to_have_count(1)
    card = gallery.locator(".card").first
    run = max(done(sweep), key=top1)
    generated = run["gallery"][sweep["class_lists"][0].index("blue triangle")]
    assert card.locator(".prompts p").all_inner_texts() == [entry["prompt"] for entry in generated]
    sources = [image.get_attribute("src") for image in card.locator("img").all()]
    assert sources == [sweep["thumbs"][key] for entry in generated for key in entry["images"]]
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_confused_classes_are_side_by_side(opened: Open, sweep: schema.Page) -> None:
    pairs = opened(sweep).locator("#confusions .card")
    assert pairs.count() == 4
    expect(pairs.first).to_contain_text("red circle taken for green circle")
    assert [side.locator("img").count() for side in pairs.first.locator(".side").all()] == [2, 3, 1]


def test_costs_are_summed_over_runs(opened: Open, sweep: schema.Page) -> None:
    page = opened(sweep)
    table = page.get_by_role("table", name="45 runs together")
    computed = sum(stage["computed"] for run in done(sweep) for stage in run["stages"] if stage["stage"] == "images")
    expect(table.get_by_role("row").nth(2)).to_contain_text(f"{computed:,}")
    expect(table).to_contain_text("Reused items, when computed61.5 s")
    before = page.locator("#cost .chart").get_attribute("aria-label")
    page.get_by_label("Add the past cost of reused items").check()
    assert page.locator("#cost .chart").get_attribute("aria-label") != before
    expect(page.locator("#cost")).to_contain_text("after 8,420 images")


def test_single_run_hides_comparisons(opened: Open) -> None:
    page = opened(single_page())
    expect(page.locator("#runs")).to_contain_text("One run: nothing to compare")
    for section in ("#grid", "#compare"):
        expect(page.locator(section)).to_be_hidden()
    for section in ("#cost", "#confidence", "#confusions", "#gallery"):
        expect(page.locator(f"{section} .empty")).to_be_visible()
    assert page.locator("nav a").count() == 8


def test_runs_of_other_images_are_not_tested(opened: Open, sweep: schema.Page) -> None:
    runs = [{**run, "evaluation_key": "other"} if run["id"] == 1 else run for run in sweep["runs"]]
    reason = "their labels differ"
    tests = [
        {**comparison, "difference": None, "reason": reason} if comparison["run"] == 1 else comparison
        for comparison in sweep["comparisons"]
    ]
    data: Any = {**sweep, "runs": runs, "comparisons": tests}
    page = opened(data)
    for index in (0, 1):
        page.get_by_role("checkbox", name=f"Compare run {index}", exact=True).click()
    expect(page.locator("#compare .verdict")).to_have_text(f"No paired test. {reason}")
    page.locator("#compare").get_by_label("Run A").select_option(index=5)
    expect(page.locator("#compare .verdict")).to_contain_text("the runs differ in their images")
