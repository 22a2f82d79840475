"""Describes the images of a page: the synthetic ones of each class, and photographs with their predictions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lgclip.classifier.inference import encode_images
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.parts import ImagePrediction
from lgclip.classifier.sheet import tiles_of
from lgclip.datasets.base import BadImageError
from lgclip.datasets.image_decoding import read_image
from lgclip.methods.left_out import place_in_class

NEAREST = 5
"""Synthetic images that are shown with a photograph."""
TOP = 3
"""Classes that are shown with a photograph."""
_THUMBNAIL = 256


@dataclass(frozen=True)
class ClassImages:
    """Holds the synthetic images of a class.

    Attributes:
        name: Name of the class.
        images: The first images, as small as the sheet has them.
        ids: Their ids.
        total: Number of synthetic images of the class; `images` may be fewer.
    """

    name: str
    images: Sequence[Image.Image]
    ids: Sequence[str]
    total: int


@dataclass(frozen=True)
class SimilarImage:
    """Describes a synthetic image that resembles a photograph.

    Attributes:
        name: Its class.
        similarity: Cosine similarity of the two features; 1 for equal ones.
        image: The image; None if the sheet does not have it.
    """

    name: str
    similarity: float
    image: Image.Image | None


@dataclass(frozen=True)
class Photo:
    """Describes a photograph and what was predicted for it.

    Attributes:
        name: Name of the file, as the browser sent it.
        path: The session's copy.
        thumbnail: A small version; None if it cannot be read.
        prediction: Label, score and the most probable classes.
        similar: The most similar synthetic images, the most similar first.
    """

    name: str
    path: Path
    thumbnail: Image.Image | None
    prediction: ImagePrediction
    similar: Sequence[SimilarImage] = ()

    @property
    def caption(self) -> str:
        """Returns the prediction in a few words."""
        prediction = self.prediction
        if prediction.label is None or prediction.score is None:
            return f"cannot be read: {prediction.error}"
        if prediction.rejected:
            return f"none of these (most similar: {prediction.label})"
        return f"{prediction.label}, {100 * prediction.score:.0f}%"


def images_of_classes(classifier: ImageClassifier) -> list[ClassImages]:
    """Returns the synthetic images of each class; none if sentences represent the classes."""
    if classifier.support is None:
        return []
    ids: dict[int, list[str]] = {}
    for label, image_id in zip(classifier.support.labels.tolist(), classifier.image_ids, strict=False):
        ids.setdefault(label, []).append(image_id)
    listed = []
    for index, name in enumerate(classifier.class_names):
        images = tiles_of(classifier.strips[index])
        class_ids = ids.get(index, [])
        visible = min(len(images), len(class_ids))
        listed.append(ClassImages(name, images[:visible], class_ids[:visible], len(class_ids)))
    return listed


def predict_photos(classifier: ImageClassifier, files: Sequence[tuple[str, Path]]) -> tuple[Photo, ...]:
    """Classifies photographs and finds the synthetic images that resemble them.

    Args:
        classifier: The classifier.
        files: Name and file of each.
    """
    top = min(TOP, len(classifier.classes))
    predictions = list(classifier.classify([path for _, path in files], top=top))
    readable = [path for (_, path), prediction in zip(files, predictions, strict=True) if prediction.error is None]
    similar = _similar_images(classifier, readable)
    photos = []
    for (name, path), prediction in zip(files, predictions, strict=True):
        images = next(similar) if prediction.error is None else ()
        photos.append(Photo(name, path, _thumbnail(path), prediction, images))
    return tuple(photos)


def _similar_images(classifier: ImageClassifier, paths: Sequence[Path]) -> Iterator[Sequence[SimilarImage]]:
    """Yields the synthetic images that resemble each photograph most."""
    if classifier.support is None or classifier.gives_logits or not paths:
        yield from [()] * len(paths)
        return
    labels = classifier.support.labels.tolist()
    places = place_in_class(classifier.support).tolist()
    tiles = [tiles_of(strip) for strip in classifier.strips]
    _, features = encode_images(classifier, paths)
    similarities = features @ classifier.support.features.T
    count = min(NEAREST, similarities.shape[1])
    for row in similarities:
        values, rows = row.topk(count)
        images = []
        for value, index in zip(values.tolist(), rows.tolist(), strict=True):
            label = labels[index]
            place = places[index]
            image = tiles[label][place] if place < len(tiles[label]) else None
            images.append(SimilarImage(classifier.class_names[label], value, image))
        yield tuple(images)


def _thumbnail(path: Path) -> Image.Image | None:
    try:
        image = read_image(path)
    except (BadImageError, ValueError):
        return None
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return image
