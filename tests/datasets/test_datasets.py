from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lgclip.datasets.base import Dataset, checked_names
from lgclip.datasets.embedded import Digits, Shapes
from lgclip.datasets.folder import Folder
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.keys import content_key
from lgclip.tiny.world import HELD_OUT_KINDS, image_of, scanned_digits

RED = (200, 30, 10)


def tree(root: Path, names: Sequence[str], per_class: int = 1, suffix: str = ".png") -> Path:
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(per_class):
            Image.new("RGB", (6, 4), RED).save(root / name / f"{i}{suffix}")
    return root


EMBEDDED = [
    Shapes, partial(Shapes, "train"), partial(Shapes, style="sketch"), partial(Shapes, style="inverted"),
    partial(Shapes, "train", "noisy"), Digits, partial(Digits, "train"),
]  # fmt: skip


@pytest.fixture(params=EMBEDDED, ids=range(len(EMBEDDED)))
def embedded(request: pytest.FixtureRequest) -> Dataset:
    return request.param()


def test_embedded_datasets_are_consistent(embedded: Dataset) -> None:
    assert len(embedded) == len(embedded.labels) == len(embedded.ids) == len(set(embedded.ids))
    assert set(embedded.labels) == set(range(len(embedded.class_names)))
    for index in (0, len(embedded) - 1):
        image = embedded.image(index)
        assert (image.mode, image.size) == ("RGB", (64, 64))


def test_shapes_are_held_out_kinds_in_order() -> None:
    shapes = Shapes()
    assert shapes.class_names == tuple(kind.name for kind in HELD_OUT_KINDS)
    np.testing.assert_array_equal(shapes.labels, np.repeat(np.arange(30), 40))
    np.testing.assert_array_equal(shapes.image(41), image_of("test", 41))


def test_digits_are_the_second_half_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    digits = Digits()
    np.testing.assert_array_equal(digits.labels, load_digits(return_X_y=True)[1][898:])
    np.testing.assert_array_equal(digits.image(5), scanned_digits(pretrain=False)[0][5])


@pytest.mark.parametrize("build", [Shapes, Digits])
def test_ids_are_stable_across_runs(build: type[Dataset]) -> None:
    assert build().ids == build().ids


def test_ids_are_unique_across_datasets() -> None:
    ids = []
    for build in EMBEDDED:
        for image_id in build().ids:
            ids.append(image_id)
    assert len(set(ids)) == len(ids)


def test_published_image_keys_are_stable() -> None:
    """Checks keys that published metrics and existing stores depend on."""
    assert [data.ids[3] for data in (Shapes(), Digits())] == [
        content_key({"shapes": 3, "schema": STORE_SCHEMA}), content_key({"digits": 3, "schema": STORE_SCHEMA}),
    ]  # fmt: skip
    assert [data.source() for data in (Shapes(), Digits())] == [
        {"dataset": "shapes", "schema": STORE_SCHEMA}, {"dataset": "digits", "schema": STORE_SCHEMA},
    ]  # fmt: skip


def test_folder_is_read_in_name_order(tmp_path: Path) -> None:
    tree(tmp_path, ["b_c", "a"], per_class=2)
    tree(tmp_path, [".cache"])
    (tmp_path / "a" / "deeper").mkdir()
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "deeper" / "1.PNG")
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "README.md").touch()
    data = Folder(str(tmp_path))
    assert data.class_names == ("a", "b c")
    assert data.labels == (0, 0, 1, 1)
    assert data.name == tmp_path.name
    assert data.original(1) == tmp_path / "a" / "deeper" / "1.PNG"


def test_id_depends_on_the_file_only(tmp_path: Path) -> None:
    tree(tmp_path, ["a", "b"], per_class=2)
    before = Folder(str(tmp_path)).ids
    Image.new("RGB", (7, 4)).save(tmp_path / "a" / "1.png")
    after = Folder(str(tmp_path)).ids
    assert after[0] == before[0]
    assert after[1] != before[1]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (None, "no such folder"),
        ([], "no folder in it"),
        (["file.png"], "it holds 1 images and no folder; .*give its parent: dataset.root="),
        ([".hidden/0.png"], "no folder in it"),
        (["a/0.png", "b/"], "class 1 has no image: .*b holds none"),
        (["a/0.png", "b/notes.txt"], "class 1 has no image"),
        (["a/0.png", "b/0.png/"], "class 1 has no image"),  # a folder, whatever its name
        (["a b/0.png", "a_b/0.png"], r"classes \[0, 1\] are all named 'a b'"),
        (["Cat/0.png", "cat/0.png", "dog/0.png"], r"classes \[0, 1\] are all named"),
        (["_/0.png", "a/0.png"], "class 0 has an empty name"),
    ],
)
def test_unusable_folder_is_rejected(entries: list[str] | None, message: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    if entries is not None:
        root.mkdir()
    for entry in entries or []:
        path = root / entry
        (path if entry.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not entry.endswith("/"):
            path.touch()
    with pytest.raises(ValueError, match=message):
        Folder(str(root))


@pytest.mark.parametrize(
    "name", ["🦙", "n" * 255, "naïve café", "-rf", "100% cotton", "{}", "a\nb"], ids=lambda n: repr(n[:12])
)
def test_unusual_folder_names_work(name: str, tmp_path: Path) -> None:
    data = Folder(str(tree(tmp_path, [name, "other"])))
    assert " ".join(name.split()) in data.class_names
    assert len(data.image(0).getpixel((0, 0))) == 3  # pyright: ignore[reportArgumentType]


def test_names_file_renames_folders_in_order(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", ["1", "2", "3", "4"])
    names = tmp_path / "names.txt"
    expected = ("AC/DC", "..", "🦙 " + "n" * 300, "snow_leopard")
    names.write_text("\n".join(expected) + "\n\n", encoding="utf-8")
    assert Folder(str(root), str(names)).class_names == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("cat\n", "1 names for 2 folders"),
        ("cat\ndog\nbird\n", "3 names for 2 folders"),
        ("\ncat\n", "class 0 has an empty name"),
        ("cat\n CAT \n", r"classes \[0, 1\] are all named"),
        ("caf\u00e9\ncafe\u0301\n", r"classes \[0, 1\] are all named"),  # one name, written in two ways
        (b"\xff\xfe\n\n", r"names\.txt.*utf-8"),
    ],
)
def test_mismatched_names_are_rejected(content: str | bytes | None, message: str, tmp_path: Path) -> None:
    root = tree(tmp_path / "root", ["1", "2"])
    names = tmp_path / "names.txt"
    if content is not None:
        names.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        Folder(str(root), str(names))


def test_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    names = tmp_path / "names.txt"
    names.write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")  # as Windows' editor writes it
    assert Folder(str(tree(tmp_path / "root", ["1", "2"])), str(names)).class_names == ("cat", "dog")


@given(st.lists(st.text(), max_size=4))
def test_checked_names_are_unique_lines(names: list[str]) -> None:
    try:
        checked = checked_names(names)
    except ValueError:
        return
    assert len({name.casefold() for name in checked}) == len(names)
    for name in checked:
        assert name == " ".join(name.split())
        assert name.splitlines() == [name]
    assert checked_names(checked) == checked


@pytest.mark.parametrize("content", ["cut", "empty", "text"])
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".tif"])
def test_undecodable_file_is_named(content: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / "a" / f"0{suffix}"
    path.parent.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    data = path.read_bytes()
    path.write_bytes({"cut": data[: len(data) // 2], "empty": b"", "text": b"no image"}[content])
    with pytest.raises(ValueError, match=rf"0\{suffix} cannot be read as an image .*; repair it or move it away"):
        Folder(str(tree(tmp_path, ["b"]))).image(0)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    path = tree(tmp_path, ["a", "b"], suffix=".jpg") / "a" / "0.jpg"
    turned = Image.new("RGB", (6, 4), RED)
    exif = turned.getexif()
    exif[0x0112] = 6  # held upright: to be turned by 90 degrees
    turned.save(path, exif=exif)
    assert Folder(str(tmp_path)).image(0).size == (4, 6)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_image_modes_are_converted_to_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a" / ("0.tif" if mode == "CMYK" else "0.png")
    path.parent.mkdir()
    ramp = np.tile(np.array([[0, 128, 255]], np.uint8), (4, 1))
    image = Image.fromarray(ramp.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(ramp).convert(mode)
    image.save(path)
    decoded = Folder(str(tree(tmp_path, ["b"]))).image(0)
    assert decoded.mode == "RGB"
    seen = np.asarray(decoded).mean(axis=(0, 2))
    np.testing.assert_allclose(seen[[0, 2]], [0, 255], atol=2)
    assert mode == "1" or abs(seen[1] - 128) < 3
