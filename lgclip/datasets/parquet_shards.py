"""Finds the parquet files of a split in a repository, by its card or by their names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lgclip.runtime.terminal import single_line
from lgclip.runtime.yaml_checks import UnsafeYamlError, read_card

_SHARD = re.compile(r"(?P<set>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<rest>.*)", re.DOTALL)
_MAX_NAME = 1000
"""Maximum length of a class name."""

_OF_CONFIG = (  # where `datasets` writes a split, and where the hub's conversion to parquet does
    "{config}/{split}-[0-9]*.parquet", "{config}/{split}/*.parquet", "{config}/{split}.parquet",
)  # fmt: skip
_ALONE = (
    "data/{split}-[0-9]*.parquet", "data/{split}/*.parquet", "data/{split}.parquet",
    "{split}-[0-9]*.parquet", "{split}/*.parquet", "{split}.parquet", "default/{split}/*.parquet",
)  # fmt: skip


@dataclass(frozen=True)
class Card:
    """Holds the metadata of one configuration in a data set's README.md.

    Attributes:
        config: The configuration; None if neither the card nor the user names one.
        patterns: File patterns of each split.
        info: Its `dataset_info`.
    """

    config: str | None = None
    patterns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, config: str | None) -> "Card":
        """Reads a card; a missing one counts as empty.

        Args:
            path: README.md.
            config: The requested configuration; None for the only one, or the default.

        Raises:
            ValueError: If it is damaged, lacks the configuration, or has several and none is requested.
        """
        from yaml import YAMLError

        # Not by `huggingface_hub.metadata_load`, which expands aliases: 531 bytes became 5 GB.
        try:
            metadata: Mapping[str, Any] = {}
            if path.is_file():
                metadata = read_card(path)
        except UnsafeYamlError:
            raise
        except (YAMLError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path}: its header is damaged ({single_line(str(error))[:300]})") from error
        configs = {str(entry.get("config_name", "default")): entry for entry in _entries(metadata.get("configs"))}
        infos = {str(entry.get("config_name", "default")): entry for entry in _entries(metadata.get("dataset_info"))}
        choices = list(configs) or list(infos)
        if config is None and choices:
            # As `datasets` chooses: what the card marks as default, or what is called so, or the only one.
            defaults = [name for name, entry in configs.items() if _is_true(entry.get("default")) or name == "default"]
            if len(choices) > 1 and not defaults:
                raise ValueError(f"dataset.config: choose one of {', '.join(choices)}")
            config = [*defaults, *choices][0]
        elif choices and config not in choices:
            raise ValueError(f"dataset.config={config}: choose {' or '.join(choices)}")
        return cls(config, _patterns(configs.get(str(config), {}).get("data_files")), infos.get(str(config), {}))

    def images(self, split: str) -> int | None:
        """Returns the number of images of a split, if the card states it."""
        for entry in _entries(self.info.get("splits")):
            count = entry.get("num_examples")
            if entry.get("name") == split and isinstance(count, int):
                return count
        return None

    def class_names(self, column: str) -> list[str]:
        """Returns the names of a label column's classes; empty if the card states none."""
        for feature in _entries(self.info.get("features")):
            kind = feature.get("dtype")
            if feature.get("name") == column and isinstance(kind, Mapping):
                label = kind.get("class_label")
                return checked_names(label.get("names") if isinstance(label, Mapping) else None, column)
        return []


def checked_names(names: Any, column: str) -> list[str]:
    """Returns the class names that a card or a file states: a list, or a mapping of `0`, `1`, ... to names.

    Raises:
        ValueError: If a name is neither a text nor a number, or longer than any name.
    """
    if not names:
        return []
    if isinstance(names, Mapping):
        if not all(re.fullmatch(r"\d{1,9}", str(key)) for key in names):
            raise ValueError(f"dataset.label_column={column}: its class names have other keys than 0, 1, ...")
        names = [name for _, name in sorted(names.items(), key=lambda entry: int(entry[0]))]
    if not isinstance(names, list):
        raise ValueError(f"dataset.label_column={column}: its class names are no list")
    for name in names:
        # A truth value is a number to Python.
        if not isinstance(name, str | int) or isinstance(name, bool) or len(str(name)) > _MAX_NAME:
            raise ValueError(
                f"dataset.label_column={column}: {single_line(str(name))[:40]!r} is no name of a class; give "
                "dataset.names=FILE with one name per line"
            )
    return [str(name) for name in names]


def shards_of(files: Sequence[str], card: Card, split: str, where: str) -> tuple[str, list[str]]:
    """Returns the parquet files of a split, in order, and the configuration's name.

    Args:
        files: Every file of the repository, by its path.
        card: Its card.
        split: The split.
        where: The repository or folder, for error messages.

    Raises:
        ValueError: If there are none, or one of several is missing.
    """
    parquet = sorted(file for file in files if file.endswith(".parquet"))
    if not parquet:
        raise ValueError(
            f"dataset=hub: {where} holds no parquet file; dataset.revision=refs/convert/parquet may have it converted"
        )
    if card.patterns and split not in card.patterns:
        raise ValueError(f"dataset.split={split}: {where} has {', '.join(card.patterns)}")
    if card.patterns:
        patterns = list(card.patterns[split])
        shards = [file for file in parquet if _fits_any(file, patterns)]
    else:
        usual: list[str] = []
        if card.config:
            usual += _OF_CONFIG
        if card.config in (None, "default"):
            usual += _ALONE
        patterns = [pattern.format(config=card.config, split=split) for pattern in usual]
        shards = []
        # The first of the usual places that holds any. All of them together could hold the same rows twice.
        for pattern in patterns:
            shards = [file for file in parquet if fnmatchcase(file, pattern)]
            if shards:
                break
    if not shards:
        files_shown = ", ".join(parquet[:6])
        if len(parquet) > 6:
            files_shown += " ..."
        raise ValueError(
            f"dataset.split={split}: no file of {where} fits {patterns[0]} or the like; it holds {files_shown}"
        )
    _check_complete(shards, where)
    return card.config or "default", shards


def _fits_any(file: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(file, pattern) for pattern in patterns)


def _check_complete(files: Sequence[str], where: str) -> None:
    """Compares files named NUMBER-of-TOTAL with the total in their names."""
    # A missing file would go unnoticed: rows of the others are a valid, smaller split.
    for file in files:
        if name := _SHARD.fullmatch(file):
            expected = [f"{name['set']}-{i:05}-of-{name['total']}{name['rest']}" for i in range(int(name["total"]))]
            missing = sorted(set(expected) - set(files))
            if missing:
                raise ValueError(f"dataset=hub: {where} is not complete, missing: {', '.join(missing[:6])}")


def _is_true(value: Any) -> bool:
    return str(value).lower() in ("true", "yes", "on")


def _entries(declared: Any) -> list[Mapping[str, Any]]:
    """Returns a card's entry, which is a single item or a list of items, as a list."""
    if not isinstance(declared, list):
        declared = [declared]
    # Cards are written by hand: what is not a mapping is skipped, and None is a missing entry.
    return [entry for entry in declared if isinstance(entry, Mapping)]


def _patterns(declared: Any) -> dict[str, list[str]]:
    """Returns the patterns of each split in `data_files`; files without a split are `train`, as in `datasets`."""
    patterns: dict[str, list[str]] = {}
    if not declared:
        return patterns
    # Allowed are one pattern or mapping, or a list of them, and within a mapping again one path or several.
    if not isinstance(declared, list):
        declared = [declared]
    for entry in declared:
        split: Any = "train"
        paths = entry
        if isinstance(entry, Mapping):
            split = entry.get("split", "train")
            paths = entry.get("path")
        if not isinstance(paths, list):
            paths = [paths]
        patterns.setdefault(str(split), []).extend(map(str, paths))
    return patterns
