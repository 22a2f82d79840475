"""An exported file resizes and crops images as the preprocessing of its classifier does."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_classifiers import exported, make_classifier, opened, pictures
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from lgclip.classifier.export_preprocessing import PillowResize, describe_preprocessing
from lgclip.classifier.model import ImageClassifier
from lgclip.encoder.open_clip import OpenClip

pytest_plugins = ("exported_fixtures",)
pytestmark = pytest.mark.usefixtures("without_gpu")


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
