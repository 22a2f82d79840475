"""Tests training curves: a later run logs what the training run logged."""

import json
from pathlib import Path
from typing import Any

import pytest
from factories import IMAGES_PER_CLASS, Sandbox, evaluate_run, make_image_folder, read_csv, run_command
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from prompt_factories import hidden_labels_of, setup_of, tuning_data_of
from student_factories import ColorPatches, build_context, one_cpu, small_student, synthetic_patches
from wandb_records import OfflineRun, offline_runs

from lgclip.training.loop import run_training
from lgclip.training.prompt_tuning.train import PromptTraining
from lgclip.training.student.task import StudentSetup
from lgclip.training.student.train import StudentTraining

pytest_plugins = ("run_fixtures", "wandb_fixtures")
pytestmark = pytest.mark.usefixtures("no_account")

PROMPTS = (
    "method=prompt_tuning", "prompt_tuning=grip", "paradigm=trzsl", "paradigm.seen_classes=[0, 2]",
    "prompt_tuning.epochs=2", "prompt_tuning.rounds=2",
    "prompt_tuning.warmup_epochs=1", "prompt_tuning.batch_size=8", "prompt_tuning.shots=2",
    "prompt_tuning.tokens=3", "prompt_tuning.lr=0.02",
)  # fmt: skip
STUDENT = (
    "method=student", "student.backbone=test_resnet", "student.image_size=32", "student.epochs=3",
    "student.batch_size=4", "student.select_on=last", "student.validation=0.34",
)  # fmt: skip
Point = tuple[int, dict[str, float]]


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Creates the pool, with other patches than the test images."""
    return (
        f"dataset.train_root={make_image_folder(tmp_path_factory.mktemp('training'), per_class=2 * IMAGES_PER_CLASS)}"
    )


def curve(run: OfflineRun) -> list[Point]:
    """Returns the logged losses in order; W&B's own values begin with an underscore."""
    points = []
    for history in run.records_of("history"):
        items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in history.item}
        if "loss" in items:
            step = items.pop("trainer/global_step")
            points.append((step, {name: value for name, value in items.items() if not name.startswith("_")}))
    return points


def logged(sandbox: Sandbox, folder: Path, *overrides: str) -> tuple[dict[str, Any], list[Point]]:
    result = evaluate_run(sandbox, folder, "logger=wandb", *overrides)
    (run,) = offline_runs(folder)
    assert run.exit_code == 0
    assert run.summary["top1"] == result["metrics"]["top1"]
    if by_type := (result["prompt_tuning"] or {}).get("by_type"):
        assert run.summary["by_type/prompt_tuning/harmonic"] == by_type["prompt_tuning"]["harmonic"]
    return result, curve(run)


@pytest.mark.slow
def test_prompt_rounds_are_logged(sandbox: Sandbox, tmp_path: Path, training: str) -> None:
    result, first = logged(sandbox, tmp_path / "first", *PROMPTS, training)
    rounds = result["prompt_tuning"]["rounds"][1:]
    losses = [loss for row in rounds for loss in row["losses"]]
    assert [(step, values["loss"]) for step, values in first] == list(enumerate(losses, 1))
    for index, row in zip((1, 3), rounds, strict=True):
        assert first[index][1] == {"loss": row["losses"][-1], **{k: v for k, v in row.items() if k != "losses"}}
        assert set(first[index - 1][1]) == {"loss"}
    assert logged(sandbox, tmp_path / "again", *PROMPTS, training)[1] == first, "learned by the run before"
    checkpoint = f"checkpoint={sandbox.store / 'prompts_learned' / result['prompt_tuning']['key']}"
    assert logged(sandbox, tmp_path / "given", *PROMPTS, checkpoint)[1] == first, "learned elsewhere"


@pytest.mark.slow
def test_student_epochs_are_logged(sandbox: Sandbox, tmp_path: Path, training: str) -> None:
    result, first = logged(sandbox, tmp_path / "first", *STUDENT, training)
    history = result["student"]["history"]
    steps = result["student"]["steps"]
    assert [step for step, _ in first] == [steps // 3, 2 * steps // 3, steps]
    assert [values["epoch"] for _, values in first] == [1, 2, 3]
    for name in ("loss", "lr", "accuracy"):
        assert [values[name] for _, values in first] == history[name]
    assert logged(sandbox, tmp_path / "again", *STUDENT, training)[1] == first
    (folder,) = (sandbox.store / "students").glob(result["student"]["key"])
    assert logged(sandbox, tmp_path / "given", *STUDENT, f"checkpoint={folder}")[1] == first


@pytest.mark.slow
def test_training_curve_is_in_the_evaluation_log(sandbox: Sandbox, tmp_path: Path, training: str) -> None:
    overrides = (*PROMPTS, "prompt_tuning.seed=1", training)
    run_command("train", *sandbox.evaluate_overrides(), *overrides, "logger=csv", f"hydra.run.dir={tmp_path / 'train'}")
    result = evaluate_run(sandbox, tmp_path / "run", *overrides, "logger=csv")
    learned_prompts, logged_rows = (read_csv(next((tmp_path / name).rglob("metrics.csv"))) for name in ("train", "run"))
    assert [{name: row[name] for name in learned_prompts[0]} for row in logged_rows[:-1]] == learned_prompts
    assert float(logged_rows[-1]["top1"]) == result["metrics"]["top1"]


def test_resumed_prompt_tuning_logs_every_round(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path)
    setup = setup_of(tmp_path, tuning_data)
    hidden = hidden_labels_of(tuning_data)
    fits: list[Trainer] = []

    def stopping(*args: Any, **kwargs: Any) -> Trainer:
        fits.append(one_cpu(*args, **kwargs))
        if len(fits) == 3:  # the first has no round to run
            raise KeyboardInterrupt
        return fits[-1]

    def learned_prompts(make_trainer: Any, store: str, log: str) -> list[dict[str, str]]:
        logger = CSVLogger(tmp_path, log)
        run_training(PromptTraining(setup, hidden), build_context(tmp_path / store, make_trainer, logger=logger))
        return read_csv(next((tmp_path / log).rglob("metrics.csv")))

    uninterrupted = learned_prompts(one_cpu, "whole", "unbroken")
    with pytest.raises(KeyboardInterrupt):
        learned_prompts(stopping, "broken", "before")
    assert learned_prompts(one_cpu, "broken", "after") == uninterrupted


class Cut(Callback):
    """Stops a training after its eighth step."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 8:
            raise RuntimeError("power cut")


@pytest.mark.slow
def test_resumed_student_logs_every_epoch(tmp_path: Path) -> None:
    setup = StudentSetup(small_student(checkpoint_every=1), ColorPatches(), synthetic_patches(tmp_path / "drawn"))

    def learned_prompts(store: str, log: str, *extra: Callback) -> list[dict[str, str]]:
        def make_trainer(callbacks: list[Callback], **kwargs: Any) -> Trainer:
            return one_cpu(callbacks=[*callbacks, *extra], **kwargs)

        context = build_context(tmp_path / store, make_trainer, logger=CSVLogger(tmp_path, log))
        run_training(StudentTraining(setup), context)
        return read_csv(next((tmp_path / log).rglob("metrics.csv")))

    uninterrupted = learned_prompts("whole", "unbroken")
    assert len(uninterrupted) == 3
    with pytest.raises(RuntimeError, match="power cut"):
        learned_prompts("broken", "before", Cut())
    assert learned_prompts("broken", "after") == uninterrupted
