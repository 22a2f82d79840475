"""Tests the dashboard's thumbnails: images of the runs, within the size limit."""

import base64
import io
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import IMAGES_PER_CLASS, NAMES, SENTENCES, FirstRun, Sandbox, evaluate_run, make_image_folder
from PIL import Image

from lgclip.evaluation.diagnostics import MEASURES
from lgclip.reporting.dashboard import thumbnails as module
from lgclip.reporting.dashboard.collect import collect
from lgclip.reporting.dashboard.schema import Page
from lgclip.reporting.dashboard.thumbnails import PER_PAIR, SIDE, Thumbnails, data_uri
from lgclip.reporting.restore import restore_run
from lgclip.reporting.run_folder import Run

pytest_plugins = ("run_fixtures",)


def page_of(*places: Path, images: int = 10) -> Page:
    return collect(places, title="", reference=None, images=images)


def decoded(uri: str) -> Image.Image:
    kind, _, data = uri.partition(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(data, validate=True)))


def most_similar(uri: str, synthetic_images: list[Image.Image]) -> int:
    """Returns the index of the image most similar to a thumbnail."""
    thumbnail = decoded(uri)
    far = [
        np.abs(np.asarray(thumbnail, np.float64) - np.asarray(image.convert("RGB").resize(thumbnail.size))).mean()
        for image in synthetic_images
    ]
    return int(np.argmin(far))


@pytest.mark.parametrize("size", [(600, 400), (30, 900), (48, 40), (1, 1)])
def test_thumbnail_keeps_its_aspect_ratio(size: tuple[int, int]) -> None:
    thumbnail = decoded(data_uri(Image.new("RGB", size, (200, 30, 30))))
    scale = min(1, SIDE / max(size))
    assert thumbnail.size == tuple(max(1, round(side * scale)) for side in size)
    assert np.abs(np.asarray(thumbnail.convert("RGB"), int) - (200, 30, 30)).max() < 12


def test_thumbnails_are_shared_and_limited() -> None:
    rng = np.random.default_rng(0)
    noise = [Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(9)]
    size = len(data_uri(noise[0]))
    thumbs = Thumbnails(room=4 * size)
    keys = [thumbs.add("drawn", str(index), lambda index=index: noise[index]) for index in (0, 1, 0, *range(9))]
    assert keys[0] == keys[2] == keys[3] == ["0"]
    assert thumbs.full
    assert keys[-1] == []
    assert 3 <= len(thumbs.uris) <= 4
    assert sum(map(len, thumbs.uris.values())) <= 4 * size
    assert thumbs.add("drawn", "0", lambda: noise[0]) == ["0"], "what is there is used even so"
    assert thumbs.add("real", "0", lambda: noise[1]) == [], "the same id of another source is another picture"


def test_page_matches_a_real_run(first_run: FirstRun) -> None:
    (run,) = page_of(first_run.folder, images=0)["runs"]
    result = first_run.result
    for key in ("metrics", "baselines", "paired", "detectable", "confidence", "stages"):
        assert run[key] == result[key], "the template's prompts took no tokens"
        assert run[key]
    assert run["correlations"] == result["diagnostics"]
    assert {**run["cost"], "stages": result["cost"]["stages"]} == result["cost"]
    assert list(run["diagnostics"]) == list(MEASURES)
    assert sum(row["right"] for row in run["classes"]) == round(result["metrics"]["top1"] * result["n"])


def test_gallery_has_the_images_of_each_prompt(first_run: FirstRun) -> None:
    page = page_of(first_run.folder)
    assert page["notes"] == []
    synthetic_images = restore_run(Run.read(first_run.folder)).synthetic_images
    assert synthetic_images is not None
    synthetic_images = [synthetic_images.image(index) for index in range(len(synthetic_images.prompts))]
    (run,) = page["runs"]
    displayed = []
    for c, name in enumerate(NAMES):
        assert [entry["prompt"] for entry in run["gallery"][c]] == [s.replace("{}", name) for s in SENTENCES[:3]]
        displayed += [key for entry in run["gallery"][c] for key in entry["images"]]
    assert [most_similar(page["thumbs"][key], synthetic_images) for key in displayed] == list(range(9))


def test_confused_pair_has_mistakes_and_images(first_run: FirstRun) -> None:
    page = page_of(first_run.folder)
    run = page["runs"][0]
    opened = Run.read(first_run.folder)
    dataset = restore_run(opened).dataset
    predictions = opened.predictions
    synthetic_images = [dataset.image(index) for index in range(len(dataset))]
    assert run["confusions"]
    for pair in run["confusions"]:
        wrong = np.flatnonzero((predictions.label == pair["true"]) & (predictions.prediction == pair["predicted"]))
        surest = sorted(wrong.tolist(), key=lambda index: (-predictions.confidence[index], index))[:PER_PAIR]
        assert [most_similar(page["thumbs"][key], synthetic_images) for key in pair["images"]] == surest
        for keys, c in ((pair["of_true"], pair["true"]), (pair["of_predicted"], pair["predicted"])):
            assert keys == [key for entry in run["gallery"][c] for key in entry["images"]][:PER_PAIR]


def test_runs_share_thumbnails(sandbox: Sandbox, first_run: FirstRun, tmp_path: Path) -> None:
    evaluate_run(sandbox, tmp_path / "runs" / "one", "prompts_per_class=1")
    evaluate_run(sandbox, tmp_path / "runs" / "three")
    first, three = page_of(tmp_path / "runs")["runs"]
    page = page_of(tmp_path / "runs")
    assert first["gallery"] == [generated[:1] for generated in three["gallery"]]
    assert len(page["thumbs"]) <= 3 * len(NAMES) + IMAGES_PER_CLASS * len(NAMES)
    assert len(set(page["thumbs"].values())) == len(page["thumbs"])


def test_images_per_class_are_limited(first_run: FirstRun) -> None:
    (run,) = page_of(first_run.folder, images=2)["runs"]
    assert [sum(len(entry["images"]) for entry in generated) for generated in run["gallery"]] == [2, 2, 2]
    page = page_of(first_run.folder, images=0)
    assert (page["thumbs"], page["runs"][0]["gallery"], page["notes"]) == ({}, [], [])


def test_images_beyond_the_limit_are_reported(first_run: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    room = sum(map(len, page_of(first_run.folder)["thumbs"].values())) // 2
    monkeypatch.setattr(module, "ROOM", room)
    page = page_of(first_run.folder)
    assert sum(map(len, page["thumbs"].values())) <= room
    assert page["notes"] == [
        f"Some pictures are left out: the page holds {len(page['thumbs'])}, the first of each run and class."
    ]
    (run,) = page["runs"]
    used = []
    for generated in run["gallery"]:
        for entry in generated:
            for key in entry["images"]:
                used.append(key)
    used += [key for pair in run["confusions"] for key in (*pair["images"], *pair["of_true"], *pair["of_predicted"])]
    assert set(used) == page["thumbs"].keys(), "no key without a picture, no picture without a place"


def test_gallery_entries_are_limited(first_run: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ENTRIES", 3)
    page = page_of(first_run.folder)
    assert [sum(len(entry["images"]) for entry in generated) for generated in page["runs"][0]["gallery"]] == [1, 1, 1]
    assert len(page["notes"]) == 1


@pytest.fixture
def own_sandbox(empty_sandbox: Sandbox, tmp_path: Path) -> Sandbox:
    """Returns a sandbox with a run in it whose images and store may be damaged."""
    sandbox = replace(
        empty_sandbox, synthetic_images=make_image_folder(tmp_path / "pictures"), store=tmp_path / "store"
    )
    evaluate_run(sandbox, tmp_path / "run")
    return sandbox


def gallery_keys(page: Page) -> list[str]:
    return [key for album in page["runs"][0]["gallery"] for entry in album for key in entry["images"]]


def mistake_counts(page: Page) -> int:
    return sum(len(pair["images"]) for pair in page["runs"][0]["confusions"])


def test_deleted_images_are_noted(own_sandbox: Sandbox, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store" / "images")
    page = page_of(tmp_path / "run")
    assert gallery_keys(page) == []
    assert mistake_counts(page) > 0, "the test images are shown all the same"
    (note,) = page["notes"]
    assert note.startswith("9 pictures of 1 run (pictures, lgclip) could not be read: ")
    assert "images" in note
    shutil.rmtree(own_sandbox.synthetic_images)
    page = page_of(tmp_path / "run")
    (note,) = page["notes"]
    assert note.startswith("Pictures of 1 run (pictures, lgclip) are not shown: ")
    assert "pictures" in note
    assert page["runs"][0]["metrics"] is not None


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_lost_synthetic_image_costs_itself_alone(own_sandbox: Sandbox, tmp_path: Path, damage: str) -> None:
    before = page_of(tmp_path / "run")
    lost = sorted((tmp_path / "store" / "images").rglob("*.png"))[0]
    if damage == "missing":
        lost.unlink()
    else:
        lost.write_bytes(lost.read_bytes()[:60])
    page = page_of(tmp_path / "run")
    assert len(gallery_keys(page)) == len(gallery_keys(before)) - 1
    assert mistake_counts(page) == mistake_counts(before)
    (note,) = page["notes"]
    assert note.startswith("1 picture of 1 run (pictures, lgclip) could not be read: ")


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_lost_test_image_costs_no_synthetic_image(own_sandbox: Sandbox, tmp_path: Path, damage: str) -> None:
    before = page_of(tmp_path / "run")
    run = Run.read(tmp_path / "run")
    restored = restore_run(run)
    wrong = int(np.flatnonzero(run.predictions.rank > 0)[0])
    lost = Path(str(restored.dataset.where(wrong)))
    (file,) = [path for path in own_sandbox.synthetic_images.rglob("*.png") if str(path).endswith(str(lost))]
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:60])
    page = page_of(tmp_path / "run")
    assert len(gallery_keys(page)) == len(gallery_keys(before)) == 9
    true = int(run.predictions.label[wrong])
    for pair, pair_before in zip(page["runs"][0]["confusions"], before["runs"][0]["confusions"], strict=True):
        if pair["true"] != true:
            assert len(pair["images"]) == len(pair_before["images"])
        elif damage == "damaged" and len(pair_before["images"]) < PER_PAIR:
            assert len(pair["images"]) >= len(pair_before["images"]) - 1
    (note,) = page["notes"]
    assert note == (
        "Pictures of test images of pictures, lgclip may be missing: the data set has changed since the run; only "
        "images that were evaluated are shown"
    )


def test_replaced_test_image_is_not_shown(own_sandbox: Sandbox, tmp_path: Path) -> None:
    for path in own_sandbox.synthetic_images.rglob("*.png"):
        Image.new("RGB", (48, 48), (1, 2, 3 + len(path.name))).save(path)
    page = page_of(tmp_path / "run")
    assert mistake_counts(page) == 0, "images of the data set that the run never evaluated"
    assert len(gallery_keys(page)) == 9


def test_feature_map_shows_principal_components(first_run: FirstRun) -> None:
    (data,) = page_of(first_run.folder)["runs"]
    feature_map = data["feature_map"]
    assert feature_map is not None
    run = Run.read(first_run.folder)
    restored = restore_run(run)
    real, synthetic = (
        restored.scales.fuse(restored.streams[name].features()).double().numpy() for name in ("real", "synthetic")
    )
    images = np.concatenate([real, synthetic])
    center = images.mean(axis=0)
    _, values, axes = np.linalg.svd(images - center, full_matrices=False)
    labels = np.array(restored.streams["synthetic"].labels)
    means = np.stack([synthetic[labels == c].mean(axis=0) for c in range(len(NAMES))])
    prototypes = means / np.linalg.norm(means, axis=1, keepdims=True)
    expected = (np.concatenate([images, prototypes]) - center) @ axes[:2].T
    displayed = np.column_stack([feature_map["x"], feature_map["y"]])
    signs = np.sign((displayed * expected).sum(axis=0))
    np.testing.assert_allclose(displayed, expected * signs, atol=1e-3)
    np.testing.assert_allclose(feature_map["explained"], (values**2 / (values**2).sum())[:2], atol=1e-3)
    assert feature_map["kind"] == ["real"] * len(real) + ["synthetic"] * len(synthetic) + ["prototype"] * len(NAMES)
    assert feature_map["class_index"] == [*run.predictions.label.tolist(), *labels.tolist(), *range(len(NAMES))]
    assert feature_map["correct"][: len(real)] == (run.predictions.rank == 0).tolist()


def test_feature_map_needs_the_stored_features(own_sandbox: Sandbox, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "store" / "features")
    page = page_of(tmp_path / "run")
    assert page["runs"][0]["feature_map"] is None
    assert len(gallery_keys(page)) == 9
    (note,) = page["notes"]
    assert note.startswith("Maps of features of 1 run (pictures, lgclip) are not shown: ")


def test_maps_beyond_the_limit_are_reported(first_run: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POINTS", 0)
    page = page_of(first_run.folder)
    assert page["runs"][0]["feature_map"] is None
    assert page["notes"] == [
        "Maps of features of 1 run (pictures, lgclip) are not shown: the page holds those of the first runs"
    ]
