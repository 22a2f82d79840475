"""Curves of learning: what a run's logger is told while it learns is what a later run's is told of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from prompt_worlds import ground_of, hidden_of, lesson_of
from student_worlds import Patches, drawn, one_cpu, small, stages_of
from wandb_records import Offline, offline_runs
from worlds import IMAGES_PER_CLASS, World, call, judge, picture_folder, rows

from lgclip.learning import learn
from lgclip.lesson import Lesson
from lgclip.prompt_learning import learn_prompts

pytest_plugins = ("run_fixtures", "wandb_fixtures")
pytestmark = pytest.mark.usefixtures("no_account")

PROMPTS = (
    "method=air", "learner=grip", "paradigm=trzsl", "paradigm.seen=[0, 2]", "learner.epochs=2", "learner.rounds=2",
    "learner.warmup_epochs=1", "learner.batch_size=8", "learner.shots=2", "learner.tokens=3", "learner.lr=0.02",
)  # fmt: skip
STUDENT = (
    "method=student", "student.backbone=test_resnet", "student.image_size=32", "student.epochs=3",
    "student.batch_size=4", "student.select_on=last", "student.validation=0.34",
)  # fmt: skip
Point = tuple[int, dict[str, float]]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The pool: other patches than the test images."""
    return f"dataset.train_root={picture_folder(tmp_path_factory.mktemp('training'), each=2 * IMAGES_PER_CLASS)}"


def curve(run: Offline) -> list[Point]:
    """What was logged of losses, in order; W&B's own figures begin with a line."""
    found = []
    for history in run.of("history"):
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        if "loss" in items:
            step = items.pop("trainer/global_step")
            found.append((step, {name: value for name, value in items.items() if not name.startswith("_")}))
    return found


def logged(world: World, folder: Path, *overrides: str) -> tuple[dict[str, Any], list[Point]]:
    result = judge(world, folder, "logger=wandb", *overrides)
    (run,) = offline_runs(folder)
    assert run.exit_code == 0
    assert run.summary["top1"] == result["metrics"]["top1"]
    if by_kind := (result["learner"] or {}).get("by_kind"):
        assert run.summary["by_kind/air/harmonic"] == by_kind["air"]["harmonic"]
    return result, curve(run)


def test_rounds_are_logged_while_prompts_are_learnt_and_whenever_they_are_judged(
    world: World, tmp_path: Path, training: str
) -> None:
    result, first = logged(world, tmp_path / "first", *PROMPTS, training)
    rounds = result["learner"]["rounds"][1:]
    losses = [loss for row in rounds for loss in row["losses"]]
    assert [(step, told["loss"]) for step, told in first] == list(enumerate(losses, 1))
    for at, row in zip((1, 3), rounds, strict=True):
        assert first[at][1] == {"loss": row["losses"][-1], **{k: v for k, v in row.items() if k != "losses"}}
        assert set(first[at - 1][1]) == {"loss"}
    assert logged(world, tmp_path / "again", *PROMPTS, training)[1] == first, "learnt by the run before"
    given = f"ckpt={world.store / 'prompts_learned' / result['learner']['key']}"
    assert logged(world, tmp_path / "given", *PROMPTS, given)[1] == first, "learnt elsewhere"


def test_epochs_are_logged_while_a_student_learns_and_whenever_it_is_judged(
    world: World, tmp_path: Path, training: str
) -> None:
    result, first = logged(world, tmp_path / "first", *STUDENT, training)
    history, steps = result["student"]["history"], result["student"]["steps"]
    assert [step for step, _ in first] == [steps // 3, 2 * steps // 3, steps]
    assert [told["epoch"] for _, told in first] == [1, 2, 3]
    for name in ("loss", "lr", "accuracy"):
        assert [told[name] for _, told in first] == history[name]
    assert logged(world, tmp_path / "again", *STUDENT, training)[1] == first
    (folder,) = (world.store / "students").glob(result["student"]["key"])
    assert logged(world, tmp_path / "given", *STUDENT, f"ckpt={folder}")[1] == first


def test_what_train_has_learnt_is_in_the_csv_of_the_run_that_judges_it(
    world: World, tmp_path: Path, training: str
) -> None:
    asked = (*PROMPTS, "learner.seed=1", training)
    call("train", *world.evaluating(), *asked, "logger=csv", f"hydra.run.dir={tmp_path / 'train'}")
    result = judge(world, tmp_path / "run", *asked, "logger=csv")
    learnt, told = (rows(next((tmp_path / name).rglob("metrics.csv"))) for name in ("train", "run"))
    assert [{name: row[name] for name in learnt[0]} for row in told[:-1]] == learnt
    assert float(told[-1]["top1"]) == result["metrics"]["top1"]


def test_a_learning_that_was_interrupted_is_logged_from_its_first_round(tmp_path: Path) -> None:
    ground = ground_of(tmp_path)
    lesson, hidden = lesson_of(tmp_path, ground), hidden_of(ground)
    fits: list[Trainer] = []

    def stopping(*args: Any, **given: Any) -> Trainer:
        fits.append(one_cpu(*args, **given))
        if len(fits) == 3:  # the first has no round to run
            raise KeyboardInterrupt
        return fits[-1]

    def learnt(make_trainer: Any, store: str, log: str) -> list[dict[str, str]]:
        logger = CSVLogger(tmp_path, log)
        learn_prompts(stages_of(), make_trainer, lesson, tmp_path / store, hidden=hidden, logger=logger)
        return rows(next((tmp_path / log).rglob("metrics.csv")))

    whole = learnt(one_cpu, "whole", "unbroken")
    with pytest.raises(KeyboardInterrupt):
        learnt(stopping, "broken", "before")
    assert learnt(one_cpu, "broken", "after") == whole


class Cut(Callback):
    """Ends a training after its eighth step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 8:
            raise RuntimeError("power cut")


def test_a_student_that_was_interrupted_is_logged_from_its_first_epoch(tmp_path: Path) -> None:
    lesson = Lesson(small(checkpoint_every=1), Patches(), drawn(tmp_path / "drawn"))

    def learnt(store: str, log: str, *more: Callback) -> list[dict[str, str]]:
        def make_trainer(callbacks: list[Callback], **given: Any) -> Trainer:
            return one_cpu(callbacks=[*callbacks, *more], **given)

        learn(stages_of(), make_trainer, lesson, tmp_path / store, logger=CSVLogger(tmp_path, log))
        return rows(next((tmp_path / log).rglob("metrics.csv")))

    whole = learnt("whole", "unbroken")
    assert len(whole) == 3
    with pytest.raises(RuntimeError, match="power cut"):
        learnt("broken", "before", Cut())
    assert learnt("broken", "after") == whole
