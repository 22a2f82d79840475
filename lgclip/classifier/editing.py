"""Changes a classifier: its classes, its synthetic images, a few real images, and what it rejects."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lgclip.classifier.sheet import joined_strips, without_tiles
from lgclip.classifier.sources import ImageSource
from lgclip.datasets.base import checked_names
from lgclip.datasets.names import read_class_names
from lgclip.methods.calibration import Temperature, likeliest_temperature
from lgclip.methods.forecast import Forecast
from lgclip.methods.left_out import References, left_out_scores
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.rejection import Rejection
from lgclip.methods.shots import DEFAULT_REPEATS, REPEATS, Shots

if TYPE_CHECKING:
    from lgclip.classifier.model import Builder, ClassInfo, ImageClassifier

log = logging.getLogger(__name__)

MIN_PREFIX = 4
"""Letters of an image's id that must be given."""
MAX_SHOTS = 16
"""Real images per class; with more, train a classifier on them."""
_CONFUSABLE_CLASSES = 10  # that a round of `improve` generates images for


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
    # Something that is a class now is no negative any more.
    _generate_negatives(classifier)
    classifier.fit()


def remove_classes(classifier: "ImageClassifier", names: Sequence[str]) -> None:
    """Removes classes: see `ImageClassifier.remove`."""
    classifier.check_prototypes()
    removed = {classifier.index_of(name) for name in names}
    kept = [index for index in range(len(classifier.classes)) if index not in removed]
    if len(kept) < 2:
        raise ValueError(f"{len(kept)} classes would remain; a classifier needs at least two")
    if classifier.support is not None:
        _keep_images(classifier, [label not in removed for label in classifier.support.labels.tolist()])
        classifier.support = classifier.support.of_classes(kept)
    if classifier.text is not None:
        classifier.text = classifier.text[kept]
    if classifier.shots is not None:
        new = {label: place for place, label in enumerate(kept)}
        labels = classifier.shots.labels.tolist()
        shots = classifier.shots.take([row for row, label in enumerate(labels) if label in new])
        places = torch.tensor([new[label] for label in shots.labels.tolist()], dtype=torch.long)
        classifier.shots = shots._replace(labels=places) if len(places) else None
    classifier.classes = tuple(classifier.classes[index] for index in kept)
    classifier.strips = tuple(classifier.strips[index] for index in kept)
    classifier.fit()


def builder_of(classifier: "ImageClassifier") -> "Builder":
    """Returns what builds further classes.

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
    """Takes synthetic images out for good: see `ImageClassifier.drop`.

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
    left = [image_id not in ids for image_id in classifier.image_ids]
    remaining = Counter(
        label for label, is_kept in zip(classifier.support.labels.tolist(), left, strict=True) if is_kept
    )
    for index, name in enumerate(classifier.class_names):
        if not remaining[index]:
            raise ValueError(f"class {name!r} would have no image left; remove the class, or keep one image")
    _keep_images(classifier, left)
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


def _keep_images(classifier: "ImageClassifier", left: Sequence[bool]) -> None:
    """Keeps some of the synthetic images, and their tiles in the sheet."""
    support = classifier.support
    assert support is not None
    gone: dict[int, list[int]] = {}
    seen: Counter[int] = Counter()
    for label, is_kept in zip(support.labels.tolist(), left, strict=True):
        if not is_kept:
            gone.setdefault(label, []).append(seen[label])
        seen[label] += 1
    strips = list(classifier.strips)
    for label, places in gone.items():
        strips[label] = without_tiles(strips[label], places)
    classifier.strips = tuple(strips)
    classifier.support = support.take(torch.tensor(left))
    if classifier.image_ids:
        ids = zip(classifier.image_ids, left, strict=True)
        classifier.image_ids = tuple(image_id for image_id, is_kept in ids if is_kept)


# ---------------------------------------------------------------------------------------------------------- improvement


class _Candidate(NamedTuple):
    """Holds the images of a class before and after a change, on a common set of left-out images."""

    action: str
    support: SupportSet
    accuracy: float
    loss: float


def improve(classifier: "ImageClassifier", rounds: int) -> list[str]:
    """Generates new prompts and images for confusable classes: see `ImageClassifier.improve`."""
    if rounds < 1:
        raise ValueError(f"improve={rounds}: at least one round")
    builder_of(classifier)
    if classifier.support is not None and classifier.choice.selection.keep is not None:
        raise ValueError(
            "improve needs all images of a class; build the classifier with selection=first selection.keep=null"
        )
    lines: list[str] = []
    for number in range(1, rounds + 1):
        predicted = classifier.forecast()
        if predicted is None:
            raise ValueError("improve needs two images per class at least, to leave one out: raise prompts_per_class")
        confusable = _confusable_classes(predicted)
        if not confusable:
            lines.append("no class is confusable on the left-out synthetic images; nothing to improve")
            break
        # One build for all of them: the models load once.
        described = {
            _prompted_name(classifier, index): _told_apart(classifier, classifier.classes[index], others)
            for index, others in confusable.items()
        }
        built = builder_of(classifier).build(described, {**classifier.settings, "seed": _next_seed(classifier, number)})
        outcomes = [
            _improve_class(classifier, index, others, built, place)
            for place, (index, others) in enumerate(confusable.items())
        ]
        lines += [line for line, _ in outcomes]
        if not any(is_kept for _, is_kept in outcomes):
            break
        classifier.fit()
    return lines


def _confusable_classes(predicted: Forecast) -> dict[int, list[int]]:
    """Returns the worst classes, each with the classes that it is confused with."""
    others: dict[int, list[int]] = {}
    for pair in predicted.pairs:
        others.setdefault(pair.first, []).append(pair.second)
        others.setdefault(pair.second, []).append(pair.first)
    for index in predicted.at_risk():
        mistaken = predicted.classes[index].confused_with
        if index not in others and mistaken is not None:
            others[index] = [mistaken]
    worst = sorted(others, key=lambda index: predicted.classes[index].expected)
    return {index: others[index] for index in worst[:_CONFUSABLE_CLASSES]}


def _improve_class(
    classifier: "ImageClassifier", index: int, others: Sequence[int], built: "ImageClassifier", place: int
) -> tuple[str, bool]:
    """Tries new images of a class, those of class `place` of `built`; returns what happened, and whether they stay."""
    support = classifier.support
    assert support is not None
    assert built.support is not None
    info = classifier.classes[index]
    known = {*classifier.image_ids, *classifier.dropped}
    rows = [row for row, label in enumerate(built.support.labels.tolist()) if label == place]
    rows = [row for row in rows if built.image_ids[row] not in known]
    if not rows:
        return f"{info.name}: no new image could be generated", False
    new = built.support.take(torch.tensor(rows))
    new_ids = [built.image_ids[row] for row in rows]
    new = new._replace(labels=torch.full_like(new.labels, index), num_classes=support.num_classes)
    best = _best_candidate(classifier, index, new)
    names = ", ".join(classifier.class_names[other] for other in others)
    if best.action == "kept the old images":
        return f"{info.name} (confused with {names}): {len(new_ids)} new images do not help, {best.action}", False
    if best.action == "replaced the old images":
        left = [label != index for label in support.labels.tolist()]
        replaced = [image_id for image_id, is_kept in zip(classifier.image_ids, left, strict=True) if not is_kept]
        _keep_images(classifier, left)
        classifier.dropped = (*classifier.dropped, *replaced)
    assert classifier.support is not None
    shown = sum(label == index for label in classifier.support.labels.tolist())
    strips = list(classifier.strips)
    strips[index] = joined_strips(strips[index], built.strips[place], shown)
    classifier.strips = tuple(strips)
    classifier.support = SupportSet(
        torch.cat([classifier.support.features, new.features]),
        torch.cat([classifier.support.labels, new.labels]),
        support.num_classes,
    )
    classifier.image_ids = (*classifier.image_ids, *new_ids)
    prompts = tuple(dict.fromkeys([*info.prompts, *built.classes[place].prompts]))
    classes = list(classifier.classes)
    classes[index] = info._replace(prompts=prompts)
    classifier.classes = tuple(classes)
    line = f"{info.name} (confused with {names}): {best.action} by {len(new_ids)} new ones"
    classifier.edits = (*classifier.edits, f"improved {line}")
    return line, True


def _prompted_name(classifier: "ImageClassifier", index: int) -> str:
    """Returns the name that the prompts of a class are generated from."""
    info = classifier.classes[index]
    return info.prompted_as or info.name


def _told_apart(classifier: "ImageClassifier", info: "ClassInfo", others: Sequence[int]) -> str:
    """Returns the description of a class, with what its prompts must differ from."""
    names = " or ".join(classifier.class_names[other] for other in others)
    unlike = f"clearly different from {names}"
    return f"{info.description}; {unlike}" if info.description else unlike


def _next_seed(classifier: "ImageClassifier", number: int) -> int:
    """Returns a seed that the classifier has not used: prompts and images of another seed are new ones."""
    done = sum(edit.startswith("improved") for edit in classifier.edits)
    return int(classifier.settings.get("seed", 0)) + 1000 * number + done


def _best_candidate(classifier: "ImageClassifier", index: int, new: SupportSet) -> _Candidate:
    """Returns the best of the old, the old and new, and the new images of a class.

    All are judged on the same images: the old ones of all classes, and the new ones of this class, each scored by
    prototypes without it. A set must not look better because its own images resemble each other more.
    """
    support = classifier.support
    assert support is not None
    both = SupportSet(
        torch.cat([support.features, new.features]), torch.cat([support.labels, new.labels]), support.num_classes
    )
    is_old = torch.arange(len(both.labels)) < len(support.labels)
    sets = {
        "kept the old images": is_old,
        "extended the old images": torch.ones_like(is_old),
        "replaced the old images": ~is_old | (both.labels != index),
    }
    candidates = []
    for action, mask in sets.items():
        scores, labels = _scores_with(classifier, both, mask)
        accuracy = float((scores.argmax(dim=1) == labels).double().mean())
        probs = (scores / classifier.temperature.value).log_softmax(dim=1)
        loss = -float(probs.gather(1, labels[:, None]).double().mean())
        candidates.append(_Candidate(action, both.take(mask), accuracy, loss))
    old = candidates[0]
    better = [other for other in candidates if other.accuracy >= old.accuracy and other.loss <= old.loss]
    return min(better, key=lambda candidate: (-candidate.accuracy, candidate.loss))


def _scores_with(classifier: "ImageClassifier", images: SupportSet, used: Tensor) -> tuple[Tensor, Tensor]:
    """Scores all images by prototypes of the used ones, without the image itself."""
    references = References(images.take(used), classifier.text, classifier.shots)
    left_out = left_out_scores(classifier.choice, References(images.take(used), classifier.text))
    unused = images.take(~used)
    scores = [left_out.scores]
    labels = [left_out.labels]
    if len(unused.labels):
        scores.append(classifier.choice.fit(references.images, classifier.text)(unused.features))
        labels.append(unused.labels)
    return torch.cat(scores), torch.cat(labels)


# --------------------------------------------------------------------------------------------------------- real images


def add_shots(classifier: "ImageClassifier", images: Mapping[str, ImageSource | Iterable[ImageSource]]) -> None:
    """Mixes real images into the prototypes: see `ImageClassifier.add_shots`."""
    from lgclip.classifier.model import encode_images

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
        references = References(classifier.support, classifier.text, shots._replace(repeats=repeats))
        left_out = left_out_scores(classifier.choice, references, synthetic=False)
        temperature = likeliest_temperature(left_out.scores, left_out.labels, smooth=True)
        value = Temperature(1.0, "") if temperature is None else Temperature(temperature, "")
        log_probs = (left_out.scores / value.value).log_softmax(dim=1)
        losses[repeats] = -float(log_probs.gather(1, left_out.labels[:, None]).double().mean())
    return min(losses, key=losses.__getitem__)


# ----------------------------------------------------------------------------------------------------------- rejection


def set_rejection(classifier: "ImageClassifier", rejection: Rejection | None) -> None:
    """Sets how images of none of the classes are told: see `ImageClassifier.reject_unknown`."""
    classifier.rejection = rejection
    _generate_negatives(classifier)
    classifier.fit()


def _generate_negatives(classifier: "ImageClassifier") -> None:
    """Generates images of things that are similar to the classes and are none."""
    from lgclip.classifier.model import Negatives

    rejection = classifier.rejection
    classifier.negatives = None
    if rejection is None or classifier.support is None:
        return
    names = _negative_names(classifier, rejection)
    if len(names) < 2:
        return
    settings = {**classifier.settings, "prompts_per_class": rejection.images_per_name, "images_per_prompt": 1}
    built = builder_of(classifier).build(names, settings)
    classifier.negatives = Negatives(tuple(names), References(built.support, built.text))


def _negative_names(classifier: "ImageClassifier", rejection: Rejection) -> dict[str, str]:
    """Returns names of negatives with their descriptions: of a file, or of things similar to the classes."""
    classes = {(info.prompted_as or info.name): info.description for info in classifier.classes}
    if rejection.names is not None:
        described = read_class_names(Path(rejection.names))
        known = {name.casefold() for name in (*classes, *classifier.class_names)}
        return {name: text for name, text in described.items() if name.casefold() not in known}
    if not rejection.similar_names:
        return {}
    count = max(1, min(rejection.similar_names, rejection.most_names // len(classes)))
    similar = builder_of(classifier).similar_names(classes, classifier.settings, count)
    return dict.fromkeys(similar[: rejection.most_names], "")
