"""What the page that compares runs shows of learning: the runs' own rounds and epochs, as lines and as numbers."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from dashboard_pages import Open, class_names, done, failed_run, page_of, rounds, run_of, single_page, sweep_page
from playwright.sync_api import Locator, Page, expect
from written_runs import write_run

from lgclip.dashboard import shape
from lgclip.dashboard.collect import collect

pytest_plugins = ("browser_fixtures",)

LOSSES = [[0.9, 0.512345], [0.4, 0.25]]
ROUNDS = [
    {"round": 0, "accuracy": 0.61},
    {"round": 1, "k": 2, "guessed": 6, "losses": LOSSES[0], "coverage": 0.5, "candidates": 1.0, "precision": 0.83333,
     "accuracy": 0.7},
    {"round": 2, "k": 4, "guessed": 12, "losses": LOSSES[1], "coverage": 1.0, "candidates": 1.0, "precision": 0.75,
     "accuracy": 0.72},
]  # fmt: skip
BY_KIND = {"lgclip": {"seen": 0.9, "unseen": 0.45, "harmonic": 0.6}, "clip_text": {"seen": 0.5}}
EPOCHS = {"loss": [2.0, float("nan"), 0.5], "lr": [0.1, 0.05, 0.0], "accuracy": [0.1, 0.5, 0.75]}


def told(tmp_path: Path, **more: Any) -> shape.Learning | None:
    write_run(tmp_path / "run", more=more)
    (run,) = collect([tmp_path], title="", reference=None, images=0)["runs"]
    return run["learning"]


def test_rounds_are_those_of_the_result_with_the_loss_of_their_last_epoch(tmp_path: Path) -> None:
    assert told(tmp_path, learner={"rounds": ROUNDS, "by_kind": BY_KIND}) == {
        "unit": "round", "first": 0, "by_kind": BY_KIND, "figures": {
            "precision": [None, 0.8333, 0.75], "coverage": [None, 0.5, 1.0], "accuracy": [0.61, 0.7, 0.72],
            "loss": [None, 0.5123, 0.25],
        },
    }  # fmt: skip


def test_epochs_are_those_of_a_student_without_what_is_no_number(tmp_path: Path) -> None:
    assert told(tmp_path, student={"steps": 12, "history": EPOCHS}) == {
        "unit": "epoch", "first": 1, "by_kind": {}, "figures": {"accuracy": [0.1, 0.5, 0.75], "loss": [2.0, None, 0.5]}
    }  # fmt: skip


@pytest.mark.parametrize("more", [{}, {"learner": None, "student": None}, {"student": {"key": "of old"}}], ids=str)
def test_a_run_that_learnt_nothing_or_tells_nothing_of_it_has_no_curve(tmp_path: Path, more: dict[str, Any]) -> None:
    assert told(tmp_path, **more) is None


def learners() -> shape.Page:
    """Three learners in three paradigms with three seeds, and a job that failed."""
    names = class_names(5)
    runs: list[Any] = []
    for number, (learner, paradigm, seed) in enumerate(product(("grip", "cpl", "air"), ("ul", "ssl", "trzsl"), "012")):
        axes = {"learner": learner, "paradigm": paradigm, "learner.seed": int(seed)}
        learning = rounds(number) if paradigm == "trzsl" else {**rounds(number), "by_kind": {}}
        runs.append({**run_of(number, axes, names, 1.0 + number / 30), "learning": learning})
    return page_of([*runs, failed_run(27, {"learner": "fpl"}, "ValueError: no")], names)


def chart_of(page: Page, title: str) -> Locator:
    return page.locator("#learning figure").filter(has_text=title)


def lines_of(chart: Locator) -> list[str]:
    """What the chart says in words, run by run."""
    return (chart.locator(".chart").get_attribute("aria-label") or "").partition(". ")[2].split("; ")


def test_each_run_is_a_line_of_its_own_numbers(opened: Open) -> None:
    data = learners()
    page = opened(data)
    chart = chart_of(page, "Accuracy on the pool")
    said = [
        (run["id"], *((run["learning"] or {"figures": {}})["figures"]["accuracy"][at] or 0 for at in (0, 3)))
        for run in done(data)
    ]
    assert lines_of(chart) == [
        f"Run {number}: {100 * first:.1f}% at round 0, {100 * last:.1f}% at round 3" for number, first, last in said
    ]
    assert chart.locator("svg path").count() > 100
    assert lines_of(chart_of(page, "Precision"))[0] == "Run 0: 90.0% at round 1, 88.0% at round 3"
    assert lines_of(chart_of(page, "Loss"))[0] == "Run 0: 1.50 at round 1, 0.500 at round 3"
    chart.locator("summary").click()
    last = chart.locator("tbody tr").last.locator("th, td").all_inner_texts()
    assert last == ["3", *(f"{100 * end:.1f}%" for *_, end in said)]


def test_many_runs_are_coloured_by_a_setting_and_fewer_can_be_shown(opened: Open) -> None:
    page = opened(learners())
    fields, chart = page.locator("#learning .fields"), chart_of(page, "Coverage")
    expect(fields.get_by_label("One colour for each")).to_have_value("learner")
    assert chart.locator(".legend .key").all_inner_texts() == ["grip", "cpl", "air"]
    fields.get_by_label("paradigm", exact=True).select_option("trzsl")
    assert len(lines_of(chart)) == 9
    fields.get_by_label("One colour for each").select_option("learner.seed")
    assert chart.locator(".legend .key").all_inner_texts() == ["0", "1", "2"]
    fields.get_by_label("learner", exact=True).select_option("cpl")
    fields.get_by_label("One colour for each").select_option("run")
    names = chart.locator(".legend .key").all_inner_texts()
    assert [name.partition(":")[0] for name in names] == [line.split()[1].strip(":") for line in lines_of(chart)]
    assert len(names) == 3


def test_seen_unseen_and_harmonic_are_columns_where_any_run_has_them(opened: Open) -> None:
    page = opened(learners())
    table = page.locator("#runs table").first
    heads = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    at = heads.index("Unseen") + 1
    assert heads[at - 2 : at + 1] == ["Seen", "Unseen", "Harmonic"]
    table.get_by_role("button", name="Unseen").click()
    shown = table.locator(f"tbody tr > :nth-child({at})").all_inner_texts()
    numbers = sorted((number for number in range(27) if number // 3 % 3 == 2), reverse=True)
    assert shown == [*(f"{60 + number:.1f}%" for number in numbers), *["\u2013"] * 18, ""]
    page = opened(sweep_page(1))
    assert "Seen" not in page.locator("#runs thead").first.inner_text()


def test_one_student_is_a_curve_of_epochs_and_nothing_learnt_is_no_section(opened: Open) -> None:
    data = single_page()
    expect(opened(data).locator("#learning")).to_be_hidden()
    epochs: list[float | None] = [at / 100 for at in range(90)]
    learning = shape.Learning(unit="epoch", first=1, figures={"accuracy": epochs}, by_kind={})
    alone: Any = {**data, "runs": [{**data["runs"][0], "learning": learning}]}
    page = opened(alone)
    (figure,) = page.locator("#learning figure").all()
    assert lines_of(figure) == ["Run 0: 0.0% at epoch 1, 89.0% at epoch 90"]
    assert page.locator("#learning .fields").count() == 0
    figure.locator("summary").click()
    shown = [int(text) for text in figure.locator("tbody th").all_inner_texts()]
    assert len(shown) <= 31
    assert shown[-1] == 90
    expect(page.get_by_role("link", name="Learning")).to_have_attribute("href", re.compile("#learning"))
