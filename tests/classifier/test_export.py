"""An exported file computes the scores of its classifier, in each format and for each family of encoders."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from encoder_families import ENCODERS
from factories import make_encoder
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from lgclip.classifier import export, export_formats
from lgclip.classifier.export import ExportSummary, export_classifier
from lgclip.classifier.export_formats import FORMATS, imported
from lgclip.classifier.export_graph import portable_attention
from lgclip.classifier.export_preprocessing import PillowResize, describe_preprocessing
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.parts import ClassInfo
from lgclip.encoder.backbone import Plan
from lgclip.encoder.base import Encoder
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import RandomResizedCrops, Scales, SquareCrops, WithFullImage
from lgclip.encoder.views import SharedViews
from lgclip.methods.calibration import Choice, FittedChoice, Temperature
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import GDA, Affinity, Cache, Mean, Nearest, Scorer, ScoringRule, Signature, WeightedKNN
from lgclip.methods.selection import ByText, First
from lgclip.store.atomic import WriteError
from lgclip.store.keys import key_name_of

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
    """Holds what a file takes, and what it should give."""

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


@pytest.mark.slow
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


# Each family in ONNX and as weights, whose forward pass is the test's, and each format with the shipped encoder and one
# of timm: the graph of ONNX is traced by torch.export as that of pt2 is, and OpenVINO reads it.
FAMILIES = sorted({*product(("onnx", "safetensors"), ENCODERS), *product(FORMATS, ("tiny", "efficientnet"))})


@pytest.mark.slow
@pytest.mark.parametrize(("format", "family"), FAMILIES)
def test_families_have_equal_scores(format: str, family: str, tmp_path: Path) -> None:
    classifier = make_classifier(ENCODERS[family](tmp_path / "model"))
    (tmp_path / "out").mkdir()
    path, _ = exported(classifier, tmp_path / "out", format)
    run, _ = opened(path, format)
    assert_equal(run, expected_of(classifier))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "scales"),
    [
        ("onnx", SquareCrops((1.0, 0.6, 0.3), (3, 2, 1))),
        ("pt2", SquareCrops((1.0, 0.6, 0.3), (3, 2, 1))),
        ("openvino", SquareCrops((1.0, 0.6, 0.3), (3, 2, 1))),
        ("pt2", RandomResizedCrops((0.5, 1.0), (1, 2))),
        ("pt2", WithFullImage(others=SquareCrops((0.5,), (1,)))),
    ],
    ids=["onnx-square", "pt2-square", "openvino-square", "pt2-resized", "pt2-with_full"],
)
def test_views_are_fused(scales: Scales, format: str, folder: Path, tmp_path: Path) -> None:
    classifier = make_classifier(OpenClip(str(folder)), scales=scales)
    path, _ = exported(classifier, tmp_path, format)
    run, metadata = opened(path, format)
    expected = expected_of(classifier)
    assert_equal(run, expected)
    views = 1 if expected.pixels.ndim == 4 else expected.pixels.shape[1]
    assert len(metadata["views"]) == views, "a view that is not fused is not computed"
    assert sum(view["weight"] for view in metadata["views"]) == pytest.approx(1)


RULES: dict[str, tuple[ScoringRule, float]] = {
    "fusion": (Mean(renormalize=False), 0.3),
    "text": (Mean(), 1.0),
    "gda": (GDA(), 0.3),
    "nearest": (Nearest(3), 0.0),
    "knn": (WeightedKNN(5), 0.4),
    "affinity": (Affinity(20.0), 0.0),
    "cache": (Cache(2.0, 5.5), 0.5),
    "signature": (Signature(), 0.4),
}
# Each rule in ONNX, and each format with two rules: the same three graphs.
SCORED = sorted({*product(("onnx",), RULES), *product(("pt2", "openvino"), ("gda", "knn"))})


@pytest.mark.slow
@pytest.mark.parametrize(("format", "name"), SCORED)
def test_scoring_rules(format: str, name: str, folder: Path, tmp_path: Path) -> None:
    rule, text_weight = RULES[name]
    classifier = make_classifier(OpenClip(str(folder)), rule, text_weight=text_weight)
    path, _ = exported(classifier, tmp_path, format)
    run, metadata = opened(path, format)
    assert_equal(run, expected_of(classifier), classes=1)
    assert metadata["prototype"]["part"] == key_name_of(rule)
    assert metadata["text_weight"] == text_weight


@dataclass(frozen=True)
class Odd(ScoringRule):
    """A rule that no trace can follow: what it computes depends on a value."""

    key_name: ClassVar[str] = "Odd"

    def fit(self, support: SupportSet) -> Scorer:
        prototypes = support.means(renormalize=True)
        return lambda features: features @ prototypes.T * (2 if float(features.sum()) > 0 else 1)


def test_rule_that_cannot_be_traced_is_one_error(classifier: ImageClassifier, tmp_path: Path) -> None:
    odd = with_choice(classifier, classifier.choice._replace(rule=Odd()))
    message = r"prototype=Odd: this scoring rule cannot be exported \(.*prototype=mean"
    with pytest.raises(ValueError, match=message) as e:
        exported(odd, tmp_path, "onnx")
    assert "\n" not in str(e.value)
    assert not list(tmp_path.iterdir())


def test_selection_by_text_is_applied(classifier: ImageClassifier, tmp_path: Path) -> None:
    """Checks that images which the selection leaves out are not in the file."""
    assert classifier.support is not None
    text = F.normalize(torch.randn(len(CLASSES), classifier.support.features.shape[1]), dim=-1)
    choice = Choice(Nearest(), ByText(keep=2), 0.0)
    path, _ = exported(with_choice(classifier, choice, text=text), tmp_path, "safetensors")
    tensors = load_file(path)
    selected = choice.selection.select(classifier.support, text)
    assert torch.equal(tensors["head.features"], selected.features)
    assert torch.equal(tensors["head.labels"], selected.labels)
    assert "head.text" not in tensors


def test_no_text_tower_is_in_the_file(classifier: ImageClassifier, tmp_path: Path) -> None:
    path, summary = exported(classifier, tmp_path, "safetensors")
    tower = classifier.encoder.load(CPU).parameters()["image"]
    head = len(CLASSES) * 32
    assert summary.parameters == tower + head
    assert sum(tensor.numel() for tensor in load_file(path).values()) == tower + head
    assert str(summary).startswith(f"{path}: ")
    assert "5 classes" in str(summary)


def test_metadata(classifier: ImageClassifier, tmp_path: Path) -> None:
    path, _ = exported(classifier, tmp_path, "safetensors")
    _, metadata = opened(path, "safetensors")
    assert metadata["schema"] == export.SCHEMA
    assert metadata["classes"] == list(CLASSES)
    assert metadata["temperature"] == 0.02
    assert metadata["input"] == {"name": "pixels", "dtype": "uint8", "color": "RGB", "shape": ["batch", 3, 32, 32]}
    steps = [
        {"step": "resize", "size": 32, "interpolation": "bicubic"},
        {"step": "center_crop", "size": [32, 32]},
    ]
    assert metadata["views"] == [{"name": "full", "fraction": None, "weight": 1.0, "steps": steps}]
    assert metadata["mean"] == pytest.approx([0.48145466, 0.4578275, 0.40821073])
    assert metadata["encoder"]["inputs"] == classifier.encoder.inputs()
    assert metadata["encoder"]["id"] == "encoder", "the last part of the folder alone"
    assert metadata["precision"] == "fp32"
    assert not metadata["resize_in_graph"]


@pytest.mark.slow
def test_formats_have_the_same_metadata_and_no_path(classifier: ImageClassifier, tmp_path: Path) -> None:
    described = {}
    for format in FORMATS:
        (tmp_path / format).mkdir()
        path, summary = exported(classifier, tmp_path / format, format)
        _, described[format] = opened(path, format)
        assert sorted(file.name for file in path.parent.iterdir()) == sorted(file.name for file in summary.files)
        content = b"".join(file.read_bytes() for file in summary.files)
        for place in (str(ROOT), str(Path.home()), str(tmp_path), "site-packages", str(Path(torch.__file__).parent)):
            assert place.encode() not in content, f"{format} has a path of this machine"
    assert all(metadata == described["onnx"] for metadata in described.values())


@pytest.mark.slow
def test_int8_is_smaller_and_close(tmp_path: Path) -> None:
    classifier = make_classifier(OpenClip("tiny:encoder"))
    exact, _ = exported(classifier, tmp_path, "onnx")
    path = tmp_path / "int8.onnx"
    summary = export_classifier(classifier, path, format="onnx", int8=True)
    assert path.stat().st_size < 0.4 * exact.stat().st_size
    run, metadata = opened(path, "onnx")
    expected = expected_of(classifier)
    scores, _ = run(expected.pixels)
    assert 1e-4 < np.abs(scores - expected.scores).max() < 0.1
    assert (scores.argmax(axis=1) == expected.scores.argmax(axis=1)).mean() > 0.9
    assert metadata["precision"] == "int8"
    assert metadata["classes"] == list(CLASSES)
    assert summary.max_difference is not None
    assert summary.max_difference > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2", "openvino"])
def test_resize_in_the_graph(format: str, folder: Path, tmp_path: Path) -> None:
    classifier = make_classifier(OpenClip(str(folder)))
    path, _ = exported(classifier, tmp_path, format, resize=True)
    run, metadata = opened(path, format)
    assert metadata["input"]["shape"] == ["batch", 3, "height", "width"]
    images = pictures(60)
    expected = classifier.predict_proba(images)
    probs = np.concatenate([run(np.asarray(image).transpose(2, 0, 1)[None].copy())[1] for image in images])
    np.testing.assert_allclose(probs, expected, atol=5e-3)
    assert (probs.argmax(axis=1) == expected.argmax(axis=1)).all()


@pytest.mark.parametrize("size", [(64, 64), (50, 31), (20, 90), (641, 480), (37, 36)], ids=str)
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("target", [32, 35, [32, 32]], ids=["short", "crop", "squash"])
def test_resize_is_that_of_pillow(target: Any, interpolation: str, size: tuple[int, int]) -> None:
    image = pictures(1, seed=3)[0].resize(size)
    expected: Any = Compose([Resize(target, InterpolationMode(interpolation)), CenterCrop(32)])(image)
    steps = (
        {"step": "resize", "size": target, "interpolation": interpolation},
        {"step": "center_crop", "size": [32, 32]},
    )
    pixels = torch.from_numpy(np.asarray(image).transpose(2, 0, 1)[None].copy()).float()
    resized = PillowResize(steps)(pixels)[0].numpy().transpose(1, 2, 0)
    differences = np.abs(resized - np.asarray(expected, np.float32))
    # Pillow begins with the other side where that is cheaper: what is rounded in between is then another.
    other_side_first = target == [32, 32] and size == (20, 90)
    assert differences.max() <= (8 if other_side_first else 1)
    assert differences.mean() < 0.4


class Blur:
    """A step that no exported file knows."""


def test_unknown_preprocessing_is_one_error(classifier: ImageClassifier) -> None:
    transform: Any = classifier.encoder.transform()
    transform.transforms.insert(0, Blur())
    with pytest.raises(ValueError, match="has a step Blur, which cannot be described"):
        describe_preprocessing(transform)
    empty: Any = Compose([])
    with pytest.raises(ValueError, match="does not normalize the channels"):
        describe_preprocessing(empty)
    with pytest.raises(ValueError, match="resize: this encoder's preprocessing is resize_keep_ratio, center_crop"):
        PillowResize(({"step": "resize_keep_ratio"}, {"step": "center_crop"}))
    steps = ({"step": "resize", "size": 30, "interpolation": "bicubic"}, {"step": "center_crop", "size": [32, 32]})
    with pytest.raises(ValueError, match=r"the crop \(32, 32\) is larger than the resized image 30"):
        PillowResize(steps)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.onnx", {"format": "tflite"}, "format=tflite: choose onnx, pt2, openvino, safetensors"),
        ("a.pt", {"format": "pt2"}, r"a\.pt: a file of format=pt2 ends in \.pt2"),
        ("folder.onnx", {"format": "onnx"}, r"folder\.onnx: it is a folder; name a file that ends in \.onnx"),
        ("a.pt2", {"format": "pt2", "int8": True}, "int8 with format=pt2: only format=onnx"),
        ("a.safetensors", {"format": "safetensors", "resize": True}, "holds weights and no graph"),
    ],
)
def test_wrong_options_are_one_error(
    name: str, options: dict[str, Any], message: str, classifier: ImageClassifier, tmp_path: Path
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match=message):
        export_classifier(classifier, tmp_path / name, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_resize_with_crops_is_one_error(classifier: ImageClassifier, tmp_path: Path) -> None:
    for scales in (SquareCrops((1.0, 0.5), (1, 1)), SquareCrops((0.5,), (1,))):
        with pytest.raises(ValueError, match=r"resize: this classifier compares . views"):
            exported(replace(classifier, scales=scales), tmp_path, "pt2", resize=True)


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [("onnx", "onnxscript", "export"), ("onnx", "onnx", "export"), ("openvino", "openvino", "openvino")],
)
def test_missing_package_is_named(
    format: str, package: str, extra: str, classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package} is missing: pip install 'lgclip\[{extra}\]'"):
        exported(classifier, tmp_path, format)


@pytest.mark.slow
def test_without_a_runtime_the_file_is_not_verified(
    classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        for name in ("onnxruntime", "onnxruntime.quantization"):
            patch.setitem(sys.modules, name, None)
        path, summary = exported(classifier, tmp_path, "onnx")
        with pytest.raises(ValueError, match=r"int8: package onnxruntime.* is missing"):
            exported(classifier, tmp_path, "onnx", int8=True)
    assert "was not verified: onnxruntime is not installed, pip install 'lgclip[export]'" in caplog.text
    assert str(summary).endswith("not verified")
    assert_equal(opened(path, "onnx")[0], expected_of(classifier, 20), classes=1)


@pytest.mark.parametrize("format", ["pt2", "safetensors"])
def test_other_scores_are_an_error(
    format: str, classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks that a file with other scores replaces nothing."""
    path = tmp_path / f"exported{SUFFIXES[format]}"
    path.write_bytes(b"before")

    def other(module: nn.Module) -> Any:
        return lambda pixels: np.zeros((len(pixels), len(CLASSES)), np.float32)

    monkeypatch.setattr(export_formats, "graph_runner", other)
    message = r"exported\..* was not written: its scores differ .* by .*e.*, allowed are 1e-04"
    with pytest.raises(ValueError, match=message):
        exported(classifier, tmp_path, format)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_refusal_of_the_system_is_one_error(
    classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="Not a directory; name another folder"):
        export_classifier(classifier, tmp_path / "file" / "below" / "a.pt2", format="pt2")

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_formats, "save_file", full)
    with pytest.raises(WriteError, match="No space left on device"):
        exported(classifier, tmp_path, "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_too_many_weights_for_onnx_are_refused_before_the_trace(
    classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_formats, "_ONNX_LIMIT", 1000)
    with pytest.raises(ValueError, match=r"GB in fp32, and a file of ONNX holds less than 2.1 GB; use format=pt2"):
        exported(classifier, tmp_path, "onnx")


def test_tower_without_weights_of_its_own_is_one_error(classifier: ImageClassifier, tmp_path: Path) -> None:
    class Untouched(OpenClip):
        def tower(self) -> Any:
            return Encoder.tower(self)

    encoder = Untouched(classifier.encoder.model)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="the vision tower cannot be taken from its encoder for an export: Untouched"):
        exported(replace(classifier, encoder=encoder), tmp_path, "pt2")


@pytest.mark.parametrize("enabled", [True, False])
def test_fused_attention_is_restored(enabled: bool) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        seen = []
        with suppress(KeyError), portable_attention():
            seen.append(torch.backends.mha.get_fastpath_enabled())
            raise KeyError
        assert seen == [False]
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.slow
def test_openvino_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from lgclip.classifier.export_formats import imported\n"
        "assert imported('openvino', 'test', 'openvino').Core()\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    # torchmetrics imports matplotlib, which keeps a list of fonts.
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(home), "PATH": "", "MPLCONFIGDIR": str(tmp_path / "fonts")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not list(home.iterdir()), "it writes an id of the user there"


@pytest.mark.slow
def test_pt2_runs_without_lgclip(classifier: ImageClassifier, tmp_path: Path) -> None:
    path, _ = exported(classifier, tmp_path, "pt2")
    expected = expected_of(classifier, 9)
    np.save(tmp_path / "pixels.npy", expected.pixels)
    code = (
        "import sys, numpy, torch\n"
        "module = torch.export.load(sys.argv[1]).module()\n"
        "scores, probs = module(torch.from_numpy(numpy.load('pixels.npy')))\n"
        "numpy.save('scores.npy', scores.numpy())\n"
        "assert not {'lgclip', 'open_clip', 'timm'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected.scores, atol=1e-4)
    shutil.rmtree(tmp_path)
