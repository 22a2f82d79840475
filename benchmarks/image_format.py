"""Compares JPEG with PNG as the format of stored images (B25): `python benchmarks/image_format.py`, one minute.

B25a to B25c: images of the small pipeline, 64 pixels wide. B25d to B25f: a photograph of scikit-image, 512 pixels wide.
Measured are the file size, and the time of one thread to encode and to decode an image. First checks that PNG is
lossless, and computes how much the pixels of JPEG differ.
"""

from collections.abc import Sequence
from io import BytesIO

import numpy as np
import torch
from comparison import Row, alternate, measure_seconds, save_row

from lgclip.datasets.embedded import Shapes
from lgclip.datasets.image_decoding import read_image
from lgclip.diffuser.pipeline import Diffuser
from lgclip.store.image_codec import ImageCodec, codec_of
from lgclip.types import Prompt, TargetClass

COMMAND = "python benchmarks/image_format.py"
FORMATS = ("jpeg-95", "png")
ROUNDS = 5


def generate_images() -> list[np.ndarray]:
    """Generates thirty images of the small pipeline, one of each class."""
    names = Shapes().class_names
    prompts = [Prompt(TargetClass(index, name), f"a photo of a {name}.", 0) for index, name in enumerate(names)]
    # As conf/diffuser/tiny.yaml.
    diffuser = Diffuser("tiny:diffuser", steps=10, guidance=3.0, size=64, precision="fp32", channels_last=True)
    return list(diffuser.load(torch.device("cpu"))(prompts, 0))


def load_photographs() -> list[np.ndarray]:
    """Returns a photograph that comes with scikit-image, 512 pixels wide and high."""
    from skimage.data import astronaut

    return [astronaut()]


def encode(codec: ImageCodec, images: Sequence[np.ndarray]) -> list[bytes]:
    """Returns the files of images."""
    return [codec.encode(image, {"class": "a class", "text": "a photo of a class."}) for image in images]


def decode(files: Sequence[bytes]) -> list[np.ndarray]:
    """Returns the images of files."""
    return [np.asarray(read_image(BytesIO(file))) for file in files]


def measure_rows(numbers: Sequence[str], title: str, images: Sequence[np.ndarray], repeats: int) -> list[Row]:
    """Measures file size, encoding and decoding.

    Args:
        numbers: Number of each row.
        title: Description of the images.
        images: Pixels of the images (h, w, 3).
        repeats: Number of times that they are encoded in a measurement.

    Raises:
        SystemExit: If PNG changes a pixel.
    """
    files = {name: encode(codec_of(name), images) for name in FORMATS}
    decoded = {name: decode(files[name]) for name in FORMATS}
    for before, after in zip(images, decoded["png"], strict=True):
        if not np.array_equal(before, after):
            raise SystemExit("PNG changes a pixel")
    differences = [np.abs(a.astype(int) - b).mean() for a, b in zip(images, decoded["jpeg-95"], strict=True)]
    equality = f"pixels, mean difference {np.mean(differences):.2f} of 255 gray levels"
    count = len(images) * repeats
    sizes = {name: sum(map(len, files[name])) / len(images) / 1000 for name in FORMATS}
    rows = [
        Row(
            numbers[0],
            f"{title}: size as JPEG of quality 95",
            "PNG",
            "",
            "kB",
            [sizes["jpeg-95"]],
            [sizes["png"]],
            equality,
            COMMAND,
        )
    ]

    def measure_encoding(name: str) -> float:
        return measure_seconds(lambda: [encode(codec_of(name), images) for _ in range(repeats)]) / count * 1000

    def measure_decoding(name: str) -> float:
        return measure_seconds(lambda: [decode(files[name]) for _ in range(repeats)]) / count * 1000

    for number, verb, measure in (
        (numbers[1], "encoding", measure_encoding),
        (numbers[2], "decoding", measure_decoding),
    ):
        milliseconds = alternate(lambda m=measure: m("jpeg-95"), lambda m=measure: m("png"), ROUNDS)
        task = f"{title}: {verb} a JPEG of quality 95"
        rows.append(Row(number, task, "as PNG", "", "ms", *milliseconds, equality, COMMAND))
    return rows


def main() -> None:
    """Measures and saves the rows."""
    torch.set_num_threads(1)
    for row in measure_rows(("B25a", "B25b", "B25c"), "image of the small pipeline, 64 pixels", generate_images(), 20):
        save_row(row)
    title = "photograph of 512 pixels (`astronaut` of scikit-image)"
    for row in measure_rows(("B25d", "B25e", "B25f"), title, load_photographs(), 20):
        save_row(row)


if __name__ == "__main__":
    main()
