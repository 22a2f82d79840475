"""Describes public data sets: their files, download addresses and partitions."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from filelock import FileLock

from lgclip.datasets.archive import SUFFIXES, unpack
from lgclip.datasets.base import Training
from lgclip.datasets.download import fetch
from lgclip.datasets.image_files import IncompleteDatasetError, check_counts
from lgclip.datasets.label_files import Listing

Partitions = Mapping[str, Mapping[str, int | None]]
"""Number of images in each part of each partition of a data set; None where no count was published."""


@dataclass(frozen=True)
class Archive:
    """Describes a published file of a data set.

    Attributes:
        url: Its address.
        extracts: The file or folder that it becomes in the data set's folder.
        checksum: `md5:...` or `sha256:...`; None if none was published.
    """

    url: str
    extracts: str
    checksum: str | None = None

    @property
    def name(self) -> str:
        """Returns the name of the file."""
        return PurePosixPath(self.url.partition("?")[0]).name


@dataclass(frozen=True)
class Selection:
    """Describes the selected images of a data set.

    Attributes:
        partition: Partition of the data set, such as `official` or `coop`.
        parts: Parts of the partition, such as `test`.
        images: Number of images in these parts; None if no count was published.
        title: The split as shown in results.
        training: The training images of the same partition.
        files: Additional files that these parts need, such as lists of their images.
    """

    partition: str
    parts: tuple[str, ...]
    images: int | None
    title: str
    training: Training
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tree:
    """Describes a data set: its files, splits, classes and license.

    Attributes:
        dataset: Name of the data set.
        page: Web page that describes it.
        archives: Archives that it is published as.
        inside: Required content of its folder.
        folders: Candidate subfolders of the root: as the archives unpack, as torchvision has it,
            or the root itself.
        by_hand: Files for the partition `coop` that only the user can get, and where from.
        images: Number of images in each part of each partition.
        split_files: Additional files of each partition, or of each `{part}` of it, such as lists of its images.
        split_archives: Archives of those files that are published separately.
        classes: Number of classes.
        license: Its license.
        variant: Its level or size, as shown in results; empty for the usual variant.
        name_lists: Key of its lists of class names; empty for the data set's name.
    """

    dataset: str
    page: str
    archives: tuple[Archive, ...]
    inside: tuple[str, ...]
    folders: tuple[str, ...] = ("",)
    by_hand: str = ""
    images: Partitions = field(default_factory=dict)
    split_files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    split_archives: tuple[Archive, ...] = ()
    classes: int = 0
    license: str = ""
    variant: str = ""
    name_lists: str = ""

    def select(self, split: str) -> tuple[Selection, "Tree"]:
        """Parses `dataset.split`; also returns the description with the files that it needs.

        Raises:
            ValueError: If there is no such split.
        """
        selection = chosen(split, self.images)
        templates = self.split_files.get(selection.partition, ())
        names: list[str] = []
        for part in selection.parts:
            names += [template.format(part=part) for template in templates]
        files = tuple(dict.fromkeys(names))  # a file of the whole partition only once
        # Only what this split needs is asked for, downloaded and checked.
        archives = [archive for archive in self.split_archives if archive.extracts in files]
        by_hand = ""
        if selection.partition == "coop":
            by_hand = self.by_hand
        tree = replace(self, archives=(*self.archives, *archives), inside=(*self.inside, *files), by_hand=by_hand)
        return replace(selection, files=files), tree

    def place(self, root: str | os.PathLike[str] | None, download: bool) -> Path:
        """Returns the folder with the files, downloaded first if requested.

        Raises:
            ValueError: If something is missing; the message says how to fix it.
        """
        base = Path(root or Path(os.environ.get("LGCLIP_DATA", "data")) / self.dataset).expanduser().absolute()
        folder, missing = self._inspect(base)
        if missing and download:
            base.mkdir(parents=True, exist_ok=True)
            with FileLock(base / ".download.lock"):  # processes that start together wait for the first
                # Looked at again: the process that had the lock may have downloaded everything.
                folder, missing = self._inspect(base)
                if missing:
                    self._download(base, folder)
                    folder, missing = self._inspect(base)
        if missing:
            raise IncompleteDatasetError(self.dataset, folder, missing, self._hint(base))
        return folder

    def _hint(self, base: Path) -> str:
        """Returns the hint which files to get and where to put them."""
        files = ", ".join(archive.url for archive in self.archives)
        advice = ""
        # `unpack` does not write over what is there.
        if base.is_dir():
            advice = "; move what is half there away first"
        return (
            f"Give dataset.download=true, or get {files} ({self.page}) and unpack it in {base}{advice}. {self.by_hand}"
        ).strip()

    def _inspect(self, base: Path) -> tuple[Path, list[str]]:
        """Returns the candidate folder with the fewest missing files, the first of equals, and what it lacks."""
        folders = [base / name for name in self.folders if (base / name).is_dir()]
        best = min(folders, key=lambda folder: len(self._missing_in(folder)), default=base)
        return best, self._missing_in(best)

    def _missing_in(self, folder: Path) -> list[str]:
        return [name for name in self.inside if not (folder / name).exists()]

    def _download(self, base: Path, folder: Path) -> None:
        for archive in self.archives:
            if (base / archive.extracts).exists() or (folder / archive.extracts).exists():
                continue
            # An archive that the user has put there is the user's, and stays.
            by_hand = (base / archive.name).is_file()
            packed = archive.name.lower().endswith(SUFFIXES)
            # A list of images goes where the images are, an archive where it is unpacked.
            target = base if packed else folder
            path = fetch(archive.url, target / archive.name, archive.checksum)
            if packed:
                unpack(path, base)
                if not by_hand:  # twice the disk for nothing
                    path.unlink()

    def check(self, folder: Path, listing: Listing, selection: Selection, counts: bool) -> str:
        """Compares a listing with the files and the official counts; returns the split as shown in results.

        Raises:
            ValueError: If a file is missing or a count does not match.
        """
        total = len(listing.files)
        if not total:
            raise ValueError(f"dataset={self.dataset}: no image in {selection.title} under {folder}")
        missing = _missing_files(folder, listing.files)
        if missing:
            raise ValueError(
                f"dataset={self.dataset}: {len(missing)} of {total} images of {selection.title} are not in {folder},"
                f" the first is {missing[0]}. {self._hint(folder)}"
            )
        if counts:
            hint = "Set dataset.counts=false for a part of it."
            check_counts(self.dataset, listing.labels, self.classes, selection.images, hint)
        title = selection.title
        if selection.images not in (None, total):
            title += f" ({total:,} of {selection.images:,} images)"
        if self.variant:
            title += f", {self.variant}"
        return title


def _missing_files(root: Path, files: Sequence[str]) -> list[str]:
    """Returns the missing files; lists each folder once, which is faster than one check per file on a network drive."""
    names_in: dict[str, set[str]] = {}
    missing = []
    for file in files:
        folder, _, name = file.rpartition("/")
        if folder not in names_in:
            path = root / folder
            names_in[folder] = set()
            if path.is_dir():
                names_in[folder] = {entry.name for entry in path.iterdir()}
        if name not in names_in[folder]:
            missing.append(file)
    return missing


def coop_hint(file: str, drive_id: str, neighbor: str) -> str:
    """Describes how to get a split file of CoOp, which Google Drive serves to browsers only, and where to put it."""
    link = f"https://drive.google.com/file/d/{drive_id}/view"
    return f"{file} must be downloaded by hand: {link} (CoOp's DATASETS.md); put it next to {neighbor}"


def chosen(split: str, partitions: Partitions) -> Selection:
    """Parses `dataset.split`, which has the same syntax for every data set.

    `PARTITION` selects the part to evaluate (its `test`, or `val` if there is no other), `PARTITION-PART`
    any part, `PARTITION-trainval` both `train` and `val`, and `all` every image, according to the first partition.

    Raises:
        ValueError: If there is no such split; the message lists the available ones.
    """
    first = next(iter(partitions))
    selections = {"all": (first, tuple(partitions[first]))}
    names = []
    for partition, counts in partitions.items():
        if partition == "all":
            continue
        names.append(partition + "".join(f"[-{part}]" for part in counts))
        # Imagenette has no test images; its val is what everybody evaluates.
        evaluated = "test" if "test" in counts else "val"
        selections[partition] = (partition, (evaluated,))
        for part in counts:
            selections[f"{partition}-{part}"] = (partition, (part,))
        if {"train", "val"} <= counts.keys():
            selections[f"{partition}-trainval"] = (partition, ("train", "val"))
    if split not in selections:
        raise ValueError(f"dataset.split={split}: choose {', '.join([*names, 'all'])}")
    partition, parts = selections[split]
    images: int | None = 0
    for part in parts:
        count = partitions[partition][part]
        # One unknown count makes the sum unknown.
        if count is None:
            images = None
            break
        images += count
    title = "all"
    if split != "all":
        title = f"{partition} {split.partition('-')[2] or parts[0]}"
    title = re.sub(r"(?<=[a-z])(\d+) ", r" \1 ", title)  # partition10 test: partition 10 test
    return Selection(partition, parts, images, title, _training(split, partition, parts, partitions))


def _training(split: str, partition: str, parts: Sequence[str], partitions: Partitions) -> Training:
    """Returns the training images of a partition, or which partitions leave images to train on."""
    train_part = {}
    for name, counts in partitions.items():
        train_part[name] = next((part for part in ("train", "trainval") if part in counts), None)
    part = train_part[partition]
    if part and part not in parts:
        pool: dict[str, object] = {}
        # Validation images may be learned from only where they are not evaluated themselves.
        if {"train", "val"} <= partitions[partition].keys() - parts:
            pool = {"split": f"{partition}-trainval"}
        return Training({"split": f"{partition}-{part}"}, pool)
    # The training images themselves are evaluated, or the partition has none.
    choices = [name for name in partitions if train_part[name]]
    if part:
        choices = [partition]
    ways = " or ".join(f"dataset.split={name}" for name in choices)
    return Training(lacking=f" with dataset.split={split}: choose {ways}, which leaves images to train on")
