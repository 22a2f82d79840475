"""What a stored thing was made from: every input of every part, and a key of their content."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from lgclip.hub import commit_of

SCHEMA = 1
"""Version of what the stages write: raised when the same inputs give another result."""

TINY = "tiny:"
"""Prefix of the small models that come with the package."""

NOT_AN_INPUT = {"input": False}
"""Metadata of a dataclass field that does not change the result, such as a batch size."""

WEIGHTS = {"weights": True}
"""Metadata of a dataclass field that names a model: its weights count, not its place. A field
`revision` beside it is the hub's, `NOT_AN_INPUT` itself, since the commit that it stands for is."""

STANDS_FOR = "stands_for"
"""Metadata key of a field whose value is not the input itself; under it a function from the part to what is."""


def key_of(inputs: Mapping[str, object]) -> str:
    """32 hexadecimal digits that stand for `inputs`, whatever the order of its keys."""
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def digest_of(path: Path, algorithm: str = "sha256") -> str:
    """Hash of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def local_folder(model: str) -> Path | None:
    """Folder of a model that lies on this machine, or None for an id of the hub.

    Args:
        model: `tiny:NAME`, the path of a folder, or a hub id.

    Raises:
        ValueError: If `model` names a small model or a path that is not there.
    """
    if model.startswith(TINY):
        weights = Path(__file__).parent / "tiny" / "weights"
        folder = weights / model.removeprefix(TINY)
        if not folder.is_dir():
            known = ", ".join(sorted(TINY + path.name for path in weights.iterdir())) if weights.is_dir() else "none"
            raise ValueError(f"model {model!r}: the package holds {known}")
        return folder
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if model.startswith(("/", "~", ".")):
        raise ValueError(f"model {model!r}: no such folder")
    return None


def weights_of(model: str, revision: str | None = None) -> str:
    """What stands for a model's weights in a key: a local folder's content hash, or the hub's id and commit."""
    folder = local_folder(model)
    if folder is None:
        return f"{model}@{commit_of(model, revision)}"
    stats = ((path, path.stat()) for path in sorted(p for p in folder.rglob("*") if p.is_file()))
    return _content(folder, tuple((path, stat.st_size, stat.st_mtime_ns) for path, stat in stats))


def hub_repositories(model: str, revision: str | None = None) -> list[tuple[str, str | None]]:
    """The hub's repository that a model is loaded from, with its revision; none for a local folder."""
    return [] if local_folder(model) else [(model, revision)]


@lru_cache(maxsize=64)
def _content(folder: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    """Hash of a folder's files; read again when a size or a time has changed."""
    digest = hashlib.sha256()
    for path, _, _ in files:
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:32]}"


def inputs_of(part: Any) -> dict[str, object]:
    """Every field of a part (a frozen dataclass) that its results depend on.

    A new field counts unless it is marked `NOT_AN_INPUT`, so none can be forgotten.
    """
    found: dict[str, object] = {"part": type(part).__name__}
    for field in fields(part):
        if field.metadata.get("input", True):
            value = getattr(part, field.name)
            if STANDS_FOR in field.metadata:
                value = field.metadata[STANDS_FOR](part)
            elif field.metadata.get("weights") and value is not None:
                value = weights_of(value, getattr(part, "revision", None))
            found[field.name] = value
    return found
