"""Every image of a folder counts once, under the right name; whatever is left out is counted with its reason."""

import logging
import os
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parquet_trees import table, write
from PIL import Image

from lgclip.datasets.class_map import sort_folders
from lgclip.datasets.folder import Folder
from lgclip.datasets.image_tree import (
    BROKEN_LINK,
    BY_CONTENT,
    HIDDEN,
    LINKED,
    NESTED,
    NO_CLASS,
    NO_IMAGE,
    REPEATED_LINK,
    SPECIAL,
    TOOLS,
    list_images,
)
from lgclip.diffuser.folder_layout import images_in


def picture(path: Path, seed: int = 0, kind: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(pixels).save(path, kind)
    return path


def tree(root: Path, folders: Sequence[str], per_class: int = 1) -> Path:
    for number, folder in enumerate(folders):
        for index in range(per_class):
            picture(root / folder / f"{index}.png", 100 * number + index)
    return root


def names_file(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


# -------------------------------------------------------------------------------------------- class folders and names


@pytest.mark.parametrize("width", [1, 2, 5])
def test_numbered_folders_are_in_numeric_order(width: int, tmp_path: Path) -> None:
    """Twelve folders 0 to 11 with a list of names gave 16.7% where 00 to 11 gave 100%."""
    root = tree(tmp_path / "root", [f"{index:0{width}d}" for index in range(12)])
    names = [f"name {letter}" for letter in "abcdefghijkl"]

    data = Folder(str(root), names_file(tmp_path / "names.txt", *names))

    assert dict(data.folder_names) == {f"{index:0{width}d}": name for index, name in enumerate(names)}
    assert [int(file.partition("/")[0]) for file in data.files] == list(data.labels)


def test_equal_numbers_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folders (1 and 01|01 and 1) are the same number"):
        Folder(str(tree(tmp_path, ["01", "1", "2"])))


@given(st.lists(st.from_regex(r"[0-9]{1,40}", fullmatch=True), min_size=1, max_size=20, unique_by=int))
def test_numbers_sort_as_numbers(names: list[str]) -> None:
    assert sort_folders(names) == sorted(names, key=int)


@pytest.mark.parametrize("pattern", ["class_{}", "{} birds", "n{}-x", "a{}b"])
def test_ambiguous_order_needs_a_map(pattern: str, tmp_path: Path) -> None:
    """Text order puts class_10 before class_2: a list of names may mean either."""
    folders = [pattern.format(number) for number in range(1, 13)]
    root = tree(tmp_path / "root", folders)
    names = [f"name {letter}" for letter in "abcdefghijkl"]

    with pytest.raises(ValueError, match=r"one order as text and another as numbers.*FOLDER<TAB>NAME") as caught:
        Folder(str(root), names_file(tmp_path / "names.txt", *names))

    proposed = str(caught.value).splitlines()[1:]
    assert proposed == [f"{folder}\t{name}" for folder, name in zip(folders, names, strict=True)]
    data = Folder(str(root), names_file(tmp_path / "map.txt", *reversed(proposed)))
    assert dict(data.folder_names) == dict(zip(folders, names, strict=True))


def test_names_of_other_folders_are_rejected(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", ["cat", "Snow_Leopard", "dog"])

    with pytest.raises(ValueError, match=r"folder cat would be named 'dog', and its own name goes to folder dog"):
        Folder(str(root), names_file(tmp_path / "names.txt", "snow leopard", "dog", "cat"))

    names = names_file(tmp_path / "map.txt", "cat\tdog", "dog\tcat", "Snow_Leopard\tounce")
    assert Folder(str(root), names).class_names == ("ounce", "dog", "cat"), "a map says what it means"
    names = names_file(tmp_path / "names.txt", "ounce", "house cat", "hound")
    assert Folder(str(root), names).class_names == ("ounce", "house cat", "hound")


def test_numbered_names_of_other_folders_are_rejected(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", ["001.Black_footed_Albatross", "002.Laysan_Albatross"])

    with pytest.raises(ValueError, match=r"001\.Black_footed_Albatross would be named 'Laysan albatross'"):
        Folder(str(root), names_file(tmp_path / "names.txt", "Laysan albatross", "black-footed albatross"))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["a\tcat", "b dog"], "line 2: no tab"),
        (["a\tcat", "a\tdog"], "line 2: a has a name already, 'cat'"),
        (["a\tcat"], r"no line for \['b'\]"),
        (["a\tcat", "b\tdog", "c\tcow"], r"lines for \['c'\]"),
        (["a\t", "b\tdog"], "class 0 has an empty name"),
    ],
)
def test_damaged_map_is_rejected(lines: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        Folder(str(tree(tmp_path / "root", ["a", "b"])), names_file(tmp_path / "map.txt", *lines))


def test_map_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        Folder(str(tree(tmp_path / "root", ["0", "1"])), names_file(tmp_path / "names.txt", "cat", "dog"))

    assert "root: class names: 0 = cat; 1 = dog" in caplog.text


def test_numbers_as_names_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Folder(str(tree(tmp_path, ["0", "1"])))

    assert "the class folders are numbers" in caplog.text


@pytest.mark.parametrize(
    ("folders", "test"),
    [
        (["train", "val", "test"], "test"),
        (["Train", "Val"], "Val"),
        (["training", "testing", "extra"], "testing"),
        (["train"], "train"),
    ],
)
def test_splits_are_no_classes(folders: list[str], test: str, tmp_path: Path) -> None:
    for folder in folders:
        tree(tmp_path / folder, ["cat", "dog"])

    with pytest.raises(ValueError, match=rf"are splits, not classes; .*dataset\.root={tmp_path / test}$"):
        Folder(str(tmp_path))


def test_classes_may_have_names_of_splits(tmp_path: Path) -> None:
    assert Folder(str(tree(tmp_path, ["test", "train"]))).class_names == ("test", "train")


def test_level_too_high_or_too_low_is_one_error(tmp_path: Path) -> None:
    tree(tmp_path / "wrapped", ["cat", "dog"])

    with pytest.raises(ValueError, match=rf"only one class folder, wrapped; .*dataset\.root={tmp_path / 'wrapped'}"):
        Folder(str(tmp_path))
    with pytest.raises(ValueError, match=rf"holds 1 images and no folder; .*dataset\.root={tmp_path / 'wrapped'}"):
        Folder(str(tmp_path / "wrapped" / "cat"))
    shutil.rmtree(tmp_path / "wrapped" / "cat")
    with pytest.raises(ValueError, match="only one class folder, dog; a classifier needs two"):
        Folder(str(tmp_path / "wrapped"))


# ---------------------------------------------------------------------------------------------- what lies in a folder

LEFTOVERS = [
    (".ipynb_checkpoints/0.png", HIDDEN),
    (".hidden.png", HIDDEN),
    ("._0.png", HIDDEN),
    (".DS_Store", HIDDEN),
    ("deeper/.thumbnails/0.png", HIDDEN),
    ("Thumbs.db", TOOLS),
    ("desktop.ini", TOOLS),
    ("__MACOSX/0.png", TOOLS),
    ("@eaDir/0.png", TOOLS),
    ("deeper/$RECYCLE.BIN/0.png", TOOLS),
    ("0.png~", TOOLS),
    ("photo.jpg.crdownload", TOOLS),
    ("photo.jpg.part", TOOLS),
    ("notes.txt", NO_IMAGE),
    ("0.json", NO_IMAGE),
    ("checksums", NO_IMAGE),
    ("movie.webmx", NO_IMAGE),
]


@pytest.mark.parametrize(("place", "reason"), LEFTOVERS)
def test_leftovers_are_counted_and_not_read(place: str, reason: str, tmp_path: Path) -> None:
    tree(tmp_path, ["a", "b"], per_class=2)
    extra = tmp_path / "a" / place
    extra.parent.mkdir(parents=True, exist_ok=True)
    if place.endswith(".png"):
        picture(extra, 7)
    else:
        extra.write_bytes(b"no picture")

    data = Folder(str(tmp_path))

    assert list(data.files) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]
    assert data.files_left_out == {reason: 1}
    # Every reader leaves out the same.
    flat = list_images(tmp_path, "a", recursive=False)
    assert flat.files == ["a/0.png", "a/1.png"]
    assert [path.name for path in images_in(tmp_path / "a")] == ["0.png", "1.png"]


@pytest.mark.parametrize("place", ["readme.md", "sheet.png", ".git/HEAD", "__MACOSX/a/0.png", "broken"])
def test_what_lies_beside_the_classes_is_no_class(place: str, tmp_path: Path) -> None:
    tree(tmp_path, ["a", "b"])
    if place == "broken":
        (tmp_path / place).symlink_to(tmp_path / "gone")
    elif place.endswith(".png"):
        picture(tmp_path / place)
    else:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()

    data = Folder(str(tmp_path))

    assert data.class_names == ("a", "b")
    reasons = {"readme.md": {}, "sheet.png": {NO_CLASS: 1}, ".git/HEAD": {HIDDEN: 1}, "broken": {BROKEN_LINK: 1}}
    assert data.files_left_out == reasons.get(place, {TOOLS: 1})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("0.avif", "AVIF"), ("0.jfif", "JPEG"), ("0.jpe", "JPEG"), ("0.jp2", "JPEG2000"), ("0.PNG", "PNG"),
        ("0", "PNG"), ("0.dat", "JPEG"), ("0.image", "WEBP"), ("0.jpg_large", "JPEG"), ("0.pbm", "PPM"),
        ("0.tga", "TGA"), ("0.qoi", "QOI"),
    ],
)  # fmt: skip
def test_images_of_every_name_are_read(name: str, kind: str, tmp_path: Path) -> None:
    tree(tmp_path, ["a"])
    path = tmp_path / "b" / name
    path.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(pixels).save(path, kind)

    data = Folder(str(tmp_path))

    assert list(data.files) == ["a/0.png", f"b/{name}"]
    assert data.image(1).size == (16, 16)
    known = name.lower().endswith((".avif", ".jfif", ".jpe", ".jp2", ".png", ".pbm", ".tga", ".qoi"))
    assert data.files_noted == ({} if known else {BY_CONTENT: 1})


def test_links_are_followed_once(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", ["more"], per_class=2)
    root = tree(tmp_path / "root", ["a", "b"], per_class=2)
    a = root / "a"
    (a / "linked.png").symlink_to(outside / "more" / "0.png")  # read
    (a / "again.png").symlink_to(outside / "more" / "0.png")  # the same file: read once
    (a / "own.png").symlink_to(a / "0.png")  # an image of the class
    (a / "other.png").symlink_to(root / "b" / "0.png")  # an image of another class
    (a / "gone.png").symlink_to(tmp_path / "gone")
    (a / "loop").symlink_to(a)
    (a / "up").symlink_to(root / "a" / "loop")
    (a / "folder").symlink_to(outside / "more")  # its second image is new

    data = Folder(str(root))

    real = [os.path.realpath(data.where(index)) for index in range(len(data))]
    assert len(set(real)) == len(real) == 6
    assert list(data.labels) == [0, 0, 0, 0, 1, 1]
    assert str(outside / "more" / "0.png") in real
    assert data.files_noted[LINKED] == 2
    assert data.files_left_out == {REPEATED_LINK: 6, BROKEN_LINK: 1}


def test_linked_class_folders_are_classes(tmp_path: Path) -> None:
    outside = tree(tmp_path / "outside", ["a", "b"], per_class=2)
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a", "b"):
        (root / name).symlink_to(outside / name)

    assert list(Folder(str(root)).files) == ["a/0.png", "a/1.png", "b/0.png", "b/1.png"]


def test_two_names_of_one_file_count_once(tmp_path: Path) -> None:
    tree(tmp_path, ["a", "b"])
    os.link(tmp_path / "a" / "0.png", tmp_path / "a" / "1.png")
    data = Folder(str(tmp_path))
    assert (list(data.files), data.files_left_out) == (["a/0.png", "b/0.png"], {REPEATED_LINK: 1})

    os.link(tmp_path / "a" / "0.png", tmp_path / "b" / "1.png")
    with pytest.raises(ValueError, match=r"a/0\.png and b/1\.png are one file in two classes"):
        Folder(str(tmp_path))


def test_pipes_and_sockets_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, ["a", "b"])
    os.mkfifo(tmp_path / "a" / "pipe.png")
    monkeypatch.chdir(tmp_path / "b")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")

        assert Folder(str(tmp_path)).files_left_out == {SPECIAL: 2}


def test_sub_folders_are_read_and_counted(tmp_path: Path) -> None:
    tree(tmp_path, ["a", "b"])
    picture(tmp_path / "a" / "day 1" / "deep" / "0.png", 9)

    data = Folder(str(tmp_path))

    assert list(data.files) == ["a/0.png", "a/day 1/deep/0.png", "b/0.png"]
    assert data.files_noted == {NESTED: 1}
    assert list_images(tmp_path, "a", recursive=False).left_out == {NESTED: 1}


def test_what_is_left_out_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tree(tmp_path, ["a", "b"])
    (tmp_path / "a" / "Thumbs.db").touch()
    (tmp_path / "b" / "Thumbs.db").touch()

    Folder(str(tmp_path))

    assert f"not read, {TOOLS}: 2, such as a/Thumbs.db" in caplog.text


NAMES = st.sampled_from(
    ["0.png", "1.jpg", "noext", ".x.png", "._1.jpg", "Thumbs.db", "a.txt", "sub", "deep", "x.png~", "0.avif", "ü.png"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.lists(NAMES, min_size=1, max_size=3)), max_size=12))
def test_every_file_is_read_or_counted(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, list[str]]]
) -> None:
    """Whatever lies in a tree, each file is an image of the data set once, or counted as left out, never both."""
    root = tree(tmp_path_factory.mktemp("tree"), ["a", "b"])
    files = {root / "a" / "0.png", root / "b" / "0.png"}
    for number, (folder, parts) in enumerate(entries):
        path = root.joinpath(folder, *parts)
        if any(parent in files for parent in path.parents) or path.exists():
            continue
        picture(path, number, "PNG")
        files.add(path)
    folders = {path.relative_to(root).parts[0] for path in files}
    try:
        data = Folder(str(root))
    except ValueError as error:
        assert "has no image" in str(error)  # noqa: PT017
        return

    read = {root / file for file in data.files}
    assert read <= files
    assert len(read) == len(data)
    assert set(data.class_names) == folders
    for path in files - read:
        places = path.relative_to(root).parts
        assert any(part.startswith(".") or part in ("Thumbs.db", "x.png~", "a.txt") for part in places)


# ------------------------------------------------------------------------------------------------------------- content


def test_swapped_contents_have_other_ids(tmp_path: Path) -> None:
    """Two BMP files of one size, swapped with their times kept: they had the features of before."""
    a = picture(tmp_path / "a" / "0.bmp", 1)
    b = picture(tmp_path / "b" / "0.bmp", 2)
    before = list(Folder(str(tmp_path)).ids)
    contents, times = (a.read_bytes(), b.read_bytes()), [path.stat() for path in (a, b)]

    a.write_bytes(contents[1])
    b.write_bytes(contents[0])
    for path, stat in zip((a, b), times, strict=True):
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    assert list(Folder(str(tmp_path)).ids) == before[::-1]


def test_ids_and_source_do_not_depend_on_the_folder(tmp_path: Path) -> None:
    first = Folder(str(tree(tmp_path / "first", ["a", "b"])))
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    second = Folder(str(tmp_path / "second"))

    assert (list(first.ids), first.source(), first.fingerprint) == (
        list(second.ids),
        second.source(),
        second.fingerprint,
    )


def test_hashes_are_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tree(tmp_path / "root", ["a", "b"], per_class=3)
    monkeypatch.setattr("lgclip.datasets.content_ids._YOUNG", -(10**18))
    ids = list(Folder(str(root)).ids)
    hashed: list[Path] = []

    def digest_of(path: Path) -> str:
        hashed.append(path)
        return "0" * 64

    monkeypatch.setattr("lgclip.datasets.content_ids.digest_of", digest_of)
    assert list(Folder(str(root)).ids) == ids
    assert hashed == []

    os.utime(root / "a" / "1.png", ns=(1, 1))
    Folder(str(root)).ids  # noqa: B018
    assert hashed == [root / "a" / "1.png"]


def test_new_files_are_not_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within one tick of the clock a file may change without another time."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tree(tmp_path / "root", ["a", "b"])
    Folder(str(root)).ids  # noqa: B018

    [cache] = (tmp_path / "cache").rglob("*.npz")
    with np.load(cache) as arrays:
        assert len(arrays["names"]) == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_damaged_cache_of_hashes_is_replaced(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("lgclip.datasets.content_ids._YOUNG", -(10**18))
    root = tree(tmp_path / "root", ["a", "b"])
    ids = list(Folder(str(root)).ids)
    [cache] = (tmp_path / "cache").rglob("*.npz")
    content = bytearray(cache.read_bytes())
    if damage == "flipped":
        with np.load(cache) as arrays:
            place = bytes(content).index(arrays["digests"].tobytes())
        content[place] ^= 1
    cache.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, bytes(content)))

    assert list(Folder(str(root)).ids) == ids


def test_labels_that_are_numbers_as_text_sort_as_numbers(tmp_path: Path) -> None:
    """A parquet data set whose labels are the strings 0 to 11 has the same trap as folders."""
    from lgclip.datasets.hugging_face import HubImages

    images = [picture(tmp_path / "pictures" / f"{index}.png", index).read_bytes() for index in range(12)]
    rows = table(images, {"label": [str(index) for index in range(12)]})
    write(tmp_path / "hub", "data/test-00000-of-00001.parquet", rows)
    names = [f"name {letter}" for letter in "abcdefghijkl"]

    data = HubImages(root=str(tmp_path / "hub"), names=names_file(tmp_path / "names.txt", *names))

    assert data.class_names == tuple(names)
    assert list(data.labels) == list(range(12))
