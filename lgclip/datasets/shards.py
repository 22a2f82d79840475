"""Which parquet files of a repository are a split: as its card says, or by their names."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

_SHARD = re.compile(r"(?P<set>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})(?P<rest>.*)")
_OF_CONFIG = (  # where `datasets` writes a split, and where the hub's conversion to parquet does
    "{config}/{split}-[0-9]*.parquet", "{config}/{split}/*.parquet", "{config}/{split}.parquet",
)  # fmt: skip
_ALONE = (
    "data/{split}-[0-9]*.parquet", "data/{split}/*.parquet", "data/{split}.parquet",
    "{split}-[0-9]*.parquet", "{split}/*.parquet", "{split}.parquet", "default/{split}/*.parquet",
)  # fmt: skip


@dataclass(frozen=True)
class Card:
    """What a data set's README.md says of one of its configurations.

    Attributes:
        config: The configuration; None if neither the card nor the user names one.
        patterns: Patterns of the files of each split.
        info: Its `dataset_info`.
    """

    config: str | None = None
    patterns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, config: str | None) -> "Card":
        """Reads a card; an absent one says nothing.

        Args:
            path: README.md.
            config: The configuration that is asked for; None for the only one, or the default.

        Raises:
            ValueError: If it is damaged, or has no such configuration, or several and none is asked for.
        """
        from huggingface_hub import metadata_load
        from yaml import YAMLError

        try:
            told = (metadata_load(path) or {}) if path.is_file() else {}
        except (YAMLError, ValueError) as error:
            raise ValueError(f"{path}: what stands at its top is damaged ({error})") from error
        configs = {str(entry.get("config_name", "default")): entry for entry in _entries(told.get("configs"))}
        infos = {str(entry.get("config_name", "default")): entry for entry in _entries(told.get("dataset_info"))}
        known = list(configs) or list(infos)
        if config is None and known:
            defaults = [name for name, entry in configs.items() if entry.get("default") or name == "default"]
            if len(known) > 1 and not defaults:
                raise ValueError(f"dataset.config: choose one of {', '.join(known)}")
            config = defaults[0] if defaults else known[0]
        elif known and config not in known:
            raise ValueError(f"dataset.config={config}: choose {' or '.join(known)}")
        return cls(config, _patterns(configs.get(str(config), {}).get("data_files")), infos.get(str(config), {}))

    def images(self, split: str) -> int | None:
        """Number of images of a split, if the card states it."""
        stated = [
            entry.get("num_examples") for entry in _entries(self.info.get("splits")) if entry.get("name") == split
        ]
        return stated[0] if stated else None

    def class_names(self, column: str) -> list[str]:
        """Names of a label column's classes; empty if the card states none."""
        for feature in _entries(self.info.get("features")):
            kind = feature.get("dtype")
            if feature.get("name") == column and isinstance(kind, Mapping):
                names = (kind.get("class_label") or {}).get("names") or []
                if isinstance(names, Mapping):  # written as {'0': first, '1': second, ...}
                    names = [name for _, name in sorted(names.items(), key=lambda entry: int(entry[0]))]
                return [str(name) for name in names]
        return []


def shards_of(files: Sequence[str], card: Card, split: str, where: str) -> tuple[str, list[str]]:
    """The parquet files of a split, in order, and the configuration's name.

    Args:
        files: Every file of the repository, by its place.
        card: What its card says.
        split: The split.
        where: The repository or folder, to be named in an error.

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
        found = [file for file in parquet if any(fnmatchcase(file, pattern) for pattern in patterns)]
    else:  # the first of the usual places that holds any
        usual = (*(_OF_CONFIG if card.config else ()), *(_ALONE if card.config in (None, "default") else ()))
        patterns = [pattern.format(config=card.config, split=split) for pattern in usual]
        found = next((hits for p in patterns if (hits := [f for f in parquet if fnmatchcase(f, p)])), [])
    if not found:
        shown = ", ".join(parquet[:6]) + (" ..." if len(parquet) > 6 else "")
        raise ValueError(f"dataset.split={split}: no file of {where} fits {patterns[0]} or the like; it holds {shown}")
    _check_whole(found, where)
    return card.config or "default", found


def _check_whole(files: Sequence[str], where: str) -> None:
    """Compares files named NUMBER-of-TOTAL with the total in their names."""
    for file in files:
        if said := _SHARD.fullmatch(file):
            others = [f"{said['set']}-{i:05}-of-{said['total']}{said['rest']}" for i in range(int(said["total"]))]
            missing = sorted(set(others) - set(files))
            if missing:
                raise ValueError(f"dataset=hub: {where} is not complete, missing: {', '.join(missing[:6])}")


def _entries(told: Any) -> list[Mapping[str, Any]]:
    """A card's entry that is either one thing or a list of them, as a list."""
    return [entry for entry in (told if isinstance(told, list) else [told]) if isinstance(entry, Mapping)]


def _patterns(told: Any) -> dict[str, list[str]]:
    """Patterns of each split in `data_files`; files without a split are `train`, as `datasets` has it."""
    patterns: dict[str, list[str]] = {}
    for entry in told if isinstance(told, list) else [told] if told else []:
        split, paths = (
            (entry.get("split", "train"), entry.get("path")) if isinstance(entry, Mapping) else ("train", entry)
        )
        patterns.setdefault(str(split), []).extend(map(str, paths if isinstance(paths, list) else [paths]))
    return patterns
