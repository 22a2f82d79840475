"""What a run leaves behind, field by field."""

import json
import subprocess
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from unittest.mock import MagicMock, Mock

import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from worlds import IMAGES_PER_CLASS, NAMES, FirstRun, rows

from lgclip import contact_sheet
from lgclip.contact_sheet import GAP, MAX_CLASSES, MAX_IMAGES, NAME_WIDTH, TILE
from lgclip.data import Streams
from lgclip.datasets.base import Dataset
from lgclip.identity import weights_of
from lgclip.methods.base import Classifier, Judged
from lgclip.report import git_commit, report
from lgclip.result_table import table
from lgclip.stages import Stages
from lgclip.statistics import wilson

pytest_plugins = ("run_fixtures",)

N = len(NAMES) * IMAGES_PER_CLASS


def test_the_result_says_what_was_judged_with_what(first_run: FirstRun) -> None:
    result, world = first_run.result, first_run.world
    assert result["schema"] == 2
    assert (result["choices"]["scales"], result["choices"]["encoder"], result["sweep"]) == ("single", "tiny", None)
    assert result["method"] == "lgclip"
    assert (result["dataset"]["name"], result["dataset"]["split"]) == ("pictures", "all")
    assert (result["n"], result["num_classes"], result["seed"]) == (N, len(NAMES), 0)
    assert (result["prompts_per_class"], result["images_per_prompt"]) == (3, 1)
    assert result["encoder"]["model"] == weights_of(str(world.encoder))
    assert result["diffuser"]["model"] == weights_of(str(world.diffuser))
    assert (result["diffuser"]["steps"], result["diffuser"]["size"]) == (2, 32)
    assert len(result["llm"]["templates"]) == 4
    assert (result["scales"]["fractions"], result["scales"]["weights"]) == ([1.0], [1.0])
    assert result["config"]["encoder"]["model"] == str(world.encoder), "the name by which it was asked for"
    assert result["versions"]["torch"] == version("torch")
    assert result["versions"].keys() >= {"lgclip", "diffusers", "transformers", "open_clip_torch"}


def test_the_result_holds_the_figures_that_the_predictions_give(first_run: FirstRun) -> None:
    judged = [(int(row["label"]), int(row["rank"])) for row in rows(first_run.folder / "predictions.csv")]
    right = Counter(label for label, rank in judged if rank == 0)
    metrics = first_run.result["metrics"]
    assert metrics["top1"] == right.total() / N
    assert metrics["top1_ci95"] == list(wilson(right.total(), N))
    assert metrics["top5"] == 1.0, "there are three classes"
    assert metrics["mean_per_class"] == pytest.approx(right.total() / N), "classes of equal size"
    assert first_run.result["baseline"].keys() == metrics.keys()
    assert list(first_run.result["beside"]) == ["clip_text", "fusion"]


def test_stages_and_stores_are_accounted_for(first_run: FirstRun) -> None:
    assert [stage["stage"] for stage in first_run.result["stages"]] == [
        "prompts", "images", "features", "judging"
    ]  # fmt: skip
    for stage in first_run.result["stages"]:
        assert stage["made"] > 0 == stage["reused"]
        assert stage["seconds"] >= 0
    assert first_run.result["cost"]["stages"] == first_run.result["stages"]
    assert list(first_run.result["store"]) == ["text", "synthetic", "real"]
    for key in first_run.result["store"].values():
        assert (first_run.world.store / "features" / key / "inputs.json").is_file()


def test_predictions_are_a_row_an_image_in_order(first_run: FirstRun) -> None:
    path = first_run.folder / "predictions.csv"
    assert path.read_text().splitlines()[0] == "index,label,prediction,rank,confidence,clip_text,fusion"
    found = [{name: int(value) for name, value in row.items() if name != "confidence"} for row in rows(path)]
    assert all(1 / len(NAMES) <= float(row["confidence"]) <= 1 for row in rows(path))
    assert [row["index"] for row in found] == list(range(N))
    assert [row["label"] for row in found] == [i // IMAGES_PER_CLASS for i in range(N)]
    assert all((row["rank"] == 0) == (row["prediction"] == row["label"]) for row in found)
    assert len({row["rank"] for row in found}) > 1, "a judgement that is always the same tests nothing"


def test_classes_are_a_row_each_with_what_they_are_taken_for(first_run: FirstRun) -> None:
    judged = rows(first_run.folder / "predictions.csv")
    found = rows(first_run.folder / "per_class.csv")
    assert list(found[0]) == ["class", "name", "n", "right", "accuracy", "most_taken_for", "times"]
    assert [row["name"] for row in found] == list(NAMES)
    for c, row in enumerate(found):
        said = [int(j["prediction"]) for j in judged if j["label"] == str(c)]
        assert (int(row["n"]), int(row["right"])) == (len(said), said.count(c))
        assert float(row["accuracy"]) == pytest.approx(said.count(c) / len(said), abs=1e-6)
        wrong = Counter(p for p in said if p != c)
        assert int(row["times"]) == max(wrong.values(), default=0)
        assert wrong[NAMES.index(row["most_taken_for"])] == int(row["times"]) if wrong else not row["most_taken_for"]


def test_the_table_has_a_line_a_method_and_one_a_stage(first_run: FirstRun) -> None:
    result = first_run.result
    lines = table(result).splitlines()
    assert [line.split()[0] for line in lines] == [
        "method", "lgclip", "clip_text", "fusion", "against", "against", "pictures,", "prompts", "images", "features",
        "judging",
    ]  # fmt: skip
    low, high = (100 * x for x in result["metrics"]["top1_ci95"])
    for part in (f"{100 * result['metrics']['top1']:.1f}%", f"{low:.1f} - {high:.1f}", str(N)):
        assert part in lines[1]
    test = result["paired"]["clip_text"]
    assert lines[4].startswith(f"against clip_text: {100 * test['difference']:+.2f} points (")
    assert lines[4].endswith(f"p = {test['p']:.3f}")
    assert max(map(len, lines)) <= 80
    for p, said in ((0.0009, "p < 0.001"), (0.001, "p = 0.001")):
        assert table({**result, "paired": {"clip_text": {**test, "p": p}}}).splitlines()[4].endswith(said)
    alone = table({**result, "beside": {}, "paired": {}, "baseline": None})
    assert "no text tower" in alone


def test_the_figures_beside_are_tested_against_the_method_on_the_same_images(first_run: FirstRun) -> None:
    found = rows(first_run.folder / "predictions.csv")
    for name, test in first_run.result["paired"].items():
        this = [row["prediction"] == row["label"] for row in found]
        other = [row[name] == row["label"] for row in found]
        assert test["only_this"] == sum(a and not b for a, b in zip(this, other, strict=True))
        assert test["only_other"] == sum(b and not a for a, b in zip(this, other, strict=True))
        assert test["difference"] == pytest.approx((sum(this) - sum(other)) / N)
        assert first_run.result["beside"][name]["top1"] == pytest.approx(sum(other) / N)
    detectable = first_run.result["detectable"]
    assert detectable["discordant_from"] == "clip_text"
    test = first_run.result["paired"]["clip_text"]
    assert detectable["discordant"] == pytest.approx((test["only_this"] + test["only_other"]) / N)


def test_diagnostics_are_a_row_a_class_beside_its_accuracy(first_run: FirstRun) -> None:
    found, accuracy = (rows(first_run.folder / name) for name in ("diagnostics.csv", "per_class.csv"))
    assert [row["name"] for row in found] == list(NAMES)
    assert [row["images"] for row in found] == ["3"] * len(NAMES)
    assert [row["accuracy"] for row in found] == [row["accuracy"] for row in accuracy]
    assert first_run.result["diagnostics"].keys() <= found[0].keys()


@pytest.mark.parametrize("indices", [[0, 1, 1], [0, 1], [0, 2, 1]])
def test_an_image_judged_twice_or_never_is_an_error(indices: list[int], tmp_path: Path) -> None:
    """103 images on two devices judged as 104 would shift every figure."""
    column = torch.tensor(indices)
    method = Mock(spec=Classifier, results={"lgclip": Judged(*[column] * 4, *[column.float()] * 3)})
    dataset = MagicMock(spec=Dataset, class_names=("a", "b"))
    dataset.__len__.return_value = 3
    with pytest.raises(ValueError, match="the data set has 3"):
        report(tmp_path, OmegaConf.create(), dataset, {}, Mock(spec=Streams), method, Mock(spec=Stages), None)


def test_the_commit_is_the_checkouts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git_commit.cache_clear()
    commit = git_commit()
    here = Path(contact_sheet.__file__).parent
    said = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    if said.returncode == 0 and commit is not None:
        assert commit.removesuffix("-dirty") == said.stdout.strip()
    monkeypatch.setenv("PATH", str(tmp_path))
    git_commit.cache_clear()
    assert git_commit() is None, "a machine without git"
    git_commit.cache_clear()


@pytest.mark.parametrize("name", ["🦜 parrot", "long " * 60, "a/b", "", "Straße"])
@pytest.mark.parametrize("size", [(64, 64), (3, 200), (200, 3)])
def test_a_sheet_shows_any_name_and_any_picture(tmp_path: Path, name: str, size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (10, 200, 30))
    contact_sheet.contact_sheet(tmp_path / "sheet.png", [name], [[picture] * 3], [picture], ["1 of 1 right"])
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (NAME_WIDTH + 4 * (TILE + GAP) + 3 * GAP, 28 + TILE + 2 * GAP)
        tops = 28 + TILE // 2
        assert sheet.getpixel((NAME_WIDTH + TILE // 2, tops)) == (10, 200, 30), "the real image"
        assert sheet.getpixel((NAME_WIDTH - 1, tops)) == (255, 255, 255), "a name ends before its pictures"


def test_a_sheet_stays_small_however_many_classes_and_images(tmp_path: Path) -> None:
    picture = Image.new("RGB", (8, 8))
    many = [f"class {i}" for i in range(3 * MAX_CLASSES)]
    contact_sheet.contact_sheet(
        tmp_path / "sheet.png", many, [[picture] * 30] * len(many), [picture] * len(many), [""] * len(many)
    )
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (
            NAME_WIDTH + (MAX_IMAGES + 1) * (TILE + GAP) + 3 * GAP, 28 + MAX_CLASSES * (TILE + GAP) + GAP
        )  # fmt: skip


def test_the_sheet_of_a_run_has_a_row_a_class(first_run: FirstRun) -> None:
    with Image.open(first_run.folder / "prototypes.png") as sheet:
        assert sheet.size == (NAME_WIDTH + 4 * (TILE + GAP) + 3 * GAP, 28 + len(NAMES) * (TILE + GAP) + GAP)


def test_the_result_is_json_that_any_reader_reads(first_run: FirstRun) -> None:
    text = (first_run.folder / "result.json").read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(text, parse_constant=refuse) == first_run.result
