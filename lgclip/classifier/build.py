"""Builds a classifier from the synthetic images and sentences of its classes."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.parts import ClassInfo, names_of
from lgclip.classifier.sheet import MAX_CLASSES, MAX_IMAGES, strip_of
from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import SyntheticImages
from lgclip.encoder.base import Encoder
from lgclip.encoder.scales import Scales, full_image_place
from lgclip.methods.alignment import FittedAlignment
from lgclip.methods.calibration import Choice, FittedChoice, LeaveOneOut, fit_choice
from lgclip.methods.left_out import References
from lgclip.methods.prototypes import SupportSet
from lgclip.stages.extract import text_prototypes
from lgclip.stages.streams import Stream


def classifier_from_features(
    dataset: Dataset,
    encoder: Encoder,
    scales: Scales,
    configured: Choice,
    calibration: LeaveOneOut | None,
    *,
    streams: Mapping[str, Stream],
    synthetic_images: SyntheticImages | None,
    fitted: FittedChoice | None = None,
    settings: Mapping[str, Any],
    origin: Mapping[str, Any],
    full_image: Float[Tensor, "m d"] | None = None,
    align: Callable[[References], FittedAlignment] | None = None,
) -> ImageClassifier:
    """Builds a classifier from stored features.

    Args:
        dataset: The classes.
        encoder: Turns images into features.
        scales: Views of an image.
        configured: Scoring rule, selection and text weight.
        calibration: Selects the free parameters; None leaves them unchanged.
        streams: `synthetic` and `text`, as far as the method uses them.
        synthetic_images: The synthetic images; None if the method uses none.
        fitted: The settings after calibration, where they are known.
        settings: Resolved config groups, to build further classes with.
        origin: Origin of the images and sentences, for people.
        full_image: Features of the full synthetic images where the selection compares them and they are no view of
            the streams.
        align: Fits the alignment with real images; None compares them as they are.

    Raises:
        ValueError: If the calibration needs more images.
    """
    classes = len(dataset.class_names)
    text: Float[Tensor, "c d"] | None = None
    if "text" in streams:
        text = text_prototypes(streams["text"], classes)
    support: SupportSet | None = None
    if synthetic_images is not None and configured.text_weight < 1:
        support = _support_of(streams["synthetic"], scales, classes, compares=configured.selects_by_text)
        if full_image is not None:
            support = support._replace(full_image=full_image)
    compared = References(support, text)
    alignment = None
    if align is not None:
        alignment = align(compared)
        compared = alignment.references(compared)
    return ImageClassifier(
        classes=_infos(dataset, synthetic_images),
        encoder=encoder,
        scales=scales,
        configured=configured,
        calibration=calibration,
        support=support,
        text=text if needs_text(configured) else None,
        fitted=fitted or fit_choice(configured, calibration, compared),
        alignment=alignment,
        settings=settings,
        origin=origin,
        strips=_strips(synthetic_images, classes),
        image_ids=tuple(synthetic_images.ids) if synthetic_images is not None and support is not None else (),
    )


def needs_text(configured: Choice) -> bool:
    """Returns whether a classifier uses the sentences of its classes, for its scores or to select images."""
    return configured.text_weight > 0 or configured.selects_by_text


def _support_of(synthetic: Stream, scales: Scales, classes: int, *, compares: bool) -> SupportSet:
    """Returns the fused features, and those of the full images where the selection compares them with sentences."""
    batches = [batch.features for batch in synthetic.batches()]
    fused = torch.cat([scales.fuse(features) for features in batches])
    full_image: Tensor | None = None
    place = full_image_place(scales)
    if compares and place is not None:
        full_image = torch.cat([features[:, place] for features in batches])
    return SupportSet(fused, torch.tensor(synthetic.labels), classes, full_image)


def _infos(dataset: Dataset, synthetic_images: SyntheticImages | None) -> tuple[ClassInfo, ...]:
    """Returns the description and the distinct prompts of each class."""
    prompts: list[dict[str, None]] = [{} for _ in dataset.class_names]
    for prompt in synthetic_images.prompts if synthetic_images else ():
        # Without a text its images come from a folder.
        if prompt.text:
            prompts[prompt.class_index].setdefault(prompt.text)
    infos: list[ClassInfo] = []
    names = names_of(dataset.class_names)
    for target, name, texts in zip(dataset.target_classes, names, prompts, strict=True):
        description = "" if target.context == dataset.context else target.context
        infos.append(ClassInfo(name, description, tuple(texts), target.name if target.name != name else ""))
    return tuple(infos)


def _strips(synthetic_images: SyntheticImages | None, classes: int) -> Sequence[Any]:
    """Returns the first images of the first classes in a row each."""
    places: list[list[int]] = [[] for _ in range(classes)]
    incomplete = set[int]()
    for place, prompt in enumerate(synthetic_images.prompts if synthetic_images else ()):
        if prompt.class_index >= MAX_CLASSES or len(places[prompt.class_index]) >= MAX_IMAGES:
            continue
        assert synthetic_images is not None
        if synthetic_images.paths[place] is None:
            incomplete.add(prompt.class_index)
        # A tile's place is that of its image: after one that was not stored, no other is shown.
        if prompt.class_index not in incomplete:
            places[prompt.class_index].append(place)
    strips = []
    for shown in places:
        assert synthetic_images is not None or not shown
        strips.append(strip_of([synthetic_images.image(place) for place in shown]) if synthetic_images else None)
    return tuple(strips)
