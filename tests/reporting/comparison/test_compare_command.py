"""Tests `lgclip compare`: any axes, several data sets, every format, and errors for wrong options."""

import csv
import io
import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_factories import metrics_record, write_failed, write_run
from seed_checks import assert_over_seeds

from lgclip.cli.main import main
from lgclip.reporting.comparison.axes import brief_settings
from lgclip.reporting.comparison.command import CompareOptions, build_comparison, compare, select_results
from lgclip.reporting.comparison.formats import format_p, main_section
from lgclip.reporting.comparison.metrics import format_value
from lgclip.reporting.comparison.results import ComparisonError
from lgclip.reporting.comparison.table import ComparisonTable, build_table, sorted_rows
from lgclip.reporting.text_tables import to_text

N = 40
LABEL = [place % 2 for place in range(N)]
HITS = {"pets": 30, "cub": 24}
ENCODERS = ("vit_b16", "vit_l14")
TEXT = {"pets": 0.7, "cub": 0.9}


def hits_of(dataset: str, encoder: str, prompts: int, seed: int) -> int:
    return HITS[dataset] + 2 * ENCODERS.index(encoder) + prompts + (seed * (3 + prompts)) % 4


def write(folder: Path, dataset: str, encoder: str, prompts: int, seed: int, **kwargs: Any) -> None:
    right = np.random.default_rng(seed).permutation(N) < hits_of(dataset, encoder, prompts, seed)
    prediction = [c if ok else 1 - c for c, ok in zip(LABEL, right, strict=True)]
    settings = {"seed": seed, "prompts_per_class": prompts, "encoder": {"model": encoder, "width": 8}}
    choices = {"dataset": dataset, "encoder": encoder, "scales": "single"}
    write_run(
        folder, names=("ant", "bee"), label=LABEL, prediction=prediction, dataset=dataset, settings=settings,
        extra={"choices": choices, "baselines": {"clip_text": metrics_record(TEXT[dataset])}, **kwargs},
    )  # fmt: skip


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Writes a sweep of two data sets, two encoders, two numbers of prompts and three seeds."""
    for place, cell in enumerate(product(HITS, ENCODERS, (1, 5), range(3))):
        write(tmp_path / "sweep" / str(place), *cell)
    return tmp_path / "sweep"


def run(*places: Path, **kwargs: Any) -> str:
    options = CompareOptions([str(place) for place in places], **kwargs)
    return "\n".join(part if isinstance(part, str) else to_text(part) for part in compare(options))


def table_of(sweep: Path, **kwargs: Any) -> ComparisonTable:
    options = CompareOptions([str(sweep)], **kwargs)
    return build_table(select_results(options), options.by, options.columns, options.over)


def cells(text: str, first: str) -> list[str]:
    """Returns the cells of the line of a terminal table that begins with a text."""
    (line,) = [line for line in text.splitlines() if line.startswith(first)]
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def head(text: str) -> str:
    """Returns the header of the first terminal table."""
    return next(line for line in text.splitlines() if " seeds " in line and "mean" not in line)


def test_table_has_mean_and_standard_deviation(sweep: Path) -> None:
    table = table_of(sweep, by=["method", "encoder", "prompts_per_class"], columns=["dataset"])
    assert table.column_values == [("pets",), ("cub",)]
    rows = {row.label: row for row in table.rows}
    for dataset, encoder, prompts in product(HITS, ENCODERS, (1, 5)):
        values = np.array([hits_of(dataset, encoder, prompts, seed) for seed in range(3)]) / N
        cell = rows[f"lgclip, {encoder}, {prompts}"].cells[dataset,]
        assert_over_seeds(cell.summary("top1"), values)
    text = run(sweep, by=["encoder", "prompts_per_class"], columns=["dataset"])
    values = 100 * np.array([hits_of("cub", "vit_l14", 5, seed) for seed in range(3)]) / N
    assert cells(text, "vit_l14  5")[-1] == f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"


def test_datasets_become_columns(sweep: Path) -> None:
    text = run(sweep)
    assert head(text).split() == ["prompts_per_class", "encoder", "seeds", "pets", "cub"]
    assert len(text.splitlines()) == 2 + 4 + 1


def test_different_settings_are_separate_rows(sweep: Path) -> None:
    text = run(sweep, by=["encoder"], columns=["dataset"])
    assert [line.split()[:2] for line in text.splitlines() if line.startswith("vit")] == [
        [encoder, f"prompts_per_class={prompts}"] for encoder, prompts in product(ENCODERS, (1, 5))
    ]
    text = run(sweep, by=["method"], columns=["dataset", "encoder"], over=["prompts_per_class"])
    assert head(text).split("  ")[-4:] == ["pets, vit_b16", "pets, vit_l14", "cub, vit_b16", "cub, vit_l14"]
    values = np.array([
        np.mean([hits_of("cub", "vit_l14", prompts, seed) for prompts in (1, 5)]) for seed in range(3)
    ]) / N  # fmt: skip
    assert cells(text, "lgclip")[-1] == f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f}"
    assert cells(text, "clip_text") == ["clip_text", "-", "70.0", "70.0", "90.0", "90.0"]


def test_axes_accept_names_choices_and_suffixes(sweep: Path) -> None:
    for axis in ("encoder", "encoder.model", "model"):
        text = run(sweep, by=["prompts_per_class"], columns=["dataset", axis])
        assert head(text).split("  ")[-4:] == ["pets, vit_b16", "pets, vit_l14", "cub, vit_b16", "cub, vit_l14"]
    seeds = run(sweep, by=["encoder", "prompts_per_class"], columns=["seed"], metrics=["mean_per_class"])
    assert seeds.splitlines()[0] == "mean per class in percent, mean ± standard deviation over seeds"


def test_best_of_a_column_is_bold(sweep: Path) -> None:
    options: dict[str, Any] = {"by": ["method"], "columns": ["dataset"], "methods": ["lgclip", "clip_text"]}
    options["over"] = ["encoder", "encoder.model", "prompts_per_class"]
    marked = run(sweep, **options, format="markdown")
    lgclip, text = [line.split("|") for line in marked.splitlines() if line.startswith(("| lgclip", "| clip_text"))]
    assert "**" in lgclip[3]
    assert "**" not in lgclip[4]
    assert text[4].strip() == "**90.0**"
    latex = run(sweep, **options, format="latex")
    assert r"\begin{tabular}{lrrr}" in latex
    assert r"\toprule" in latex
    assert r"clip\_text & - & 70.0 & \textbf{90.0} \\" in latex
    assert latex.count(r"\textbf") == 2


def test_lowest_error_is_best(tmp_path: Path) -> None:
    for place, ece in enumerate((0.2, 0.1)):
        confidence = {
            "temperature": 1.0, "fitted_on": "default", "ece": ece, "nll": 1.0, "brier": 0.1, "aurc": 0.1,
            "rejection": [],
        }  # fmt: skip
        write(tmp_path / str(place), "pets", ENCODERS[place], 1, 0, confidence=confidence)
    marked = run(tmp_path, by=["encoder"], metrics=["confidence.ece"], format="markdown")
    assert "**0.100**" in marked
    assert "**0.200**" not in marked
    text = run(tmp_path, by=["encoder"], order="confidence.ece", metrics=["top1", "confidence.ece"])
    assert [line.split()[0] for line in text.splitlines() if line.startswith("vit")] == ["vit_l14", "vit_b16"]


def generation_cost(seconds_each: float, gib: float | None) -> dict[str, Any]:
    """Returns the cost of a run that generated images, or reused them all where the memory is None."""
    on = {"unit": "image", "device": "cpu", "devices": 1, "peak_from": "process", "tokens": None}
    memory = None if gib is None else int(gib * 2**30)
    stages = [
        {"stage": "prompts", "computed": 9, "reused": 0, "seconds": 1.0, **on, "peak_memory": 2**40},
        {"stage": "images", "computed": 0, "reused": 9, "seconds": 1.0, **on, "peak_memory": memory},
    ]
    part = {
        "key": "images/0", "unit": "image", "used": 9, "computed": 0, "seconds_each": seconds_each, "seconds": 1.0,
        "device": "cpu",
    }  # fmt: skip
    before = {"images": {"seconds": 1.0, "count": 9, "device": "cpu", "parts": {"images": part}}}
    return {
        "stages": stages, "computed_before": before, "seconds": 2.0, "total_seconds": 3.0, "complete": True,
        "towers": None, "payback": None,
    }  # fmt: skip


def test_cost_of_images_is_a_metric(tmp_path: Path) -> None:
    costs = {
        ("vit_b16", 0): (0.5, 2.0), ("vit_b16", 1): (1.5, None), ("vit_l14", 0): (0.25, 4.0),
        ("vit_l14", 1): (0.25, 4.0),
    }  # fmt: skip
    for place, ((encoder, seed), cost) in enumerate(costs.items()):
        write(tmp_path / str(place), "pets", encoder, 1, seed)
        path = tmp_path / str(place) / "result.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"cost": generation_cost(*cost)}))
    metrics = ["top1", "seconds_per_image", "image_memory"]
    table = table_of(tmp_path, by=["encoder"], metrics=metrics)
    values = {row.name: [row.cells[()].values(metric) for metric in metrics[1:]] for row in table.rows}
    assert values == {"vit_b16": [{0: 0.5, 1: 1.5}, {0: 2.0}], "vit_l14": [{0: 0.25, 1: 0.25}, {0: 4.0, 1: 4.0}]}
    text = run(tmp_path, by=["encoder"], metrics=metrics, order="seconds_per_image")
    assert "vit_b16: image_memory of it in 1 of 2 seeds" in text
    rows = [line.split() for line in text.splitlines() if line.startswith("vit_") and ":" not in line]
    assert [(row[0], row[-1]) for row in rows] == [("vit_l14", "0.000"), ("vit_b16", "2.000")]
    assert rows[1][-4:-1] == ["1.000", "±", "0.707"]
    marked = run(tmp_path, by=["encoder"], metrics=["seconds_per_image"], format="markdown")
    assert "**0.250 ± 0.000**" in marked, "the cheapest is the best"


def test_cost_of_images_may_be_unknown(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder of images has no cost log."""
    assert main(["compare", str(sweep), "--metric", "seconds_per_image"]) == 1
    assert "no run tells 'seconds_per_image': choose top1, top5" in capsys.readouterr().err


def test_rows_are_sorted_by_axis_or_value(sweep: Path) -> None:
    table = table_of(sweep, by=["encoder", "prompts_per_class"], columns=["dataset"])
    best = sorted_rows(table, "top1")
    assert [row.label for row in best] == ["vit_l14, 5", "vit_b16, 5", "vit_l14, 1", "vit_b16, 1"]
    by_axis = sorted_rows(table, "prompts_per_class")
    assert [row.values[1] for row in by_axis] == [1, 1, 5, 5]
    assert run(sweep, by=["encoder", "prompts_per_class"], order="top1").splitlines()[2].startswith("vit_l14  5")
    with pytest.raises(ComparisonError, match="no run tells 'speed'"):
        run(sweep, by=["encoder", "prompts_per_class"], order="speed")


def test_csv_and_json_values_are_equal(sweep: Path) -> None:
    options: dict[str, Any] = {"by": ["encoder", "prompts_per_class"], "columns": ["dataset"]}
    rows = list(csv.DictReader(io.StringIO(run(sweep, **options, format="csv"))))
    records = json.loads(run(sweep, **options, format="json"))["cells"]
    assert len(rows) == len(records) == 8
    for row, record in zip(rows, records, strict=True):
        assert float(row["mean"]) == record["mean"]
        assert row["dataset"] == record["column"]["dataset"]
        assert len(record["values"]) == record["n"] == int(row["seeds"]) == 3


def test_run_is_the_reference_of_paired_tests(sweep: Path) -> None:
    text = run(sweep, by=["encoder", "prompts_per_class"], reference=f"{sweep / '0'}:clip_text")
    assert "not tested: 12 results on other data sets than pets" in text
    assert "McNemar's exact test; Holm: p for a family of 12" in text
    text = run(sweep, by=["encoder", "prompts_per_class"], reference="vit_b16, 1")
    assert "vit_l14, 5 - vit_b16, 1" in text


def test_failed_jobs_are_named(tmp_path: Path) -> None:
    write(tmp_path / "sweep" / "0", "pets", "vit_b16", 1, 0)
    write_failed(tmp_path / "sweep" / "1", ["prompts_per_class=5"], "MemoryError: too\nlarge")
    jobs = [["prompts_per_class=1"], ["prompts_per_class=5"], ["prompts_per_class=10"]]
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    text = run(tmp_path / "sweep")
    assert f"job 1 of {tmp_path / 'sweep'} is failed (prompts_per_class=5): MemoryError: too large" in text
    assert f"job 2 of {tmp_path / 'sweep'} is unfinished (prompts_per_class=10)" in text
    assert "spent 0.0 s" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--by", "color"],
            r"no run has a value of 'color': choose method, dataset, .*here the runs differ in prompts_",
        ),
        (["--by", "encoder", "--columns", "encoder"], "the axis 'encoder' is named twice"),
        (["--metric", "speed"], r"no run tells 'speed': choose top1, top5, .*or a number of result\.json, such as"),
        (["--methods", "fusion"], "no run evaluated 'fusion': choose among lgclip, clip_text"),
        (["--with", "nothing"], r"no row is 'nothing', and no run is there: choose one of 1, vit_b16; 5, vit_b16"),
        (["--plot", "x.gif"], r"x\.gif: a plot is a file that ends in \.png, \.pdf, \.svg"),
    ],
)
def test_wrong_option_lists_valid_ones(
    sweep: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["compare", str(sweep), *options]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error)


@pytest.mark.parametrize(
    ("options", "package"),
    [({"format": "csv"}, "pandas"), ({"format": "latex"}, "jinja2"), ({"plot": True}, "matplotlib")],
)
def test_missing_package_is_reported_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    plot = tmp_path / "plot.png" if options.get("plot") else None
    with pytest.raises(ValueError, match=rf"package {package} is missing: pip install 'lgclip\[report\]'"):
        run(tmp_path / "nowhere", format=options.get("format", "table"), plot=plot)


def test_output_file_is_atomic(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "table.md"
    assert run(sweep, format="markdown", out=out) == str(out)
    assert out.read_text(encoding="utf-8") == run(sweep, format="markdown") + "\n"
    assert run(sweep, out=tmp_path / "table.txt") == str(tmp_path / "table.txt")
    assert run(sweep).startswith((tmp_path / "table.txt").read_text(encoding="utf-8").rstrip("\n"))


@pytest.mark.parametrize("name", ["[bold]x", "a|b", "\x1b[31mred", "é ± _&%"])
def test_names_are_escaped_in_tables(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "0", settings={"note": name})
    write_run(tmp_path / "1", settings={"note": "other"})
    text = run(tmp_path, by=["note"])
    assert "\x1b" not in text
    assert "spent" in text
    marked = run(tmp_path, by=["note"], format="markdown")
    assert len({line.replace("\\|", "").count("|") for line in marked.splitlines() if line.startswith("|")}) == 1
    assert r"\begin{tabular}" in run(tmp_path, by=["note"], format="latex")


def test_plain_table_imports_nothing_heavy(sweep: Path) -> None:
    script = (
        "import sys; from lgclip.cli.main import main; status = main(sys.argv[1:]);"
        "print(status, *[name for name in ('pandas', 'matplotlib', 'torch') if name in sys.modules])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script, "compare", str(sweep)],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert completed.stdout.splitlines()[-1] == "0"


def test_values_and_settings_are_formatted() -> None:
    settings = {"prompt_tuning.shots": 2, "diffuser.lora": "/store/" + "9bb1a2de" * 4, "student.shots": None}
    assert brief_settings(settings) == "prompt_tuning.shots=2, lora=9bb1a2de, student.shots=none"
    assert [format_value(value, "top1") for value in (0.5, -0.0001)] == ["50.0", "0.0"]
    assert format_value(0.0123, "effective_robustness") == "+1.2"
    assert (format_value(0.5, "confidence.ece"), format_value(1234.5, "cost.seconds")) == ("0.500", "1234.5")
    assert (format_p(None), format_p(0.00001), format_p(0.5)) == ("-", "<0.0001", "0.5000")


def test_single_row_has_no_bold(tmp_path: Path) -> None:
    write(tmp_path / "0", "pets", "vit_b16", 1, 0)
    options = CompareOptions([str(tmp_path)], by=["encoder"])
    section = main_section(build_comparison(options, select_results(options)))
    assert (len(section.lines), section.bold) == (1, set())
