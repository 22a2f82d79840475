"""Provides the template ensembles that CLIP published for its data sets (arXiv:2103.00020, sec. 3.1.4).

They are those of `data/prompts.md` in its repository. ImageNet's lists of 80 and of 7 templates come from open_clip.
"""

from collections.abc import Sequence

from lgclip.datasets.base import Dataset

IMAGENET = ("imagenet", "imagenet_v2", "imagenet_sketch", "imagenet_r", "imagenet_a", "imagenette")
"""Names of the data sets of ImageNet's classes."""

_PHOTOS = ("photo", "blurry photo", "black and white photo", "low contrast photo", "high contrast photo", "bad photo",
           "good photo")  # fmt: skip
_SIZES = ("small", "big")
_TEXTURES = ("texture", "pattern", "thing", "object")
_VIEWS = ("satellite imagery", "aerial imagery", "satellite photo", "aerial photo", "satellite view", "aerial view")
_ARTICLES = ("", "a ", "the ")


def _of_cifar10() -> tuple[str, ...]:
    templates: list[str] = []
    for article in ("a", "the"):
        templates.extend(f"a {photo} of {article} {{}}." for photo in _PHOTOS)
        templates.extend(f"a photo of {article} {size} {{}}." for size in _SIZES)
    return tuple(templates)


def _of_dtd() -> tuple[str, ...]:
    return tuple(f"a photo of {article} {{}} {kind}." for article in ("a", "the") for kind in _TEXTURES)


def _of_resisc45() -> tuple[str, ...]:
    return tuple(f"{view} of {article}{{}}." for article in _ARTICLES for view in _VIEWS)


def _of_eurosat() -> tuple[str, ...]:
    return tuple(f"a centered satellite photo of {article}{{}}." for article in _ARTICLES)


_PUBLISHED = {
    "cifar10": _of_cifar10(),
    "dtd": _of_dtd(),
    "eurosat": _of_eurosat(),
    "fgvc_aircraft": ("a photo of a {}, a type of aircraft.", "a photo of the {}, a type of aircraft."),
    "resisc45": _of_resisc45(),
}
"""Ensembles of more than one template; CLIP's single templates of other data sets are the defaults of these."""

_SINGLE = {
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "resisc45": "satellite imagery of {}.",
}
"""The data set's default template, where it is not `a photo of a {}.`."""


def published_ensemble(dataset: Dataset) -> tuple[str, ...]:
    """Returns the published ensemble of a data set; its own templates if there is none, or if the user changed them.

    Args:
        dataset: The data set.
    """
    default = (_SINGLE.get(dataset.name, "a photo of a {}."),)
    if dataset.templates != default:
        return dataset.templates
    if dataset.name in IMAGENET:
        return imagenet_templates(80)
    return _PUBLISHED.get(dataset.name, dataset.templates)


def imagenet_templates(count: int) -> tuple[str, ...]:
    """Returns CLIP's templates for ImageNet: all 80, or the 7 that a search selected among them.

    Args:
        count: 80 or 7.
    """
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    templates: Sequence = {80: OPENAI_IMAGENET_TEMPLATES, 7: SIMPLE_IMAGENET_TEMPLATES}[count]
    return tuple(template("{}") for template in templates)
