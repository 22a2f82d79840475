"""The page that compares runs, in a browser: what is clicked, typed and read."""

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from dashboard_pages import Open, bits_of, done, single_page, sweep_page, top1
from playwright.sync_api import Page, expect
from scipy.stats import binomtest

from lgclip.dashboard import shape
from lgclip.statistics import wilson

pytest_plugins = ("browser_fixtures",)


@pytest.fixture(scope="module")
def sweep() -> shape.Page:
    return sweep_page()


def column(page: Page, section: str, head: str) -> list[str]:
    """A column's cells as they are shown, in order."""
    table = page.locator(f"{section} table").first
    heads = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    return table.locator(f"tbody tr > :nth-child({heads.index(head) + 1})").all_inner_texts()


def head(page: Page, name: str, section: str = "#runs") -> Any:
    return page.locator(section).get_by_role("columnheader", name=name, exact=True).first


def number(text: str) -> float:
    return float(text.replace("\u2212", "-").strip("%+ "))


def test_the_head_says_what_was_run_and_what_was_best(opened: Open, sweep: shape.Page) -> None:
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


def test_what_moves_top1_is_told_over_runs_alike_in_all_else(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    by_value = [
        [top1(run) for run in done(sweep) if run["axes"]["scales"] == value] for value in ("single", "multi", "ten")
    ]
    means = sorted(map(np.mean, by_value))
    line = page.locator("#summary .share", has_text="scales")
    expect(line).to_contain_text(f"{100 * (means[-1] - means[0]):.1f} points")
    runs = [run for run in sweep["runs"] if run["id"] not in (0, 1)]  # one setting lacks its other scales
    data: Any = {**sweep, "runs": [{**run, "id": at} for at, run in enumerate(runs)], "comparisons": [], "groups": []}
    alike = [
        run for run in done(sweep) if (run["axes"]["prompts_per_class"], run["axes"]["seed"]) not in ((1, 0), (1, 1))
    ]
    means = [np.mean([top1(run) for run in alike if run["axes"]["scales"] == value]) for value in ("single", "multi")]
    line = opened(data).locator("#summary .share", has_text="scales")
    expect(line).to_contain_text(f"{100 * (means[1] - means[0]):.1f} points")


@pytest.mark.parametrize("by_key", [None, "Enter", "Space"])
def test_runs_are_sorted_by_a_click_or_a_key_both_ways(opened: Open, sweep: shape.Page, by_key: str | None) -> None:
    page = opened(sweep)
    button = head(page, "Mean per class").get_by_role("button")
    for way in ("descending", "ascending"):
        if by_key:
            button.press(by_key)
        else:
            button.click()
        expect(head(page, "Mean per class")).to_have_attribute("aria-sort", way)
        assert page.locator("#runs th[aria-sort]").count() == 1
        shown = column(page, "#runs", "Mean per class")
        expected = sorted(run["metrics"]["mean_per_class"] for run in done(sweep) if run["metrics"])
        expected = expected[::-1] if way == "descending" else expected
        assert shown == [f"{100 * value:.1f}%" for value in expected] + [""]  # the one that failed is last both ways


def test_every_column_of_runs_can_be_sorted(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    buttons = page.locator("#runs table").first.locator("thead button")
    assert buttons.count() == 12
    for at in range(buttons.count()):
        buttons.nth(at).click()
        assert page.locator("#runs table").first.locator("tbody tr").count() == 46
    head(page, "Run").get_by_role("button").click()
    assert [text.split()[0] for text in column(page, "#runs", "Run")] == [str(number) for number in range(46)]


def test_runs_are_found_by_words_and_by_a_settings_value(opened: Open, sweep: shape.Page) -> None:
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


def test_a_failed_run_says_why(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    table = page.get_by_role("table", name="Runs that failed")
    expect(table.locator("tbody tr")).to_have_count(1)
    expect(table).to_contain_text(str(sweep["runs"][-1]["error"]))


def test_differences_and_p_are_those_that_were_given(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    head(page, "Run").get_by_role("button").click()
    for name, key in (("p", "p"), ("p, Holm", "p_holm")):
        given = [one[key] for one in sweep["comparisons"]]  # type: ignore[literal-required]
        assert column(page, "#runs", name)[1:-1] == ["< 0.001" if p < 0.001 else f"{p:.3f}" for p in given]
    shown = column(page, "#runs", "Difference")[1:-1]
    assert [number(text) for text in shown] == [
        round(100 * (one["difference"] or 0), 1) for one in sweep["comparisons"]
    ]


@pytest.mark.parametrize("pair", [(4, 40), (0, 7), (7, 0), (3, 5)])
def test_two_ticked_runs_are_tested_image_by_image(opened: Open, sweep: shape.Page, pair: tuple[int, int]) -> None:
    page = opened(sweep)
    for at in pair:
        page.get_by_role("checkbox", name=f"Compare run {at}", exact=True).press("Space")
    page.get_by_role("link", name=f"Compare run {pair[0]} with run {pair[1]}").click()
    first, second = (sweep["runs"][at] for at in pair)
    a, b = (bits_of(run) for run in (first, second))
    only, other = int((a & ~b).sum()), int((b & ~a).sum())
    p = binomtest(only, only + other).pvalue if only + other else 1.0
    said = page.locator("#compare .verdict").inner_text().replace("\u2212", "-")
    assert f"A alone is right on {only} of 600 images, B alone on {other}." in said
    assert f"p {'< 0.001' if p < 0.001 else f'= {p:.3f}'} (McNemar" in said
    assert said.startswith(f"{100 * (only - other) / 600:+.2f} points.")
    assert ("Not told apart" in said) == (p >= 0.05)
    differ = [key for key in first["axes"] if first["axes"][key] != second["axes"][key]]
    assert column(page, "#compare .columns > :nth-child(2)", "Setting") == sorted(differ)


def test_a_third_tick_takes_the_first_ones_place(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    for at in (1, 2, 3):
        page.get_by_role("checkbox", name=f"Compare run {at}", exact=True).click()
    assert page.get_by_role("checkbox", name="Compare run 1", exact=True).is_checked() is False
    expect(page.locator("#compare").get_by_label("Run A")).to_have_value(re.compile("^2: "))
    page.get_by_role("button", name="Swap").click()
    expect(page.locator("#compare").get_by_label("Run A")).to_have_value(re.compile("^3: "))


def test_the_classes_of_two_runs_are_sorted_by_their_difference(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    table = page.get_by_role("table", name="Difference of each class")
    shown = [number(text) for text in table.locator("tbody tr > :nth-child(5)").all_inner_texts()]
    assert len(shown) == 30
    assert all(one >= next_one for one, next_one in pairwise(shown))
    best, reference = max(done(sweep), key=top1), sweep["runs"][0]
    share = [[row["right"] / row["n"] for row in run["classes"]] for run in (best, reference)]
    assert shown == sorted((round(100 * (a - b), 1) for a, b in zip(*share, strict=True)), reverse=True)


def test_the_heat_map_holds_the_mean_of_the_seeds_and_its_interval(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    rows = page.locator("#grid table.heat tbody tr")
    assert rows.locator("th").all_inner_texts() == ["single", "multi", "ten"]
    for scales, row in zip(("single", "multi", "ten"), rows.all(), strict=True):
        cells = row.locator("td").all_inner_texts()
        for count, cell in zip((1, 2, 5, 10, 20), cells, strict=True):
            wanted = {"prompts_per_class": count, "scales": scales}
            group = next(one for one in sweep["groups"] if one["axes"] == wanted)
            low, high = np.clip(group["ci95"] or (0, 1), 0, 1)
            assert cell.split("\n") == [f"{100 * group['mean']:.1f}%", f"{100 * low:.1f} to {100 * high:.1f}"]


def test_the_grid_takes_any_two_settings(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    grid = page.locator("#grid")
    grid.get_by_label("seed", exact=True).select_option("1")
    grid.get_by_label("Along", exact=True).select_option("scales")
    expect(grid.get_by_label("One line for each")).to_have_value("prompts_per_class")
    cells = grid.locator("table.heat tbody tr").first.locator("td").all_inner_texts()
    runs = [run for run in done(sweep) if run["axes"]["seed"] == 1 and run["axes"]["prompts_per_class"] == 1]
    assert [cell.split("\n")[0] for cell in cells] == [f"{100 * top1(run):.1f}%" for run in runs]
    grid.get_by_label("One line for each").select_option("all runs")
    assert grid.locator("table.heat tbody tr").count() == 1


def test_a_cell_of_the_grid_leads_to_its_run(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    page.locator("#grid").get_by_label("seed", exact=True).select_option("2")
    page.locator("#grid table.heat button").first.click()
    expect(page.locator("#focus select")).to_have_value(re.compile("^2: "))
    expect(page.get_by_role("table", name="Figures of run 2", exact=True)).to_be_visible()


def test_charts_are_drawn_and_say_in_words_what_they_show(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    charts = page.locator(".chart")
    assert charts.count() == 5
    for chart in charts.all():
        assert chart.locator("svg path").count() > 10
        assert re.search(r"\d", chart.get_attribute("aria-label") or "")
    words = page.locator("#grid .chart").get_attribute("aria-label") or ""
    for group in sweep["groups"]:
        assert f"{100 * group['mean']:.1f}% at {group['axes']['prompts_per_class']}" in words


def test_classes_are_sorted_searched_and_measured(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    run = max(done(sweep), key=top1)
    names = sweep["class_lists"][0]
    classes = page.locator("#classes")
    classes.get_by_label("Sort by").select_option("margin")
    table = page.get_by_role("table", name=f"Classes of run {run['id']}", exact=True)
    by_margin = [names[at] for at in np.argsort(np.array(run["diagnostics"]["margin"], float), kind="stable")]
    assert table.locator("tbody th").all_inner_texts() == by_margin
    classes.get_by_label("Largest first").check()
    assert table.locator("tbody th").all_inner_texts() == by_margin[::-1]
    classes.get_by_label("Find a class").fill("RED tri")
    assert table.locator("tbody th").all_inner_texts() == ["red triangle"]
    right, n = run["classes"][names.index("red triangle")]["right"], 20
    expect(table).to_contain_text(f"{100 * right / n:.1f}%")
    expect(table).to_contain_text(" to ".join(f"{100 * end:.0f}" for end in wilson(right, n)))
    classes.get_by_label("Diagnostic", exact=True).select_option("gap")
    expect(classes.locator(".chart").nth(1)).to_have_attribute("aria-label", re.compile(r"Spearman.* gap .*\+0\.50"))


def test_the_gallery_leads_from_a_class_to_its_prompts_and_images(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    gallery = page.locator("#gallery")
    assert gallery.locator(".card").count() == 12
    gallery.get_by_role("button", name="Show more").click()
    assert gallery.locator(".card").count() == 30
    page.locator("#classes").get_by_role("button", name="blue triangle", exact=True).click()
    expect(gallery.locator(".card")).to_have_count(1)
    card = gallery.locator(".card").first
    run = max(done(sweep), key=top1)
    drawn = run["gallery"][sweep["class_lists"][0].index("blue triangle")]
    assert card.locator(".prompts p").all_inner_texts() == [one["prompt"] for one in drawn]
    sources = [image.get_attribute("src") for image in card.locator("img").all()]
    assert sources == [sweep["thumbs"][key] for one in drawn for key in one["images"]]
    assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth > 0)")


def test_confused_classes_stand_side_by_side(opened: Open, sweep: shape.Page) -> None:
    pairs = opened(sweep).locator("#confusions .card")
    assert pairs.count() == 4
    expect(pairs.first).to_contain_text("red circle taken for green circle")
    assert [side.locator("img").count() for side in pairs.first.locator(".side").all()] == [2, 3, 1]


def test_costs_add_up_over_the_runs(opened: Open, sweep: shape.Page) -> None:
    page = opened(sweep)
    table = page.get_by_role("table", name="45 runs together")
    made = sum(stage["made"] for run in done(sweep) for stage in run["stages"] if stage["stage"] == "images")
    expect(table.get_by_role("row").nth(2)).to_contain_text(f"{made:,}")
    expect(table).to_contain_text("Re-used, when it was made61.5 s")
    before = page.locator("#cost .chart").get_attribute("aria-label")
    page.get_by_label("Add what re-used things cost").check()
    assert page.locator("#cost .chart").get_attribute("aria-label") != before
    expect(page.locator("#cost")).to_contain_text("after 8,420 images")


def test_one_run_has_nothing_to_compare_and_says_what_is_not_there(opened: Open) -> None:
    page = opened(single_page())
    expect(page.locator("#runs")).to_contain_text("One run: nothing to compare")
    for section in ("#grid", "#compare"):
        expect(page.locator(section)).to_be_hidden()
    for section in ("#cost", "#confidence", "#confusions", "#gallery"):
        expect(page.locator(f"{section} .empty")).to_be_visible()
    assert page.locator("nav a").count() == 8


def test_runs_of_other_images_are_not_tested_against_each_other(opened: Open, sweep: shape.Page) -> None:
    runs = [{**run, "judged": "other"} if run["id"] == 1 else run for run in sweep["runs"]]
    reason = "their labels differ"
    tests = [{**one, "difference": None, "reason": reason} if one["run"] == 1 else one for one in sweep["comparisons"]]
    data: Any = {**sweep, "runs": runs, "comparisons": tests}
    page = opened(data)
    for at in (0, 1):
        page.get_by_role("checkbox", name=f"Compare run {at}", exact=True).click()
    expect(page.locator("#compare .verdict")).to_have_text(f"No paired test. {reason}")
    page.locator("#compare").get_by_label("Run A").select_option(index=5)
    expect(page.locator("#compare .verdict")).to_contain_text("they did not judge the same images")
