"""Measures a classifier in use (B13, B14): `python benchmarks/classifier.py`, five minutes on two cores.

- B13a: `ImageClassifier.classify` from JPEG files to predictions, compared with the bare encoder: the same files
  decoded by threads, preprocessed, and passed through the tower, without a comparison of classes. ViT-S-32 with random
  weights in fp32; neither side has its model loaded beforehand. Predictions are compared first.
- B13b: the same, compared with the forward passes only, the upper bound.
- B13c and B13d: one call per image, with the model in memory.
- B14a: `lgclip build` of ten names with ten images each, from an empty store. B14b: `lgclip add` of one class. Both are
  complete processes, compared with a limit in seconds.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from comparison import Row, alternate, measure_seconds, save_row
from fixtures import NAMES, save_vit_s_32, write_photos
from torch import Tensor

from lgclip.classifier.loaded_encoder import LoadedEncoder
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.parts import ClassInfo
from lgclip.datasets.image_decoding import read_image
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import SquareCrops
from lgclip.methods.calibration import Choice, FittedChoice, Temperature
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Mean
from lgclip.methods.selection import First
from lgclip.stages.streams import CPU_ROWS

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python benchmarks/classifier.py"
IMAGES_PER_CLASS = 12
THREADS = 8
CALLS = 10


def encode_bare(encoder: OpenClip, files: Sequence[Path]) -> Tensor:
    """Returns the features of files (n, d): threads decode, the tower encodes."""
    towers = encoder.load(torch.device("cpu"))
    transform = encoder.transform()
    rows = []
    with ThreadPoolExecutor(THREADS) as pool:
        pixels = pool.map(lambda file: transform(read_image(file)), files)
        batch: list[Tensor] = []
        for index, image in enumerate(pixels, 1):
            batch.append(image)
            if len(batch) == CPU_ROWS or index == len(files):
                rows.append(towers.images(torch.stack(batch)))
                batch = []
    return torch.cat(rows)


def run_forward_passes(encoder: OpenClip, count: int) -> None:
    """Runs as many forward passes as `count` images need, and nothing else."""
    towers = encoder.load(torch.device("cpu"))
    pixels = torch.zeros(CPU_ROWS, 3, 224, 224)
    for _ in range(0, count, CPU_ROWS):
        towers.images(pixels)


def build_classifier(encoder: OpenClip, features: Tensor, labels: Tensor) -> ImageClassifier:
    """Returns a classifier whose prototypes are the class means of the features."""
    choice = Choice(Mean(), First(), 0.0)
    return ImageClassifier(
        classes=tuple(map(ClassInfo, NAMES)),
        encoder=encoder,
        scales=SquareCrops(),
        configured=choice,
        calibration=None,
        support=SupportSet(features, labels, len(NAMES)),
        text=None,
        fitted=FittedChoice(choice, None, Temperature(0.01, "default")),
    )


def measure_classification(work: Path) -> None:
    """Measures B13a to B13d."""
    write_photos(work / "images", IMAGES_PER_CLASS)
    save_vit_s_32(work / "model", work / "images")
    encoder = OpenClip(str(work / "model"), precision="fp32")
    files = sorted((work / "images").rglob("*.jpg"))
    labels = torch.tensor([sorted(name.replace(" ", "_") for name in NAMES).index(file.parent.name) for file in files])
    features = encode_bare(encoder, files)
    classifier = build_classifier(encoder, features, labels)
    means = classifier.scorer()(features).argmax(dim=1)
    predictions = classifier.predict(files).tolist()
    if predictions != [NAMES[label] for label in means.tolist()]:
        raise SystemExit("classify and the bare encoder's features give different predictions")

    def classify() -> None:
        classifier.loaded = LoadedEncoder()
        for _ in classifier.classify(files):
            pass

    def measure() -> float:
        return measure_seconds(classify)

    task = f"`classify` of {len(files)} JPEGs, model loaded, 47 classes, ViT-S-32"
    seconds = alternate(measure, lambda: measure_seconds(lambda: encode_bare(encoder, files)))
    equality = f"predictions of {len(files)} files"
    save_row(Row("B13a", task, "threaded decoding and the tower only", ">= 0.9", "s", *seconds, equality, COMMAND))
    seconds = alternate(measure, lambda: measure_seconds(lambda: run_forward_passes(encoder, len(files))), rounds=3)
    equality = "nothing: no file is read"
    save_row(Row("B13b", task, "forward passes only: upper bound", "", "s", *seconds, equality, COMMAND))
    measure_single_images(classifier, files[:CALLS])


def measure_single_images(classifier: ImageClassifier, files: Sequence[Path]) -> None:
    """Measures B13c and B13d: one call per image, as in a server, with the model in memory."""
    loaded = classifier.load_encoder()
    transform = loaded.transforms[False]

    def predict(exact: bool) -> list[str]:
        classifier.exact = exact
        return [classifier.predict(file)[0] for file in files]

    def encode() -> None:
        for file in files:
            loaded.towers.images(transform(read_image(file))[None])

    if predict(exact=True) != predict(exact=False):
        raise SystemExit("exact=False gives different predictions")

    def measure(exact: bool) -> float:
        return measure_seconds(lambda: predict(exact))

    task = f"`predict` of {len(files)} JPEGs, one call each, model loaded, 47 classes, ViT-S-32, `exact=False`"
    equality = f"predictions of {len(files)} files"
    seconds = alternate(lambda: measure(exact=False), lambda: measure_seconds(encode))
    save_row(Row("B13c", task, "decoding and the tower only", ">= 0.8", "s", *seconds, equality, COMMAND))
    seconds = alternate(lambda: measure(exact=False), lambda: measure(exact=True), rounds=3)
    save_row(Row("B13d", task, "`exact=True`, the default", "", "s", *seconds, equality, COMMAND))


def measure_command(*arguments: str) -> float:
    """Returns the seconds that a command of lgclip takes."""
    command = [sys.executable, "-m", "lgclip", *arguments]
    return measure_seconds(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True))


def measure_building(work: Path) -> None:
    """Measures B14; the reference is the limit in seconds."""
    build_seconds = []
    add_seconds = []
    for number in range(3):
        out = str(work / f"{number}.lgclip")
        store = f"paths.store={work / f'store-{number}'}"
        build_seconds.append(measure_command("build", "examples/names.txt", "-o", out, store))
        add_seconds.append(measure_command("add", out, "dotted red triangle", "--override", store))
    for number, task, limit, seconds in (
        ("B14a", "`lgclip build` of 10 names with 10 images each, nothing stored", 60.0, build_seconds),
        ("B14b", "`lgclip add` of one class", 10.0, add_seconds),
    ):
        limits = [limit] * len(seconds)
        reference = f"limit of {limit:.0f} s"
        save_row(Row(number, task, reference, "<= 1", "s", seconds, limits, "nothing", COMMAND, inverse=True))


def main() -> None:
    """Measures and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        measure_building(work)
        measure_classification(work)


if __name__ == "__main__":
    main()
