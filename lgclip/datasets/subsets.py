"""Selects a part of a data set (some images or some classes), and matches the classes of two data sets."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from lgclip.datasets.base import Dataset
from lgclip.datasets.packed_strings import PackedStrings


class Part(Dataset):
    """Provides some images of a data set. They keep their ids, so that what is stored of them is reused.

    Args:
        full: The complete data set.
        indices: Indices of the selected images in it.
    """

    def __init__(self, full: Dataset, indices: Sequence[int]) -> None:
        self.full = full
        self._indices = tuple(indices)
        self.name = full.name
        self.split = full.split
        self.names = full.names
        self.context = full.context
        self.class_names = full.class_names
        self.templates = full.templates
        self.class_indices = full.class_indices
        self.occurrences = full.occurrences
        self.training = full.training
        self.draw_order = full.draw_order
        self.folder_names = full.folder_names
        self.files_left_out = full.files_left_out
        self.files_noted = full.files_noted
        self.labels = tuple(full.labels[index] for index in self._indices)

    @cached_property
    def ids(self) -> Sequence[str]:
        # `Texts` and not `Keys`, since a data set may have ids of any form.
        return PackedStrings(self.full.ids[index] for index in self._indices)

    def image(self, index: int) -> Image.Image:
        return self.full.image(self._indices[index])

    def where(self, index: int) -> str:
        return self.full.where(self._indices[index])

    def original(self, index: int) -> Path | bytes | None:
        return self.full.original(self._indices[index])

    def description(self, index: int) -> str | None:
        return self.full.description(self._indices[index])

    @property
    def places(self) -> tuple[int, ...]:
        return self._indices

    def training_values(self) -> dict[str, object]:
        return self.full.training_values()

    def source(self) -> dict[str, object]:
        return self.full.source()


class Selected(Part):
    """Provides the images of some classes, which are renumbered in the given order.

    Args:
        full: The complete data set.
        classes: The classes, by their index in it.
    """

    def __init__(self, full: Dataset, classes: Sequence[int]) -> None:
        new = {label: index for index, label in enumerate(classes)}
        super().__init__(full, [index for index, label in enumerate(full.labels) if label in new])
        self.split = f"{full.split}; {len(classes)} of {len(full.class_names)} classes"
        self.class_names = tuple(full.class_names[label] for label in classes)
        self.labels = tuple(new[label] for label in self.labels)
        # Those of the complete list: of two classes with one name the second stays the second without the first.
        target_classes = full.target_classes
        self.occurrences = tuple(target_classes[label].occurrence for label in classes)
        self.draw_order = None  # the published order is one of all classes
        if full.class_indices is not None:
            self.class_indices = tuple(full.class_indices[label] for label in classes)


class First(Part):
    """Provides the first images of every class, up to a maximum number.

    Args:
        full: The complete data set.
        per_class: Maximum number of images per class.
    """

    def __init__(self, full: Dataset, per_class: int) -> None:
        counts = [0] * len(full.class_names)
        indices: list[int] = []
        for index, label in enumerate(full.labels):
            if counts[label] < per_class:
                indices.append(index)
            counts[label] += 1
        super().__init__(full, indices)
        self.split = f"{full.split}; the first {per_class} of a class"


def classes_in(reference: Dataset, other: Dataset, name: str) -> tuple[int, ...]:
    """Maps the classes of a data set to those of another: by their index among ImageNet's 1000, else by name.

    Args:
        reference: The data set that a classifier was built for.
        other: A data set of the same classes, or of some of them.
        name: Name of the other data set, for error messages.

    Raises:
        ValueError: If the other data set has a class that the reference lacks.
    """
    ours: Sequence[object] = reference.class_names
    theirs: Sequence[object] = other.class_names
    by_index = False
    way_out = f"give it the same names by ood.{name}.names=FILE"
    # Indices where both have them: two data sets may call one class "tench" and "tench, Tinca tinca".
    if reference.class_indices is not None and other.class_indices is not None:
        ours = reference.class_indices
        theirs = other.class_indices
        by_index = True
        way_out = f"leave them out by ood.{name}.classes=[INDICES]"
    places = {key: index for index, key in enumerate(ours)}
    if not by_index and len(places) < len(ours):
        raise ValueError(f"ood.{name}: {reference.name} has two classes of the same name, which cannot be matched")
    unknown = [index for index, key in enumerate(theirs) if key not in places]
    if unknown:
        examples = ", ".join(repr(other.class_names[index]) for index in unknown[:5])
        raise ValueError(
            f"ood.{name}: {len(unknown)} of its {len(theirs)} classes are none of {reference.name}'s "
            f"{len(ours)}: {examples}; {way_out}, or evaluate it in a separate run"
        )
    return tuple(places[key] for key in theirs)
