"""Tests the audit: a planted test image is found, and the table shows what each stage saw."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import IMAGES_PER_CLASS, NAMES, FirstRun, Sandbox, evaluate_run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dct

from lgclip.reporting.data_exposure import conclusions, exposure
from lgclip.reporting.leakage_audit import _cosines, _hash_similarity, _Space, audit, audit_text, image_hash
from lgclip.reporting.result_schema import from_json
from lgclip.reporting.run_folder import Run

pytest_plugins = ("run_fixtures",)

PER_CLASS = 3


def patches(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    colors = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(colors).resize(size, Image.Resampling.BICUBIC)


def synthetic_folder(root: Path) -> Path:
    """Creates images of every class that are unlike any test image."""
    for c, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            patches(1000 + 10 * c + i).save(root / name / f"{i}_{name}.png")
    return root


def audited(sandbox: Sandbox, images: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    """Audits a run on a folder of images."""
    base_overrides = [override for override in sandbox.evaluate_overrides() if not override.startswith("diffuser.")]
    evaluate_run(
        base_overrides,
        folder,
        "diffuser=folder",
        f"diffuser.root={images}",
        f"prompts_per_class={PER_CLASS}",
        *overrides,
    )
    return audit(Run.read(folder))


def test_other_images_are_not_duplicates(sandbox: Sandbox, tmp_path: Path) -> None:
    report = audited(sandbox, synthetic_folder(tmp_path / "images"), tmp_path / "run")
    duplicates = report["duplicates"]
    assert (duplicates["synthetic_images"], duplicates["test_images"]) == (
        PER_CLASS * len(NAMES),
        IMAGES_PER_CLASS * len(NAMES),
    )
    assert duplicates["found"]["pixels"] == 0
    assert all("pixels" not in pair["found_by"] for pair in duplicates["pairs"])


@pytest.mark.parametrize("scales", ["single", "multi"])
def test_copied_test_image_is_found(sandbox: Sandbox, tmp_path: Path, scales: str) -> None:
    images = synthetic_folder(tmp_path / "images")
    planted = sandbox.synthetic_images / "red_star" / "2.png"
    with Image.open(planted) as image:
        image.save(images / "green ring" / "1_green ring.png")  # under another class's name
    report = audited(sandbox, images, tmp_path / "run", f"scales={scales}")
    duplicates = report["duplicates"]
    assert duplicates["found"]["pixels"] == 1
    assert duplicates["view"] == "full"
    pair = duplicates["pairs"][0]
    assert pair["found_by"] == ["pixels", "features", "hash"]
    assert (pair["synthetic"], pair["synthetic_name"]) == (PER_CLASS + 1, "green ring")
    assert (pair["test"], pair["test_name"]) == (2 * IMAGES_PER_CLASS + 2, "red star")
    assert pair["cosine"] == pytest.approx(1, abs=1e-5)
    assert pair["bits"] == 0
    assert Path(pair["file"]) == images / "green ring" / "1_green ring.png"
    text = audit_text(json.loads(json.dumps(report)))
    assert "same pixels        1 synthetic images" in text
    assert "'green ring'" in text
    assert "test image 10 of 'red star'" in text


def test_compressed_copy_is_found(sandbox: Sandbox, tmp_path: Path) -> None:
    images = synthetic_folder(tmp_path / "images")
    (images / "blue moon" / "0_blue moon.png").unlink()
    with Image.open(sandbox.synthetic_images / "blue_moon" / "1.png") as image:
        image.save(images / "blue moon" / "0_blue moon.jpg", quality=90)
    duplicates = audited(sandbox, images, tmp_path / "run")["duplicates"]
    assert duplicates["found"]["pixels"] == 0
    (pair,) = [pair for pair in duplicates["pairs"] if pair["synthetic"] == 0]
    assert "hash" in pair["found_by"]
    assert pair["test"] == 1


def test_duplicates_are_named_with_prompts(first_run: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lgclip.reporting.leakage_audit.RARE", 1.0)  # everything is near
    monkeypatch.setattr("lgclip.reporting.leakage_audit.MOST_BITS", 64)
    report = audit(Run.read(first_run.folder))
    pairs = report["duplicates"]["pairs"]
    assert {pair["synthetic"] for pair in pairs} == set(range(PER_CLASS * len(NAMES)))
    assert {pair["prompt"] for pair in pairs if pair["synthetic"] == 0} == {"a photo of a blue moon."}
    assert "pairs more, see --json" in audit_text(report)


def test_run_without_images_has_the_table_only(sandbox: Sandbox, tmp_path: Path) -> None:
    evaluate_run(sandbox, tmp_path / "run", "method=clip_text")
    report = audit(Run.read(tmp_path / "run"))
    assert report["duplicates"] is None
    assert [row["stage"] for row in report["exposure"]] == ["features", "sentences", "evaluation", "metrics"]
    assert "no synthetic image was used" in audit_text(report)


def test_deleted_images_are_one_error(sandbox: Sandbox, tmp_path: Path) -> None:
    evaluate_run(sandbox, tmp_path / "run")
    for chunk in (sandbox.store / "features").rglob("*.safetensors"):
        chunk.unlink()
    with pytest.raises(ValueError, match="not in the store"):
        audit(Run.read(tmp_path / "run"))


def seen(result: dict[str, Any]) -> dict[str, str]:
    """Returns the first letters of what each stage saw, with ? for unknown."""
    letters = {"real_labels": "l", "test_images": "i", "text_tower": "t"}
    return {
        row.stage: "".join(
            letter if getattr(row, field) else "?"
            for field, letter in letters.items()
            if getattr(row, field) is not False
        )
        for row in exposure(from_json(result))
    }


IMAGE_ALONE = {
    "prompts": "",
    "images": "",
    "features": "i",
    "sentences": "t",
    "selection": "",
    "temperature": "",
    "evaluation": "i",
    "metrics": "l",
    "diagnostics": "li",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ([], {}),
        (["method=fusion"], {"temperature": "t", "evaluation": "it"}),
        (["selection=text", "selection.keep=2"], {"selection": "t", "temperature": "t"}),
        (["selection=text"], {}),
        (["calibration=leave_one_out"], {"calibration": ""}),
        (["method=fusion", "calibration=leave_one_out"], {"calibration": "t", "temperature": "t", "evaluation": "it"}),
    ],
    ids=",".join,
)
def test_table_shows_what_each_stage_saw(
    sandbox: Sandbox, tmp_path: Path, overrides: list[str], changed: dict[str, str]
) -> None:
    result = evaluate_run(sandbox, tmp_path / "run", *overrides)
    fitted = {**result["confidence"], "temperature": 0.02, "fitted_on": "synthetic images"}
    assert seen({**result, "confidence": fitted}) == IMAGE_ALONE | changed
    default = seen({**result, "confidence": {**fitted, "fitted_on": "default"}})
    assert default["temperature"] == "", "what is fitted on nothing sees nothing"


def test_external_images_are_unknown(first_run: FirstRun) -> None:
    computed = {
        "llm": {**first_run.result["llm"], "prompts_from": "file"},
        "diffuser": {**first_run.result["diffuser"], "images_from": "folder"},
    }
    result = {**first_run.result, **computed}
    assert (seen(result)["prompts"], seen(result)["images"]) == ("???", "???")
    assert conclusions(exposure(from_json(result)), "lgclip") == [
        "labels of real images in the predictions of lgclip: no; not known of prompts, images",
        "unlabelled real images in the predictions of lgclip: no; not known of prompts, images",
        "the text tower in the predictions of lgclip: no; not known of prompts, images",
    ]


@pytest.mark.parametrize(("objective", "labels"), [("top1", "??"), ("leave_one_out", "")])
def test_search_by_top1_sees_labels(first_run: FirstRun, objective: str, labels: str) -> None:
    config = {**first_run.result["config"], "objective": objective}
    letters = seen({**first_run.result, "config": config, "sweep": {"dir": "multirun", "job": 0, "overrides": []}})
    assert letters["sweep"] == labels


def test_verdict_names_the_stages(sandbox: Sandbox, tmp_path: Path) -> None:
    result = evaluate_run(sandbox, tmp_path / "run", "selection=text", "selection.keep=2")
    assert conclusions(exposure(from_json(result)), "lgclip") == [
        "labels of real images in the predictions of lgclip: no",
        "unlabelled real images in the predictions of lgclip: no",
        "the text tower in the predictions of lgclip: yes, by sentences, selection",
    ]


@given(st.integers(0, 10**6))
def test_hash_uses_the_lowest_frequencies(seed: int) -> None:
    image = patches(seed)
    gray = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=float)
    low = np.asarray(dct(dct(gray, axis=0), axis=1))[:8, :8].ravel()
    assert f"{image_hash(image):064b}" == "".join("1" if x > np.median(low) else "0" for x in low)


@given(st.integers(0, 10**6))
def test_hash_is_robust_and_distinctive(seed: int) -> None:
    image = patches(seed)
    other_image = patches(seed + 1)
    file = BytesIO()
    image.save(file, "JPEG", quality=60)
    for copy in (Image.open(file), image.resize((96, 80), Image.Resampling.BICUBIC), image.point(lambda v: v * 0.9)):
        assert (image_hash(image) ^ image_hash(copy)).bit_count() <= 10
    assert (image_hash(image) ^ image_hash(other_image)).bit_count() > 10


@given(st.integers(2, 40), st.integers(0, 99))
def test_threshold_is_set_by_test_images(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    space = _Space(rows[:1], rows, _cosines, (-1.0, 1 - 1e-5))
    nearest = []
    for i in range(n):
        nearest.append(max(rows[i] @ rows[j] for j in range(n) if j != i))
    assert space.threshold() == pytest.approx(min(max(nearest), 1 - 1e-5), abs=1e-6), "1% of so few is the nearest"
    assert space.nearest().tolist() == [0]


def test_single_test_image_matches_equal_only() -> None:
    hashes = np.array([5], dtype=np.uint64)
    assert _Space(hashes, hashes, _hash_similarity, (-10.0, 0.0)).threshold() == 0


def test_hash_distance_counts_bits() -> None:
    space = _Space(
        np.array([0b1011], dtype=np.uint64), np.array([0b0001, 2**64 - 1], np.uint64), _hash_similarity, (-10, 0)
    )
    assert space.between(0, 0) == -2
    assert space.between(0, 1) == -61
    assert replace(space, test=np.array([0, 2**63], np.uint64)).threshold() == -1
    assert space.threshold() == -10, "63 bits are never near"
