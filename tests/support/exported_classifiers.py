"""Builds small classifiers, opens the files that they are exported to, and compares scores."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lgclip.classifier.export import ExportSummary, export_classifier
from lgclip.classifier.export_formats import FORMATS, imported
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.parts import ClassInfo
from lgclip.encoder.backbone import Plan
from lgclip.encoder.base import Encoder
from lgclip.encoder.scales import Scales, SquareCrops, WithFullImage
from lgclip.encoder.views import SharedViews
from lgclip.methods.calibration import Choice, FittedChoice, Temperature
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Mean, ScoringRule
from lgclip.methods.selection import First

CPU = torch.device("cpu")
CLASSES = ("blue moon", "green ring", "red star", "Ärmel", "五")
SUFFIXES = {name: kind.suffix for name, kind in FORMATS.items()}
ROOT = Path(__file__).parents[2]


def pictures(count: int, seed: int = 0, size: tuple[int, int] | None = None) -> list[Image.Image]:
    """Returns images of colored patches with noise, of one size or each of another."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        width, height = size or (int(side) for side in rng.integers(40, 120, 2))
        patches = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)).resize((width, height))
        noisy = np.asarray(patches, np.int64) + rng.integers(-20, 21, (height, width, 3))
        images.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return images


def make_classifier(
    encoder: Encoder,
    rule: ScoringRule | None = None,
    scales: Scales | None = None,
    text_weight: float = 0.0,
) -> ImageClassifier:
    """Returns a classifier of images of `pictures`; its text prototypes are random."""
    scales = scales or SquareCrops()
    views = SharedViews(encoder, scales)
    towers = encoder.load(CPU)
    pixels = torch.stack([views(image, str(index)) for index, image in enumerate(pictures(20, seed=1))])
    features = scales.fuse(towers.images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2]))
    support = SupportSet(features, torch.arange(20) % len(CLASSES), len(CLASSES))
    text = None
    if text_weight > 0:
        text = F.normalize(torch.randn(len(CLASSES), features.shape[1]), dim=-1)
    choice = Choice(rule or Mean(), First(), text_weight)
    return ImageClassifier(
        tuple(map(ClassInfo, CLASSES)),
        encoder,
        scales,
        choice,
        calibration=None,
        support=None if text_weight == 1 else support,
        text=text,
        fitted=FittedChoice(choice, None, Temperature(0.02, "default")),
    )


def with_choice(classifier: ImageClassifier, choice: Choice, **changes: Any) -> ImageClassifier:
    """Returns the classifier with other settings."""
    return replace(classifier, fitted=classifier.fitted._replace(choice=choice), **changes)


@dataclass
class Expected:
    """Holds the input of a file and its expected output."""

    pixels: np.ndarray
    scores: np.ndarray
    probs: np.ndarray


def expected_of(classifier: ImageClassifier, count: int = 60) -> Expected:
    """Returns pixels and scores of images, by the classifier's own preprocessing, encoder and scorer."""
    transform: Any = classifier.encoder.transform()
    mean, std = (
        torch.tensor(np.array(values)).float().view(3, 1, 1)
        for values in (transform.transforms[-1].mean, transform.transforms[-1].std)
    )
    scales = classifier.scales.others if isinstance(classifier.scales, WithFullImage) else classifier.scales
    views = SharedViews(classifier.encoder, scales)
    images = pictures(count)
    values = torch.stack([views(image, f"image {index}") for index, image in enumerate(images)])
    features = classifier.encoder.load(CPU).images(values.flatten(0, 1)).unflatten(0, values.shape[:2])
    scores = classifier.choice.fit(classifier.support, classifier.text)(scales.fuse(features))
    pixels = ((values * std + mean) * 255).round().to(torch.uint8)
    if pixels.shape[1] == 1:
        pixels = pixels[:, 0]
    probs = (scores / classifier.temperature.value).softmax(dim=1)
    return Expected(pixels.numpy(), scores.numpy(), probs.numpy())


Run = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def opened(path: Path, format: str) -> tuple[Run, dict[str, Any]]:
    """Returns a function that runs a file, and the file's metadata, by the format's own library alone."""
    if format == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        metadata = session.get_modelmeta().custom_metadata_map["lgclip"]
        return lambda pixels: session.run(["scores", "probs"], {"pixels": pixels}), json.loads(metadata)  # pyright: ignore[reportReturnType]
    if format == "pt2":
        extra = {"lgclip.json": ""}
        module = torch.export.load(path, extra_files=extra).module()
        return lambda pixels: tuple(out.numpy() for out in module(torch.from_numpy(pixels))), json.loads(
            extra["lgclip.json"]
        )
    if format == "openvino":
        openvino = imported("openvino", "test", "openvino")
        model = openvino.Core().read_model(path)
        compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

        def run(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            outputs = compiled(pixels)
            return outputs["scores"], outputs["probs"]

        return run, json.loads(model.get_rt_info(["lgclip"]).astype(str))
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["lgclip"])
    return forward_pass(load_file(path), metadata), metadata


def forward_pass(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Run:
    """Returns a forward pass from the weights and the metadata alone; for `Mean` and one view."""
    body = Plan(**metadata["tower"]).body().eval()
    prefix = "tower."
    body.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    assert {name for name in tensors if not name.startswith(prefix)} == {"head.weight"}
    mean, std = (torch.tensor(metadata[name]).view(3, 1, 1) for name in ("mean", "std"))

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = body((torch.from_numpy(pixels) / 255 - mean) / std)
        if isinstance(features, tuple):  # of a CoCa, with those of the patches
            features = features[0]
        features = F.normalize(features, dim=-1)
        scores = features @ tensors["head.weight"].T
        return scores.numpy(), (scores / metadata["temperature"]).softmax(dim=1).numpy()

    return run


def assert_equal(run: Run, expected: Expected, *, classes: int = 2) -> None:
    """Compares scores, probabilities and predictions, in batches of 1, 7 and the rest."""
    parts = [run(part) for part in np.split(expected.pixels, [1, 8])]
    scores, probs = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    np.testing.assert_allclose(scores, expected.scores, atol=1e-4, rtol=0)
    np.testing.assert_allclose(probs, expected.probs, atol=1e-3, rtol=0)
    assert scores.argmax(axis=1).tolist() == expected.scores.argmax(axis=1).tolist()
    assert len(set(scores.argmax(axis=1))) >= classes, "one class for all images would show nothing"


def exported(classifier: ImageClassifier, folder: Path, format: str, **options: bool) -> tuple[Path, ExportSummary]:
    path = folder / f"exported{SUFFIXES[format]}"
    return path, export_classifier(classifier, path, format=format, **options)
