"""Handles unreadable test images: records them, and applies the run's policy."""

import json
import logging
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import PIL

from lgclip.datasets.base import Dataset
from lgclip.datasets.image_tree import IMAGE_SUFFIXES
from lgclip.datasets.subsets import Part
from lgclip.runtime.regular_files import read_text
from lgclip.store.atomic import write_json
from lgclip.store.checksums import is_intact, with_checksum
from lgclip.store.keys import content_key
from lgclip.store.remote import fetch
from lgclip.types import Fault

log = logging.getLogger(__name__)

QUARANTINE = "quarantine"
LISTED = "quarantine.jsonl"
"""Folder of a run with copies of the images that could not be read, and the list in it."""

READER = f"Pillow {PIL.__version__}"
"""Version of the image reader; another one may be able to read an image."""

_SHOWN = 10


class OnBadImage(StrEnum):
    """Enumerates what a run does about unreadable test images; the values of `on_bad_image`."""

    RAISE = "raise"
    """Encodes the others, then stops with an error that names them."""
    SKIP = "skip"
    """Leaves them out, and reports it in its table and in result.json."""
    QUARANTINE = "quarantine"
    """As `SKIP`, and copies them into the run's folder."""

    @classmethod
    def of(cls, value: object) -> "OnBadImage":
        """Returns the policy that a config names.

        Raises:
            ValueError: If there is no such policy.
        """
        if value not in tuple(cls):
            raise ValueError(f"on_bad_image={value}: choose {', '.join(cls)}")
        return cls(str(value))


class UnreadableImages:
    """Records which images of a source are unreadable, and why, in files that are written atomically.

    An image's id covers its file's content, so a repaired image is tried again. All are tried again by another version
    of Pillow, or when the record is deleted. Notes on readable images, such as that one is flat, are kept as well.

    Args:
        root: The store's folder.
        source: Inputs that identify the images.
    """

    def __init__(self, root: Path, source: Mapping[str, object]) -> None:
        self._folder = root / "images" / content_key(source)

    def add(self, reasons: Mapping[str, str]) -> None:
        """Records why some images are unreadable, by id."""
        # "faults" has the form that a folder of images (`diffuser=folder`) keeps of its own damaged files.
        content = {"faults": dict.fromkeys(reasons, Fault.UNREADABLE), "reasons": dict(reasons), "reader": READER}
        name = content_key({"unreadable": sorted(reasons), "reader": READER})
        write_json(self._folder / f"{name}.json", with_checksum(content))

    def add_notes(self, notes: Mapping[str, str]) -> None:
        """Records what is unusual about some readable images, by id."""
        content = {"faults": {}, "reasons": {}, "notes": dict(notes), "reader": READER}
        name = content_key({"notes": dict(notes), "reader": READER})
        write_json(self._folder / f"{name}.json", with_checksum(content))

    def reasons(self) -> dict[str, str]:
        """Returns why each known unreadable image of the source cannot be read, by id."""
        return self._read("reasons")

    def notes(self) -> dict[str, str]:
        """Returns the notes on readable images of the source with an unusual format, by id; see `image_note`."""
        return self._read("notes")

    def _read(self, field: str) -> dict[str, str]:
        texts: dict[str, str] = {}
        fetch(self._folder)
        for path in sorted(self._folder.glob("*.json")):
            try:
                content = json.loads(read_text(path))
                if not is_intact(content):
                    raise ValueError("its checksum is wrong")
                if content["reader"] == READER:
                    texts |= {image_id: str(text) for image_id, text in content.get(field, {}).items()}
            except FileNotFoundError:  # another process has deleted it since the folder was listed
                continue
            except (ValueError, KeyError, TypeError, AttributeError):
                log.warning("%s is damaged; the images that it lists are tried again", path)
        return texts


class ReadableSubset(Part):
    """Provides a data set without its unreadable images.

    Args:
        full: The complete data set.
        unread: Why each excluded image cannot be read, by index.

    Raises:
        ValueError: If a class loses all of its images: its accuracy would be undefined, and the mean over classes
            would be over other classes.
    """

    def __init__(self, full: Dataset, unread: Mapping[int, str]) -> None:
        self.unread = dict(sorted(unread.items()))
        super().__init__(full, [index for index in range(len(full)) if index not in self.unread])
        remaining = set(self.labels)
        # Of the classes that have images: a class without any is another error, with another message.
        for label, count in sorted(Counter(full.labels).items()):
            if label not in remaining:
                first = next(index for index in self.unread if full.labels[index] == label)
                raise ValueError(
                    f"class {label} ({full.class_names[label]!r}): not one of its {count} images can be read, first "
                    f"{full.where(first)} ({self.unread[first]}); repair at least one, or take the class out of "
                    "the data set"
                )


def left_out(dataset: Dataset) -> list[dict[str, Any]]:
    """Lists the images that are excluded from the evaluation of a data set, in the form that a result records.

    Returns:
        For each image `index` in the complete data set, `id`, `file`, `class`, `name` of the class and `reason`.
    """
    if not isinstance(dataset, ReadableSubset):
        return []
    full = dataset.full
    return [
        {
            "index": index,
            "id": full.ids[index],
            "file": full.where(index),
            "class": full.labels[index],
            "name": full.class_names[full.labels[index]],
            "reason": reason,
        }
        for index, reason in dataset.unread.items()
    ]


def refusal(dataset: Dataset, unread: Mapping[int, str]) -> str:
    """Builds the error message for unreadable images where all must be readable: files, classes, reasons, fixes.

    Args:
        dataset: The complete data set.
        unread: Why each of them cannot be read, by index.
    """
    lines = [
        f"{dataset.where(index)} cannot be read as an image ({reason}), "
        f"class {dataset.labels[index]} ({dataset.class_names[dataset.labels[index]]!r})"
        for index, reason in sorted(unread.items())[:_SHOWN]
    ]
    if len(unread) > _SHOWN:
        lines.append(f"and {len(unread) - _SHOWN} more")
    return (
        f"{len(unread):,} of {len(dataset):,} images of {dataset.name}: {'; '.join(lines)}. Repair them or move "
        "them away, or leave them out by on_bad_image=skip, which says so; all others are encoded and stored"
    )


def quarantine(folder: Path, dataset: Dataset) -> None:
    """Copies the excluded images into a run's folder, each with its reason in `quarantine.jsonl`.

    The user's own files are not touched. What an earlier run left in the same folder is replaced.

    Args:
        folder: The run's folder.
        dataset: The evaluated data set.
    """
    images = left_out(dataset)
    target = folder / QUARANTINE
    # Built under another name and moved in one step, so that no half-filled folder is taken for a complete one.
    temporary = Path(mkdtemp(dir=folder, prefix=f".{QUARANTINE}."))
    try:
        for image in images:
            assert isinstance(dataset, ReadableSubset)
            image["copy"] = _copy(dataset.full.original(image["index"]), temporary, image)
        lines = "".join(json.dumps(image, ensure_ascii=False) + "\n" for image in images)
        (temporary / LISTED).write_text(lines, encoding="utf-8")
        # Also without images: those of an earlier run in the same folder are not this run's.
        shutil.rmtree(target, ignore_errors=True)
        if images:
            temporary.chmod(0o755)  # mkdtemp allows only the owner
            temporary.replace(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _copy(original: Path | bytes | None, folder: Path, record: Mapping[str, Any]) -> str | None:
    """Copies the content of an image's file to a safe name; returns None where there is nothing to copy."""
    if original is None:
        return None
    stem = ""
    suffix = ".bin"  # which nothing opens by itself: the content may be anything
    if isinstance(original, Path):
        stem = original.stem
        if original.suffix.lower() in IMAGE_SUFFIXES:
            suffix = original.suffix.lower()
    # Names of classes and files may hold anything; the index alone makes the name unique.
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{record['name']} {stem}").strip("-")[:60]
    name = f"{record['index']:06d}-{slug}".rstrip("-") + suffix
    if isinstance(original, Path):
        shutil.copyfile(original, folder / name)
    else:
        (folder / name).write_bytes(original)
    return name
