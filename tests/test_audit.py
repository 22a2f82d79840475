"""A planted test image is found, and the table says what each stage saw."""

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.fft import dct
from worlds import IMAGES_PER_CLASS, NAMES, FirstRun, World, judge

from lgclip.audit import _agreement, _cosines, _Space, audit, audit_text, picture_hash
from lgclip.exposure import exposure, verdicts
from lgclip.runs import Run

pytest_plugins = ("run_fixtures",)

EACH = 3


def patches(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    colours = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(colours).resize(size, Image.Resampling.BICUBIC)


def synthetic_folder(root: Path) -> Path:
    """Images of every class that are like no test image."""
    for c, name in enumerate(NAMES):
        (root / name).mkdir(parents=True)
        for i in range(EACH):
            patches(1000 + 10 * c + i).save(root / name / f"{i}_{name}.png")
    return root


def audited(world: World, images: Path, folder: Path, *overrides: str) -> dict[str, Any]:
    """The audit of a run on a folder of images."""
    own = [given for given in world.evaluating() if not given.startswith("diffuser.")]
    judge(own, folder, "diffuser=folder", f"diffuser.root={images}", f"prompts_per_class={EACH}", *overrides)
    return audit(Run.read(folder))


def test_images_of_ones_own_are_no_copies(world: World, tmp_path: Path) -> None:
    found = audited(world, synthetic_folder(tmp_path / "images"), tmp_path / "run")
    told = found["duplicates"]
    assert (told["synthetic_images"], told["test_images"]) == (EACH * len(NAMES), IMAGES_PER_CLASS * len(NAMES))
    assert told["found"]["pixels"] == 0
    assert all("pixels" not in pair["found_by"] for pair in told["pairs"])


@pytest.mark.parametrize("scales", ["single", "multi"])
def test_a_test_image_among_the_synthetic_ones_is_found(world: World, tmp_path: Path, scales: str) -> None:
    images = synthetic_folder(tmp_path / "images")
    planted = world.pictures / "red_star" / "2.png"
    with Image.open(planted) as image:
        image.save(images / "green ring" / "1_green ring.png")  # under another class's name
    found = audited(world, images, tmp_path / "run", f"scales={scales}")
    told = found["duplicates"]
    assert told["found"]["pixels"] == 1
    assert told["view"] == "whole"
    pair = told["pairs"][0]
    assert pair["found_by"] == ["pixels", "features", "hash"]
    assert (pair["synthetic"], pair["synthetic_name"]) == (EACH + 1, "green ring")
    assert (pair["test"], pair["test_name"]) == (2 * IMAGES_PER_CLASS + 2, "red star")
    assert pair["cosine"] == pytest.approx(1, abs=1e-5)
    assert pair["bits"] == 0
    assert Path(pair["file"]) == images / "green ring" / "1_green ring.png"
    text = audit_text(json.loads(json.dumps(found)))
    assert "same pixels        1 synthetic images" in text
    assert "'green ring'" in text
    assert "test image 10 of 'red star'" in text


def test_a_copy_that_was_compressed_is_found_without_its_pixels(world: World, tmp_path: Path) -> None:
    images = synthetic_folder(tmp_path / "images")
    (images / "blue moon" / "0_blue moon.png").unlink()
    with Image.open(world.pictures / "blue_moon" / "1.png") as image:
        image.save(images / "blue moon" / "0_blue moon.jpg", quality=90)
    told = audited(world, images, tmp_path / "run")["duplicates"]
    assert told["found"]["pixels"] == 0
    (pair,) = [pair for pair in told["pairs"] if pair["synthetic"] == 0]
    assert "hash" in pair["found_by"]
    assert pair["test"] == 1


def test_drawn_images_are_named_with_their_prompts(first_run: FirstRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lgclip.audit.RARE", 1.0)  # everything is near
    monkeypatch.setattr("lgclip.audit.MOST_BITS", 64)
    found = audit(Run.read(first_run.folder))
    pairs = found["duplicates"]["pairs"]
    assert {pair["synthetic"] for pair in pairs} == set(range(EACH * len(NAMES)))
    assert {pair["prompt"] for pair in pairs if pair["synthetic"] == 0} == {"a photo of a blue moon."}
    assert "pairs more, see --json" in audit_text(found)


def test_a_run_without_images_has_only_the_table(world: World, tmp_path: Path) -> None:
    judge(world, tmp_path / "run", "method=clip_text")
    found = audit(Run.read(tmp_path / "run"))
    assert found["duplicates"] is None
    assert [row["stage"] for row in found["exposure"]] == ["features", "sentences", "judging", "metrics"]
    assert "no synthetic image was used" in audit_text(found)


def test_a_run_whose_images_are_gone_is_one_plain_error(world: World, tmp_path: Path) -> None:
    judge(world, tmp_path / "run")
    for chunk in (world.store / "features").rglob("*.safetensors"):
        chunk.unlink()
    with pytest.raises(ValueError, match="not in the store"):
        audit(Run.read(tmp_path / "run"))


def seen(result: dict[str, Any]) -> dict[str, str]:
    """Of each stage, the first letters of what it saw; ? for what is not known."""
    letters = {"real_labels": "l", "test_images": "i", "text_tower": "t"}
    return {
        row["stage"]: "".join(
            letter if row[what] else "?" for what, letter in letters.items() if row[what] is not False
        )
        for row in exposure(result)
    }


IMAGE_ALONE = {
    "prompts": "", "images": "", "features": "i", "sentences": "t", "selection": "", "temperature": "", "judging": "i",
    "metrics": "l", "diagnostics": "li",
}  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ([], {}),
        (["method=fusion"], {"temperature": "t", "judging": "it"}),
        (["selection=text", "selection.keep=2"], {"selection": "t", "temperature": "t"}),
        (["selection=text"], {}),
        (["calibration=leave_one_out"], {"calibration": ""}),
        (["method=fusion", "calibration=leave_one_out"], {"calibration": "t", "temperature": "t", "judging": "it"}),
    ],
    ids=",".join,
)
def test_the_table_says_what_each_stage_saw(
    world: World, tmp_path: Path, overrides: list[str], changed: dict[str, str]
) -> None:
    result = judge(world, tmp_path / "run", *overrides)
    fitted = {"temperature": 0.02, "fitted_on": "synthetic images"}
    assert seen({**result, "confidence": fitted}) == IMAGE_ALONE | changed
    default = seen({**result, "confidence": {**fitted, "fitted_on": "default"}})
    assert default["temperature"] == "", "what is fitted on nothing sees nothing"
    assert "temperature" not in seen({**result, "confidence": None})


def test_what_was_made_elsewhere_is_not_known(first_run: FirstRun) -> None:
    config = first_run.result["config"]
    made = {
        "llm": {"_target_": "lgclip.prompts.published.PromptFile"},
        "diffuser": {"_target_": "lgclip.diffuser.folder.ImageFolder"},
    }
    result = {**first_run.result, "config": {**config, **made}}
    assert (seen(result)["prompts"], seen(result)["images"]) == ("???", "???")
    assert verdicts(exposure(result), "lgclip") == [
        "labels of real images in the predictions of lgclip: no; not known of prompts, images",
        "the text tower in the predictions of lgclip: no; not known of prompts, images",
    ]


@pytest.mark.parametrize(("objective", "labels"), [("top1", "??"), ("leave_one_out", "")])
def test_a_search_by_top1_would_see_labels(first_run: FirstRun, objective: str, labels: str) -> None:
    config = {**first_run.result["config"], "objective": objective}
    told = seen({**first_run.result, "config": config, "sweep": {"dir": "multirun", "job": 0, "overrides": []}})
    assert told["sweep"] == labels


def test_the_verdict_names_the_stages(world: World, tmp_path: Path) -> None:
    result = judge(world, tmp_path / "run", "selection=text", "selection.keep=2")
    assert verdicts(exposure(result), "lgclip") == [
        "labels of real images in the predictions of lgclip: no",
        "the text tower in the predictions of lgclip: yes, by sentences, selection",
    ]


@given(st.integers(0, 10**6))
def test_the_hash_is_that_of_the_lowest_frequencies(seed: int) -> None:
    image = patches(seed)
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=float)
    low = np.asarray(dct(dct(grey, axis=0), axis=1))[:8, :8].ravel()
    assert f"{picture_hash(image):064b}" == "".join("1" if x > np.median(low) else "0" for x in low)


@given(st.integers(0, 10**6))
def test_the_hash_outlives_compression_and_size_and_tells_pictures_apart(seed: int) -> None:
    image, other = patches(seed), patches(seed + 1)
    file = BytesIO()
    image.save(file, "JPEG", quality=60)
    for copy in (Image.open(file), image.resize((96, 80), Image.Resampling.BICUBIC), image.point(lambda v: v * 0.9)):
        assert (picture_hash(image) ^ picture_hash(copy)).bit_count() <= 10
    assert (picture_hash(image) ^ picture_hash(other)).bit_count() > 10


@given(st.integers(2, 40), st.integers(0, 99))
def test_the_threshold_is_what_few_test_images_reach(n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    space = _Space(rows[:1], rows, _cosines, (-1.0, 1 - 1e-5))
    nearest = [max(rows[i] @ rows[j] for j in range(n) if j != i) for i in range(n)]
    assert space.threshold() == pytest.approx(min(max(nearest), 1 - 1e-5), abs=1e-6), "1% of so few is the nearest"
    assert space.nearest().tolist() == [0]


def test_one_test_image_leaves_only_what_is_equal() -> None:
    hashes = np.array([5], dtype=np.uint64)
    assert _Space(hashes, hashes, _agreement, (-10.0, 0.0)).threshold() == 0


def test_bits_that_differ_are_counted_and_bounded() -> None:
    space = _Space(np.array([0b1011], dtype=np.uint64), np.array([0b0001, 2**64 - 1], np.uint64), _agreement, (-10, 0))
    assert space.between(0, 0) == -2
    assert space.between(0, 1) == -61
    assert replace(space, test=np.array([0, 2**63], np.uint64)).threshold() == -1
    assert space.threshold() == -10, "63 bits are never near"
