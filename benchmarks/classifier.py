"""A classifier in use: `python benchmarks/classifier.py`, in five minutes on two cores (B13, B14).

B13a: JPEG files to predictions, by `ImageClassifier.classify`, beside the bare encoder: the same files decoded by
threads, preprocessed, and passed through the tower, with no class compared. ViT-S-32, random weights, fp32; both sides
have loaded nothing before. Features are compared first. B13b is the same with the forward passes alone: the bound.
B13c and B13d: a call per image, with the model in memory.
B14a: `lgclip build` of ten names with ten images each, from an empty store. B14b: `lgclip add` of one class. Whole
processes are measured.
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
EACH = 12
"""JPEGs a class."""
THREADS = 8
CALLS = 10


def bare_features(encoder: OpenClip, files: Sequence[Path]) -> Tensor:
    """Features of files: threads decode, the tower encodes."""
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


def forward_passes(encoder: OpenClip, count: int) -> None:
    """As many forward passes as there are files, and nothing else."""
    towers = encoder.load(torch.device("cpu"))
    pixels = torch.zeros(CPU_ROWS, 3, 224, 224)
    for _ in range(0, count, CPU_ROWS):
        towers.images(pixels)


def classifier_of(encoder: OpenClip, features: Tensor, labels: Tensor) -> ImageClassifier:
    """A classifier whose prototypes are the means of the files themselves."""
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


def classification(work: Path) -> None:
    """B13."""
    write_photos(work / "images", EACH)
    save_vit_s_32(work / "model", work / "images")
    encoder = OpenClip(str(work / "model"), precision="fp32")
    files = sorted((work / "images").rglob("*.jpg"))
    labels = torch.tensor([sorted(name.replace(" ", "_") for name in NAMES).index(file.parent.name) for file in files])
    features = bare_features(encoder, files)
    classifier = classifier_of(encoder, features, labels)
    means = classifier.scorer()(features).argmax(dim=1)
    predictions = classifier.predict(files).tolist()
    if predictions != [NAMES[place] for place in means.tolist()]:
        raise SystemExit("classify gave other predictions than the bare encoder's features")

    def classified() -> None:
        classifier.loaded = LoadedEncoder()
        for _ in classifier.classify(files):
            pass

    equal = f"the predictions of {len(files)} files"
    sides = alternate(
        lambda: measure_seconds(classified), lambda: measure_seconds(lambda: bare_features(encoder, files))
    )
    ours = f"`classify` of {len(files)} JPEGs, model loaded, 47 classes, ViT-S-32"
    save_row(Row("B13a", ours, "decoding by threads and the tower alone", ">= 0.9", "s", *sides, equal, COMMAND))
    bound = alternate(
        lambda: measure_seconds(classified), lambda: measure_seconds(lambda: forward_passes(encoder, len(files))), 3
    )
    save_row(
        Row("B13b", ours, "its forward passes alone: the bound", "", "s", *bound, "nothing: no file is read", COMMAND)
    )
    single_images(classifier, files[:CALLS])


def single_images(classifier: ImageClassifier, files: Sequence[Path]) -> None:
    """B13c and B13d: one call per image, as in a server, with the model in memory."""
    encoder, towers, _ = classifier.load_encoder()
    transform = encoder.transform()

    def predict(exact: bool) -> list[str]:
        classifier.exact = exact
        return [classifier.predict(file)[0] for file in files]

    def bare() -> None:
        for file in files:
            towers.images(transform(read_image(file))[None])

    if predict(exact=True) != predict(exact=False):
        raise SystemExit("exact=False gave other predictions")
    ours = f"`predict` of {len(files)} JPEGs, a call each, model loaded, 47 classes, ViT-S-32"
    equal = f"the predictions of {len(files)} files"
    sides = alternate(lambda: measure_seconds(lambda: predict(exact=False)), lambda: measure_seconds(bare))
    save_row(
        Row("B13c", f"{ours}, `exact=False`", "decoding and the tower alone", ">= 0.8", "s", *sides, equal, COMMAND)
    )
    sides = alternate(
        lambda: measure_seconds(lambda: predict(exact=False)), lambda: measure_seconds(lambda: predict(exact=True)), 3
    )
    save_row(Row("B13d", f"{ours}, `exact=False`", "`exact=True`, the default", "", "s", *sides, equal, COMMAND))


def lgclip_seconds(*arguments: str) -> float:
    """Seconds of a command of lgclip."""
    command = [sys.executable, "-m", "lgclip", *arguments]
    return measure_seconds(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True))


def building(work: Path) -> None:
    """B14: the limits are seconds, so the other side is the limit itself."""
    built = []
    added = []
    for number in range(3):
        out = str(work / f"{number}.lgclip")
        store = f"paths.store={work / f'store-{number}'}"
        built.append(lgclip_seconds("build", "examples/names.txt", "-o", out, store))
        added.append(lgclip_seconds("add", out, "dotted red triangle", "--override", store))
    for number, ours, limit, measured in (
        ("B14a", "`lgclip build` of 10 names with 10 images each, nothing stored", 60.0, built),
        ("B14b", "`lgclip add` of one class", 10.0, added),
    ):
        other = [limit] * len(measured)
        against = f"{limit:.0f} s, the limit"
        save_row(Row(number, ours, against, "<= 1", "s", measured, other, "nothing", COMMAND, inverse=True))


def main() -> None:
    """Measures and saves the rows."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        building(work)
        classification(work)


if __name__ == "__main__":
    main()
