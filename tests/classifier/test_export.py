"""An exported file computes the scores of its classifier, in each format and for each family of encoders."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
from factories import make_encoder
from open_clip.model import CLIP
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from lgclip.classifier import export, export_formats
from lgclip.classifier.export import ExportSummary, export_classifier
from lgclip.classifier.export_formats import FORMATS, imported
from lgclip.classifier.export_graph import portable_attention
from lgclip.classifier.export_preprocessing import PillowResize, describe_preprocessing
from lgclip.classifier.model import ImageClassifier
from lgclip.encoder.backbone import Plan
from lgclip.encoder.base import Encoder
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import RandomResizedCrops, Scales, SquareCrops, WithFullImage
from lgclip.encoder.timm import Timm
from lgclip.methods.calibration import Choice, Temperature
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Affinity, Mean, Nearest, Scorer, ScoringRule, Signature, WeightedKNN
from lgclip.methods.selection import ByText, First
from lgclip.stages.features import SharedViews
from lgclip.store.atomic import WriteError

CPU = torch.device("cpu")
CLASSES = ("blue moon", "green ring", "red star", "Ärmel", "五")
SUFFIXES = {name: kind.suffix for name, kind in FORMATS.items()}
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the GPU, so that the classifier's own encoder is fp32 on every machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    """Returns images of colored patches with noise, each of another size."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        width, height = (int(side) for side in rng.integers(40, 120, 2))
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
    """Returns a classifier of the images above; its text prototypes are random."""
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
    if text_weight == 1:
        return ImageClassifier(CLASSES, encoder, scales, choice, None, text, Temperature(0.02, "default"))
    return ImageClassifier(CLASSES, encoder, scales, choice, support, text, Temperature(0.02, "default"))


@dataclass
class Expected:
    """Holds what a file takes, and what it should give."""

    pixels: np.ndarray
    scores: np.ndarray
    probs: np.ndarray


def expected_of(classifier: ImageClassifier, count: int = 200) -> Expected:
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
        return lambda pixels: tuple(session.run(["scores", "probs"], {"pixels": pixels})), json.loads(metadata)
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
    return own_forward_pass(load_file(path), metadata), metadata


def own_forward_pass(tensors: dict[str, Tensor], metadata: dict[str, Any]) -> Run:
    """Returns a forward pass from the weights and the metadata alone; for `Mean` and one view."""
    body = Plan(**metadata["tower"]).body().eval()
    prefix = "tower."
    body.load_state_dict({name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)})
    assert {name for name in tensors if not name.startswith(prefix)} == {"head.weight"}
    mean, std = (torch.tensor(metadata[name]).view(3, 1, 1) for name in ("mean", "std"))

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        features = F.normalize(body((torch.from_numpy(pixels) / 255 - mean) / std), dim=-1)
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


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "encoder")


@pytest.fixture(scope="module")
def classifier(folder: Path) -> ImageClassifier:
    torch.manual_seed(0)
    return make_classifier(OpenClip(str(folder)))


def exported(classifier: ImageClassifier, folder: Path, format: str, **options: bool) -> tuple[Path, ExportSummary]:
    path = folder / f"exported{SUFFIXES[format]}"
    return path, export_classifier(classifier, path, format=format, **options)


def open_clip_resnet(folder: Path) -> Encoder:
    """Creates an open_clip model whose vision tower is a small ResNet with attention pooling."""
    make_encoder(folder)
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"] = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    model = CLIP(**config["model_cfg"])
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return OpenClip(str(folder))


def timm_model(architecture: str, folder: Path, **options: Any) -> Encoder:
    """Creates a model of timm with random weights and a classifier."""
    create: Any = timm.create_model
    model = create(architecture, num_classes=5, **options)
    # Batch norms that do something: their statistics start at 0 and 1.
    with torch.no_grad():
        model.train()(torch.randn(16, 3, 64, 64))
    save_for_hf(model.eval(), str(folder), safe_serialization=True, model_args=options)
    return Timm(str(folder), image_size=64)


VIT = {"img_size": 64, "patch_size": 16, "embed_dim": 48, "depth": 2, "num_heads": 3}
ENCODERS: dict[str, Callable[[Path], Encoder]] = {
    "tiny": lambda folder: OpenClip("tiny:encoder"),
    "open_clip_resnet": open_clip_resnet,
    "timm_vit": lambda folder: timm_model("vit_tiny_patch16_224", folder, **VIT),
    "convnext": lambda folder: timm_model("test_convnext", folder),
    "efficientnet": lambda folder: timm_model("test_efficientnet", folder),
}


@pytest.mark.parametrize("format", ["onnx", "pt2", "safetensors"])
def test_small_classifier_has_equal_scores(format: str, classifier: ImageClassifier, tmp_path: Path) -> None:
    path, summary = exported(classifier, tmp_path, format)

    run, _ = opened(path, format)
    assert_equal(run, expected_of(classifier))
    assert summary.max_difference is not None
    assert summary.max_difference < 1e-5
    assert summary.agreement == 1
    assert summary.size == path.stat().st_size
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "nothing else is left"


@pytest.mark.slow
@pytest.mark.parametrize("family", ENCODERS)
@pytest.mark.parametrize("format", FORMATS)
def test_families_have_equal_scores(format: str, family: str, tmp_path: Path) -> None:
    classifier = make_classifier(ENCODERS[family](tmp_path / "model"))
    (tmp_path / "out").mkdir()
    path, _ = exported(classifier, tmp_path / "out", format)
    run, _ = opened(path, format)
    assert_equal(run, expected_of(classifier))
