"""Improves a classifier by new prompts and images for its confusable classes."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from lgclip.classifier.editing import builder_of, keep_images
from lgclip.classifier.sheet import joined_strips
from lgclip.methods.forecast import Forecast
from lgclip.methods.left_out import References, left_out_scores
from lgclip.methods.prototypes import SupportSet

if TYPE_CHECKING:
    from lgclip.classifier.model import ImageClassifier
    from lgclip.classifier.parts import ClassInfo

_CONFUSABLE_CLASSES = 10
"""Maximum number of classes that a round generates images for."""


class _NewImages(NamedTuple):
    """Holds the new images of a class.

    Attributes:
        support: Their features, labelled with the class.
        ids: Content key of each.
        prompts: Their prompts.
        strip: They in a row, for the sheet.
    """

    support: SupportSet
    ids: tuple[str, ...]
    prompts: tuple[str, ...]
    strip: Image.Image | None


class _Candidate(NamedTuple):
    """Holds how a set of images of a class does on left-out images.

    Attributes:
        action: Change to the images of the class.
        accuracy: Accuracy on the old images of all classes.
        loss: Mean negative log-probability of the true class, on the old and the new images.
    """

    action: str
    accuracy: float
    loss: float


_KEEP = "kept the old images"
_EXTEND = "extended the old images"
_REPLACE = "replaced the old images"


def improve(classifier: "ImageClassifier", rounds: int, *, judges: bool = True) -> list[str]:
    """Generates new prompts and images for confusable classes: see `ImageClassifier.improve`.

    Args:
        classifier: The classifier.
        rounds: Maximum number of rounds.
        judges: Whether left-out images decide what is kept; False adds all new images, for a comparison.

    Returns:
        What was tried for each class, and whether it was kept.

    Raises:
        ValueError: If there is no round, a class has one image, or the classifier selects images.
    """
    if rounds < 1:
        raise ValueError(f"improve={rounds}: at least one round")
    builder = builder_of(classifier)
    if classifier.choice.selection.keep is not None:
        raise ValueError("improve needs all images of a class: build the classifier with selection.keep=null")
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
            _prompted_name(classifier.classes[index]): _contrast(classifier, index, rivals)
            for index, rivals in confusable.items()
        }
        built = builder.build(described, {**classifier.settings, "seed": _next_seed(classifier, number)})
        is_changed = False
        for place, (index, rivals) in enumerate(confusable.items()):
            new = _new_images(classifier, index, built, place)
            action = _KEEP
            if new.ids:
                action = _best_candidate(classifier, index, new.support).action if judges else _EXTEND
            names = ", ".join(classifier.class_names[rival] for rival in rivals)
            line = f"{classifier.class_names[index]} (confused with {names}): {action}, {len(new.ids)} new ones tried"
            lines.append(line)
            if action != _KEEP:
                _add_images(classifier, index, new, replaces=action == _REPLACE)
                classifier.edits = (*classifier.edits, f"improved {line}")
                is_changed = True
        if not is_changed:
            break
        classifier.fit()
    return lines


def _confusable_classes(predicted: Forecast) -> dict[int, list[int]]:
    """Returns the worst classes, each with the classes that it is confused with."""
    rivals: dict[int, list[int]] = {}
    for pair in predicted.pairs:
        rivals.setdefault(pair.first, []).append(pair.second)
        rivals.setdefault(pair.second, []).append(pair.first)
    for index in predicted.at_risk():
        mistaken = predicted.classes[index].confused_with
        if index not in rivals and mistaken is not None:
            rivals[index] = [mistaken]
    worst = sorted(rivals, key=lambda index: predicted.classes[index].expected)
    return {index: rivals[index] for index in worst[:_CONFUSABLE_CLASSES]}


def _new_images(classifier: "ImageClassifier", index: int, built: "ImageClassifier", place: int) -> _NewImages:
    """Returns the images of class `place` of a build that the classifier has not had before, as images of a class."""
    assert classifier.support is not None
    assert built.support is not None
    previous_ids = {*classifier.image_ids, *classifier.dropped}
    labels = built.support.labels.tolist()
    rows = [row for row, label in enumerate(labels) if label == place and built.image_ids[row] not in previous_ids]
    selected = built.support.take(torch.tensor(rows, dtype=torch.long))
    support = SupportSet(selected.features, torch.full_like(selected.labels, index), classifier.support.num_classes)
    ids = tuple(built.image_ids[row] for row in rows)
    return _NewImages(support, ids, built.classes[place].prompts, built.strips[place])


def _add_images(classifier: "ImageClassifier", index: int, new: _NewImages, *, replaces: bool) -> None:
    """Adds new images to a class, or replaces its images by them."""
    assert classifier.support is not None
    if replaces:
        mask = [label != index for label in classifier.support.labels.tolist()]
        replaced = [image_id for image_id, stays in zip(classifier.image_ids, mask, strict=True) if not stays]
        keep_images(classifier, mask)
        classifier.dropped = (*classifier.dropped, *replaced)
    support = classifier.support
    strips = list(classifier.strips)
    strips[index] = joined_strips(strips[index], new.strip, int((support.labels == index).sum()))
    classifier.strips = tuple(strips)
    classifier.support = SupportSet(
        torch.cat([support.features, new.support.features]),
        torch.cat([support.labels, new.support.labels]),
        support.num_classes,
    )
    classifier.image_ids = (*classifier.image_ids, *new.ids)
    classes = list(classifier.classes)
    prompts = tuple(dict.fromkeys([*classes[index].prompts, *new.prompts]))
    classes[index] = classes[index]._replace(prompts=prompts)
    classifier.classes = tuple(classes)


def _prompted_name(info: "ClassInfo") -> str:
    """Returns the name that the prompts of a class are generated from."""
    return info.prompted_as or info.name


def _contrast(classifier: "ImageClassifier", index: int, rivals: Sequence[int]) -> str:
    """Returns the description of a class, with what its prompts must differ from."""
    description = classifier.classes[index].description
    names = " or ".join(classifier.class_names[rival] for rival in rivals)
    unlike = f"clearly different from {names}"
    return f"{description}; {unlike}" if description else unlike


def _next_seed(classifier: "ImageClassifier", number: int) -> int:
    """Returns a seed that the classifier has not used: prompts and images of another seed are new ones."""
    improvements = sum(edit.startswith("improved") for edit in classifier.edits)
    return int(classifier.settings.get("seed", 0)) + 1000 * number + improvements


def _best_candidate(classifier: "ImageClassifier", index: int, new: SupportSet) -> _Candidate:
    """Returns the best of the old, the old and new, and the new images of a class.

    All are judged on the same images, each scored by prototypes without it: a set must not look better because its
    images resemble each other more. The old images must not lose accuracy, whatever the new ones gain, since images of
    something else would fit themselves well.
    """
    support = classifier.support
    assert support is not None
    both = SupportSet(
        torch.cat([support.features, new.features]), torch.cat([support.labels, new.labels]), support.num_classes
    )
    is_old = torch.arange(len(both.labels)) < len(support.labels)
    aligned = classifier.aligned(References(both)).support
    assert aligned is not None
    sets = {_KEEP: is_old, _EXTEND: torch.ones_like(is_old), _REPLACE: ~is_old | (both.labels != index)}
    candidates: list[_Candidate] = []
    for action, used in sets.items():
        scores = _scores_with(classifier, aligned, used)
        correct = (scores.argmax(dim=1) == both.labels).double()
        log_probs = (scores / classifier.temperature.value).log_softmax(dim=1)
        loss = -float(log_probs.gather(1, both.labels[:, None]).double().mean())
        candidates.append(_Candidate(action, float(correct[is_old].mean()), loss))
    old = candidates[0]
    better = [
        candidate for candidate in candidates if candidate.accuracy >= old.accuracy and candidate.loss <= old.loss
    ]
    return min(better, key=lambda candidate: candidate.loss)


def _scores_with(classifier: "ImageClassifier", images: SupportSet, used: Bool[Tensor, " n"]) -> Float[Tensor, "n c"]:
    """Scores all images by prototypes of the used ones, each without the image itself."""
    prototypes = images.take(used)
    text = classifier.references.text
    scores = torch.empty(len(images.labels), images.num_classes)
    left_out = left_out_scores(classifier.choice, References(prototypes, text))
    scores[used.nonzero().flatten()[left_out.rows]] = left_out.scores
    if not used.all():
        scores[~used] = classifier.choice.fit(prototypes, text)(images.features[~used])
    return scores
