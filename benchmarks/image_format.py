"""PNG against JPEG as the format of stored images: `python benchmarks/image_format.py`, in a minute (B25).

B25a to B25c: images of the small pipeline, 64 pixels wide. B25d to B25f: a photograph of scikit-image of 512 pixels.
Bytes of a file, seconds to encode it, and seconds to decode it again, by one thread. That PNG gives back the
pixels, and how far those of JPEG are apart, comes first.
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


def generated() -> list[np.ndarray]:
    """Thirty images of the small pipeline, one of each class."""
    names = Shapes().class_names
    prompts = [Prompt(TargetClass(index, name), f"a photo of a {name}.", 0) for index, name in enumerate(names)]
    # As conf/diffuser/tiny.yaml.
    diffuser = Diffuser("tiny:diffuser", steps=10, guidance=3.0, size=64, precision="fp32", channels_last=True)
    return list(diffuser.load(torch.device("cpu"))(prompts, 0))


def photographs() -> list[np.ndarray]:
    """A photograph that comes with scikit-image, 512 pixels wide and high."""
    from skimage.data import astronaut

    return [astronaut()]


def encoded(codec: ImageCodec, images: Sequence[np.ndarray]) -> list[bytes]:
    """The files of some images."""
    return [codec.encode(image, {"class": "a class", "text": "a photo of a class."}) for image in images]


def decoded(files: Sequence[bytes]) -> list[np.ndarray]:
    """The images of some files."""
    return [np.asarray(read_image(BytesIO(file))) for file in files]


def rows(numbers: Sequence[str], name: str, images: Sequence[np.ndarray], repeats: int) -> list[Row]:
    """Bytes, encoding and decoding.

    Args:
        numbers: Number of each row.
        name: What the images are.
        images: The images.
        repeats: How often they are encoded in a measurement.

    Raises:
        SystemExit: If PNG does not give back the pixels.
    """
    files = {name: encoded(codec_of(name), images) for name in FORMATS}
    back = {name: decoded(files[name]) for name in FORMATS}
    for before, after in zip(images, back["png"], strict=True):
        if not np.array_equal(before, after):
            raise SystemExit("PNG has changed a pixel")
    apart = [np.abs(a.astype(int) - b).mean() for a, b in zip(images, back["jpeg-95"], strict=True)]
    equal = f"pixels, apart by {np.mean(apart):.2f} gray levels of 255 on average"
    count = len(images) * repeats
    size = {name: sum(map(len, files[name])) / len(images) / 1000 for name in FORMATS}
    found = [
        Row(
            numbers[0],
            f"{name}, a JPEG of quality 95",
            "PNG",
            "",
            "kB",
            [size["jpeg-95"]],
            [size["png"]],
            equal,
            COMMAND,
        )
    ]

    def encoding(name: str) -> float:
        return measure_seconds(lambda: [encoded(codec_of(name), images) for _ in range(repeats)]) / count * 1000

    def decoding(name: str) -> float:
        return measure_seconds(lambda: [decoded(files[name]) for _ in range(repeats)]) / count * 1000

    for number, verb, measure in ((numbers[1], "encoding", encoding), (numbers[2], "decoding", decoding)):
        ours, theirs = alternate(lambda m=measure: m("jpeg-95"), lambda m=measure: m("png"), ROUNDS)
        found.append(
            Row(number, f"{name}, {verb} one as JPEG of quality 95", "as PNG", "", "ms", ours, theirs, equal, COMMAND)
        )
    return found


def main() -> None:
    """Measures all."""
    torch.set_num_threads(1)
    for row in rows(("B25a", "B25b", "B25c"), "an image of the small pipeline, 64 pixels", generated(), 20):
        save_row(row)
    title = "a photograph of 512 pixels (`astronaut` of scikit-image)"
    for row in rows(("B25d", "B25e", "B25f"), title, photographs(), 20):
        save_row(row)


if __name__ == "__main__":
    main()
