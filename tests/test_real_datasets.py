"""The public data sets on fixture trees in their archives' own layout: labels, names, splits, counts, errors."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv
from fixture_trees import KINDS, TREES, forest, opened, picture
from PIL import Image
from worlds import World, encoder_folder, judge

from lgclip.datasets import cifar10, cub, dtd, eurosat, fgvc_aircraft, flowers102, food101, imagenette, pets
from lgclip.datasets.tree import Archive, chosen

MODULES = {
    "cub": cub, "eurosat": eurosat, "flowers102": flowers102, "food101": food101, "pets": pets, "dtd": dtd,
    "fgvc_aircraft": fgvc_aircraft, "cifar10": cifar10, "imagenette": imagenette,
}  # fmt: skip
CLASSES = {
    "cub": 200, "eurosat": 10, "flowers102": 102, "food101": 101, "pets": 37, "dtd": 47,
    "fgvc_aircraft": 100, "cifar10": 10, "imagenette": 10,
}  # fmt: skip


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return forest(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("name", TREES)
def test_a_data_set_is_whole_and_every_kind_of_image_is_read(name: str, grown: Path) -> None:
    data = opened(name, grown / name)
    assert len(data) == len(data.labels) == len(set(data.ids)) > 0
    assert len(data.class_names) == CLASSES[name]
    assert set(data.labels) == set(range(CLASSES[name]))
    assert data.source()["dataset"] == data.name == name
    assert all(template.count("{}") == 1 for template in data.templates)
    for index in range(min(len(data), 2 * len(KINDS))):
        image = data.image(index)
        assert image.mode == "RGB"
        if name != "cifar10":
            assert image.size == (12, 8), "the one that was stored lying stands upright"
            seen = np.asarray(image).mean((0, 2))
            assert seen[:5].max() < 80 < 170 < seen[-5:].min(), "no mode loses its brightness"


@pytest.mark.parametrize("kind", KINDS)
def test_the_fixtures_are_of_the_kind_that_they_say(kind: str, tmp_path: Path) -> None:
    modes = {"grey": "L", "cmyk": "CMYK", "palette": "P", "alpha": "RGBA", "16-bit": "I;16"}
    with Image.open(picture(tmp_path / "0.jpg", kind, 0)) as image:
        assert image.mode == modes.get(kind, "RGB")
        assert image.size == ((8, 12) if kind == "rotated" else (12, 8))


def test_the_tree_may_lie_elsewhere_and_images_keep_their_keys(grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, folder in {
        "cub": "CUB_200_2011", "food101": "food-101", "dtd": "dtd", "fgvc_aircraft": "fgvc-aircraft-2013b",
        "cifar10": "cifar-10-batches-bin", "imagenette": "imagenette2",
    }.items():  # fmt: skip
        assert opened(name, grown / name / folder).ids == opened(name, grown / name).ids
    monkeypatch.setenv("LGCLIP_DATA", str(grown))
    assert opened("pets", grown / "pets").ids == pets.Pets(counts=False).ids


# Splits.


@pytest.mark.parametrize("name", TREES)
def test_the_parts_of_a_split_are_disjoint_and_reachable_and_all_is_all(name: str, grown: Path) -> None:
    partitions = MODULES[name].IMAGES
    everything = set(opened(name, grown / name, "split=all").ids)
    for partition, parts in partitions.items():
        if partition == "all":
            continue
        found = {part: opened(name, grown / name, f"split={partition}-{part}").ids for part in parts}
        assert set.union(*map(set, found.values())) == everything
        assert sum(map(len, found.values())) == len(everything)
        judged = "test" if "test" in parts else "val"
        assert opened(name, grown / name, f"split={partition}").ids == found[judged]
        if {"train", "val"} <= parts.keys():
            both = opened(name, grown / name, f"split={partition}-trainval").ids
            assert both == [*found["train"], *found["val"]]


@pytest.mark.parametrize(
    ("split", "parts", "images", "shown"),
    [
        ("official", ("test",), 3, "official test"),
        ("official-train", ("train",), 5, "official train"),
        ("official-trainval", ("train", "val"), 9, "official trainval"),
        ("all", ("train", "val", "test"), 12, "all"),
        ("partition10", ("test",), 1, "partition 10 test"),
        ("partition10-train", ("train",), None, "partition 10 train"),
        ("odd", ("val",), 7, "odd val"),
    ],
)
def test_a_split_is_read_and_shown_in_full(split: str, parts: tuple[str, ...], images: int | None, shown: str) -> None:
    partitions: dict[str, dict[str, int | None]] = {
        "official": {"train": 5, "val": 4, "test": 3},
        "partition10": {"train": None, "test": 1},
        "odd": {"train": 1, "val": 7},
    }
    found = chosen(split, partitions)
    assert (found.parts, found.images, found.shown) == (parts, images, shown)


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("split", ["test", "official-tset", "coop-all", "all-all", "", "partition11"])
def test_a_split_that_is_not_there_is_an_error_that_lists_those_that_are(name: str, split: str, grown: Path) -> None:
    known = ", ".join(p + "".join(f"[-{part}]" for part in parts) for p, parts in MODULES[name].IMAGES.items()
                      if p != "all")  # fmt: skip
    with pytest.raises(ValueError, match=re.escape(f"dataset.split={split}: choose {known}, all")):
        type(opened(name, grown / name))(str(grown / name), split, counts=False)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("name", "overrides", "split"),
    [
        ("cub", [], "official test (400 of 5,794 images)"),
        ("eurosat", ["split=torchgeo"], "torchgeo test (10 of 5,400 images)"),
        ("flowers102", ["split=coop-train"], "coop train"),
        ("dtd", ["split=partition3-val"], "partition 3 val (47 of 1,880 images)"),
        ("fgvc_aircraft", ["level=family", "names=folder"], "official test (100 of 3,333 images), by family"),
        ("imagenette", ["size=160px"], "official val (10 of 3,925 images), 160px"),
    ],
)
def test_results_name_the_split_and_what_of_it_is_there(
    name: str, overrides: list[str], split: str, grown: Path
) -> None:
    assert opened(name, grown / name, *overrides).split == split


def test_a_whole_data_set_is_shown_without_a_remark(grown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cub, "IMAGES", {"official": {"train": 200, "test": 400}})
    data = opened("cub", grown / "cub", counts=True)
    assert (data.split, len(data)) == ("official test", 400)


# Counts.


@pytest.mark.parametrize("name", TREES)
def test_a_part_is_not_taken_for_the_whole(name: str, grown: Path) -> None:
    data = opened(name, grown / name)
    with pytest.raises(
        Exception, match=rf"dataset={name}: {len(data)} images found, the split has \d+\..*counts=false"
    ):
        opened(name, grown / name, counts=True)


@pytest.mark.parametrize("name", TREES)
def test_the_official_counts_are_the_published_ones(name: str) -> None:
    published = {  # classes apart: what the papers and pages say of the whole
        "cub": 11_788, "eurosat": 27_000, "flowers102": 8_189, "food101": 101_000, "pets": 7_349, "dtd": 5_640,
        "fgvc_aircraft": 10_000, "cifar10": 60_000, "imagenette": 13_394,
    }  # fmt: skip
    for parts in MODULES[name].IMAGES.values():
        if None not in parts.values():
            assert sum(parts.values()) == published[name]


# Where they come from.


def test_addresses_and_checksums_are_torchvision_s() -> None:
    def known(archive: Archive) -> tuple[str, str | None]:
        return archive.url, (archive.checksum or "").removeprefix("md5:") or None

    assert known(food101.TREE.archives[0]) == (tv.Food101._URL, tv.Food101._MD5)
    assert known(dtd.TREE.archives[0]) == (tv.DTD._URL, tv.DTD._MD5)
    assert tuple(map(known, pets.TREE.archives)) == tv.OxfordIIITPet._RESOURCES
    assert {size: known(archive) for size, archive in imagenette.ARCHIVES.items()} == tv.Imagenette._ARCHIVES
    assert known(fgvc_aircraft.TREE.archives[0]) == (tv.FGVCAircraft._URL, None), "torchvision knows no checksum"
    prefix, files = tv.Flowers102._download_url_prefix, tv.Flowers102._file_dict
    assert [known(archive) for archive in flowers102.TREE.archives] == [
        (prefix + files[kind][0], files[kind][1]) for kind in ("image", "label", "setid")
    ]
    # torchvision reads the pickled version of CIFAR-10, from the same folder.
    assert cifar10.TREE.archives[0].url.rpartition("/")[0] == tv.CIFAR10.url.rpartition("/")[0]


def test_eurosat_s_address_is_torchvision_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, str] = {}
    monkeypatch.setattr(
        "torchvision.datasets.eurosat.download_and_extract_archive",
        lambda url, download_root, md5: asked.update(url=url, md5=md5),
    )
    with pytest.raises(RuntimeError):
        tv.EuroSAT(tmp_path, download=True)
    archive = eurosat.TREE.archives[0]
    assert (archive.url, archive.checksum) == (asked["url"], f"md5:{asked['md5']}")


def test_every_archive_gives_what_is_looked_for() -> None:
    for name in TREES:
        archives = list(imagenette.ARCHIVES.values()) if name == "imagenette" else list(MODULES[name].TREE.archives)
        for archive in archives:
            assert archive.url.startswith(("https://", "http://data.vision.ee.ethz.ch/"))
            assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|", archive.checksum or "")
            assert archive.name == Path(archive.url).name


# A run.


@pytest.mark.parametrize("name", ["pets", "cifar10"])
def test_a_real_data_set_is_judged(name: str, grown: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    world = World(grown, encoder_folder(tmp_path / "encoder"), Path("unused"), tmp_path / "store")
    given = [f"dataset={name}", f"dataset.root={grown / name}", "dataset.counts=false", "method=clip_text"]
    overrides = [o for o in given if not o.startswith("dataset=folder")]
    result = judge(world, tmp_path / "run", *overrides)
    assert result["dataset"]["name"] == name
    assert "official test (" in result["dataset"]["split"]
    assert result["n"] == len(opened(name, grown / name))
    assert result["config"]["dataset"]["names"] == "clip"
