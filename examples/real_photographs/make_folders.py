"""Makes folders of images from the photographs that scikit-image and scikit-learn bring along.

    python examples/real_photographs/make_folders.py FOLDER

Each photograph is a class. Squares of its left half are the images of `prototypes/`, squares of its right half those of
`photographs/`, so that no pixel is in both. `unknown/` holds squares of photographs that are no class.
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data
from sklearn.datasets import load_sample_image

Photographs = Mapping[str, Callable[[], np.ndarray]]
"""Loads the pixels of a photograph, by its name."""

CLASSES: Photographs = {
    "astronaut": data.astronaut,
    "brick wall": data.brick,
    "cat": data.chelsea,
    "coins": data.coins,
    "cup of coffee": data.coffee,
    "flower": lambda: load_sample_image("flower.jpg"),
    "galaxies": data.hubble_deep_field,
    "grass": data.grass,
    "gravel": data.gravel,
    "moon": data.moon,
    "motorcycle": lambda: data.stereo_motorcycle()[0],
    "pagoda": lambda: load_sample_image("china.jpg"),
    "printed page": data.page,
    "rocket": data.rocket,
}
UNKNOWN: Photographs = {
    "cameraman": data.camera,
    "cell": data.cell,
    "clock": data.clock,
    "handwriting": data.text,
    "retina": data.retina,
    "tissue": data.immunohistochemistry,
}
SQUARES = 5
"""Number of images of each half."""


def halves(pixels: np.ndarray) -> tuple[Image.Image, Image.Image]:
    """Returns the left and the right half of a photograph."""
    image = Image.fromarray(pixels).convert("RGB")
    middle = image.width // 2
    return image.crop((0, 0, middle, image.height)), image.crop((middle, 0, image.width, image.height))


def squares(image: Image.Image, seed: int) -> list[Image.Image]:
    """Returns squares of 60% to 100% of an image's shorter side, every second one mirrored."""
    rng = np.random.default_rng(seed)
    cut = []
    for index in range(SQUARES):
        side = int(min(image.size) * rng.uniform(0.6, 1))
        left = int(rng.integers(image.width - side + 1))
        top = int(rng.integers(image.height - side + 1))
        square = image.crop((left, top, left + side, top + side))
        if index % 2:
            square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        cut.append(square)
    return cut


def make_folders(root: Path, classes: Photographs = CLASSES, unknown: Photographs = UNKNOWN) -> None:
    """Writes the folders, and `names.txt` with the names of the classes."""
    for label, (name, load) in enumerate(classes.items()):
        for kind, half in zip(("prototypes", "photographs"), halves(load()), strict=True):
            folder = root / kind / name
            folder.mkdir(parents=True, exist_ok=True)
            for number, square in enumerate(squares(half, label)):
                square.save(folder / f"{number}_{name}.png")
    (root / "unknown").mkdir(exist_ok=True)
    for label, (name, load) in enumerate(unknown.items()):
        _, half = halves(load())
        for number, square in enumerate(squares(half, label)):
            square.save(root / "unknown" / f"{number}_{name}.png")
    (root / "names.txt").write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")


if __name__ == "__main__":
    make_folders(Path(sys.argv[1]))
