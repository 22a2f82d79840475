"""Deals captions to other images: controls that show what a caption's content contributes to prompts."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from lgclip.store.keys import content_key

SHUFFLES = {
    "none": "",
    "class": ", shuffled by class",
    "all": ", shuffled over all",
}
"""Shuffles of captions, and the suffix of the form's name for each."""


class ImageOfClass(NamedTuple):
    """Identifies a captioned image and its class, wherever they are in a list.

    Attributes:
        image: Id of the image.
        name: Name of its class.
        occurrence: How many earlier classes have this name.
    """

    image: str
    name: str
    occurrence: int

    @property
    def target_class(self) -> tuple[str, int]:
        """Returns the identity of the class."""
        return self.name, self.occurrence


def deal_captions(images: Sequence[ImageOfClass], shuffle: str) -> list[str]:
    """Returns for each image the id of the image whose caption it gets; each caption is dealt once.

    The result depends on the set of images alone, not on their order: images are sorted by hashes of their ids.

    Args:
        images: The captioned images.
        shuffle: `class` deals the captions of each class to the images of that class. `all` deals every caption to an
            image of another class.

    Raises:
        ValueError: If one class has more than half of all images, so that `all` cannot leave it without a caption of
            its own.
    """
    if shuffle == "all":
        _check_majority(images)
    receivers = _shuffled(images, "receiver")
    donors = _shuffled(images, "donor")
    if shuffle == "class":
        # Both sorts are stable: the images of a class keep the order of their hashes.
        receivers.sort(key=lambda place: images[place].target_class)
        donors.sort(key=lambda place: images[place].target_class)
    else:
        _swap_within_classes(images, receivers, donors)
    sources = [""] * len(images)
    for receiver, donor in zip(receivers, donors, strict=True):
        sources[receiver] = images[donor].image
    return sources


def _check_majority(images: Sequence[ImageOfClass]) -> None:
    counts = Counter(image.target_class for image in images)
    for (name, _), count in counts.items():
        if 2 * count > len(images):
            raise ValueError(
                f"llm.shuffle=all: class {name!r} has {count:,} of {len(images):,} captions, more than all others "
                "together; use fewer images a class by prompts_per_class, or llm.shuffle=class"
            )


def _shuffled(images: Sequence[ImageOfClass], role: str) -> list[int]:
    """Returns the positions of the images in a random order, which depends on the images and the role alone."""

    def sort_key(place: int) -> tuple[str, ImageOfClass]:
        # The class decides between copies of one image in two classes.
        return content_key({"role": role, "image": images[place].image}), images[place]

    return sorted(range(len(images)), key=sort_key)


def _swap_within_classes(images: Sequence[ImageOfClass], receivers: Sequence[int], donors: list[int]) -> None:
    """Changes the order of the donors so that no image gets a caption of its class.

    A pair within a class swaps its donor with the next pair that has no part in this class. Such a pair exists where no
    class has more than half of the images: of n images of the class, n receive and n donate, in at most 2n - 1 pairs.
    """
    count = len(receivers)
    for place in range(count):
        target_class = images[receivers[place]].target_class
        if images[donors[place]].target_class != target_class:
            continue
        for step in range(1, count):
            other = (place + step) % count
            parts = (images[receivers[other]].target_class, images[donors[other]].target_class)
            if target_class not in parts:
                donors[place], donors[other] = donors[other], donors[place]
                break
