"""Exports a classifier to one file that other runtimes run: from pixels to class scores, with all that a program needs.

FILE.onnx          ONNX, for ONNX Runtime and most others
FILE.pt2           torch.export's archive, for torch without lgclip
FILE.xml, .bin     OpenVINO
FILE.safetensors   weights alone
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lgclip.classifier.export_formats import FORMATS, INPUT, OUTPUTS, Format, Onnx, Runner
from lgclip.classifier.export_graph import build_graph, fused_scales, single_encoders
from lgclip.classifier.export_preprocessing import InputSteps, Preprocessing, describe_preprocessing
from lgclip.classifier.model import ImageClassifier
from lgclip.encoder.backbone import Plan
from lgclip.encoder.base import Encoder, exact_encoder
from lgclip.encoder.fast_resize import FastTransform
from lgclip.encoder.paired import join_pixels
from lgclip.encoder.scales import FULL_IMAGE
from lgclip.encoder.weight_checks import sample_pixels
from lgclip.methods.rejection import FROM_SCORES
from lgclip.store.atomic import WriteError
from lgclip.store.keys import TINY, key_inputs, local_folder

log = logging.getLogger(__name__)

SCHEMA = 1
TOLERANCE = 1e-4
"""Largest difference of a score by the file from the classifier's."""
RESIZE_TOLERANCE = 1e-3
"""The same with a resize in the graph, where rounding may change a pixel by one gray level."""
_SAMPLES = 8


@dataclass(frozen=True)
class ExportSummary:
    """Describes what was written.

    Attributes:
        files: The files, the one that was asked for first.
        format: Its format.
        size: Bytes of all files.
        num_classes: Number of classes.
        parameters: Number of parameters of vision tower and head.
        max_difference: Largest difference of a score from the classifier's, over random images; None if no runtime is
            installed that could run the file.
        agreement: Fraction of these images for which both predict the same class; None as above.
    """

    files: tuple[Path, ...]
    format: str
    size: int
    num_classes: int
    parameters: int
    max_difference: float | None
    agreement: float | None

    def __str__(self) -> str:
        checked = "not verified"
        if self.max_difference is not None and self.agreement is not None:
            checked = (
                f"scores of {_SAMPLES} random images differ from the classifier's by at most "
                f"{self.max_difference:.1e}, {100 * self.agreement:.0f}% of the predictions are equal"
            )
        return (
            f"{self.files[0]}: {self.size / 1e6:.1f} MB, {self.num_classes} classes, "
            f"{self.parameters / 1e6:.2f} M parameters; {checked}"
        )


def export_classifier(
    classifier: ImageClassifier, path: Path, *, format: str, int8: bool = False, resize: bool = False
) -> ExportSummary:
    """Writes a classifier to a file that computes the same scores, and runs the file to check it.

    The file takes pixels of 0 to 255 that are cropped and resized to the tower's input; its metadata says how. It has
    no text tower. Its precision is fp32, also where the classifier's encoder runs in another on a GPU.

    Args:
        classifier: The classifier.
        path: The file; its name ends as the format demands. A file that is there is replaced.
        format: `onnx`, `pt2`, `openvino`, or `safetensors` for the weights alone.
        int8: Whether to quantize the weights of matrix products to 8 bits, for `onnx` alone. It changes predictions.
        resize: Whether to put resize and center crop into the graph, so that it takes images of any size. Pixels then
            differ from Pillow's by a gray level at most.

    Raises:
        ValueError: If an option is unknown or does not fit, a package is missing, the classifier cannot be exported,
            or the file gives other scores.
        WriteError: If the system refuses the file.
    """
    writer = _writer(format, int8, resize)
    _check_path(path, writer)
    writer.check()
    preprocessings = _preprocessings(classifier, squash=False)
    if not resize:
        _check_same_input(classifier, preprocessings)
    if any(isinstance(part.transform(), FastTransform) for part in single_encoders(classifier.encoder)):
        log.warning(
            "encoder.resize=fast: %s is for images that Pillow, or with --resize the file itself, resizes. Some of "
            "their pixels differ by a gray level from those of this classifier, and scores in the last digits",
            path,
        )
    views = _views(classifier, preprocessings)
    if resize and (len(views) > 1 or views[0]["fraction"] is not None):
        raise ValueError(
            f"resize: this classifier compares {len(views)} views of an image, whose crops are no part of a graph; "
            "leave resize out, or evaluate with scales=single"
        )
    _make_folder(path)
    height, width = sample_pixels(single_encoders(classifier.encoder)[0]).shape[-2:]
    if resize:
        height, width = 2 * height + 1, 3 * width - 1
    samples = _sample_images(len(views), height, width)
    # Before the tower is loaded for the graph: the two are never in memory together.
    expected = _classifier_scores(classifier, preprocessings, samples, resize=resize)
    graph, plans = build_graph(classifier, preprocessings, resize=resize)
    parameters = sum(parameter.numel() for parameter in graph.parameters())
    metadata = {
        **_metadata(classifier, preprocessings, views, plans),
        "input": _input(len(views), height, width, resize=resize),
        "resize_in_graph": resize,
        "precision": "int8" if int8 else "fp32",
    }
    check = _Verification(samples, expected, path, resize=resize, exact=not int8)
    writer.write(graph, samples[:2], metadata, path, check)
    if check.max_difference is None:
        log.warning(
            "%s was not verified: %s is not installed, pip install 'lgclip[%s]'", path, writer.runtime, writer.extra
        )
    files = (path, path.with_suffix(".bin")) if format == "openvino" else (path,)
    return ExportSummary(
        files=files,
        format=format,
        size=sum(file.stat().st_size for file in files),
        num_classes=len(classifier.class_names),
        parameters=parameters,
        max_difference=check.max_difference,
        agreement=check.agreement,
    )


def _writer(format: str, int8: bool, resize: bool) -> Format:
    if format not in FORMATS:
        raise ValueError(f"format={format}: choose {', '.join(FORMATS)}")
    if int8 and format != Onnx.name:
        raise ValueError(f"int8 with format={format}: only format=onnx can be quantized")
    if resize and not FORMATS[format].holds_graph:
        raise ValueError(f"resize with format={format}: it holds weights and no graph; leave resize out")
    if format == Onnx.name:
        return Onnx(int8=int8)
    return FORMATS[format]()


def _check_path(path: Path, writer: Format) -> None:
    if path.is_dir():
        raise ValueError(f"{path}: it is a folder; name a file that ends in {writer.suffix}")
    if path.suffix != writer.suffix:
        raise ValueError(f"{path}: a file of format={writer.name} ends in {writer.suffix}")


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WriteError(f"{path.parent}: {error.strerror}; name another folder") from error


def _preprocessings(classifier: ImageClassifier, *, squash: bool) -> list[Preprocessing]:
    """Returns the preprocessing of each tower."""
    parts = single_encoders(exact_encoder(classifier.encoder))
    return [describe_preprocessing(encoder.transform(squash=squash)) for encoder in parts]


def _check_same_input(classifier: ImageClassifier, preprocessings: Sequence[Preprocessing]) -> None:
    """Checks that all towers take the same pixels, where the file does not resize.

    Raises:
        ValueError: If two encoders resize images in different ways.
    """
    steps = [preprocessing.steps for preprocessing in preprocessings]
    squashed = [preprocessing.steps for preprocessing in _preprocessings(classifier, squash=True)]
    if steps.count(steps[0]) < len(steps) or squashed.count(squashed[0]) < len(squashed):
        raise ValueError(
            "the two encoders resize and crop images in different ways, and a file takes an image once: give --resize "
            "(resize=True), which puts both ways into the file"
        )


def _views(classifier: ImageClassifier, preprocessings: Sequence[Preprocessing]) -> list[dict[str, Any]]:
    """Describes the views of an image in the order of the input, each with its steps."""
    scales = fused_scales(classifier.scales)
    preprocessing = preprocessings[0]
    squash = _preprocessings(classifier, squash=True)[0]
    total = sum(scales.weights)
    views: list[dict[str, Any]] = []
    for name, fraction, weight in zip(scales.views, scales.fractions, scales.weights, strict=True):
        full = name == FULL_IMAGE
        steps = preprocessing.steps if full else squash.steps
        views.append(
            {
                "name": name,
                "fraction": None if full else fraction,
                "weight": weight / total,
                "steps": list(steps),
            }
        )
    return views


def _metadata(
    classifier: ImageClassifier,
    preprocessings: Sequence[Preprocessing],
    views: list[dict[str, Any]],
    plans: Sequence[Plan],
) -> Mapping[str, object]:
    """Returns the preprocessing of photographs and the class names for a program, as plain values."""
    choice = classifier.choice
    means = [list(preprocessing.mean) for preprocessing in preprocessings]
    deviations = [list(preprocessing.std) for preprocessing in preprocessings]
    towers = [asdict(plan) for plan in plans]
    return {
        "schema": SCHEMA,
        "lgclip": version("lgclip"),
        "classes": list(classifier.class_names),
        "outputs": list(OUTPUTS),
        "views": views,
        "scales": key_inputs(fused_scales(classifier.scales)),
        # Of two encoders a list of both.
        "mean": means if len(means) > 1 else means[0],
        "std": deviations if len(means) > 1 else deviations[0],
        "normalized_in_graph": True,
        "temperature": classifier.temperature.value,
        # The logits of a student are of no prototype.
        "prototype": None if classifier.gives_logits else choice.described()["prototype"],
        "text_weight": None if classifier.gives_logits else choice.text_weight,
        "rejection": _rejection(classifier),
        "encoder": {"id": _encoder_id(classifier.encoder), "inputs": exact_encoder(classifier.encoder).inputs()},
        # How to build the tower that the weights fit.
        "tower": towers if len(towers) > 1 else towers[0],
    }


def _rejection(classifier: ImageClassifier) -> Mapping[str, object] | None:
    """Returns score and threshold below which an image shows none of the classes; None where scores do not suffice."""
    rejector = classifier.rejector
    if rejector is None:
        return None
    if rejector.score not in FROM_SCORES:
        log.warning(
            "rejection.score=%s compares with synthetic images, which are not exported: the file rejects nothing; "
            "rejection.score=max_score needs the scores alone",
            rejector.score,
        )
        return None
    return {"score": rejector.score, "threshold": rejector.threshold}


def _encoder_id(encoder: Encoder) -> str:
    """Returns the name of the encoder's model; of a folder the last part alone, since the file goes elsewhere."""
    if parts := encoder.parts():
        return " + ".join(map(_encoder_id, parts.values()))
    model = str(getattr(encoder, "model", type(encoder).__name__))
    if model.startswith(TINY) or local_folder(model) is None:
        return model
    return Path(model).name


def _input(views: int, height: int, width: int, *, resize: bool) -> dict[str, object]:
    shape: list[object] = ["batch", 3, "height", "width"] if resize else ["batch", 3, height, width]
    if views > 1:
        shape.insert(1, views)
    return {"name": INPUT, "dtype": "uint8", "color": "RGB", "shape": shape}


def _sample_images(views: int, height: int, width: int) -> UInt8[Tensor, "b *s 3 h w"]:
    """Returns images of random patches and noise, the same in every call; of noise alone all features are alike."""
    generator = torch.Generator().manual_seed(0)
    count = _SAMPLES * views
    patches = torch.rand(count, 3, 5, 5, generator=generator) * 255
    noise = torch.randn(count, 3, height, width, generator=generator) * 20
    images = torch.nn.functional.interpolate(patches, (height, width)) + noise
    images = images.clamp(0, 255).to(torch.uint8)
    if views == 1:
        return images
    return images.unflatten(0, (_SAMPLES, views))


@torch.inference_mode()
def _classifier_scores(
    classifier: ImageClassifier,
    preprocessings: Sequence[Preprocessing],
    samples: UInt8[Tensor, "b *s 3 h w"],
    *,
    resize: bool,
) -> Float[np.ndarray, "b c"]:
    """Returns the scores by the classifier's own encoder and scorer, which share no code with the exported module."""
    device = torch.device("cpu")
    scales = fused_scales(classifier.scales)
    towers = exact_encoder(classifier.encoder).load(device)
    images = samples.float().reshape(-1, *samples.shape[-3:])
    pixels = [InputSteps(preprocessing, resize=resize)(images) for preprocessing in preprocessings]
    features = towers.images(pixels[0] if len(pixels) == 1 else join_pixels(pixels)).float()
    scorer = classifier.scorer()
    return scorer(scales.fuse(features.unflatten(0, (-1, len(scales.views))))).numpy()


class _Verification:
    """Compares scores by a file with those of the classifier.

    Args:
        samples: Pixels of images.
        expected: Their scores.
        path: The file, for the error message.
        resize: Whether the graph resizes.
        exact: Whether other scores are an error; otherwise only their difference is measured.
    """

    def __init__(
        self,
        samples: UInt8[Tensor, "b *s 3 h w"],
        expected: Float[np.ndarray, "b c"],
        path: Path,
        *,
        resize: bool,
        exact: bool,
    ) -> None:
        self._samples = samples.numpy()
        self._expected = expected
        self._path = path
        # Cosines are below 1; the logits of a student may be ten times as large, and so is their rounding.
        size = max(1.0, float(np.abs(expected).max()))
        self._tolerance = size * (RESIZE_TOLERANCE if resize else TOLERANCE)
        self._exact = exact
        self.max_difference: float | None = None
        self.agreement: float | None = None

    def __call__(self, run: Runner) -> None:
        # A single image first: the number of images must not be fixed in the graph.
        scores = np.concatenate([run(self._samples[:1]), run(self._samples[1:])])
        differences = np.abs(scores - self._expected)
        self.max_difference = float(differences.max())
        predictions = scores.argmax(axis=1)
        self.agreement = float((predictions == self._expected.argmax(axis=1)).mean())
        if not np.isfinite(self.max_difference):
            raise ValueError(f"{self._path} was not written: its scores are not finite numbers")
        if not self._exact:
            return
        # Where two classes are as good as equal, either is right.
        chosen = np.take_along_axis(self._expected, predictions[:, None], axis=1)[:, 0]
        lost = float((self._expected.max(axis=1) - chosen).max())
        if self.max_difference > self._tolerance or lost > self._tolerance:
            raise ValueError(
                f"{self._path} was not written: its scores differ from the classifier's by {self.max_difference:.1e}, "
                f"allowed are {self._tolerance:.0e}; use another format"
            )
