"""Writes the card of a saved classifier: what it was built from, and which data its models have seen."""

from pathlib import Path

from lgclip.classifier.explain import expectations
from lgclip.classifier.model import ImageClassifier
from lgclip.encoder.paired import PARTS

_SHOWN = 200  # classes with their prompts; a card of thousands helps no one
_ID_KEYS = ("model", "pretrained", "revision", "checkpoint")


def card_text(classifier: ImageClassifier, *, packed: bool = False) -> str:
    """Returns the card as Markdown, with the metadata that the Hub reads at its head.

    Args:
        classifier: The classifier.
        packed: Whether the weights of its vision tower are saved with it.
    """
    lines = [
        "---",
        "library_name: lgclip",
        "pipeline_tag: image-classification",
        "tags: [lgclip, zero-shot-image-classification, synthetic-images]",
        "---",
        "",
        f"# Image classifier of {len(classifier.classes)} classes",
        "",
        _provenance(classifier),
        "",
        "![Synthetic images of the classes](prototypes.png)",
        "",
        "```bash",
        "lgclip classify THIS_FOLDER PHOTOS -o labels.csv",
        "```",
        "",
        "## Built from",
        "",
        *[f"- {name}: {value}" for name, value in classifier.origin.items()],
        *_models(classifier),
        *(["- the weights of the vision tower are in `model/encoder`"] if packed else []),
        "",
        "Encoder and generators have licenses of their own, which apply to this classifier too. Their training data is "
        "not known to lgclip: what they have not seen, they do not show.",
        "",
        "## What to expect",
        "",
        *[f"- {line}" for line in expectations(classifier)],
        "",
        "All of it was computed on synthetic images. Check some images of your own before you rely on it.",
        "",
        *_changes(classifier),
        "",
        "## Classes",
        "",
        *_classes(classifier),
    ]
    return "\n".join(lines) + "\n"


def _changes(classifier: ImageClassifier) -> list[str]:
    """Returns the changes since the classifier was built; empty if there are none."""
    if not classifier.edits:
        return []
    return ["## Changes", "", *[f"- {edit}" for edit in classifier.edits], ""]


def _provenance(classifier: ImageClassifier) -> str:
    """Returns the sentence on the images and sentences that the classifier was made from."""
    if classifier.is_trained:
        return (
            f"A model that lgclip has trained: method={classifier.origin['trained']}. `lgclip audit` of its run lists "
            "the data that each stage has seen."
        )
    weight = classifier.choice.text_weight
    uses = "synthetic images"
    if weight == 1:
        uses = "sentences"
    elif weight > 0:
        uses = "synthetic images and sentences"
    used = "No labelled image was used."
    if classifier.shots is not None:
        used = f"{len(classifier.shots.ids)} real images were mixed in."
    return f"Its prototypes are the features of {uses}, made from class names by lgclip. {used}"


def _models(classifier: ImageClassifier) -> list[str]:
    """Returns a line for each model, with its id and revision."""
    lines = []
    for group in ("llm", "diffuser", "encoder"):
        config = classifier.settings.get(group) or {}
        # The config of two encoders holds both.
        for part in [config[name] for name in PARTS if name in config] or [config]:
            named = [_public(str(part[key])) for key in _ID_KEYS if part.get(key)]
            if named:
                lines.append(f"- {group}: {', '.join(named)}")
    return lines


def _classes(classifier: ImageClassifier) -> list[str]:
    lines = []
    for info in classifier.classes[:_SHOWN]:
        described = f": {info.description}" if info.description else ""
        lines.append(f"- **{info.name}**{described}")
        lines += [f"    - {prompt}" for prompt in info.prompts[:3]]
    if len(classifier.classes) > _SHOWN:
        lines.append(f"- {len(classifier.classes) - _SHOWN} more, see classifier.json")
    return lines


def _public(name: str) -> str:
    """Returns the last part of a path on this machine, whose place is of no use to others; a Hub id as it is."""
    path = Path(name).expanduser()
    return path.name if path.is_absolute() or path.exists() else name
