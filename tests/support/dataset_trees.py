"""Writes small trees in the layout of each public data set's archives, with every unusual kind of image.

`tree("cub", root)` writes what unpacking the archives of `dataset=cub` in `root` would leave: every class,
a few images each. `tree(name, root)` can be evaluated with `dataset=NAME dataset.root=ROOT dataset.counts=false`.
"""

import json
from collections.abc import Callable, Iterator
from itertools import chain, cycle, product
from pathlib import Path

import numpy as np
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image

from lgclip.datasets import cub, eurosat, imagenette
from lgclip.datasets.base import Dataset
from lgclip.datasets.image_files import CLASSNAMES

CONF = Path(__file__).parents[2] / "conf"

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FAMILIES = ("707", "A300", "An-12", "F-16", "Fokker 50", "Boeing 737")
MAKERS = ("Boeing", "Airbus", "Antonov", "Lockheed Martin", "Fokker")


def write_image(path: Path, kind: str, seed: int) -> Path:
    """Writes a 12x8 image whose left half is dark and right half light, tinted by the seed.

    The file's content is of the given kind whatever its name ends in: real archives hold PNGs and GIFs called .jpg.
    """
    rng = np.random.default_rng(seed)
    pixels = np.zeros((8, 12, 3), np.uint8)
    pixels[:, :6], pixels[:, 6:] = rng.integers(0, 60, 3), rng.integers(180, 256, 3)
    image = Image.fromarray(pixels)
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "grey":
            image.convert("L").save(path, "JPEG")
        case "cmyk":
            image.convert("CMYK").save(path, "JPEG")
        case "palette":
            image.convert("P").save(path, "GIF")
        case "alpha":
            image.convert("RGBA").save(path, "PNG")
        case "16-bit":
            Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(path, "PNG")
        case "rotated":  # stored lying, to be turned by 90 degrees
            exif = image.getexif()
            exif[0x0112] = 6
            image.transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", exif=exif)
        case "rgb":
            image.save(path, "JPEG")
        case _:
            raise AssertionError(kind)
    return path


KINDS = ("rgb", "grey", "cmyk", "palette", "alpha", "16-bit", "rotated")


class _Camera:
    """Writes images of every kind in turn, all different."""

    def __init__(self) -> None:
        self._kinds: Iterator[tuple[int, str]] = enumerate(cycle(KINDS))

    def __call__(self, path: Path) -> None:
        seed, kind = next(self._kinds)
        write_image(path, kind, seed)


def _write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def class_names_of(dataset: str, choice: str = "clip") -> list[str]:
    """Returns a list of class names of the package."""
    return (CLASSNAMES / f"{dataset}.{choice}.txt").read_text(encoding="utf-8").splitlines()


def _cub(root: Path) -> None:
    """Writes three images per class, the second for training; images.txt is not sorted by number."""
    camera = _Camera()
    base = root / "CUB_200_2011"
    species = ["Black_footed_Albatross", "Laysan_Albatross", *(f"Made_up_Bird_{n}" for n in range(3, cub.CLASSES + 1))]
    folders = [f"{n:03d}.{name}" for n, name in enumerate(species, 1)]
    images = [
        (f"{folder}/{folder[4:]}_{i:04d}_{n}.jpg", n, int(i == 1))
        for (n, folder), i in product(enumerate(folders, 1), range(3))
    ]
    for image, _, _ in images:
        camera(base / "images" / image)
    numbered = list(enumerate(images, 1))
    _write(base / "images.txt", *(f"{i} {image}" for i, (image, _, _) in numbered))
    _write(base / "image_class_labels.txt", *(f"{i} {label}" for i, (_, label, _) in reversed(numbered)))
    _write(base / "train_test_split.txt", *(f"{i} {train}" for i, (_, _, train) in numbered))
    _write(base / "classes.txt", *(f"{n} {folder}" for n, folder in enumerate(folders, 1)))
    _write(base / "README", "made for tests")
    _write(root / "attributes.txt", "1 has_bill_shape::curved_(up_or_down)")


def _eurosat(root: Path) -> None:
    """Writes five images per class, which CoOp's and torchgeo's files split differently."""
    camera = _Camera()
    listed = {"train": [], "val": [], "test": []}
    coop: dict[str, list[tuple[str, int, str]]] = {"train": [], "val": [], "test": []}
    class_names = class_names_of("eurosat", "coop")
    for label, name in enumerate(eurosat.CLASSES):
        for i in range(1, 6):
            file = f"{name}_{i}.jpg"
            camera(root / "2750" / name / file)
            listed["test" if i == 5 else "val" if i == 4 else "train"].append(file)
            coop["test" if i < 3 else "val" if i == 3 else "train"].append(
                (f"{name}/{file}", label, class_names[label])
            )
    for part, files in listed.items():
        _write(root / f"eurosat-{part}.txt", *files)
    (root / eurosat.COOP).write_text(json.dumps(coop), encoding="utf-8")


def _flowers102(root: Path) -> None:
    """Writes an image per class for training, validation and test each, with numbers that begin with 1."""
    from scipy.io import savemat

    camera = _Camera()
    labels = np.tile(np.arange(1, 103, dtype=np.uint8), 3)
    for image in range(1, len(labels) + 1):
        camera(root / "jpg" / f"image_{image:05d}.jpg")
    savemat(root / "imagelabels.mat", {"labels": labels[None]})
    numbers = np.arange(1, len(labels) + 1, dtype=np.uint16)
    train = numbers[:102]
    val = numbers[102:204]
    test = numbers[204:]
    savemat(root / "setid.mat", {"trnid": train[None], "valid": val[None], "tstid": test[None, ::-1]})
    coop = {}
    for first, part in enumerate(("train", "val", "test"), 1):
        coop[part] = [
            (f"image_{i:05d}.jpg", int(labels[i - 1]) - 1, "some flower") for i in range(first, len(labels) + 1, 3)
        ]
    (root / "split_zhou_OxfordFlowers.json").write_text(json.dumps(coop), encoding="utf-8")


def _food101(root: Path) -> None:
    """Writes two training images and a test image per class; the JSON files are not sorted by name."""
    camera = _Camera()
    base = root / "food-101"
    dishes = [name.replace(" ", "_") for name in class_names_of("food101")]
    listed: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    coop: dict[str, list[tuple[str, int, str]]] = {"train": [], "val": [], "test": []}
    for index, dish in enumerate(dishes):
        images = [f"{dish}/{1000 * index + i}" for i in (37, 5, 21)]
        for image in images:
            camera(base / "images" / f"{image}.jpg")
        listed["train"][dish], listed["test"][dish] = images[:2], images[2:]
        for part, image in zip(coop, images, strict=True):
            coop[part].append((f"{image}.jpg", index, dish))
    (base / "split_zhou_Food101.json").write_text(json.dumps(coop), encoding="utf-8")
    for part, content in listed.items():
        _write(base / "meta" / f"{part}.txt", *(image for image in chain.from_iterable(content.values())))
        (base / "meta" / f"{part}.json").write_text(json.dumps(dict(reversed(content.items()))), encoding="utf-8")
    _write(base / "meta" / "classes.txt", *dishes)
    _write(base / "meta" / "labels.txt", *(name.capitalize() for name in class_names_of("food101")))
    _write(base / "license_agreement.txt", "made for tests")


PETS_CATS: tuple[str, ...] = (
    "Abyssinian", "Bengal", "Birman", "Bombay", "British_Shorthair", "Egyptian_Mau",
    "Maine_Coon", "Persian", "Ragdoll", "Russian_Blue", "Siamese", "Sphynx",
)  # fmt: skip


def _pets(root: Path) -> None:
    """Writes three images per breed; numbers are ordered by lower-case name, cats' names are capitalized."""
    camera = _Camera()
    rows = []
    breeds = [name.replace(" ", "_") for name in class_names_of("pets")]
    number_of = {breed: breeds.index(breed) + 1 for breed in breeds}
    dogs = [breed for breed in breeds if breed not in PETS_CATS]
    for breed in breeds:
        species = 1 if breed in PETS_CATS else 2
        breed_index = (list(PETS_CATS) if species == 1 else dogs).index(breed) + 1
        for i in (1, 10, 2):
            camera(root / "images" / f"{breed}_{i}.jpg")
            rows.append((i, f"{breed}_{i} {number_of[breed]} {species} {breed_index}"))
    _write(root / "annotations" / "trainval.txt", *(row for i, row in sorted(rows, key=lambda r: r[1]) if i == 10))
    _write(root / "annotations" / "test.txt", *(row for i, row in rows if i != 10))
    _write(root / "annotations" / "list.txt", "#Image CLASS-ID SPECIES BREED ID", *(row for _, row in rows))
    (root / "annotations" / "trimaps").mkdir()
    (root / "images" / "Abyssinian_100.mat").write_bytes(b"as in the archive")


def _dtd(root: Path) -> None:
    """Writes three images per texture, which the ten partitions split in turn."""
    camera = _Camera()
    base = root / "dtd"
    textures = class_names_of("dtd")
    for texture in textures:
        for i in (2, 4, 8):
            camera(base / "images" / texture / f"{texture}_{i:04d}.jpg")
    (base / "images" / ".directory").touch()
    for partition in range(1, 11):
        for index, part in enumerate(("train", "val", "test")):
            i = (2, 4, 8)[(index + partition) % 3]
            _write(base / "labels" / f"{part}{partition}.txt", *(f"{t}/{t}_{i:04d}.jpg" for t in textures))


def _fgvc_aircraft(root: Path) -> None:
    """Writes an image per variant for training, validation and test each."""
    camera = _Camera()
    base = root / "fgvc-aircraft-2013b" / "data"
    variants = class_names_of("fgvc_aircraft")
    levels = {
        "variant": lambda index: variants[index],
        "family": lambda index: FAMILIES[index % len(FAMILIES)],
        "manufacturer": lambda index: MAKERS[index % len(MAKERS)],
    }
    _write(base / "variants.txt", *variants)
    _write(base / "families.txt", *FAMILIES)
    _write(base / "manufacturers.txt", *MAKERS)
    parts = ("train", "val", "test")
    for index in range(len(variants)):
        for i in range(3):
            camera(base / "images" / f"{index:04d}{i:03d}.jpg")
    for level, name in levels.items():
        for i, part in enumerate(parts):
            _write(
                base / f"images_{level}_{part}.txt",
                *(f"{index:04d}{i:03d} {name(index)}" for index in range(len(variants))),
            )


def _cifar10(root: Path) -> None:
    """Writes forty images per file; label, then the red, green and blue plane."""
    base = root / "cifar-10-batches-bin"
    rng = np.random.default_rng(0)
    base.mkdir(parents=True)
    for file in (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"):
        records = rng.integers(0, 256, (40, 3073), np.uint8)
        records[:, 0] = rng.permutation(40) % 10
        (base / file).write_bytes(records.tobytes())
    _write(base / "batches.meta.txt", *CIFAR, "")
    _write(base / "readme.html", "made for tests")


def _imagenette(root: Path) -> None:
    """Writes two training images and a validation image per class in two of the sizes."""
    camera = _Camera()
    for size in ("imagenette2", "imagenette2-160"):
        for wordnet_id in imagenette.WORDNET_IDS:
            for i in (12, 9):
                camera(root / size / "train" / wordnet_id / f"{wordnet_id}_{i}.JPEG")
            camera(root / size / "val" / wordnet_id / f"ILSVRC2012_val_{1:08d}.JPEG")
        _write(root / size / "noisy_imagenette.csv", "path,noisy_labels_0")


TREES: dict[str, Callable[[Path], None]] = {
    "cub": _cub,
    "eurosat": _eurosat,
    "flowers102": _flowers102,
    "food101": _food101,
    "pets": _pets,
    "dtd": _dtd,
    "fgvc_aircraft": _fgvc_aircraft,
    "cifar10": _cifar10,
    "imagenette": _imagenette,
}


def build_tree(name: str, root: Path) -> Path:
    """Writes the fixture tree of a data set; returns the root."""
    root.mkdir(parents=True, exist_ok=True)
    TREES[name](root)
    return root


def build_all_trees(root: Path) -> Path:
    """Writes every data set's tree in a folder of its name; returns the root."""
    for name in TREES:
        build_tree(name, root / name)
    return root


def load_dataset(name: str, root: Path, *overrides: str, counts: bool = False) -> Dataset:
    """Returns the data set of `dataset=NAME dataset.root=ROOT`."""
    base_overrides = [f"dataset={name}", f"dataset.root={root}", f"dataset.counts={counts}"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("evaluate", [*base_overrides, *(f"dataset.{override}" for override in overrides)])
    return instantiate(config.dataset, _convert_="all")
