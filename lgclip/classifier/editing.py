"""Changes a classifier: its classes, its synthetic images, a few real images, and what it rejects."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lgclip.classifier.settings import check_negatives
from lgclip.classifier.sheet import without_tiles
from lgclip.classifier.sources import ImageSource
from lgclip.datasets.base import checked_names
from lgclip.datasets.names import read_class_names
from lgclip.methods.calibration import Temperature, likeliest_temperature
from lgclip.methods.left_out import References, left_out_scores
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.rejection import Rejection
from lgclip.methods.shots import DEFAULT_REPEATS, REPEATS, Shots

if TYPE_CHECKING:
    from lgclip.classifier.model import ImageClassifier
    from lgclip.classifier.parts import Builder

log = logging.getLogger(__name__)

MIN_PREFIX = 4
"""Letters of an image's id that must be given."""
MAX_SHOTS = 16
"""Real images per class; with more, train a classifier on them."""


# ------------------------------------------------------------------------------------------------------------- classes


def add_classes(classifier: "ImageClassifier", described: Mapping[str, str]) -> None:
    """Adds classes by name and description: see `ImageClassifier.add`."""
    new = checked_names(list(described))
    # Also among the existing names, without regard to case: predictions could not be told apart.
    checked_names([*classifier.class_names, *new])
    # Their images would be the same, and each image a tie.
    former = {info.prompted_as: info.name for info in classifier.classes if info.prompted_as}
    for name in new:
        if name in former:
            raise ValueError(f"{former[name]!r} was generated as {name!r}; remove it first, or add another name")
    builder = builder_of(classifier)
    built = builder.build(dict(zip(new, described.values(), strict=True)), classifier.settings)
    returning = set(built.image_ids) & set(classifier.dropped)
    if returning:
        drop_images(built, sorted(returning), fits=False)
    count = len(classifier.classes)
    classifier.classes = (*classifier.classes, *built.classes)
    classifier.strips = (*classifier.strips, *built.strips)
    if classifier.support is not None:
        assert built.support is not None
        classifier.support = _joined(classifier.support, built.support, count)
        classifier.image_ids = (*classifier.image_ids, *built.image_ids)
    if classifier.text is not None:
        assert built.text is not None
        classifier.text = torch.cat([classifier.text, built.text])
    if "text" in built.settings:
        # With the sentences that were given for the new classes.
        classifier.settings = {**classifier.settings, "text": built.settings["text"]}
    # Something that is a class now is no negative any more.
    if classifier.rejection is not None and classifier.rejection.names is not None:
        _drop_negatives(classifier, new)
    else:
        _generate_negatives(classifier)
    classifier.fit()


def remove_classes(classifier: "ImageClassifier", names: Sequence[str]) -> None:
    """Removes classes: see `ImageClassifier.remove`."""
    classifier.check_prototypes()
    removed = {classifier.index_of(name) for name in names}
    remaining = [index for index in range(len(classifier.classes)) if index not in removed]
    if len(remaining) < 2:
        raise ValueError(f"{len(remaining)} classes would remain; a classifier needs at least two")
    if classifier.support is not None:
        keep_images(classifier, [label not in removed for label in classifier.support.labels.tolist()])
        classifier.support = classifier.support.of_classes(remaining)
    if classifier.text is not None:
        classifier.text = classifier.text[remaining]
    if classifier.shots is not None:
        new = {label: place for place, label in enumerate(remaining)}
        labels = classifier.shots.labels.tolist()
        shots = classifier.shots.take([row for row, label in enumerate(labels) if label in new])
        places = torch.tensor([new[label] for label in shots.labels.tolist()], dtype=torch.long)
        classifier.shots = shots._replace(labels=places) if len(places) else None
    classifier.classes = tuple(classifier.classes[index] for index in remaining)
    classifier.strips = tuple(classifier.strips[index] for index in remaining)
    classifier.fit()


def builder_of(classifier: "ImageClassifier") -> "Builder":
    """Returns the builder of further classes.

    Raises:
        ValueError: If the classifier was trained, or its settings are unknown.
    """
    classifier.check_prototypes()
    if classifier.builder is None:
        raise ValueError("this classifier has no settings to build further classes with; build it again")
    return classifier.builder


def _joined(first: SupportSet, second: SupportSet, shift: int) -> SupportSet:
    """Returns the images of two sets of classes; the second's come after the first's."""
    full_image = None
    if first.full_image is not None and second.full_image is not None:
        full_image = torch.cat([first.full_image, second.full_image])
    return SupportSet(
        torch.cat([first.features, second.features]),
        torch.cat([first.labels, second.labels + shift]),
        first.num_classes + second.num_classes,
        full_image,
    )


# ---------------------------------------------------------------------------------------------------- synthetic images


def drop_images(classifier: "ImageClassifier", prefixes: Sequence[str], *, fits: bool = True) -> list[str]:
    """Removes synthetic images permanently: see `ImageClassifier.drop`.

    Args:
        classifier: The classifier.
        prefixes: Ids of the images, or their first letters.
        fits: Whether to fit the classifier again.

    Returns:
        The complete ids.
    """
    classifier.check_prototypes()
    if classifier.support is None or not classifier.image_ids:
        raise ValueError("this classifier has no synthetic images to drop")
    ids = [_complete(classifier, prefix) for prefix in prefixes]
    mask = [image_id not in ids for image_id in classifier.image_ids]
    remaining = Counter(
        label for label, is_kept in zip(classifier.support.labels.tolist(), mask, strict=True) if is_kept
    )
    for index, name in enumerate(classifier.class_names):
        if not remaining[index]:
            raise ValueError(f"class {name!r} would have no image left; remove the class, or keep one image")
    keep_images(classifier, mask)
    classifier.dropped = tuple(dict.fromkeys([*classifier.dropped, *ids]))
    classifier.edits = (*classifier.edits, f"dropped {len(ids)} synthetic images: {', '.join(i[:12] for i in ids)}")
    if fits:
        classifier.fit()
    return ids


def _complete(classifier: "ImageClassifier", prefix: str) -> str:
    """Returns the id that begins with some letters."""
    if len(prefix) < MIN_PREFIX:
        raise ValueError(f"image {prefix!r}: give at least {MIN_PREFIX} letters of its id")
    matches = sorted({image_id for image_id in classifier.image_ids if image_id.startswith(prefix)})
    if not matches:
        raise ValueError(f"no image {prefix!r}; lgclip show CLASSIFIER --images lists the ids")
    if len(matches) > 1:
        raise ValueError(f"image {prefix!r} fits {len(matches)} images, such as {matches[0]} and {matches[1]}")
    return matches[0]


def keep_images(classifier: "ImageClassifier", mask: Sequence[bool]) -> None:
    """Keeps some of the synthetic images, and their tiles in the sheet."""
    support = classifier.support
    assert support is not None
    removed: dict[int, list[int]] = {}
    counts: Counter[int] = Counter()
    for label, is_kept in zip(support.labels.tolist(), mask, strict=True):
        if not is_kept:
            removed.setdefault(label, []).append(counts[label])
        counts[label] += 1
    strips = list(classifier.strips)
    for label, places in removed.items():
        strips[label] = without_tiles(strips[label], places)
    classifier.strips = tuple(strips)
    classifier.support = support.take(torch.tensor(mask))
    if classifier.image_ids:
        ids = zip(classifier.image_ids, mask, strict=True)
        classifier.image_ids = tuple(image_id for image_id, is_kept in ids if is_kept)


# --------------------------------------------------------------------------------------------------------- real images


def add_shots(classifier: "ImageClassifier", images: Mapping[str, ImageSource | Iterable[ImageSource]]) -> None:
    """Mixes real images into the prototypes: see `ImageClassifier.add_shots`."""
    from lgclip.classifier.inference import encode_images

    classifier.check_prototypes()
    support = classifier.support
    if support is None:
        raise ValueError("this classifier compares with sentences only; shots join synthetic images: method=lgclip")
    if classifier.choice.selection.keep is not None:
        raise ValueError("shots join all images of a class; build the classifier with selection.keep=null")
    features: list[Tensor] = []
    labels: list[int] = []
    ids: list[str] = []
    existing = set(classifier.shots.ids) if classifier.shots else set()
    for name, sources in images.items():
        index = classifier.index_of(name)
        new_ids, new_features = encode_images(classifier, sources)
        for image_id, feature in zip(new_ids, new_features, strict=True):
            if image_id in existing:
                raise ValueError(f"class {name!r}: an image is given twice, or is among the shots already: {image_id}")
            existing.add(image_id)
            ids.append(image_id)
            labels.append(index)
            features.append(feature)
    if not ids:
        raise ValueError("no image to add; give a folder with a folder of images per class")
    shots = Shots(torch.stack(features), torch.tensor(labels), tuple(ids), DEFAULT_REPEATS)
    if classifier.shots is not None:
        old = classifier.shots
        shots = Shots(
            torch.cat([old.features, shots.features]), torch.cat([old.labels, shots.labels]), old.ids + shots.ids, 1
        )
    counts = Counter(shots.labels.tolist())
    for index, count in counts.items():
        if count > MAX_SHOTS:
            raise ValueError(
                f"class {classifier.class_names[index]!r} would have {count} real images, at most {MAX_SHOTS} are "
                "mixed in; with more, train on them: see docs/guides/students.md"
            )
    classifier.shots = shots._replace(repeats=best_repeats(classifier, shots))
    classifier.fit()
    per_class = f"{min(counts.values())} to {max(counts.values())}"
    classifier.edits = (
        *classifier.edits,
        f"added {len(ids)} real images, {per_class} of {len(counts)} classes; each counts as "
        f"{classifier.shots.repeats} synthetic ones",
    )


def best_repeats(classifier: "ImageClassifier", shots: Shots) -> int:
    """Returns the weight with the least loss on left-out real images; the default where none can be left out."""
    counts = torch.bincount(shots.labels)
    if int(counts.max()) < 2:
        return DEFAULT_REPEATS
    losses: dict[int, float] = {}
    for repeats in REPEATS:
        weighted = shots._replace(repeats=repeats)
        references = classifier.aligned(References(classifier.support, classifier.text, weighted))
        left_out = left_out_scores(classifier.choice, references, synthetic=False)
        temperature = likeliest_temperature(left_out.scores, left_out.labels, smooth=True)
        value = Temperature(1.0, "") if temperature is None else Temperature(temperature, "")
        log_probs = (left_out.scores / value.value).log_softmax(dim=1)
        losses[repeats] = -float(log_probs.gather(1, left_out.labels[:, None]).double().mean())
    return min(losses, key=losses.__getitem__)


# ----------------------------------------------------------------------------------------------------------- rejection


def set_rejection(classifier: "ImageClassifier", rejection: Rejection | None) -> None:
    """Sets which images are rejected: see `ImageClassifier.reject_unknown`."""
    classifier.rejection = rejection
    _generate_negatives(classifier)
    if rejection is not None and rejection.names is not None:
        # The names are kept with the images; the place of the file is of no use elsewhere.
        classifier.rejection = replace(rejection, names=Path(rejection.names).name)
    classifier.fit()


def _generate_negatives(classifier: "ImageClassifier") -> None:
    """Generates images of objects that are similar to the classes and belong to none."""
    from lgclip.classifier.parts import Negatives

    rejection = classifier.rejection
    classifier.negatives = None
    if rejection is None or classifier.support is None:
        return
    check_negatives(rejection, classifier.settings.get("text") or {}, uses_text=classifier.text is not None)
    names = _negative_names(classifier, rejection)
    if len(names) < 2:
        return
    settings = {**classifier.settings, "prompts_per_class": rejection.images_per_name, "images_per_prompt": 1}
    built = builder_of(classifier).build(names, settings)
    classifier.negatives = Negatives(tuple(names), References(built.support, built.text))


def _drop_negatives(classifier: "ImageClassifier", names: Sequence[str]) -> None:
    """Removes the negatives of some names, whose file may be missing by now."""
    if classifier.negatives is None:
        return
    dropped = {name.casefold() for name in names}
    remaining = [place for place, name in enumerate(classifier.negatives.names) if name.casefold() not in dropped]
    if not remaining:
        classifier.negatives = None
        return
    references = classifier.negatives.references
    support = references.support
    text = references.text
    classifier.negatives = type(classifier.negatives)(
        tuple(classifier.negatives.names[place] for place in remaining),
        References(
            None if support is None else support.of_classes(remaining),
            None if text is None else text[remaining],
        ),
    )


def _negative_names(classifier: "ImageClassifier", rejection: Rejection) -> dict[str, str]:
    """Returns names of negatives with their descriptions: from a file, or names similar to the classes."""
    classes = {(info.prompted_as or info.name): info.description for info in classifier.classes}
    if rejection.names is not None:
        described = read_class_names(Path(rejection.names), "rejection.names")
        class_names = {name.casefold() for name in (*classes, *classifier.class_names)}
        return {name: text for name, text in described.items() if name.casefold() not in class_names}
    if not rejection.similar_names:
        return {}
    count = max(1, min(rejection.similar_names, rejection.most_names // len(classes)))
    similar = builder_of(classifier).similar_names(classes, classifier.settings, count)
    return dict.fromkeys(similar[: rejection.most_names], "")
