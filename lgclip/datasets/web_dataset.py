"""Reads data sets in tar shards, in WebDataset's layout, from this machine or from an object store."""

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int
from PIL import Image

from lgclip.datasets.base import BadImageError, Dataset, Training
from lgclip.datasets.class_map import read_names, sort_folders
from lgclip.datasets.image_decoding import read_image
from lgclip.datasets.image_files import named, sentences
from lgclip.datasets.image_shards import MAX_IMAGE_BYTES
from lgclip.datasets.packed_strings import PackedHashes, PackedStrings
from lgclip.datasets.sample_index import index_shards
from lgclip.datasets.samples import FOLDER, SampleFields
from lgclip.datasets.shard_files import ShardFile
from lgclip.datasets.shard_listing import find_shards, read_small_file
from lgclip.runtime.terminal import single_line
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.location import parse_location

_CLASS_NAMES = "classnames.txt"
_TEMPLATES = "zeroshot_classification_templates.txt"
_SHARD_COUNT = "nshards.txt"
"""Files that the data sets of CLIP benchmark have next to their shards."""

_SPLIT = "{split}"


class _ShardRows(NamedTuple):
    """Locates the images of one shard."""

    shard: ShardFile
    offsets: Int[np.ndarray, " n"]
    sizes: Int[np.ndarray, " n"]
    names: PackedStrings


class WebDataset(Dataset):
    """Reads images and labels from tar shards in WebDataset's layout.

    The shards are read once to list their images; then an image is read by its place in its shard, which is downloaded
    where it lies in an object store. An image's key is its content, as in a folder. A million images take about 80 MB.

    The webdataset package was considered: it only iterates, so that neither a run that lacks some images nor several
    processes could read just their own.

    Args:
        root: A folder, or a URL: `s3://BUCKET/PREFIX`, `gs://...`, `hf://datasets/OWNER/NAME`. Class names and
            templates are read from it where it has the files of CLIP benchmark: `classnames.txt` and
            `zeroshot_classification_templates.txt`.
        split: The split, which replaces `{split}` in `shards`.
        shards: The shards below `root`, such as `{split}/*.tar` or `val-{000..049}.tar`.
        label: Field with the class of a sample, see `SampleFields`.
        image: Extension of the image where a sample has several; None for the only one.
        names: `folder` for the names that the data set's own files give, or a text file with one name per line.
        context: Type of the classes.
        templates: Templates for the text baseline; None for those of `root`, or one from the context.
        cache_gb: Limit of the copies of all shards of object stores on this machine, in 10**9 bytes; None for none.

    Raises:
        ValueError: If no shard fits, one is damaged, a sample has no label, or a class has no name.
    """

    def __init__(
        self,
        root: str,
        split: str = "test",
        shards: str = "{split}/*.tar",
        label: str = "cls",
        image: str | None = None,
        names: str = "folder",
        context: str = "",
        templates: Sequence[str] | None = None,
        cache_gb: float | None = None,
    ) -> None:
        fields = SampleFields(image, label)
        folder = root.rstrip("/")
        if parse_location(folder, "dataset.root") is None:
            folder = str(Path(folder).expanduser().absolute())
        self.name = single_line(folder.rpartition("/")[2])
        files = find_shards(shards.replace(_SPLIT, split), "dataset.shards", cache_gb, folder=folder)
        _check_count(files, folder, shards, split)
        self._rows: list[_ShardRows] = []
        self._starts: list[int] = []
        keys = bytearray()
        # Labels as texts would take more memory than all the rest.
        codes: dict[str, int] = {}
        coded = array("i")
        for file, index in zip(files, index_shards(files, fields), strict=True):
            self._starts.append(len(coded))
            self._rows.append(_ShardRows(file, index.offsets, index.sizes, PackedStrings(index.names)))
            keys += index.keys.tobytes()
            coded.extend(codes.setdefault(text, len(codes)) for text in index.labels)
        self._keys = bytes(keys)
        class_names = _lines(read_small_file(folder, _CLASS_NAMES, "dataset.root"))
        numbers, names_in_data, sorted_by_name = _classes(list(codes), class_names, label, names)
        self.labels = tuple(numbers[code] for code in coded)
        self.names = names
        self.class_names = named("webdataset", names, names_in_data, sorted_by_name=sorted_by_name)
        self.context = context
        if templates is None and not context:
            templates = _templates(read_small_file(folder, _TEMPLATES, "dataset.root"))
        self.templates = sentences(context, templates)
        self.split = split
        if _SPLIT not in shards:
            self.training = Training(lacking=": dataset.shards names no {split}; write it where the split's name is")
        elif split == "train":
            self.training = Training(lacking=" with dataset.split=train: choose the split to evaluate on")
        else:
            self.training = Training({"split": "train"})

    @cached_property
    def ids(self) -> Sequence[str]:
        return PackedHashes.from_bytes(self._keys)

    def image(self, index: int) -> Image.Image:
        rows, row = self._place(index)
        if rows.sizes[row] > MAX_IMAGE_BYTES:
            raise BadImageError(self.where(index), f"it has {rows.sizes[row]} bytes, more than any image")
        return read_image(BytesIO(self.original(index)), self.where(index))

    def where(self, index: int) -> str:
        rows, row = self._place(index)
        return f"{rows.shard.where}!{rows.names[row]}"

    def original(self, index: int) -> bytes:
        rows, row = self._place(index)
        size = int(rows.sizes[row])
        with rows.shard.open() as file:
            file.seek(int(rows.offsets[row]))
            content = file.read(size)
        if len(content) != size:
            raise ValueError(f"{self.where(index)}: the shard was cut while it was in use; start again")
        return content

    def source(self) -> dict[str, object]:
        # Without the shards: an image is known by its content wherever it lies.
        return {"dataset": "webdataset", "schema": STORE_SCHEMA}

    def _place(self, index: int) -> tuple[_ShardRows, int]:
        # Of shards without samples, which begin at the same image, the last: it is the one that holds the image.
        number = bisect_right(self._starts, index) - 1
        return self._rows[number], index - self._starts[number]


def _check_count(files: Sequence[ShardFile], folder: str, shards: str, split: str) -> None:
    """Compares the number of shards with the one that CLIP benchmark states: fewer are a smaller split."""
    place, _, last = shards.replace(_SPLIT, split).rpartition("/")
    # A range, or some of the names, is a choice of the user's.
    if last != "*.tar" or any(sign in place for sign in "*[{"):
        return
    text = read_small_file(folder, f"{place}/{_SHARD_COUNT}" if place else _SHARD_COUNT, "dataset.root")
    if text is not None and text.strip().isdecimal() and int(text) != len(files):
        raise ValueError(
            f"dataset.shards={shards}: {len(files)} shards fit, {folder}/{place}/{_SHARD_COUNT} states {text.strip()}; "
            "get the others"
        )


def _lines(text: str | None) -> list[str]:
    return [] if text is None else text.rstrip().splitlines()


def _templates(text: str | None) -> list[str] | None:
    """Returns the templates of CLIP benchmark's file, whose placeholder is `{c}`; None if there are none."""
    return [line.replace("{c}", "{}") for line in _lines(text) if line.strip()] or None


def _count(numbers: Sequence[int], names: str) -> int:
    """Returns the number of classes: that of the user's names, since the last classes may have no image here."""
    path = Path(names).expanduser()
    if not path.is_file():
        return max(numbers) + 1
    return max(len(read_names(path, names)), max(numbers) + 1)


def _classes(texts: list[str], class_names: list[str], label: str, names: str) -> tuple[list[int], Sequence[str], bool]:
    """Returns the class index of each label, the names that the data set gives, and whether they are sorted here.

    Args:
        texts: The labels that occur.
        class_names: The names in the data set's own file, by class index; empty if it has none.
        label: Value of `dataset.label`, for error messages.
        names: Value of `dataset.names`.
    """
    if not texts:
        raise ValueError("dataset.shards: the shards hold no image")
    are_indices = label != FOLDER and all(text.isascii() and text.isdecimal() and len(text) < 10 for text in texts)
    if are_indices:
        numbers = [int(text) for text in texts]
        if not class_names and names == FOLDER:
            raise ValueError(
                f"dataset.label={label}: the labels are numbers up to {max(numbers)}, and dataset.root has no "
                f"{_CLASS_NAMES}; give dataset.names=FILE with one name per line"
            )
        ordered_names = class_names or [str(number) for number in range(_count(numbers, names))]
        if max(numbers) >= len(ordered_names):
            raise ValueError(
                f"dataset.label={label}: class {max(numbers)} is none of the {len(ordered_names)} that are named in "
                f"{_CLASS_NAMES}"
            )
        return numbers, ordered_names, False
    if class_names and label != FOLDER:
        places = {name: index for index, name in enumerate(class_names)}
        unknown = [text for text in texts if text not in places]
        if unknown:
            raise ValueError(
                f"dataset.label={label}: {unknown[0][:60]!r} is none of the {len(places)} names in {_CLASS_NAMES}"
            )
        return [places[text] for text in texts], class_names, False
    # By name: the order in which they come differs between splits.
    ordered_names = sort_folders(sorted(texts))
    places = {name: index for index, name in enumerate(ordered_names)}
    return [places[text] for text in texts], ordered_names, True
