"""Explains a classifier's expected accuracy, probabilities and threshold in a sentence each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lgclip.classifier.model import ImageClassifier

_SHOWN = 5
UNKNOWN_SHIFT = "how real images differ from synthetic ones is not in it"


def expectations(classifier: "ImageClassifier") -> list[str]:
    """Returns a line for each: expected accuracy, classes at risk, confusable pairs, probabilities, and rejection."""
    return [*forecast_lines(classifier), probability_line(classifier), rejection_line(classifier)]


def forecast_lines(classifier: "ImageClassifier") -> list[str]:
    """Returns the expected accuracy with its interval, the classes at risk, and the confusable pairs."""
    if classifier.is_trained:
        return ["expected accuracy: unknown, a trained model has no prototypes to leave images out of"]
    predicted = classifier.forecast()
    if predicted is None and classifier.choice.text_weight == 1:
        return ["expected accuracy: unknown, sentences alone represent the classes, and no image can be left out"]
    if predicted is None:
        return [
            "expected accuracy: unknown, it needs two synthetic images of each class, one of them to leave out: raise "
            "prompts_per_class"
        ]
    names = classifier.class_names
    lines = [
        f"expected accuracy: {100 * predicted.expected:.0f}% ({100 * predicted.low:.0f} - {100 * predicted.high:.0f}), "
        f"the accuracy on {predicted.images} synthetic images, each left out of its prototype; {UNKNOWN_SHIFT}"
    ]
    at_risk = []
    for index in predicted.at_risk():
        item = predicted.classes[index]
        confusion = "" if item.confused_with is None else f", taken for {names[item.confused_with]}"
        at_risk.append(f"{names[index]} ({100 * item.expected:.0f}%{confusion})")
    if at_risk:
        lines.append(f"classes at risk, expected below 80%: {_listed(at_risk)}")
    if predicted.pairs:
        pairs = [
            f"{names[pair.first]} / {names[pair.second]}: {100 * pair.fraction:.0f}% of their images are nearer to the "
            "other"
            for pair in predicted.pairs
        ]
        lines.append(f"confusable: {_listed(pairs, separator='; ')}")
    return lines


def probability_line(classifier: "ImageClassifier") -> str:
    """Returns the sentence on the data that the probabilities were fitted on."""
    temperature = classifier.temperature
    if not temperature.is_fitted:
        return (
            "probabilities: not fitted, as no synthetic image can be left out; they rank the classes, and none of them "
            "is sure"
        )
    source = {
        "synthetic images": "by the synthetic images that were left out of their prototypes",
        "default": "by the encoder's own training on images and texts",
        "training": "by the training of the model",
    }[temperature.fitted_on]
    return f"probabilities: scaled {source}; on photographs they may be too high"


def rejection_line(classifier: "ImageClassifier") -> str:
    """Returns when an image is called none of the classes."""
    rejector = classifier.rejector
    if classifier.rejection is None:
        return "none of these: nothing is rejected, each image gets a class (rejection=none)"
    if rejector is None and classifier.choice.text_weight == 1:
        return "none of these: nothing is rejected; a threshold needs synthetic images, and sentences alone are used"
    if rejector is None:
        return (
            "none of these: nothing is rejected; a threshold needs two synthetic images of each class, one of them to "
            "leave out"
        )
    line = (
        f"none of these: an image is rejected if {rejector.score} is below {rejector.threshold:.4g}, which keeps "
        f"{100 * rejector.recall:.0f}% of {rejector.positives} left-out images of the classes"
    )
    if rejector.rejected is None:
        return f"{line}; how many images of other things it rejects is unknown without negatives"
    quality = rejector.qualities[rejector.score]
    return (
        f"{line} and rejects {100 * rejector.rejected:.0f}% of {rejector.negatives} synthetic images of similar things "
        f"(AUROC {quality.auroc:.2f}, 0.5 is chance)"
    )


def _listed(items: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return separator.join(items[:_SHOWN]) + more
