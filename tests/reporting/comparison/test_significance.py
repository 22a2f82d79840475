"""Tests comparisons of runs: which are comparable, the test statistics and their report."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_factories import build_result
from scipy.stats import ttest_ind

from lgclip.evaluation.metrics import holm, metrics, paired
from lgclip.reporting.comparison.command import CompareOptions
from lgclip.reporting.comparison.command import compare as compare_command
from lgclip.reporting.comparison.results import (
    SEEDS,
    ComparisonError,
    MethodResult,
    check_comparable,
    read_result,
    read_results,
)
from lgclip.reporting.comparison.significance import compare_means, compare_with_run
from lgclip.reporting.comparison.table import Cell, ComparisonTable, build_table
from lgclip.reporting.run_folder import Run, RunError, differing
from lgclip.reporting.text_tables import to_text

CLASSES = ("ant", "bee", "cat")
LABELS = np.repeat([0, 1, 2], 20)


@dataclass
class RunSpec:
    """Describes a run to write."""

    accuracy: float = 0.8
    chance: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    names: Sequence[str] = CLASSES
    labels: Any = field(default_factory=lambda: LABELS)


Writer = Callable[[str, RunSpec], Path]


def predicted(labels: Any, accuracy: float, chance: int) -> Any:
    rng = np.random.default_rng(chance)
    return np.where(rng.random(len(labels)) < accuracy, labels, (labels + 1) % 3)


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes the files of a run that a comparison reads."""

    def written(name: str, run: RunSpec) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        labels = run.labels
        n = len(run.labels)
        expected = predicted(labels, run.accuracy, run.chance)
        text = predicted(labels, 0.7, 99)
        ranks = [(x != labels).astype(int) for x in (expected, text)]
        with (folder / "predictions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([
                ("index", "label", "prediction", "rank", "confidence", "clip_text"),
                *((i, labels[i], expected[i], ranks[0][i], "", text[i]) for i in range(n)),
            ])  # fmt: skip
        with (folder / "per_class.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("class", "name"), *enumerate(run.names)])
        figures = [metrics(labels, rank, len(run.names)) for rank in ranks]
        result = {
            **build_result(run.names, labels.tolist(), expected.tolist(), {}, "insects"),
            "dataset": {"name": "insects", "split": "test", "names": "own", "context": "", "templates": [],
                        "source": {"schema": 1},
                        "fingerprint": "a", "folder_names": {}, "files_left_out": {}, "files_noted": {}, **run.dataset},
            "metrics": figures[0], "baselines": {"clip_text": figures[1]},
            "choices": {"scales": "single", **run.choices},
            "config": {"seed": 0, "prompt_order_seed": None, "prompts_per_class": 10, "scales": {"n": 1}, **run.config},
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return written


def run_of(write: Writer, name: str, run: RunSpec | None = None) -> Run:
    return Run.read(write(name, run or RunSpec()))


def test_reference_can_be_run_method_or_folder(write: Writer, tmp_path: Path) -> None:
    plain = write("a", RunSpec())
    unusual = write("b:clip_text", RunSpec())
    assert read_result(str(plain)).baseline is None
    assert read_result(f"{plain}:clip_text").method == "clip_text"
    assert read_result(f"{plain}:lgclip").baseline is None, "the run's own method"
    assert read_result(str(unusual)).run.folder == unusual
    assert read_result(f"{unusual}:clip_text").baseline == "clip_text"
    assert [(s.run.folder.name, s.baseline) for s in read_results([f"{tmp_path}:clip_text"])] == [
        ("a", "clip_text"), ("b:clip_text", "clip_text")
    ]  # fmt: skip


def test_unknown_path_lists_existing(write: Writer, tmp_path: Path) -> None:
    folder = write("a", RunSpec())
    with pytest.raises(ComparisonError, match=r"did not evaluate 'fusion': choose one of lgclip, clip_text"):
        read_result(f"{folder}:fusion")
    for missing in ("nowhere", "nowhere:clip_text"):
        with pytest.raises(RunError, match="nowhere holds no"):
            read_result(str(tmp_path / missing))
    with pytest.raises(ComparisonError, match="no run is named"):
        read_results([])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (RunSpec(dataset={"name": "birds"}), "data set's name 'insects' and 'birds'"),
        (RunSpec(dataset={"split": "val"}), "split 'test' and 'val'"),
        (RunSpec(dataset={"names": "latin"}), "names 'own' and 'latin'"),
        (RunSpec(dataset={"fingerprint": "b"}), r"images' content 'a' and 'b'"),
        (RunSpec(labels=LABELS[:-1]), "number of images 60 and 59"),
        (RunSpec(names=(*CLASSES, "dog")), "number of classes 3 and 4"),
        (RunSpec(names=("ant", "wasp", "dog")), "name of class 1 'bee' and 'wasp', one of 2"),
        (RunSpec(labels=LABELS[::-1]), "labels of 40 images"),
        (RunSpec(dataset={"name": "birds", "split": "val"}), "'birds'; the data set's split"),
    ],
)
def test_runs_on_other_images_are_rejected(write: Writer, changes: RunSpec, message: str) -> None:
    a = run_of(write, "a")
    b = run_of(write, "b", changes)
    check_comparable(a, a)
    for refused in (lambda: check_comparable(a, b), lambda: compare_with_run([MethodResult(b)], MethodResult(a))):
        with pytest.raises(ComparisonError, match=message):
            refused()


def test_holm_counts_every_comparison(write: Writer) -> None:
    """Checks Holm's correction of three p values by hand: the least threefold, and none below one before it."""
    folders = [
        run_of(write, str(i), RunSpec(accuracy=x, chance=i, config={"prompts_per_class": i}))
        for i, x in enumerate((0.9, 0.3, 0.6, 0.85))
    ]
    sides = [MethodResult(run) for run in folders]
    comparisons = compare_with_run([*sides, sides[1]], sides[0])
    assert [comparison.result for comparison in comparisons] == sides[1:], (
        "once each, and the reference not against itself"
    )
    assert [comparison.settings for comparison in comparisons] == [{"prompts_per_class": i} for i in (1, 2, 3)]
    assert {comparison.reference_settings["prompts_per_class"] for comparison in comparisons} == {0}
    for comparison in comparisons:
        assert comparison.test == paired(LABELS, comparison.result.prediction, sides[0].prediction)
    raw = sorted((comparison.test["p"], comparison.p_holm) for comparison in comparisons)
    steps = np.maximum.accumulate([(3 - i) * p for i, (p, _) in enumerate(raw)])
    assert [p for _, p in raw] == pytest.approx(np.minimum(steps, 1))


def test_baseline_is_compared_like_a_method(write: Writer) -> None:
    run = run_of(write, "a")
    (comparisons,) = compare_with_run([MethodResult(run, "clip_text")], MethodResult(run))
    right = {
        name: predictions == LABELS
        for name, predictions in (("a", run.predictions.prediction), ("text", comparisons.result.prediction))
    }
    assert comparisons.test["only_this"] == (right["text"] & ~right["a"]).sum()
    assert comparisons.result.metrics.top1 == right["text"].mean()
    assert comparisons.settings == {}


def test_single_run_cannot_be_compared(write: Writer) -> None:
    side = MethodResult(run_of(write, "a"))
    with pytest.raises(ComparisonError, match="name another run, or a baseline of it"):
        compare_with_run([side, side], side)


def cell_of(table: ComparisonTable, row: int = 0) -> Cell:
    (cell,) = table.rows[row].cells.values()
    return cell


def seeds_of(table: ComparisonTable, row: int) -> list[object]:
    cell = cell_of(table, row)
    return [cell.seed_of(repetition) for repetition in cell.repetitions]


def text_of(options: CompareOptions) -> str:
    return "\n".join(part if isinstance(part, str) else to_text(part) for part in compare_command(options))


def test_seeds_are_grouped_by_settings(write: Writer) -> None:
    """Checks settings below a choice: two runs with scales=multi may differ in other values."""
    kinds = [("single", 1), ("multi", 4), ("multi", 5)]
    sides = [
        MethodResult(run_of(write, f"{k}-{n}-{seed}", RunSpec(
            chance=seed, config={"seed": seed, "scales": {"n": n}}, choices={"scales": k}
        )))
        for seed, (k, n) in product((0, 1, 2), kinds)
    ]  # fmt: skip
    table = build_table([*sides, sides[0]], by=["scales"])
    assert [seeds_of(table, row) for row in range(3)] == [[0, 1, 2]] * 3
    assert [(row.values, row.settings) for row in table.rows] == [
        (("single",), {}), (("multi",), {"scales.n": 4}), (("multi",), {"scales.n": 5})
    ]  # fmt: skip
    assert [row.label for row in table.rows] == ["single", "multi (n=4)", "multi (n=5)"]
    assert list(cell_of(table).values("top1").values()) == [side.metrics.top1 for side in sides[::3]]


def test_following_seed_is_not_a_setting(write: Writer) -> None:
    """Checks the seed of prompt tuning, `${seed}`, which every config has."""

    def side(seed: int, part_seed: int) -> MethodResult:
        config = {"seed": seed, "prompt_tuning": {"seed": part_seed}, "student": {"seed": seed}}
        return MethodResult(run_of(write, f"{seed}-{part_seed}", RunSpec(chance=seed, config=config)))

    follow = [side(seed, seed) for seed in (0, 1, 2)]
    assert list(differing([result.run for result in follow])) == ["seed"]
    table = build_table(follow, by=["method"])
    assert (len(table.rows), len(cell_of(table).by_seed()), table.rows[0].settings) == (1, 3, {})
    assert list(differing([result.run for result in (*follow, side(2, 7))])) == ["seed", "prompt_tuning.seed"]


def test_orders_of_a_seed_are_one_repetition(write: Writer) -> None:
    """Checks that four runs of two seeds are two repetitions: orders choose among the same images."""
    sides = [
        MethodResult(run_of(write, f"{s}{o}", RunSpec(chance=4 * s + o, config={"seed": s, "prompt_order_seed": o})))
        for s, o in product((0, 1), (0, 1))
    ]  # fmt: skip
    both = cell_of(build_table(sides, by=["method"]))
    top1 = [side.metrics.top1 for side in sides]
    assert both.seed == "seed"
    assert list(both.values("top1").values()) == pytest.approx([sum(top1[:2]) / 2, sum(top1[2:]) / 2])
    orders = cell_of(build_table(sides[:2], by=["method"]))
    assert (orders.seed, list(orders.values("top1").values())) == ("prompt_order_seed", top1[:2])


def test_repeated_seed_counts_once(write: Writer) -> None:
    a = MethodResult(run_of(write, "a"))
    again = MethodResult(run_of(write, "b"))
    cell = cell_of(build_table([a, again], by=["method"]))
    assert list(cell.repetitions.values()) == [[a, again]]
    assert len(cell.values("top1")) == 1
    other_run = MethodResult(run_of(write, "c", RunSpec(chance=5)))
    with pytest.raises(
        ComparisonError, match=r"have the same config and seeds but different predictions.*leave one of them"
    ):
        build_table([a, other_run], by=["method"])
    (comparisons,) = compare_with_run([other_run], a)
    assert comparisons.test["p"] < 1, "what changed between them is tested all the same"


def seeded(write: Writer, prompts: int, seeds: int, accuracy: float) -> list[MethodResult]:
    return [
        MethodResult(run_of(write, f"sweep/{prompts}-{s}", RunSpec(
            accuracy=accuracy, chance=10 * prompts + s, config={"seed": s, "prompts_per_class": prompts}
        )))
        for s in range(seeds)
    ]  # fmt: skip


def test_settings_are_compared_by_welch(write: Writer) -> None:
    sides = seeded(write, 1, 3, 0.6) + seeded(write, 5, 4, 0.9) + seeded(write, 10, 1, 0.9)
    table = build_table(sides, by=["prompts_per_class"])
    values = [list(cell_of(table, row).values("top1").values()) for row in range(3)]
    (comparisons,) = compare_means(table, sides[0])
    assert (comparisons.row.values, comparisons.reference.values, comparisons.n) == ((5,), (1,), 3), (
        "one seed says nothing of a spread"
    )
    oracle: Any = ttest_ind(values[1], values[0], equal_var=False)
    assert comparisons.over_seeds is not None
    assert (comparisons.over_seeds["p"], comparisons.p_holm) == pytest.approx((oracle.pvalue, oracle.pvalue))
    assert comparisons.difference == pytest.approx(np.mean(values[1]) - np.mean(values[0]))
    assert compare_means(table, sides[-1]) == [], "the reference's setting has one seed"


def test_tables_have_aligned_columns(write: Writer, tmp_path: Path) -> None:
    sides = seeded(write, 1, 2, 0.6) + seeded(write, 5, 2, 0.9)
    reference = f"{sides[0].run.folder}:clip_text"
    means, tests = text_of(CompareOptions([str(tmp_path / "sweep")], reference=reference)).split("\n\n")
    assert [line.split()[:2] for line in means.splitlines()[1:4]] == [
        ["prompts_per_class", "seeds"],
        ["1", "2"],
        ["5", "2"],
    ]
    first = 100 * np.array([side.metrics.top1 for side in sides[:2]])
    assert means.splitlines()[2].endswith(f"{first.mean():.1f} ± {first.std(ddof=1):.1f}")
    head, note, columns, *body, _ = tests.splitlines()
    top1 = sides[0].run.result.baselines["clip_text"].top1
    assert head.startswith(f"60 images; the reference is 1-0, clip_text seed=0 prompts_per_class=1: top-1 {top1:.1%} (")
    assert "a family of 4" in note
    assert columns.split()[:4] == ["run", "seed", "prompts_per_class", "method"]
    assert [line.split()[:4] for line in body] == [
        [f"{p}-{s}", str(s), str(p), "lgclip"] for p, s in ((1, 0), (1, 1), (5, 0), (5, 1))
    ]
    assert len({len(line) for line in body}) == 1
    welch = text_of(CompareOptions([str(tmp_path / "sweep")], reference=str(sides[0].run.folder)))
    assert "Welch's test" in welch
    assert "5 - 1 " in welch


def test_table_limits_its_settings(write: Writer) -> None:
    config = {f"option_{i}": 0 for i in range(8)}
    a = run_of(write, "a", RunSpec(config=config))
    b = run_of(write, "b", RunSpec(config=dict.fromkeys(config, "x" * 40), chance=1))
    options = CompareOptions([str(a.folder), str(b.folder)], by=["option_0"], reference=str(a.folder))
    text = text_of(options)
    assert "they differ in option_6, option_7 too" in text
    assert "rows or columns differ in option_1, option_2, option_3, option_4, option_5, option_6 and 1 more too" in text
    assert "x" * 23 + "…" in text.split("\n\n")[1]


def test_json_has_unrounded_values(write: Writer, tmp_path: Path) -> None:
    sides = seeded(write, 1, 2, 0.6) + seeded(write, 5, 2, 0.9)
    options = CompareOptions([str(tmp_path)], format="json", reference=str(sides[0].run.folder))
    document = json.loads(text_of(options))
    last = document["against_run"][-1]
    assert last["reference"]["run"] == str(sides[0].run.folder)
    assert last["settings"] == {"seed": 1, "prompts_per_class": 5}
    assert last["top1"] == sides[-1].metrics.top1
    assert math.isclose(last["difference"], last["top1"] - last["reference"]["top1"])
    assert last["p"] == compare_with_run(sides, sides[0])[-1].test["p"]
    assert [(cell["row"], cell["seed"], cell["n"]) for cell in document["cells"]] == [
        ({"prompts_per_class": p}, "seed", 2) for p in (1, 5)
    ]
    assert document["cells"][0]["values"] == [side.metrics.top1 for side in sides[:2]]
    assert document["cells"][0]["runs"] == [str(side.run.folder) for side in sides[:2]]
    (row,) = document["against_row"]
    assert row.keys() >= {"difference", "over_seeds", "p_holm"}


def test_intervals_are_wilson_or_student(write: Writer, tmp_path: Path) -> None:
    (single,) = seeded(write, 1, 1, 0.6)
    several = seeded(write, 5, 3, 0.9)
    text = text_of(CompareOptions([str(tmp_path)], has_intervals=True))
    low, high = (100 * bound for bound in single.metrics.top1_ci95)
    assert f"{100 * single.metrics.top1:.1f} ({low:.1f} - {high:.1f})" in text
    summary = cell_of(build_table(several, by=["method"])).summary("top1")
    assert summary is not None
    low, high = (100 * bound for bound in summary["ci95"])
    assert f"{100 * summary['mean']:.1f} ({low:.1f} - {high:.1f})" in text


def test_seeds_are_read_from_the_config(write: Writer) -> None:
    side = MethodResult(run_of(write, "a", RunSpec(config={"seed": 3, "prompt_order_seed": 1})))
    assert dict(zip(SEEDS, side.repetition, strict=True)) == {
        "prompt_tuning.seed": None, "student.seed": None, "paradigm.split_seed": None, "paradigm.shots_seed": None,
        "seed": 3, "prompt_order_seed": 1,
    }  # fmt: skip


def test_holm_matches_published_values() -> None:
    """Compares with R's `p.adjust(p, "holm")` on published examples."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, 0.02, 0.03, 0.04, 0.05]) == pytest.approx([0.05, 0.08, 0.09, 0.09, 0.09])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
