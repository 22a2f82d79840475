"""A student and tuned prompts are classifiers too: the predictions of their evaluation, saved with the model."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from factories import FirstRun, Sandbox, evaluate_run, make_image_folder

import lgclip
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.places import EXPORT_SUFFIXES
from lgclip.cli.main import main
from lgclip.datasets.folder import Folder
from lgclip.encoder.packed import PackedEncoder

pytest_plugins = ("run_fixtures",)

STUDENT = (
    "method=student", "student.backbone=test_resnet", "student.image_size=32", "student.epochs=2",
    "student.batch_size=4", "student.select_on=last", "student.validation=0",
)  # fmt: skip
PROMPTS = (
    "method=prompt_tuning", "prompt_tuning.epochs=2", "prompt_tuning.warmup_epochs=1", "prompt_tuning.batch_size=8",
    "prompt_tuning.rounds=2", "prompt_tuning.shots=2", "prompt_tuning.tokens=3", "prompt_tuning.lr=0.02",
    "prompt_tuning=grip", "paradigm=ul",
)  # fmt: skip


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_equal_to_run(classifier: ImageClassifier, run: Path, sandbox: Sandbox) -> None:
    names = Folder(str(sandbox.synthetic_images)).class_names
    predictions = list(classifier.classify(sandbox.synthetic_images))
    rows = rows_of(run)
    assert [prediction.label for prediction in predictions] == [names[int(row["prediction"])] for row in rows]
    scores = [float(prediction.score or 0) for prediction in predictions]
    np.testing.assert_allclose(scores, [float(row["confidence"]) for row in rows], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_student_is_saved_with_its_weights(suffix: str, sandbox: Sandbox, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluate_run(sandbox, run, *STUDENT)
    assert_equal_to_run(lgclip.load(run), run, sandbox)
    place = lgclip.load(run).save(tmp_path / f"student{suffix}", with_encoder=True)

    shutil.rmtree(sandbox.store)
    shutil.rmtree(run / ".hydra")

    loaded = lgclip.load(place)
    assert_equal_to_run(loaded, run, sandbox)
    assert loaded.is_trained
    # It is saved again from its own files, not from those that it was trained to.
    loaded.save(tmp_path / "again")
    assert_equal_to_run(lgclip.load(tmp_path / "again"), run, sandbox)
    with pytest.raises(ValueError, match="was trained for its classes; train again with another list"):
        loaded.add("cross")
    with pytest.raises(ValueError, match="was trained for its classes"):
        loaded.remove(loaded.class_names[0])
    loaded.rename(loaded.class_names[0], "another name")
    assert "another name" in set(loaded.predict(sandbox.synthetic_images)) | set(loaded.class_names)


@pytest.mark.slow
def test_student_is_exported(sandbox: Sandbox, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluate_run(sandbox, run, *STUDENT, "student.center_crop=0.8")
    classifier = lgclip.load(run)
    for suffix in EXPORT_SUFFIXES:
        summary = classifier.export(tmp_path / f"student{suffix}")
        assert summary.agreement == 1
    data = Folder(str(sandbox.synthetic_images))
    transform = classifier.encoder.transform()
    about = json.loads(
        onnxruntime.InferenceSession(tmp_path / "student.onnx").get_modelmeta().custom_metadata_map["lgclip"]
    )
    assert [step["step"] for step in about["views"][0]["steps"]] == ["resize", "center_crop"]
    assert about["views"][0]["steps"][0] == {"step": "resize", "size": 40, "interpolation": "bilinear"}
    mean, std = (torch.tensor(about[name]).view(3, 1, 1) for name in ("mean", "std"))
    values = torch.stack([transform(data.image(index)) for index in range(len(data))])
    pixels = ((values * std + mean) * 255).round().to(torch.uint8).numpy()
    session = onnxruntime.InferenceSession(tmp_path / "student.onnx")
    probs: Any = session.run(["probs"], {"pixels": pixels})[0]
    np.testing.assert_allclose(probs, classifier.predict_proba(sandbox.synthetic_images), atol=1e-4)
    assert about["classes"] == list(classifier.class_names)


@pytest.mark.slow
def test_damaged_model_is_one_error(sandbox: Sandbox, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluate_run(sandbox, run, *STUDENT)
    place = lgclip.load(run).save(tmp_path / "student")
    weights = place / "model" / "student" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"model/student/model\.safetensors is missing or damaged"):
        lgclip.load(place)
    weights.unlink()
    with pytest.raises(ValueError, match=r"model/student/model\.safetensors is missing or damaged"):
        lgclip.load(place)


@pytest.mark.slow
@pytest.mark.parametrize("modality", ["text", "visual", "both"])
def test_tuned_prompts_are_saved(modality: str, sandbox: Sandbox, tmp_path: Path) -> None:
    run = tmp_path / "run"
    training = make_image_folder(tmp_path / "training", per_class=6)
    overrides = (*PROMPTS, f"prompt_tuning.modality={modality}", f"dataset.train_root={training}")
    evaluate_run(sandbox, run, *overrides)
    assert_equal_to_run(lgclip.load(run), run, sandbox)
    place = lgclip.load(run).save(tmp_path / "prompts")

    shutil.rmtree(sandbox.store)

    loaded = lgclip.load(place)
    assert_equal_to_run(loaded, run, sandbox)
    assert (place / "model").exists() == (modality != "text")
    loaded.save(tmp_path / "packed", with_encoder=True)
    packed = lgclip.load(tmp_path / "packed")
    assert isinstance(packed.encoder, PackedEncoder)
    assert_equal_to_run(packed, run, sandbox)
    if modality == "visual":
        for classifier in (loaded, packed):
            summary = classifier.export(tmp_path / "prompts.onnx")
            assert summary.agreement == 1.0
            assert summary.parameters > 3 * classifier.encoder.width()


def test_run_saves_its_classifier(
    first_run: FirstRun, sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    evaluate_run(sandbox, run, "save_classifier=true")
    assert_equal_to_run(lgclip.load(run / "classifier"), run, sandbox)
    capsys.readouterr()
    assert main(["show", str(run / "classifier")]) == 0
    assert "3 classes" in capsys.readouterr().out
    assert not (first_run.folder / "classifier").exists()
