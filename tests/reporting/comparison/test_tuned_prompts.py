"""Tests the table and the figure of tuned prompts from real runs."""

from pathlib import Path

import numpy as np
import pytest
from factories import IMAGES_PER_CLASS, Sandbox, evaluate_run, make_image_folder, read_csv
from PIL import Image

from lgclip.reporting.comparison.command import CompareOptions, compare, select_results
from lgclip.reporting.comparison.plots import curve
from lgclip.reporting.comparison.table import build_table, missing_notes
from lgclip.reporting.text_tables import to_text

pytest_plugins = ("run_fixtures",)

SMALL = (
    "method=prompt_tuning", "paradigm=trzsl", "paradigm.seen_classes=[0, 2]", "prompt_tuning.epochs=2",
    "prompt_tuning.warmup_epochs=1",
    "prompt_tuning.batch_size=8", "prompt_tuning.tokens=3", "prompt_tuning.lr=0.02",
)  # fmt: skip


@pytest.mark.slow
def test_table_matches_predictions_of_runs(sandbox: Sandbox, tmp_path: Path) -> None:
    training = make_image_folder(tmp_path / "training", per_class=2 * IMAGES_PER_CLASS)
    results = []
    for prompt_tuning, seed in (("zero_shot", 0), ("grip", 0), ("grip", 1)):
        recipe = () if prompt_tuning == "zero_shot" else ("prompt_tuning.rounds=2", "prompt_tuning.shots=2")
        run = (
            f"prompt_tuning={prompt_tuning}",
            f"prompt_tuning.seed={seed}",
            f"dataset.train_root={training}",
            *recipe,
        )
        results.append(evaluate_run(sandbox, tmp_path / "sweep" / str(len(results)), *SMALL, *run))
    compare_options = CompareOptions(
        [str(tmp_path / "sweep")], by=["prompt_tuning"], columns=["paradigm"], metrics=["top1", "unseen"],
        reference="grip", plot=tmp_path / "learners.png",
    )  # fmt: skip
    table = build_table(select_results(compare_options), compare_options.by, compare_options.columns)
    assert [row.label for row in table.rows if not row.is_baseline] == ["zero_shot", "grip"]
    assert [row.label for row in table.rows if row.is_baseline] == ["clip_text", "lgclip"]
    assert missing_notes(table) == ["zero_shot: trzsl has 1 of 2 repetitions, none of prompt_tuning.seed=1"]
    zero, grip, text = table.rows[:3]
    for seed, index in ((0, 1), (1, 2)):
        lines = read_csv(tmp_path / "sweep" / str(index) / "predictions.csv")
        right = np.array([line["prediction"] == line["label"] for line in lines])
        unseen = np.array([line["label"] == "1" for line in lines])
        assert grip.cells["trzsl",].values("top1")[seed] == pytest.approx(right.mean())
        assert grip.cells["trzsl",].values("unseen")[seed] == pytest.approx(right[unseen].mean())
    assert zero.cells["trzsl",].values("top1") == {0: text.cells["trzsl",].values("top1")[0]}, "the sentences alone"
    first, second = (result["prompt_tuning"]["rounds"][2]["accuracy"] for result in results[1:])
    assert curve(grip, ("trzsl",), "accuracy")[2] == (2, pytest.approx((first + second) / 2))
    assert [number for number, _ in curve(grip, ("trzsl",), "precision")] == [1, 2]
    assert curve(zero, ("trzsl",), "precision") == []
    text_parts = [part if isinstance(part, str) else to_text(part) for part in compare(compare_options)]
    assert any("zero_shot - grip  trzsl" in part for part in text_parts)
    with Image.open(tmp_path / "learners.png") as image:
        assert image.format == "PNG"
