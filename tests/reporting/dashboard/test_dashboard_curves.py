"""Tests the dashboard's curves: rounds and epochs of runs as lines and as numbers."""

import re
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from dashboard_pages import Open, class_names, done, failed_run, page_of, rounds, run_of, single_page, sweep_page
from playwright.sync_api import Locator, Page, expect
from run_factories import prompt_tuning_record, student_record, write_run

from lgclip.reporting.dashboard import schema
from lgclip.reporting.dashboard.collect import collect

pytest_plugins = ("browser_fixtures",)

LOSSES = [[0.9, 0.512345], [0.4, 0.25]]
ROUNDS = [
    {"round": 0, "accuracy": 0.61},
    {"round": 1, "k": 2, "guessed": 6, "losses": LOSSES[0], "coverage": 0.5, "candidates": 1.0, "precision": 0.83333,
     "accuracy": 0.7},
    {"round": 2, "k": 4, "guessed": 12, "losses": LOSSES[1], "coverage": 1.0, "candidates": 1.0, "precision": 0.75,
     "accuracy": 0.72},
]  # fmt: skip
BY_KIND = {
    "lgclip": {"seen": 0.9, "unseen": 0.45, "harmonic": 0.6},
    "clip_text": {"seen": 0.5, "unseen": 0.3, "harmonic": 0.375},
}
EPOCHS = {"loss": [2.0, float("nan"), 0.5], "lr": [0.1, 0.05, 0.0], "accuracy": [0.1, 0.5, 0.75]}


def learning_of(tmp_path: Path, **kwargs: Any) -> schema.Learning | None:
    write_run(tmp_path / "run", extra=kwargs)
    (run,) = collect([tmp_path], title="", reference=None, images=0)["runs"]
    return run["learning"]


def test_rounds_have_the_loss_of_their_last_epoch(tmp_path: Path) -> None:
    assert learning_of(tmp_path, prompt_tuning=prompt_tuning_record(rounds=ROUNDS, by_type=BY_KIND)) == {
        "unit": "round", "first": 0, "by_type": BY_KIND, "curves": {
            "precision": [None, 0.8333, 0.75], "coverage": [None, 0.5, 1.0], "accuracy": [0.61, 0.7, 0.72],
            "loss": [None, 0.5123, 0.25],
        },
    }  # fmt: skip


def test_epochs_skip_missing_values(tmp_path: Path) -> None:
    assert learning_of(tmp_path, student=student_record(history=EPOCHS)) == {
        "unit": "epoch", "first": 1, "by_type": {}, "curves": {"accuracy": [0.1, 0.5, 0.75], "loss": [2.0, None, 0.5]}
    }  # fmt: skip


@pytest.mark.parametrize(
    "extra", [{}, {"prompt_tuning": None, "student": None}, {"student": student_record()}], ids=str
)
def test_untrained_run_has_no_curve(tmp_path: Path, extra: dict[str, Any]) -> None:
    assert learning_of(tmp_path, **extra) is None


def learner_page() -> schema.Page:
    """Builds a page of three methods in three paradigms with three seeds, and one failed job."""
    names = class_names(5)
    runs: list[Any] = []
    for number, (prompt_tuning, paradigm, seed) in enumerate(
        product(("grip", "cpl", "air"), ("ul", "ssl", "trzsl"), "012")
    ):
        axes = {"prompt_tuning": prompt_tuning, "paradigm": paradigm, "prompt_tuning.seed": int(seed)}
        learning = rounds(number) if paradigm == "trzsl" else {**rounds(number), "by_type": {}}
        runs.append({**run_of(number, axes, names, 1.0 + number / 30), "learning": learning})
    return page_of([*runs, failed_run(27, {"prompt_tuning": "fpl"}, "ValueError: no")], names)


def chart_of(page: Page, title: str) -> Locator:
    return page.locator("#learning figure").filter(has_text=title)


def lines_of(chart: Locator) -> list[str]:
    """Returns the chart's text, run by run."""
    return (chart.locator(".chart").get_attribute("aria-label") or "").partition(". ")[2].split("; ")


def test_each_run_is_a_line(opened: Open) -> None:
    data = learner_page()
    page = opened(data)
    chart = chart_of(page, "Accuracy on the pool")
    lines = []
    for run in done(data):
        lines.append(
            (run["id"], *((run["learning"] or {"curves": {}})["curves"]["accuracy"][index] or 0 for index in (0, 3)))
        )
    assert lines_of(chart) == [
        f"Run {number}: {100 * first:.1f}% at round 0, {100 * last:.1f}% at round 3" for number, first, last in lines
    ]
    assert chart.locator("svg path").count() > 100
    assert lines_of(chart_of(page, "Precision"))[0] == "Run 0: 90.0% at round 1, 88.0% at round 3"
    assert lines_of(chart_of(page, "Loss"))[0] == "Run 0: 1.50 at round 1, 0.500 at round 3"
    chart.locator("summary", has_text="The numbers").click()
    last = chart.locator("tbody tr").last.locator("th, td").all_inner_texts()
    assert last == ["3", *(f"{100 * end:.1f}%" for *_, end in lines)]


def test_many_runs_are_colored_by_setting(opened: Open) -> None:
    page = opened(learner_page())
    fields = page.locator("#learning .fields")
    chart = chart_of(page, "Coverage")
    expect(fields.get_by_label("One color for each")).to_have_value("prompt_tuning")
    assert chart.locator(".legend .key").all_inner_texts() == ["grip", "cpl", "air"]
    fields.get_by_label("paradigm", exact=True).select_option("trzsl")
    assert len(lines_of(chart)) == 9
    fields.get_by_label("One color for each").select_option("prompt_tuning.seed")
    assert chart.locator(".legend .key").all_inner_texts() == ["0", "1", "2"]
    fields.get_by_label("prompt_tuning", exact=True).select_option("cpl")
    fields.get_by_label("One color for each").select_option("run")
    names = chart.locator(".legend .key").all_inner_texts()
    assert [name.partition(":")[0] for name in names] == [line.split()[1].strip(":") for line in lines_of(chart)]
    assert len(names) == 3


def test_seen_and_unseen_columns_are_optional(opened: Open) -> None:
    page = opened(learner_page())
    table = page.locator("#runs table").first
    headers = [text.strip() for text in table.locator("thead th").all_inner_texts()]
    column = headers.index("Unseen") + 1
    assert headers[column - 2 : column + 1] == ["Seen", "Unseen", "Harmonic"]
    table.get_by_role("button", name="Unseen").click()
    displayed = table.locator(f"tbody tr > :nth-child({column})").all_inner_texts()
    numbers = sorted((number for number in range(27) if number // 3 % 3 == 2), reverse=True)
    assert displayed == [*(f"{60 + number:.1f}%" for number in numbers), *["\u2013"] * 18, ""]
    page = opened(sweep_page(1))
    assert "Seen" not in page.locator("#runs thead").first.inner_text()


def test_student_has_an_epoch_curve(opened: Open) -> None:
    data = single_page()
    expect(opened(data).locator("#learning")).to_be_hidden()
    epochs: list[float | None] = [index / 100 for index in range(90)]
    learning = schema.Learning(unit="epoch", first=1, curves={"accuracy": epochs}, by_type={})
    alone: Any = {**data, "runs": [{**data["runs"][0], "learning": learning}]}
    page = opened(alone)
    (figure,) = page.locator("#learning figure").all()
    assert lines_of(figure) == ["Run 0: 0.0% at epoch 1, 89.0% at epoch 90"]
    assert page.locator("#learning .fields").count() == 0
    figure.locator("summary", has_text="The numbers").click()
    displayed = [int(text) for text in figure.locator("tbody th").all_inner_texts()]
    assert len(displayed) <= 31
    assert displayed[-1] == 90
    expect(page.get_by_role("link", name="Learning")).to_have_attribute("href", re.compile("#learning"))
