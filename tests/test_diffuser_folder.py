"""Images made elsewhere: which folder is which class, which images are used, and a run on them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from worlds import NAMES, World, call, judge, made, rows

from lgclip.batch import Subject
from lgclip.diffuser.base import Pictures, image_prompts
from lgclip.diffuser.folder import ImageFolder
from lgclip.diffuser.layout import class_folders, images_in, plain
from lgclip.export import export_features

pytest_plugins = ("run_fixtures",)


def subjects(*names: str) -> list[Subject]:
    return [Subject(c, name) for c, name in enumerate(names)]


def patch(path: Path, seed: int) -> Path:
    """An image of coloured patches, no two alike."""
    colours = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colours).resize((40, 32)).save(path, quality=95)
    return path


def release(root: Path, names: tuple[str, ...] = NAMES, each: int = 4) -> Path:
    """The layout of LGCLIP's release: ROOT/CLASS/NUMBER_CLASS.jpg."""
    for c, name in enumerate(names):
        for i in range(each):
            patch(root / name / f"{i}_{name}.jpg", 100 * c + i)
    return root


def pictures(root: Path, store: Path, count: int = 2, names: tuple[str, ...] = NAMES) -> Pictures:
    stage = ImageFolder(str(root)).stage(
        store, subjects(*names), image_prompts([[""] * count for _ in names], count, 1), 0
    )
    assert stage.missing() == []
    return stage.pictures()


def found(root: Path, *names: str) -> list[str]:
    return [folder.name for folder in class_folders(root, subjects(*names))]


def made_folders(root: Path, *names: str) -> Path:
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
def test_a_class_is_found_by_name_or_index(folders: tuple[str, ...], tmp_path: Path) -> None:
    assert found(made_folders(tmp_path, *reversed(folders), ".cache", "notes"), *NAMES) == list(folders)


def test_the_exact_name_comes_before_what_is_only_like_it(tmp_path: Path) -> None:
    made_folders(tmp_path, "red_star", "red star", "7", "0")
    assert found(tmp_path, "red star", "red_star") == ["red star", "red_star"]
    assert found(tmp_path, "7", "red star") == ["7", "red star"]  # a name that is a number is a name first


def test_names_that_repeat_need_an_index(tmp_path: Path) -> None:
    names = ("missile", "sunglasses", "missile")
    assert found(made_folders(tmp_path / "a", "0", "1", "2"), *names) == ["0", "1", "2"]
    assert found(made_folders(tmp_path / "b", "000-missile", "sunglasses", "002_missile"), *names) == [
        "000-missile", "sunglasses", "002_missile"
    ]  # fmt: skip
    made_folders(tmp_path / "c", "missile", "sunglasses")
    with pytest.raises(ValueError, match=r"2 classes, first 0 \('missile'\), 2 \('missile'\); classes that"):
        found(tmp_path / "c", *names)


def test_what_might_be_two_things_is_neither(tmp_path: Path) -> None:
    made_folders(tmp_path, "red_star", "Red-Star", "blue moon")
    with pytest.raises(ValueError, match=r"folders Red-Star and red_star might both be class 0 \('red star'\)"):
        found(tmp_path, "red star", "blue moon")


def test_a_class_without_a_folder_is_named_with_what_is_left_over(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no folder for 1 classes, first 1 \('green ring'\); folders of no class: gr"):
        found(made_folders(tmp_path, "blue moon", "red star", "grene ring"), *NAMES)
    with pytest.raises(ValueError, match=r"no such folder; it should hold one folder of images a class"):
        ImageFolder(str(tmp_path / "none"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.text("ab _-.1", min_size=1, max_size=4), min_size=1, max_size=5, unique=True))
def test_names_as_they_are_always_fit_their_own_folders(
    names: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    usable = [name for name in names if plain(name) and not name.startswith(".")]
    if len({plain(name) for name in usable}) == len(usable):
        root = made_folders(tmp_path_factory.mktemp("names"), *usable)
        assert found(root, *usable) == usable


def test_images_come_by_their_number_not_by_their_spelling(tmp_path: Path) -> None:
    for name in ("10_a.jpg", "9_a.jpg", "0_a.png", "extra.webp", "notes.txt", ".1_a.jpg"):
        (tmp_path / name).touch()
    assert [path.name for path in images_in(tmp_path)] == ["0_a.png", "9_a.jpg", "10_a.jpg", "extra.webp"]
    (tmp_path / "09_b.jpg").touch()
    with pytest.raises(ValueError, match=r"09_b\.jpg and 9_a\.jpg have the same number"):
        images_in(tmp_path)


def test_the_first_images_of_each_class_are_used_where_they_lie(tmp_path: Path) -> None:
    root = release(tmp_path / "root", each=12)
    drawn = pictures(root, tmp_path / "store", 11)
    assert [path.name for path in drawn.paths[11:22]] == [f"{i}_green ring.jpg" for i in range(11)]
    assert [(p.class_index, p.text, p.repeat) for p in drawn.prompts[:2]] == [(0, "", 0), (0, "", 1)]
    assert all(isinstance(path, Path) and path.is_relative_to(root) for path in drawn.paths)
    with Image.open(root / "green ring" / "3_green ring.jpg") as image:
        np.testing.assert_array_equal(np.asarray(drawn.image(14)), np.asarray(image.convert("RGB")))
    assert not list((tmp_path / "store").rglob("*.jpg")), "nothing is copied"


def test_an_image_s_key_is_its_content(tmp_path: Path) -> None:
    one = pictures(release(tmp_path / "one"), tmp_path / "store")
    moved = (tmp_path / "one").rename(tmp_path / "two")
    two = pictures(moved, tmp_path / "store")
    assert (two.ids, two.key) == (one.ids, one.key)
    patch(moved / "blue moon" / "0_blue moon.jpg", 999)
    changed = pictures(moved, tmp_path / "store")
    assert [a == b for a, b in zip(changed.ids, one.ids, strict=True)] == [False, *[True] * 5]


def test_too_few_images_are_an_error_that_names_the_classes(tmp_path: Path) -> None:
    root = release(tmp_path)
    (root / "red star" / "3_red star.jpg").unlink()
    with pytest.raises(ValueError, match=r"1 classes have fewer images than the 4 of .*class 2 \('red star'\) has 3"):
        pictures(root, tmp_path / "store", 4)


def test_faulty_files_are_told_apart_listed_and_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = release(tmp_path / "root")
    Image.new("RGB", (32, 32)).save(root / "blue moon" / "0_blue moon.jpg")
    Image.new("RGB", (32, 32), (9, 90, 200)).save(root / "green ring" / "1_green ring.jpg")
    (root / "red star" / "2_red star.jpg").write_bytes(b"no image")
    drawn = pictures(root, tmp_path / "store", 4)
    assert [(one["name"], one["repeat"], one["faults"]) for one in drawn.faults()] == [
        ("blue moon", 0, ["black"]), ("green ring", 1, ["flat"]), ("red star", 2, ["unreadable"]),
    ]  # fmt: skip
    assert len(drawn.ids) == len(drawn.paths) == len(drawn.prompts) == 9
    assert [p.repeat for p in drawn.prompts if p.class_index == 0] == [1, 2, 3]

    def decode(path: Path) -> Image.Image:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr("lgclip.diffuser.folder.read_image", decode)
    assert pictures(root, tmp_path / "store", 4) == drawn


def test_a_class_of_faulty_files_alone_is_an_error(tmp_path: Path) -> None:
    root = release(tmp_path / "root")
    for i in range(2):
        (root / "red star" / f"{i}_red star.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"class 2 \('red star'\): not one of 2 images could be used \(2 unreadable\)"):
        pictures(root, tmp_path / "store", 2)


def folder_run(world: World, root: Path, run: Path, *overrides: str) -> dict[str, Any]:
    """Evaluates with images from a folder: neither a language model nor a diffuser is there to load."""
    given = [o for o in world.evaluating() if not o.startswith(("diffuser.", "llm"))]
    call("evaluate", *given, "diffuser=folder", f"diffuser.root={root}", f"hydra.run.dir={run}", *overrides)
    return json.loads((run / "result.json").read_text(encoding="utf-8"))


def test_a_run_on_a_folder_asks_no_language_model(fresh_world: World, tmp_path: Path) -> None:
    root = release(tmp_path / "root")
    Image.new("RGB", (32, 32)).save(root / "blue moon" / "1_blue moon.jpg")
    result = folder_run(fresh_world, root, tmp_path / "run", "prompts_per_class=2", "images_per_prompt=2")
    assert (result["llm"], result["diffuser"]["choice"]) == (None, "folder")
    assert made(result) == {"images": 0, "features": 3 + 11 + result["n"]}
    assert [one["faults"] for one in result["missing_images"]] == [["black"]]
    assert not (fresh_world.store / "prompts").exists()
    export_features(tmp_path / "run", tmp_path / "features.npz")
    assert np.load(tmp_path / "features.npz")["synthetic"].shape[:2] == (11, 1)
    again = folder_run(fresh_world, root, tmp_path / "again", "prompts_per_class=2", "images_per_prompt=2")
    assert made(again) == {"images": 0, "features": 0}
    assert again["metrics"] == result["metrics"]


def test_images_taken_out_and_put_in_again_say_the_same(fresh_world: World, tmp_path: Path) -> None:
    """What this package draws, saved in the release's layout without loss, is judged alike."""
    first = judge(fresh_world, tmp_path / "first")
    call("generate", *fresh_world.generating(), f"hydra.run.dir={tmp_path / 'drawn'}")
    counts: dict[str, int] = {}
    for line in (tmp_path / "drawn" / "images.jsonl").read_text(encoding="utf-8").splitlines():
        one = json.loads(line)
        i = counts[one["name"]] = counts.get(one["name"], -1) + 1
        (tmp_path / "out" / one["name"]).mkdir(parents=True, exist_ok=True)
        with Image.open(one["file"]) as image:
            image.save(tmp_path / "out" / one["name"] / f"{i}_{one['name']}.png")
    result = folder_run(replace(fresh_world, store=tmp_path / "other"), tmp_path / "out", tmp_path / "run")
    assert result["metrics"] == first["metrics"]
    assert rows(tmp_path / "run" / "predictions.csv") == rows(tmp_path / "first" / "predictions.csv")
