"""Tests W&B tables: rows of the run's files, and images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import FirstRun, read_csv
from PIL import Image
from run_factories import build_result, metrics_record
from sklearn.metrics import confusion_matrix

from lgclip.datasets.base import Dataset
from lgclip.reporting.restore import restore_run
from lgclip.reporting.result_schema import from_json
from lgclip.reporting.run_folder import Run
from lgclip.reporting.wandb import tables as wandb_tables
from lgclip.reporting.wandb.tables import tables_of

pytest_plugins = ("run_fixtures", "wandb_fixtures")
pytestmark = pytest.mark.usefixtures("no_account")


class Grey(Dataset):
    """Returns images whose brightness is their index."""

    name = "grey"
    split = "all"

    def __init__(self, class_names: tuple[str, ...], labels: tuple[int, ...]) -> None:
        self.class_names = class_names
        self.labels = labels

    @property
    def ids(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return tuple(map(str, self.labels))

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (2, 2), (index, index, index))

    def source(self) -> dict[str, object]:
        return {}


def predictions(folder: Path, prediction: list[int], confidence: list[str], dataset: Dataset) -> Run:
    """Returns a run with these predictions and without images."""
    lines = ["index,label,prediction,rank,confidence"]
    for i, (label, predicted, sure) in enumerate(zip(dataset.labels, prediction, confidence, strict=True)):
        lines.append(f"{i},{label},{predicted},{int(label != predicted)},{sure}")
    (folder / "predictions.csv").write_text("\n".join(lines) + "\n")
    header = "class,name,n,correct,accuracy,most_confused_with,confusions"
    per_class = [f"{c},{name},0,0,,,0" for c, name in enumerate(dataset.class_names)]
    (folder / "per_class.csv").write_text("\n".join([header, *per_class]) + "\n")
    written = build_result(dataset.class_names, dataset.labels, prediction, {}, "grey")
    return Run(folder, from_json({**written, "metrics": metrics_record(0.5)}))


def by_name(table: Any) -> list[dict[str, Any]]:
    return [dict(zip(table.columns, row, strict=True)) for row in table.data]


def test_class_table_matches_the_file(first_run: FirstRun) -> None:
    run = Run.read(first_run.folder)
    opened = restore_run(run)
    table = tables_of(run, opened.dataset, opened.synthetic_images, {})["per_class"]
    for row, written in zip(by_name(table), read_csv(first_run.folder / "per_class.csv"), strict=True):
        assert row["name"] == written["name"]
        assert row["most_confused_with"] == written["most_confused_with"]
        assert [row[key] for key in ("class", "n", "correct", "confusions")] == [
            int(written[key]) for key in ("class", "n", "correct", "confusions")
        ]
        assert row["accuracy"] == float(written["accuracy"])


def test_diagnostics_are_added_to_classes(tmp_path: Path) -> None:
    data = Grey(("7", "8"), (0, 1))
    run = predictions(tmp_path, [0, 1], ["", ""], data)
    (tmp_path / "diagnostics.csv").write_text("class,name,margin,accuracy\n0,7,0.25,\n1,8,,\n")
    table = tables_of(run, data, None, {})["per_class"]
    assert [(row["name"], row["margin"], row["accuracy"]) for row in by_name(table)] == [
        ("7", 0.25, None), ("8", None, None),
    ]  # fmt: skip


def test_image_table_has_the_runs_images(first_run: FirstRun) -> None:
    run = Run.read(first_run.folder)
    opened = restore_run(run)
    assert opened.synthetic_images is not None
    table = by_name(tables_of(run, opened.dataset, opened.synthetic_images, {})["prototypes"])
    assert len(table) == len(opened.synthetic_images.prompts)
    for index, row in enumerate(table):
        assert row["prompt"] == opened.synthetic_images.prompts[index].text
        assert np.array_equal(np.asarray(row["image"].image), np.asarray(opened.synthetic_images.image(index)))


@pytest.mark.slow
def test_many_images_show_the_first_per_class(first_run: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_tables, "MAX_IMAGES", 4)
    run = Run.read(first_run.folder)
    opened = restore_run(run)
    assert opened.synthetic_images is not None
    table = by_name(tables_of(run, opened.dataset, opened.synthetic_images, {})["prototypes"])
    assert [row["class"] for row in table] == [0, 1, 2]
    assert [row["prompt"] for row in table] == [prompt.text for prompt in opened.synthetic_images.prompts[::3]]


@pytest.mark.slow
def test_mistakes_are_sorted_by_confidence(tmp_path: Path) -> None:
    data = Grey(("a", "b"), (0, 0, 1, 1, 1))
    run = predictions(tmp_path, [0, 1, 0, 0, 1], ["0.9", "0.6", "0.8", "", "0.7"], data)
    rows_by_name = by_name(tables_of(run, data, None, {})["misclassified"])
    assert [(row["index"], row["label"], row["prediction"], row["confidence"]) for row in rows_by_name] == [
        (2, "b", "a", 0.8), (1, "a", "b", 0.6), (3, "b", "a", None),
    ]  # fmt: skip
    assert np.asarray(rows_by_name[0]["image"].image)[0, 0, 0] == 2


def test_perfect_run_has_an_empty_table(tmp_path: Path) -> None:
    data = Grey(("a", "b"), (0, 1))
    assert by_name(tables_of(predictions(tmp_path, [0, 1], ["", ""], data), data, None, {})["misclassified"]) == []


def test_confusion_matrix_matches_scikit_learn(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    label, predicted = rng.integers(0, 4, (2, 50)).tolist()
    data = Grey(("a", "b", "c", "d"), tuple(label))
    chart = tables_of(predictions(tmp_path, predicted, [""] * 50, data), data, None, {})["confusion"]
    counts = np.array([row[2] for row in chart.table.data]).reshape(4, 4)
    assert np.array_equal(counts, confusion_matrix(label, predicted))


def test_many_classes_show_the_most_confused(tmp_path: Path) -> None:
    names = tuple(f"class {c}" for c in range(101))
    data = Grey(names, (0, 0, 0, 1, 100))
    tables = tables_of(predictions(tmp_path, [2, 3, 3, 0, 100], [""] * 5, data), data, None, {})
    assert "confusion" not in tables
    assert tables["confused"].data == [
        ["class 0", "class 3", 2], ["class 0", "class 2", 1], ["class 1", "class 0", 1],
    ]  # fmt: skip


def test_many_classes_without_mistakes_show_nothing(tmp_path: Path) -> None:
    data = Grey(tuple(f"class {c}" for c in range(101)), (0, 1))
    assert tables_of(predictions(tmp_path, [0, 1], ["", ""], data), data, None, {})["confused"].data == []


def test_sweep_table_has_one_row(tmp_path: Path) -> None:
    data = Grey(("a", "b"), (0, 1))
    axes = {"prompts_per_class": "5", "scales": "multi", "llm.temperature": "0.5", "dataset.names": ""}
    (row,) = by_name(tables_of(predictions(tmp_path, [0, 0], ["", ""], data), data, None, axes)["cell"])
    assert row == {
        "prompts_per_class": 5, "scales": "multi", "llm_temperature": 0.5, "dataset_names": None,
        "top1": 0.5, "top1_low": 0.4, "top1_high": 0.6,
    }  # fmt: skip
