"""Test images that cannot be read: what is known of them, and what a run does about them."""

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
from lgclip.datasets.files import IMAGE_SUFFIXES
from lgclip.datasets.selected import Part
from lgclip.diffuser.faults import Fault
from lgclip.identity import key_of
from lgclip.whole import write_json

log = logging.getLogger(__name__)

QUARANTINE, LISTED = "quarantine", "quarantine.jsonl"
"""Folder of a run with copies of the images that could not be read, and the list in it."""

READER = f"Pillow {PIL.__version__}"
"""What has tried to read an image; another version may be able to."""

_SHOWN = 10


class OnBadImage(StrEnum):
    """What a run does about test images that cannot be read; the values of `on_bad_image`."""

    RAISE = "raise"
    """Encodes the others, then stops with an error that names them."""
    SKIP = "skip"
    """Leaves them out, and says so in its table and in result.json."""
    QUARANTINE = "quarantine"
    """As `SKIP`, and copies them into the run's folder."""

    @classmethod
    def of(cls, value: object) -> "OnBadImage":
        """The choice that a config names.

        Raises:
            ValueError: If it names none.
        """
        if value not in tuple(cls):
            raise ValueError(f"on_bad_image={value}: choose {', '.join(cls)}")
        return cls(str(value))


class Findings:
    """Which images of a source cannot be read, and why; files that are whole or absent.

    An image's id holds its file's size and time, so one that is mended is tried again; so is every one by
    another version of Pillow, and those whose file of findings is taken away.

    Args:
        root: The store's folder.
        source: What the images are.
    """

    def __init__(self, root: Path, source: Mapping[str, object]) -> None:
        self._folder = root / "images" / key_of(source)

    def add(self, reasons: Mapping[str, str]) -> None:
        """Keeps why some images cannot be read, by their ids."""
        content = {"faults": dict.fromkeys(reasons, Fault.UNREADABLE), "reasons": dict(reasons), "reader": READER}
        write_json(self._folder / f"{key_of({'unreadable': sorted(reasons), 'reader': READER})}.json", content)

    def reasons(self) -> dict[str, str]:
        """Why each image of the source that is known to be unreadable is so, by its id."""
        known: dict[str, str] = {}
        for path in sorted(self._folder.glob("*.json")):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                if content["reader"] == READER:
                    known |= {image_id: str(reason) for image_id, reason in content["reasons"].items()}
            except FileNotFoundError:  # taken away in the meantime
                continue
            except (ValueError, KeyError, TypeError, AttributeError):
                log.warning("%s is damaged; the images that it tells of are tried again", path)
        return known


class Readable(Part):
    """A data set without the images that cannot be read.

    Args:
        whole: The data set.
        unread: Why each image that is left out cannot be read, by its place.

    Raises:
        ValueError: If a class loses all its images: its accuracy would be no number, and the mean over classes
            one over other classes.
    """

    def __init__(self, whole: Dataset, unread: Mapping[int, str]) -> None:
        self.unread = dict(sorted(unread.items()))
        super().__init__(whole, [at for at in range(len(whole)) if at not in self.unread])
        left = set(self.labels)
        for label, count in sorted(Counter(whole.labels).items()):
            if label not in left:
                first = next(at for at in self.unread if whole.labels[at] == label)
                raise ValueError(
                    f"class {label} ({whole.class_names[label]!r}): not one of its {count} images can be read, first "
                    f"{whole.where(first)} ({self.unread[first]}); mend one at least, or take the class out of "
                    "the data set"
                )


def left_out(dataset: Dataset) -> list[dict[str, Any]]:
    """The images that a data set is judged without, as a result lists them.

    Returns:
        Of each `index` in the whole data set, `id`, `file`, `class`, `name` of the class and `reason`.
    """
    if not isinstance(dataset, Readable):
        return []
    whole = dataset.whole
    return [
        {
            "index": at,
            "id": whole.ids[at],
            "file": whole.where(at),
            "class": whole.labels[at],
            "name": whole.class_names[whole.labels[at]],
            "reason": reason,
        }
        for at, reason in dataset.unread.items()
    ]


def refusal(dataset: Dataset, unread: Mapping[int, str]) -> str:
    """What is said of images that cannot be read where each must be: files, classes, reasons, ways out.

    Args:
        dataset: The whole data set.
        unread: Why each of them cannot be read, by its place.
    """
    told = [
        f"{dataset.where(at)} cannot be read as an image ({reason}), "
        f"class {dataset.labels[at]} ({dataset.class_names[dataset.labels[at]]!r})"
        for at, reason in sorted(unread.items())[:_SHOWN]
    ]
    more = f"; and {len(unread) - _SHOWN} more" if len(unread) > _SHOWN else ""
    return (
        f"{len(unread):,} of {len(dataset):,} images of {dataset.name}: {'; '.join(told)}{more}. Mend them or move "
        "them away, or leave them out by on_bad_image=skip, which says so; all others are encoded and stored"
    )


def quarantine(folder: Path, dataset: Dataset) -> None:
    """Copies the images that were left out into a run's folder, each with its reason in `quarantine.jsonl`.

    The user's own files stay what and where they are. What an earlier run left in the same folder is replaced.

    Args:
        folder: The run's folder.
        dataset: What was judged.
    """
    listed, target = left_out(dataset), folder / QUARANTINE
    aside = Path(mkdtemp(dir=folder, prefix=f".{QUARANTINE}."))
    try:
        for one in listed:
            assert isinstance(dataset, Readable)
            one["copy"] = _copy(dataset.whole.original(one["index"]), aside, one)
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in listed)
        (aside / LISTED).write_text(lines, encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        if listed:
            aside.chmod(0o755)
            aside.replace(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _copy(original: Path | bytes | None, folder: Path, one: Mapping[str, Any]) -> str | None:
    """Writes what is in an image's file under a name that is safe; None where there is nothing to copy."""
    if original is None:
        return None
    stem, suffix = (original.stem, original.suffix.lower()) if isinstance(original, Path) else ("", "")
    slug = re.sub(r"[^A-Za-z0-9]+", "-", f"{one['name']} {stem}").strip("-")[:60]
    name = f"{one['index']:06d}-{slug}".rstrip("-") + (suffix if suffix in IMAGE_SUFFIXES else ".bin")
    if isinstance(original, Path):
        shutil.copyfile(original, folder / name)
    else:
        (folder / name).write_bytes(original)
    return name
