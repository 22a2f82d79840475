"""Tests the files of a run, field by field."""

import json
import subprocess
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, Mock

import pytest
import torch
from factories import IMAGES_PER_CLASS, NAMES, FirstRun, Sandbox, evaluate_run, read_csv
from omegaconf import OmegaConf
from PIL import Image

from lgclip.datasets.base import Dataset
from lgclip.evaluation.evaluator import Evaluation
from lgclip.evaluation.metrics import wilson
from lgclip.methods.base import Classifier, Predictions
from lgclip.reporting import contact_sheet
from lgclip.reporting.console_table import table
from lgclip.reporting.contact_sheet import GAP, LARGE_TILE, MAX_CLASSES, MAX_IMAGES, NAME_WIDTH, sheet_of
from lgclip.reporting.contact_sheet import SMALL_TILE as TILE
from lgclip.reporting.restore import restore_run
from lgclip.reporting.result import git_commit, report
from lgclip.reporting.result_schema import from_json
from lgclip.reporting.run_folder import Run
from lgclip.runtime.versions import RESULT_SCHEMA
from lgclip.stages.runner import Stages
from lgclip.stages.streams import Streams
from lgclip.store.keys import weights_of

pytest_plugins = ("run_fixtures",)

N = len(NAMES) * IMAGES_PER_CLASS


def test_result_describes_the_evaluation(first_run: FirstRun) -> None:
    result = first_run.result
    sandbox = first_run.sandbox
    assert result["schema"] == RESULT_SCHEMA
    assert (result["choices"]["scales"], result["choices"]["encoder"], result["sweep"]) == ("single", "tiny", None)
    assert result["method"] == "lgclip"
    assert (result["dataset"]["name"], result["dataset"]["split"]) == ("pictures", "all")
    assert (result["n"], result["num_classes"], result["seed"]) == (N, len(NAMES), 0)
    assert (result["prompts_per_class"], result["images_per_prompt"]) == (3, 1)
    assert result["encoder"]["model"] == weights_of(str(sandbox.encoder))
    assert result["diffuser"]["model"] == weights_of(str(sandbox.diffuser))
    assert (result["diffuser"]["steps"], result["diffuser"]["size"]) == (2, 32)
    assert len(result["llm"]["templates"]) == 4
    assert (result["scales"]["fractions"], result["scales"]["weights"]) == ([1.0], [1.0])
    assert result["config"]["encoder"]["model"] == str(sandbox.encoder), "the name by which it was asked for"
    assert result["versions"]["torch"] == version("torch")
    assert result["versions"].keys() >= {"lgclip", "diffusers", "transformers", "open_clip_torch"}


def test_result_metrics_match_predictions(first_run: FirstRun) -> None:
    predictions = [(int(row["label"]), int(row["rank"])) for row in read_csv(first_run.folder / "predictions.csv")]
    right = Counter(label for label, rank in predictions if rank == 0)
    metrics = first_run.result["metrics"]
    assert metrics["top1"] == right.total() / N
    assert metrics["top1_ci95"] == list(wilson(right.total(), N))
    assert metrics["top5"] == 1.0, "there are three classes"
    assert metrics["mean_per_class"] == pytest.approx(right.total() / N), "classes of equal size"
    assert first_run.result["baseline"].keys() == metrics.keys()
    assert list(first_run.result["baselines"]) == ["clip_text", "fusion"]


def test_stages_and_stores_are_counted(first_run: FirstRun) -> None:
    assert [stage["stage"] for stage in first_run.result["stages"]] == [
        "prompts", "images", "features", "evaluation"
    ]  # fmt: skip
    for stage in first_run.result["stages"]:
        assert stage["computed"] > 0 == stage["reused"]
        assert stage["seconds"] >= 0
    assert first_run.result["cost"]["stages"] == first_run.result["stages"]
    assert list(first_run.result["store"]) == ["text", "synthetic", "real"]
    for key in first_run.result["store"].values():
        assert (first_run.sandbox.store / "features" / key / "inputs.json").is_file()


def test_predictions_are_one_row_per_image(first_run: FirstRun) -> None:
    path = first_run.folder / "predictions.csv"
    assert path.read_text().splitlines()[0] == "index,label,prediction,rank,confidence,clip_text,fusion"
    table = []
    for row in read_csv(path):
        table.append({name: int(value) for name, value in row.items() if name != "confidence"})
    assert all(1 / len(NAMES) <= float(row["confidence"]) <= 1 for row in read_csv(path))
    assert [row["index"] for row in table] == list(range(N))
    assert [row["label"] for row in table] == [i // IMAGES_PER_CLASS for i in range(N)]
    assert all((row["rank"] == 0) == (row["prediction"] == row["label"]) for row in table)
    assert len({row["rank"] for row in table}) > 1, "a judgement that is always the same tests nothing"


def test_per_class_rows_have_confusions(first_run: FirstRun) -> None:
    predictions = read_csv(first_run.folder / "predictions.csv")
    table = read_csv(first_run.folder / "per_class.csv")
    assert list(table[0]) == ["class", "name", "n", "correct", "accuracy", "most_confused_with", "confusions"]
    assert [row["name"] for row in table] == list(NAMES)
    for c, row in enumerate(table):
        predicted = [int(j["prediction"]) for j in predictions if j["label"] == str(c)]
        assert (int(row["n"]), int(row["correct"])) == (len(predicted), predicted.count(c))
        assert float(row["accuracy"]) == pytest.approx(predicted.count(c) / len(predicted), abs=1e-6)
        wrong = Counter(p for p in predicted if p != c)
        assert int(row["confusions"]) == max(wrong.values(), default=0)
        if wrong:
            assert wrong[NAMES.index(row["most_confused_with"])] == int(row["confusions"])
        else:
            assert not row["most_confused_with"]


def test_console_table_has_methods_and_stages(first_run: FirstRun) -> None:
    result = first_run.result
    lines = table(from_json(result)).splitlines()
    assert [line.split()[0] for line in lines] == [
        "method", "lgclip", "clip_text", "fusion", "against", "against", "pictures,", "stage", "prompts", "images",
        "features", "evaluation",
    ]  # fmt: skip
    low, high = (100 * x for x in result["metrics"]["top1_ci95"])
    for part in (f"{100 * result['metrics']['top1']:.1f}%", f"{low:.1f} - {high:.1f}", str(N)):
        assert part in lines[1]
    test = result["paired"]["clip_text"]
    assert lines[4].startswith(f"against clip_text: {100 * test['difference']:+.2f} points (")
    assert lines[4].endswith(f"p = {test['p']:.3f}")
    assert max(map(len, lines)) <= 80
    for p, text in ((0.0009, "p < 0.001"), (0.001, "p = 0.001")):
        changed = from_json({**result, "paired": {"clip_text": {**test, "p": p}}})
        assert table(changed).splitlines()[4].endswith(text)
    alone = table(from_json({**result, "baselines": {}, "paired": {}, "baseline": None}))
    assert "no text tower" in alone


def test_baselines_are_paired_with_the_method(first_run: FirstRun) -> None:
    table = read_csv(first_run.folder / "predictions.csv")
    for name, test in first_run.result["paired"].items():
        this = [row["prediction"] == row["label"] for row in table]
        baseline_hits = [row[name] == row["label"] for row in table]
        assert test["only_this"] == sum(a and not b for a, b in zip(this, baseline_hits, strict=True))
        assert test["only_other"] == sum(b and not a for a, b in zip(this, baseline_hits, strict=True))
        assert test["difference"] == pytest.approx((sum(this) - sum(baseline_hits)) / N)
        assert first_run.result["baselines"][name]["top1"] == pytest.approx(sum(baseline_hits) / N)
    detectable = first_run.result["detectable"]
    assert detectable["discordant_from"] == "clip_text"
    test = first_run.result["paired"]["clip_text"]
    assert detectable["discordant"] == pytest.approx((test["only_this"] + test["only_other"]) / N)


def test_diagnostics_are_one_row_per_class(first_run: FirstRun) -> None:
    diagnostics_rows, accuracy = (read_csv(first_run.folder / name) for name in ("diagnostics.csv", "per_class.csv"))
    assert [row["name"] for row in diagnostics_rows] == list(NAMES)
    assert [row["images"] for row in diagnostics_rows] == ["3"] * len(NAMES)
    assert [row["accuracy"] for row in diagnostics_rows] == [row["accuracy"] for row in accuracy]
    assert first_run.result["diagnostics"].keys() <= diagnostics_rows[0].keys()


@pytest.mark.parametrize("indices", [[0, 1, 1], [0, 1], [0, 2, 1]])
def test_duplicate_or_missing_predictions_are_rejected(indices: list[int], tmp_path: Path) -> None:
    """Checks 103 images on two devices: counting 104 would change every metric."""
    column = torch.tensor(indices)
    method = Mock(spec=Classifier, results={"lgclip": Predictions(*[column] * 5, *[column.float()] * 3)})
    dataset = MagicMock(spec=Dataset, class_names=("a", "b"))
    dataset.__len__.return_value = 3
    evaluation = Evaluation(Mock(spec=Streams), dataset, method, None, {})
    with pytest.raises(ValueError, match="the data set has 3"):
        report(tmp_path, OmegaConf.create(), evaluation, {}, Mock(spec=Stages))


def test_commit_is_the_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git_commit.cache_clear()
    commit = git_commit()
    package = Path(contact_sheet.__file__).parents[1]
    process = subprocess.run(["git", "rev-parse", "HEAD"], cwd=package, capture_output=True, text=True, check=False)
    if process.returncode == 0 and commit is not None:
        assert commit.removesuffix("-dirty") == process.stdout.strip()
    monkeypatch.setenv("PATH", str(tmp_path))
    git_commit.cache_clear()
    assert git_commit() is None, "a machine without git"
    git_commit.cache_clear()


@pytest.mark.parametrize("name", ["🦜 parrot", "long " * 60, "a/b", "", "Straße"])
@pytest.mark.parametrize("size", [(64, 64), (3, 200), (200, 3)])
def test_sheet_accepts_any_name_and_image(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 200, 30))
    contact_sheet.contact_sheet(tmp_path / "sheet.png", [name], [[image] * 3], [image], ["1 of 1 correct"])
    tile = TILE if max(size) <= TILE else LARGE_TILE
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (NAME_WIDTH + 4 * (tile + GAP) + 3 * GAP, 28 + tile + 2 * GAP)
        tops = 28 + tile // 2
        assert sheet.getpixel((NAME_WIDTH + tile // 2, tops)) == (10, 200, 30), "the real image"
        assert sheet.getpixel((NAME_WIDTH - 1, tops)) == (255, 255, 255), "a name ends before its pictures"


def test_sheet_size_is_limited(tmp_path: Path) -> None:
    image = Image.new("RGB", (8, 8))
    many = [f"class {i}" for i in range(3 * MAX_CLASSES)]
    contact_sheet.contact_sheet(
        tmp_path / "sheet.png", many, [[image] * 30] * len(many), [image] * len(many), [""] * len(many)
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (
            NAME_WIDTH + (MAX_IMAGES + 1) * (TILE + GAP) + 3 * GAP, 28 + MAX_CLASSES * (TILE + GAP) + GAP
        )  # fmt: skip


def test_sheet_shows_the_worst_classes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    num_classes = MAX_CLASSES + 5
    label = torch.arange(num_classes).repeat_interleave(2)
    rank = torch.zeros_like(label)
    rank[[2 * 44, 2 * 44 + 1, 2 * 7]] = 1  # class 44: none correct, class 7: one of two
    zeros = torch.zeros(len(label))
    predictions = Predictions(torch.arange(len(label)), label, label, rank, zeros.int(), zeros, zeros, zeros)

    dataset = MagicMock(spec=Dataset, class_names=tuple(f"class {c}" for c in range(num_classes)))
    dataset.image.side_effect = lambda index: Image.new("RGB", (200, 100), (index, 0, 0))
    rows: list[Any] = []
    monkeypatch.setattr(contact_sheet, "contact_sheet", lambda *values: rows.append(values))
    sheet_of(tmp_path / "sheet.png", dataset, None, predictions, tile=96)
    ((_, names, synthetic, real, notes, tile),) = rows
    assert names[:3] == ["class 44", "class 7", "class 0"]
    assert notes[:3] == ["0 of 2 correct", "1 of 2 correct", "2 of 2 correct"]
    assert [image.getpixel((0, 0))[0] for image in real[:3]] == [88, 14, 0]
    assert len(names) == len(real) == len(synthetic) == MAX_CLASSES
    assert tile == 96


def test_sheet_has_a_row_per_class(first_run: FirstRun) -> None:
    with Image.open(first_run.folder / "prototypes.png") as sheet:
        assert sheet.size == (NAME_WIDTH + 4 * (TILE + GAP) + 3 * GAP, 28 + len(NAMES) * (TILE + GAP) + GAP)


def test_result_is_standard_json(first_run: FirstRun) -> None:
    text = (first_run.folder / "result.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(text, parse_constant=refuse) == first_run.result


def test_store_that_was_used_is_recorded(sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGCLIP_HOME", str(sandbox.store))
    evaluate_run(sandbox, tmp_path / "run", "paths.store=null")
    recorded = json.loads((tmp_path / "run" / "result.json").read_text())["config"]["paths"]["store"]
    assert recorded == str(sandbox.store), "null would mean another folder for whoever reads the result"
    monkeypatch.setenv("LGCLIP_HOME", str(tmp_path / "elsewhere"))
    assert restore_run(Run.read(tmp_path / "run")).streams["real"].missing() == []
