"""Collects the inputs of every part, and computes content keys from them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lgclip.runtime.hub import commit_of
from lgclip.runtime.regular_files import regular_stat

TINY = "tiny:"
"""Prefix of the small models that come with the package."""

NOT_AN_INPUT = {"input": False}
"""Metadata of a dataclass field that does not change the result, such as a batch size."""

WEIGHTS = {"weights": True}
"""Metadata of a dataclass field that names a model: its weights count, not its path. A field
`revision` next to it is the hub's, and `NOT_AN_INPUT`, since the commit that it resolves to is the input."""

STANDS_FOR = "stands_for"
"""Metadata key of a field whose value is not the input itself; its value is a function that returns the input."""


def content_key(inputs: Mapping[str, object]) -> str:
    """Returns 32 hexadecimal digits that identify `inputs`, independent of the order of its keys."""
    # One text for one content. A change of any of these options would change every key, and all would be made again.
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    # 128 bits: two equal keys among 10^12 different entries have a chance of about 10^-15.
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """Returns the hash of a file's bytes, in hexadecimal digits."""
    regular_stat(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


class FileStamp(NamedTuple):
    """Describes the state of a file without reading it: equal stamps mean equal content.

    The time of the inode's last change cannot be set by a program, as the modification time can: a file that was
    swapped for another of its size and time has another stamp.
    """

    size: int
    changed: int
    inode_changed: int
    device: int
    inode: int


def file_stamp(path: Path) -> FileStamp:
    """Returns the stamp of a file; times in nanoseconds since 1970.

    Raises:
        IrregularFileError: If it is no file; whatever opens it next would wait for a pipe.
    """
    stat = regular_stat(path)
    return FileStamp(stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_dev, stat.st_ino)


def local_folder(model: str) -> Path | None:
    """Returns the folder of a local model, or None for a hub id.

    Args:
        model: `tiny:NAME`, the path of a folder, or a hub id.

    Raises:
        ValueError: If `model` names a small model or a path that does not exist.
    """
    if model.startswith(TINY):
        weights = Path(__file__).parents[1] / "tiny" / "weights"
        folder = weights / model.removeprefix(TINY)
        if not folder.is_dir():
            available = "none"
            # A source tree whose models were not trained yet has no folder of weights at all.
            if weights.is_dir():
                available = ", ".join(sorted(TINY + path.name for path in weights.iterdir()))
            raise ValueError(f"model {model!r}: the package holds {available}")
        return folder
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    # "org/name" may be a folder or an id of the hub, but these can only be paths: the hub's answer would mislead.
    if model.startswith(("/", "~", ".")):
        raise ValueError(f"model {model!r}: no such folder")
    return None


def weights_of(model: str, revision: str | None = None) -> str:
    """Returns the identity of a model's weights in a key: a local folder's content hash, or hub id and commit."""
    folder = local_folder(model)
    if folder is None:
        return f"{model}@{commit_of(model, revision)}"
    files: list[tuple[Path, FileStamp]] = []
    # Sorted, since the order of a folder's entries differs between file systems and would change the hash.
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        files.append((path, file_stamp(path)))
    return _content(folder, tuple(files))


def hub_repositories(model: str, revision: str | None = None) -> list[tuple[str, str | None]]:
    """Returns the hub repository that a model is loaded from, with its revision; empty for a local folder."""
    if local_folder(model):
        return []
    return [(model, revision)]


@lru_cache(maxsize=64)
def _content(folder: Path, files: tuple[tuple[Path, FileStamp], ...]) -> str:
    """Returns the hash of a folder's files; recomputed when the stamp of a file has changed."""
    digest = hashlib.sha256()
    for path, _ in files:
        # The zero byte ends the name. File names cannot contain it, so no other list of files has the same bytes.
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:32]}"


def key_name_of(part: Any) -> str:
    """Returns the name that identifies a part's class in keys and results.

    The class itself declares it as `key_name`, so that renaming or moving the class changes no key. An inherited name
    does not count, since a derived class computes something else.

    Args:
        part: A part of a run.

    Raises:
        TypeError: If its class declares none.
    """
    # `vars` and not `getattr`, which would also find the name of a base class.
    name = vars(type(part)).get("key_name")
    if not isinstance(name, str):
        raise TypeError(
            f"{type(part).__module__}.{type(part).__qualname__} declares no key_name, by which its results are stored: "
            'give the class one, as in key_name: ClassVar[str] = "MyEncoder"'
        )
    return name


def key_inputs(part: Any) -> dict[str, object]:
    """Returns every field of a part (a frozen dataclass) that its results depend on.

    A new field counts unless it is marked `NOT_AN_INPUT`, so that none can be forgotten.
    """
    inputs: dict[str, object] = {"part": key_name_of(part)}
    for field in fields(part):
        if not field.metadata.get("input", True):
            continue
        value = getattr(part, field.name)
        if STANDS_FOR in field.metadata:
            value = field.metadata[STANDS_FOR](part)
        elif field.metadata.get("weights") and value is not None:
            # The content of the weights, not their path: a model that is copied elsewhere keeps its key, and one
            # that is trained further under the same path gets a new one.
            value = weights_of(value, getattr(part, "revision", None))
        inputs[field.name] = value
    return inputs
