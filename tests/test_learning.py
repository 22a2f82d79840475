"""Students are trained: interrupted or not, on one device or two, to the same weights; and what is told of them."""

import json
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from crowd import ROOT, finished, started
from safetensors.torch import load_file
from student_worlds import Patches, drawn, one_cpu, small, stages_of, taught
from worlds import call, tree

from lgclip.checkpoint import SafetensorsIO
from lgclip.datasets.base import BadImageError
from lgclip.inspection import fault_in
from lgclip.inventory import walk
from lgclip.learning import folder_of, is_trained, learn, told
from lgclip.lesson import Lesson
from lgclip.methods.student import Learner


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "student.json").read_text())


def assert_equal(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert [name for name, value in wanted.items() if not torch.equal(found[name], value)] == []


@pytest.fixture
def lesson(tmp_path: Path) -> Lesson:
    return Lesson(small(mix=0.5, ema=0.8), Patches(), drawn(tmp_path / "drawn"), Patches(8, "train"))


def test_a_student_learns_and_is_whole_and_alone_in_its_folder(lesson: Lesson, tmp_path: Path) -> None:
    folder = taught(lesson, tmp_path / "store")
    assert set(tree(tmp_path / "store")) == {
        f"students/{folder.name}/model.safetensors", f"students/{folder.name}/student.json"
    }  # fmt: skip
    said = about(folder)
    assert said["trained_on"] == {
        "mix": 0.5, "synthetic": 24, "real": 24, "held_out": 6, "dataset": "patches", "split": "train",
        "images": "drawn",
    }  # fmt: skip
    assert [row["epoch"] for row in said["history"]] == [1, 2, 3]
    assert said["history"][-1]["loss"] < said["history"][0]["loss"]
    best = max(row["accuracy"] for row in said["history"])
    assert said["accuracy"] == best
    assert said["epoch"] == max(row["epoch"] for row in said["history"] if row["accuracy"] == best)
    assert told(folder).startswith(f"{folder}: ")


def test_a_student_that_is_there_is_not_trained_again(lesson: Lesson, tmp_path: Path) -> None:
    folder = taught(lesson, tmp_path)
    before, stages = tree(tmp_path), stages_of()

    def refuse(**_: Any) -> Any:
        raise AssertionError("no trainer is needed")

    assert learn(stages, refuse, lesson, tmp_path) == folder
    assert tree(tmp_path) == before
    assert [(account.made, account.reused) for account in stages.accounts] == [(0, 3)]


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("at", [1, 3, 5, 8])
def test_an_interrupted_student_ends_with_the_very_weights_of_an_unbroken_one(
    at: int, every: int, lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine steps of three epochs: within an epoch, before its last step and after it; average and best so far too."""
    lesson = Lesson(small(mix=0.5, ema=0.8, checkpoint_every=every), *list(vars(lesson).values())[1:])
    whole = taught(lesson, tmp_path / "whole")
    step, steps = Learner.training_step, []

    def cut(learner: Learner, batch: Any, batch_idx: int) -> torch.Tensor:
        steps.append(batch.step)
        if batch.step == at and steps.count(at) == 1:
            raise RuntimeError("power cut")
        return step(learner, batch, batch_idx)

    monkeypatch.setattr(Learner, "training_step", cut)
    torch.manual_seed(7)  # what the process did before must not matter
    with pytest.raises(RuntimeError, match="power cut"):
        taught(lesson, tmp_path / "cut")
    assert not is_trained(folder_of(lesson, tmp_path / "cut"))
    again = taught(lesson, tmp_path / "cut")
    assert steps == [*range(at + 1), *range(at // every * every, 9)]
    assert_equal(weights(again), weights(whole))
    assert about(again)["history"] == about(whole)["history"]
    assert not (again / "checkpoints").exists()


def test_one_whose_training_had_just_ended_is_finished_from_its_last_checkpoint(
    lesson: Lesson, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = Lesson(small(checkpoint_every=1), *list(vars(lesson).values())[1:])
    whole = taught(lesson, tmp_path / "whole")

    def fail(*_: Any) -> None:
        raise OSError("full")

    with monkeypatch.context() as patched:
        patched.setattr("lgclip.learning.save_file", fail)
        with pytest.raises(OSError, match="full"):
            taught(lesson, tmp_path / "cut")
    again = taught(lesson, tmp_path / "cut")
    assert_equal(weights(again), weights(whole))
    assert about(again)["history"] == about(whole)["history"]


def test_the_average_of_the_weights_is_the_recursion_over_the_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    step = Learner.optimizer_step

    def noted(learner: Learner, *args: Any) -> None:
        step(learner, *args)
        seen.append(learner.network.get_parameter("head.weight").detach().clone())

    monkeypatch.setattr(Learner, "optimizer_step", noted)
    lesson = Lesson(small(ema=0.7, select_on="last", epochs=2), Patches(), drawn(tmp_path / "drawn"))
    folder = taught(lesson, tmp_path)
    average = seen[0]
    for value in seen[1:]:
        average = 0.7 * average + 0.3 * value
    torch.testing.assert_close(weights(folder)["head.weight"], average)


def test_what_it_is_selected_on_is_told(tmp_path: Path) -> None:
    images, real = drawn(tmp_path / "drawn"), Patches(8, "train")
    for values, on, held in (
        ({"select_on": "last", "validation": 0.0}, "last", 0),
        ({"select_on": "synthetic"}, "synthetic", 6),
        ({"select_on": "synthetic", "mix": 1.0}, "training", 6),
        ({"select_on": "real"}, "real", 0),
    ):
        folder = taught(Lesson(small(epochs=1, **values), Patches(), images, real), tmp_path)
        said = about(folder)
        assert (said["selected_on"], said["trained_on"]["held_out"]) == (on, held)
        assert (said["accuracy"] is None) == (on == "last")
        assert ("selected on the real test images" in told(folder)) == (on == "real")


def test_a_key_depends_on_the_images_that_are_used_and_on_the_recipe(tmp_path: Path) -> None:
    images, real = drawn(tmp_path / "drawn"), Patches(8, "train")

    def key(lesson: Lesson) -> str:
        return folder_of(lesson, tmp_path).name

    plain = key(Lesson(small(), Patches(), images, real))
    assert plain == key(Lesson(small(checkpoint_every=7), Patches(9), images, None)), "nothing of this is used"
    fewer = drawn(tmp_path / "drawn", each=9)
    others = [
        Lesson(small(seed=1), Patches(), images),
        Lesson(small(crop=(0.6, 1.0)), Patches(), images),
        Lesson(small(), Patches(), fewer),
        Lesson(small(mix=0.5), Patches(), images, real),
        Lesson(small(mix=0.5), Patches(), images, Patches(9, "train")),
        Lesson(small(select_on="real"), Patches(), images),
        Lesson(small(select_on="real"), Patches(9), images),
    ]
    assert len({plain, *map(key, others)}) == 8


def test_a_lesson_without_its_images_or_of_other_classes_is_refused(tmp_path: Path) -> None:
    images, others = drawn(tmp_path / "drawn"), ("red", "green", "pink")
    with pytest.raises(ValueError, match=r"student\.mix=0\.5 takes real training images"):
        Lesson(small(mix=0.5), Patches(), images)
    with pytest.raises(ValueError, match=r"student\.mix=0\.5 takes synthetic images"):
        Lesson(small(mix=0.5), Patches(), None, Patches())
    with pytest.raises(ValueError, match="its 3 classes are not the 3 of its training images; class 2 is"):
        Lesson(small(mix=1.0), Patches(), None, Patches(names=others))
    with pytest.raises(ValueError, match="draw them for that data set"):
        Lesson(small(), Patches(names=others), images)
    with pytest.raises(ValueError, match=r"student\.validation=0\.01 holds out none of 30 synthetic images"):
        taught(Lesson(small(validation=0.01), Patches(), images), tmp_path)


def test_an_image_that_cannot_be_read_is_named_and_nothing_is_left_half_done(tmp_path: Path) -> None:
    images = drawn(tmp_path / "drawn")
    (tmp_path / "drawn" / "1-4.png").write_bytes(b"<html>")
    lesson = Lesson(small(select_on="last", validation=0), Patches(), images)
    with pytest.raises(BadImageError, match=r"1-4\.png cannot be read as an image"):
        taught(lesson, tmp_path / "store")
    assert not is_trained(folder_of(lesson, tmp_path / "store"))
    drawn(tmp_path / "drawn")
    assert is_trained(taught(lesson, tmp_path / "store")), "mended, the same command goes on"


def test_a_store_with_a_student_is_verified_and_a_damaged_one_is_found(lesson: Lesson, tmp_path: Path) -> None:
    folder = taught(lesson, tmp_path / "store")
    last = folder / "checkpoints" / "last.safetensors"
    SafetensorsIO().save_checkpoint({"step": 3}, last)
    items = list(walk(tmp_path / "store"))
    assert [(item.kind, fault_in(item)) for item in items] == [
        ("checkpoint", None),
        ("student", None),
        ("student", None),
    ]
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    last.write_bytes(b"cut")
    found = {item.path.name: fault for item in walk(tmp_path / "store") if (fault := fault_in(item))}
    assert found == {
        "model.safetensors": "its content is not what its student.json says",
        "last.safetensors": "its header cannot be read, or it is cut",
    }


def test_what_a_logger_is_told_is_the_history(lesson: Lesson, tmp_path: Path) -> None:
    from lightning.pytorch.loggers import CSVLogger
    from worlds import rows

    folder = learn(stages_of(), one_cpu, lesson, tmp_path / "store", logger=CSVLogger(tmp_path, "log"))
    logged = rows(next((tmp_path / "log").rglob("metrics.csv")))
    history = about(folder)["history"]
    assert [float(row["accuracy"]) for row in logged] == pytest.approx([row["accuracy"] for row in history])
    assert [float(row["loss"]) for row in logged] == pytest.approx([row["loss"] for row in history])


def test_one_device_and_two_train_the_same_student_but_for_rounding(tmp_path: Path) -> None:
    finished([started([sys.executable, str(Path(__file__).with_name("fit_students.py")), str(tmp_path)])])
    (alone,), (shared,) = (list((tmp_path / str(n) / "store" / "students").iterdir()) for n in (1, 2))
    assert alone.name == shared.name, "how many devices there are is in no key"
    assert (about(shared)["devices"], about(alone)["devices"]) == (2, 1)
    wanted = weights(alone)
    for name, value in weights(shared).items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-5, msg=lambda m, at=name: f"{at}: {m}")
    losses = [[row["loss"] for row in about(folder)["history"]] for folder in (alone, shared)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


STUDENT = (
    "method=student", "dataset=digits", "prompts_per_class=90", "student.mix=1", "student.epochs=1",
    "student.checkpoint_every=3", "student.image_size=32", "student.batch_size=64", "trainer.accelerator=cpu",
    "logger=none",
)  # fmt: skip
KILLED_AT = f"""
import os, runpy, signal, sys
from lgclip.methods.student import Learner
step = Learner.training_step
def kill(learner, batch, batch_idx):
    if batch.step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(learner, batch, batch_idx)
Learner.training_step = kill
sys.argv[0] = {str(ROOT / "train.py")!r}
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_killed_command_that_is_given_again_ends_with_the_very_weights_of_an_unbroken_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(store: str) -> list[str]:
        return [*STUDENT, f"paths.store={tmp_path / store}", f"hydra.run.dir={tmp_path / 'run'}"]

    finished([started([sys.executable, "-c", KILLED_AT, *command("cut")])], status=-signal.SIGKILL)
    left = [name for name in tree(tmp_path / "cut") if "students" in name]
    assert [name.rpartition("/")[2] for name in left] == ["last.safetensors"]
    for store in ("whole", "cut"):
        call("train", *command(store))
    (whole,), (cut,) = (list((tmp_path / store / "students").iterdir()) for store in ("whole", "cut"))
    assert_equal(weights(cut), weights(whole))
    assert f"{cut}: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=lgclip"], "method=lgclip trains nothing: choose student, air"),
        (["method=student", "student=none"], "method=student needs a recipe"),
        (["method=student", "student.backbone=resnet51"], "timm has no such network"),
        (["method=student", "student.mix=1", "dataset=shapes", "dataset.split=train"], "has no training split"),
    ],
)
def test_what_cannot_be_trained_is_said_in_a_line(
    overrides: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        call("train", *overrides, f"paths.store={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}", "logger=none")
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "students").exists()
