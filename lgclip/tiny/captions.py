"""Generates captions of the small world's images: a varied grammar of true captions."""

import numpy as np

from lgclip.tiny.world import BACKGROUNDS, COLORS, PATTERNS, SCANNED_DIGITS, SHAPES, Scene

OPENINGS = (
    "a photo of {}", "a picture of {}", "an image of {}", "{}", "a drawing of {}", "there is {}", "this is {}",
)  # fmt: skip
"""First words of a caption; `{}` is the object."""


def pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    """Returns one of `options`, chosen by one number of the generator."""
    return options[int(rng.random() * len(options))]


def article(noun: str) -> str:
    """Returns a noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _paraphrase(scene: Scene, size: str, rng: np.random.Generator) -> str:
    """Describes the object in other words, e.g. "small red star with stripes"."""
    color_shape = f"{scene.kind.color} {scene.kind.shape}"
    tail = {
        "plain": ("", " in one colour", " without a pattern"),
        "striped": (" with stripes", " covered in stripes", " with a striped pattern"),
        "dotted": (" with dots", " covered in dots", " with a dotted pattern"),
    }[scene.kind.pattern]
    return f"{size}{color_shape}{pick(rng, tail)}"


def place_words(scene: Scene) -> str:
    """Returns where the object is."""
    x = scene.center[0] - 0.5
    y = scene.center[1] - 0.5
    # Seven hundredths are four and a half pixels of 64.
    if max(abs(x), abs(y)) < 0.07:
        return "in the middle"
    # One place only, by the larger of the two offsets, so that `facts` finds exactly one in every description.
    if abs(x) > abs(y):
        return "on the right" if x > 0 else "on the left"
    return "at the bottom" if y > 0 else "at the top"  # y points down


def tilt_words(scene: Scene) -> str:
    """Returns the words for the object's rotation."""
    if abs(scene.angle) < 10:
        return "upright"
    return "tilted to the right" if scene.angle > 0 else "tilted to the left"


def _size(scene: Scene) -> str:
    # Sizes go from 0.22 to 0.38. Medium ones are not mentioned, since they are neither small nor large.
    if 0.27 < scene.size < 0.33:
        return ""
    return "small " if scene.size < 0.3 else "large "


def description_of(scene: Scene) -> str:
    """Returns the complete description of a scene, always in the same words and order."""
    subject = article(f"{_size(scene)}{scene.kind.name}")
    description = f"{subject} {place_words(scene)} {tilt_words(scene)} on {article(scene.background)} background"
    # Weaker noise is hard to see, and a caption must be true for the image.
    if scene.noise > 0.025:
        description += " with some grain"
    return description


def caption_of(scene: Scene, rng: np.random.Generator, *, paraphrase: float = 0.2) -> str:
    """Returns one true caption of a scene with varying content and wording.

    Args:
        scene: Content of the image.
        rng: Chooses the words.
        paraphrase: How often the object is named in other words than its class name.
    """
    # Each `rng.random()` below moves the generator: another order, or a test that is skipped, changes every caption of
    # the corpus and with it the trained models.
    size = ""
    if rng.random() < 0.5:
        size = _size(scene)
    noun = f"{size}{scene.kind.name}"
    if rng.random() < paraphrase:
        noun = _paraphrase(scene, size, rng)
    parts = [pick(rng, OPENINGS).format(article(noun))]
    if rng.random() < 0.45:
        parts.append(place_words(scene))
    if rng.random() < 0.3:
        parts.append(tilt_words(scene))
    if rng.random() < 0.55:
        parts.append(f"{pick(rng, ('on', 'against', 'in front of'))} {article(scene.background)} background")
    if rng.random() < 0.15 and scene.noise > 0.025:
        parts.append("with some grain")
    return " ".join(parts)


_WORDS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLORS),
    "shape": SHAPES,
    "pattern": PATTERNS,
    "background": tuple(f"{color} background" for color in BACKGROUNDS),
    "place": ("in the middle", "on the right", "on the left", "at the bottom", "at the top"),
    "tilt": ("upright", "tilted to the right", "tilted to the left"),
    "size": ("small", "large"),
    "grain": ("with some grain",),
}


def facts(description: str) -> dict[str, tuple[str, ...]]:
    """Extracts each attribute's value from a description, by the words that `description_of` uses for it.

    Returns:
        The words of each attribute; an object that is neither small nor large has none for its size.
    """
    # Spaces on both sides, so that "ring" is not found in "string".
    text = f" {description} "
    attributes: dict[str, tuple[str, ...]] = {}
    for name, options in _WORDS.items():
        attributes[name] = tuple(words for words in options if f" {words} " in text)
    return attributes


_DIGIT_OPENINGS = ("a photo of {}", "a scan of {}", "an image of {}", "{}", "a picture of {}")


def _stroke(ink: float) -> str:
    if 0.28 < ink < 0.33:
        return ""
    return "thin " if ink < 0.3 else "bold "


def digit_description_of(label: int, ink: float) -> str:
    """Returns the complete description of a scanned digit; see `digit_caption_of`."""
    return f"{article(_stroke(ink) + SCANNED_DIGITS[label])} on a black background"


def digit_caption_of(label: int, ink: float, rng: np.random.Generator) -> str:
    """Returns one caption of a scanned digit.

    Args:
        label: The digit.
        ink: Mean brightness of the scan, 0 to 1.
        rng: Chooses the words.
    """
    stroke = ""
    if rng.random() < 0.5:
        stroke = _stroke(ink)
    caption = pick(rng, _DIGIT_OPENINGS).format(article(stroke + SCANNED_DIGITS[label]))
    if rng.random() < 0.4:
        caption += " on a black background"
    return caption
