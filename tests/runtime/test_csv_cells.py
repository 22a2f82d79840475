"""Tests that no cell of a CSV file is a formula, and that names survive being written and read."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
from factories import FirstRun, Sandbox, evaluate_run, make_image_folder
from hypothesis import given
from hypothesis import strategies as st
from run_factories import write_failed, write_run

from lgclip.reporting.comparison.command import CompareOptions, compare
from lgclip.reporting.run_folder import Run
from lgclip.reporting.sweep_summary import summarize
from lgclip.reporting.text_tables import to_text
from lgclip.runtime.csv_cells import escaped_cell, original_cell

pytest_plugins = ("run_fixtures",)

FORMULAS = [
    "=1+1",
    '=HYPERLINK("http://x","y")',
    "+cmd|' /C calc'!A0",
    "-2+3",
    "@SUM(A1)",
    "\t=1",
    "\r=1",
    "\n=1",
    " =1",
    "\uff1d1",
]
NUMBERS = ["1", "-1.5", "+3", "1e-05", "-.5", "-1.", "nan", "-inf", "+nan", "-1E+10"]
PLAIN = ["", "a\r=1", "b\r\n=1", "c\n=1", "red fox", "a-b", "o'hara", "'quoted'", "1-2", "f(x)=y", "user@host", "5 = 5"]


def is_formula(cell: str) -> bool:
    """Checks whether a spreadsheet may compute a cell: by its first letter, unless all of it is a number."""
    if not cell.strip(" \xa0").startswith(
        ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
    ):
        return False
    try:
        return not (math.isfinite(float(cell)) or cell.strip("+-") in ("inf", "nan"))
    except ValueError:
        return True


def assert_no_formula(text: str) -> list[list[str]]:
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert [cell for row in rows for cell in row if is_formula(cell)] == []
    return rows


@pytest.mark.parametrize("text", FORMULAS)
def test_formula_gets_an_apostrophe(text: str) -> None:
    assert escaped_cell(text) == f"'{text}"
    assert original_cell(f"'{text}") == text


@pytest.mark.parametrize("value", [*NUMBERS, *PLAIN, -1, -1.5, None, True])
def test_other_cells_stay(value: object) -> None:
    assert escaped_cell(value) == value


@given(st.text(st.sampled_from("'=+-@\t\r\n a1.e") | st.characters(codec="utf-8"), max_size=8))
def test_any_text_survives(text: str) -> None:
    escaped = escaped_cell(text)
    assert original_cell(escaped) == text
    assert not is_formula(escaped)


@pytest.mark.slow
def test_files_of_a_run_have_no_formula(fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    names = ("=1+1", "@SUM(A1)", "-cmd", "'=quoted")
    images = make_image_folder(tmp_path / "images", names)
    run = tmp_path / "run"
    result = evaluate_run(
        fresh_sandbox, run, f"dataset.root={images}", "llm.templates=['a photo of a {}.','a {} on grey paper.']",
        "prompts_per_class=2",
    )  # fmt: skip
    files = sorted(run.glob("*.csv"))
    assert {"per_class.csv", "predictions.csv", "diagnostics.csv"} <= {path.name for path in files}
    for path in files:
        with path.open(newline="", encoding="utf-8") as file:
            assert_no_formula(file.read())
    assert sorted(Run.read(run).class_names) == sorted(names)
    assert "'=1+1" not in json.dumps(result), "result.json has the names as they are"


def test_names_are_read_back(first_run: FirstRun, tmp_path: Path) -> None:
    from lgclip.reporting.result import _write_csv

    header = ("class", "name", "=n", "correct", "accuracy", "most_confused_with", "confusions")
    rows = [(i, name, -1, -1.5, "-0.5", name, 0) for i, name in enumerate([*FORMULAS, *PLAIN, *NUMBERS])]
    _write_csv(tmp_path / "per_class.csv", header, rows)
    with (tmp_path / "per_class.csv").open(newline="", encoding="utf-8") as file:
        cells = assert_no_formula(file.read())
    assert cells[0][2] == "'=n"
    assert cells[1][2:5] == ["-1", "-1.5", "-0.5"]
    run = Run(tmp_path, Run.read(first_run.folder).result)
    assert run.class_names == [*FORMULAS, *PLAIN, *NUMBERS]


def test_summary_of_a_sweep_has_no_formula(tmp_path: Path) -> None:
    for number, text in enumerate(FORMULAS):
        write_failed(tmp_path / str(number), [f"+llm.system={text}", f"++=x{text}=1"], error=text)
    summarize(tmp_path)
    with (tmp_path / "summary.csv").open(newline="", encoding="utf-8") as file:
        rows = assert_no_formula(file.read())
    assert len(rows) == len(FORMULAS) + 1
    assert rows[1][-1] == "'=1+1"


def test_comparison_has_no_formula(tmp_path: Path) -> None:
    for number, text in enumerate(FORMULAS[:4]):
        write_run(tmp_path / str(number), settings={"llm": text, "=key": text}, dataset=text)
    options = CompareOptions([str(tmp_path)], by=["llm"], columns=["dataset"], format="csv")
    parts = compare(options)
    text = "\n".join(part if isinstance(part, str) else to_text(part) for part in parts)
    rows = assert_no_formula(text)
    assert "'=1+1" in {cell for row in rows for cell in row}
