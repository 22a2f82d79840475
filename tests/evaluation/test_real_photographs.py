"""Runs with real weights on real photographs: rejection, confidence, two encoders, and trainings of the tower."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import evaluate_run, read_csv
from real_photographs import CHECKPOINT, EXAMPLE, MODEL, ROOT, example_module, needs_real
from safetensors.torch import load_file

import lgclip
from lgclip.classifier.model import ImageClassifier
from lgclip.encoder.timm import Timm

pytestmark = [needs_real, pytest.mark.slow]

CLASSES = ("brick wall", "cat", "coins", "cup of coffee", "motorcycle", "rocket")
NEGATIVES = ("flower", "grass", "moon", "printed page")
UNKNOWN = ("retina", "tissue")
IMAGES_PER_CLASS = 5


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creates the example's folders with a few of its classes; prototypes also of negatives."""
    example = example_module()
    root = tmp_path_factory.mktemp("photographs")
    unknown = {name: example.UNKNOWN[name] for name in UNKNOWN}
    example.make_folders(root / "negatives", {name: example.CLASSES[name] for name in NEGATIVES}, {})
    example.make_folders(root, {name: example.CLASSES[name] for name in CLASSES}, unknown)
    for folder in (root / "negatives" / "prototypes").iterdir():
        folder.rename(root / "prototypes" / folder.name)
    return root


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real") / "store"


@pytest.fixture
def overrides(folders: Path, store: Path) -> list[str]:
    """Returns the overrides of a run on the photographs."""
    return [
        "dataset=folder", f"dataset.root={folders / 'photographs'}", "diffuser=folder",
        f"diffuser.root={folders / 'prototypes'}", f"prompts_per_class={IMAGES_PER_CLASS}", "precision=fp32",
        f"paths.store={store}", "trainer.accelerator=cpu", "logger=none",
    ]  # fmt: skip


def classifier_with(folders: Path, store: Path, *rejection: str) -> ImageClassifier:
    settings = [
        f"diffuser.root={folders / 'prototypes'}", f"prompts_per_class={IMAGES_PER_CLASS}", f"paths.store={store}",
        "precision=fp32", "trainer.accelerator=cpu", *rejection,
    ]  # fmt: skip
    return lgclip.build(folders / "names.txt", encoder="efficientnet_lite0", diffuser="folder", overrides=settings)


def test_accuracy_and_confidence(overrides: list[str], tmp_path: Path) -> None:
    result = evaluate_run(overrides, tmp_path / "run", "encoder=efficientnet_lite0")
    assert result["n"] == len(CLASSES) * IMAGES_PER_CLASS
    assert result["metrics"]["top1"] >= 0.9, "chance is 0.17"
    assert result["baseline"] is None, "there is no text tower"
    confidence = result["confidence"]
    assert confidence["fitted_on"] == "synthetic images"
    # The temperature is the encoder's own, not that of CLIP: with 0.01 nearly all of these are above 0.99.
    assert 0.02 < confidence["temperature"] < 0.5
    assert confidence["nll"] < np.log(len(CLASSES)) / 3
    assert confidence["ece"] < 0.25
    values = [float(row["confidence"]) for row in read_csv(tmp_path / "run" / "predictions.csv")]
    assert 1 / len(CLASSES) < np.mean(values) < 0.99


@pytest.mark.parametrize("kind", ["positives", "negatives"])
def test_unknown_photographs_are_rejected(kind: str, folders: Path, store: Path, tmp_path: Path) -> None:
    from sklearn.metrics import roc_auc_score

    settings = [f"rejection={kind}"]
    if kind == "negatives":
        (tmp_path / "negatives.txt").write_text("\n".join(NEGATIVES))
        settings += [f"rejection.names={tmp_path / 'negatives.txt'}", "rejection.images_per_name=5"]
    classifier = classifier_with(folders, store, *settings)
    fitted = classifier.rejector
    assert fitted is not None
    assert fitted.negatives == (kind == "negatives") * len(NEGATIVES) * 5

    known = list(classifier.classify(sorted((folders / "photographs").rglob("*.png"))))
    unknown = list(classifier.classify(sorted((folders / "unknown").glob("*.png"))))
    assert len(unknown) == len(UNKNOWN) * 5
    rejected = np.mean([bool(prediction.rejected) for prediction in unknown])
    accepted = np.mean([not prediction.rejected for prediction in known])
    assert rejected >= 0.9
    assert accepted >= 1 - rejected + 0.25, "a threshold that rejects everything would keep none"
    labels = [True] * len(known) + [False] * len(unknown)
    assert roc_auc_score(labels, [prediction.score or 0.0 for prediction in known + unknown]) >= 0.9
    assert np.mean([prediction.label == Path(prediction.path).parent.name for prediction in known]) >= 0.9


def test_better_encoder_of_two_gets_the_weight(overrides: list[str], tmp_path: Path) -> None:
    """The first encoder, with the text tower, knows simple shapes only."""
    result = evaluate_run(overrides, tmp_path / "run", "encoder=tiny", "encoder2=efficientnet_lite0", "method=lgclip")
    accuracies = {name: metrics["top1"] for name, metrics in result["baselines"].items()}
    alone = evaluate_run(overrides, tmp_path / "alone", "encoder=efficientnet_lite0")
    assert accuracies["second_encoder"] == alone["metrics"]["top1"]
    assert accuracies["clip_text"] < 0.5
    assert result["metrics"]["top1"] >= max(0.9, accuracies["first_encoder"])
    classifier = lgclip.load(tmp_path / "run")
    rule: Any = classifier.choice.rule.fixed(classifier.support)  # pyright: ignore
    assert rule.weights.max() <= 0.3, "the weight of the first encoder"


@pytest.mark.parametrize("student", ["probe", "finetune"])
def test_tower_is_trained(student: str, overrides: list[str], tmp_path: Path, store: Path) -> None:
    rate = {"probe": 0.01, "finetune": 0.001}[student]
    result = evaluate_run(
        overrides, tmp_path / "run", "encoder=efficientnet_lite0", "encoder.image_size=96", "method=student",
        f"student={student}", "student.epochs=6", "student.batch_size=10", f"student.lr={rate}",
    )  # fmt: skip
    assert result["metrics"]["top1"] >= 0.8, "chance is 0.17"
    trained = load_file(store / "students" / result["student"]["key"] / "model.safetensors")
    tower = Timm(MODEL, checkpoint=CHECKPOINT).tower().body.state_dict()
    changed = [name for name, weight in tower.items() if not torch.equal(trained[f"body.{name}"], weight)]
    if student == "probe":
        assert not changed
    else:
        assert {"conv_stem.weight", "blocks.3.1.conv_dw.weight", "conv_head.weight", "bn2.running_mean"} <= set(changed)


def test_example_runs_as_its_page_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    block = page.partition("```bash\n")[2].partition("```")[0]
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert len(commands) == 5
    for place in ("examples", "evaluate.py", "conf"):
        (tmp_path / place).symlink_to(ROOT / place)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    printed = []
    for program, *arguments in commands:
        start = [sys.executable, "-m", "lgclip"] if program == "lgclip" else [sys.executable]
        completed = subprocess.run([*start, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert completed.returncode == 0, completed.stderr[-3000:]
        printed.append(completed.stdout)
    _, measured, evaluated, built, _ = printed
    accuracy = re.search(r"photographs: (\d+) of 70 correct", measured)
    assert accuracy, measured
    assert int(accuracy[1]) >= 60
    result = json.loads((tmp_path / "outputs" / "real" / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"]["top1"] == pytest.approx(int(accuracy[1]) / 70), "one classifier, two ways"
    assert "lgclip" in evaluated
    assert "14 classes" in built
    rows = read_csv(tmp_path / "outputs" / "real" / "unknown.csv")
    assert [row["rejected"] for row in rows] == ["true"] * 30
    counts = re.search(r"kept (\d+) of 70 photographs, rejected 30 of 30 unknown images", measured)
    assert counts
    assert int(counts[1]) >= 35
