"""Students, shifted sets and membership in whole runs, against what a plain forward pass of the student says."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crowd import ROOT, finished, started
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score
from worlds import IMAGES_PER_CLASS, NAMES, World, judge, made, picture_folder

from lgclip.datasets.folder import Folder
from lgclip.encoder.student import StudentEncoder
from lgclip.methods.zero_shot import ZeroShot
from lgclip.prototypes import Support
from lgclip.retention import collect, used_by
from lgclip.rules import Mean
from lgclip.scales import SquareCrops
from lgclip.selection import First

pytest_plugins = ("run_fixtures",)

SMALL = (
    "method=student", "student.backbone=test_resnet", "student.image_size=32", "student.epochs=2",
    "student.batch_size=4", "student.select_on=last", "student.validation=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Training images of the same classes: other patches than the test images."""
    return picture_folder(tmp_path_factory.mktemp("training"), each=2 * IMAGES_PER_CLASS)


@pytest.fixture(scope="module")
def shifted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two of the three classes, in another order of images."""
    return picture_folder(tmp_path_factory.mktemp("shifted"), (NAMES[2], NAMES[0]), each=5)


def student_of(world: World) -> StudentEncoder:
    (folder,) = (world.store / "students").iterdir()
    return StudentEncoder(str(folder))


def logits(student: StudentEncoder, images: Folder) -> np.ndarray:
    """What the network says of some images, one at a time and without any store."""
    network, look = student.network().eval(), student.transform()
    with torch.inference_mode():
        return torch.cat([network(look(images.image(at))[None]) for at in range(len(images))]).numpy()


def told(world: World, folder: Path, training: Path, shifted: Path, *overrides: str) -> dict[str, Any]:
    sets = ("+dataset@ood.some=folder", f"ood.some.root={shifted}")
    return judge(world, folder, *SMALL, f"dataset.train_root={training}", *sets, "membership=true", *overrides)


def refused(capsys: pytest.CaptureFixture[str], said: str, world: World, folder: Path, *overrides: str) -> None:
    """A run ends with one line that says why."""
    with pytest.raises(SystemExit):
        judge(world, folder, *overrides)
    assert re.search(said, capsys.readouterr().err)
    assert not (folder / "result.json").exists()


def test_a_student_is_trained_judged_shifted_and_asked_what_it_remembers(
    world: World, tmp_path: Path, training: Path, shifted: Path
) -> None:
    result = told(world, tmp_path / "run", training, shifted, "student.mix=0.5")
    student, test = student_of(world), Folder(str(world.pictures))
    said = logits(student, test)
    label = np.array(test.labels)
    assert result["method"] == "student"
    assert set(result["beside"]) == {"lgclip", "clip_text"}
    assert result["metrics"]["top1"] == pytest.approx((said.argmax(axis=1) == label).mean())
    assert (
        result["student"]["trained_on"] | {"form": None, "mix": 0.5, "real": 9, "synthetic": 9}
        == result["student"]["trained_on"]
    ), "the first three of a class, as many as there are prompts"
    assert result["student"]["selected_on"] == "last"

    some = result["ood"]["some"]
    other = Folder(str(shifted))
    classes = [NAMES.index(name) for name in other.class_names]
    masked = logits(student, other)[:, classes]
    assert (some["n"], some["num_classes"]) == (10, 2)
    assert some["metrics"]["top1"] == pytest.approx((masked.argmax(axis=1) == np.array(other.labels)).mean())
    own = np.isin(label, classes)
    inside = np.array(classes)[said[own][:, classes].argmax(axis=1)] == label[own]
    assert some["in_distribution"]["top1"] == pytest.approx(inside.mean())
    assert some["shift"]["difference"] == pytest.approx(some["metrics"]["top1"] - inside.mean())

    members = [at for at in range(24) if at % 8 < 3]
    seen = Folder(str(training))
    chances = [log_softmax(logits(student, of), axis=1)[np.arange(len(of)), np.array(of.labels)] for of in (seen, test)]
    values, member = np.concatenate([chances[0][members], chances[1]]), np.repeat([1, 0], [9, 12])
    assert result["membership"]["auroc"] == pytest.approx(roc_auc_score(member, values), abs=0.02)  # a tie by rounding
    assert (result["membership"]["members"], result["membership"]["others"]) == (9, 12)

    again = told(world, tmp_path / "again", training, shifted, "student.mix=0.5")
    remade = {name: count for name, count in made(again).items() if count and not name.startswith("judging")}
    assert not remade, "all of it is stored"
    for part in ("metrics", "beside", "ood", "membership", "student"):
        assert again[part] == result[part]
    kept = list(collect(world.store, keep=[tmp_path / "run"], older_than=0.0))
    assert kept == [f"{world.store}: 0 files, 0 bytes would go"], "all of it is this run's"
    assert used_by([tmp_path / "run"], world.store, whole=True).features


def test_one_command_trains_and_judges_on_two_devices(
    fresh_world: World, tmp_path: Path, training: Path, shifted: Path
) -> None:
    """A backbone without batch statistics, so that the student is that of one device up to rounding."""
    asked = (*SMALL, "student.backbone=test_vit", "student.mix=0.5", f"dataset.train_root={training}")
    sets = ("+dataset@ood.some=folder", f"ood.some.root={shifted}", "membership=true")
    alone = judge(fresh_world, tmp_path / "alone", *asked, *sets)
    other = [*replace(fresh_world, store=tmp_path / "two").evaluating(), f"hydra.run.dir={tmp_path / 'run'}"]
    command = [sys.executable, str(ROOT / "evaluate.py"), *other, *asked, *sets, "trainer=ddp", "trainer.devices=2"]
    (said,) = finished([started(command)])
    assert said.count("out of distribution, some") == 1, "one table, not one a process"
    both = json.loads((tmp_path / "run" / "result.json").read_text())
    assert both["student"]["key"] == alone["student"]["key"]
    assert both["metrics"] == alone["metrics"]
    assert both["beside"] == alone["beside"]
    assert both["ood"] == alone["ood"]
    assert both["membership"]["auroc"] == pytest.approx(alone["membership"]["auroc"], abs=0.02)


def test_zero_shot_methods_are_judged_on_some_classes_by_the_prototypes_of_those(
    world: World, tmp_path: Path, shifted: Path
) -> None:
    sets = ("+dataset@ood.some=folder", f"ood.some.root={shifted}")
    result = judge(world, tmp_path / "run", *sets)
    alone = judge(world, tmp_path / "alone")
    assert result["metrics"] == alone["metrics"], "a shifted set changes nothing of the data set's own judgement"
    assert result["student"] is result["membership"] is None
    assert set(result["ood"]["some"]["beside"]) == {"clip_text", "fusion"}
    text = judge(world, tmp_path / "text", f"dataset.root={shifted}", "method=clip_text")
    assert result["ood"]["some"]["beside"]["clip_text"]["top1"] == text["metrics"]["top1"]
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == (tmp_path / "alone" / "predictions.csv").read_bytes()


def test_a_student_that_is_there_is_judged_where_it_knows_the_classes(
    world: World, tmp_path: Path, shifted: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = judge(world, tmp_path / "first", *SMALL)
    folder = student_of(world).folder
    again = judge(world, tmp_path / "again", *SMALL, f"ckpt={folder}", "student.seed=7")
    assert again["metrics"] == first["metrics"]
    assert again["student"]["key"] == Path(folder).name
    other = (*SMALL, f"ckpt={folder}", f"dataset.root={shifted}")
    refused(capsys, "ckpt=.*knows 3 classes.*not the 2 of dataset", world, tmp_path / "other", *other)
    refused(capsys, r"no student\.json", world, tmp_path / "none", *SMALL, f"ckpt={tmp_path}")


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("membership=true",), "membership=True is asked of a student: use method=student"),
        (("ckpt=somewhere",), "ckpt=somewhere is asked of a student or a prompt: use method=student"),
        (("method=student", "student=none"), "needs a recipe: student=tiny"),
        ((*SMALL, "student.backbone=no_such_net"), "no_such_net"),
        ((*SMALL, "student.mix=0.5"), "train_root"),
        ((*SMALL, "membership=true"), "train_root"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    world: World, tmp_path: Path, overrides: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, said, world, tmp_path / "run", *overrides)


def test_a_shifted_set_with_other_classes_is_refused_before_anything_is_made(
    fresh_world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = picture_folder(tmp_path / "strange", ("purple cow",))
    given = ("+dataset@ood.strange=folder", f"ood.strange.root={strange}")
    refused(capsys, r"ood\.strange: 1 of its 1 classes .*'purple cow'", fresh_world, tmp_path / "run", *given)
    assert not [path for path in fresh_world.store.rglob("*") if path.is_file()]


def test_the_report_says_what_a_student_was_chosen_by(world: World, tmp_path: Path) -> None:
    peeking = [one for one in SMALL if "select_on" not in one]
    judge(world, tmp_path / "run", *peeking, "student.select_on=real")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    from lgclip.exposure import exposure, verdicts
    from lgclip.result_table import table

    rows = exposure(result)
    (chosen,) = [row for row in rows if row["stage"] == "checkpoint"]
    assert (chosen["real_labels"], chosen["test_images"], chosen["decides"]) == (True, True, True)
    assert "labels of real images in the predictions of student: yes, by checkpoint" in verdicts(rows, "student")[0]
    assert "chosen by labels of the test images" in table(result)


def test_without_a_text_tower_the_text_baseline_is_left_out() -> None:
    given = {"prototype": Mean(), "selection": First(), "scales": SquareCrops()}
    method = ZeroShot("student", None, {"lgclip": 0.0, "clip_text": 1.0}, **given, has_text=False)
    assert method.names == ["student", "lgclip"]
    assert method.learns == "student"
    assert method.needs_images
    assert method.choices == {"student": {"learned": "student"}}
    assert Support(torch.eye(2), torch.tensor([0, 1]), 2).counts().tolist() == [1, 1]
