"""Tables for W&B: the rows of the run's own files, and pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix
from worlds import FirstRun, rows

from lgclip import wandb_tables
from lgclip.datasets.base import Dataset
from lgclip.reopen import reopen
from lgclip.runs import Run
from lgclip.wandb_tables import tables_of

pytest_plugins = ("run_fixtures", "wandb_fixtures")
pytestmark = pytest.mark.usefixtures("no_account")


class Grey(Dataset):
    """Images that are as bright as their index."""

    name, split = "grey", "all"

    def __init__(self, class_names: tuple[str, ...], labels: tuple[int, ...]) -> None:
        self.class_names, self.labels = class_names, labels

    @property
    def ids(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(map(str, self.labels))

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (2, 2), (index, index, index))

    def source(self) -> dict[str, object]:
        return {}


def judged(folder: Path, prediction: list[int], confidence: list[str], dataset: Dataset) -> Run:
    """A run that judged so, without images."""
    lines = ["index,label,prediction,rank,confidence"]
    for i, (label, said, sure) in enumerate(zip(dataset.labels, prediction, confidence, strict=True)):
        lines.append(f"{i},{label},{said},{int(label != said)},{sure}")
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    header = "class,name,n,right,accuracy,most_taken_for,times"
    per_class = [f"{c},{name},0,0,,,0" for c, name in enumerate(dataset.class_names)]
    (folder / "per_class.csv").write_text("\n".join([header, *per_class]) + "\n")
    result = {"n": len(dataset), "metrics": {"top1": 0.5, "top1_ci95": [0.4, 0.6]}}
    return Run(folder, result)


def by_name(table: Any) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.data]


def test_the_table_of_classes_is_the_file(first_run: FirstRun) -> None:
    run = Run.read(first_run.folder)
    opened = reopen(run)
    table = tables_of(run, opened.dataset, opened.drawing, {})["per_class"]
    for row, written in zip(by_name(table), rows(first_run.folder / "per_class.csv"), strict=True):
        assert row["name"] == written["name"]
        assert row["most_taken_for"] == written["most_taken_for"]
        assert [row[key] for key in ("class", "n", "right", "times")] == [
            int(written[key]) for key in ("class", "n", "right", "times")
        ]
        assert row["accuracy"] == float(written["accuracy"])


def test_diagnostics_stand_beside_the_classes(tmp_path: Path) -> None:
    data = Grey(("7", "8"), (0, 1))
    run = judged(tmp_path, [0, 1], ["", ""], data)
    (tmp_path / "diagnostics.csv").write_text("class,name,margin,accuracy\n0,7,0.25,\n1,8,,\n")
    table = tables_of(run, data, None, {})["per_class"]
    assert [(row["name"], row["margin"], row["accuracy"]) for row in by_name(table)] == [
        ("7", 0.25, None), ("8", None, None),
    ]  # fmt: skip


def test_pictures_are_the_runs_own(first_run: FirstRun) -> None:
    run = Run.read(first_run.folder)
    opened = reopen(run)
    assert opened.drawing is not None
    table = by_name(tables_of(run, opened.dataset, opened.drawing, {})["prototypes"])
    assert len(table) == len(opened.drawing.prompts)
    for at, row in enumerate(table):
        assert row["prompt"] == opened.drawing.prompts[at].text
        assert np.array_equal(np.asarray(row["image"].image), np.asarray(opened.drawing.image(at)))


def test_of_many_pictures_every_class_has_its_first(first_run: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tables, "MAX_IMAGES", 4)
    run = Run.read(first_run.folder)
    opened = reopen(run)
    assert opened.drawing is not None
    table = by_name(tables_of(run, opened.dataset, opened.drawing, {})["prototypes"])
    assert [row["class"] for row in table] == [0, 1, 2]
    assert [row["prompt"] for row in table] == [prompt.text for prompt in opened.drawing.prompts[::3]]


def test_misjudged_images_come_the_surest_first(tmp_path: Path) -> None:
    data = Grey(("a", "b"), (0, 0, 1, 1, 1))
    run = judged(tmp_path, [0, 1, 0, 0, 1], ["0.9", "0.6", "0.8", "", "0.7"], data)
    found = by_name(tables_of(run, data, None, {})["misjudged"])
    assert [(row["index"], row["label"], row["prediction"], row["confidence"]) for row in found] == [
        (2, "b", "a", 0.8), (1, "a", "b", 0.6), (3, "b", "a", None),
    ]  # fmt: skip
    assert np.asarray(found[0]["image"].image)[0, 0, 0] == 2


def test_a_run_that_is_always_right_has_an_empty_table(tmp_path: Path) -> None:
    data = Grey(("a", "b"), (0, 1))
    assert by_name(tables_of(judged(tmp_path, [0, 1], ["", ""], data), data, None, {})["misjudged"]) == []


def test_the_confusion_matrix_is_scikit_learns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label, said = rng.integers(0, 4, (2, 50)).tolist()
    data = Grey(("a", "b", "c", "d"), tuple(label))
    chart = tables_of(judged(tmp_path, said, [""] * 50, data), data, None, {})["confusion"]
    counts = np.array([row[2] for row in chart.table.data]).reshape(4, 4)
    assert np.array_equal(counts, confusion_matrix(label, said))


def test_of_many_classes_the_pairs_most_often_confused_are_shown(tmp_path: Path) -> None:
    names = tuple(f"class {c}" for c in range(101))
    data = Grey(names, (0, 0, 0, 1, 100))
    tables = tables_of(judged(tmp_path, [2, 3, 3, 0, 100], [""] * 5, data), data, None, {})
    assert "confusion" not in tables
    assert tables["confused"].data == [
        ["class 0", "class 3", 2], ["class 0", "class 2", 1], ["class 1", "class 0", 1],
    ]  # fmt: skip


def test_of_many_classes_without_a_mistake_no_pair_is_shown(tmp_path: Path) -> None:
    data = Grey(tuple(f"class {c}" for c in range(101)), (0, 1))
    assert tables_of(judged(tmp_path, [0, 1], ["", ""], data), data, None, {})["confused"].data == []


def test_the_cell_is_one_row_of_axes_and_figures(tmp_path: Path) -> None:
    data = Grey(("a", "b"), (0, 1))
    axes = {"prompts_per_class": "5", "scales": "multi", "llm.temperature": "0.5", "dataset.names": ""}
    (row,) = by_name(tables_of(judged(tmp_path, [0, 0], ["", ""], data), data, None, axes)["cell"])
    assert row == {
        "prompts_per_class": 5, "scales": "multi", "llm_temperature": 0.5, "dataset_names": None,
        "top1": 0.5, "top1_low": 0.4, "top1_high": 0.6,
    }  # fmt: skip
