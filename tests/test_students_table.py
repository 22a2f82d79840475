"""Students of a sweep in one table: run folders with known figures, against NumPy and SciPy."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.special import expit, logit
from scipy.stats import t as student_t
from scipy.stats import ttest_1samp, ttest_rel
from seed_checks import assert_over_seeds
from written_runs import write_run

from lgclip.comparison import ComparisonError
from lgclip.runs import RunError
from lgclip.seed_rows import TOP1, Figure, Row
from lgclip.student_differences import differences
from lgclip.student_rows import StudentsError, read_students
from lgclip.students_table import CSV_HEADER, students, table

N, CLASSES = 40, ("ant", "bee")
SKETCH, NOISY = Figure("top1", "sketch"), Figure("top1", "noisy")
RHO = Figure("rho", "sketch")
HITS = {"real": (36, 34, 35), "basic": (24, 28, 27), "cip": (29, 30, 34), "half": (33, 36, 35)}
SHIFTED = {"real": 0.5, "basic": 0.45, "cip": 0.55, "half": 0.6}
MIX = {"real": 1.0, "half": 0.5}


def judged(hits: int, seed: int) -> list[int]:
    """Predictions of two classes, some of which are right."""
    right = np.random.default_rng(seed).permutation(N) < hits
    label = np.arange(N) % 2
    return [int(c) if ok else int(1 - c) for c, ok in zip(label, right, strict=True)]


def shifted_set(inside: float, shifted: float, n: int = 200, num_classes: int = 2) -> dict[str, Any]:
    return {
        "n": n, "num_classes": num_classes, "metrics": {"top1": shifted},
        "beside": {"lgclip": {"top1": 0.6}, "clip_text": {"top1": 0.7}}, "in_distribution": {"top1": inside},
        "in_distribution_beside": {"lgclip": {"top1": 0.8}, "clip_text": {"top1": 0.75}},
        "shift": {"in_distribution": {"top1": inside, "n": N}, "shifted": {"top1": shifted, "n": n}},
    }  # fmt: skip


def write(folder: Path, kind: str, seed: int, more: Mapping[str, Any] | None = None, **student: Any) -> dict[str, Any]:
    """A run of a student: what it was trained on by name, figures by seed."""
    mix = MIX.get(kind, 0.0)
    hits = HITS[kind][seed]
    about = {
        "trained_on": {
            "mix": mix, "form": "cip" if kind == "half" else kind if mix == 0 else "basic",
            "real": 100 * (mix > 0), "synthetic": 100 * (mix < 1),
        },
        "backbone": "resnet10t", "selected_on": "synthetic", "seed": seed, "key": f"{kind}-{seed}", **student,
    }  # fmt: skip
    told = {
        "student": about, "method": "student",
        "beside": {"lgclip": {"top1": 0.8}, "clip_text": {"top1": 0.75}},
        "ood": {
            "sketch": shifted_set(hits / N, SHIFTED[kind] + seed / 100),
            "noisy": shifted_set(hits / N, 0.9 * hits / N),
        },
        "membership": {
            "auroc": 0.5 + 0.1 * mix + seed / 100, "balanced_accuracy": 0.55, "held_out_balanced_accuracy": 0.5
        },
        **(more or {}),
    }  # fmt: skip
    settings = {"seed": seed, "student.mix": mix, "ckpt": f"students/{kind}-{seed}"}
    labels = [i % 2 for i in range(N)]
    return write_run(folder, names=CLASSES, label=labels, prediction=judged(hits, seed), settings=settings, more=told)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Four training sets of three seeds."""
    for i, (kind, seed) in enumerate((kind, seed) for seed in range(3) for kind in ("half", "cip", "basic", "real")):
        write(tmp_path / "sweep" / str(i), kind, seed)
    return tmp_path / "sweep"


def row_of(rows: Sequence[Row], label: str) -> Row:
    return next(row for row in rows if row.label == label)


def test_a_row_is_a_training_set_and_its_figures_are_over_seeds(sweep: Path) -> None:
    found = read_students(sweep)
    assert [row.label for row in found.rows] == ["real", "basic", "cip", "cip + 50% real", "lgclip", "clip_text"]
    values = np.array(HITS["cip"]) / N
    assert_over_seeds(row_of(found.rows, "cip").summary(TOP1), values)
    assert row_of(found.rows, "basic").of(SKETCH) == pytest.approx({0: 0.45, 1: 0.46, 2: 0.47})
    assert row_of(found.rows, "real").of(Figure("auroc")) == pytest.approx({0: 0.6, 1: 0.61, 2: 0.62})
    assert row_of(found.rows, "clip_text").of(NOISY) == {0: 0.7}


def test_effective_robustness_is_against_the_runs_on_real_images(sweep: Path) -> None:
    """Their accuracies in distribution differ by chance, so the slope is 1 and the intercept their mean shift."""
    found = read_students(sweep)
    real = np.array(HITS["real"]) / N
    intercept = float(np.mean(logit([0.5, 0.51, 0.52]) - logit(real)))
    assert found.lines["sketch"]._asdict() == pytest.approx(
        {"slope": 1.0, "intercept": intercept, "n": 3, "fitted": False}
    )
    cip = np.array(HITS["cip"]) / N
    rho = np.array([0.55, 0.56, 0.57]) - expit(logit(cip) + intercept)
    assert list(row_of(found.rows, "cip").of(RHO).values()) == pytest.approx(rho)
    text = row_of(found.rows, "clip_text").of(RHO)
    assert text[0] == pytest.approx(0.7 - expit(logit(0.75) + intercept))


def test_differences_pair_the_seeds_and_the_images(sweep: Path) -> None:
    found = read_students(sweep)
    told = differences(found)
    assert list(dict.fromkeys((one.one, one.other) for one in told)) == [
        ("cip", "basic"), ("basic", "real"), ("cip", "real"), ("cip + 50% real", "real")
    ]  # fmt: skip
    assert len(told) == 12
    first = told[0]
    a, b = (np.array(HITS[kind]) / N for kind in ("cip", "basic"))
    oracle: Any = ttest_rel(a, b)
    assert first.mean == pytest.approx((a - b).mean())
    assert first.over_seeds is not None
    assert first.over_seeds["p"] == pytest.approx(oracle.pvalue)
    assert first.over_seeds["ci95"] == pytest.approx(list(oracle.confidence_interval(0.95)))
    label = np.arange(N) % 2
    right = [[np.array(judged(hits, s)) == label for s, hits in enumerate(HITS[kind])] for kind in ("cip", "basic")]
    images: Any = ttest_1samp(np.mean(np.subtract(*np.array(right, dtype=float)), axis=0), 0)
    assert first.over_images is not None
    assert first.over_images["p"] == pytest.approx(images.pvalue)
    constant = next(one for one in told if one.figure == SKETCH)
    assert (constant.mean, constant.over_seeds, constant.over_images) == (pytest.approx(0.1), None, None)
    tested = [one for one in told if one.over_seeds]
    assert min(one.p_holm or 2 for one in tested) == pytest.approx(
        min(len(tested) * one.over_seeds["p"] for one in tested if one.over_seeds)
    )


def test_the_tables_say_the_figures_and_how_they_came(sweep: Path) -> None:
    told = students(sweep)
    cip = next(line for line in told.splitlines() if line.startswith("cip  "))
    values = 100 * np.array(HITS["cip"]) / N
    half = student_t.ppf(0.975, 2) * values.std(ddof=1) / 3**0.5
    assert cip.split()[1] == "3"
    assert f"{values.mean():.1f} ± {half:.1f} ({values.std(ddof=1):.1f})" in cip
    assert "through 3 runs on real images\nnoisy: logit = 1 x" in told
    assert "cip - basic" in told
    assert next(line for line in told.splitlines() if line.startswith("clip_text")).split()[:3] == [
        "clip_text", "-", "75.0"
    ]  # fmt: skip
    marked = students(sweep, markdown=True)
    tables = [line for line in marked.splitlines() if line.startswith("|---|")]
    assert len(tables) == 3
    assert {line.count("|") for line in marked.splitlines() if line.startswith("| real")} == {6, 8}


def test_the_csv_holds_every_figure_unrounded(sweep: Path, tmp_path: Path) -> None:
    students(sweep, csv=tmp_path / "students.csv")
    with (tmp_path / "students.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_HEADER
    own = {(row["trained_on"], row["figure"], row["shifted_set"]): row for row in rows}
    values = np.array(HITS["half"]) / N
    assert float(own["cip + 50% real", "top1", ""]["std"]) == values.std(ddof=1)
    assert own["clip_text", "top1", "sketch"]["ci95_low"] == ""
    assert ("clip_text", "auroc", "") not in own


def test_the_figure_shows_every_set_in_its_colour(sweep: Path, tmp_path: Path) -> None:
    students(sweep, out=tmp_path / "students.png")
    with Image.open(tmp_path / "students.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20) or []}
        assert picture.width > picture.height
    assert {(40, 40, 40), (0, 114, 178), (213, 94, 0)} <= colours
    with pytest.raises(ValueError, match=r"students\.pdf: the figure is a PNG file"):
        students(sweep, out=tmp_path / "students.pdf")


def test_what_is_missing_is_dashes_and_is_said(tmp_path: Path) -> None:
    bare = {"ood": {}, "membership": None, "beside": {}}
    for seed in range(2):
        write(tmp_path / str(seed), "cip", seed, bare)
    write(tmp_path / "2", "basic", 0, bare)
    write_run(tmp_path / "zero_shot")
    told = students(tmp_path, out=tmp_path / "some.png")
    assert "left out: 1 without a student" in told
    assert "no run judged a shifted set" in told
    assert "no run was attacked" in told
    assert "over seeds no difference is tested" in told, "one seed is of both"
    assert next(line for line in told.splitlines() if line.startswith("basic")).split() == ["basic", "1", "60.0"]
    partly = write(tmp_path / "3", "cip", 2, {"beside": {}, "ood": {"sketch": shifted_set(0.8, 0.5)}})
    assert partly["membership"]
    again = students(tmp_path)
    assert "no effective robustness: it needs a student of real images" in again
    assert (
        "cip: top1 sketch, inside sketch, auroc, balanced_accuracy, held_out_balanced_accuracy in 1 of 3 seeds" in again
    )


def test_a_student_judged_twice_counts_once_by_the_run_that_tells_most(sweep: Path) -> None:
    write(sweep / "again", "cip", 0, {"ood": {}, "membership": None})
    assert row_of(read_students(sweep).rows, "cip").of(SKETCH)[0] == 0.55
    write(sweep / "other", "cip", 0, key="another")
    with pytest.raises(StudentsError, match="two students of the same setting and seed 0: leave one of them out"):
        read_students(sweep)


def test_settings_tell_rows_of_one_training_set_apart(sweep: Path) -> None:
    for seed in range(3):
        for kind in ("cip", "basic"):
            write(sweep / f"{kind}{seed}", kind, seed, backbone="vit", key=f"{kind}-vit-{seed}")
    found = read_students(sweep)
    labels = [row.label for row in found.rows if row.runs]
    assert labels == [
        "real", "basic (backbone=resnet10t)", "basic (backbone=vit)", "cip (backbone=resnet10t)", "cip (backbone=vit)",
        "cip + 50% real",
    ]  # fmt: skip
    paired = {(one.one, one.other) for one in differences(found)}
    assert ("cip (backbone=vit)", "basic (backbone=vit)") in paired
    assert ("cip (backbone=vit)", "basic (backbone=resnet10t)") not in paired


def test_a_method_beside_has_a_row_for_each_of_its_results(sweep: Path) -> None:
    """lgclip is judged by the images of its own run: another form, other prototypes."""
    for i in range(12):
        if (sweep / str(i)).is_dir() and i % 4 == 2:
            (sweep / str(i) / "result.json").unlink()
    for seed in range(3):
        beside = {"lgclip": {"top1": 0.7 + seed / 100}, "clip_text": {"top1": 0.75}}
        write(sweep / f"basic{seed}", "basic", seed, {"beside": beside})
    found = read_students(sweep)
    labels = [row.label for row in found.rows if not row.runs]
    assert labels == ["lgclip (beside real and cip and cip + 50% real)", "lgclip (beside basic)", "clip_text"]
    assert row_of(found.rows, labels[1]).of(TOP1) == {0: 0.7, 1: 0.71, 2: 0.72}
    assert "lgclip (beside basic)" in table(found)


def test_what_makes_no_table_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no finished run"):
        students(tmp_path / "empty")
    write_run(tmp_path / "a" / "0")
    with pytest.raises(StudentsError, match=r"holds no run of a student, of 1 in all: run evaluate\.py method=student"):
        students(tmp_path / "a")
    write(tmp_path / "b" / "0", "cip", 0)
    write(tmp_path / "b" / "1", "basic", 0, {"num_classes": 3})
    with pytest.raises(ComparisonError, match="did not judge the same images"):
        students(tmp_path / "b")
