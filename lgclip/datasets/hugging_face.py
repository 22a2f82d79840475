"""Reads image data sets of the Hugging Face Hub that are stored as parquet files."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import Any

from PIL import Image

from lgclip.datasets.base import Dataset, Training
from lgclip.datasets.class_map import sort_folders
from lgclip.datasets.content_ids import content_ids
from lgclip.datasets.image_files import named, sentences
from lgclip.datasets.parquet import Rows
from lgclip.datasets.parquet_shards import Card, checked_names, shards_of
from lgclip.datasets.shard_files import ShardFile, local_shard
from lgclip.datasets.shard_listing import files_below
from lgclip.runtime.hub import commit_of, download, hub_errors
from lgclip.runtime.terminal import single_line
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.keys import content_key
from lgclip.store.location import Location, parse_location


class HubImages(Dataset):
    """Reads a data set of the hub, or a local folder in the hub's layout, whose images are in parquet files.

    An image's key is its row in its file, with the commit of the repository (or the local file's content), so that
    computing it decodes no image.

    Args:
        repo: `owner/name` on the hub, such as `timm/resisc45`; its terms are on its page. Files of this
            split only are downloaded into the hub's cache; without a network the cached ones are used.
        root: A folder instead, or a URL such as `s3://BUCKET/PREFIX`, with files such as
            `data/test-00000-of-00001.parquet`.
        revision: Branch, tag or commit; `refs/convert/parquet` (with `config`) is the hub's own conversion
            of data sets in other formats. The commit that it resolves to is recorded.
        config: The configuration; None for the only one, or the default.
        split: The split, as the data set names it.
        image_column: Column of the images: bytes, or a struct with a field `bytes`.
        label_column: Column of the labels: class indices or class names.
        names: `folder` for the names that the data set's own files give, or a text file with one name per line.
        context: Type of the classes.
        templates: Templates for the text baseline.
        counts: Whether the number of images must match the one in the data set's card, if stated.
        stream: Whether a file of the hub is downloaded when its images are needed, and not all of them before, into a
            cache with a limit; as those of a URL always are.
        cache_gb: Limit of the copies of all files that are streamed, in 10**9 bytes; None for none.

    Raises:
        ValueError: If a file, the split, a column or a name is missing; the message lists the available ones.
    """

    def __init__(
        self,
        repo: str | None = None,
        root: str | None = None,
        revision: str = "main",
        config: str | None = None,
        split: str = "test",
        image_column: str = "image",
        label_column: str = "label",
        names: str = "folder",
        context: str = "",
        templates: Sequence[str] | None = None,
        counts: bool = True,
        stream: bool = False,
        cache_gb: float | None = None,
    ) -> None:
        if (repo is None) == (root is None):
            raise ValueError("dataset=hub: give either dataset.repo=OWNER/NAME or dataset.root=DIR")
        self.commit: str | None = None
        self._root: Path | None = None
        """Folder of the files, where they are known by their content."""
        if repo:
            # The commit and not the branch is in the key and in the result: a branch moves on.
            self.commit = commit_of(repo, revision, kind="dataset")
        location = parse_location(str(root), "dataset.root") if root is not None else None
        if repo and stream:
            location = Location("hf", f"datasets/{repo}", revision=str(self.commit))
        if location is not None:
            self.name = repo or single_line(location.path.rpartition("/")[2])
            config, shards, card, files = _from_url(location, config, split, cache_gb)
        elif repo and self.commit:
            self.name = repo
            snapshot, config, shards, card = _from_hub(repo, self.commit, config, split)
            files = [local_shard(snapshot / shard) for shard in shards]
        else:
            self._root = Path(str(root)).expanduser().absolute()
            self.name = single_line(self._root.name)
            config, shards, card = _from_folder(self._root, config, split)
            files = [local_shard(self._root / shard) for shard in shards]
        self._shards = shards
        self.rows = Rows(files)
        self.image_column = image_column
        _check_columns(self.rows, image_column, label_column)
        # A local folder that lacks a file looks like a smaller split.
        stated = card.images(split)
        if counts and stated is not None and stated != self.rows.total:
            raise ValueError(
                f"dataset={self.name}: {self.rows.total} rows in split {split}, its card states {stated}; get its "
                "files again, or set dataset.counts=false"
            )
        labels, names_in_data, sorted_by_name = _labels(self.rows, label_column, card, names)
        self.labels = tuple(labels)
        self.names = names
        self.class_names = named("hub", names, names_in_data, sorted_by_name=sorted_by_name)
        self.context = context
        self.templates = sentences(context, templates)
        if split == "train":
            self.training = Training(lacking=" with dataset.split=train: choose the split to evaluate on")
        else:
            self.training = Training({"split": "train"})
        self.split = f"{split}; configuration {config}"
        if self.commit:
            self.split += f"; revision {revision}"
            if revision != self.commit:
                self.split += f" = {self.commit}"

    @cached_property
    def ids(self) -> tuple[str, ...]:
        # A commit's files never change, so their names identify them. A local file is identified by its content, and
        # one of a bucket by what the bucket says of it.
        identities: Iterable[str] = self._shards
        if self._root is not None:
            identities = content_ids(self._root, self._shards)
        elif not self.commit:
            identities = [file.key for file in self.rows.files]
        places = dict(zip(self.rows.files, identities, strict=True))
        return tuple(content_key({"file": places[file], "row": row}) for file, row in self.rows.places())

    def image(self, index: int) -> Image.Image:
        return self.rows.image(self.image_column, index)

    def where(self, index: int) -> str:
        return self.rows.where(index)

    def original(self, index: int) -> bytes | None:
        return self.rows.content(self.image_column, index)

    def source(self) -> dict[str, object]:
        origin: dict[str, object] = {"folder": self.name}
        if self.commit:
            origin = {"repo": self.name, "commit": self.commit}
        return {"dataset": "hub", **origin, "column": self.image_column, "schema": STORE_SCHEMA}


def _from_hub(repo: str, commit: str, config: str | None, split: str) -> tuple[Path, str, list[str], Card]:
    """Downloads the files of a split; returns the snapshot's folder, the configuration, the files and the card."""
    from huggingface_hub import HfApi

    with hub_errors(repo, "dataset"):
        snapshot = download(repo, commit, ["README.md"], kind="dataset")
        where = repo
        try:
            files = HfApi().list_repo_files(repo, repo_type="dataset", revision=commit)
        except OSError:  # no network: what an earlier download has left
            files = _files_in(snapshot)
            where = f"{repo} (what the hub's cache has of it)"
        # The card first, since it says which files are the split: a repository may hold terabytes of others.
        card = Card.read(snapshot / "README.md", config)
        config, shards = shards_of(files, card, split, where)
        escaped = [escape(shard) for shard in shards]  # in a file name, [ and * are no patterns
        folder = download(repo, commit, escaped, kind="dataset")
    return folder, config, shards, card


def _from_url(
    location: Location, config: str | None, split: str, cache_gb: float | None
) -> tuple[str, list[str], Card, list[ShardFile]]:
    """Lists the files of a split in an object store; returns configuration, places, the card and the files."""
    files = files_below(location, cache_gb)
    card_path = Path()  # a folder, as which a missing card counts
    if "README.md" in files:
        files["README.md"].fetch()
        card_path = files["README.md"].path
    card = Card.read(card_path, config)
    config, shards = shards_of(list(files), card, split, location.url)
    return config, shards, card, [files[shard] for shard in shards]


def _from_folder(root: Path, config: str | None, split: str) -> tuple[str, list[str], Card]:
    if not root.is_dir():
        raise ValueError(f"dataset.root={root}: no such folder; it should hold data/{split}-00000-of-00001.parquet ...")
    card = Card.read(root / "README.md", config)
    return *shards_of(_files_in(root), card, split, str(root)), card


def _files_in(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _check_columns(rows: Rows, image_column: str, label_column: str) -> None:
    for value, column in (("image_column", image_column), ("label_column", label_column)):
        if column not in rows.columns:
            raise ValueError(f"dataset.{value}={column}: the columns are {', '.join(rows.columns)}")
    if not rows.holds_images(image_column):
        image_columns = [column for column in rows.columns if rows.holds_images(column)]
        raise ValueError(
            f"dataset.image_column={image_column} holds {rows.columns[image_column]}, no images; "
            f"columns that may: {', '.join(image_columns) or 'none'}"
        )


def _labels(rows: Rows, column: str, card: Card, names: str) -> tuple[list[int], Sequence[str], bool]:
    """Returns the class index of each row, the class names in the data set's own files, and whether they are sorted.

    Names that are the labels themselves are sorted; else the data set defines the order of its classes.
    """
    values = rows.values(column)
    # Test labels that are kept secret are -1 on the hub.
    unlabelled = [row for row, value in enumerate(values) if value is None or value == -1]
    if unlabelled:
        raise ValueError(
            f"dataset.label_column={column}: {len(unlabelled)} rows have no label, such as row {unlabelled[0]}"
        )
    if not values:
        raise ValueError(f"dataset.label_column={column}: the split has no rows")
    if all(isinstance(value, str) for value in values):
        # By name: the order in which they come differs between the splits of a data set.
        names_in_data = sort_folders(sorted(set(values)))
        places = {name: index for index, name in enumerate(names_in_data)}
        return [places[value] for value in values], names_in_data, True
    if not all(isinstance(value, int) for value in values):
        raise ValueError(
            f"dataset.label_column={column} holds {rows.columns[column]}, neither numbers nor names of classes"
        )
    stated = _class_label(rows.features.get(column), column) or card.class_names(column)
    if not stated and names == "folder":
        raise ValueError(
            f"dataset.label_column={column}: neither the files nor the card name its {max(values) + 1} classes; "
            "give dataset.names=FILE with one name per line"
        )
    names_in_data = stated or [str(index) for index in range(max(values) + 1)]
    invalid = [value for value in values if not 0 <= value < len(names_in_data)]
    if invalid:
        raise ValueError(
            f"dataset.label_column={column}: class {invalid[0]} is none of the {len(names_in_data)} that are named"
        )
    return [int(value) for value in values], names_in_data, False


def _class_label(feature: Mapping[str, Any] | None, column: str) -> list[str]:
    """Returns the names of a `ClassLabel` feature; empty for other features."""
    if not isinstance(feature, Mapping) or feature.get("_type") != "ClassLabel":
        return []
    return checked_names(feature.get("names"), column)
