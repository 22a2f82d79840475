"""A part of a data set: some images or some classes; and which of its classes another data set has."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from lgclip.datasets.base import Dataset
from lgclip.texts import Texts


class Part(Dataset):
    """Some images of a data set. They keep their ids, so what is stored of them is found again.

    Args:
        whole: The data set.
        kept: Places of the images in it.
    """

    def __init__(self, whole: Dataset, kept: Sequence[int]) -> None:
        self.whole, self._kept = whole, tuple(kept)
        self.name, self.split, self.names, self.context = whole.name, whole.split, whole.names, whole.context
        self.class_names, self.templates = whole.class_names, whole.templates
        self.class_indices, self.training = whole.class_indices, whole.training
        self.labels = tuple(whole.labels[at] for at in self._kept)

    @cached_property
    def ids(self) -> Sequence[str]:
        return Texts(self.whole.ids[at] for at in self._kept)

    def image(self, index: int) -> Image.Image:
        return self.whole.image(self._kept[index])

    def where(self, index: int) -> str:
        return self.whole.where(self._kept[index])

    def original(self, index: int) -> Path | bytes | None:
        return self.whole.original(self._kept[index])

    @property
    def places(self) -> tuple[int, ...]:
        return self._kept

    def training_values(self) -> dict[str, object]:
        return self.whole.training_values()

    def source(self) -> dict[str, object]:
        return self.whole.source()


class Selected(Part):
    """The images of some classes, which are numbered anew in the order given.

    Args:
        whole: The data set.
        classes: The classes, by their index in it.
    """

    def __init__(self, whole: Dataset, classes: Sequence[int]) -> None:
        new = {label: index for index, label in enumerate(classes)}
        super().__init__(whole, [at for at, label in enumerate(whole.labels) if label in new])
        self.split = f"{whole.split}; {len(classes)} of {len(whole.class_names)} classes"
        self.class_names = tuple(whole.class_names[label] for label in classes)
        self.labels = tuple(new[label] for label in self.labels)
        if whole.class_indices is not None:
            self.class_indices = tuple(whole.class_indices[label] for label in classes)


class First(Part):
    """The first images of every class, as many as there are up to a number.

    Args:
        whole: The data set.
        each: Images of a class, at most.
    """

    def __init__(self, whole: Dataset, each: int) -> None:
        seen = [0] * len(whole.class_names)
        kept = []
        for at, label in enumerate(whole.labels):
            if seen[label] < each:
                kept.append(at)
            seen[label] += 1
        super().__init__(whole, kept)
        self.split = f"{whole.split}; the first {each} of a class"


def classes_in(known: Dataset, other: Dataset, name: str) -> tuple[int, ...]:
    """Which class of a data set each class of another is: by its index among ImageNet's 1000, else by its name.

    Args:
        known: The data set that a classifier was made for.
        other: A data set of the same classes, or of some of them.
        name: What to call the other in an error.

    Raises:
        ValueError: If the other has a class that the first has not.
    """
    by_index = known.class_indices is not None and other.class_indices is not None
    own: Sequence[object] = known.class_indices if by_index else known.class_names  # pyright: ignore[reportAssignmentType]
    asked: Sequence[object] = other.class_indices if by_index else other.class_names  # pyright: ignore[reportAssignmentType]
    places = {what: index for index, what in enumerate(own)}
    if not by_index and len(places) < len(own):
        raise ValueError(f"ood.{name}: {known.name} has two classes of the same name, so classes cannot be told by it")
    strange = [index for index, what in enumerate(asked) if what not in places]
    if strange:
        shown = ", ".join(repr(other.class_names[index]) for index in strange[:5])
        way = (
            f"leave them out by ood.{name}.classes=[INDICES]"
            if by_index
            else f"give it the same names by ood.{name}.names=FILE"
        )
        raise ValueError(
            f"ood.{name}: {len(strange)} of its {len(asked)} classes are none of {known.name}'s "
            f"{len(own)}: {shown}; {way}, or judge it by a run of its own"
        )
    return tuple(places[what] for what in asked)
