"""Compares `encoder.resize=fast` with `exact` (B22): `python benchmarks/fast_resize.py`, four minutes on two cores.

- B22a: preprocessing of decoded images to 224 pixels, one thread.
- B22b and B22c: the encoding stage with its store, JPEG files to features, with the package's small encoder, which
  spends most of its time on loading, and with a ViT-S-32.

Pixels and features are compared first.
"""

import tempfile
from pathlib import Path

import torch
from comparison import Row, alternate, measure_seconds, save_row
from encode import StageEncoder
from fixtures import NAMES, save_random_vit_s_32, write_photos
from torch import Tensor

from lgclip.datasets.image_decoding import read_image
from lgclip.encoder.open_clip import OpenClip

COMMAND = "python benchmarks/fast_resize.py"
IMAGES_PER_CLASS = 12
ROUNDS = 3


def measure_preprocessing(model: Path, folder: Path) -> Row:
    """Measures B22a.

    Raises:
        SystemExit: If a pixel differs by more than a gray level.
    """
    images = [read_image(path) for path in sorted(folder.rglob("*.jpg"))[:100]]
    exact, fast = (OpenClip(str(model), resize=resize).transform() for resize in ("exact", "fast"))
    differences = [(fast(image) - exact(image)).abs() for image in images]
    levels = 255 * 0.28 * max(difference.max().item() for difference in differences)  # no channel deviates by more
    if levels > 1.1:
        raise SystemExit(f"pixels differ by up to {levels:.1f} gray levels")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    measured, baselines = alternate(
        lambda: measure_seconds(lambda: list(map(fast, images))),
        lambda: measure_seconds(lambda: list(map(exact, images))),
        ROUNDS,
    )
    torch.set_num_threads(threads)
    return Row(
        "B22a", f"preprocessing of {len(images)} images of 500 x 375 to 224, one thread, `encoder.resize=fast`",
        "`exact` (Pillow)", "", "s", measured, baselines, "pixels, within one gray level", COMMAND,
    )  # fmt: skip


def measure_encoding(number: str, name: str, model: str, work: Path) -> Row:
    """Measures B22b or B22c.

    Raises:
        SystemExit: If a feature's cosine to the exact one is below 0.99.
    """
    encoders = {
        resize: StageEncoder(Path(model), work / "photos", work / resize, 0, resize=resize)
        for resize in ("exact", "fast")
    }
    features: dict[str, Tensor] = {}

    def measure(resize: str) -> float:
        elapsed, features[resize] = encoders[resize].encode_files()
        return elapsed

    measured, baselines = alternate(lambda: measure("fast"), lambda: measure("exact"), ROUNDS)
    images = IMAGES_PER_CLASS * len(NAMES)
    cosines = torch.nn.functional.cosine_similarity(features["fast"], features["exact"])
    if cosines.min() < 0.99:
        raise SystemExit(f"features have a cosine of only {cosines.min():.5f}")
    return Row(
        number, f"encoding stage with its store, {images} JPEGs, {name}, `encoder.resize=fast`", "`exact`",
        "", "s", measured, baselines, f"features, mean cosine {cosines.mean():.6f}, minimum {cosines.min():.6f}",
        COMMAND,
    )  # fmt: skip


def main() -> None:
    """Measures and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        write_photos(work / "photos", IMAGES_PER_CLASS)
        large = save_random_vit_s_32(work / "random")
        save_row(measure_preprocessing(large, work / "photos"))
        save_row(measure_encoding("B22b", "the small encoder", "tiny:encoder", work))
        save_row(measure_encoding("B22c", "ViT-S-32 fp32", str(large), work))


if __name__ == "__main__":
    main()
