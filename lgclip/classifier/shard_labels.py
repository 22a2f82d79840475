"""Reads the true classes of images in shards, and counts correct predictions in the memory of one count per class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from lgclip.datasets.image_shards import ShardImage
from lgclip.datasets.names import read_class_names
from lgclip.datasets.samples import SampleFields


class UnknownLabelError(ValueError):
    """Reports a label that is no class of the classifier; all shards would have such labels."""


@dataclass(frozen=True)
class ShardLabels:
    """Locates the true class of an image in a shard.

    Attributes:
        fields: The files of a sample, or the column of a parquet file.
        names: Name of each class by the index that a label may be; empty where labels are names.
    """

    fields: SampleFields
    names: tuple[str, ...] = ()

    @classmethod
    def from_options(cls, label: str, names: Path | None) -> "ShardLabels":
        """Returns the labels that `--labels` and `--names` describe.

        Args:
            label: As `SampleFields.label`; of parquet files the name of a column.
            names: File with one class name per line, by index; None where labels are names.

        Raises:
            ValueError: If the file cannot be read.
        """
        listed = () if names is None else tuple(read_class_names(names, "--names"))
        advice = "Leave out --labels: without labels every image counts"
        return cls(SampleFields(label=label, option="--labels", image_advice=advice), listed)

    def class_of(self, image: ShardImage, class_names: Sequence[str]) -> str:
        """Returns the true class of an image, as the classifier calls it.

        Raises:
            UnknownLabelError: If it is no class of the classifier.
        """
        label = image.label
        if label.isascii() and label.isdecimal() and self.names:
            if int(label) >= len(self.names):
                raise UnknownLabelError(f"{image.where}: class {label} is none of the {len(self.names)} in --names")
            label = self.names[int(label)]
        name = _by_folded_name(tuple(class_names)).get(label.casefold())
        if name is None:
            way_out = "" if self.names else "; where labels are indices, give --names FILE with one name per line"
            raise UnknownLabelError(
                f"{image.where}: the classifier has no class {label[:60]!r}; its classes are "
                f"{', '.join(map(repr, class_names[:6]))}{way_out}"
            )
        return name

    def inputs(self) -> dict[str, object]:
        """Returns the settings as the record of a table has them."""
        return {"label": self.fields.label, "names": list(self.names)}


@lru_cache(maxsize=4)
def _by_folded_name(class_names: tuple[str, ...]) -> dict[str, str]:
    return {name.casefold(): name for name in class_names}


@dataclass
class ClassCounts:
    """Counts the images and the correct predictions of each class.

    Attributes:
        counts: Number of images and of correct predictions by class name.
    """

    counts: dict[str, list[int]] = field(default_factory=dict)

    def add(self, name: str, *, is_correct: bool) -> None:
        """Counts one image."""
        row = self.counts.setdefault(name, [0, 0])
        row[0] += 1
        row[1] += is_correct

    def update(self, counts: Mapping[str, Sequence[int]]) -> None:
        """Adds the counts of a table."""
        for name, (images, correct) in counts.items():
            row = self.counts.setdefault(name, [0, 0])
            row[0] += images
            row[1] += correct

    def __str__(self) -> str:
        images = sum(row[0] for row in self.counts.values())
        correct = sum(row[1] for row in self.counts.values())
        from scipy.stats import binomtest

        interval = binomtest(correct, images).proportion_ci(0.95, method="wilson")
        mean = sum(row[1] / row[0] for row in self.counts.values()) / len(self.counts)
        return (
            f"top-1 {100 * correct / images:.1f}% (95% interval {100 * interval.low:.1f} - {100 * interval.high:.1f}), "
            f"mean per class {100 * mean:.1f}% of {len(self.counts)} classes, {images:,} images"
        )
