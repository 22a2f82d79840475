"""Measures accuracy and size of exported classifiers: `python benchmarks/export.py`, two minutes on two cores.

Builds a classifier of ten classes of the small world, exports it in each format, and classifies the same 200 test
images with the classifier and with each file. The images are 64 x 64, the input size of the tower, so that nothing is
resized. For the format that resizes in the graph, each image is first enlarged to the shape of a photo, and the
classifier reads the enlarged image, which Pillow resizes. Prints the rows of docs/guides/export.md.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import lgclip
from lgclip.classifier.export import ExportSummary
from lgclip.classifier.export_formats import Pixels, Runner, onnx_runner, openvino_runner, program_runner
from lgclip.classifier.model import ImageClassifier
from lgclip.datasets.embedded import Shapes
from lgclip.encoder.backbone import Plan
from lgclip.encoder.views import SharedViews

CLASSES = 10
IMAGES_PER_CLASS = 20


class TestImages(NamedTuple):
    """Holds images, and the index of each one's class in the classifier."""

    images: list[Image.Image]
    labels: list[int]


def load_test_images() -> tuple[list[str], TestImages]:
    """Returns every third class name of the small world, and the first test images of each class."""
    data = Shapes("test")
    names = list(data.class_names[:: len(data.class_names) // CLASSES])
    images = []
    labels = []
    for label, name in enumerate(names):
        first = data.labels.index(data.class_names.index(name))
        for index in range(first, first + IMAGES_PER_CLASS):
            images.append(data.image(index))
            labels.append(label)
    return names, TestImages(images, labels)


def enlarge(images: Sequence[Image.Image]) -> list[Image.Image]:
    """Resizes the images to the shapes of photos, portrait and landscape; the object stays in the central square."""
    rng = np.random.default_rng(0)
    large = []
    for image in images:
        short = int(rng.integers(150, 500))
        long = int(short * rng.uniform(1, 4 / 3))
        size = (short, long) if rng.random() < 0.5 else (long, short)
        large.append(image.resize(size, Image.Resampling.BICUBIC))
    return large


@torch.inference_mode()
def compute_scores(
    classifier: ImageClassifier, images: Sequence[Image.Image]
) -> tuple[Pixels, Float[np.ndarray, "n c"]]:
    """Returns the input pixels of an exported file, and the scores of the classifier itself."""
    transform: Any = classifier.encoder.transform()
    normalization = transform.transforms[-1]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (normalization.mean, normalization.std))
    views = SharedViews(classifier.encoder, classifier.scales)
    values = torch.cat([views(image, str(index)) for index, image in enumerate(images)])
    features = classifier.encoder.load(torch.device("cpu")).images(values).float()
    scores = classifier.scorer()(classifier.scales.fuse(features[:, None]))
    pixels = ((values * std + mean) * 255).round().to(torch.uint8)
    return pixels.numpy(), scores.numpy()


def load_weights_runner(path: Path) -> Runner:
    """Returns a forward pass that uses the file of weights only."""
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["lgclip"])
    tensors = load_file(path)
    tower = Plan(**metadata["tower"]).body().eval()
    prefix = "tower."
    tower.load_state_dict({n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)})
    mean, std = (torch.tensor(metadata[name]).view(3, 1, 1) for name in ("mean", "std"))

    @torch.inference_mode()
    def run(pixels: Pixels) -> Float[np.ndarray, "n c"]:
        features = F.normalize(tower((torch.from_numpy(pixels) / 255 - mean) / std), dim=-1)
        return (features @ tensors["head.weight"].T).numpy()

    return run


def load_runner(summary: ExportSummary) -> Runner:
    """Returns a function that computes scores with an exported file."""
    path = summary.files[0]
    if summary.format == "onnx":
        return onnx_runner(path)
    if summary.format == "openvino":
        return openvino_runner(path)
    if summary.format == "pt2":
        return program_runner(torch.export.load(path))
    return load_weights_runner(path)


def format_row(
    name: str, summary: ExportSummary, scores: np.ndarray, expected: np.ndarray, labels: Sequence[int]
) -> str:
    """Returns a row of the table."""
    predictions = scores.argmax(axis=1)
    equal = int((predictions == expected.argmax(axis=1)).sum())
    difference = np.abs(scores - expected).max()
    return (
        f"| {name} | {summary.size / 1e6:.2f} MB | {difference:.1e} | {equal} of {len(labels)} | "
        f"{100 * (predictions == labels).mean():.1f}% |"
    )


def main() -> None:
    """Measures and prints."""
    names, data = load_test_images()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        classifier = lgclip.build(names, overrides=[f"paths.store={work / 'store'}", "precision=fp32"])
        pixels, expected = compute_scores(classifier, data.images)
        accuracy = 100 * (expected.argmax(axis=1) == data.labels).mean()
        print("| file | size | largest difference of a score | equal predictions | accuracy |\n|---|---|---|---|---|")
        print(f"| the classifier itself | | | | {accuracy:.1f}% |")
        for format, suffix, int8 in (
            ("onnx", ".onnx", False),
            ("onnx", ".int8.onnx", True),
            ("pt2", ".pt2", False),
            ("openvino", ".xml", False),
            ("safetensors", ".safetensors", False),
        ):
            summary = classifier.export(work / f"shapes{suffix}", format=format, int8=int8)
            scores = load_runner(summary)(pixels)
            print(format_row(f"{format}{' --int8' * int8}", summary, scores, expected, data.labels))
        large = enlarge(data.images)
        _, expected = compute_scores(classifier, large)
        accuracy = 100 * (expected.argmax(axis=1) == data.labels).mean()
        print(f"| enlarged images, resized by Pillow: the classifier itself | | | | {accuracy:.1f}% |")
        summary = classifier.export(work / "resize.onnx", format="onnx", resize=True)
        run = load_runner(summary)
        arrays = [np.asarray(image).transpose(2, 0, 1)[None].copy() for image in large]
        scores = np.concatenate([run(array) for array in arrays])
        print(format_row("enlarged images, onnx --resize", summary, scores, expected, data.labels))


if __name__ == "__main__":
    main()
