"""Tests tables of students against NumPy and SciPy, from run folders with known metrics."""

import csv
import json
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_factories import membership_record, metrics_record, shifted_set, student_record, write_run
from scipy.special import expit, logit
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp, ttest_rel
from seed_checks import assert_over_seeds

from lgclip.reporting.comparison.command import CompareOptions, compare, select_results
from lgclip.reporting.comparison.metrics import MetricReader
from lgclip.reporting.comparison.results import ComparisonError
from lgclip.reporting.comparison.significance import RowComparison, compare_rows
from lgclip.reporting.comparison.table import ComparisonTable, Row, build_table
from lgclip.reporting.run_folder import RunError
from lgclip.reporting.text_tables import to_text

N = 40
CLASSES = ("ant", "bee")
HITS = {"real": (36, 34, 35), "basic": (24, 28, 27), "cip": (29, 30, 34), "half": (33, 36, 35)}
SHIFTED = {"real": 0.5, "basic": 0.45, "cip": 0.55, "half": 0.6}
MIX = {"real": 1.0, "half": 0.5}
BESIDE = {"lgclip": (0.8, 0.6), "clip_text": (0.75, 0.7)}


def predictions(hits: int, seed: int) -> list[int]:
    """Returns predictions of two classes with a given number of hits."""
    right = np.random.default_rng(seed).permutation(N) < hits
    label = np.arange(N) % 2
    return [int(c) if ok else int(1 - c) for c, ok in zip(label, right, strict=True)]


def write(folder: Path, kind: str, seed: int, extra: Mapping[str, Any] | None = None, **student: Any) -> dict[str, Any]:
    """Writes a run of a student: its training data by name, its metrics by seed."""
    mix = MIX.get(kind, 0.0)
    hits = HITS[kind][seed]
    trained_on = {
        "real_fraction": mix, "form": "cip" if kind == "half" else kind if mix == 0 else "basic",
        "real": 100 * (mix > 0), "synthetic": 100 * (mix < 1),
    }  # fmt: skip
    about = student_record(trained_on=trained_on, **{"seed": seed, "key": f"{kind}-{seed}", **student})
    config = {
        "student": about, "method": "student",
        "baselines": {"lgclip": metrics_record(0.8), "clip_text": metrics_record(0.75)},
        "ood": {
            "sketch": shifted_set(hits / N, SHIFTED[kind] + seed / 100, baselines=BESIDE),
            "noisy": shifted_set(hits / N, 0.9 * hits / N, baselines=BESIDE),
        },
        "membership": membership_record(0.5 + 0.1 * mix + seed / 100, 0.55, 0.5),
        **(extra or {}),
    }  # fmt: skip
    settings = {"seed": seed, "student.real_fraction": mix, "checkpoint": f"students/{kind}-{seed}"}
    labels = [i % 2 for i in range(N)]
    return write_run(
        folder, names=CLASSES, label=labels, prediction=predictions(hits, seed), settings=settings, extra=config
    )


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Writes four training sets with three seeds."""
    for i, (kind, seed) in enumerate(
        (kind, seed) for seed, kind in product(range(3), ("half", "cip", "basic", "real"))
    ):
        write(tmp_path / "sweep" / str(i), kind, seed)
    return tmp_path / "sweep"


def options(sweep: Path, **kwargs: Any) -> CompareOptions:
    return CompareOptions([str(sweep)], **{"by": ["trained_on"], "columns": ["dataset"], **kwargs})


def text_of(compare_options: CompareOptions) -> str:
    return "\n".join(part if isinstance(part, str) else to_text(part) for part in compare(compare_options))


def table_of(sweep: Path) -> ComparisonTable:
    """Builds the table by training set and data set, with the baselines."""
    compare_options = options(sweep)
    return build_table(select_results(compare_options), compare_options.by, compare_options.columns)


def row_of(table: ComparisonTable, label: str) -> Row:
    return next(row for row in table.rows if row.label == label)


def values_of(row: Row, dataset: str, metric: str = "top1") -> list[float]:
    return list(row.cells[dataset,].values(metric).values())


def test_row_is_a_training_set_over_seeds(sweep: Path) -> None:
    table = table_of(sweep)
    assert [row.label for row in table.rows if not row.is_baseline] == ["cip + 50% real", "cip", "basic", "real"]
    assert [row.label for row in table.rows if row.is_baseline] == ["lgclip", "clip_text"]
    assert table.column_values == [("pictures",), ("sketch",), ("noisy",)]
    values = np.array(HITS["cip"]) / N
    assert_over_seeds(row_of(table, "cip").cells["pictures",].summary("top1"), values)
    assert values_of(row_of(table, "basic"), "sketch") == pytest.approx([0.45, 0.46, 0.47])
    assert values_of(row_of(table, "real"), "pictures", "membership.auroc") == pytest.approx([0.6, 0.61, 0.62])
    assert set(values_of(row_of(table, "clip_text"), "noisy")) == {0.7}


def test_effective_robustness_uses_real_training_runs(sweep: Path) -> None:
    """Checks runs whose in-distribution accuracies differ by chance: slope 1, intercept their mean shift."""
    table = table_of(sweep)
    real = np.array(HITS["real"]) / N
    intercept = float(np.mean(logit([0.5, 0.51, 0.52]) - logit(real)))
    lines = MetricReader.of(select_results(options(sweep))).lines
    assert lines["sketch"]._asdict() == pytest.approx({"slope": 1.0, "intercept": intercept, "n": 3, "fitted": False})
    cip = np.array(HITS["cip"]) / N
    rho = np.array([0.55, 0.56, 0.57]) - expit(logit(cip) + intercept)
    assert values_of(row_of(table, "cip"), "sketch", "effective_robustness") == pytest.approx(rho)
    assert values_of(row_of(table, "cip"), "sketch", "in_distribution") == pytest.approx(cip)
    text = values_of(row_of(table, "clip_text"), "sketch", "effective_robustness")
    assert text[0] == pytest.approx(0.7 - expit(logit(0.75) + intercept))
    output = text_of(options(sweep, metrics=["effective_robustness"]))
    assert "sketch: logit = 1 x logit in distribution" in output
    assert "through 3 students of real images" in output


def named(comparisons: list[RowComparison], dataset: str) -> dict[tuple[str, str], RowComparison]:
    return {
        (comparison.row.label, comparison.reference.label): comparison
        for comparison in comparisons
        if comparison.column == (dataset,)
    }


def test_differences_are_paired_by_seed_and_image(sweep: Path) -> None:
    table = compare_rows(table_of(sweep), "basic")
    by_name = named(table, "pictures")
    assert list(by_name) == [("cip + 50% real", "basic"), ("cip", "basic"), ("real", "basic")]
    assert len(table) == 9
    first = by_name["cip", "basic"]
    a, b = (np.array(HITS[kind]) / N for kind in ("cip", "basic"))
    oracle: Any = ttest_rel(a, b)
    assert first.difference == pytest.approx((a - b).mean())
    assert first.over_seeds is not None
    assert first.over_seeds["p"] == pytest.approx(oracle.pvalue)
    assert first.over_seeds["ci95"] == pytest.approx(list(oracle.confidence_interval(0.95)))
    label = np.arange(N) % 2
    right = []
    for kind in ("cip", "basic"):
        right.append([np.array(predictions(hits, s)) == label for s, hits in enumerate(HITS[kind])])
    images: Any = ttest_1samp(np.mean(np.subtract(*np.array(right, dtype=float)), axis=0), 0)
    assert first.over_images is not None
    assert first.over_images["p"] == pytest.approx(images.pvalue)
    constant = named(table, "sketch")["cip", "basic"]
    assert (constant.difference, constant.over_seeds, constant.over_images) == (pytest.approx(0.1), None, None)
    tested = [comparison for comparison in table if comparison.over_seeds]
    assert min(comparison.p_holm or 2 for comparison in tested) == pytest.approx(
        min(len(tested) * comparison.over_seeds["p"] for comparison in tested if comparison.over_seeds)
    )


def test_table_has_mean_deviation_and_interval(sweep: Path) -> None:
    text = text_of(options(sweep))
    cip = next(line for line in text.splitlines() if line.startswith("cip  "))
    values = 100 * np.array(HITS["cip"]) / N
    half = student_t.ppf(0.975, 2) * values.std(ddof=1) / 3**0.5
    assert cip.split()[1] == "3"
    assert f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" in cip
    interval = f"{values.mean():.1f} ({values.mean() - half:.1f} - {values.mean() + half:.1f})"
    assert interval in text_of(options(sweep, has_intervals=True))
    assert next(line for line in text.splitlines() if line.startswith("clip_text")).split()[:3] == [
        "clip_text", "-", "75.0"
    ]  # fmt: skip
    marked = text_of(options(sweep, format="markdown", reference="basic"))
    assert "cip - basic" in marked
    assert len([line for line in marked.splitlines() if line.startswith("|--")]) == 2
    assert [line.count("|") for line in marked.splitlines() if line.startswith("| real  ")] == [6]


def test_csv_has_unrounded_values(sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "students.csv"
    metrics = ["top1", "membership.auroc"]
    assert text_of(options(sweep, format="csv", out=out, metrics=metrics)) == str(out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "trained_on", "settings", "dataset", "data seen", "metric", "seeds", "mean", "std", "ci95_low", "ci95_high"
    ]  # fmt: skip
    by_key = {(row["trained_on"], row["metric"], row["dataset"]): row for row in rows}
    values = np.array(HITS["half"]) / N
    assert float(by_key["cip + 50% real", "top1", "pictures"]["std"]) == values.std(ddof=1)
    assert float(by_key["clip_text", "top1", "sketch"]["std"]) == pytest.approx(0)
    assert ("clip_text", "membership.auroc", "pictures") not in by_key


def test_figure_has_a_color_per_training_set(sweep: Path, tmp_path: Path) -> None:
    text_of(options(sweep, plot=tmp_path / "students.png"))
    with Image.open(tmp_path / "students.png") as image:
        colors = {color for _, color in image.convert("RGB").getcolors(2**20) or []}
        assert image.width > image.height
    assert {(40, 40, 40), (0, 114, 178), (213, 94, 0)} <= colors
    with pytest.raises(ValueError, match=r"students\.gif: a plot is a file that ends in \.png, \.pdf, \.svg"):
        text_of(options(sweep, plot=tmp_path / "students.gif"))


def test_numeric_axis_is_a_line(sweep: Path, tmp_path: Path) -> None:
    for name in ("mix.png", "mix.svg"):
        text_of(options(sweep, by=["method"], columns=["real_fraction"], methods=["student"], plot=tmp_path / name))
    text = (tmp_path / "mix.svg").read_text(encoding="utf-8")
    assert "<svg" in text
    assert (tmp_path / "mix.png").stat().st_size > 1000


def test_missing_values_are_dashes(tmp_path: Path) -> None:
    bare = {"ood": {}, "membership": None, "baselines": {}}
    for seed in range(2):
        write(tmp_path / str(seed), "cip", seed, bare)
    write(tmp_path / "2", "basic", 0, bare)
    text = text_of(options(tmp_path, reference="basic"))
    assert "none is tested over seeds" in text, "one seed is of both"
    assert "basic: pictures has 1 of 2 repetitions, none of student.seed=1" in text
    assert next(line for line in text.splitlines() if line.startswith("basic ")).split() == ["basic", "1", "60.0"]
    with pytest.raises(ComparisonError, match=r"no effective robustness: it needs .*student\.real_fraction=1"):
        text_of(options(tmp_path, metrics=["effective_robustness"]))
    with pytest.raises(ComparisonError, match=r"no run tells 'membership\.auroc': choose top1, top5"):
        text_of(options(tmp_path, metrics=["membership.auroc"]))
    write(tmp_path / "3", "cip", 2, {"baselines": {}, "ood": {"sketch": shifted_set(0.8, 0.5, baselines={})}})
    again = text_of(options(tmp_path, metrics=["top1", "membership.auroc"]))
    assert "cip: membership.auroc of pictures in 1 of 3 seeds" in again
    assert "basic: no run of sketch" in again


def test_repeated_student_counts_once(sweep: Path) -> None:
    write(sweep / "again", "cip", 0, {"ood": {}, "membership": None})
    assert values_of(row_of(table_of(sweep), "cip"), "sketch")[0] == 0.55
    assert len(values_of(row_of(table_of(sweep), "cip"), "pictures", "membership.auroc")) == 3
    write(sweep / "other", "cip", 0, key="another")
    with pytest.raises(ComparisonError, match=r"have the same config and seeds.*leave one of them out"):
        table_of(sweep)


def test_settings_separate_rows(sweep: Path) -> None:
    for seed in range(3):
        for kind in ("cip", "basic"):
            write(sweep / f"{kind}{seed}", kind, seed, backbone="vit", key=f"{kind}-vit-{seed}")
    table = table_of(sweep)
    labels = {row.label for row in table.rows if not row.is_baseline}
    assert labels == {
        "real", "basic (backbone=resnet10t)", "basic (backbone=vit)", "cip (backbone=resnet10t)", "cip (backbone=vit)",
        "cip + 50% real",
    }  # fmt: skip
    pairs = named(compare_rows(table, "basic"), "pictures")
    assert ("cip (backbone=vit)", "basic (backbone=vit)") in pairs
    assert ("cip (backbone=vit)", "basic (backbone=resnet10t)") not in pairs


def test_baseline_has_a_row_per_result(sweep: Path) -> None:
    """Checks that lgclip, evaluated with each run's own images, has a row per run."""
    for i in range(12):
        if i % 4 == 2:
            (sweep / str(i) / "result.json").unlink()
    for seed in range(3):
        baselines = {"lgclip": metrics_record(0.7 + seed / 100), "clip_text": metrics_record(0.75)}
        write(sweep / f"basic{seed}", "basic", seed, {"baselines": baselines})
    table = table_of(sweep)
    labels = [row.label for row in table.rows if row.is_baseline]
    assert "clip_text" in labels
    assert values_of(row_of(table, "lgclip (trained_on=basic)"), "pictures") == [0.7, 0.71, 0.72]
    assert values_of(row_of(table, "lgclip (trained_on=cip)"), "pictures") == [0.8, 0.8, 0.8]
    text = text_of(options(sweep))
    assert "71.0 ± 1.0" in next(line for line in text.splitlines() if "trained_on=basic" in line)


def test_methods_as_columns_share_a_row(sweep: Path) -> None:
    """Checks that a student and the baselines of the same runs are one row, where their settings are the same."""
    for seed in range(3):
        for place, form in enumerate(("cip", "basic")):
            baselines = {"lgclip": metrics_record(0.7 + (seed + place) / 100), "clip_text": metrics_record(0.75)}
            settings = {"seed": seed, "llm": {"form": form}}
            folder = sweep.parent / "forms" / f"{form}{seed}"
            write(folder, form, seed, {"baselines": baselines, "choices": {"llm": f"captions_{form}"}})
            path = folder / "result.json"
            result = json.loads(path.read_text())
            path.write_text(json.dumps(result | {"config": result["config"] | settings}))
    compare_options = CompareOptions(
        [str(sweep.parent / "forms")], by=["llm"], columns=["method"], methods=["student", "lgclip"]
    )
    table = build_table(select_results(compare_options), compare_options.by, compare_options.columns)
    assert [row.label for row in table.rows] == ["captions_basic", "captions_cip"]
    assert table.column_values == [("student",), ("lgclip",)]
    basic = row_of(table, "captions_basic")
    assert not basic.is_baseline
    assert list(basic.cells["student",].values("top1").values()) == [hits / N for hits in HITS["basic"]]
    assert list(basic.cells["lgclip",].values("top1").values()) == pytest.approx([0.71, 0.72, 0.73])
    assert {test.column for test in compare_rows(table, "captions_basic")} == {("student",), ("lgclip",)}


def test_invalid_table_is_reported(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no finished run"):
        text_of(options(tmp_path / "empty"))
    write(tmp_path / "b" / "0", "cip", 0)
    write(tmp_path / "b" / "1", "basic", 0, {"num_classes": 3})
    with pytest.raises(ComparisonError, match="were not evaluated on the same images"):
        text_of(options(tmp_path / "b"))
