"""Tests images made elsewhere: matching folders to classes, choosing images, and evaluating them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import NAMES, Sandbox, computed_counts, evaluate_run, read_arrays, read_csv, run_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from image_folders import evaluate_folder, make_release_folder, write_patch
from PIL import Image

from lgclip.datasets.class_map import plain
from lgclip.diffuser.base import SyntheticImages, image_prompts
from lgclip.diffuser.folder_layout import class_folders, images_in
from lgclip.diffuser.image_folder import ImageFolder
from lgclip.reporting.export_features import export_features
from lgclip.types import TargetClass

pytest_plugins = ("run_fixtures",)


def target_classes(*names: str) -> list[TargetClass]:
    return [TargetClass(c, name) for c, name in enumerate(names)]


def synthetic_images(root: Path, store: Path, count: int = 2, names: tuple[str, ...] = NAMES) -> SyntheticImages:
    classes = target_classes(*names)
    prompts = image_prompts(classes, [[""] * count for _ in names], count, 1)
    stage = ImageFolder(str(root)).stage(store, classes, prompts, 0)
    assert stage.missing() == []
    return stage.synthetic_images()


def matched_folders(root: Path, *names: str) -> list[str]:
    return [folder.name for folder in class_folders(root, target_classes(*names))]


def make_folders(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    "folders",
    [
        ("blue moon", "green ring", "red star"),
        ("blue_moon", "green_ring", "red_star"),
        ("Blue-Moon", "GREEN ring", "red.star"),
        ("000-blue-moon", "001-green-ring", "002-red-star"),
        ("0_blue_moon", "1_green_ring", "2_red_star"),
        ("001.Blue_moon", "002.Green_ring", "003.Red_star"),  # CUB counts from one: the name decides
        ("0", "1", "2"),
        ("000", "001", "002"),
        ("blue moon", "1-green_ring", "002"),
    ],
)
def test_class_folder_is_matched_by_name_or_index(folders: tuple[str, ...], tmp_path: Path) -> None:
    assert matched_folders(make_folders(tmp_path, *reversed(folders), ".cache", "notes"), *NAMES) == list(folders)


def test_exact_name_is_preferred(tmp_path: Path) -> None:
    make_folders(tmp_path, "red_star", "red star", "7", "0")
    assert matched_folders(tmp_path, "red star", "red_star") == ["red star", "red_star"]
    assert matched_folders(tmp_path, "7", "red star") == ["7", "red star"]  # a name that is a number is a name first


def test_repeated_names_need_an_index(tmp_path: Path) -> None:
    names = ("missile", "sunglasses", "missile")
    assert matched_folders(make_folders(tmp_path / "a", "0", "1", "2"), *names) == ["0", "1", "2"]
    assert matched_folders(make_folders(tmp_path / "b", "000-missile", "sunglasses", "002_missile"), *names) == [
        "000-missile", "sunglasses", "002_missile"
    ]  # fmt: skip
    make_folders(tmp_path / "c", "missile", "sunglasses")
    with pytest.raises(ValueError, match=r"2 classes, first 0 \('missile'\), 2 \('missile'\); classes that"):
        matched_folders(tmp_path / "c", *names)


def test_ambiguous_folder_is_not_matched(tmp_path: Path) -> None:
    make_folders(tmp_path, "red_star", "Red-Star", "blue moon")
    with pytest.raises(ValueError, match=r"folders Red-Star and red_star might both be class 0 \('red star'\)"):
        matched_folders(tmp_path, "red star", "blue moon")


def test_class_without_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder for 1 classes, first 1 \('green ring'\); folders of no class: gr"):
        matched_folders(make_folders(tmp_path, "blue moon", "red star", "grene ring"), *NAMES)
    with pytest.raises(ValueError, match=r"no such folder; it needs one folder of images per class"):
        ImageFolder(str(tmp_path / "none"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text("ab _-.1", min_size=1, max_size=4), min_size=1, max_size=5, unique=True))
def test_exact_names_match_their_folders(names: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    usable = [name for name in names if plain(name) and not name.startswith(".")]
    if len({plain(name) for name in usable}) == len(usable):
        root = make_folders(tmp_path_factory.mktemp("names"), *usable)
        assert matched_folders(root, *usable) == usable


def test_images_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("10_a.jpg", "9_a.jpg", "0_a.png", "extra.webp", "notes.txt", ".1_a.jpg"):
        (tmp_path / name).touch()
    assert [path.name for path in images_in(tmp_path)] == ["0_a.png", "9_a.jpg", "10_a.jpg", "extra.webp"]
    (tmp_path / "09_b.jpg").touch()
    with pytest.raises(ValueError, match=r"09_b\.jpg and 9_a\.jpg have the same number"):
        images_in(tmp_path)


def test_first_images_are_used_in_place(tmp_path: Path) -> None:
    root = make_release_folder(tmp_path / "root", per_class=12)
    generated = synthetic_images(root, tmp_path / "store", 11)
    assert [path.name for path in generated.paths[11:22] if path] == [f"{i}_green ring.jpg" for i in range(11)]
    assert [(p.class_index, p.text, p.repeat) for p in generated.prompts[:2]] == [(0, "", 0), (0, "", 1)]
    assert all(isinstance(path, Path) and path.is_relative_to(root) for path in generated.paths)
    with Image.open(root / "green ring" / "3_green ring.jpg") as image:
        np.testing.assert_array_equal(np.asarray(generated.image(14)), np.asarray(image.convert("RGB")))
    assert not list((tmp_path / "store").rglob("*.jpg")), "nothing is copied"


def test_image_key_is_its_content(tmp_path: Path) -> None:
    first = synthetic_images(make_release_folder(tmp_path / "one"), tmp_path / "store")
    moved = (tmp_path / "one").rename(tmp_path / "two")
    two = synthetic_images(moved, tmp_path / "store")
    assert (two.ids, two.key) == (first.ids, first.key)
    write_patch(moved / "blue moon" / "0_blue moon.jpg", 999)
    changed = synthetic_images(moved, tmp_path / "store")
    assert [a == b for a, b in zip(changed.ids, first.ids, strict=True)] == [False, *[True] * 5]


def test_too_few_images_name_the_classes(tmp_path: Path) -> None:
    root = make_release_folder(tmp_path)
    (root / "red star" / "3_red star.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 classes have fewer images than the 4 of .*class 2 \('red star'\) has 3"):
        synthetic_images(root, tmp_path / "store", 4)


def test_faulty_files_are_listed_and_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_release_folder(tmp_path / "root")
    Image.new("RGB", (32, 32)).save(root / "blue moon" / "0_blue moon.jpg")
    Image.new("RGB", (32, 32), (9, 90, 200)).save(root / "green ring" / "1_green ring.jpg")
    (root / "red star" / "2_red star.jpg").write_bytes(b"no image")
    generated = synthetic_images(root, tmp_path / "store", 4)
    assert [(entry["name"], entry["repeat"], entry["faults"]) for entry in generated.faults()] == [
        ("blue moon", 0, ["black"]), ("green ring", 1, ["flat"]), ("red star", 2, ["unreadable"]),
    ]  # fmt: skip
    assert len(generated.ids) == len(generated.paths) == len(generated.prompts) == 9
    assert [p.repeat for p in generated.prompts if p.class_index == 0] == [1, 2, 3]

    def decode(path: Path) -> Image.Image:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr("lgclip.diffuser.image_folder.read_image", decode)
    assert synthetic_images(root, tmp_path / "store", 4) == generated


def test_class_of_faulty_files_is_rejected(tmp_path: Path) -> None:
    root = make_release_folder(tmp_path / "root")
    for i in range(2):
        (root / "red star" / f"{i}_red star.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"class 2 \('red star'\): not one of 2 images could be used \(2 unreadable\)"):
        synthetic_images(root, tmp_path / "store", 2)


@pytest.mark.slow
def test_folder_run_needs_no_llm(fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    root = make_release_folder(tmp_path / "root")
    Image.new("RGB", (32, 32)).save(root / "blue moon" / "1_blue moon.jpg")
    result = evaluate_folder(fresh_sandbox, root, tmp_path / "run", "prompts_per_class=2", "images_per_prompt=2")
    assert (result["llm"], result["diffuser"]["choice"]) == (None, "folder")
    assert computed_counts(result) == {"images": 0, "features": 3 + 11 + result["n"]}
    assert [entry["faults"] for entry in result["missing_images"]] == [["black"]]
    assert not (fresh_sandbox.store / "prompts").exists()
    export_features(tmp_path / "run", tmp_path / "features.npz")
    assert read_arrays(tmp_path / "features.npz")["synthetic"].shape[:2] == (11, 1)
    again = evaluate_folder(
        fresh_sandbox, root, tmp_path / "again", "prompts_per_class=2", "images_per_prompt=2", "rerun=true"
    )
    assert computed_counts(again) == {"images": 0, "features": 0}
    assert again["metrics"] == result["metrics"]


@pytest.mark.slow
def test_exported_images_give_the_same_result(fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    """Checks that images of this package, saved losslessly in the release's layout, give the same evaluation."""
    first = evaluate_run(fresh_sandbox, tmp_path / "first")
    run_command("generate", *fresh_sandbox.generate_overrides(), f"hydra.run.dir={tmp_path / 'drawn'}")
    counts: dict[str, int] = {}
    for line in (tmp_path / "drawn" / "images.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        i = counts[record["name"]] = counts.get(record["name"], -1) + 1
        (tmp_path / "out" / record["name"]).mkdir(parents=True, exist_ok=True)
        with Image.open(record["file"]) as image:
            image.save(tmp_path / "out" / record["name"] / f"{i}_{record['name']}.png")
    result = evaluate_folder(replace(fresh_sandbox, store=tmp_path / "other"), tmp_path / "out", tmp_path / "run")
    assert result["metrics"] == first["metrics"]
    assert read_csv(tmp_path / "run" / "predictions.csv") == read_csv(tmp_path / "first" / "predictions.csv")
