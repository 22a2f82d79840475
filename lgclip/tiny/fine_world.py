"""Renders the fine world: the held-out kinds of the small world, divided by size or by background.

Seventy-five classes. Which two of them differ in what is as with species of birds: most names say it, some share a name
and differ by a word without meaning ("northern", "southern"), some are made up. `guide_sentence` says what a class
looks like, as a language model would that knows it.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import UInt8

from lgclip.tiny.captions import OPENINGS, article, pick, place_words, tilt_words
from lgclip.tiny.world import BACKGROUNDS, HELD_OUT_KINDS, Kind, Scene, render

Split = Literal["test", "train"]

IMAGES_PER_CLASS: dict[Split, int] = {"test": 20, "train": 40}
_STREAMS: dict[Split, int] = {"test": 5, "train": 6}
"""First number of each split's random stream; the small world's own are 1 to 4."""
_SIZES = {"small": (0.21, 0.25), "large": (0.35, 0.39)}
"""Half the object's extent, as a fraction of the image's side: from, to."""
_REGIONS = ("northern", "southern", "eastern")
_WORDS = ("dax", "blick", "wug", "toma", "fep", "koba", "zav", "vash", "nurp")


@dataclass(frozen=True)
class FineKind:
    """Describes a class of the fine world.

    Attributes:
        kind: The object.
        name: Class name.
        size: "small" or "large" where that distinguishes the class from its neighbor, else None.
        background: Background color where that does, else None.
    """

    kind: Kind
    name: str
    size: str | None = None
    background: str | None = None

    @property
    def description(self) -> str:
        """Returns the distinguishing attributes of the class, in words that the small models know."""
        if self.size:
            return f"{self.size} {self.kind.name}"
        assert self.background
        return f"{self.kind.name} on {article(self.background)} background"


def _variants(index: int, kind: Kind) -> list[FineKind]:
    """Returns the two sizes of every other kind, and three backgrounds of the others."""
    if index % 2 == 0:
        return [FineKind(kind, "", size=size) for size in _SIZES]
    colors = tuple(BACKGROUNDS)
    # Two steps apart, so that the three differ and every background is used equally often.
    return [FineKind(kind, "", background=colors[(index + 2 * step) % len(colors)]) for step in range(3)]


def _fine_kinds() -> tuple[FineKind, ...]:
    words = iter(_WORDS)
    fine_kinds: list[FineKind] = []
    for index, kind in enumerate(HELD_OUT_KINDS):
        for place, variant in enumerate(_variants(index, kind)):
            if index % 10 == 9:
                name = next(words)
            elif index % 10 in (3, 6):
                name = f"{_REGIONS[place]} {kind.name}"
            else:
                name = variant.description
            fine_kinds.append(replace(variant, name=name))
    return tuple(fine_kinds)


FINE_KINDS = _fine_kinds()
"""The classes, in order: three kinds in ten have ambiguous or made-up names."""


def fine_scene(split: Split, index: int) -> tuple[Scene, np.random.Generator]:
    """Returns the scene at `index` of `split`, class by class, and the generator of its noise.

    Raises:
        IndexError: If `index` is negative or past the split's end.
    """
    per_class = IMAGES_PER_CLASS[split]
    if not 0 <= index < per_class * len(FINE_KINDS):
        raise IndexError(
            f"index {index}: the split {split!r} of shapes_fine starts at 0 and ends at "
            f"{per_class * len(FINE_KINDS) - 1}"
        )
    rng = np.random.Generator(np.random.PCG64([_STREAMS[split], index]))
    return _scene(FINE_KINDS[index // per_class], rng), rng


def _scene(fine_kind: FineKind, rng: np.random.Generator) -> Scene:
    u = rng.random(8)
    smallest, largest = _SIZES.get(fine_kind.size or "", (0.22, 0.38))
    size = smallest + (largest - smallest) * u[0]
    room = 0.5 - 0.9 * size  # the object stays inside the image
    return Scene(
        kind=fine_kind.kind,
        size=size,
        center=(0.5 + room * (2 * u[1] - 1), 0.5 + room * (2 * u[2] - 1)),
        angle=60 * u[3] - 30,
        background=fine_kind.background or tuple(BACKGROUNDS)[int(u[4] * len(BACKGROUNDS))],
        shade=0.5 * u[5],
        noise=0.06 * u[6] ** 2,
    )


def fine_image(split: Split, index: int) -> UInt8[np.ndarray, "64 64 3"]:
    """Returns the image at `index` of `split`; see `fine_scene`."""
    return render(*fine_scene(split, index))


def guide_sentence(fine_kind: FineKind, rng: np.random.Generator) -> str:
    """Returns one true sentence on a class: its distinguishing attributes, and others that vary within it.

    Args:
        fine_kind: The class.
        rng: Chooses the words and what varies.
    """
    scene = _scene(fine_kind, rng)
    noun = fine_kind.kind.name
    if fine_kind.size:
        noun = f"{fine_kind.size} {noun}"
    parts = [pick(rng, OPENINGS).format(article(noun))]
    if rng.random() < 0.45:
        parts.append(place_words(scene))
    if rng.random() < 0.3:
        parts.append(tilt_words(scene))
    # The background is always mentioned where it distinguishes the class.
    if fine_kind.background or rng.random() < 0.55:
        parts.append(f"on {article(scene.background)} background")
    return " ".join(parts)
