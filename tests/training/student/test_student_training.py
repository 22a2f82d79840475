"""Tests student training: the same weights interrupted or not, on one device or two, and its metadata."""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import SUPPORT, read_tree, run_command
from multiprocess_runs import ROOT, start_process, wait_for_processes
from safetensors.torch import load_file
from student_factories import ColorPatches, build_context, build_stages, small_student, synthetic_patches, train_student

from lgclip.cli.store.entry_checks import fault_in
from lgclip.cli.store.inventory import walk
from lgclip.datasets.base import BadImageError
from lgclip.store.checkpoints import SafetensorsIO
from lgclip.training.loop import run_training
from lgclip.training.student.module import StudentModule
from lgclip.training.student.task import StudentSetup
from lgclip.training.student.train import StudentTraining


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "student.json").read_text())


def assert_equal(actual: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(actual[name], value)] == []


@pytest.fixture
def setup(tmp_path: Path) -> StudentSetup:
    return StudentSetup(
        small_student(real_fraction=0.5, ema=0.8),
        ColorPatches(),
        synthetic_patches(tmp_path / "drawn"),
        ColorPatches(8, "train"),
    )


@pytest.mark.slow
def test_student_is_saved_atomically(setup: StudentSetup, tmp_path: Path) -> None:
    folder = train_student(setup, tmp_path / "store")
    assert set(read_tree(tmp_path / "store")) == {
        f"students/{folder.name}/model.safetensors", f"students/{folder.name}/student.json"
    }  # fmt: skip
    metadata = about(folder)
    assert metadata["trained_on"] == {
        "real_fraction": 0.5, "synthetic": 24, "real": 24, "held_out": 6, "dataset": "patches", "split": "train",
        "images": "drawn",
    }  # fmt: skip
    assert [row["epoch"] for row in metadata["history"]] == [1, 2, 3]
    assert metadata["history"][-1]["loss"] < metadata["history"][0]["loss"]
    best = max(row["accuracy"] for row in metadata["history"])
    assert metadata["accuracy"] == best
    assert metadata["epoch"] == max(row["epoch"] for row in metadata["history"] if row["accuracy"] == best)
    assert StudentTraining.summary(folder).startswith(f"{folder}: ")


@pytest.mark.slow
def test_trained_student_is_reused(setup: StudentSetup, tmp_path: Path) -> None:
    folder = train_student(setup, tmp_path)
    before = read_tree(tmp_path)
    stages = build_stages()

    def refuse(**_: Any) -> Any:
        raise AssertionError("no trainer is needed")

    assert run_training(StudentTraining(setup), build_context(tmp_path, refuse, stages=stages)) == folder
    assert read_tree(tmp_path) == before
    assert [(stats.computed, stats.reused) for stats in stages.stage_stats] == [(0, 3)]


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("stop_step", [1, 3, 5, 8])
def test_resumed_student_matches_uninterrupted(
    stop_step: int, every: int, setup: StudentSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stops within an epoch, before its last step and after it, in nine steps of three epochs."""
    setup = StudentSetup(
        small_student(real_fraction=0.5, ema=0.8, checkpoint_every=every), *list(vars(setup).values())[1:]
    )
    uninterrupted = train_student(setup, tmp_path / "whole")
    step = StudentModule.training_step
    steps = []

    def cut(module: StudentModule, batch: Any, batch_idx: int) -> torch.Tensor:
        steps.append(batch.step)
        if batch.step == stop_step and steps.count(stop_step) == 1:
            raise RuntimeError("power cut")
        return step(module, batch, batch_idx)

    monkeypatch.setattr(StudentModule, "training_step", cut)
    torch.manual_seed(7)  # what the process did before must not matter
    with pytest.raises(RuntimeError, match="power cut"):
        train_student(setup, tmp_path / "cut")
    task = StudentTraining(setup)
    assert not task.is_complete(task.folder(tmp_path / "cut"))
    again = train_student(setup, tmp_path / "cut")
    assert steps == [*range(stop_step + 1), *range(stop_step // every * every, 9)]
    assert_equal(weights(again), weights(uninterrupted))
    assert about(again)["history"] == about(uninterrupted)["history"]
    assert not (again / "checkpoints").exists()


@pytest.mark.slow
def test_finished_training_is_saved_on_resume(
    setup: StudentSetup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = StudentSetup(small_student(checkpoint_every=1), *list(vars(setup).values())[1:])
    uninterrupted = train_student(setup, tmp_path / "whole")

    def fail(*_: Any) -> None:
        raise OSError("full")

    with monkeypatch.context() as patched:
        patched.setattr("lgclip.training.student.train.save_file", fail)
        with pytest.raises(OSError, match="full"):
            train_student(setup, tmp_path / "cut")
    again = train_student(setup, tmp_path / "cut")
    assert_equal(weights(again), weights(uninterrupted))
    assert about(again)["history"] == about(uninterrupted)["history"]


def test_weight_average_is_the_recursion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    step = StudentModule.optimizer_step

    def noted(module: StudentModule, *args: Any) -> None:
        step(module, *args)
        seen.append(module.network.get_parameter("head.weight").detach().clone())

    monkeypatch.setattr(StudentModule, "optimizer_step", noted)
    setup = StudentSetup(
        small_student(ema=0.7, select_on="last", epochs=2), ColorPatches(), synthetic_patches(tmp_path / "drawn")
    )
    folder = train_student(setup, tmp_path)
    average = seen[0]
    for value in seen[1:]:
        average = 0.7 * average + 0.3 * value
    torch.testing.assert_close(weights(folder)["head.weight"], average)


@pytest.mark.slow
def test_selection_criterion_is_reported(tmp_path: Path) -> None:
    images = synthetic_patches(tmp_path / "drawn")
    real = ColorPatches(8, "train")
    for values, on, held_out in (
        ({"select_on": "last", "validation": 0.0}, "last", 0),
        ({"select_on": "synthetic"}, "synthetic", 6),
        ({"select_on": "synthetic", "real_fraction": 1.0}, "training", 6),
        ({"select_on": "real"}, "real", 0),
    ):
        folder = train_student(StudentSetup(small_student(epochs=1, **values), ColorPatches(), images, real), tmp_path)
        metadata = about(folder)
        assert (metadata["selected_on"], metadata["trained_on"]["held_out"]) == (on, held_out)
        assert (metadata["accuracy"] is None) == (on == "last")
        assert ("selected on the real test images" in StudentTraining.summary(folder)) == (on == "real")


def test_key_depends_on_images_and_recipe(tmp_path: Path) -> None:
    images = synthetic_patches(tmp_path / "drawn")
    real = ColorPatches(8, "train")

    def key(setup: StudentSetup) -> str:
        return StudentTraining(setup).folder(tmp_path).name

    plain = key(StudentSetup(small_student(), ColorPatches(), images, real))
    assert plain == key(StudentSetup(small_student(checkpoint_every=7), ColorPatches(9), images, None)), (
        "nothing of this is used"
    )
    fewer = synthetic_patches(tmp_path / "drawn", per_class=9)
    variants = [
        StudentSetup(small_student(seed=1), ColorPatches(), images),
        StudentSetup(small_student(crop=(0.6, 1.0)), ColorPatches(), images),
        StudentSetup(small_student(), ColorPatches(), fewer),
        StudentSetup(small_student(real_fraction=0.5), ColorPatches(), images, real),
        StudentSetup(small_student(real_fraction=0.5), ColorPatches(), images, ColorPatches(9, "train")),
        StudentSetup(small_student(select_on="real"), ColorPatches(), images),
        StudentSetup(small_student(select_on="real"), ColorPatches(9), images),
    ]
    assert len({plain, *map(key, variants)}) == 8


def test_invalid_setup_is_rejected(tmp_path: Path) -> None:
    images = synthetic_patches(tmp_path / "drawn")
    other_classes = ("red", "green", "pink")
    with pytest.raises(ValueError, match=r"student\.real_fraction=0\.5 takes real training images"):
        StudentSetup(small_student(real_fraction=0.5), ColorPatches(), images)
    with pytest.raises(ValueError, match=r"student\.real_fraction=0\.5 takes synthetic images"):
        StudentSetup(small_student(real_fraction=0.5), ColorPatches(), None, ColorPatches())
    with pytest.raises(ValueError, match="its 3 classes are not the 3 of its training images; class 2 is"):
        StudentSetup(small_student(real_fraction=1.0), ColorPatches(), None, ColorPatches(names=other_classes))
    with pytest.raises(ValueError, match="generate them for that data set"):
        StudentSetup(small_student(), ColorPatches(names=other_classes), images)
    with pytest.raises(ValueError, match=r"student\.validation=0\.01 holds out none of 30 synthetic images"):
        train_student(StudentSetup(small_student(validation=0.01), ColorPatches(), images), tmp_path)


def test_unreadable_image_is_named(tmp_path: Path) -> None:
    images = synthetic_patches(tmp_path / "drawn")
    (tmp_path / "drawn" / "1-4.png").write_bytes(b"<html>")
    setup = StudentSetup(small_student(select_on="last", validation=0), ColorPatches(), images)
    with pytest.raises(BadImageError, match=r"1-4\.png cannot be read as an image"):
        train_student(setup, tmp_path / "store")
    task = StudentTraining(setup)
    assert not task.is_complete(task.folder(tmp_path / "store"))
    synthetic_patches(tmp_path / "drawn")
    assert task.is_complete(train_student(setup, tmp_path / "store")), "mended, the same command goes on"


def test_verify_finds_damaged_students(setup: StudentSetup, tmp_path: Path) -> None:
    folder = train_student(setup, tmp_path / "store")
    last = folder / "checkpoints" / "last.safetensors"
    SafetensorsIO().save_checkpoint({"step": 3}, last)
    items = list(walk(tmp_path / "store"))
    assert [(item.kind, fault_in(item)) for item in items] == [
        ("checkpoint", None),
        ("student", None),
        ("student", None),
    ]
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    last.write_bytes(b"cut")
    faults = {item.path.name: fault for item in walk(tmp_path / "store") if (fault := fault_in(item))}
    assert faults == {
        "model.safetensors": "its content is not what its student.json says",
        "last.safetensors": "its header cannot be read, or it is cut",
    }


def test_logged_values_match_the_history(setup: StudentSetup, tmp_path: Path) -> None:
    from factories import read_csv
    from lightning.pytorch.loggers import CSVLogger

    context = build_context(tmp_path / "store", logger=CSVLogger(tmp_path, "log"))
    folder = run_training(StudentTraining(setup), context)
    logged = read_csv(next((tmp_path / "log").rglob("metrics.csv")))
    history = about(folder)["history"]
    assert [float(row["accuracy"]) for row in logged] == pytest.approx([row["accuracy"] for row in history])
    assert [float(row["loss"]) for row in logged] == pytest.approx([row["loss"] for row in history])


@pytest.mark.multiprocess
def test_two_devices_match_one(tmp_path: Path) -> None:
    wait_for_processes([start_process([sys.executable, str(SUPPORT / "fit_students.py"), str(tmp_path)])])
    (alone,), (shared,) = (list((tmp_path / str(n) / "store" / "students").iterdir()) for n in (1, 2))
    assert alone.name == shared.name, "how many devices there are is in no key"
    assert (about(shared)["devices"], about(alone)["devices"]) == (2, 1)
    expected = weights(alone)
    for name, value in weights(shared).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=lambda m, key=name: f"{key}: {m}")
    losses = []
    for folder in (alone, shared):
        losses.append([row["loss"] for row in about(folder)["history"]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


STUDENT = (
    "method=student", "dataset=digits", "prompts_per_class=90", "student.real_fraction=1", "student.epochs=1",
    "student.checkpoint_every=3", "student.image_size=32", "student.batch_size=64", "trainer.accelerator=cpu",
    "logger=none",
)  # fmt: skip
KILLED_AT = f"""
import os, runpy, signal, sys
from lgclip.training.student.module import StudentModule
step = StudentModule.training_step
def kill(module, batch, batch_idx):
    if batch.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(module, batch, batch_idx)
StudentModule.training_step = kill
sys.argv[0] = {str(ROOT / "train.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.multiprocess
def test_killed_command_resumes_exactly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def command(store: str) -> list[str]:
        return [*STUDENT, f"paths.store={tmp_path / store}", f"hydra.run.dir={tmp_path / 'run'}"]

    wait_for_processes([start_process([sys.executable, "-c", KILLED_AT, *command("cut")])], status=-signal.SIGKILL)
    left = [name for name in read_tree(tmp_path / "cut") if "students" in name]
    assert [name.rpartition("/")[2] for name in left] == ["last.safetensors"]
    for store in ("whole", "cut"):
        run_command("train", *command(store))
    (uninterrupted,), (cut,) = (list((tmp_path / store / "students").iterdir()) for store in ("whole", "cut"))
    assert_equal(weights(cut), weights(uninterrupted))
    assert f"{cut}: " in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=lgclip"], "method=lgclip trains nothing: choose student, prompt_tuning"),
        (["method=student", "student=none"], "method=student needs a recipe"),
        (["method=student", "student.backbone=resnet51"], "timm has no such network"),
        (
            ["method=student", "student.real_fraction=1", "dataset=shapes", "dataset.split=train"],
            "has no training split",
        ),
    ],
)
def test_invalid_training_is_one_line(
    overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_command("train", *overrides, f"paths.store={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}", "logger=none")
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "students").exists()
