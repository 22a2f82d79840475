"""The figure of learners, and their table from runs of the real thing."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from worlds import IMAGES_PER_CLASS, World, judge, picture_folder, rows

from lgclip.learner_rows import read_learners
from lgclip.learners_figure import curve, spread
from lgclip.learners_table import learners
from lgclip.seed_rows import Figure

pytest_plugins = ("run_fixtures",)

SMALL = (
    "method=air", "paradigm=trzsl", "paradigm.seen=[0, 2]", "learner.epochs=2", "learner.warmup_epochs=1",
    "learner.batch_size=8", "learner.tokens=3", "learner.lr=0.02",
)  # fmt: skip


def test_the_table_tells_what_runs_have_predicted(world: World, tmp_path: Path) -> None:
    training = picture_folder(tmp_path / "training", each=2 * IMAGES_PER_CLASS)
    told = []
    for learner, seed in (("zero_shot", 0), ("grip", 0), ("grip", 1)):
        recipe = () if learner == "zero_shot" else ("learner.rounds=2", "learner.shots=2")
        run = (f"learner={learner}", f"learner.seed={seed}", f"dataset.train_root={training}", *recipe)
        told.append(judge(world, tmp_path / "sweep" / str(len(told)), *SMALL, *run))
    found = read_learners([tmp_path / "sweep"])
    assert [row.label for row in found.rows] == ["zero_shot", "grip"]
    assert [row.label for row in found.beside] == ["clip_text", "lgclip"]
    assert found.notes == ["zero_shot: trzsl has 1 of 2 repetitions, none of learner.seed=1"]
    zero, grip = found.rows
    for seed, at in ((0, 1), (1, 2)):
        lines = rows(tmp_path / "sweep" / str(at) / "predictions.csv")
        right = np.array([line["prediction"] == line["label"] for line in lines])
        unseen = np.array([line["label"] == "1" for line in lines])
        assert grip.of(Figure("top1", "trzsl"))[seed] == pytest.approx(right.mean())
        assert grip.of(Figure("unseen", "trzsl"))[seed] == pytest.approx(right[unseen].mean())
    assert zero.of(Figure("top1", "trzsl")) == {0: found.beside[0].of(Figure("top1", "trzsl"))[0]}, (
        "the sentences alone"
    )
    first, second = (one["learner"]["rounds"][2]["accuracy"] for one in told[1:])
    assert curve(grip, "trzsl", "accuracy")[2] == (2, pytest.approx((first + second) / 2))
    assert [number for number, _ in curve(grip, "trzsl", "precision")] == [1, 2]
    assert curve(zero, "trzsl", "precision") == []
    assert "| zero_shot - grip | trzsl | 1 |" in learners([tmp_path / "sweep"], figure=tmp_path / "learners.png")
    with Image.open(tmp_path / "learners.png") as picture:
        assert picture.format == "PNG"


@given(st.lists(st.floats(0, 200), max_size=10).map(sorted))
def test_letters_at_the_ends_of_curves_lie_apart(places: list[float]) -> None:
    moved = spread(places, 18, 200)
    assert all(b - a >= 18 - 1e-6 for a, b in pairwise(moved))
    assert all(place <= 200 for place in moved)
    assert len(moved) == len(places)
    if all(b - a >= 18 for a, b in pairwise(places)):
        assert moved == places
