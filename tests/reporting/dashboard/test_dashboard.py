"""Tests the data of the dashboard: every metric equals that of the run's files."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import read_csv
from run_factories import LABEL, MEASURES, NAMES, PREDICTION, write_failed, write_run
from scipy.stats import binomtest
from statsmodels.stats.multitest import multipletests

from lgclip.evaluation import confidence
from lgclip.reporting.dashboard import collect as module
from lgclip.reporting.dashboard import prediction_plots
from lgclip.reporting.dashboard.collect import collect
from lgclip.reporting.dashboard.rows import PAIRS
from lgclip.reporting.dashboard.schema import Page
from lgclip.reporting.run_folder import RunError

BETTER = (0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2)
WORSE = (1, 2, 1, 1, 1, 0, 1, 2, 2, 2, 0, 2)


def page_of(*places: Path, reference: Path | None = None) -> Page:
    return collect(places, title="", reference=reference, images=0)


def sweep(root: Path) -> Path:
    """Writes a sweep over prompts per class and scales, with one failed job."""
    for job, (prompts, scales, prediction) in enumerate(
        ((10, "single", PREDICTION), (2, "single", WORSE), (10, "multi", BETTER), (2, "multi", PREDICTION))
    ):
        metadata = {"dir": str(root), "job": job, "overrides": []}
        write_run(
            root / str(job), prediction=prediction, settings={"prompts_per_class": prompts, "scales": scales},
            extra={"sweep": metadata},
        )  # fmt: skip
    write_failed(root / "4", ["prompts_per_class=5", "scales=multi"], "MemoryError: <b>")
    return root


def test_metrics_match_the_run_files(tmp_path: Path) -> None:
    result = write_run(tmp_path / "run")
    page = page_of(tmp_path / "run")
    (run,) = page["runs"]
    for key in ("metrics", "baselines", "paired", "detectable", "confidence", "n", "method"):
        assert run[key] == result[key]
    assert run["correlations"] == result["diagnostics"]
    assert [stage["tokens"] for stage in run["stages"]] == [37, None], "read and written together"
    for displayed, stage in zip(run["stages"], result["stages"], strict=True):
        assert {**displayed, "tokens": stage["tokens"]} == stage
    assert page["computed_before"] is None, "images of which no ledger tells"
    assert run["cost"] == {key: value for key, value in result["cost"].items() if key != "stages"}
    assert (run["dataset"], run["split"], run["status"], run["error"]) == ("pictures", "test", "finished", None)
    table = read_csv(tmp_path / "run" / "per_class.csv")
    names = page_of(tmp_path / "run")["class_lists"][run["class_list"]]
    assert names == [row["name"] for row in table]
    for displayed, row in zip(run["classes"], table, strict=True):
        assert (displayed["n"], displayed["right"], displayed["times"]) == (
            int(row["n"]),
            int(row["correct"]),
            int(row["confusions"]),
        )
        assert (names[displayed["taken_for"]] if displayed["taken_for"] is not None else "") == row[
            "most_confused_with"
        ]
    diagnostics = read_csv(tmp_path / "run" / "diagnostics.csv")
    assert list(run["diagnostics"]) == list(MEASURES)
    for measure, values in run["diagnostics"].items():
        expected = [round(float(row[measure]), 4) if row[measure] else None for row in diagnostics]
        assert values == expected
    assert run["diagnostics"]["claimed"][0] is None, "an empty cell is no zero"


def test_confused_pairs_are_the_most_frequent(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 6, 300).tolist()
    prediction = rng.integers(0, 6, 300).tolist()
    write_run(tmp_path / "run", names=list("abcdef"), label=label, prediction=prediction)
    (run,) = page_of(tmp_path / "run")["runs"]
    counted = Counter((t, p) for t, p in zip(label, prediction, strict=True) if t != p)
    displayed = [((entry["true"], entry["predicted"]), entry["count"]) for entry in run["confusions"]]
    assert len(displayed) == PAIRS < len(counted)
    assert all(counted[pair] == count for pair, count in displayed)
    assert [count for _, count in displayed] == sorted(counted.values(), reverse=True)[:PAIRS]


def test_runs_are_named_by_different_settings(tmp_path: Path) -> None:
    page = page_of(sweep(tmp_path / "sweep"))
    assert {axis["key"]: (axis["values"], axis["numeric"]) for axis in page["axes"]} == {
        "prompts_per_class": ([2, 5, 10], True), "scales": (["single", "multi"], False)
    }  # fmt: skip
    assert [run["axes"] for run in page["runs"]][:2] == [
        {"prompts_per_class": 10, "scales": "single"}, {"prompts_per_class": 2, "scales": "single"}
    ]  # fmt: skip
    names = [run["name"] for run in page["runs"]]
    assert sorted(names[0].split(", ")) == ["prompts_per_class=10", "scales=single"]
    assert len(set(names)) == len(names) == 5
    assert [run["job"] for run in page["runs"]] == [0, 1, 2, 3, 4]
    assert {run["sweep"] for run in page["runs"]} == {str(tmp_path / "sweep")}


def test_repeated_run_is_named_by_folder(tmp_path: Path) -> None:
    for name in "ab":
        write_run(tmp_path / name)
    first, second = page_of(tmp_path)["runs"]
    assert (first["name"], second["name"]) == tuple(f"pictures, lgclip [{tmp_path / name}]" for name in "ab")
    assert page_of(tmp_path / "a", tmp_path)["axes"] == []


def test_long_setting_is_shortened_in_names_only(tmp_path: Path) -> None:
    for name, end in (("0", "a"), ("1", "b")):
        write_run(tmp_path / name, settings={"templates": ["a photo of a {}." * 30, end]})
    page = page_of(tmp_path)
    assert max(len(run["name"]) for run in page["runs"]) < 100 + len(str(tmp_path))
    assert len({run["name"] for run in page["runs"]}) == 2
    (axis,) = page["axes"]
    assert [value[1] for value in axis["values"]] == ["a", "b"]


def test_equal_numbers_are_one_axis_value(tmp_path: Path) -> None:
    for index, value in enumerate((3, 3.0, 1.5)):
        write_run(tmp_path / str(index), settings={"guidance": value})
    (axis,) = page_of(tmp_path)["axes"]
    assert axis == {"key": "guidance", "values": [1.5, 3], "numeric": True}


def test_failed_job_has_error_and_overrides(tmp_path: Path) -> None:
    page = page_of(sweep(tmp_path / "sweep"))
    lost = page["runs"][-1]
    assert (lost["status"], lost["error"], lost["job"]) == ("failed", "MemoryError: <b>", 4)
    assert lost["axes"] == lost["config"] == {"prompts_per_class": 5, "scales": "multi"}
    assert (lost["metrics"], lost["classes"], lost["baselines"]) == (None, [], {})
    assert lost["id"] not in {comparison["run"] for comparison in page["comparisons"]}


def test_setting_of_a_failed_job_is_an_axis(tmp_path: Path) -> None:
    write_run(tmp_path / "0", settings={"seed": 0})
    write_failed(tmp_path / "1", ["seed=1", "+odd='a, b'", "~gone", "not=[closed"])
    page = page_of(tmp_path)
    axes = {axis["key"]: axis["values"] for axis in page["axes"]}
    assert axes["seed"] == [0, 1]
    assert page["runs"][0]["axes"]["seed"] == 0
    assert page["runs"][1]["config"]["odd"] == "a, b"
    assert page["runs"][1]["config"]["not"] == "[closed"


def test_retried_job_is_not_a_failure(tmp_path: Path) -> None:
    write_failed(tmp_path / "0", ["seed=0"])
    write_run(tmp_path / "1")
    (tmp_path / "0" / "failed.json").rename(tmp_path / "1" / "failed.json")
    assert [run["status"] for run in page_of(tmp_path)["runs"]] == ["finished"]


def test_unfinished_jobs_are_counted(tmp_path: Path) -> None:
    root = sweep(tmp_path / "sweep")
    (root / "sweep.json").write_text(json.dumps({"jobs": [["a=1"]] * 7}))
    assert page_of(root)["notes"] == [f"2 of 7 jobs of {root} are not finished."]
    (root / "sweep.json").write_text("{")
    with pytest.raises(RunError, match=r"sweep\.json is damaged"):
        page_of(root)


@pytest.mark.parametrize("reference", [0, 2])
def test_comparisons_are_paired_with_holm(tmp_path: Path, reference: int) -> None:
    root = sweep(tmp_path / "sweep")
    page = page_of(root, reference=root / str(reference))
    assert page["reference"] == reference
    predictions = [PREDICTION, WORSE, BETTER, PREDICTION]
    expected = {}
    for index in {0, 1, 2, 3} - {reference}:
        hits, reference_hits = (
            [p == t for p, t in zip(predictions[i], LABEL, strict=True)] for i in (index, reference)
        )
        only = sum(a and not b for a, b in zip(hits, reference_hits, strict=True))
        lost = sum(b and not a for a, b in zip(hits, reference_hits, strict=True))
        p = binomtest(only, only + lost).pvalue if only + lost else 1.0
        expected[index] = ((only - lost) / len(LABEL), p)
    raised: Any = multipletests([p for _, p in expected.values()], method="holm")[1]
    for comparison, p_holm in zip(page["comparisons"], raised, strict=True):
        assert (comparison["difference"], comparison["p"]) == pytest.approx(expected[comparison["run"]])
        assert comparison["p_holm"] == pytest.approx(p_holm)
        assert comparison["ci95"] is not None
        assert comparison["ci95"][0] <= expected[comparison["run"]][0] <= comparison["ci95"][1]
        assert comparison["reason"] is None


def test_external_reference_is_added(tmp_path: Path) -> None:
    write_run(tmp_path / "base", settings={"seed": 3})
    write_run(tmp_path / "other", settings={"seed": 4})
    page = page_of(tmp_path / "other", reference=tmp_path / "base")
    assert page["reference"] == 0
    assert [run["folder"] for run in page["runs"]] == [str(tmp_path / "base"), str(tmp_path / "other")]


def test_datasets_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", names=("one", "two"), label=(0, 1, 1), prediction=(0, 1, 0), dataset="digits")
    page = page_of(tmp_path)
    assert page["class_lists"] == [list(NAMES), ["one", "two"]]
    assert [run["class_list"] for run in page["runs"]] == [0, 1]
    assert [axis["values"] for axis in page["axes"] if axis["key"] == "dataset"] == [["pictures", "digits"]]
    (comparison,) = page["comparisons"]
    assert comparison["difference"] is comparison["p"] is comparison["p_holm"] is None
    assert comparison["reason"]
    assert page["title"] == "pictures, digits: 2 runs"


def test_runs_that_differ_by_seed_are_grouped(tmp_path: Path) -> None:
    index = 0
    for prompts in (1, 5):
        for seed, prediction in enumerate((PREDICTION, WORSE, BETTER)):
            write_run(
                tmp_path / str(index), prediction=prediction, settings={"prompts_per_class": prompts, "seed": seed}
            )
            index += 1
    groups = page_of(tmp_path)["groups"]
    top1 = [np.mean(np.equal(predicted, LABEL)) for predicted in (PREDICTION, WORSE, BETTER)]
    assert [(group["axes"], group["runs"]) for group in groups] == [
        ({"prompts_per_class": 1}, [0, 1, 2]), ({"prompts_per_class": 5}, [3, 4, 5])
    ]  # fmt: skip
    for group in groups:
        assert (group["mean"], group["std"]) == pytest.approx((np.mean(top1), np.std(top1, ddof=1)))
        assert group["ci95"] is not None
        half = 4.302653 * np.std(top1, ddof=1) / np.sqrt(3)  # Student's t with two degrees of freedom
        assert group["ci95"] == pytest.approx([np.mean(top1) - half, np.mean(top1) + half])


def test_config_is_flat_without_paths(tmp_path: Path) -> None:
    write_run(tmp_path / "run", settings={"scales": "multi"})
    (run,) = page_of(tmp_path)["runs"]
    assert run["config"]["scales"] == "multi"
    assert run["config"]["scales.fractions"] == [1.0]
    assert not [key for key in run["config"] if key.startswith(("paths", "logger"))]
    provenance: dict[str, str] = dict(run["provenance"])
    assert provenance["data set"] == "pictures, test: 12 images, 3 classes"
    assert provenance["encoder"] == "choice=tiny, id=tiny:encoder, model=sha256:38dd"
    assert (provenance["real features"], provenance["version of lgclip"], provenance["commit"]) == (
        "a/b",
        "0.1.0",
        "abc",
    )
    assert provenance["template sentences in place of prompts"] == "3"
    assert provenance["images that could not be generated"] == "1"


def test_too_many_values_are_truncated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLASS_ROWS", 6)
    monkeypatch.setattr(module, "VALUES", 18)
    page = page_of(sweep(tmp_path / "sweep"), reference=tmp_path / "sweep" / "3")
    assert [bool(run["classes"]) for run in page["runs"]] == [False, False, True, True, False], "reference and best"
    assert [bool(run["diagnostics"]) for run in page["runs"]] == [False, False, False, True, False]
    assert page["notes"] == [
        "The accuracies of classes of 2 runs are left out; their per_class.csv holds them.",
        "The diagnostics of classes of 3 runs are left out; their diagnostics.csv holds them.",
    ]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda run: (run / "result.json").unlink(), "holds no finished run"),
        (lambda run: (run / "result.json").write_text("{"), r"result\.json is damaged"),
        (lambda run: (run / "per_class.csv").unlink(), r"per_class\.csv is not there"),
        (
            lambda run: (run / "per_class.csv").write_text("class,name,n,correct,confusions\n0,a,x,1,1\n"),
            "inconsistent",
        ),
        (lambda run: (run / "predictions.csv").write_text("index\n"), r"predictions\.csv is incomplete"),
        (
            lambda run: write_failed(run / "9", []) or (run / "9" / "failed.json").write_text("[]"),
            r"failed\.json is dam",
        ),
    ],
)
def test_incomplete_folder_is_one_error(tmp_path: Path, damage: Any, message: str) -> None:
    write_run(tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(RunError, match=message):
        page_of(tmp_path / "run")


def test_sweep_of_failures_has_no_page(tmp_path: Path) -> None:
    write_failed(tmp_path / "0", ["seed=0"])
    with pytest.raises(RunError, match="all 1 jobs failed"):
        page_of(tmp_path)


def test_axes_list_only_settings_that_a_method_uses(tmp_path: Path) -> None:
    unused: dict[str, Any] = {"diffuser": None, "llm": None, "method": "clip_text", "baselines": {}, "paired": {}}
    for job, prompts in enumerate((2, 10)):
        settings = {"prompts_per_class": prompts, "method": "lgclip", "student": {"epochs": job}}
        write_run(tmp_path / str(job), settings=settings)
    for job, prompts in enumerate((2, 10), start=2):
        settings = {"prompts_per_class": prompts, "method": "clip_text", "student": {"epochs": job}}
        write_run(tmp_path / str(job), settings=settings, extra=unused)
    page = page_of(tmp_path)
    axes = {axis["key"]: axis["values"] for axis in page["axes"]}
    assert axes == {"prompts_per_class": [2, 10], "method": ["lgclip", "clip_text"]}, "no run trains a student"
    assert [run["axes"].get("prompts_per_class") for run in page["runs"]] == [2, 10, None, None]
    assert [run["name"] for run in page["runs"][2:]] == [f"method=clip_text [{tmp_path / str(n)}]" for n in (2, 3)]


def test_setting_of_one_value_among_its_users_is_no_axis(tmp_path: Path) -> None:
    unused: dict[str, Any] = {"diffuser": None, "llm": None}
    write_run(tmp_path / "0", settings={"images_per_prompt": 1, "method": "lgclip"})
    write_run(tmp_path / "1", settings={"images_per_prompt": 2, "method": "clip_text"}, extra=unused)
    page = page_of(tmp_path)
    assert [axis["key"] for axis in page["axes"]] == ["method"]
    assert page["runs"][0]["axes"] == {"method": "lgclip"}


def test_reason_names_data_sets_without_hashes(tmp_path: Path) -> None:
    write_run(tmp_path / "a", dataset="pictures")
    write_run(tmp_path / "b", dataset="sketches")
    (comparison,) = page_of(tmp_path)["comparisons"]
    assert comparison["reason"] == "evaluated on sketches, test; the reference on pictures, test"


def test_inconsistent_files_are_named_without_python_syntax(tmp_path: Path) -> None:
    write_run(tmp_path / "run")
    table = tmp_path / "run" / "per_class.csv"
    table.write_text(table.read_text().replace("correct", "right"))
    with pytest.raises(RunError, match=r"its files are inconsistent \(KeyError: 'correct'\); run it again"):
        page_of(tmp_path)


def test_confusion_matrix_and_reliability_follow_the_predictions(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 4, 80)
    prediction = np.where(rng.random(80) < 0.5, label, rng.integers(0, 4, 80))
    write_run(tmp_path / "run", names=list("abcd"), label=label.tolist(), prediction=prediction.tolist())
    (run,) = page_of(tmp_path)["runs"]
    counted = Counter((t, p) for t, p in zip(label.tolist(), prediction.tolist(), strict=True) if t != p)
    assert {(t, p): count for t, p, count in run["matrix"]} == counted
    probability = np.array([float(row["confidence"]) for row in read_csv(tmp_path / "run" / "predictions.csv")])
    edges = np.linspace(0, 1, 16)
    expected = []
    for low, high in pairwise(edges):
        inside = (probability > low) & (probability <= high)
        if inside.any():
            accuracy = round(float((label == prediction)[inside].mean()), 4)
            expected.append(
                {"n": int(inside.sum()), "confidence": round(probability[inside].mean(), 4), "accuracy": accuracy}
            )
    assert run["reliability"] == expected


def test_reliability_bins_are_those_of_the_calibration_error() -> None:
    assert prediction_plots.BINS == confidence.BINS, "written twice, as a page without images loads no torch"


def test_large_confusion_matrices_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CELLS", 3)
    for name in ("0", "1"):
        write_run(tmp_path / name, prediction=WORSE, settings={"guidance": int(name)})
    page = page_of(tmp_path)
    assert [bool(run["matrix"]) for run in page["runs"]] == [False, False]
    assert page["notes"] == ["The confusion matrices of 2 runs are left out; their predictions.csv holds them."]
