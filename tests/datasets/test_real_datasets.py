"""Tests the public data sets on fixture trees in their archives' layout: labels, names, splits, counts, errors."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as tv
from dataset_trees import KINDS, TREES, build_all_trees, load_dataset, write_image
from factories import Sandbox, evaluate_run, make_encoder
from PIL import Image

from lgclip.datasets import cifar10, cub, dtd, eurosat, fgvc_aircraft, flowers102, food101, imagenette, pets
from lgclip.datasets.base import Dataset
from lgclip.datasets.layout import Archive, chosen

MODULES = {
    "cub": cub, "eurosat": eurosat, "flowers102": flowers102, "food101": food101, "pets": pets, "dtd": dtd,
    "fgvc_aircraft": fgvc_aircraft, "cifar10": cifar10, "imagenette": imagenette,
}  # fmt: skip
CLASSES = {
    "cub": 200, "eurosat": 10, "flowers102": 102, "food101": 101, "pets": 37, "dtd": 47,
    "fgvc_aircraft": 100, "cifar10": 10, "imagenette": 10,
}  # fmt: skip


def _places(data: Dataset) -> list[str]:
    """Returns where each image is: ids are equal for images of equal content, which the small trees repeat."""
    return [data.where(index) for index in range(len(data))]


@pytest.fixture(scope="module")
def dataset_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_all_trees(tmp_path_factory.mktemp("data"))


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_dataset_is_complete_with_every_image_kind(name: str, dataset_root: Path) -> None:
    data = load_dataset(name, dataset_root / name)
    assert len(data) == len(data.labels) == len(set(_places(data))) > 0
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
def test_fixtures_have_the_declared_kinds(kind: str, tmp_path: Path) -> None:
    modes = {"grey": "L", "cmyk": "CMYK", "palette": "P", "alpha": "RGBA", "16-bit": "I;16"}
    with Image.open(write_image(tmp_path / "0.jpg", kind, 0)) as image:
        assert image.mode == modes.get(kind, "RGB")
        assert image.size == ((8, 12) if kind == "rotated" else (12, 8))


@pytest.mark.slow
def test_keys_do_not_depend_on_the_root(dataset_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, folder in {
        "cub": "CUB_200_2011", "food101": "food-101", "dtd": "dtd", "fgvc_aircraft": "fgvc-aircraft-2013b",
        "cifar10": "cifar-10-batches-bin", "imagenette": "imagenette2",
    }.items():  # fmt: skip
        assert load_dataset(name, dataset_root / name / folder).ids == load_dataset(name, dataset_root / name).ids
    monkeypatch.setenv("LGCLIP_DATA", str(dataset_root))
    assert load_dataset("pets", dataset_root / "pets").ids == pets.Pets(counts=False).ids


# Splits.


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_split_parts_are_disjoint_and_complete(name: str, dataset_root: Path) -> None:
    partitions = MODULES[name].IMAGES
    everything = set(_places(load_dataset(name, dataset_root / name, "split=all")))
    for partition, parts in partitions.items():
        if partition == "all":
            continue
        splits = {part: load_dataset(name, dataset_root / name, f"split={partition}-{part}") for part in parts}
        places = {part: _places(split) for part, split in splits.items()}
        assert set.union(*map(set, places.values())) == everything
        assert sum(map(len, places.values())) == len(everything)
        predictions = "test" if "test" in parts else "val"
        assert _places(load_dataset(name, dataset_root / name, f"split={partition}")) == places[predictions]
        if {"train", "val"} <= parts.keys():
            both = _places(load_dataset(name, dataset_root / name, f"split={partition}-trainval"))
            assert both == [*places["train"], *places["val"]]


@pytest.mark.parametrize(
    ("split", "parts", "images", "title"),
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
def test_split_is_described_in_full(split: str, parts: tuple[str, ...], images: int | None, title: str) -> None:
    partitions: dict[str, dict[str, int | None]] = {
        "official": {"train": 5, "val": 4, "test": 3},
        "partition10": {"train": None, "test": 1},
        "odd": {"train": 1, "val": 7},
    }
    result = chosen(split, partitions)
    assert (result.parts, result.images, result.title) == (parts, images, title)


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("split", ["test", "official-tset", "coop-all", "all-all", "", "partition11"])
def test_unknown_split_lists_valid_ones(name: str, split: str, dataset_root: Path) -> None:
    known = ", ".join(p + "".join(f"[-{part}]" for part in parts) for p, parts in MODULES[name].IMAGES.items()
                      if p != "all")  # fmt: skip
    with pytest.raises(ValueError, match=re.escape(f"dataset.split={split}: choose {known}, all")):
        type(load_dataset(name, dataset_root / name))(str(dataset_root / name), split, counts=False)  # pyright: ignore[reportCallIssue]


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
def test_results_name_the_split(name: str, overrides: list[str], split: str, dataset_root: Path) -> None:
    assert load_dataset(name, dataset_root / name, *overrides).split == split


def test_complete_dataset_has_no_remark(dataset_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cub, "IMAGES", {"official": {"train": 200, "test": 400}})
    data = load_dataset("cub", dataset_root / "cub", counts=True)
    assert (data.split, len(data)) == ("official test", 400)


# Counts.


@pytest.mark.slow
@pytest.mark.parametrize("name", TREES)
def test_partial_dataset_is_marked(name: str, dataset_root: Path) -> None:
    data = load_dataset(name, dataset_root / name)
    with pytest.raises(
        Exception, match=rf"dataset={name}: {len(data)} images found, the split has \d+\..*counts=false"
    ):
        load_dataset(name, dataset_root / name, counts=True)


@pytest.mark.parametrize("name", TREES)
def test_official_counts_match_publications(name: str) -> None:
    published = {  # classes apart: what the papers and pages say of the whole
        "cub": 11_788, "eurosat": 27_000, "flowers102": 8_189, "food101": 101_000, "pets": 7_349, "dtd": 5_640,
        "fgvc_aircraft": 10_000, "cifar10": 60_000, "imagenette": 13_394,
    }  # fmt: skip
    for parts in MODULES[name].IMAGES.values():
        if None not in parts.values():
            assert sum(parts.values()) == published[name]


# Where they come from.


def test_urls_and_checksums_match_torchvision() -> None:
    def known(archive: Archive) -> tuple[str, str | None]:
        return archive.url, (archive.checksum or "").removeprefix("md5:") or None

    assert known(food101.TREE.archives[0]) == (tv.Food101._URL, tv.Food101._MD5)
    assert known(dtd.TREE.archives[0]) == (tv.DTD._URL, tv.DTD._MD5)
    assert tuple(map(known, pets.TREE.archives)) == tv.OxfordIIITPet._RESOURCES
    assert {size: known(archive) for size, archive in imagenette.ARCHIVES.items()} == tv.Imagenette._ARCHIVES
    assert known(fgvc_aircraft.TREE.archives[0]) == (tv.FGVCAircraft._URL, None), "torchvision knows no checksum"
    prefix = tv.Flowers102._download_url_prefix
    files = tv.Flowers102._file_dict
    assert [known(archive) for archive in flowers102.TREE.archives] == [
        (prefix + files[kind][0], files[kind][1]) for kind in ("image", "label", "setid")
    ]
    # torchvision reads the pickled version of CIFAR-10, from the same folder.
    assert cifar10.TREE.archives[0].url.rpartition("/")[0] == tv.CIFAR10.url.rpartition("/")[0]


def test_eurosat_url_matches_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request: dict[str, str] = {}
    monkeypatch.setattr(
        "torchvision.datasets.eurosat.download_and_extract_archive",
        lambda url, download_root, md5: request.update(url=url, md5=md5),
    )
    with pytest.raises(RuntimeError):
        tv.EuroSAT(tmp_path, download=True)
    archive = eurosat.TREE.archives[0]
    assert (archive.url, archive.checksum) == (request["url"], f"md5:{request['md5']}")


def test_archives_contain_the_expected_files() -> None:
    for name in TREES:
        archives = list(imagenette.ARCHIVES.values()) if name == "imagenette" else list(MODULES[name].TREE.archives)
        for archive in archives:
            assert archive.url.startswith(("https://", "http://data.vision.ee.ethz.ch/"))
            assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|", archive.checksum or "")
            assert archive.name == Path(archive.url).name


# A run.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pets", "cifar10"])
def test_real_dataset_is_evaluated(
    name: str, dataset_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    sandbox = Sandbox(dataset_root, make_encoder(tmp_path / "encoder"), Path("unused"), tmp_path / "store")
    base_overrides = [
        f"dataset={name}",
        f"dataset.root={dataset_root / name}",
        "dataset.counts=false",
        "method=clip_text",
    ]
    overrides = [o for o in base_overrides if not o.startswith("dataset=folder")]
    result = evaluate_run(sandbox, tmp_path / "run", *overrides)
    assert result["dataset"]["name"] == name
    assert "official test (" in result["dataset"]["split"]
    assert result["n"] == len(load_dataset(name, dataset_root / name))
    assert result["config"]["dataset"]["names"] == "clip"
