"""Classifies images by stored prototypes: the classifier that a run leaves behind."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from lgclip.classifier.sources import ImageSource, expand_sources
from lgclip.datasets.base import BadImageError
from lgclip.datasets.content_ids import content_id
from lgclip.datasets.image_decoding import read_image, to_rgb
from lgclip.encoder.base import Encoder, Towers
from lgclip.encoder.scales import Scales
from lgclip.methods.calibration import Choice, Temperature
from lgclip.methods.prototypes import SupportSet
from lgclip.stages.features import SharedViews
from lgclip.stages.streams import CPU_ROWS
from lgclip.store.keys import content_key, digest_of

log = logging.getLogger(__name__)

_DECODERS = 8
"""Threads that decode and resize images; both release the interpreter's lock."""


@dataclass(frozen=True)
class ImagePrediction:
    """Describes the predicted class of one image.

    Attributes:
        path: The file, or `image N` for one that was passed as pixels.
        label: Name of the most probable class; None if the image cannot be read.
        score: Its probability.
        runner_up: Name of the second class; None with an error.
        margin: Difference of the two probabilities.
        top: The most probable classes with their probabilities, the first first.
        error: Why the image cannot be read; None for a prediction.
    """

    path: str
    label: str | None
    score: float | None
    runner_up: str | None
    margin: float | None
    top: tuple[tuple[str, float], ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class ImageClassifier:
    """Classifies images by prototypes in the feature space of one vision encoder; no text tower is loaded.

    Attributes:
        class_names: Name of each class.
        encoder: Turns images into features.
        scales: Views of an image, and their fusion.
        choice: Scoring rule, selection and text weight.
        support: Features of the synthetic images that represent the classes; None if text alone does.
        text: Text prototypes; None without a text weight.
        temperature: Divisor that turns scores into log-probabilities.
    """

    class_names: tuple[str, ...]
    encoder: Encoder
    scales: Scales
    choice: Choice
    support: SupportSet | None = field(repr=False)
    text: Float[Tensor, "c d"] | None = field(repr=False)
    temperature: Temperature

    def __post_init__(self) -> None:
        if len(self.class_names) < 2:
            raise ValueError(f"a classifier needs at least two classes, this one has {len(self.class_names)}")

    @property
    def classes_(self) -> np.ndarray:
        """Returns the class names, as scikit-learn's classifiers do."""
        return np.array(self.class_names)

    def classify(
        self, sources: ImageSource | Iterable[ImageSource], *, top: int = 5, batch_size: int = 64
    ) -> Iterator[ImagePrediction]:
        """Yields the prediction for each image, in order; an unreadable image gives a row with its error.

        Images are read when their turn comes, so that memory does not grow with their number.

        Args:
            sources: Files, folders (searched with their sub-folders), glob patterns, PIL images or arrays
                (h, w, 3) of bytes; one or several.
            top: Number of classes in `ImagePrediction.top`.
            batch_size: Number of images that are decoded and encoded at once.

        Raises:
            ValueError: If a source does not exist or is a URL, or a number is below 1.
        """
        if top < 1 or batch_size < 1:
            raise ValueError(f"top={top}, batch_size={batch_size}: both must be at least 1")
        # Checked at once and not with the first image: a generator would hide a wrong path until it is used.
        items = expand_sources(sources)
        return self._predictions(items, top, batch_size)

    def predict(self, sources: ImageSource | Iterable[ImageSource]) -> np.ndarray:
        """Returns the class name of each image.

        Raises:
            ValueError: If an image cannot be read: a row without a class would shift all others.
        """
        return np.array([_required(prediction).label for prediction in self.classify(sources, top=1)])

    def predict_proba(self, sources: ImageSource | Iterable[ImageSource]) -> Float[np.ndarray, "n c"]:
        """Returns the probability of each class, in the order of `classes_`.

        Raises:
            ValueError: As in `predict`.
        """
        place = {name: index for index, name in enumerate(self.class_names)}
        rows = []
        for prediction in self.classify(sources, top=len(self.class_names)):
            row = np.zeros(len(self.class_names))
            for name, probability in _required(prediction).top:
                row[place[name]] = probability
            rows.append(row)
        return np.stack(rows) if rows else np.zeros((0, len(self.class_names)))

    @torch.inference_mode()
    def _predictions(
        self, items: Iterator[tuple[str, Path | Image.Image]], top: int, batch_size: int
    ) -> Iterator[ImagePrediction]:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        encoder = self.encoder.on(device)
        towers = encoder.load(device)
        views = SharedViews(encoder, self.scales)
        scorer = self.choice.fit(self.support, self.text)

        def load(item: tuple[str, Path | Image.Image]) -> Tensor | str:
            try:
                image, image_id = _image_of(item[1])
            except (BadImageError, ValueError) as error:
                return getattr(error, "reason", str(error))
            return views(image, image_id)

        with ThreadPoolExecutor(_DECODERS) as decoders:
            while part := list(islice(items, batch_size)):
                loaded = list(decoders.map(load, part))
                pixels = [item for item in loaded if isinstance(item, Tensor)]
                probs: Iterator[Tensor] = iter(())
                if pixels:
                    features = _encode(towers, torch.stack(pixels), device)
                    scores = scorer(self.scales.fuse(features))
                    probs = iter((scores / self.temperature.value).softmax(dim=1))
                for (path, _), item in zip(part, loaded, strict=True):
                    if isinstance(item, str):
                        yield ImagePrediction(path, None, None, None, None, error=item)
                    else:
                        yield self._prediction(path, next(probs), top)

    def _prediction(self, path: str, probs: Float[Tensor, " c"], top: int) -> ImagePrediction:
        # A stable sort, so that of equal scores the first class wins, as in an evaluation.
        values, places = probs.sort(descending=True, stable=True)
        ranked = tuple(
            (self.class_names[place], value)
            for place, value in zip(places[: max(top, 2)].tolist(), values[: max(top, 2)].tolist(), strict=True)
        )
        (label, score), (runner_up, second) = ranked[:2]
        return ImagePrediction(path, label, score, runner_up, score - second, ranked[:top])


def _required(prediction: ImagePrediction) -> ImagePrediction:
    if prediction.error is not None:
        raise ValueError(f"{prediction.path} cannot be read as an image ({prediction.error}); leave it out")
    return prediction


def _image_of(source: Path | Image.Image) -> tuple[Image.Image, str]:
    """Returns the pixels of an image and its content key, on which random crops depend."""
    if isinstance(source, Path):
        return read_image(source), content_id(digest_of(source))
    image = to_rgb(source)
    return image, content_key({"pixels": content_key({"size": image.size, "bytes": image.tobytes().hex()})})


def _encode(towers: Towers, views: Float[Tensor, "b s 3 h w"], device: torch.device) -> Float[Tensor, "b s d"]:
    """Encodes the views of some images, in passes of one size on a CPU: a feature is then the same in any batch."""
    rows = views.flatten(0, 1)
    size = CPU_ROWS if device.type == "cpu" else len(rows)
    features: list[Tensor] = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        fill = size - len(part)
        full = torch.cat([part, part[-1:].expand(fill, *part.shape[1:])]) if fill else part
        features.append(towers.images(full.to(device))[: len(part)].float().cpu())
    return torch.cat(features).unflatten(0, views.shape[:2])


def names_of(classes: Sequence[str]) -> tuple[str, ...]:
    """Returns class names, made distinct by their occurrence where one occurs twice, as two of ImageNet's do."""
    counts: dict[str, int] = {}
    names: list[str] = []
    for name in classes:
        counts[name] = counts.get(name, 0) + 1
        names.append(name if counts[name] == 1 else f"{name} ({counts[name]})")
    return tuple(names)
