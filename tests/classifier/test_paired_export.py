"""An exported file holds the towers of two encoders, and computes the scores of the classifier."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from encoder_families import ENCODERS
from exported_classifiers import CPU, pictures
from factories import make_encoder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from lgclip.classifier.export import ExportSummary, export_classifier
from lgclip.classifier.export_formats import imported
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.parts import ClassInfo
from lgclip.encoder.backbone import Plan
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.paired import PairedEncoder
from lgclip.encoder.scales import Scales, SquareCrops
from lgclip.encoder.views import SharedViews
from lgclip.methods.alignment import FittedAlignment
from lgclip.methods.calibration import Choice, FittedChoice, Temperature
from lgclip.methods.paired import Paired, SingleEncoder
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import GDA, Affinity, Mean, ScoringRule, WeightedKNN
from lgclip.methods.selection import First

pytest_plugins = ("exported_fixtures",)
pytestmark = pytest.mark.usefixtures("without_gpu")

CLASSES = ("blue moon", "green ring", "red star")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> PairedEncoder:
    """Returns two encoders that take images of 64 pixels, resized and normalized in different ways."""
    folder = tmp_path_factory.mktemp("models")
    return PairedEncoder(ENCODERS["open_clip_resnet"](folder / "first"), ENCODERS["timm_vit"](folder / "second"))


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> PairedEncoder:
    """Returns two encoders with the same preprocessing."""
    folder = tmp_path_factory.mktemp("alike")
    return PairedEncoder(OpenClip(str(make_encoder(folder / "first"))), ENCODERS["coca"](folder / "second"))


def make_classifier(
    pair: PairedEncoder,
    wrap: Callable[[int], ScoringRule],
    text_weight: float = 0.0,
    scales: Scales | None = None,
    *,
    is_aligned: bool = False,
) -> ImageClassifier:
    """Returns a classifier of random images; its text prototypes are random."""
    scales = scales or SquareCrops()
    views = SharedViews(pair, scales)
    towers = pair.load(CPU)
    pixels = torch.stack([views(image, str(index)) for index, image in enumerate(pictures(24, seed=1))])
    features = scales.fuse(towers.images(pixels.flatten(0, 1)).unflatten(0, pixels.shape[:2]))
    width = pair.first.width()
    sentences = F.normalize(torch.randn(3, width, generator=torch.Generator().manual_seed(0)), dim=-1)
    choice = Choice(wrap(width), First(), text_weight)
    mean = features.mean(dim=0)
    return ImageClassifier(
        tuple(map(ClassInfo, CLASSES)),
        pair,
        scales,
        choice,
        calibration=None,
        support=None if text_weight == 1 else SupportSet(features, torch.arange(24) % 3, 3),
        text=F.pad(sentences, (0, features.shape[1] - width)) if text_weight > 0 else None,
        fitted=FittedChoice(choice, None, Temperature(1.0, "default")),
        alignment=FittedAlignment(mean, 0.1 * mean, 24, "test") if is_aligned else None,
    )


def run_onnx(path: Path, images: list[Image.Image]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    rows = [session.run(["probs"], {"pixels": bytes_of(image)})[0] for image in images]
    return np.concatenate(rows)  # pyright: ignore[reportCallIssue, reportArgumentType]


def bytes_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image).transpose(2, 0, 1)[None].copy()


def assert_equal(probs: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(probs, expected, atol=5e-3)
    assert (probs.argmax(axis=1) == expected.argmax(axis=1)).all()
    assert len(set(probs.argmax(axis=1))) > 1, "one class for all images would show nothing"


RULES: dict[str, tuple[Callable[[int], ScoringRule], float]] = {
    "mean": (lambda width: Paired(Mean(), width), 0.0),
    "fusion": (lambda width: Paired(Mean(), width, "per_class"), 0.5),
    "gda": (lambda width: Paired(GDA(), width, "equal"), 0.3),
    "text": (lambda width: Paired(Mean(), width), 1.0),
    "second": (lambda width: SingleEncoder(Mean(), width, is_second=True), 0.0),
    "affinity": (lambda width: Paired(Affinity(), width), 0.2),
    "knn": (lambda width: Paired(WeightedKNN(5), width), 0.0),
}


RESIZED = ("fusion", "gda", "text", "second")
"""Rules of the graphs with a resize, which comes before any rule; the graphs of the others are smaller."""


@pytest.mark.slow
@pytest.mark.parametrize("name", RESIZED)
def test_graph_with_resize_has_the_scores_of_the_classifier(name: str, pair: PairedEncoder, tmp_path: Path) -> None:
    classifier = make_classifier(pair, *RULES[name])
    path = tmp_path / "both.onnx"
    summary = export_classifier(classifier, path, format="onnx", resize=True)
    images = pictures(30)
    assert_equal(run_onnx(path, images), classifier.predict_proba(images))
    assert_is_small(summary, pair)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(RULES.keys() - set(RESIZED)))
def test_scoring_rules_need_no_resize_of_equal_preprocessings(name: str, alike: PairedEncoder, tmp_path: Path) -> None:
    classifier = make_classifier(alike, *RULES[name])
    path = tmp_path / "both.onnx"
    summary = export_classifier(classifier, path, format="onnx")
    images = pictures(30, size=(32, 32))
    assert_equal(run_onnx(path, images), classifier.predict_proba(images))
    assert_is_small(summary, alike)


def assert_is_small(summary: ExportSummary, pair: PairedEncoder) -> None:
    assert summary.agreement == 1
    towers = pair.load(CPU).parameters()["image"]
    assert summary.parameters - towers < 20_000, "the towers, and a small head"


@pytest.mark.slow
@pytest.mark.parametrize("format", ["pt2", "openvino"])
def test_other_formats(format: str, pair: PairedEncoder, tmp_path: Path) -> None:
    classifier = make_classifier(pair, *RULES["fusion"])
    path = tmp_path / ("both.pt2" if format == "pt2" else "both.xml")
    export_classifier(classifier, path, format=format, resize=True)
    images = pictures(20)
    probs: list[Any] = []
    if format == "pt2":
        module = torch.export.load(path).module()
        probs = [module(torch.from_numpy(bytes_of(image)))[1].numpy() for image in images]
    else:
        openvino = imported("openvino", "test", "openvino")
        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.compile_model(openvino.Core().read_model(path), "CPU", options)
        probs = [compiled(bytes_of(image))["probs"] for image in images]
    assert_equal(np.concatenate(probs), classifier.predict_proba(images))


@pytest.mark.slow
def test_alignment_is_in_the_graph(alike: PairedEncoder, tmp_path: Path) -> None:
    classifier = make_classifier(alike, *RULES["fusion"], is_aligned=True)
    export_classifier(classifier, tmp_path / "both.onnx", format="onnx")
    images = pictures(30, size=(32, 32))
    assert_equal(run_onnx(tmp_path / "both.onnx", images), classifier.predict_proba(images))


def test_different_preprocessings_need_a_resize(pair: PairedEncoder, tmp_path: Path) -> None:
    classifier = make_classifier(pair, *RULES["mean"])
    for suffix in ("onnx", "safetensors"):
        with pytest.raises(ValueError, match=r"resize and crop images in different ways, .*: give --resize"):
            export_classifier(classifier, tmp_path / f"both.{suffix}", format=suffix)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_views_are_fused(alike: PairedEncoder, tmp_path: Path) -> None:
    classifier = make_classifier(alike, *RULES["fusion"], SquareCrops((1.0, 0.5), (2, 1)))
    summary = export_classifier(classifier, tmp_path / "both.onnx", format="onnx")
    assert summary.max_difference is not None
    assert summary.max_difference < 1e-4


def test_weights_alone_give_the_scores(alike: PairedEncoder, tmp_path: Path) -> None:
    """The forward pass of someone who has the file and its metadata alone."""
    classifier = make_classifier(alike, *RULES["fusion"])
    path = tmp_path / "both.safetensors"
    export_classifier(classifier, path, format="safetensors")
    with safe_open(path, "pt") as file:
        metadata = json.loads(file.metadata()["lgclip"])
    tensors = load_file(path)
    images = pictures(20, size=(32, 32))
    values = torch.from_numpy(np.concatenate([bytes_of(image) for image in images]))
    halves = []
    plans = zip(("first", "second"), metadata["tower"], metadata["mean"], metadata["std"], strict=True)
    for name, plan, mean, std in plans:
        body = Plan(**plan).body().eval()
        prefix = f"tower.{name}."
        body.load_state_dict({key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)})
        with torch.inference_mode():
            features = body((values / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
        features = features[0] if isinstance(features, tuple) else features
        halves.append(F.normalize(features, dim=1))
    scores = torch.cat(halves, dim=1) @ tensors["head.1.weight"].T + tensors["head.1.bias"]
    probs = (scores / metadata["temperature"]).softmax(dim=1).numpy()
    np.testing.assert_allclose(probs, classifier.predict_proba(images), atol=1e-4)
    assert metadata["encoder"]["id"] == "first + second"
    assert metadata["prototype"]["part"] == "Paired"
