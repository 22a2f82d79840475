"""Tests students, shifted sets and membership in complete runs against a plain forward pass."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import IMAGES_PER_CLASS, NAMES, Sandbox, computed_counts, evaluate_run, make_image_folder
from multiprocess_runs import ROOT, start_process, wait_for_processes
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score

from lgclip.cli.store.gc import collect, used_by
from lgclip.datasets.folder import Folder
from lgclip.encoder.scales import SquareCrops
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Mean
from lgclip.methods.selection import First
from lgclip.methods.zero_shot import ZeroShot
from lgclip.reporting.console_table import table
from lgclip.reporting.data_exposure import conclusions, exposure
from lgclip.reporting.run_folder import Run
from lgclip.training.student.encoder import StudentEncoder

pytest_plugins = ("run_fixtures",)

SMALL = (
    "method=student", "student.backbone=test_resnet", "student.image_size=32", "student.epochs=2",
    "student.batch_size=4", "student.select_on=last", "student.validation=0",
)  # fmt: skip


@pytest.fixture(scope="module")
def training_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creates training images of the same classes with other patches than the test images."""
    return make_image_folder(tmp_path_factory.mktemp("training"), per_class=2 * IMAGES_PER_CLASS)


@pytest.fixture(scope="module")
def shifted_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creates images of two of the three classes in another order."""
    return make_image_folder(tmp_path_factory.mktemp("shifted"), (NAMES[2], NAMES[0]), per_class=5)


def load_student(sandbox: Sandbox) -> StudentEncoder:
    (folder,) = (sandbox.store / "students").iterdir()
    return StudentEncoder(str(folder))


def logits(student: StudentEncoder, images: Folder) -> np.ndarray:
    """Returns the network's logits, one image at a time and without a store."""
    network = student.network().eval()
    look = student.transform()
    with torch.inference_mode():
        return torch.cat([network(look(images.image(index))[None]) for index in range(len(images))]).numpy()


def evaluate_student(sandbox: Sandbox, folder: Path, training: Path, shifted: Path, *overrides: str) -> dict[str, Any]:
    sets = ("+dataset@ood.some=folder", f"ood.some.root={shifted}")
    return evaluate_run(sandbox, folder, *SMALL, f"dataset.train_root={training}", *sets, "membership=true", *overrides)


def assert_rejected(
    capsys: pytest.CaptureFixture[str], message: str, sandbox: Sandbox, folder: Path, *overrides: str
) -> None:
    """Checks that a run ends with a matching error and no result."""
    with pytest.raises(SystemExit):
        evaluate_run(sandbox, folder, *overrides)
    assert re.search(message, capsys.readouterr().err)
    assert not (folder / "result.json").exists()


@pytest.mark.slow
def test_student_run_reports_shift_and_membership(
    sandbox: Sandbox, tmp_path: Path, training_folder: Path, shifted_folder: Path
) -> None:
    result = evaluate_student(sandbox, tmp_path / "run", training_folder, shifted_folder, "student.real_fraction=0.5")
    student = load_student(sandbox)
    test = Folder(str(sandbox.synthetic_images))
    expected_logits = logits(student, test)
    label = np.array(test.labels)
    assert result["method"] == "student"
    assert set(result["baselines"]) == {"lgclip", "clip_text"}
    assert result["metrics"]["top1"] == pytest.approx((expected_logits.argmax(axis=1) == label).mean())
    assert (
        result["student"]["trained_on"] | {"form": None, "real_fraction": 0.5, "real": 9, "synthetic": 9}
        == result["student"]["trained_on"]
    ), "the first three of a class, as many as there are prompts"
    assert result["student"]["selected_on"] == "last"

    shifted_result = result["ood"]["some"]
    shifted_dataset = Folder(str(shifted_folder))
    classes = [NAMES.index(name) for name in shifted_dataset.class_names]
    masked = logits(student, shifted_dataset)[:, classes]
    assert (shifted_result["n"], shifted_result["num_classes"]) == (10, 2)
    assert shifted_result["metrics"]["top1"] == pytest.approx(
        (masked.argmax(axis=1) == np.array(shifted_dataset.labels)).mean()
    )
    is_known = np.isin(label, classes)
    inside = np.array(classes)[expected_logits[is_known][:, classes].argmax(axis=1)] == label[is_known]
    assert shifted_result["in_distribution"]["top1"] == pytest.approx(inside.mean())
    assert shifted_result["shift"]["difference"] == pytest.approx(shifted_result["metrics"]["top1"] - inside.mean())

    members = [index for index in range(24) if index % 8 < 3]
    seen = Folder(str(training_folder))
    probs = [
        log_softmax(logits(student, dataset), axis=1)[np.arange(len(dataset)), np.array(dataset.labels)]
        for dataset in (seen, test)
    ]
    values = np.concatenate([probs[0][members], probs[1]])
    member = np.repeat([1, 0], [9, 12])
    assert result["membership"]["auroc"] == pytest.approx(roc_auc_score(member, values), abs=0.02)  # a tie by rounding
    assert (result["membership"]["members"], result["membership"]["non_members"]) == (9, 12)

    again = evaluate_student(sandbox, tmp_path / "again", training_folder, shifted_folder, "student.real_fraction=0.5")
    remade = {
        name: count for name, count in computed_counts(again).items() if count and not name.startswith("evaluation")
    }
    assert not remade, "all of it is stored"
    for part in ("metrics", "baselines", "ood", "membership", "student"):
        assert again[part] == result[part]
    lines = list(collect(sandbox.store, keep=[tmp_path / "run"], older_than=0.0))
    assert lines[-1] == f"{sandbox.store}: 0 files, 0 bytes would go", "all of it is this run's"
    assert used_by([tmp_path / "run"], sandbox.store, full=True).features


@pytest.mark.multiprocess
def test_student_trains_and_evaluates_on_two_devices(
    fresh_sandbox: Sandbox, tmp_path: Path, training_folder: Path, shifted_folder: Path
) -> None:
    """Trains a backbone without batch statistics, so that two devices give one device's student up to rounding."""
    settings = (
        *SMALL,
        "student.backbone=test_vit",
        "student.real_fraction=0.5",
        f"dataset.train_root={training_folder}",
    )
    sets = ("+dataset@ood.some=folder", f"ood.some.root={shifted_folder}", "membership=true")
    alone = evaluate_run(fresh_sandbox, tmp_path / "alone", *settings, *sets)
    other_sandbox = [
        *replace(fresh_sandbox, store=tmp_path / "two").evaluate_overrides(),
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    command = [
        sys.executable,
        str(ROOT / "evaluate.py"),
        *other_sandbox,
        *settings,
        *sets,
        "trainer=ddp",
        "trainer.devices=2",
    ]
    (output,) = wait_for_processes([start_process(command)])
    assert output.count("out of distribution, some") == 1, "one table, not one a process"
    both = json.loads((tmp_path / "run" / "result.json").read_text())
    assert both["student"]["key"] == alone["student"]["key"]
    assert both["metrics"] == alone["metrics"]
    assert both["baselines"] == alone["baselines"]
    assert both["ood"] == alone["ood"]
    assert both["membership"]["auroc"] == pytest.approx(alone["membership"]["auroc"], abs=0.02)


@pytest.mark.slow
def test_zero_shot_uses_prototypes_of_a_class_subset(sandbox: Sandbox, tmp_path: Path, shifted_folder: Path) -> None:
    sets = ("+dataset@ood.some=folder", f"ood.some.root={shifted_folder}")
    result = evaluate_run(sandbox, tmp_path / "run", *sets)
    alone = evaluate_run(sandbox, tmp_path / "alone")
    assert result["metrics"] == alone["metrics"], "a shifted set changes nothing of the data set's own judgement"
    assert result["student"] is result["membership"] is None
    assert set(result["ood"]["some"]["baselines"]) == {"clip_text", "fusion"}
    text = evaluate_run(sandbox, tmp_path / "text", f"dataset.root={shifted_folder}", "method=clip_text")
    assert result["ood"]["some"]["baselines"]["clip_text"]["top1"] == text["metrics"]["top1"]
    assert (tmp_path / "run" / "predictions.csv").read_bytes() == (tmp_path / "alone" / "predictions.csv").read_bytes()


@pytest.mark.slow
def test_trained_student_is_evaluated_on_known_classes(
    sandbox: Sandbox, tmp_path: Path, shifted_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = evaluate_run(sandbox, tmp_path / "first", *SMALL)
    folder = load_student(sandbox).folder
    again = evaluate_run(sandbox, tmp_path / "again", *SMALL, f"checkpoint={folder}", "student.seed=7")
    assert again["metrics"] == first["metrics"]
    assert again["student"]["key"] == Path(folder).name
    overrides = (*SMALL, f"checkpoint={folder}", f"dataset.root={shifted_folder}")
    assert_rejected(
        capsys, "checkpoint=.*knows 3 classes.*not the 2 of dataset", sandbox, tmp_path / "other", *overrides
    )
    assert_rejected(capsys, r"no student\.json", sandbox, tmp_path / "none", *SMALL, f"checkpoint={tmp_path}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("membership=true",), "membership=True is asked of a student: use method=student"),
        (("checkpoint=.",), "checkpoint=. is asked of a student or a prompt: use method=student"),
        (("method=student", "student=none"), "needs a recipe: student=tiny"),
        ((*SMALL, "student.backbone=no_such_net"), "no_such_net"),
        ((*SMALL, "student.real_fraction=0.5"), "train_root"),
        ((*SMALL, "membership=true"), "train_root"),
    ],
)
def test_invalid_settings_are_one_line(
    sandbox: Sandbox, tmp_path: Path, overrides: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_rejected(capsys, message, sandbox, tmp_path / "run", *overrides)


def test_shifted_dataset_with_other_classes_is_rejected(
    fresh_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign = make_image_folder(tmp_path / "strange", ("purple cow", "green cow"))
    overrides = ("+dataset@ood.strange=folder", f"ood.strange.root={foreign}")
    assert_rejected(
        capsys, r"ood\.strange: 2 of its 2 classes .*'purple cow'", fresh_sandbox, tmp_path / "run", *overrides
    )
    assert not [path for path in fresh_sandbox.store.rglob("*") if path.is_file()]


def test_report_names_the_selection_criterion(sandbox: Sandbox, tmp_path: Path) -> None:
    peeking = [override for override in SMALL if "select_on" not in override]
    evaluate_run(sandbox, tmp_path / "run", *peeking, "student.select_on=real")
    result = Run.read(tmp_path / "run").result
    rows = exposure(result)
    (chosen,) = [row for row in rows if row.stage == "checkpoint"]
    assert (chosen.real_labels, chosen.test_images, chosen.decides) == (True, True, True)
    assert "labels of real images in the predictions of student: yes, by checkpoint" in conclusions(rows, "student")[0]
    assert "chosen by labels of the test images" in table(result)


def test_text_baseline_requires_a_text_tower() -> None:
    parts = {"prototype": Mean(), "selection": First(), "scales": SquareCrops()}
    method = ZeroShot("student", None, {"lgclip": 0.0, "clip_text": 1.0}, "a recipe", **parts, has_text=False)
    assert method.names == ["student", "lgclip"]
    assert method.trained == "a recipe"
    assert method.needs_images
    assert SupportSet(torch.eye(2), torch.tensor([0, 1]), 2).counts().tolist() == [1, 1]
