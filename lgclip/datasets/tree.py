"""Where a data set's files lie, how they come there, and which of its images are asked for."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from lgclip.datasets.archive import SUFFIXES, unpack
from lgclip.datasets.base import Training
from lgclip.datasets.download import fetch
from lgclip.datasets.files import check_counts


@dataclass(frozen=True)
class Archive:
    """A file that a data set is published as.

    Attributes:
        url: Where it is.
        gives: What is there in the data set's folder once it has been unpacked.
        checksum: `md5:...` or `sha256:...`; None if nobody published one.
    """

    url: str
    gives: str
    checksum: str | None = None

    @property
    def name(self) -> str:
        """Its file's name."""
        return PurePosixPath(self.url.partition("?")[0]).name


@dataclass(frozen=True)
class Tree:
    """A data set's files.

    Attributes:
        dataset: Its name.
        page: Where it is described.
        archives: What it is published as.
        inside: What must lie in its folder.
        folders: Where in the root that folder may be: as the archives unpack, as torchvision has it,
            or the root itself.
        by_hand: What only the user can get, and where from.
    """

    dataset: str
    page: str
    archives: tuple[Archive, ...]
    inside: tuple[str, ...]
    folders: tuple[str, ...] = ("",)
    by_hand: str = ""

    def place(self, root: str | os.PathLike[str] | None, download: bool) -> Path:
        """The folder with the files.

        Args:
            root: As given; None stands for `$LGCLIP_DATA/DATASET`, or else `data/DATASET`.
            download: Whether to get what is missing. Processes that start together wait for the first.

        Raises:
            ValueError: If something is missing, and what to do.
        """
        base = Path(root or Path(os.environ.get("LGCLIP_DATA", "data")) / self.dataset).expanduser().absolute()
        found, missing = self._look(base)
        if missing and download:
            base.mkdir(parents=True, exist_ok=True)
            with FileLock(base / ".download.lock"):
                found, missing = self._look(base)
                if missing:
                    self._get(base, found)
                    found, missing = self._look(base)
        if missing:
            raise ValueError(
                f"dataset={self.dataset}: {found} is not complete, missing: {', '.join(missing)}. {self.hint(base)}"
            )
        return found

    def hint(self, base: Path) -> str:
        """What to get and where to put it."""
        files = ", ".join(archive.url for archive in self.archives)
        return (
            f"Give dataset.download=true, or get {files} ({self.page}) and unpack it in {base}"
            f"{'; move what is half there away first' if base.is_dir() else ''}. {self.by_hand}".strip()
        )

    def _look(self, base: Path) -> tuple[Path, list[str]]:
        """The likeliest folder, and what it lacks."""
        places = [base / folder for folder in self.folders if (base / folder).is_dir()]
        lacking = [(place, [name for name in self.inside if not (place / name).exists()]) for place in places]
        # The folder that lacks least; the first if none has anything.
        return min(lacking, key=lambda entry: len(entry[1]), default=(base, list(self.inside)))

    def _get(self, base: Path, found: Path) -> None:
        for archive in self.archives:
            if (base / archive.gives).exists() or (found / archive.gives).exists():
                continue
            by_hand = (base / archive.name).is_file()
            packed = archive.name.lower().endswith(SUFFIXES)
            path = fetch(archive.url, (base if packed else found) / archive.name, archive.checksum)
            if packed:
                unpack(path, base)
                if not by_hand:  # twice the disk for nothing
                    path.unlink()

    def check(self, place: Path, files: Sequence[str], labels: Sequence[int], chosen: "Chosen", classes: int) -> str:
        """Checks what was read against what lies there and the official counts.

        Args:
            place: The data set's folder.
            files: Each image, relative to it.
            labels: Class index of each.
            chosen: Which images were asked for.
            classes: How many classes there are, each with an image; 0 leaves the official counts aside.

        Returns:
            The split as results show it; one that is not whole says so.

        Raises:
            ValueError: If a file is missing or a count is off.
        """
        if not labels:
            raise ValueError(f"dataset={self.dataset}: no image in {chosen.shown} under {place}")
        missing = _missing(place, files)
        if missing:
            raise ValueError(
                f"dataset={self.dataset}: {len(missing)} of {len(files)} images of {chosen.shown} are not in {place},"
                f" the first is {missing[0]}. {self.hint(place)}"
            )
        if classes:
            check_counts(self.dataset, labels, classes, chosen.images, "Set dataset.counts=false for a part of it.")
        return chosen.shown_with(len(labels))


def _missing(place: Path, files: Sequence[str]) -> list[str]:
    """Files that are not there; a folder is listed once, which network drives are thankful for."""
    listed: dict[str, set[str]] = {}
    absent = []
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder not in listed:
            listed[folder] = {path.name for path in (place / folder).iterdir()} if (place / folder).is_dir() else set()
        if name not in listed[folder]:
            absent.append(file)
    return absent


@dataclass(frozen=True)
class Chosen:
    """Which images of a data set are asked for.

    Attributes:
        partition: Which way to divide it, such as `official` or `coop`.
        parts: Which parts of that, such as `test`.
        images: How many images these have; None if no count was published.
        shown: The split as results show it.
        training: The images of the same partition to train on.
    """

    partition: str
    parts: tuple[str, ...]
    images: int | None
    shown: str
    training: Training

    def shown_with(self, images: int) -> str:
        """The split as results show it when so many of its images are there."""
        if self.images is None or images == self.images:
            return self.shown
        return f"{self.shown} ({images:,} of {self.images:,} images)"


def chosen(split: str, partitions: Mapping[str, Mapping[str, int | None]]) -> Chosen:
    """Reads `dataset.split`, which is spelt alike for every data set.

    `PARTITION` alone is what is judged on (its `test`, or `val` if there is no other), `PARTITION-PART`
    any part, `PARTITION-trainval` both `train` and `val`, and `all` every image.

    Args:
        split: As given.
        partitions: Images in each part of each way to divide the data set; the first has them all.

    Raises:
        ValueError: If there is no such split; the message lists those that there are.
    """
    first = next(iter(partitions))
    ways = {"all": (first, tuple(partitions[first]))}
    for partition, parts in partitions.items():
        if partition != "all":
            ways[partition] = (partition, ("test" if "test" in parts else "val",))
            ways |= {f"{partition}-{part}": (partition, (part,)) for part in parts}
            if {"train", "val"} <= parts.keys():
                ways[f"{partition}-trainval"] = (partition, ("train", "val"))
    if split not in ways:
        known = [name + "".join(f"[-{part}]" for part in parts) for name, parts in partitions.items() if name != "all"]
        raise ValueError(f"dataset.split={split}: choose {', '.join([*known, 'all'])}")
    partition, parts = ways[split]
    counts = [partitions[partition][part] for part in parts]
    shown = "all" if split == "all" else f"{partition} {split.partition('-')[2] or parts[0]}"
    images = None if None in counts else sum(count or 0 for count in counts)
    shown = re.sub(r"(?<=[a-z])(\d+) ", r" \1 ", shown)
    return Chosen(partition, parts, images, shown, _training(split, partition, parts, partitions))


def _training(
    split: str, partition: str, parts: Sequence[str], partitions: Mapping[str, Mapping[str, int | None]]
) -> Training:
    part_of = {name: next((p for p in ("train", "trainval") if p in held), None) for name, held in partitions.items()}
    part = part_of[partition]
    if part and part not in parts:
        whole = {"train", "val"} <= partitions[partition].keys() - parts
        return Training({"split": f"{partition}-{part}"}, {"split": f"{partition}-trainval"} if whole else {})
    others = [partition] if part else [name for name, found in part_of.items() if found]
    ways = " or ".join(f"dataset.split={name}" for name in others)
    return Training(lacking=f" beside dataset.split={split}: choose {ways}, which leaves images to train on")
