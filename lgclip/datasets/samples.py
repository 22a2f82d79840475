"""Reads the samples of tar files in WebDataset's layout: files that follow each other and share a name.

The part of a name before its first dot is the sample's: `0001.jpg`, `0001.cls`, `0001.json`.
"""

import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from lgclip.datasets.image_tree import IMAGE_SUFFIXES

FOLDER = "folder"
"""Label that is the first folder of an image's name in the shard."""

_JSON = "json."
_MAX_LABEL_BYTES = 2**20

Content = TypeVar("Content")


@dataclass(frozen=True)
class SampleFields:
    """Defines which files of a sample hold its image and its label.

    Attributes:
        image: Extension of the image, such as `jpg`; None for the only one that is an image's.
        label: Extension of a file that holds the class, as its index or its name; `json.KEY` for a value of `.json`;
            `folder` for the first folder of the image's name.
        option: Setting that the label comes from, for errors.
        image_advice: What to do about a sample without one image, for errors.

    Raises:
        ValueError: If the label is neither.
    """

    image: str | None = None
    label: str = "cls"
    option: str = "dataset.label"
    image_advice: str = "Say which is the image by dataset.image=EXTENSION"

    def __post_init__(self) -> None:
        if not self.label or self.label in ("json", _JSON):
            raise ValueError(
                f"{self.option}={self.label}: give an extension such as cls, json.KEY for a value of the sample's "
                f".json, or {FOLDER}"
            )

    def is_image(self, extension: str) -> bool:
        """Checks whether a file with this extension, without its first dot, is the sample's image."""
        if self.image is not None:
            return extension == self.image.lower().removeprefix(".")
        return f".{extension}".endswith(IMAGE_SUFFIXES)

    def is_label(self, extension: str) -> bool:
        """Checks whether a file with this extension holds the sample's label."""
        return extension == ("json" if self.label.startswith(_JSON) else self.label.lower().removeprefix("."))

    def parse(self, content: bytes, where: str) -> str:
        """Returns the label that the content of a label's file states.

        Raises:
            ValueError: If it is no text, or the JSON has no such key.
        """
        try:
            text = content.decode("utf-8-sig").strip()
            if not self.label.startswith(_JSON):
                return text
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: its label cannot be read ({error})") from error
        key = self.label.removeprefix(_JSON)
        value = values.get(key) if isinstance(values, dict) else None
        # A truth value is a number to Python.
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ValueError(f"{where}: {self.option}={self.label}: {value!r} is neither the index nor name of a class")
        return str(value)


@dataclass
class Sample(Generic[Content]):
    """Holds the files of one sample.

    Attributes:
        key: Common part of their names.
        images: Name and content of its images.
        labels: Its labels.
        extensions: Of all its files.
    """

    key: str
    images: list[tuple[str, Content]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    extensions: list[str] = field(default_factory=list)


def is_sample_file(member: tarfile.TarInfo) -> bool:
    """Checks whether a member is a file of a sample: none that is hidden, such as macOS's, or on the whole shard."""
    return member.isfile() and not member.name.rpartition("/")[2].startswith((".", "__"))


def read_samples(
    archive: tarfile.TarFile,
    where: str,
    fields: SampleFields,
    read: Callable[[tarfile.TarFile, tarfile.TarInfo], Content],
) -> Iterator[tuple[str, Content, str]]:
    """Yields name, content and label of the image of each sample, in order.

    Args:
        archive: The shard, opened for reading, also as a stream.
        where: Its name, for errors.
        fields: Which files hold image and label.
        read: Returns what is kept of an image, by its entry.

    Raises:
        ValueError: If a sample has no image, no label, or several.
        tarfile.TarError: If the shard is damaged.
    """
    sample: Sample[Content] | None = None
    while (member := archive.next()) is not None:
        # tarfile keeps every member that it has read.
        archive.members = []  # pyright: ignore[reportAttributeAccessIssue]
        folder, _, last = member.name.removeprefix("./").rpartition("/")
        if not is_sample_file(member):
            continue
        if member.issparse():
            raise tarfile.ReadError(f"{member.name} is sparse, and is not stored as it is")
        stem, _, extension = last.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if sample is not None and sample.key != key:
            yield (*_only_image(sample, where, fields), _only_label(sample, where, fields))
            sample = None
        if sample is None:
            sample = Sample(key)
        extension = extension.lower()
        sample.extensions.append(extension)
        if fields.is_image(extension):
            sample.images.append((member.name, read(archive, member)))
        elif fields.is_label(extension):
            if member.size > _MAX_LABEL_BYTES:
                raise ValueError(f"{where}: {member.name} has {member.size:,} bytes, and is no label")
            content = archive.extractfile(member)
            assert content is not None, "it is a regular file"
            sample.labels.append(fields.parse(content.read(), f"{where}!{member.name}"))
    if sample is not None:
        yield (*_only_image(sample, where, fields), _only_label(sample, where, fields))


def _only_image(sample: Sample[Content], where: str, fields: SampleFields) -> tuple[str, Content]:
    if len(sample.images) == 1:
        return sample.images[0]
    extensions = ", ".join(sample.extensions)
    if not sample.images:
        raise ValueError(
            f"{where}: sample {sample.key} has no image; its files end in {extensions}. {fields.image_advice}"
        )
    raise ValueError(
        f"{where}: sample {sample.key} has {len(sample.images)} images; its files end in {extensions}. "
        f"{fields.image_advice}"
    )


def _only_label(sample: Sample[Content], where: str, fields: SampleFields) -> str:
    if fields.label == FOLDER:
        name = sample.images[0][0].removeprefix("./")
        folder, slash, _ = name.partition("/")
        if not slash:
            raise ValueError(f"{where}: {name} lies in no folder; {fields.option}={FOLDER} takes its class from it")
        return folder
    if len(sample.labels) == 1 and sample.labels[0]:
        return sample.labels[0]
    state = "more than one" if len(sample.labels) > 1 else "an empty" if sample.labels else "no"
    raise ValueError(
        f"{where}: sample {sample.key} has {state} label ({fields.label}); its files end in "
        f"{', '.join(sample.extensions)}. Say what holds the class by {fields.option}=EXTENSION, json.KEY or {FOLDER}"
    )
