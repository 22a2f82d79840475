"""A run's classifier gives the predictions of its evaluation, from memory, from its folder and on any image."""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from factories import FirstRun, Sandbox, evaluate_run
from PIL import Image
from safetensors.torch import load_file, save_file

import lgclip
from lgclip.classifier.loading import load_classifier
from lgclip.classifier.parts import names_of
from lgclip.classifier.places import RECORD, SHEET, TENSORS
from lgclip.cli.main import main
from lgclip.datasets.folder import Folder
from lgclip.reporting.run_classifier import classifier_of

pytest_plugins = ("run_fixtures",)


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def images_of(sandbox: Sandbox) -> Folder:
    return Folder(str(sandbox.synthetic_images))


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("method=fusion", "scales=multi"),
        ("method=clip_text",),
        ("prototype=knn", "selection=medoid", "selection.keep=2"),
        ("prototype=affinity", "calibration=leave_one_out"),
        ("selection=text", "selection.keep=1", "scales=official_code"),
        ("selection=text", "selection.keep=1", "scales=multi"),
    ],
)
def test_predictions_are_those_of_the_run(overrides: tuple[str, ...], sandbox: Sandbox, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluate_run(sandbox, run, *overrides)
    data = images_of(sandbox)
    classifier_of(run).save(tmp_path / "saved")
    expected = [data.class_names[int(row["prediction"])] for row in rows_of(run)]
    for classifier in (classifier_of(run), lgclip.load(tmp_path / "saved"), lgclip.load(str(run))):
        predictions = list(classifier.classify(sandbox.synthetic_images, batch_size=5))

        assert [prediction.path for prediction in predictions] == [data.where(index) for index in range(len(data))]
        assert [prediction.label for prediction in predictions] == expected
        confidence = [float(row["confidence"]) for row in rows_of(run)]
        scores = [float(prediction.score or 0) for prediction in predictions]
        np.testing.assert_allclose(scores, confidence, atol=2e-5)


@pytest.fixture(scope="module")
def saved(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier") / "saved"
    classifier_of(first_run.folder).save(folder)
    return folder


def test_files_folders_patterns_and_pixels_agree(saved: Path, first_run: FirstRun) -> None:
    classifier = load_classifier(saved)
    data = images_of(first_run.sandbox)
    files = [data.original(index) for index in range(len(data))]
    expected = list(classifier.predict(files))

    assert list(classifier.predict(first_run.sandbox.synthetic_images)) == expected
    assert list(classifier.predict(str(first_run.sandbox.synthetic_images / "**" / "*.png"))) == expected
    opened = [data.image(index) for index in range(len(data))]
    assert list(classifier.predict(opened)) == expected
    assert list(classifier.predict([np.asarray(image) for image in opened])) == expected
    probabilities = classifier.predict_proba(files)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    assert list(classifier.classes_[probabilities.argmax(axis=1)]) == expected


def test_batches_do_not_change_a_score(saved: Path, first_run: FirstRun) -> None:
    classifier = load_classifier(saved)
    scores = [
        [prediction.score for prediction in classifier.classify(first_run.sandbox.synthetic_images, batch_size=size)]
        for size in (1, 5, 64)
    ]
    assert scores[0] == scores[1] == scores[2]


def test_unreadable_images_are_rows_with_an_error(saved: Path, first_run: FirstRun, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(first_run.sandbox.synthetic_images, folder)
    bad = sorted(folder.rglob("*.png"))[2]
    bad.write_bytes(b"<html>404</html>")
    classifier = load_classifier(saved)

    predictions = list(classifier.classify(folder))

    failed = [prediction for prediction in predictions if prediction.error]
    assert [(prediction.path, prediction.label) for prediction in failed] == [(str(bad), None)]
    assert "web page" in str(failed[0].error)
    assert len(predictions) == len(list(folder.rglob("*.png")))
    with pytest.raises(ValueError, match=r"cannot be read as an image \(.*web page.*leave it out"):
        classifier.predict(folder)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("https://example.org/cat.jpg", "addresses are not fetched"),
        ("nowhere.jpg", "no such file or folder"),
        ("*.nothing", "no file matches it"),
        (np.zeros((4, 4), np.uint8), r"an array of uint8 and shape \(4, 4\) is no image"),
        (np.zeros((4, 4, 3), np.float32), "an array of float32"),
    ],
)
def test_unusable_sources_are_one_error(source: str, message: str, saved: Path) -> None:
    with pytest.raises(ValueError, match=message):
        load_classifier(saved).classify(source)


def test_images_are_read_when_their_turn_comes(saved: Path) -> None:
    seconds = []

    def pictures() -> Iterator[Image.Image]:
        for shade in range(6):
            seconds.append(shade)
            yield Image.new("RGB", (40, 40), (shade, 255 - shade, 7))

    predictions = load_classifier(saved).classify(list(pictures()), batch_size=2)

    assert next(predictions).path == "image 0"
    assert len(list(predictions)) == 5


def test_damaged_classifiers_are_one_error(saved: Path, tmp_path: Path) -> None:
    def copy() -> Path:
        folder = tmp_path / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        return folder

    folder = copy()
    content = bytearray((folder / TENSORS).read_bytes())
    content[-3] ^= 4
    (folder / TENSORS).write_bytes(content)
    with pytest.raises(ValueError, match="is damaged: its checksum is wrong"):
        load_classifier(folder)
    folder = copy()
    (folder / TENSORS).unlink()
    with pytest.raises(ValueError, match="is missing or damaged"):
        load_classifier(folder)
    folder = copy()
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, "classes": ["a", "b", "c"]}))
    with pytest.raises(ValueError, match="is damaged: its checksum is wrong"):
        load_classifier(folder)
    with pytest.raises(ValueError, match="no classifier, it has no classifier"):
        load_classifier(tmp_path)


def test_other_weights_are_refused(saved: Path, first_run: FirstRun, tmp_path: Path) -> None:
    """Prototypes mean nothing in another encoder's space."""
    folder = first_run.sandbox.encoder
    weights = folder / "open_clip_model.safetensors"
    before = weights.read_bytes()
    save_file({name: -value for name, value in load_file(weights).items()}, weights)
    try:
        with pytest.raises(ValueError, match="its encoder has other weights"):
            load_classifier(saved)
    finally:
        weights.write_bytes(before)


def test_the_saved_folder_is_small_and_described(saved: Path, first_run: FirstRun) -> None:
    assert sorted(path.name for path in saved.iterdir()) == ["README.md", RECORD, TENSORS, SHEET]
    card = (saved / "README.md").read_text()
    assert "# Image classifier of 3 classes" in card
    assert all(name in card for name in images_of(first_run.sandbox).class_names)
    assert "text" not in load_file(saved / TENSORS), "images alone: no text prototype is kept"


def test_commands_save_and_classify(first_run: FirstRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tables" / "labels.csv"
    assert main(["save", str(first_run.folder), str(tmp_path / "saved")]) == 0
    assert "3 classes, 9 synthetic images" in capsys.readouterr().out

    pictures = str(first_run.sandbox.synthetic_images)
    assert main(["classify", str(tmp_path / "saved"), pictures, "-o", str(out), "--top", "2"]) == 0

    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    data = images_of(first_run.sandbox)
    assert [row["label"] for row in rows] == [
        data.class_names[int(row["prediction"])] for row in rows_of(first_run.folder)
    ]
    assert all(row["label"] == row["label_1"] and row["runner_up"] == row["label_2"] for row in rows)
    assert f"{out}: {len(data)} images classified" in capsys.readouterr().out
    assert main(["classify", str(first_run.folder), pictures]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(data)
    assert main(["classify", str(tmp_path), pictures]) == 1
    assert "no classifier" in capsys.readouterr().err


def test_equal_names_are_told_apart() -> None:
    assert names_of(["missile", "cat", "missile"]) == ("missile", "cat", "missile (2)")
