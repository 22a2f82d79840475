"""An exported file computes the scores of its classifier, in each format and for each family of encoders."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoder_families import ENCODERS
from exported_classifiers import (
    CLASSES,
    CPU,
    ROOT,
    assert_equal,
    expected_of,
    exported,
    make_classifier,
    opened,
    with_choice,
)
from safetensors.torch import load_file

from lgclip.classifier import export
from lgclip.classifier.export import export_classifier
from lgclip.classifier.export_formats import FORMATS
from lgclip.classifier.model import ImageClassifier
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import RandomResizedCrops, Scales, SquareCrops, WithFullImage
from lgclip.methods.calibration import Choice
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import GDA, Affinity, Cache, Mean, Nearest, Scorer, ScoringRule, Signature, WeightedKNN
from lgclip.methods.selection import ByText
from lgclip.store.keys import key_name_of

pytest_plugins = ("exported_fixtures",)
pytestmark = pytest.mark.usefixtures("without_gpu")


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
