"""What the small world's pictures are said to show: a varied grammar of true captions."""

import numpy as np

from lgclip.tiny.world import BACKGROUNDS, COLOURS, PATTERNS, SCANNED_DIGITS, SHAPES, Scene

_OPENINGS = (
    "a photo of {}", "a picture of {}", "an image of {}", "{}", "a drawing of {}", "there is {}", "this is {}",
)  # fmt: skip


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.random() * len(options))]


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def _paraphrase(scene: Scene, size: str, rng: np.random.Generator) -> str:
    """The object in other words, e.g. "small red star with stripes"."""
    colour_shape = f"{scene.kind.colour} {scene.kind.shape}"
    tail = {
        "plain": ("", " in one colour", " without a pattern"),
        "striped": (" with stripes", " covered in stripes", " with a striped pattern"),
        "dotted": (" with dots", " covered in dots", " with a dotted pattern"),
    }[scene.kind.pattern]
    return f"{size}{colour_shape}{_pick(rng, tail)}"


def _place(scene: Scene) -> str:
    x, y = scene.centre[0] - 0.5, scene.centre[1] - 0.5
    if max(abs(x), abs(y)) < 0.07:
        return "in the middle"
    if abs(x) > abs(y):
        return "on the right" if x > 0 else "on the left"
    return "at the bottom" if y > 0 else "at the top"


def _tilt(scene: Scene) -> str:
    if abs(scene.angle) < 10:
        return "upright"
    return "tilted to the right" if scene.angle > 0 else "tilted to the left"


def _size(scene: Scene) -> str:
    if 0.27 < scene.size < 0.33:
        return ""
    return "small " if scene.size < 0.3 else "large "


def description_of(scene: Scene) -> str:
    """All that there is to say of a scene, always in the same words and order."""
    grain = " with some grain" if scene.noise > 0.025 else ""
    thing = _a(f"{_size(scene)}{scene.kind.name}")
    return f"{thing} {_place(scene)} {_tilt(scene)} on {_a(scene.background)} background{grain}"


def caption_of(scene: Scene, rng: np.random.Generator, *, paraphrase: float = 0.2) -> str:
    """One true caption of a scene; what it mentions, and in which words, varies.

    Args:
        scene: What the picture shows.
        rng: Chooses the words.
        paraphrase: How often the object is named in other words than its kind's name.
    """
    size = _size(scene) if rng.random() < 0.5 else ""
    noun = _paraphrase(scene, size, rng) if rng.random() < paraphrase else f"{size}{scene.kind.name}"
    parts = [_pick(rng, _OPENINGS).format(_a(noun))]
    if rng.random() < 0.45:
        parts.append(_place(scene))
    if rng.random() < 0.3:
        parts.append(_tilt(scene))
    if rng.random() < 0.55:
        parts.append(f"{_pick(rng, ('on', 'against', 'in front of'))} {_a(scene.background)} background")
    if rng.random() < 0.15 and scene.noise > 0.025:
        parts.append("with some grain")
    return " ".join(parts)


_WORDS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "pattern": PATTERNS,
    "background": tuple(f"{colour} background" for colour in BACKGROUNDS),
    "place": ("in the middle", "on the right", "on the left", "at the bottom", "at the top"),
    "tilt": ("upright", "tilted to the right", "tilted to the left"),
    "size": ("small", "large"),
    "grain": ("with some grain",),
}


def facts(description: str) -> dict[str, tuple[str, ...]]:
    """What a description says of each attribute, by the words that `description_of` has for it.

    Returns:
        Of each attribute the words found; one that is neither small nor large has none for its size.
    """
    text = f" {description} "
    return {name: tuple(words for words in options if f" {words} " in text) for name, options in _WORDS.items()}


_DIGIT_OPENINGS = ("a photo of {}", "a scan of {}", "an image of {}", "{}", "a picture of {}")


def _stroke(ink: float) -> str:
    if 0.28 < ink < 0.33:
        return ""
    return "thin " if ink < 0.3 else "bold "


def digit_description_of(label: int, ink: float) -> str:
    """All that there is to say of a scanned digit; see `digit_caption_of`."""
    return f"{_a(_stroke(ink) + SCANNED_DIGITS[label])} on a black background"


def digit_caption_of(label: int, ink: float, rng: np.random.Generator) -> str:
    """One caption of a scanned digit.

    Args:
        label: The digit.
        ink: Mean brightness of the scan, 0 to 1.
        rng: Chooses the words.
    """
    stroke = _stroke(ink) if rng.random() < 0.5 else ""
    caption = _pick(rng, _DIGIT_OPENINGS).format(_a(stroke + SCANNED_DIGITS[label]))
    return caption + (" on a black background" if rng.random() < 0.4 else "")
